"""Where prompts go that take two experts: weights on both, on others, on none, and whether both weigh most."""

import pytest

from pmemx.core.evidence import Decision, DomainFacts, Evidence, Split, pooled
from pmemx.metric.pairs import Pairs

EXPERTS = ("law", "tax", "moss")
BOTH = "pairs/gate/heaviest/law+tax"


def evidence(*weights: tuple[float, ...], domain: str = "law+tax", split: Split = "test", experts=EXPERTS) -> Evidence:
    """One decision a row of weights, two to a group; no expert first."""
    rows = tuple(Decision("gate", domain, split, str(k), str(k // 2), row) for k, row in enumerate(weights))
    return Evidence((DomainFacts(domain, 0.0, "k", domain if domain in experts else None),), experts, (), rows)


def values(found: Evidence) -> dict[str, float]:
    return {name: figure.value for name, figure in Pairs()(found).items()}


def test_pairs_by_hand():
    found = evidence((0.0, 0.5, 0.5, 0.0), (0.5, 0.25, 0.125, 0.125), (0.5, 0.25, 0.2, 0.05), (0.0, 0.6, 0.1, 0.3))
    assert values(found) == {
        "pairs/gate/weight/law+tax/law": pytest.approx(0.4),
        "pairs/gate/weight/law+tax/tax": pytest.approx(0.23125),
        "pairs/gate/weight/law+tax/others": pytest.approx(0.11875),
        "pairs/gate/weight/law+tax/no_expert": pytest.approx(0.25),
        BOTH: 0.5,
    }
    assert {(figure.n, figure.clusters) for figure in Pairs()(found).values()} == {(4, 2)}


def test_shares_sum_to_one():
    found = values(evidence((0.1, 0.2, 0.3, 0.4), (0.7, 0.1, 0.1, 0.1)))
    assert sum(value for name, value in found.items() if "/weight/" in name) == pytest.approx(1.0)


def test_a_pooled_domain_is_known_by_its_expert_and_a_pair_by_its_name():
    domains = (DomainFacts("law", 0.0, "k", "law"), DomainFacts("law+tax", 0.0, "c", None))
    rows = tuple(Decision("gate", facts.name, "test", "0", "0", (0.0, 0.6, 0.4, 0.0)) for facts in domains)
    one = Evidence(domains, EXPERTS, (), rows)
    found = values(pooled({"seed 0": one, "seed 1": one}))
    heaviest = {name: value for name, value in found.items() if "heaviest" in name}
    assert heaviest == {f"pairs/gate/heaviest/law (seed {k})": 1.0 for k in range(2)} | {BOTH: 1.0}


@pytest.mark.parametrize(
    ("weights", "experts"),
    [
        ((0.0, 1.0, 0.0, 0.0), EXPERTS),  # one expert a prompt
        ((0.0, 1 / 3, 1 / 3, 1 / 3), EXPERTS),  # all alike
        ((1.0, 0.0, 0.0), EXPERTS[:2]),  # none, in a bank that holds nothing else
        ((0.0, -0.1, 0.9, -0.5), EXPERTS),  # weights that are no shares
    ],
)
def test_a_part_without_weight_of_its_own_is_not_among_the_heaviest(weights, experts):
    assert values(evidence(weights, weights, experts=experts))[BOTH] == 0.0


def test_no_expert_may_weigh_more_than_both():
    assert values(evidence((0.8, 0.1, 0.1, 0.0), (0.9, 0.06, 0.04, 0.0)))[BOTH] == 1.0


def test_a_domain_with_its_own_expert_has_one_part():
    found = values(evidence((0.0, 0.2, 0.7, 0.1), (0.0, 0.7, 0.2, 0.1), domain="tax"))
    assert found["pairs/gate/weight/tax/tax"] == pytest.approx(0.45)
    assert found["pairs/gate/weight/tax/others"] == pytest.approx(0.55)
    assert found["pairs/gate/heaviest/tax"] == 0.5


@pytest.mark.parametrize(("domain", "split"), [("law+iris", "test"), ("iris", "test"), ("law+tax", "train")])
def test_a_part_without_an_expert_and_shown_prompts_say_nothing(domain, split):
    assert values(evidence((0.0, 0.5, 0.5, 0.0), domain=domain, split=split)) == {}
