"""Forgetting on general text: what a method costs where no expert is wanted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import Answer, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Interval, Sums, cluster_sums
from pmemx.metric.sample import aligned, figure, rates


@dataclass(frozen=True, kw_only=True)
class ForgettingGeneral(Metric):
    """Method against the base on held-out text of one domain, paired by question; names start with `forgetting_general/`.

    `loss/<method>`: change of loss in nats per token, positive is worse (the sign of PEFT's own benchmark).
    `exact/<method>`, `tokens/<method>`: change of exact match, and of the share of tokens that are the arg-max, in points
    (hundredths), negative is worse. `kl/<method>`: KL(base || method) in nats per token, at least 0.
    """

    domain: str = "general"
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for method in evidence.methods:
            rows = aligned(evidence, [method, "base"], self.domain) if method != "base" else []
            if not rows:
                continue
            mine, base = zip(*rows, strict=True)
            tokens = [float(row.tokens) for row in mine]
            ones = [1.0] * len(rows)
            wide, points = (-math.inf, math.inf), (-100.0, 100.0)
            columns: dict[str, tuple[Sequence[float], Sequence[float], Sequence[float], Interval]] = {
                "loss": ([r.nats for r in mine], [r.nats for r in base], tokens, wide),
                "exact": ([100.0 * r.exact for r in mine], [100.0 * r.exact for r in base], ones, points),
                "tokens": ([100.0 * r.hits for r in mine], [100.0 * r.hits for r in base], tokens, points),
            }
            groups = [evidence.cluster(row) for row in mine]
            for name, (new, old, units, bounds) in columns.items():
                stratum = cluster_sums(groups, new, old, units)
                figures[f"forgetting_general/{name}/{method}"] = figure(
                    [stratum], len(rows), _change, bounds=bounds, seed=self.seed
                )
            if (divergence := _divergence(evidence, mine, self.seed)) is not None:
                figures[f"forgetting_general/kl/{method}"] = divergence
        return figures


def _change(sums: Sums) -> np.ndarray:
    new, old = rates(sums[0])
    return new - old


def _divergence(evidence: Evidence, rows: Sequence[Answer], seed: int) -> Figure | None:
    known = [(row, row.kl) for row in rows if row.kl is not None]
    if not known:
        return None
    stratum = cluster_sums(
        [evidence.cluster(row) for row, _ in known], [kl for _, kl in known], [float(row.tokens) for row, _ in known]
    )
    return figure([stratum], len(known), bounds=(0.0, math.inf), seed=seed)
