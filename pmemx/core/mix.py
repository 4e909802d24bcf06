"""The routed product: the weighted updates of the chosen experts, without a [token, expert, width] tensor."""

from jaxtyping import Float
from torch import Tensor

from pmemx.core.bank import SiteFactors
from pmemx.core.routing import Routing


def mix(
    x: Float[Tensor, "batch token width_in"], site: SiteFactors, routing: Routing
) -> Float[Tensor, "batch token width_out"]:
    """sum_e w_e * scale_e * B_e A_e x for every token."""
    x = x.to(site.A.dtype)
    return _mix_sequences(x, site, routing) if routing.index.shape[1] == 1 else _mix_tokens(x, site, routing)


def _mix_sequences(x: Tensor, site: SiteFactors, routing: Routing) -> Tensor:
    # One decision per sequence: gather k experts per row. The work does not depend on the size of the bank, and neither
    # do the bits of the result.
    batch, chosen = routing.index.shape[0], routing.index.shape[2]
    index = routing.index[:, 0]
    A = site.A[index].reshape(batch, -1, x.shape[2])
    B = site.B[index].transpose(2, 3).reshape(batch, -1, site.B.shape[1])
    weight = routing.weight[:, 0].to(x.dtype).repeat_interleave(A.shape[1] // chosen, dim=1)
    return (x @ A.transpose(1, 2) * weight[:, None]) @ B


def _mix_tokens(x: Tensor, site: SiteFactors, routing: Routing) -> Tensor:
    # Two matrix products over all experts at rank r: E*r*d multiplies per token instead of E*d*d.
    num_experts, rank, width_in = site.A.shape
    low = (x @ site.A.reshape(-1, width_in).T).unflatten(-1, (num_experts, rank))
    low = low * routing.dense().to(x.dtype)[..., None]
    return low.flatten(-2) @ site.B.permute(0, 2, 1).reshape(num_experts * rank, -1)
