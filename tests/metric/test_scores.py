import pytest

from pmemx.core.evidence import Evidence
from pmemx.core.statistics import wilson
from pmemx.metric.comparison import Comparison
from pmemx.metric.exact_match import ExactMatch
from pmemx.metric.forgetting_general import ForgettingGeneral
from pmemx.metric.recovery import Recovery
from pmemx.metric.specialisation import Specialisation
from pmemx.metric.token_loss import TokenLoss


def test_exact_match_by_hand(make):
    figures = ExactMatch()(make())
    law = figures["exact_match/gate/law/test"]
    assert (law.value, law.n, law.clusters, law.floor, law.ceiling) == (0.75, 4, 2, 0.25, 1.0)
    # Two documents, right by half and in full: the Wilson interval of 4.5 of 6 questions, at what a t of one degree allows.
    assert (law.low, law.high) == pytest.approx((wilson(4.5, 6, confidence=1 - 1e-9)[0], 1.0), abs=0.01)
    both = figures["exact_match/gate/all_domains/test"]
    assert (both.value, both.n, both.clusters, both.floor, both.ceiling) == (0.625, 8, 4, 0.1875, 0.875)
    assert figures["exact_match/gate/tax/test/form/question-1"].value == 0.0
    assert figures["exact_match/gate/all_domains/test/form/question-0"].value == 1.0


def test_a_perfect_score_is_as_sure_as_its_number_of_documents(make):
    oracle = ExactMatch()(make())["exact_match/oracle/law/test"]
    assert (oracle.low, oracle.high) == pytest.approx(wilson(2, 2))


def test_exact_match_leaves_out_what_was_not_measured(make):
    figures = ExactMatch(by_form=False)(make())
    assert "exact_match/teacher/general/test" not in figures
    assert figures["exact_match/gate/general/test"].ceiling is None
    assert not any("/train" in name or "/form/" in name or "unknown" in name for name in figures)


def test_train_and_test_phrasings_are_scored_apart(make):
    evidence = make({"gate": {"law": "11"}})
    seen = [row.__class__(**(vars(row) | {"split": "train", "exact": False})) for row in evidence.answers]
    figures = ExactMatch()(Evidence(evidence.domains, evidence.experts, (*evidence.answers, *seen)))
    assert figures["exact_match/gate/law/test"].value == 1.0
    assert figures["exact_match/gate/law/train"].value == 0.0


def test_token_loss_by_hand(make):
    figures = TokenLoss()(make())
    tax = figures["token_loss/gate/tax/test"]
    assert tax.value == pytest.approx((0.5 + 4 + 0.5 + 4) / 8)
    assert tax.ceiling == pytest.approx((3 * 0.5 + 4) / 8)
    assert tax.floor is None
    # Both documents of the domain agree, and a loss has no upper bound: no interval is better than a false point.
    assert (tax.low, tax.high) == (None, None)


def test_specialisation_by_hand(make):
    figures = Specialisation()(make())
    assert figures["specialisation/exact/matrix/law/tax"].value == 0.25
    assert figures["specialisation/exact/gain/tax/law"].value == -0.25
    assert figures["specialisation/exact/own"].value == 0.875
    assert figures["specialisation/exact/own"].floor == 0.1875
    assert figures["specialisation/exact/diagonal"].value == 0.75
    assert figures["specialisation/exact/off_diagonal"].value == 0.0
    assert figures["specialisation/exact/index"].value == 0.75
    assert figures["specialisation/exact/own_is_best"].value == 1.0
    assert figures["specialisation/exact/own_is_best"].floor == 0.5


def test_specialisation_by_loss_counts_less_as_better(make):
    figures = Specialisation(score="loss")(make())
    assert figures["specialisation/loss/gain/law/law"].value == pytest.approx(3 * 3.5 / 8)
    assert figures["specialisation/loss/own_is_best"].value == 1.0
    assert figures["specialisation/loss/index"].value == pytest.approx(0.75 * 3.5 / 2)


