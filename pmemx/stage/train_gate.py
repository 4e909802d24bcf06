"""Stage: train gates over the frozen experts of this run, on a mixture of the domains and of text that needs no expert."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.digest import digest
from pmemx.core.domain import Corpus, DomainSource
from pmemx.core.encoding import Encoded, collate, encode
from pmemx.core.gate import ExampleGate, Gate
from pmemx.core.mix import Mixing
from pmemx.core.routing import Select
from pmemx.core.stage import Advance, Stage, Workspace
from pmemx.core.store import Store
from pmemx.lit.fit import fit
from pmemx.lit.gate_module import GateLosses, GateModule, MixtureStream, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.runtime.attach import Routed, attached
from pmemx.stage.bank import GateFactory, course_digests, load_bank, needs_training, save_gate
from pmemx.stage.corpus import Rows
from pmemx.stage.training import loaded


@dataclass(frozen=True, kw_only=True)
class TrainGateStage(Stage):
    """Gates with weights are trained, gates that learn from examples see every prompt once; the others need neither.

    Prompts about the unknown are no examples: they resemble those of the domains, and would only blur what sets general
    text apart. The experts and the base stay frozen.

    select: the selection while training; it must pass gradients to the scores, so it is soft. mixing: see
    core.mix.Mixing. per_domain, general and unknown: rows of each kind in a batch; 0 leaves the kind out. checkpoints:
    see DistillStage.
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
    mixing: Mixing = "after"

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Trained gates go to the run folder; returns the last training accuracy of each."""
        base = loaded(self.base_model)
        bank = load_bank(self.store, workspace.folder)
        corpus = self.rows.load(self.data, base)
        sources = self._sources(corpus, base, bank)
        stream = MixtureStream(sources, pad=base.tokenizer.pad_token_id, seed=workspace.seed)
        work = self._work(workspace, corpus)
        accuracy: dict[str, float] = {}
        for name, factory in self.gates.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(workspace.seed)
                gate = factory(bank.shape(base.model.config.hidden_size)).to(next(base.model.parameters()).device)
            if not needs_training(gate):
                continue
            checkpoints = Path(self.checkpoints) / digest([work, repr(factory)])[:16]
            if isinstance(gate, ExampleGate):
                accuracy[f"{name}/accuracy"] = self._show(workspace, base, bank, sources, name, gate)
            else:
                accuracy[f"{name}/accuracy"] = self._train(workspace, base, bank, stream, name, gate, checkpoints)
            save_gate(gate, workspace.folder / "gates", name)
            shutil.rmtree(checkpoints, ignore_errors=True)
        return accuracy

    def _work(self, workspace: Workspace, corpus: Corpus) -> str:
        """What a training comes from, the gate aside: one that differs in any of it must not go on from its checkpoints."""
        batch = [self.per_domain, self.general, self.unknown]
        taught = [course_digests(workspace.folder, "experts"), list(corpus), batch, workspace.seed]
        return digest([taught, self.select, self.mixing, self.losses, self.trainer.recipe])

    def _sources(self, corpus: Corpus, base: LoadedBase, bank: ExpertBank) -> list[Source]:
        def rows(domain: str) -> tuple[Encoded, ...]:
            return tuple(encode(base.tokenizer, e, with_document=False) for e in corpus.domain(domain).train)

        sources = [Source(rows(name), bank.names.index(name) + 1, self.per_domain) for name in bank.names]
        sources.append(Source(rows(corpus.general.name), 0, self.general))
        if corpus.unknown is not None:
            sources.append(Source(rows(corpus.unknown.name), 0, self.unknown, speaks=False))
        return sources

    def _show(
        self,
        workspace: Workspace,
        base: LoadedBase,
        bank: ExpertBank,
        sources: list[Source],
        name: str,
        gate: ExampleGate,
    ) -> float:
        examples = prompts_of(sources)
        with (
            attached(base.model, bank, gate=gate, select=self.select, base=base.fingerprint) as routed,
            workspace.progress(f"Show gate {name}", total=len(examples)) as advance,
        ):
            return show_examples(
                gate,
                routed,
                examples,
                pad=base.tokenizer.pad_token_id,
                batch_size=self.trainer.batch_size,
                advance=advance,
            )

    def _train(
        self,
        workspace: Workspace,
        base: LoadedBase,
        bank: ExpertBank,
        stream: MixtureStream,
        name: str,
        gate: Gate,
        checkpoints: Path,
    ) -> float:
        accuracy = 0.0
        with (
            attached(
                base.model, bank, gate=gate, select=self.select, base=base.fingerprint, mixing=self.mixing
            ) as routed,
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
                folder=checkpoints,
                on_step=on_step,
            )
        return accuracy


def prompts_of(sources: Sequence[Source]) -> list[tuple[Encoded, int]]:
    """What a gate is shown: the prompts of the rows that have one and can be answered, with their true choices."""
    return [
        (Encoded(row.ids[: row.prompt_length], row.prompt_length), source.choice)
        for source in sources
        if source.per_batch and source.speaks
        for row in source.rows
        if row.prompt_length
    ]


@torch.no_grad()
def show_examples(
    gate: ExampleGate,
    routed: Routed,
    prompts: Sequence[tuple[Encoded, int]],
    *,
    pad: int,
    batch_size: int,
    advance: Advance,
) -> float:
    """Let a gate see every prompt with its true choice; returns the share that it then gets right.

    Prompts are shown whole, whatever the gate decides about when it serves.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt[0].prompt_length)
    device = next(routed.model.parameters()).device
    seen: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(ordered), batch_size):
        rows, choices = zip(*ordered[start : start + batch_size], strict=True)
        batch, choice = collate(rows, pad).to(device), torch.tensor(choices, device=device)
        with routed.given(prompt=batch.prompt):
            pooled = routed.pooled(batch.ids, batch.attention.long())
        gate.see(pooled, choice)
        seen.append((pooled, choice))
        advance(len(rows), "examples")
    right = [gate.score(pooled, None).flatten(1, -2).mean(dim=1).argmax(dim=1) == choice for pooled, choice in seen]
    return float(torch.cat(right).float().mean())
