"""Train one adapter along its course and put a block into the store after every phase."""

import datetime
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pmemx.core.adapter import Adapter
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.core.card import Origin, SemanticType, Sensitivity
from pmemx.core.digest import digest
from pmemx.core.distill import Distill, Locality
from pmemx.core.domain import Domain
from pmemx.core.errors import ConfigError, UnknownBlock
from pmemx.core.stage import MetricsLog
from pmemx.core.store import Store, Version
from pmemx.lit.expert import ExpertModule
from pmemx.lit.fit import fit
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import Row, StreamModule, TrainingBatch, TransferStream, join
from pmemx.lit.transfer import Responses, anchor_rows, training_rows
from pmemx.stage.curriculum import Course
from pmemx.stage.origin import commit
from pmemx.stage.pool import Tell


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what an adapter becomes, besides its course.

    objective: for domains whose rows have documents; gold_objective: for those without, which no teacher can read for.
    """

    base_model: BaseModel
    adapter: Adapter
    objective: Distill
    gold_objective: Distill
    locality: Locality | None
    responses: Responses
    trainer: TrainerSettings
    seed: int

    def objective_for(self, domain: Domain) -> Distill:
        """The objective that this domain's rows allow."""
        return self.gold_objective if self._needs_documents and not domain.has_documents else self.objective

    def reads(self, domain: Domain) -> bool:
        """Whether this domain's documents are what is distilled: read by a teacher, or by the expert itself."""
        return self._needs_documents and domain.has_documents

    @property
    def _needs_documents(self) -> bool:
        return self.objective.needs_teacher or self.objective.rows == "documents"

    def digest(self, course: Course, phase: int, general: Domain, base: str) -> str:
        """Identity of the block after a phase: equal digests are equal work."""
        return digest(
            {
                "base": base,
                "adapter": self.adapter,
                "rank_factor": course.rank_factor,
                "objectives": [[self.objective_for(d) for d in domains] for domains in course.phases[: phase + 1]],
                "locality": self.locality,
                "responses": self.responses,
                "trainer": self.trainer.recipe,
                "seed": self.seed,
                "domains": [list(domains) for domains in course.phases[: phase + 1]],
                "general": general.train if self.locality is not None else None,
            }
        )


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One course with its recipe, where its blocks go, and where it leaves checkpoints (folder) and curves."""

    course: Course
    recipe: Recipe
    general: Domain
    store: Store
    folder: Path
    metrics: MetricsLog
    kind: str

    def checkpoints(self, identity: str) -> Path:
        """Where the training of one block leaves checkpoints: found again by whoever trains the same block."""
        return self.folder / identity[:16]

    @property
    def label(self) -> str:
        """What the progress bar says."""
        return f"Distil {self.course.name}"

    @property
    def total(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase_steps(self.recipe, phase) for phase in self.course.phases)


def phase_steps(recipe: Recipe, phase: tuple[Domain, ...]) -> int:
    """Optimiser steps of one phase: the recipe's for every domain in it."""
    return recipe.trainer.steps * len(phase)


def train(job: TrainingJob, tell: Tell) -> list[Version]:
    """Train along the course; versions by phase. A phase whose digest is in the store already is not trained again."""
    recipe, course = job.recipe, job.course
    base = loaded(recipe.base_model)
    found = [
        existing(job.store, course.name, recipe.digest(course, i, job.general, base.fingerprint))
        for i in range(len(course.phases))
    ]
    versions: list[Version] = []
    anchors: list[Row] | None = None
    for number, domains in enumerate(course.phases):
        steps = phase_steps(recipe, domains)
        if (version := found[number]) is not None:
            tell(steps, "already distilled")
            versions.append(version)
            continue
        if anchors is None:
            anchors = anchor_rows(base, job.general.train) if recipe.locality is not None else []
        before = versions[-1] if versions else None
        block = _train_phase(job, base, number, anchors, before, tell)
        versions.append(job.store.put(block))
        shutil.rmtree(job.checkpoints(block.card.recipe["digest"]), ignore_errors=True)
    return versions


