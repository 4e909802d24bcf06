"""Claims: orderings of methods that papers report, each tested by paired differences on the questions of this evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pmemx.core.errors import ConfigError
from pmemx.core.evidence import Evidence
from pmemx.core.metric import Figure
from pmemx.core.statistics import Sums
from pmemx.core.verdict import Judge, Outcome, Verdict
from pmemx.metric.sample import Score, aligned, expert_domains, figure, gap_of, rates, score_stratum


@dataclass(frozen=True, kw_only=True)
class Claim:
    """All comparisons together are the claim.

    comparisons: (higher method, lower method[, margin]): higher - lower is above the margin, in score units, 0 where none
    is given; a margin below 0 says "not worse by more than that", which is how "as good as" is tested. needs: what the
    claim speaks of besides and answers cannot show; such a claim can be refuted by its comparisons, and not be confirmed.
    """

    statement: str
    source: str
    comparisons: Sequence[Sequence[str | float]] = ()
    needs: str = ""

    def __post_init__(self) -> None:
        if not self.comparisons and not self.needs:
            raise ConfigError(f"the claim {self.statement!r} has neither comparisons nor needs; give one of them")
        for comparison in self.comparisons:
            names = [part for part in comparison[:2] if isinstance(part, str)]
            if len(names) != 2 or len(comparison) > 3 or any(isinstance(part, str) for part in comparison[2:]):
                raise ConfigError(
                    f"{list(comparison)} in the claim {self.statement!r} is no comparison; give [higher, lower] or [higher, lower, margin]"
                )

    @property
    def differences(self) -> list[tuple[str, str, float]]:
        """(higher, lower, margin) of every comparison."""
        return [(str(c[0]), str(c[1]), float(c[2]) if len(c) > 2 else 0.0) for c in self.comparisons]


@dataclass(frozen=True, kw_only=True)
class Claims(Judge):
    """`claim/<key>/<higher>/<lower>`: how much better the higher method is, averaged over the domains with an expert.

    Paired by question; in score units, for a loss the nats per token that the higher method saves. Where the 95 %
    interval of every comparison lies above its margin, the claim is reproduced. One that does not is enough against it: the
    interval lies below, or covers the margin, which shows no difference either way. Intervals are not corrected for the
    number of claims.
    """

    claims: Mapping[str, Claim]
    score: Score = "exact"
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for key, claim in self.claims.items():
            for higher, lower, _ in claim.differences:
                found = self._difference(evidence, higher, lower)
                if found is not None:
                    figures[f"claim/{key}/{higher}/{lower}"] = found
        return figures

    def verdicts(self, evidence: Evidence) -> tuple[Verdict, ...]:
        """A claim without any refuted comparison is not testable where a method, an interval or what it `needs` is missing."""
        figures = self(evidence)
        return tuple(self._verdict(key, claim, figures, evidence) for key, claim in self.claims.items())

    def _verdict(self, key: str, claim: Claim, figures: Mapping[str, Figure], evidence: Evidence) -> Verdict:
        refuted: list[str] = []
        shown: list[str] = []
        missing: dict[str, None] = {}
        for higher, lower, margin in claim.differences:
            found = figures.get(f"claim/{key}/{higher}/{lower}")
            if found is None:
                absent = [method for method in (higher, lower) if not self._measured(evidence, method)]
                lacks = [f"{method} was not measured" for method in absent] or [
                    f"{higher} and {lower} share no question"
                ]
                missing |= dict.fromkeys(lacks)
            elif found.low is None or found.high is None:
                missing[f"{higher} − {lower} has no interval"] = None
            else:
                words = f"{higher} − {lower} {_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"
                limit = _number(margin) if margin else "0"
                if found.low > margin:
                    shown.append(words)
                else:
                    refuted.append(f"{words} {'is below' if found.high < margin else 'covers'} {limit}")
        lacking = [*missing, *([f"needs {claim.needs}"] if claim.needs else [])]
        outcome: Outcome = "not reproduced" if refuted else "not testable" if lacking else "reproduced"
        why = "; ".join(refuted or lacking or shown)
        return Verdict(key, claim.statement, claim.source, outcome, why)

    def _difference(self, evidence: Evidence, higher: str, lower: str) -> Figure | None:
        parts = [aligned(evidence, [higher, lower], facts.name) for facts in expert_domains(evidence)]
        if not parts or not all(parts):
            return None
        strata = [score_stratum(rows, self.score) for rows in parts]
        sign = 1.0 if self.score == "exact" else -1.0

        def gain(sums: Sums) -> np.ndarray:
            return sign * np.mean([scores[0] - scores[1] for scores in map(rates, sums)], axis=0)

        return figure(strata, sum(map(len, parts)), gain, bounds=gap_of(self.score), seed=self.seed)

    @staticmethod
    def _measured(evidence: Evidence, method: str) -> bool:
        domains = expert_domains(evidence)
        return bool(domains) and all(evidence.rows(method, facts.name) for facts in domains)


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
