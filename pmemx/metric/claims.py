"""Claims: orderings of methods that papers report, each tested by paired differences on the questions of this evidence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pmemx.core.errors import ConfigError
from pmemx.core.evidence import Decision, DomainFacts, Evidence
from pmemx.core.metric import Figure
from pmemx.core.statistics import Stratum, Sums, cluster_sums
from pmemx.core.verdict import Judge, Outcome, Verdict
from pmemx.metric.sample import (
    EXPERT,
    Score,
    aligned,
    entropy,
    expert_domains,
    figure,
    gap_of,
    joined_domains,
    over_parts,
    parts_of,
    rates,
    score_stratum,
)

BEST_PART = "part/best"
On = Literal["experts", "pairs", "general"]
Measure = Literal["score", "nats", "use"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """All comparisons together are the claim.

    comparisons: (higher method, lower method[, margin]): higher - lower is above the margin, in units of the measure, 0
    where none is given; a margin below 0 says "not worse by more than that", which is how "as good as" is tested. needs:
    what the claim speaks of besides and answers cannot show; such a claim can be refuted by its comparisons, and not be
    confirmed.
    domains: what it speaks of: domains with an expert, those that take a pair of experts, where "part/best" is whichever
    of the two alone is better there, or general text. measure: the study's score; nats per token, saved; or use, the
    entropy in nats of the experts' shares of all weight that a gate gives to experts, over its sites together, which is
    how evenly it uses them.
    """

    statement: str
    source: str
    comparisons: Sequence[Sequence[str | float]] = ()
    needs: str = ""
    domains: On = "experts"
    measure: Measure = "score"

    def __post_init__(self) -> None:
        for name, value, known in (("domains", self.domains, On), ("measure", self.measure, Measure)):
            if value not in get_args(known):
                raise ConfigError(f"{name} = {value!r} of the claim {self.statement!r} is none of {get_args(known)}")
        if self.measure == "use" and self.domains != "experts":
            raise ConfigError(
                f"the claim {self.statement!r} compares use on {self.domains}, where gates ought not to be even; "
                "leave domains at experts"
            )
        if not self.comparisons and not self.needs:
            raise ConfigError(f"the claim {self.statement!r} has neither comparisons nor needs; give one of them")
        for comparison in self.comparisons:
            names = [part for part in comparison[:2] if isinstance(part, str)]
            if self.domains != "pairs" and BEST_PART in names:
                raise ConfigError(
                    f"{list(comparison)} names a part of a pair, but the claim {self.statement!r} is on {self.domains}; set domains: pairs"
                )
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
    """`claim/<key>/<higher>/<lower>`: how much better the higher method is, averaged over the domains that the claim is on.

    Paired by question; in units of its measure, for a loss the nats per token that the higher method saves. Where the 95 %
    interval of every comparison lies above its margin, the claim is reproduced. One that does not is enough against it: the
    interval lies below, or covers the margin, which shows no difference either way. Intervals are not corrected for the
    number of claims.
    """

    claims: Mapping[str, Claim]
    score: Score = "exact"
    general: str = "general"
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for key, claim in self.claims.items():
            for higher, lower, _ in claim.differences:
                found = self._difference(evidence, claim, higher, lower)
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
                missing |= dict.fromkeys(self._lacks(evidence, claim, higher, lower))
            elif found.low is None or found.high is None:
                missing[f"{higher} − {lower} has no interval"] = None
            else:
                unit = "" if claim.measure == "score" else " nats"
                words = f"{higher} − {lower} {_number(found.value)} [{_number(found.low)}, {_number(found.high)}]{unit}"
                limit = _number(margin) if margin else "0"
                if found.low > margin:
                    shown.append(words)
                else:
                    refuted.append(f"{words} {'is below' if found.high < margin else 'covers'} {limit}")
        lacking = [*missing, *([f"needs {claim.needs}"] if claim.needs else [])]
        outcome: Outcome = "not reproduced" if refuted else "not testable" if lacking else "reproduced"
        why = "; ".join(refuted or lacking or shown)
        return Verdict(key, claim.statement, claim.source, outcome, why)

    def _difference(self, evidence: Evidence, claim: Claim, higher: str, lower: str) -> Figure | None:
        domains = self._domains(evidence, claim)
        if claim.measure == "use":
            seen = _decisions(evidence, (higher, lower), domains)
            if not seen or not all(seen):
                return None
            top = math.log(len(evidence.experts))
            n, evener = sum(map(len, seen)), over_parts(domains, _evener)
            return figure([_use(evidence, rows) for rows in seen], n, evener, bounds=(-top, top), seed=self.seed)
        sides = [(_named(higher, facts, evidence), _named(lower, facts, evidence)) for facts in domains]
        said = [aligned(evidence, [*a, *b], facts.name) for facts, (a, b) in zip(domains, sides, strict=True)]
        if not said or not all(said):
            return None
        score: Score = "loss" if claim.measure == "nats" else self.score
        sign = 1.0 if score == "exact" else -1.0

        def gain(sums: Sums) -> np.ndarray:
            scores = [np.split(sign * rates(stratum), [len(a)]) for stratum, (a, _) in zip(sums, sides, strict=True)]
            return np.mean([better.max(axis=0) - worse.max(axis=0) for better, worse in scores], axis=0)

        strata = [score_stratum(evidence, rows, score) for rows in said]
        return figure(strata, sum(map(len, said)), gain, bounds=gap_of(score), seed=self.seed)

    def _domains(self, evidence: Evidence, claim: Claim) -> list[DomainFacts]:
        if claim.domains == "general":
            return [facts for facts in evidence.domains if facts.name == self.general]
        return joined_domains(evidence) if claim.domains == "pairs" else expert_domains(evidence)

    def _lacks(self, evidence: Evidence, claim: Claim, higher: str, lower: str) -> list[str]:
        """Why there is no figure for a comparison."""
        domains = self._domains(evidence, claim)
        if not domains:
            return [
                {
                    "experts": "no domain has an expert of the bank",
                    "pairs": "no domain takes two experts",
                    "general": f"there is no domain {self.general}",
                }[claim.domains]
            ]
        deciding = {decision.gate for decision in evidence.decisions}
        absent = [
            method
            for method in (higher, lower)
            if not (
                method in deciding
                if claim.measure == "use"
                else all(evidence.rows(one, f.name) for f in domains for one in _named(method, f, evidence))
            )
        ]
        return [f"{method} was not measured" for method in absent] or [f"{higher} and {lower} share no question"]


def _named(method: str, facts: DomainFacts, evidence: Evidence) -> list[str]:
    """The methods of which the best one on a domain is meant."""
    return [f"{EXPERT}{part}" for part in parts_of(facts, evidence)] if method == BEST_PART else [method]


def _decisions(
    evidence: Evidence, gates: Sequence[str], domains: Sequence[DomainFacts]
) -> list[list[tuple[Decision, ...]]]:
    """By domain: the decisions of the gates on every held-out prompt that all of them saw."""
    seen: dict[tuple[str, str], dict[str, Decision]] = {}
    for decision in evidence.decisions:
        if decision.split == "test" and decision.gate in gates:
            seen.setdefault((decision.gate, decision.domain), {})[decision.id] = decision
    found = [[seen.get((gate, facts.name), {}) for gate in gates] for facts in domains]
    return [[tuple(by_id[id] for by_id in of) for id in sorted(set(of[0]).intersection(*of[1:]))] for of in found]


def _use(evidence: Evidence, rows: Sequence[tuple[Decision, ...]]) -> Stratum:
    """Cluster sums of the first gate's weights of experts, of the second's, and of prompts."""
    weights = [
        column for gate in zip(*rows, strict=True) for column in zip(*(d.weights[1:] for d in gate), strict=True)
    ]
    return cluster_sums([evidence.cluster(row[0]) for row in rows], *weights, [1.0] * len(rows))


def _evener(sums: Sums) -> np.ndarray:
    """How much more entropy the first gate's use of experts has, each domain counting once."""
    mean = np.mean([rates(stratum) for stratum in sums], axis=0)
    higher, lower = (weights / np.maximum(weights.sum(axis=0), np.finfo(float).tiny) for weights in np.split(mean, 2))
    return entropy(higher) - entropy(lower)


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
