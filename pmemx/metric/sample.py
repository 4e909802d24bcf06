"""Rows of evidence as clustered samples: aligned by question, one stratum a domain."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from pmemx.core.domain import joined_parts, joins_expert
from pmemx.core.evidence import Answer, DomainFacts, Evidence, Split
from pmemx.core.metric import Figure
from pmemx.core.statistics import (
    Interval,
    Statistic,
    Stratum,
    Sums,
    cluster_sums,
    count_clusters,
    estimate,
    interval,
    ratio,
)

Score = Literal["exact", "loss"]
ALL = "all_domains"
EXPERT = "expert/"
STAGED = ("sequential/", "bank/", "bank_oracle/")


def expert_domains(evidence: Evidence) -> list[DomainFacts]:
    """Domains that an expert belongs to, by name: the order in the evidence must not matter."""
    known = [facts for facts in evidence.domains if facts.expert in evidence.experts]
    return sorted(known, key=lambda facts: facts.name)


def parts_of(domain: DomainFacts, evidence: Evidence) -> tuple[str, ...]:
    """The experts that the prompts of a domain take: its own, or those whose names its own joins by "+"; empty for others."""
    if domain.expert is None:
        return joined_parts(domain.name, evidence.experts)
    return (domain.expert,) if domain.expert in evidence.experts else ()


def takes_experts(domain: DomainFacts, evidence: Evidence) -> bool:
    """Whether a domain without an expert of its own takes one all the same, since its name joins it with another part."""
    return domain.expert is None and joins_expert(domain.name, evidence.experts)


def joined_domains(evidence: Evidence) -> list[DomainFacts]:
    """Domains whose prompts take several experts at once, by name."""
    return sorted((d for d in evidence.domains if len(parts_of(d, evidence)) > 1), key=lambda facts: facts.name)


def systems(evidence: Evidence) -> list[str]:
    """Methods that stand for a whole system rather than one expert or one stage of growth."""
    return [method for method in evidence.methods if not method.startswith((EXPERT, *STAGED))]


def unstaged(evidence: Evidence) -> list[str]:
    """All methods but the stages of growth, which `sequential` reports."""
    return [method for method in evidence.methods if not method.startswith(STAGED)]


def last_stages(evidence: Evidence) -> list[str]:
    """The method with the highest number of each run of growth: "sequential/12"."""
    last: dict[str, int] = {}
    for method in evidence.methods:
        run, _, number = method.rpartition("/")
        if method.startswith(STAGED) and number.isdecimal():
            last[run] = max(int(number), last.get(run, 0))
    return [f"{run}/{number}" for run, number in last.items()]


def aligned(evidence: Evidence, methods: Sequence[str], domain: str, split: Split = "test") -> list[tuple[Answer, ...]]:
    """One tuple a question that every method answered, in the order of methods; empty where one was not measured."""
    by_id = [{row.id: row for row in evidence.rows(method, domain, split)} for method in methods]
    shared = set(by_id[0]).intersection(*by_id[1:])
    return [tuple(rows[id] for rows in by_id) for id in sorted(shared)]


def amount(answer: Answer, score: Score) -> float:
    """What a score sums: 1 for an exact answer, or nats."""
    return float(answer.exact) if score == "exact" else answer.nats


def units(answer: Answer, score: Score) -> float:
    """What a score divides by: questions, or tokens."""
    return 1.0 if score == "exact" else float(answer.tokens)


def range_of(score: Score) -> Interval:
    """The values that the score of one question can take."""
    return (0.0, 1.0) if score == "exact" else (0.0, math.inf)


def gap_of(score: Score) -> Interval:
    """The values that a difference of two scores of one question can take."""
    return (-1.0, 1.0) if score == "exact" else (-math.inf, math.inf)


def score_stratum(evidence: Evidence, rows: Sequence[tuple[Answer, ...]], score: Score) -> Stratum:
    """Cluster sums of every method's score, then of the units."""
    columns = [[amount(answer, score) for answer in method] for method in zip(*rows, strict=True)]
    return cluster_sums([evidence.cluster(row[0]) for row in rows], *columns, [units(row[0], score) for row in rows])


def rates(stratum: Float[np.ndarray, "_column resample"]) -> Float[np.ndarray, "_method resample"]:
    """Score per unit of every method, from a stratum's sums whose last column holds the units."""
    return stratum[:-1] / stratum[-1]


def figure(
    strata: Sequence[Stratum],
    n: int,
    statistic: Statistic = ratio,
    *,
    bounds: Interval | None = None,
    floor: float | None = None,
    ceiling: float | None = None,
    seed: int = 0,
) -> Figure:
    """A statistic of cluster sums as a figure."""
    low, high = interval(strata, statistic, bounds=bounds, seed=seed) or (None, None)
    return Figure(estimate(strata, statistic), low, high, n, count_clusters(strata), floor, ceiling)


def over_parts(domains: Sequence[DomainFacts], statistic: Statistic) -> Statistic:
    """A statistic of one training, of the strata of these domains: taken for every pooled part, and averaged over them."""
    parts = [facts.part for facts in domains]

    def averaged(sums: Sums) -> np.ndarray:
        by_part: dict[str, Sums] = {}
        for part, stratum in zip(parts, sums, strict=True):
            by_part.setdefault(part, []).append(stratum)
        return np.mean([statistic(of) for of in by_part.values()], axis=0)

    return averaged


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy over the first axis in nats; 0 log 0 is 0."""
    return -(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(axis=0)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean where every value is known, else None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def rate_of(rows: Sequence[Answer], score: Score) -> float | None:
    """Score per unit of some rows, None where there are none."""
    if not rows:
        return None
    return math.fsum(amount(row, score) for row in rows) / math.fsum(units(row, score) for row in rows)
