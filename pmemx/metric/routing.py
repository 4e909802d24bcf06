"""Routing: where a gate sends the prompts of each domain, and how evenly it uses its experts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import Decision, DomainFacts, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Sums, cluster_sums
from pmemx.metric.sample import ALL, entropy, expert_domains, figure, over_parts, takes_experts

NONE = "no_expert"


@dataclass(frozen=True, kw_only=True)
class Routing(Metric):
    """From the decisions of each gate; the choice of a prompt is its greatest weight. Names start with `routing/<gate>/`.

    `accuracy/<domain>/<split>`: share of prompts sent to the domain's expert, or to no expert where the domain has none
    (general text, unknown entities); floor 1/choices. A domain whose prompts take several experts has no one right choice,
    see Pairs. `confusion/<domain>/<choice>`: share of held-out prompts sent to each choice, "no_expert" included. Domain
    `all_domains` averages the domains with an expert. `utilisation/<choice>`: mean weight over the held-out prompts of
    those domains, each counting once. `entropy/mean_use` = H(mean weight) and `entropy/per_prompt` = mean H(weight), in
    nats; `mutual_information` is their difference, how much of the choice the prompt decides. floor 0 and ceiling
    log(choices) are the range of the three, not a teacher. Of pooled runs the three are taken one by one, and averaged.
    confusion: whether to measure where prompts of each domain go, which is most of the work.
    """

    confusion: bool = True
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        choices = (NONE, *evidence.experts)
        right = {
            facts.name: None if takes_experts(facts, evidence) else _choice_of(facts.expert, evidence.experts)
            for facts in evidence.domains
        }
        seen: dict[tuple[str, str, str], list[Decision]] = {}
        for decision in evidence.decisions:
            seen.setdefault((decision.gate, decision.domain, decision.split), []).append(decision)
        domains = expert_domains(evidence)
        own = [facts.name for facts in domains]
        figures: dict[str, Figure] = {}
        for gate in dict.fromkeys(decision.gate for decision in evidence.decisions):
            for split in ("train", "test"):
                for label, names in [(name, [name]) for name, choice in right.items() if choice is not None] + [
                    (ALL, own)
                ]:
                    parts = [seen.get((gate, name, split), []) for name in names]
                    if parts and all(parts):
                        hits = [[_chosen(d) == right[d.domain] for d in part] for part in parts]
                        figures[f"routing/{gate}/accuracy/{label}/{split}"] = self._share(
                            evidence, parts, hits, 1 / len(choices)
                        )
            for name in right if self.confusion else ():
                if part := seen.get((gate, name, "test")):
                    for index, choice in enumerate(choices):
                        hits = [[_chosen(decision) == index for decision in part]]
                        figures[f"routing/{gate}/confusion/{name}/{choice}"] = self._share(evidence, [part], hits, None)
            parts = [seen.get((gate, name, "test"), []) for name in own]
            if parts and all(parts):
                figures |= self._use(evidence, f"routing/{gate}", domains, parts, choices)
        return figures

    def _share(
        self, evidence: Evidence, parts: Sequence[list[Decision]], hits: Sequence[list[bool]], floor: float | None
    ) -> Figure:
        strata = [
            cluster_sums([evidence.cluster(d) for d in part], [float(hit) for hit in hit_list], [1.0] * len(part))
            for part, hit_list in zip(parts, hits, strict=True)
        ]
        return figure(strata, sum(map(len, parts)), bounds=(0.0, 1.0), floor=floor, seed=self.seed)

    def _use(
        self,
        evidence: Evidence,
        prefix: str,
        domains: Sequence[DomainFacts],
        parts: Sequence[list[Decision]],
        choices: Sequence[str],
    ) -> dict[str, Figure]:
        strata = []
        for part in parts:
            weights = list(zip(*(decision.weights for decision in part), strict=True))
            entropies = [entropy(np.array(decision.weights)[:, None]).item() for decision in part]
            strata.append(cluster_sums([evidence.cluster(d) for d in part], *weights, entropies, [1.0] * len(part)))

        def mean(sums: Sums) -> np.ndarray:
            return np.mean([stratum[:-1] / stratum[-1] for stratum in sums], axis=0)

        n, top = sum(map(len, parts)), math.log(len(choices))
        # A share needs its own column alone: with hundreds of choices the others are most of the work.
        shares = {
            f"utilisation/{choice}": [stratum.of(column, -1) for stratum in strata]
            for column, choice in enumerate(choices)
        }
        entropies_of = {
            "entropy/mean_use": lambda sums: entropy(mean(sums)[:-1]),
            "entropy/per_prompt": lambda sums: mean(sums)[-1],
            "mutual_information": lambda sums: np.maximum(0.0, entropy(mean(sums)[:-1]) - mean(sums)[-1]),
        }
        return {
            f"{prefix}/{name}": figure(own, n, bounds=(0.0, 1.0), seed=self.seed) for name, own in shares.items()
        } | {
            f"{prefix}/{name}": figure(
                strata, n, over_parts(domains, statistic), bounds=(0.0, top), floor=0.0, ceiling=top, seed=self.seed
            )
            for name, statistic in entropies_of.items()
        }


def _choice_of(expert: str | None, experts: Sequence[str]) -> int | None:
    """The right choice; None for an expert that is not in the bank, whose prompts have no right choice."""
    if expert is None:
        return 0
    return 1 + experts.index(expert) if expert in experts else None


def _chosen(decision: Decision) -> int:
    return int(np.argmax(decision.weights))
