"""What the caller of a pass knows about its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.errors import PmemxError

Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class Request:
    """prompt marks the prompt's tokens (default: all attended ones), domain is the true choice of each row (-1 unknown).

    active: for every row the experts that the gate may choose, all where None. profiles: for every row the name of the
    profile that takes the gate's place, the gate where None. One entry stands for all rows; entries by prompt are repeated
    where generation makes several rows of a prompt.
    """

    prompt: Bool[Tensor, "batch token"] | None = None
    domain: Int[Tensor, " batch"] | None = None
    active: tuple[tuple[str, ...] | None, ...] | None = None
    profiles: tuple[str | None, ...] | None = None


def by_row(name: str, values: Sequence[Row], rows: int) -> list[Row]:
    """One value a row; see Request for fewer. Raises PmemxError when the rows are no multiple of the values."""
    if not values or rows % len(values):
        raise PmemxError(f"{name} has {len(values)} entries for {rows} rows; give one for all rows, or one a row")
    return [value for value in values for _ in range(rows // len(values))]


def domain_by_row(domain: Int[Tensor, " given"] | None, rows: int) -> Int[Tensor, " batch"] | None:
    """One domain a row; see by_row."""
    if domain is None or domain.shape[0] == rows:
        return domain
    if rows % domain.shape[0]:
        raise PmemxError(f"domain has {domain.shape[0]} entries for {rows} rows; give one a row")
    return domain.repeat_interleave(torch.tensor(rows // domain.shape[0], device=domain.device))


def prompt_by_row(prompt: Bool[Tensor, "given token"], rows: int, length: int) -> Bool[Tensor, "batch seen"]:
    """The prompt of every row of a pass; what follows the tokens that were marked is none of it."""
    given, marked = prompt.shape
    if marked > length or rows % given:
        raise PmemxError(f"prompt marks {marked} tokens of {given} rows, the pass has {length} of {rows}; mark its own")
    return F.pad(prompt.repeat_interleave(rows // given, dim=0), (0, length - marked))


def attended_tokens(
    mask: Tensor | Mapping[str, Tensor | None] | None, tokens: Tensor, before: int
) -> Bool[Tensor, "batch token"]:
    """Which tokens of a pass are text. mask: whatever the model was given; before: how many tokens the cache holds.

    Generation with a static cache gives masks by query and key, one for each kind of layer. There a token of the text sees
    itself; a layer with a window that is full keeps the newest tokens at its end.
    """
    if isinstance(mask, Mapping):
        mask = next((one for one in mask.values() if one is not None), None)
    rows, length = tokens.shape[:2]
    if mask is None:
        return torch.ones((rows, length), dtype=torch.bool, device=tokens.device)
    if mask.dim() == 2:
        return mask[:, -length:].bool()
    first = min(before, mask.shape[3] - length)
    itself = mask[:, 0, :, first : first + length].diagonal(dim1=1, dim2=2)
    return (itself if itself.dtype == torch.bool else itself == 0).expand(rows, -1)
