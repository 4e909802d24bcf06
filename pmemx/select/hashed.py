"""Noise without a state: a function of a seed and of a decision's own shares, the same whenever it is computed again."""

import torch
from jaxtyping import Float
from torch import Tensor


def hashed_uniform(
    log_share: Float[Tensor, "batch token choice"], generator: torch.Generator
) -> Float[Tensor, "batch token choice"]:
    """Numbers in (0, 1), never 0 and never 1 in float32, by hashing.

    The generator draws the keys; what is hashed are the log-shares of a decision, rounded to cells of 1/64 nat.
    """
    keys = torch.randint(2**63 - 1, (2, log_share.shape[-1]), generator=generator).to(log_share.device)
    cell = (log_share.clamp_min(-1e3) * 64).round().long()
    bits = (cell * keys[0]).sum(dim=-1, keepdim=True) + keys[1]
    # The finaliser of MurmurHash3, in integers that wrap; & clears the sign that >> copies.
    for factor in (-0x00AE502812AA7333, -0x3B314601E57A13AD):
        bits = (bits ^ ((bits >> 33) & 0x7FFFFFFF)) * factor
    # 23 bits and a half.
    return (((bits >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23
