"""Stage: merge the experts of this run into one block by every merge of the run."""

import datetime
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel
from pmemx.core.card import Version
from pmemx.core.digest import digest
from pmemx.core.domain import DomainSource, Example
from pmemx.core.encoding import encode
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Merge, Parent
from pmemx.core.metric import Figure
from pmemx.core.stage import Advance, Stage, Workspace
from pmemx.core.store import Store
from pmemx.runtime.attach import attached
from pmemx.runtime.moments import second_moments
from pmemx.stage.bank import course_digests, note_course
from pmemx.stage.build import did_you_mean
from pmemx.stage.corpus import Rows
from pmemx.stage.training import existing, loaded


@dataclass(frozen=True, kw_only=True)
class MergeStage(Stage):
    """One block a merge, called "merge/<name>"; what is merged already is found by digest.

    Where a merge reads moments, every expert, attached alone, first reads training rows of its own domain without their
    documents, as it will be asked; the base and the corpus are not looked at otherwise.

    weights: by expert, 1 for those that are not named. Scale a whole merge by its own setting. moment_rows: how many rows
    of a domain are read, drawn by the run's seed. batch_size: rows of one pass.
    """

    puts_blocks: ClassVar[bool] = True

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    merges: dict[str, Merge]
    weights: dict[str, float] | None = None
    moment_rows: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("moment_rows", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} = {value} reads nothing; give a number from 1")

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Blocks go to the ledger and, as "merge", to blocks.json; the energy that each lost becomes a figure."""
        experts = self._parents(course_digests(workspace.folder, "experts"))
        parents, seed = list(experts.values()), workspace.seed
        reads = any(merge.reads_moments for merge in self.merges.values())
        shown = self._shown(list(experts), seed) if reads else {}
        identities = {name: _identity(merge, parents, seed, shown) for name, merge in self.merges.items()}
        known = {name: existing(self.store, f"merge/{name}", identities[name]) for name in self.merges}
        if any(merge.reads_moments and known[name] is None for name, merge in self.merges.items()):
            parents = self._with_moments(workspace, experts, shown)
        versions = {}
        with workspace.progress("Merge", total=len(self.merges)) as advance:
            for name, merge in self.merges.items():
                versions[name] = known[name] or self._merged(merge, parents, f"merge/{name}", identities[name], seed)
                advance(1, name)
        note_course(workspace.folder, "merge", {name: [version.digest] for name, version in versions.items()})
        lost = {name: version.card.metrics["lost_energy"] for name, version in versions.items()}
        for name, version in versions.items():
            workspace.ledger.add(version)
            workspace.ledger.figures[f"lost_energy/merge/{name}"] = Figure(lost[name])
        return {f"{name}/lost_energy": value for name, value in lost.items()}

    def _parents(self, experts: dict[str, list[str]]) -> dict[str, Parent]:
        weights = self.weights or {}
        if unknown := sorted(weights.keys() - experts.keys()):
            raise ConfigError(
                f"weights name {unknown[0]!r}, which no expert is called{did_you_mean(unknown[0], experts)}"
            )
        return {
            name: Parent(self.store.get(versions[-1]), weights.get(name, 1.0), versions[-1])
            for name, versions in experts.items()
        }

    def _shown(self, domains: list[str], seed: int) -> dict[str, list[Example]]:
        """The training rows that are read for each expert."""
        corpus = self.rows.load(self.data, loaded(self.base_model))
        shown = {}
        for name in domains:
            rows = corpus.domain(name).train
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: self.moment_rows]
            shown[name] = [rows[place] for place in drawn.tolist()]
        return shown

    def _with_moments(
        self, workspace: Workspace, experts: dict[str, Parent], shown: dict[str, list[Example]]
    ) -> list[Parent]:
        sites = sorted({site for parent in experts.values() for site in parent.block.factors})
        with workspace.progress("Read second moments", total=sum(map(len, shown.values()))) as advance:
            return [
                replace(parent, moments=self._moments(parent, sites, shown[name], advance))
                for name, parent in experts.items()
            ]

    def _moments(
        self, parent: Parent, sites: list[str], examples: list[Example], advance: Advance
    ) -> dict[str, torch.Tensor]:
        base = loaded(self.base_model)
        rows = [encode(base.tokenizer, example, with_document=False) for example in examples]
        with attached(base.model, ExpertBank([parent.block]), weights=[1.0], base=base.fingerprint):
            return second_moments(
                base.model,
                sites,
                rows,
                pad=base.tokenizer.pad_token_id,
                batch_size=self.batch_size,
                advance=advance,
            )

    def _merged(self, merge: Merge, parents: list[Parent], name: str, identity: str, seed: int) -> Version:
        block = merge(parents, name=name, generator=torch.Generator().manual_seed(seed)).block
        card = replace(
            block.card,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            recipe={**block.card.recipe, "digest": identity, "seed": seed},
        )
        return self.store.put(replace(block, card=card))


def _identity(merge: Merge, parents: list[Parent], seed: int, shown: dict[str, list[Example]]) -> str:
    """Equal digests are equal work. The base, which reads the rows as well, is that of the parents."""
    work: list[object] = [merge, sorted((parent.digest, parent.weight) for parent in parents), seed]
    return digest([*work, shown] if merge.reads_moments else work)
