"""Stage: the runs of several seeds as one table, with paired intervals, verdicts on claims, figures and a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pmemx.core.errors import DataError
from pmemx.core.evidence import Evidence, pooled
from pmemx.core.metric import Figure, Metric
from pmemx.core.record import EVIDENCE_FILE, RECORD_FILE, RunRecord
from pmemx.core.stage import Stage, Workspace
from pmemx.core.study import Spread, StudiedMethod, StudiedSeed, Study
from pmemx.core.verdict import Judge

OTHER = "Other"
PARTS = ("expert/", "sequential/", "bank/", "bank_oracle/")
"""Methods that are a part of a system, not one: a single expert, a stage of growth."""


@dataclass(frozen=True, kw_only=True)
class StudyStage(Stage):
    """Last in a plan: every seed that ends makes the study anew from all that are there, with the same result in any order.

    folder: holds the runs of the study, one folder each; null: the folder that holds the run's own. metrics: computed on
    the pooled evidence. write: makes the table, the figures and the page. groups: methods by group, in the order of the
    page; "merge/*" stands for all that begin so; the first group that names a method has it, and the rest is "Other".
    sources: where a method was published. limits: sentences for the page beside those that every study has. unknown: the
    domain of prompts that nobody can answer.
    """

    metrics: dict[str, Metric]
    claims: Judge
    write: Callable[[Study, Path], Path]
    groups: Mapping[str, Sequence[str]]
    sources: Mapping[str, str] = field(default_factory=dict)
    score: Literal["exact", "loss"] = "exact"
    folder: str | None = None
    limits: Sequence[str] = ()
    unknown: str = "unknown"

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Writes study.json and what `write` makes into the study's folder; headlines are counts.

        Raises DataError where runs of the folder do not belong together: two of one seed, other experts or another base.
        """
        folder = workspace.folder.parent if self.folder is None else Path(self.folder)
        runs = runs_in(folder)
        records = {seed: _record(run) for seed, run in runs.items()}
        _refuse_strangers(folder, records)
        with workspace.progress("Study", total=len(runs) + len(self.metrics) + 2) as advance:
            parts: dict[str, Evidence] = {}
            for seed, run in runs.items():
                parts[seed] = Evidence.read(run / EVIDENCE_FILE)
                advance(1, f"read {seed}")
            evidence = pooled(parts)
            figures: dict[str, Figure] = {}
            for name, metric in self.metrics.items():
                figures |= metric(evidence)
                advance(1, name)
            figures |= self.claims(evidence)
            verdicts = self.claims.verdicts(evidence)
            advance(1, "claims")
            own = [facts.name for facts in evidence.domains if facts.expert in evidence.experts]
            asked = [row for name in own for row in evidence.rows("base", name)]
            study = Study(
                title=next(iter(records.values())).experiment or folder.name,
                score=self.score,
                seeds=tuple(
                    StudiedSeed(seed, runs[seed].name, record.created, record.commit, record.config_digest)
                    for seed, record in records.items()
                ),
                base=next((record.base for record in records.values() if record.base), None),
                experts=evidence.experts,
                other_domains=tuple(facts.name for facts in evidence.domains if facts.expert is None),
                questions=len(asked),
                clusters=len({evidence.cluster(row) for row in asked}),
                methods=self._methods(evidence, figures, records),
                verdicts=verdicts,
                figures=figures,
                dropped=tuple(sorted({m for part in parts.values() for m in part.methods} - set(evidence.methods))),
                limits=(*_unlike(records), *self.limits),
                versions=next(iter(records.values())).versions,
                passage_lengths=evidence.passage_lengths,
                notice=" ".join(dict.fromkeys(filter(None, (record.notice for record in records.values())))),
            )
            study.write(folder)
            self.write(study, folder)
            advance(1, "page")
        counts = {
            outcome: sum(v.outcome == outcome for v in verdicts)
            for outcome in dict.fromkeys(v.outcome for v in verdicts)
        }
        return {"seeds": float(len(runs)), "methods": float(len(study.methods))} | {
            f"claims/{outcome.replace(' ', '_')}": float(count) for outcome, count in counts.items()
        }

    def _methods(
        self, evidence: Evidence, figures: Mapping[str, Figure], records: Mapping[str, RunRecord]
    ) -> tuple[StudiedMethod, ...]:
        names = [method for method in evidence.methods if not method.startswith(PARTS)]
        if f"recovery/{self.score}/experts_mean/all_domains" in figures:
            names.append("experts_mean")
        order = [*self.groups, OTHER]
        made = [self._method(name, figures, records) for name in names]
        return tuple(sorted(made, key=lambda method: order.index(method.group)))

    def _method(self, name: str, figures: Mapping[str, Figure], records: Mapping[str, RunRecord]) -> StudiedMethod:
        recovery = f"recovery/{self.score}/{name}/all_domains"
        measure = "exact_match" if self.score == "exact" else "token_loss"
        alone = {seed: record.figures.get(recovery) for seed, record in records.items()}

        def cost(what: str) -> Spread | None:
            found = [record.figures.get(f"cost/{what}/{name}") for record in records.values()]
            return Spread.of([figure.value for figure in found if figure is not None])

        return StudiedMethod(
            name=name,
            group=group_of(name, self.groups),
            source=self.sources.get(name, ""),
            recovery=figures.get(recovery),
            score=figures.get(f"{measure}/{name}/all_domains/test"),
            routing=figures.get(f"routing/{name}/accuracy/all_domains/test"),
            unknown=figures.get(f"routing/{name}/accuracy/{self.unknown}/test"),
            left_out=figures.get(f"uncovered/{name}/left_out/all_domains"),
            general=figures.get(f"forgetting_general/loss/{name}"),
            multiply_adds=cost("multiply_adds"),
            parameters=cost("parameters"),
            seconds=cost("seconds"),
            by_seed={seed: figure.value for seed, figure in alone.items() if figure is not None},
        )


