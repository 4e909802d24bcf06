"""The weighted sum of what is left of every expert (PEFT's kernel)."""

from dataclasses import dataclass

from jaxtyping import Float
from peft.utils.merge_utils import task_arithmetic
from torch import Tensor

from pmemx.merge.entrywise import Combine


@dataclass(frozen=True)
class WeightedSum(Combine):
    """sum_e w_e t_e."""

    def __call__(
        self, tensors: Float[Tensor, " expert *shape"], weights: Float[Tensor, " expert"]
    ) -> Float[Tensor, "*shape"]:
        """See Combine."""
        return task_arithmetic(list(tensors), weights)
