import math

import pytest

from pmemx.core.evidence import Decision, DomainFacts, Evidence, pooled
from pmemx.metric.routing import Routing
from pmemx.metric.sequential import Sequential


def test_routing_by_hand(make):
    figures = Routing()(make())
    assert figures["routing/gate/accuracy/law/test"].value == 0.75
    assert figures["routing/gate/accuracy/law/test"].floor == pytest.approx(1 / 3)
    assert figures["routing/gate/accuracy/all_domains/test"].value == 0.875
    assert figures["routing/gate/confusion/law/tax"].value == 0.25
    assert figures["routing/gate/confusion/law/no_expert"].value == 0.0


def test_the_share_sent_to_no_expert_is_told_apart_for_general_and_unknown(make):
    figures = Routing()(make())
    assert figures["routing/gate/accuracy/general/test"].value == 0.75
    assert figures["routing/gate/accuracy/unknown/test"].value == 0.5


def test_use_and_entropy_by_hand(make):
    figures = Routing()(make())
    assert figures["routing/gate/utilisation/law"].value == 0.375
    assert figures["routing/gate/utilisation/no_expert"].value == 0.0
    entropy = -(0.375 * math.log(0.375) + 0.625 * math.log(0.625))
    assert figures["routing/gate/entropy/mean_use"].value == pytest.approx(entropy)
    assert figures["routing/gate/entropy/per_prompt"].value == 0.0
    assert figures["routing/gate/mutual_information"].value == pytest.approx(entropy)
    assert figures["routing/gate/entropy/mean_use"].ceiling == pytest.approx(math.log(3))


def test_without_decisions_there_is_no_routing(make):
    assert Routing()(make(choices=False)) == {}


GROWTH = {
    "sequential/1": {"law": "1111", "tax": "1000", "general": "1111"},
    "sequential/2": {"law": "1000", "tax": "1111", "general": "1000"},
}


def test_growth_by_hand(make):
    figures = Sequential()(make(GROWTH, sequence=("law", "tax")))
    prefix = "sequential/exact/sequential"
    matrix = [[figures[f"{prefix}/R/{i}/{domain}"].value for domain in ("law", "tax")] for i in (1, 2)]
    assert matrix == [[1.0, 0.25], [0.25, 1.0]]
    assert figures[f"{prefix}/acc"].value == 0.625
    assert figures[f"{prefix}/bwt"].value == -0.75
    assert figures[f"{prefix}/forgetting"].value == 0.75
    assert [figures[f"{prefix}/seen/{i}"].value for i in (1, 2)] == [1.0, 0.625]


def test_growth_by_loss_keeps_the_sign_of_forgetting(make):
    figures = Sequential(score="loss")(make(GROWTH, sequence=("law", "tax")))
    assert figures["sequential/loss/sequential/acc"].value == pytest.approx((13.0 - 0.5 + 2.0) / 16)
    assert figures["sequential/loss/sequential/forgetting"].value == pytest.approx(0.75 * 3.5 / 2)
    assert figures["sequential/loss/sequential/bwt"].value == pytest.approx(-0.75 * 3.5 / 2)


def test_forgetting_counts_from_the_best_past_score_and_bwt_from_the_first(make):
    runs = {
        f"bank/{i}": {"law": bits, "tax": "1111", "general": "1111"}
        for i, bits in enumerate(("1100", "1111", "1000"), 1)
    }
    runs["bank/3"]["general"] = "0000"
    figures = Sequential()(make(runs, sequence=("law", "tax", "general")))
    assert figures["sequential/exact/bank/forgetting"].value == pytest.approx((0.75 + 0) / 2)
    assert figures["sequential/exact/bank/bwt"].value == pytest.approx((-0.25 + 0) / 2)


def test_ten_stages_are_ordered_by_number_and_a_missing_one_leaves_the_run_out(make):
    assert Sequential()(make({"sequential/1": GROWTH["sequential/1"]}, sequence=("law", "tax"))) == {}
    renamed = {"sequential/9": GROWTH["sequential/1"], "sequential/10": GROWTH["sequential/2"]}
    assert Sequential()(make(renamed, sequence=("law", "tax"))) == Sequential()(make(GROWTH, sequence=("law", "tax")))


def test_a_diagonal_run_of_one_stage_has_no_forgetting(make):
    figures = Sequential()(make({"sequential/1": {"law": "1111"}}, sequence=("law",)))
    assert figures["sequential/exact/sequential/acc"].value == 1.0
    assert not any(name.endswith(("bwt", "forgetting")) for name in figures)


def test_a_run_that_never_changes_forgets_nothing(make):
    constant = {f"bank/{i}": {"law": "1110", "tax": "1100"} for i in (1, 2)}
    figures = Sequential()(make(constant, sequence=("law", "tax")))
    assert figures["sequential/exact/bank/forgetting"].value == 0.0
    assert figures["sequential/exact/bank/bwt"].value == 0.0


def test_a_domain_that_takes_two_experts_has_no_one_right_choice():
    names = {"law": "law", "law+tax": None, "law+moss": None, "moss": None}
    domains = tuple(DomainFacts(name, 0.0, "k", expert) for name, expert in names.items())
    rows = tuple(Decision("gate", d.name, "test", f"{k}", f"{k}", (1.0, 0.0, 0.0)) for d in domains for k in range(4))
    figures = Routing()(Evidence(domains, ("law", "tax"), (), rows))
    right = {name.split("/")[3]: figure.value for name, figure in figures.items() if "/accuracy/" in name}
    assert right == {"law": 0.0, "moss": 1.0, "all_domains": 0.0}


def test_the_entropy_of_use_is_that_of_every_pooled_run():
    domains = tuple(DomainFacts(name, 0.0, "k", name) for name in ("law", "tax"))

    def to(chosen: int) -> Evidence:
        weights = tuple(float(choice == chosen) for choice in range(3))
        rows = tuple(Decision("gate", d.name, "test", f"{k}", f"{k}", weights) for d in domains for k in range(4))
        return Evidence(domains, ("law", "tax"), (), rows)

    both = Routing()(pooled({"seed 0": to(1), "seed 1": to(2)}))
    assert both["routing/gate/entropy/mean_use"].value == pytest.approx(0.0)
    assert both["routing/gate/utilisation/law"].value == pytest.approx(0.5)
