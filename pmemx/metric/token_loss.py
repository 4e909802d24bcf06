"""Token loss: mean negative log-likelihood of the responses, in nats per token."""

from dataclasses import dataclass

from pmemx.core.evidence import Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.metric.sample import ALL, expert_domains, figure, mean_of, range_of, rate_of, score_stratum, unstaged


@dataclass(frozen=True, kw_only=True)
class TokenLoss(Metric):
    """`token_loss/<method>/<domain>/<split>`: summed nats over summed tokens; at least 0, less is better.

    Domain `all_domains` averages the domains that have an expert, each counting once, for methods measured on all of
    them. ceiling is the teacher's loss on the same questions; a loss has no chance level.
    Stages of growth are left to `sequential`.
    """

    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        names = [facts.name for facts in evidence.domains]
        own = [facts.name for facts in expert_domains(evidence)]
        figures: dict[str, Figure] = {}
        for method in unstaged(evidence):
            for split in ("train", "test"):
                for label, domains in [(name, [name]) for name in names] + [(ALL, own)]:
                    parts = [evidence.rows(method, domain, split) for domain in domains]
                    if not parts or not all(parts):
                        continue
                    figures[f"token_loss/{method}/{label}/{split}"] = figure(
                        [score_stratum(evidence, [(row,) for row in rows], "loss") for rows in parts],
                        sum(len(rows) for rows in parts),
                        bounds=range_of("loss"),
                        ceiling=mean_of(
                            [rate_of(evidence.rows("teacher", domain, split), "loss") for domain in domains]
                        ),
                        seed=self.seed,
                    )
        return figures
