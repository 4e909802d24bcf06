"""Stage: train gates over the frozen experts of this run, on a mixture of the domains and of text that needs no expert."""

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.digest import digest
from pmemx.core.domain import Corpus, DomainSource
from pmemx.core.gate import DetectorGate, ExampleGate, Gate, SearchedGate, SiteExampleGate
from pmemx.core.metric import Figure
from pmemx.core.mix import Mixing
from pmemx.core.routing import Select
from pmemx.core.source import source_digest
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.lit.fit import fit
from pmemx.lit.gate_module import GateLosses, GateModule, MixtureStream, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.runtime.attach import Routed, attached
from pmemx.stage.bank import GateFactory, Learnt, course_digests, gate_learnt, needs_training, save_gate
from pmemx.stage.composition import Composition, all_compositions
from pmemx.stage.corpus import Rows
from pmemx.stage.gate_learning import note_examples, prompts_of, show_examples, show_sites
from pmemx.stage.gate_search import SearchSettings, few_examples, search
from pmemx.stage.mixture import mixture_of
from pmemx.stage.training import loaded


@dataclass(frozen=True, kw_only=True)
class TrainGateStage(Stage):
    """Gates with weights are trained, gates that learn from examples see every prompt once, a gate of few numbers is searched
    for; the others need nothing. The experts and the base stay frozen, and what was learnt already in this folder stays.

    gates decide by `select` when they are trained; compositions say it themselves where it matters. select must pass
    gradients to the scores, so it is soft. mixing: see core.mix.Mixing. per_domain, general, unknown and negatives: rows of
    each kind in a batch; 0 leaves the kind out. most_steps: a limit for every trainer, those of compositions too; 0: none. checkpoints: see
    DistillStage.
    """

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    gates: dict[str, GateFactory | None]
    select: Select
    losses: GateLosses
    trainer: TrainerSettings
    compositions: dict[str, Composition] = field(default_factory=dict)
    search: SearchSettings = field(default_factory=SearchSettings)
    checkpoints: str = "outputs/checkpoints"
    per_domain: int = 4
    general: int = 16
    unknown: int = 16
    negatives: int = 16
    most_steps: int = 0
    mixing: Mixing = "after"

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Trained gates go to the run folder; returns the last training accuracy of each, and a search's loss."""
        base = loaded(self.base_model)
        corpus = self.rows.load(self.data, base)
        digests = [versions[-1] for versions in course_digests(workspace.folder, "experts").values()]
        found: dict[str, float] = {}
        made = all_compositions(self.gates, self.compositions, select=self.select, mixing=self.mixing)
        for name, composition in made.items():
            bank = composition.bank(self.store, digests, base)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(workspace.seed)
                gate = composition.gate(bank.shape(base.model.config.hidden_size))
            if not needs_training(gate):
                continue
            learning = _Learning(self, workspace, base, corpus, bank, digests, name, composition, gate)
            learnt = gate_learnt(workspace.folder / "gates", name)
            if learnt is None or learnt.work != learning.work:
                learnt = learning.run()
                save_gate(gate, workspace.folder / "gates", name, learnt)
                shutil.rmtree(learning.checkpoints, ignore_errors=True)
            found[f"{name}/accuracy"] = learnt.accuracy
            workspace.ledger.figures[f"cost/parameters/{name}"] = Figure(learnt.parameters)
            workspace.ledger.figures[f"cost/seconds/{name}"] = Figure(learnt.seconds)
        return found

    def trainer_of(self, composition: Composition) -> TrainerSettings:
        """How a composition is trained here."""
        trainer = composition.trainer or self.trainer
        return replace(trainer, steps=min(trainer.steps, self.most_steps)) if self.most_steps else trainer

    def select_of(self, composition: Composition, gate: Gate) -> Select:
        """How it selects while it is trained."""
        # A search sends no gradient: it may look at the selection that counts.
        return composition.train_select or (composition.select if isinstance(gate, SearchedGate) else self.select)

    def work(self, workspace: Workspace, corpus: Corpus, composition: Composition, gate: Gate) -> str:
        """Digest of all that a gate comes from: one that differs in any of it must not go on from its checkpoints."""
        batch = [self.per_domain, self.general, self.unknown, self.negatives]
        experts = course_digests(workspace.folder, "experts")
        taught = [experts, list(composition.transforms), list(corpus), batch, workspace.seed]
        how = [self.select_of(composition, gate), composition.mixing, composition.losses or self.losses]
        method = [repr(composition.gate), *how, self.trainer_of(composition).recipe]
        program = [repr(self.base_model), source_digest()]
        return digest([taught, method, program, self.search if isinstance(gate, SearchedGate) else None])


