"""Singular values and right singular vectors of a low-rank update, without forming it."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.block import LoraFactors
from pmemx.core.low_rank import thin


def right_spectrum(
    factors: LoraFactors,
) -> tuple[Float[Tensor, " direction"], Float[Tensor, "direction width_in"]]:
    """Largest first, in float32 or better; as many as the numerical rank, and so none for an update of zero."""
    dtype = torch.promote_types(factors.A.dtype, torch.float32)
    # thin gives A = sqrt(S) V^T by QR and the SVD of a core of rank by rank; 1.0 keeps all there is.
    rows = thin(LoraFactors(factors.A.to(dtype), factors.B.to(dtype), factors.scale), 1.0).factors.A
    values = rows.square().sum(dim=1)
    real = values > 0
    return values[real], F.normalize(rows[real], dim=1)
