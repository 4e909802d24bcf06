"""How far rounding may move a result: what tests of numbers allow, and no more."""

import torch
from torch import Tensor


def rounding(largest: Tensor | float, num_terms: int, dtype: torch.dtype = torch.float32) -> float:
    """n eps s, which no order of summing n terms exceeds where s bounds the sum of their absolute values.

    Two orders (another instruction set, library or batch) may so differ by it. Higham 2002, section 3.1.
    """
    return num_terms * torch.finfo(dtype).eps * float(largest)