@dataclass(frozen=True, eq=False)
class _Learning:
    """One gate, and all that it learns from."""

    stage: TrainGateStage
    workspace: Workspace
    base: LoadedBase
    corpus: Corpus
    bank: ExpertBank
    experts: list[str]
    name: str
    composition: Composition
    gate: Gate

    @property
    def trainer(self) -> TrainerSettings:
        return self.stage.trainer_of(self.composition)

    @property
    def losses(self) -> GateLosses:
        return self.composition.losses or self.stage.losses

    @property
    def select(self) -> Select:
        return self.stage.select_of(self.composition, self.gate)

    @property
    def work(self) -> str:
        return self.stage.work(self.workspace, self.corpus, self.composition, self.gate)

    @property
    def checkpoints(self) -> Path:
        return Path(self.stage.checkpoints) / self.work[:16]

    @property
    def sources(self) -> list[Source]:
        """Rows by domain, general text, and prompts that nobody can answer."""
        stage = self.stage
        return mixture_of(
            self.corpus,
            self.base,
            self.bank.names,
            per_domain=stage.per_domain,
            general=stage.general,
            unknown=stage.unknown,
            negatives=stage.negatives,
        )

    def run(self) -> Learnt:
        """Learn, in the way that the gate's kind asks for."""
        began, gate, base, sources = time.perf_counter(), self.gate, self.base, self.sources
        device = next(base.model.parameters()).device
        with attached(
            base.model,
            self.bank,
            gate=gate.to(device),
            select=self.select,
            base=base.fingerprint,
            mixing=self.composition.mixing,
        ) as routed:
            if isinstance(gate, SearchedGate):
                found = self._search(gate, routed, sources)
            elif isinstance(gate, ExampleGate | SiteExampleGate | DetectorGate):
                found = self._show(gate, routed, sources)
            else:
                found = self._train(routed, sources)
        return Learnt(self.work, found, time.perf_counter() - began, _numbers(gate), tuple(self.experts))

    def _show(self, gate: ExampleGate | SiteExampleGate | DetectorGate, routed: Routed, sources: list[Source]) -> float:
        prompts = prompts_of(sources, unanswerable=isinstance(gate, DetectorGate))
        settings = {"pad": self.base.tokenizer.pad_token_id, "batch_size": self.trainer.batch_size}
        with self.workspace.progress(f"Show gate {self.name}", total=len(prompts)) as advance:
            if isinstance(gate, ExampleGate):
                return show_examples(gate, routed, prompts, **settings, advance=advance)
            if isinstance(gate, DetectorGate):
                return note_examples(gate, routed, prompts, **settings, advance=advance)
            return show_sites(gate, routed, prompts, **settings, advance=advance)

    def _search(self, gate: SearchedGate, routed: Routed, sources: list[Source]) -> float:
        settings = self.stage.search
        few = few_examples(sources, settings.per_domain, torch.Generator().manual_seed(self.workspace.seed))
        with self.workspace.progress(f"Search gate {self.name}", total=settings.evaluations) as advance:
            return search(
                gate,
                routed,
                few,
                pad=self.base.tokenizer.pad_token_id,
                batch_size=self.trainer.batch_size,
                settings=settings,
                advance=advance,
            )

    def _train(self, routed: Routed, sources: list[Source]) -> float:
        accuracy, trainer = 0.0, self.trainer
        stream = MixtureStream(sources, pad=self.base.tokenizer.pad_token_id, seed=self.workspace.seed)
        with self.workspace.progress(f"Train gate {self.name}", total=trainer.steps) as advance:

            def on_step(step: int, values: dict[str, float]) -> None:
                nonlocal accuracy
                accuracy = values["train/accuracy"]
                advance(1, f"loss {values['train/loss']:.3f}")
                if step % 5 == 0 or step == trainer.steps:
                    self.workspace.metrics.write("train_gate", values, domain=self.name, step=step)

            fit(
                GateModule(routed, self.gate, self.losses, trainer),
                StreamModule(stream),
                trainer,
                seed=self.workspace.seed,
                folder=self.checkpoints,
                on_step=on_step,
            )
        return accuracy


def _numbers(gate: Gate) -> int:
    """How many numbers were learnt: parameters, what a search moved, or the weights of a detector but for its commonest."""
    if isinstance(gate, SearchedGate):
        return gate.numbers().numel()
    if isinstance(gate, DetectorGate):
        state = gate.state_dict()
        return sum(_told_apart(state[key]) for key in gate.choice_rows or () if state[key].is_floating_point())
    return sum(parameter.numel() for parameter in gate.parameters() if parameter.requires_grad)


def _told_apart(rows: Tensor) -> int:
    """Entries that differ from the commonest of their row, which stands for all that was never seen."""
    return int((rows != rows.mode(dim=-1, keepdim=True).values).sum())
