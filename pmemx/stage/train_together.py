"""Stage: train mixtures whose experts are born with their gate, the baselines of a bank of experts trained apart."""

import datetime
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.core.card import Origin, Version
from pmemx.core.digest import digest
from pmemx.core.domain import Corpus, DomainSource
from pmemx.core.encoding import collate, encode
from pmemx.core.gate import Gate
from pmemx.core.peft_config import generated_config
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.core.structure import Born
from pmemx.core.trainable import TrainableFactors
from pmemx.lit.fit import fit
from pmemx.lit.gate_module import GateBatch, MixtureStream
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.lit.together_module import TogetherModule
from pmemx.runtime.attach import attached
from pmemx.runtime.linear_sites import linear_sites
from pmemx.stage.bank import load_gate, note_course, save_gate
from pmemx.stage.corpus import Rows
from pmemx.stage.mixture import mixture_of
from pmemx.stage.origin import commit
from pmemx.stage.together import Together
from pmemx.stage.training import existing, loaded


@dataclass(frozen=True, kw_only=True)
class TrainTogetherStage(Stage):
    """One bank and one gate an entry, trained on the answers of all domains at once; the base stays frozen.

    Its experts are ordinary blocks, called "together/<entry>/<number>"; what is trained already is found by digest, as long
    as the gate that belongs to it lies under checkpoints. trainer: its steps are taken for every domain, as the curriculum
    "joint" takes them; its batch_size is that of validation. per_domain, general: rows of each domain, and of general text,
    in a batch; 0 leaves the kind out. checkpoints: see DistillStage.
    """

    puts_blocks: ClassVar[bool] = True

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    together: dict[str, Together]
    trainer: TrainerSettings
    checkpoints: str = "outputs/checkpoints"
    per_domain: int = 4
    general: int = 16

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Blocks go to the ledger and, as "together", to blocks.json, gates to the run folder; returns the last losses."""
        base = loaded(self.base_model)
        corpus = self.rows.load(self.data, base)
        made, losses = {}, {}
        for name, entry in self.together.items():
            versions, loss = self._entry(workspace, base, corpus, name, entry)
            made[name] = [version.digest for version in versions]
            for version in versions:
                workspace.ledger.add(version)
            losses[f"{name}/loss"] = loss
        note_course(workspace.folder, "together", made)
        return losses

    def _entry(
        self, workspace: Workspace, base: LoadedBase, corpus: Corpus, name: str, entry: Together
    ) -> tuple[list[Version], float]:
        identity = self._identity(workspace, base, corpus, entry)
        born = entry.structure.experts(linear_sites(base.model), torch.Generator().manual_seed(workspace.seed))
        names = [f"together/{name}/{number}" for number in range(len(born))]
        found = [existing(self.store, block, digest([identity, number])) for number, block in enumerate(names)]
        versions = [version for version in found if version is not None]
        kept, gates = Path(self.checkpoints) / identity[:16], workspace.folder / "gates" / "together"
        if len(versions) < len(born) or not (kept / "gate.json").exists():
            blocks = _newborn(names, identity, born, base, corpus, workspace.seed)
            trained, gate = self._train(workspace, base, corpus, name, entry, blocks, kept)
            save_gate(gate, kept, "gate")
            versions = [self.store.put(block) for block in trained]
            for checkpoint in kept.glob("*.ckpt"):
                checkpoint.unlink()
        bank = ExpertBank([self.store.get(version.digest) for version in versions])
        save_gate(load_gate(entry.gate, bank.shape(base.model.config.hidden_size), kept, "gate"), gates, name)
        return versions, float(versions[0].card.metrics["train_loss"])

    def _identity(self, workspace: Workspace, base: LoadedBase, corpus: Corpus, entry: Together) -> str:
        """Equal digests are equal work."""
        trainer = self._trainer(corpus, entry).recipe
        method = [entry.structure, repr(entry.gate), entry.select, entry.losses, entry.mixing, trainer]
        batch = [self.per_domain, self.general]
        return digest([base.fingerprint, method, batch, list(corpus.domains), corpus.general, workspace.seed])

    def _trainer(self, corpus: Corpus, entry: Together) -> TrainerSettings:
        trainer = entry.trainer or self.trainer
        return replace(trainer, steps=trainer.steps * len(corpus.domains))

    def _train(
        self,
        workspace: Workspace,
        base: LoadedBase,
        corpus: Corpus,
        name: str,
        entry: Together,
        blocks: list[CapabilityBlock],
        checkpoints: Path,
    ) -> tuple[list[CapabilityBlock], Gate]:
        trainer, loss = self._trainer(corpus, entry), float("nan")
        bank = ExpertBank(blocks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(workspace.seed)
            gate = entry.gate(bank.shape(base.model.config.hidden_size))
        names = [domain.name for domain in corpus.domains]
        sources = mixture_of(corpus, base, names, per_domain=self.per_domain, general=self.general)
        stream = MixtureStream(sources, pad=base.tokenizer.pad_token_id, seed=workspace.seed)
        knows = [False, *(domain.has_documents for domain in corpus.domains)]
        with (
            attached(
                base.model, bank, gate=gate, select=entry.select, base=base.fingerprint, mixing=entry.mixing
            ) as routed,
            workspace.progress(f"Train {name}", total=trainer.steps) as advance,
        ):
            factors = TrainableFactors(bank, blocks)

            def on_step(step: int, values: dict[str, float]) -> None:
                nonlocal loss
                loss = values["train/language_model"]
                advance(1, f"loss {loss:.3f}")
                if step % 5 == 0 or step == trainer.steps:
                    workspace.metrics.write("train_together", values, domain=name, step=step)

            steps = fit(
                TogetherModule(routed, gate, factors, entry.losses, knows, trainer),
                StreamModule(stream, _held(corpus, base, trainer.batch_size) if trainer.validate_every else ()),
                trainer,
                seed=workspace.seed,
                folder=checkpoints,
                on_step=on_step,
            )
        return [_finished(block, steps, loss) for block in factors.blocks()], gate


def _held(corpus: Corpus, base: LoadedBase, size: int) -> list[GateBatch]:
    """The domains' validation rows, `size` in a batch."""
    rows = [
        (encode(base.tokenizer, e, with_document=False), number + 1)
        for number, domain in enumerate(corpus.domains)
        for e in domain.validation
    ]
    batches = [list(zip(*rows[start : start + size], strict=True)) for start in range(0, len(rows), size)]
    return [
        GateBatch(
            collate(encoded, base.tokenizer.pad_token_id),
            torch.tensor(choice),
            torch.ones(len(choice), dtype=torch.bool),
        )
        for encoded, choice in batches
    ]


def _newborn(
    names: list[str], identity: str, born: Born, base: LoadedBase, corpus: Corpus, seed: int
) -> list[CapabilityBlock]:
    blocks = []
    for number, (name, factors) in enumerate(zip(names, born, strict=True)):
        sites = {site: (own.rank, own.scale) for site, own in factors.items()}
        card = BlockCard(
            name=name,
            domain=", ".join(domain.name for domain in corpus.domains),
            base=base.fingerprint,
            base_name=base.name,
            base_revision=base.revision,
            made_by="pmemx together",
            origin=Origin.FINE_TUNED.value,
            recipe={
                "digest": digest([identity, number]),
                "seed": seed,
                "commit": commit(),
                "data": {domain.name: digest(domain.train) for domain in corpus.domains},
            },
            peft_config=generated_config(sites, base_name=base.name),
        )
        blocks.append(CapabilityBlock(card, factors))
    return blocks


def _finished(block: CapabilityBlock, steps: int, loss: float) -> CapabilityBlock:
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    card = replace(
        block.card, created=created, recipe={**block.card.recipe, "steps": steps}, metrics={"train_loss": loss}
    )
    return replace(block, card=card)
