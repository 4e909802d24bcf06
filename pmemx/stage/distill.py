"""Stage: distil every domain into an expert, and train the baselines that experts are compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pmemx.core.adapter import Adapter
from pmemx.core.base_model import BaseModel
from pmemx.core.distill import Distill, Locality
from pmemx.core.domain import DomainSource
from pmemx.core.record import BaseEntry
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.lit.settings import TrainerSettings
from pmemx.stage.bank import note_blocks
from pmemx.stage.corpus import Rows
from pmemx.stage.curriculum import Curriculum
from pmemx.stage.pool import run_jobs
from pmemx.stage.training import Recipe, TrainingJob, loaded, train


@dataclass(frozen=True, kw_only=True)
class DistillStage(Stage):
    """One adapter a course, in `workers` processes (0: in this one); what is distilled already is found by digest.

    curricula: "experts" makes the bank; others ("sequential", "joint") make baselines; null leaves one out. responses: whether a teacher's
    rows are its own answers ("teacher", no gold answer is shown) or the gold ones. checkpoints: a folder that outlives
    the run, so that the same command with trainer.resume=true goes on where a killed one stopped.
    """

    puts_blocks: ClassVar[bool] = True

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    adapter: Adapter
    objective: Distill
    gold_objective: Distill
    locality: Locality | None
    trainer: TrainerSettings
    store: Store
    curricula: dict[str, Curriculum | None]
    responses: Literal["teacher", "gold"] = "teacher"
    workers: int = 0
    checkpoints: str = "outputs/checkpoints"

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Versions of every block go to the ledger; blocks.json of the run says which block belongs to which domain.

        What an earlier stage of the run noted under other curricula stays: baselines may be trained by another recipe.
        """
        base = loaded(self.base_model)
        corpus = self.rows.load(self.data, base, workspace.ledger.notes)
        recipe = Recipe(
            base_model=self.base_model,
            adapter=self.adapter,
            objective=self.objective,
            gold_objective=self.gold_objective,
            locality=self.locality,
            responses=self.responses,
            trainer=self.trainer,
            seed=workspace.seed,
        )
        if new := [d.name for d in corpus.domains if recipe.reads(d) and d.tests_new_documents]:
            workspace.ledger.notes.append(
                f"{', '.join(new)}: distilled from documents, and tested on other documents alone, so scores say whether a "
                "skill carries over, not whether the documents that were read are known; to measure knowledge, set "
                "data.split_by=prompt, or test questions about documents that training reads"
            )
        wanted = {kind: curriculum for kind, curriculum in self.curricula.items() if curriculum is not None}
        jobs = [
            TrainingJob(
                course=course,
                recipe=recipe,
                general=corpus.general,
                store=self.store,
                folder=Path(self.checkpoints),
                metrics=workspace.metrics,
                kind=kind,
            )
            for kind, curriculum in wanted.items()
            for course in curriculum.courses(corpus.domains)
        ]
        # The longest first: short jobs then fill the gaps between workers.
        jobs.sort(key=lambda job: -job.total)
        results = run_jobs(train, jobs, workers=self.workers, progress=workspace.progress)
        made: dict[str, dict[str, list[str]]] = {kind: {} for kind in wanted}
        for job, versions in zip(jobs, results, strict=True):
            made[job.kind][job.course.name] = [version.digest for version in versions]
            for version in versions:
                workspace.ledger.add(version)
        workspace.ledger.base = BaseEntry(base.name, base.fingerprint)
        # In the order of the corpus, whatever finished first.
        if experts := made.get("experts"):
            made["experts"] = {domain.name: experts[domain.name] for domain in corpus.domains if domain.name in experts}
        note_blocks(workspace.folder, made)
        return {"blocks": float(sum(len(versions) for versions in results))}
