"""Exact match: the share of questions whose greedy answer is right to the last token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pmemx.core.evidence import Answer, DomainFacts, Evidence, Split
from pmemx.core.metric import Figure, Metric
from pmemx.metric.sample import ALL, EXPERT, expert_domains, figure, mean_of, rate_of, score_stratum, systems, unstaged

Part = tuple[DomainFacts, Sequence[Answer], Sequence[Answer]]


@dataclass(frozen=True, kw_only=True)
class ExactMatch(Metric):
    """`exact_match/<method>/<domain>/<split>`, and `.../form/<form>` for each phrasing; range 0 to 1.

    split train is reliability (phrasings the expert was distilled on), test is generality (held out).
    Domain `all_domains` averages the domains that have an expert, each counting once, for methods measured on all of them;
    by form, those that have the form. floor is chance, ceiling the teacher on the same questions.
    Single experts get forms on their own domain only, stages of growth are left to `sequential`.
    """

    by_form: bool = True
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        own = expert_domains(evidence)
        whole = systems(evidence)
        for method in unstaged(evidence):
            for split in ("train", "test"):
                for facts in evidence.domains:
                    part = _part(evidence, method, facts, split)
                    name = f"exact_match/{method}/{facts.name}/{split}"
                    if part[1]:
                        figures[name] = self._figure(evidence, [part])
                    if method in whole or method == f"{EXPERT}{facts.expert}":
                        figures |= self._forms(evidence, name, [part])
                parts = [_part(evidence, method, facts, split) for facts in own]
                name = f"exact_match/{method}/{ALL}/{split}"
                if parts and all(rows for _, rows, _ in parts):
                    figures[name] = self._figure(evidence, parts)
                    if method in whole:
                        figures |= self._forms(evidence, name, parts)
        return figures

    def _forms(self, evidence: Evidence, name: str, parts: list[Part]) -> dict[str, Figure]:
        forms = sorted({row.form for _, rows, _ in parts for row in rows if row.form}) if self.by_form else []
        return {
            f"{name}/form/{form}": self._figure(evidence, [part for part in _of_form(parts, form) if part[1]])
            for form in forms
        }

    def _figure(self, evidence: Evidence, parts: list[Part]) -> Figure:
        return figure(
            [score_stratum(evidence, [(row,) for row in rows], "exact") for _, rows, _ in parts],
            sum(len(rows) for _, rows, _ in parts),
            bounds=(0.0, 1.0),
            floor=mean_of([facts.chance for facts, _, _ in parts]),
            ceiling=mean_of([rate_of(teacher, "exact") for _, _, teacher in parts]),
            seed=self.seed,
        )


def _part(evidence: Evidence, method: str, facts: DomainFacts, split: Split) -> Part:
    return facts, evidence.rows(method, facts.name, split), evidence.rows("teacher", facts.name, split)


def _of_form(parts: list[Part], form: str) -> Iterator[Part]:
    for facts, rows, teacher in parts:
        yield facts, [row for row in rows if row.form == form], [row for row in teacher if row.form == form]
