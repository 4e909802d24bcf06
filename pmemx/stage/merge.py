"""Stage: merge the experts of this run into one block by every merge of the run."""

import datetime
from dataclasses import dataclass, replace

import torch

from pmemx.core.card import Version
from pmemx.core.digest import digest
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Merge, Parent
from pmemx.core.metric import Figure
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.stage.bank import course_digests, note_course
from pmemx.stage.build import did_you_mean
from pmemx.stage.training import existing


@dataclass(frozen=True, kw_only=True)
class MergeStage(Stage):
    """One block a merge, called "merge/<name>"; what is merged already is found by digest.

    weights: by expert, 1 for those that are not named. Scale a whole merge by its own setting.
    """

    store: Store
    merges: dict[str, Merge]
    weights: dict[str, float] | None = None

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Blocks go to the ledger and, as "merge", to blocks.json; the energy that each lost becomes a figure."""
        parents = self._parents(course_digests(workspace.folder, "experts"))
        versions = {}
        with workspace.progress("Merge", total=len(self.merges)) as advance:
            for name, merge in self.merges.items():
                versions[name] = self._merged(merge, parents, f"merge/{name}", workspace.seed)
                advance(1, name)
        note_course(workspace.folder, "merge", {name: [version.digest] for name, version in versions.items()})
        lost = {name: version.card.metrics["lost_energy"] for name, version in versions.items()}
        for name, version in versions.items():
            workspace.ledger.add(version)
            workspace.ledger.figures[f"lost_energy/merge/{name}"] = Figure(lost[name])
        return {f"{name}/lost_energy": value for name, value in lost.items()}

    def _parents(self, experts: dict[str, list[str]]) -> list[Parent]:
        weights = self.weights or {}
        if unknown := sorted(weights.keys() - experts.keys()):
            raise ConfigError(
                f"weights name {unknown[0]!r}, which no expert is called{did_you_mean(unknown[0], experts)}"
            )
        return [
            Parent(self.store.get(versions[-1]), weights.get(name, 1.0), versions[-1])
            for name, versions in experts.items()
        ]

    def _merged(self, merge: Merge, parents: list[Parent], name: str, seed: int) -> Version:
        identity = digest([merge, sorted((parent.digest, parent.weight) for parent in parents), seed])
        if found := existing(self.store, name, identity):
            return found
        block = merge(parents, name=name, generator=torch.Generator().manual_seed(seed)).block
        card = replace(
            block.card,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            recipe={**block.card.recipe, "digest": identity, "seed": seed},
        )
        return self.store.put(replace(block, card=card))