def test_a_tie_of_two_experts_counts_half(make):
    same = {"base": {"law": "0000", "tax": "0000"}} | {
        f"expert/{name}": {"law": "1100", "tax": "1100"} for name in ("law", "tax")
    }
    assert Specialisation()(make(same))["specialisation/exact/own_is_best"].value == 0.5


def test_specialisation_has_no_summary_of_half_a_matrix(make):
    figures = Specialisation()(make({"base": {"law": "10", "tax": "10"}, "expert/law": {"law": "11", "tax": "00"}}))
    assert "specialisation/exact/matrix/law/tax" in figures
    assert "specialisation/exact/index" not in figures


def test_recovery_by_hand(make):
    figures = Recovery()(make())
    assert figures["recovery/exact/gate/law"].value == pytest.approx((0.75 - 0.25) / 0.75)
    assert figures["recovery/exact/gate/all_domains"].value == pytest.approx((0.625 - 0.125) / 0.75)
    assert figures["recovery/exact/experts_mean/tax"].value == pytest.approx(0.5 / 0.75)
    oracle = figures["recovery/exact/oracle/all_domains"]
    assert (oracle.value, oracle.low, oracle.high) == (1.0, 1.0, 1.0)
    assert not any("/base/" in name for name in figures)


def test_recovery_of_loss_equals_that_of_exact_match_when_loss_is_linear_in_it(make):
    exact, loss = (Recovery(score=score)(make()) for score in ("exact", "loss"))
    for name, figure in exact.items():
        assert loss[name.replace("/exact/", "/loss/")].value == pytest.approx(figure.value)


def test_recovery_is_left_out_where_the_oracle_gains_nothing(make):
    flat = {
        method: {"law": "1000", "tax": bits}
        for method, bits in (("base", "0000"), ("oracle", "1111"), ("gate", "1100"))
    }
    figures = Recovery()(make(flat))
    assert "recovery/exact/gate/law" not in figures
    assert figures["recovery/exact/gate/tax"].value == 0.5


def test_a_gate_that_matches_the_oracle_on_a_few_documents_is_not_certain_to(make):
    perfect = {
        method: {"law": bits, "tax": bits} for method, bits in (("base", "0000"), ("oracle", "1111"), ("gate", "1111"))
    }
    gate = Recovery()(make(perfect))["recovery/exact/gate/all_domains"]
    assert gate.value == 1.0
    least = wilson(4, 4)[0]
    assert (gate.low, gate.high) == pytest.approx(
        (least, 2 - least)
    )  # on documents not asked the gate may be the better one


def test_comparison_is_paired_by_question(make):
    figures = Comparison(references=["oracle"])(make())
    found = figures["comparison/exact/gate-oracle/law"]
    assert (found.value, found.n, found.clusters) == (-0.25, 4, 2)
    assert found.low is not None and found.high is not None and -1 < found.low < -0.5 and 0 < found.high < 1
    # Two documents of tax and one of law changed: the sign pattern that all agree has probability 2 / 2^4, zeros doubled.
    assert figures["comparison/exact/gate-oracle/all_domains/p"].value == pytest.approx(0.5)
    assert not any("expert/" in name for name in figures)


def test_questions_that_one_method_did_not_answer_are_not_compared(make):
    figures = Comparison()(make({"oracle": {"law": "1111"}, "gate": {"law": "11"}}))
    assert figures["comparison/exact/gate-oracle/law"].n == 2


def test_forgetting_on_general_text_by_hand(make):
    figures = ForgettingGeneral()(make())
    assert figures["forgetting_general/loss/gate"].value == pytest.approx(3.5 / 8)
    assert figures["forgetting_general/exact/gate"].value == -25.0
    assert figures["forgetting_general/tokens/gate"].value == pytest.approx(-12.5)
    assert figures["forgetting_general/kl/gate"].value == pytest.approx((0.25 + 0.5 + 0.75) / 8)
    assert set(figures) == {f"forgetting_general/{name}/gate" for name in ("loss", "exact", "tokens", "kl")}