def _train_phase(
    job: TrainingJob, base: LoadedBase, number: int, anchors: list[Row], before: Version | None, tell: Tell
) -> CapabilityBlock:
    recipe, course, domains = job.recipe, job.course, job.course.phases[number]
    objectives = {recipe.objective_for(domain) for domain in domains}
    if len(objectives) > 1:
        raise ConfigError(
            f"domains {', '.join(d.name for d in domains)} need different objectives, which one mixture cannot have; "
            f"use an objective on gold answers (distill=sft) for all, or leave domains without documents out"
        )
    objective = objectives.pop()
    rows = [row for domain in domains for row in training_rows(base, domain, objective, recipe.responses)]
    settings = replace(recipe.trainer, steps=phase_steps(recipe, domains))
    held = [
        replace(domain, train=domain.validation) for domain in domains if domain.validation and settings.validate_every
    ]
    unseen = [row for domain in held for row in training_rows(base, domain, objective, recipe.responses)]
    size, pad = settings.batch_size, base.tokenizer.pad_token_id
    validation = [TrainingBatch(*join(unseen[i : i + size], pad), None, None) for i in range(0, len(unseen), size)]
    adapter = recipe.adapter.widened(course.rank_factor)
    student = adapter.inject(base.model, recipe.seed)
    try:
        if before is not None:
            adapter.restore(student, job.store.get(before.digest).factors)
        module = ExpertModule(student, objective, recipe.locality, settings)
        stream = TransferStream(
            rows,
            anchors,
            batch_size=size,
            anchor_size=recipe.locality.batch_size if recipe.locality is not None else 0,
            pad=pad,
            seed=recipe.seed,
        )

        def on_step(step: int, values: dict[str, float]) -> None:
            tell(1, f"loss {values['train/loss']:.3f}")
            if step % 5 == 0 or step == settings.steps:
                domain = "+".join(d.name for d in domains) if len(domains) < 3 else "all"
                job.metrics.write(job.kind, values, domain=domain, step=step)

        identity = recipe.digest(course, number, job.general, base.fingerprint)
        done = fit(
            module,
            StreamModule(stream, validation),
            settings,
            seed=recipe.seed,
            folder=job.checkpoints(identity),
            on_step=on_step,
        )
        tell(settings.steps - done, "done")
        factors, peft_config = adapter.extract(student)
    finally:
        adapter.remove(student)
    card = BlockCard(
        name=course.name,
        domain=", ".join(domain.name for domain in domains),
        base=base.fingerprint,
        base_name=base.name,
        base_revision=base.revision,
        made_by=f"pmemx {job.kind}",
        semantic_type=_semantic_type(domains),
        origin=Origin.FINE_TUNED.value,
        sources=tuple(dict.fromkeys(document.id for domain in domains for document in domain.documents)),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        parents=() if before is None else (before.digest,),
        # What is trained further holds what it was: who may see it, and on what conditions, goes on.
        licence=before.card.licence if before is not None else "",
        sensitivity=before.card.sensitivity if before is not None else Sensitivity.INTERNAL.value,
        recipe={
            "digest": identity,
            "objective": type(module.objective).__name__,
            "seed": recipe.seed,
            "steps": done,
            "commit": commit(),
            "data": {domain.name: digest(domain.train) for domain in domains},
        },
        metrics={},
        peft_config=peft_config,
    )
    return CapabilityBlock(card, factors)


def _semantic_type(domains: tuple[Domain, ...]) -> str:
    """Knowledge where every row comes with the document that answers it, a skill where none does, else neither."""
    kinds = {SemanticType.DOMAIN_KNOWLEDGE if domain.has_documents else SemanticType.SKILL for domain in domains}
    return kinds.pop().value if len(kinds) == 1 else ""


def existing(store: Store, name: str, identity: str) -> Version | None:
    """The newest version of that name whose recipe has this digest."""
    try:
        history = store.history(name)
    except UnknownBlock:
        return None
    return next((v for v in reversed(history) if v.card.recipe.get("digest") == identity), None)


@lru_cache(maxsize=1)
def loaded(base_model: BaseModel) -> LoadedBase:
    """The base, loaded once a process."""
    return base_model.load()
