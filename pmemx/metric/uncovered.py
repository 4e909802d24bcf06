"""Uncovered prompts: how often a gate abstains where no expert that it may choose covers what it reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from pmemx.core.evidence import Evidence, UncoveredPrompt
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import cluster_sums
from pmemx.metric.sample import ALL, expert_domains, figure


@dataclass(frozen=True, kw_only=True)
class Uncovered(Metric):
    """Share of prompts that a gate sent to no expert, which is right for all of them. Names start with `uncovered/<gate>/`.

    `left_out/<domain>`: held-out prompts of a domain while its own expert is barred; `all_domains` averages the domains.
    `<general text>/<tokens>`: passages of general text of so many tokens, which begin anywhere in a text.
    """

    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        seen: dict[tuple[str, str, int], list[UncoveredPrompt]] = {}
        for row in evidence.uncovered:
            seen.setdefault((row.gate, row.domain, row.tokens), []).append(row)
        figures: dict[str, Figure] = {}
        own = [facts.name for facts in expert_domains(evidence)]
        for gate in dict.fromkeys(row.gate for row in evidence.uncovered):
            parts = [part for name in own if (part := seen.get((gate, name, 0)))]
            for name, rows in [(part[0].domain, [part]) for part in parts] + [(ALL, parts)]:
                if rows:
                    figures[f"uncovered/{gate}/left_out/{name}"] = self._share(evidence, rows)
            for (of, domain, tokens), rows in seen.items():
                if of == gate and tokens:
                    figures[f"uncovered/{gate}/{domain}/{tokens}"] = self._share(evidence, [rows])
        return figures

    def _share(self, evidence: Evidence, parts: Sequence[Sequence[UncoveredPrompt]]) -> Figure:
        strata = [
            cluster_sums(
                [evidence.cluster(row) for row in part], [float(row.abstained) for row in part], [1.0] * len(part)
            )
            for part in parts
        ]
        return figure(strata, sum(map(len, parts)), bounds=(0.0, 1.0), seed=self.seed)