def runs_in(folder: Path) -> dict[str, Path]:
    """Folders of finished evaluations by the name of their seed, "seed 0", in the order of seeds.

    Raises DataError for two of one seed, and where there is none.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*/{EVIDENCE_FILE}")):
        run = path.parent
        seed = _record(run).seeds.get("seed", 0)
        if seed in found:
            raise DataError(
                f"{found[seed].name} and {run.name} in {folder} are both of seed {seed}; move one away, "
                "or give the study a folder of its own by stage.study.folder"
            )
        found[seed] = run
    if not found:
        raise DataError(f"no folder in {folder} has {EVIDENCE_FILE}; run the stage evaluate first")
    return {f"seed {seed}": found[seed] for seed in sorted(found)}


def group_of(method: str, groups: Mapping[str, Sequence[str]]) -> str:
    """The first group that names the method or a pattern of it ("merge/*")."""
    return next((g for g, names in groups.items() if any(fnmatchcase(method, name) for name in names)), OTHER)


def _record(run: Path) -> RunRecord:
    """A run that died after its evaluation still has evidence; a study needs its record, too."""
    if not (run / RECORD_FILE).exists():
        raise DataError(f"{run} has {EVIDENCE_FILE} and no {RECORD_FILE}; run it again, or move it away")
    return RunRecord.read(run)


def _unlike(records: Mapping[str, RunRecord]) -> list[str]:
    """A sentence for the page where seeds were not run with the same settings; records that do not say are taken at trust."""
    known = {seed: record.experiment_digest for seed, record in records.items() if record.experiment_digest}
    unlike = [seed for seed, found in known.items() if found != next(iter(known.values()))]
    if not unlike:
        return []
    return [
        f"{' and '.join(unlike)} ran with other settings than {next(iter(known))}, beyond the seed: compare the file "
        ".hydra/config.yaml of their folders."
    ]


def _refuse_strangers(folder: Path, records: Mapping[str, RunRecord]) -> None:
    for what, values in {
        "experiment": {record.experiment for record in records.values()},
        "base model": {record.base.fingerprint for record in records.values() if record.base},
    }.items():
        if len(values) > 1:
            raise DataError(
                f"the runs in {folder} differ in their {what} ({', '.join(sorted(values))}); a study takes runs that "
                "differ by their seed alone: move the others away, or set stage.study.folder"
            )
