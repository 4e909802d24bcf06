"""KnOTS: updates in one shared orthonormal basis of their outputs, found without a dense matrix (arXiv:2410.19735)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.low_rank import Cut, numerical_rank, thin
from pmemx.core.merge import Experts
from pmemx.merge.space import Space, Stack, View


@dataclass(frozen=True)
class Knots(Space):
    """[dW_1 ... dW_E] = U S [V_1 ... V_E] over the inputs; methods merge the S V_e, and U leads back.

    dW_e = B_e A_e with B = Q [R_1 ... R_E] and A_e^T = P_e T_e, so that the SVD is that of the small [R_1 T_1^T ... R_E T_E^T].
    """

    def view(self, experts: Experts, site: str) -> View:
        """See Space.view; aligned updates have as many rows as the numerical rank, at most the ranks of all experts."""
        numbers, updates, weights = zip(*experts.at(site), strict=True)
        Q, R = torch.linalg.qr(torch.cat([update.scale * update.B.double() for update in updates], dim=1))
        right = [torch.linalg.qr(update.A.double().T) for update in updates]
        blocks = R.split([update.rank for update in updates], dim=1)
        core = [block @ T.T for block, (_, T) in zip(blocks, right, strict=True)]
        U, S, _ = torch.linalg.svd(torch.cat(core, dim=1), full_matrices=False)
        kept = numerical_rank(S, max(Q.shape[0], sum(update.A.shape[1] for update in updates)))
        # U^T dW_e is S V_e; written so, the rows of an expert of zero are zero and not rounding that would vote.
        rows = [U[:, :kept].T @ block for block in core]
        aligned = torch.stack([row @ P.T for row, (P, _) in zip(rows, right, strict=True)])
        basis, dtype = Q @ U[:, :kept], updates[0].A.dtype

        def back(merged: Sequence[Tensor], rank: int | float) -> Cut:
            (rows,) = merged
            return thin(LoraFactors(rows.to(dtype), basis.to(dtype), 1.0), rank)

        return View((Stack(numbers, aligned, torch.tensor(weights, dtype=aligned.dtype)),), back)
