"""Pools say in pieces what they say of the whole; a turn is a run of prompt tokens that hears what its last token hears."""

import pytest
import torch
from torch import Tensor

from pmemx.core.vote import Last, Max, Mean, Pool, Tally, at_ends_of_turns, starts_of_turns

POOLS = (Mean(), Max(), Last())
PROMPT = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0, 0, 1], [0] * 8, [1] * 8]).bool()


def values() -> Tensor:
    return torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def inside() -> Tensor:
    """Left padding, right padding, a hole, and a row with nothing inside."""
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[0, :3] = mask[1, 6:] = mask[2, 3:5] = mask[3] = False
    return mask


def in_pieces(pool: Pool, said: Tensor, mask: Tensor, cuts: tuple[int, ...]) -> Tensor:
    before: Tally | None = None
    found = []
    for part, within in zip(said.tensor_split(cuts, dim=1), mask.tensor_split(cuts, dim=1), strict=True):
        heard, before = pool.on_prefix(part, within, before)
        found.append(heard)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
class TestPool:
    @pytest.mark.parametrize("cuts", [(3,), (1, 4, 6), tuple(range(1, 8))])
    def test_says_in_pieces_what_it_says_of_the_whole(self, pool, cuts):
        whole = pool.on_prefix(values(), inside(), None)[0]
        assert torch.allclose(in_pieces(pool, values(), inside(), cuts), whole, rtol=0, atol=1e-12)

    def test_says_of_a_prompt_what_the_last_token_of_it_hears(self, pool):
        whole = pool.on_prefix(values(), inside(), None)[0]
        assert torch.allclose(pool.on_prompt(values(), inside()), whole[:, -1:], rtol=0, atol=1e-12)

    def test_is_zero_where_nothing_was_heard_yet_and_blind_to_what_stands_outside(self, pool):
        said = values().masked_fill(~inside()[..., None], float("inf"))
        heard = pool.on_prefix(said, inside(), None)[0]
        assert torch.equal(heard, pool.on_prefix(values(), inside(), None)[0])
        assert not heard[0, :3].any() and not heard[3].any()

    def test_does_not_look_where_turns_start(self, pool):
        begins = starts_of_turns(PROMPT)
        told = pool.on_prefix(values(), inside(), None, begins)[0]
        assert torch.equal(told, pool.on_prefix(values(), inside(), None)[0])


def test_by_hand():
    said = torch.tensor([[[1.0], [-4.0], [3.0], [2.0]]])
    mask = torch.tensor([[False, True, True, False]])
    assert Mean().on_prefix(said, mask, None)[0].flatten().tolist() == [0, -4, -0.5, -0.5]
    assert Max().on_prefix(said, mask, None)[0].flatten().tolist() == [0, -4, 3, 3]
    heard, tally = Last().on_prefix(said, mask, None)
    assert heard.flatten().tolist() == [0, -4, 3, 3]
    assert tally.value.tolist() == [[3]] and tally.count.tolist() == [[2]]


def test_the_last_token_of_an_earlier_pass_counts_until_a_new_one_speaks():
    before = Tally(torch.tensor([[7.0]]), torch.tensor([[1.0]]))
    said, mask = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[False, True]])
    heard, tally = Last().on_prefix(said, mask, before)
    assert heard.flatten().tolist() == [7, 2]
    assert tally.value.tolist() == [[2]] and tally.count.tolist() == [[2]]


def test_a_turn_starts_with_the_first_token_of_a_run():
    expected = [[1, 0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0, 1], [0] * 8, [1, *[0] * 7]]
    assert starts_of_turns(PROMPT).int().tolist() == expected


def test_every_token_of_a_turn_hears_what_its_last_one_hears_and_the_others_what_they_heard():
    heard = torch.arange(32.0).view(4, 8, 1)
    found = at_ends_of_turns(heard, PROMPT)[..., 0]
    assert found.tolist() == [
        [1, 1, 2, 3, 6, 6, 6, 7],
        [8, 9, 10, 11, 12, 13, 14, 15],
        [16, 17, 18, 19, 20, 21, 22, 23],
        [31] * 8,
    ]


def test_a_tally_follows_rows_that_change_places():
    tally = Tally(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    moved = tally.rows(torch.tensor([1, 1, 0]))
    assert moved.value.tolist() == [[2], [2], [1]] and moved.count.tolist() == [[4], [4], [3]]
