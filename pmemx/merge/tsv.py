"""TSV-M: singular vectors of all experts, made orthonormal together so that none disturbs another (arXiv:2412.00081)."""

from dataclasses import dataclass, replace

import torch

from pmemx.core.low_rank import Cut, Rank, check_rank, factored, orthonormal, thin, triplets
from pmemx.core.merge import Experts, Merge


@dataclass(frozen=True, kw_only=True)
class TaskSingularVectors(Merge):
    """scaling * U' diag(S) V'^T: U' and V' are the orthonormal matrices nearest to [U_1 ... U_E] and [V_1 ... V_E], and S
    the singular values of all w_e dW_e = U_e S_e V_e^T.

    The paper keeps the first min(width) / E triplets of an expert of full rank; here all that an expert has are kept, at
    most its rank. Where they are more together than the site is wide, no orthonormal columns exist: the rows are
    orthonormal then, and some interference stays. rank: of the result.
    """

    scaling: float = 1.0
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""
        cuts = {}
        for site in experts.sites:
            _, updates, weights = zip(*experts.at(site), strict=True)
            parts = [
                triplets(replace(one, scale=weight * one.scale)) for one, weight in zip(updates, weights, strict=True)
            ]
            U, V = torch.cat([part.U for part in parts], dim=1), torch.cat([part.Vh for part in parts]).T
            root, dtype = torch.cat([part.S for part in parts]).sqrt(), updates[0].A.dtype
            if len(root):
                U, V = orthonormal(U, dtype), orthonormal(V, dtype)
            update = factored(U * root, root[:, None] * V.T, self.scaling, dtype)
            cuts[site] = thin(update, experts.limit(self.rank, site))
        return cuts
