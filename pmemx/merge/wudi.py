"""WUDI: the update that differs least from every expert's on the inputs that the expert reads (arXiv:2503.08099)."""

from dataclasses import dataclass

import torch

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import Cut, Rank, check_rank, factored, stacked, thin, triplets
from pmemx.core.merge import Experts, Merge


@dataclass(frozen=True, kw_only=True)
class Wudi(Merge):
    """Of all M that minimise sum_e |(M - w_e dW_e) dW_e^T|^2 / |dW_e|^2, the least: the rows of an update stand for the
    inputs that it was made for, and norms are Frobenius'.

    In closed form M = (sum_e w_e dW_e G_e) (sum_e G_e)^+ with G_e = dW_e^T dW_e / |dW_e|^2, where gradient descent from the
    sum would end; the paper takes 300 small steps of Adam from there. Where the rows of the experts are independent, M
    answers those of each exactly as the expert does. A weight scales what an expert answers, not how much it matters; at
    weight 0 its inputs are still to be answered by nothing.

    ridge: adds ridge |M - sum_e w_e dW_e|^2 to the objective, as stopping early does in effect; the rows of an expert weigh
    1 together. Rows that are nearly dependent, as those of experts that started from one random A, are told apart
    by the little that differs, and without it M becomes several times as large as the sum. rank: of the result.
    """

    ridge: float = 0.0
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if not self.ridge >= 0:
            raise ConfigError(f"ridge = {self.ridge} rewards interference; give 0 or more")

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""
        return {
            site: thin(_solved(experts, site, self.ridge), experts.limit(self.rank, site)) for site in experts.sites
        }


def _solved(experts: Experts, site: str, ridge: float) -> LoraFactors:
    # With dW_e = U S V^T the objective is |M Z - Y|^2. Solved by a decomposition of the thin Z = P S Q^T, in whose span all
    # rows lie; the normal equations would square its condition.
    _, updates, weights = zip(*experts.at(site), strict=True)
    parts, dtype = [triplets(update) for update in updates], updates[0].A.dtype
    Z = torch.cat([part.Vh.T * (part.S / part.S.norm()) for part in parts], dim=1)
    Y = torch.cat(
        [part.U * (w * part.S.square() / part.S.norm()) for part, w in zip(parts, weights, strict=True)], dim=1
    )
    P, S, Qh = torch.linalg.svd(Z, full_matrices=False)
    kept = Z.shape[1] * torch.finfo(dtype).eps * S[:1] < S
    P, S, answers = P[:, kept], S[kept], Y @ Qh[kept].T
    total = stacked(updates, weights)
    plain = total.B.double() @ (total.A.double() @ P)
    return factored((S * answers + ridge * plain) / (S.square() + ridge), P.T, 1.0, dtype)
