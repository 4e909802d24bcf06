"""Pairs: whether a gate sends a prompt that takes two experts to both of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pmemx.core.evidence import Decision, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import cluster_sums
from pmemx.metric.sample import figure, parts_of

OTHERS, NONE = "others", "no_expert"


@dataclass(frozen=True, kw_only=True)
class Pairs(Metric):
    """From the decisions of each gate on held-out prompts. Names start with `pairs/<gate>/`.

    The parts of a domain are its own expert, or those whose names its own joins by "+": law and engineering of
    "law+engineering"; a domain with a part that is no expert is left out. `weight/<domain>/<part>`, `.../others` and
    `.../no_expert`: mean weights over the prompts, those of the other experts summed. `heaviest/<domain>`: share of prompts
    on which every part weighs more than 0 and than every other expert, no expert aside; a tie with another does not count.
    A gate that takes one expert a prompt therefore has 0 on pairs; one whose weights hardly differ may have 1, so read it
    beside the weights. Weights of a gate whose numbers are no shares may be
    negative and need not sum to 1.
    """

    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        seen: dict[tuple[str, str], list[Decision]] = {}
        for decision in evidence.decisions:
            if decision.split == "test":
                seen.setdefault((decision.gate, decision.domain), []).append(decision)
        figures: dict[str, Figure] = {}
        parts_by_domain = {facts.name: parts_of(facts, evidence) for facts in evidence.domains}
        for (gate, domain), decisions in seen.items():
            if parts := parts_by_domain[domain]:
                figures |= self._figures(f"pairs/{gate}", domain, parts, evidence, decisions)
        return figures

    def _figures(
        self, prefix: str, domain: str, parts: Sequence[str], evidence: Evidence, decisions: list[Decision]
    ) -> dict[str, Figure]:
        experts = evidence.experts
        own = [1 + experts.index(part) for part in parts]
        others = [choice for choice in range(1, 1 + len(experts)) if choice not in own]
        columns = {
            f"weight/{domain}/{part}": [d.weights[choice] for d in decisions]
            for part, choice in zip(parts, own, strict=True)
        }
        columns[f"weight/{domain}/{OTHERS}"] = [sum(d.weights[choice] for choice in others) for d in decisions]
        columns[f"weight/{domain}/{NONE}"] = [d.weights[0] for d in decisions]
        columns[f"heaviest/{domain}"] = [float(_heaviest(d, own, others)) for d in decisions]
        return {f"{prefix}/{name}": self._mean(evidence, decisions, values) for name, values in columns.items()}

    def _mean(self, evidence: Evidence, decisions: list[Decision], values: list[float]) -> Figure:
        stratum = cluster_sums([evidence.cluster(d) for d in decisions], values, [1.0] * len(decisions))
        return figure([stratum], len(decisions), bounds=(0.0, 1.0), seed=self.seed)


def _heaviest(decision: Decision, own: list[int], others: list[int]) -> bool:
    least = min(decision.weights[choice] for choice in own)
    return least > max([0.0, *(decision.weights[choice] for choice in others)])
