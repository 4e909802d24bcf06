"""Stage: measure the experts of this run, record the figures, and let those that fit a policy take a tag."""

import datetime
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pmemx.core.base_model import BaseModel
from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card import Version
from pmemx.core.digest import digest
from pmemx.core.domain import DomainSource
from pmemx.core.errors import ConfigError, PolicyRefused
from pmemx.core.metric import Figure
from pmemx.core.peft_config import rank_and_scale
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.core.tag_policy import TagPolicy, judge
from pmemx.stage.bank import course_digests, note_course
from pmemx.stage.corpus import Rows
from pmemx.stage.fitness import Fitness
from pmemx.stage.recording import record_figures
from pmemx.stage.training import existing, loaded

_SCALED = "scaled_by"


@dataclass(frozen=True, kw_only=True)
class PromoteStage(Stage):
    """The policy becomes that of the tag, in place of the one it had; see pmemx.stage.fitness for what is measured.

    The version that the tag points at is asked the same questions first, so that relative bounds compare like with like,
    and is rolled back where it no longer fits.
    on_refusal: "refuse" leaves a version that does not fit without the tag. "scale" looks for the largest factor in
    (0, 1) by which its update fits, and gives the tag to that as a version of its own. The search halves `halvings`
    times; it takes a bound that some factor keeps to be kept by smaller ones, as bounds on harm are, and asks of the
    factor that it ends with whether every other bound, such as one on the gain, is kept as well.
    """

    puts_blocks: ClassVar[bool] = True

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    policy: TagPolicy
    tag: str = "stable"
    on_refusal: Literal["refuse", "scale"] = "refuse"
    halvings: int = 7

    def __post_init__(self) -> None:
        if self.halvings < 1:
            raise ConfigError(f"stage.promote.halvings = {self.halvings} finds no factor; give a number from 1")

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Figures of what took the tag, or was refused it; its factor, 0 for none. Digests go to blocks.json, "promoted"."""
        base = loaded(self.base_model)
        fitness = Fitness(base, self.rows.load(self.data, base))
        self._protect(workspace)
        promoted: dict[str, list[str]] = {}
        numbers: dict[str, float] = {}
        experts = course_digests(workspace.folder, "experts")
        with workspace.progress("Promote", total=len(experts)) as advance:
            for name, versions in experts.items():
                holder = _Candidate(self, fitness, workspace, name, versions[-1]).promote()
                numbers[f"{name}/factor"] = 0.0 if holder is None else float(holder.card.recipe.get(_SCALED, 1.0))
                promoted[name] = [] if holder is None else [holder.digest]
                shown = self.store.promotions.of(versions[-1] if holder is None else holder.digest)
                numbers |= {f"{name}/{metric}": figure.value for metric, figure in shown.items()}
                workspace.ledger.figures.update({f"promote/{name}/{m}": figure for m, figure in shown.items()})
                advance(1, name)
        note_course(workspace.folder, "promoted", {name: made for name, made in promoted.items() if made})
        return numbers

    def _protect(self, workspace: Workspace) -> None:
        held = self.store.promotions.policies().get(self.tag)
        if held == self.policy:
            return
        self.store.promotions.protect(self.tag, self.policy)
        if held is not None:
            workspace.ledger.notes.append(f"this run replaced the policy that tag {self.tag!r} had in the bank")


@dataclass(frozen=True)
class _Candidate:
    """One expert on its way to the tag."""

    stage: PromoteStage
    fitness: Fitness
    workspace: Workspace
    domain: str
    digest: str

    def promote(self) -> Version | None:
        """The version that holds the tag for this expert, None where it was refused; notes say why."""
        store = self.stage.store
        version = store.find(self.digest)
        figures = self._measure(self.digest)
        holder = self._holder(version)
        if holder is not None and (holder.number == version.number or self._is_scaled(holder)):
            return holder
        if self._take(self.digest, "it fits"):
            return version
        made = self._scale_down(version, figures) if self.stage.on_refusal == "scale" else None
        if made is None:
            return None
        self.workspace.ledger.add(made)
        self._measure(made.digest)
        return made if self._take(made.digest, f"scaled by {made.card.recipe[_SCALED]} it fits") else None

    @property
    def _by(self) -> str:
        return f"pmemx promote, questions {digest(list(self.fitness.corpus))[:12]}"

    def _measure(self, reference: str) -> dict[str, Figure]:
        """Measure and record a version, and note what that rolled back."""
        block = self.stage.store.get(reference, base=self.fitness.base.fingerprint)
        figures = self.fitness.of(block, self.domain)
        record_figures(self.stage.store, self.workspace, reference, figures, by=self._by)
        return figures

    def _holder(self, version: Version) -> Version | None:
        """The version that the tag points at, once each that held it was asked the questions of this run."""
        store, name = self.stage.store, f"{version.namespace}/{version.name}"
        asked = {version.number}
        while (number := store.tags(name).get(self.stage.tag)) is not None and number not in asked:
            asked.add(number)
            if store.find(f"{name}@{number}").card.base == self.fitness.base.fingerprint:
                self._measure(f"{name}@{number}")
        return None if number is None else store.find(f"{name}@{number}")

    def _is_scaled(self, holder: Version) -> bool:
        return _SCALED in holder.card.recipe and holder.card.parents == (self.digest,)

    def _take(self, reference: str, reason: str) -> bool:
        try:
            self.stage.store.tag(reference, self.stage.tag, reason=reason)
        except PolicyRefused as error:
            self.workspace.ledger.notes.append(str(error))
            return False
        return True

    def _scale_down(self, version: Version, figures: dict[str, Figure]) -> Version | None:
        """A version by the largest factor that fits, None where none does."""
        stage, policy = self.stage, self.stage.policy
        tagged = stage.store.tags(f"{version.namespace}/{version.name}").get(stage.tag)
        current = None
        if tagged is not None:
            current = stage.store.promotions.of(f"{version.namespace}/{version.name}@{tagged}")
        broken = TagPolicy(
            bounds=tuple(b for b in policy.bounds if not judge(TagPolicy(bounds=(b,)), figures, current).allowed)
        )
        if any(bound.metric not in figures for bound in broken.bounds):
            return None  # No factor makes a figure of what this corpus cannot measure.
        block = stage.store.get(self.digest)
        low, high, found = 0.0, 1.0, figures
        for _ in range(stage.halvings):
            factor = (low + high) / 2
            measured = self.fitness.of(scaled(block, factor), self.domain)
            if judge(broken, measured, current).allowed:
                low, found = factor, measured
            else:
                high = factor
        verdict = judge(policy, found, current)
        if low == 0.0 or not verdict.allowed:
            findings = "; ".join(verdict.findings)
            self.workspace.ledger.notes.append(f"no factor makes {version.name} fit; the last says {findings}")
            return None
        return self._put(scaled(block, low), version, low, found)

    def _put(self, block: CapabilityBlock, version: Version, factor: float, figures: dict[str, Figure]) -> Version:
        identity = digest({"scaled": self.digest, "by": factor})
        if made := existing(self.stage.store, version.name, identity):
            return made
        card = replace(
            block.card,
            made_by="pmemx promote",
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            parents=(self.digest,),
            recipe={**block.card.recipe, "digest": identity, _SCALED: factor},
            metrics={metric: figure.value for metric, figure in figures.items()},
        )
        message = f"version {version.number} scaled by {factor}"
        return self.stage.store.put(replace(block, card=card), message=message)


def scaled(block: CapabilityBlock, factor: float) -> CapabilityBlock:
    """The block with its update times a factor, and with a PEFT config that says the same."""
    config = dict(block.card.peft_config)
    told = {site: rank_and_scale(config, site) for site in block.factors} if config else {}
    if told != {site: (factors.rank, factors.scale) for site, factors in block.factors.items()}:
        factors = {site: LoraFactors(f.A, f.B, f.scale * factor) for site, f in block.factors.items()}
        return CapabilityBlock(replace(block.card, peft_config={}), factors)
    config["lora_alpha"] = config.get("lora_alpha", 8) * factor
    if patterns := config.get("alpha_pattern"):
        config["alpha_pattern"] = {key: alpha * factor for key, alpha in patterns.items()}
    # From the config, which rounds otherwise than the old scale times the factor would.
    factors = {site: LoraFactors(f.A, f.B, rank_and_scale(config, site)[1]) for site, f in block.factors.items()}
    return CapabilityBlock(replace(block.card, peft_config=config), factors)
