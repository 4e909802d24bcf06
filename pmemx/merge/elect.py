"""TIES' election and disjoint mean with PEFT's weights (arXiv:2306.01708; PEFT's kernels)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, reshape_weight_task_tensors
from torch import Tensor

from pmemx.merge.entrywise import Combine


@dataclass(frozen=True, kw_only=True)
class Elect(Combine):
    """sum of w_e t_e over the experts that agree with the elected sign, divided by their number.

    Weights do not vote. majority "total": the sign of sum_e t_e, as in the paper. "frequency": the sign of most experts.
    """

    majority: Literal["total", "frequency"] = "total"

    def __call__(
        self, tensors: Float[Tensor, " expert *shape"], weights: Float[Tensor, " expert"]
    ) -> Float[Tensor, "*shape"]:
        """See Combine."""
        agreeing = calculate_majority_sign_mask(tensors, method=self.majority)
        return disjoint_merge(tensors * reshape_weight_task_tensors(tensors, weights), agreeing)
