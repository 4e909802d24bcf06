"""Stage: train gates over the frozen experts of this run, on a mixture of the domains and of text that needs no expert."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.digest import digest
from pmemx.core.domain import Corpus, DomainSource
from pmemx.core.encoding import Encoded, encode
from pmemx.core.gate import Gate
from pmemx.core.routing import Select
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.lit.fit import fit
from pmemx.lit.gate_module import GateLosses, GateModule, MixtureStream, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.runtime.attach import attached
from pmemx.stage.bank import GateFactory, course_digests, load_bank, save_gate
from pmemx.stage.corpus import Rows
from pmemx.stage.training import loaded


@dataclass(frozen=True, kw_only=True)
class TrainGateStage(Stage):
    """Every gate that has parameters is trained; the experts and the base stay frozen.

    select: the selection while training; it must pass gradients to the scores, so it is soft. per_domain, general and
    unknown: rows of each kind in a batch. checkpoints: see DistillStage.
    """

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    gates: dict[str, GateFactory]
    select: Select
    losses: GateLosses
    trainer: TrainerSettings
    checkpoints: str = "outputs/checkpoints"
    per_domain: int = 4
    general: int = 16
    unknown: int = 16

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Trained gates go to the run folder; returns the last training accuracy of each."""
        base = loaded(self.base_model)
        bank = load_bank(self.store, workspace.folder)
        corpus = self.rows.load(self.data, base)
        stream = MixtureStream(self._sources(corpus, base, bank), pad=base.tokenizer.pad_token_id, seed=workspace.seed)
        work = digest([course_digests(workspace.folder, "experts"), list(corpus), self.losses, self.trainer.recipe])
        return {
            f"{name}/accuracy": self._train(workspace, base, bank, stream, name, factory, digest([work, repr(factory)]))
            for name, factory in self.gates.items()
        }

    def _sources(self, corpus: Corpus, base: LoadedBase, bank: ExpertBank) -> list[Source]:
        def rows(domain: str) -> tuple[Encoded, ...]:
            return tuple(encode(base.tokenizer, e, with_document=False) for e in corpus.domain(domain).train)

        sources = [Source(rows(name), bank.names.index(name) + 1, self.per_domain) for name in bank.names]
        sources.append(Source(rows(corpus.general.name), 0, self.general))
        if corpus.unknown is not None:
            sources.append(Source(rows(corpus.unknown.name), 0, self.unknown, speaks=False))
        return sources

    def _train(
        self,
        workspace: Workspace,
        base: LoadedBase,
        bank: ExpertBank,
        stream: MixtureStream,
        name: str,
        factory: GateFactory,
        identity: str,
    ) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(workspace.seed)
            gate: Gate = factory(bank.shape(base.model.config.hidden_size)).to(next(base.model.parameters()).device)
        accuracy = 0.0
        if any(True for _ in gate.parameters()):
            with (
                attached(base.model, bank, gate=gate, select=self.select, base=base.fingerprint) as routed,
                workspace.progress(f"Train gate {name}", total=self.trainer.steps) as advance,
            ):

                def on_step(step: int, values: dict[str, float]) -> None:
                    nonlocal accuracy
                    accuracy = values["train/accuracy"]
                    advance(1, f"loss {values['train/loss']:.3f}")
                    if step % 5 == 0 or step == self.trainer.steps:
                        workspace.metrics.write("train_gate", values, domain=name, step=step)

                fit(
                    GateModule(routed, gate, self.losses, self.trainer),
                    StreamModule(stream),
                    self.trainer,
                    seed=workspace.seed,
                    folder=Path(self.checkpoints) / identity[:16],
                    on_step=on_step,
                )
        save_gate(gate, workspace.folder / "gates", name)
        shutil.rmtree(Path(self.checkpoints) / identity[:16], ignore_errors=True)
        return accuracy
