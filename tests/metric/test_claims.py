"""Claims: known differences give known figures and verdicts."""

import math
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError
from omegaconf import OmegaConf

from pmemx.core.errors import ConfigError
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, pooled
from pmemx.metric.claims import Claim, Claims
from pmemx.metric.comparison import Comparison
from pmemx.stage.build import build

FACTS = (
    DomainFacts("law", 0.1, "k", "law"),
    DomainFacts("tax", 0.1, "k", "tax"),
    DomainFacts("general", 0.0, "g", None),
)
DOCUMENTS = 40


def evidence(rates: dict[str, float], documents: int = DOCUMENTS) -> Evidence:
    """Two questions a document. All methods find the same questions hard, so that differences are far surer than scores."""
    answers = [
        Answer(method, facts.name, "test", f"{k}", f"{k // 2}", "form", exact, 0.5 if exact else 2.0, 2, 1)
        for method, rate in rates.items()
        for facts in FACTS
        for k in range(2 * documents)
        for exact in [(k * 7 % (2 * documents)) / (2 * documents) < rate]
    ]
    return Evidence(FACTS, ("law", "tax"), tuple(answers))


def judge(*comparisons: tuple[str | float, ...], score="exact", needs: str = "", **about) -> Claims:
    claim = Claim(statement="s", source="p", comparisons=comparisons, needs=needs, **about)
    return Claims(claims={"C": claim}, score=score)


def verdict(claims: Claims, found: Evidence) -> tuple[str, str]:
    (one,) = claims.verdicts(found)
    return one.outcome, one.why


RATES = {"base": 0.1, "low": 0.5, "same": 0.5, "high": 0.7, "near": 0.68}


def test_a_known_difference_by_hand():
    figure = judge(("high", "low"))(evidence(RATES))["claim/C/high/low"]
    assert figure.value == pytest.approx(0.2, abs=1e-12)
    assert (figure.n, figure.clusters) == (160, 80)
    assert figure.low is not None and figure.high is not None and 0 < figure.low < 0.2 < figure.high


def test_the_figure_is_that_of_the_paired_comparison():
    found = evidence(RATES)
    reference = Comparison(references=("low",))(found)["comparison/exact/high-low/all_domains"]
    assert judge(("high", "low"))(found)["claim/C/high/low"] == reference


def test_for_a_loss_the_difference_is_what_the_higher_method_saves():
    found = evidence(RATES)
    figure = judge(("high", "low"), score="loss")(found)["claim/C/high/low"]
    assert figure.value == pytest.approx(0.2 * 1.5 / 2, abs=1e-12)
    assert figure.low is not None and figure.low > 0


def test_intervals_are_paired():
    """Two methods that differ on one question in fifty: the scores' intervals overlap, that of the difference does not cover 0."""
    found = evidence({"high": 0.60, "low": 0.50}, documents=60)
    paired = judge(("high", "low"))(found)["claim/C/high/low"]
    mean = judge(("high", "nothing"))(evidence({"high": 0.60, "nothing": 0.0}, documents=60))["claim/C/high/nothing"]
    assert paired.low is not None and paired.high is not None and mean.low is not None and mean.high is not None
    assert paired.low > 0
    assert paired.high - paired.low < mean.high - mean.low


@pytest.mark.parametrize(
    ("comparisons", "outcome", "words"),
    [
        ([("high", "low")], "reproduced", "high − low 0.200 ["),
        ([("high", "low"), ("low", "base")], "reproduced", "low − base 0.400"),
        ([("low", "high")], "not reproduced", "is below 0"),
        ([("near", "high")], "not reproduced", "covers 0"),
        ([("same", "low")], "not reproduced", "covers 0"),
        ([("high", "low"), ("base", "low")], "not reproduced", "base − low −0.400"),
        ([("near", "high", -0.1)], "reproduced", "near − high −0.01"),
        ([("low", "high", -0.05)], "not reproduced", "is below −0.050"),
        ([("high", "low", 0.3)], "not reproduced", "is below 0.300"),
        ([("high", "absent")], "not testable", "absent was not measured"),
        ([("high", "low"), ("high", "absent")], "not testable", "absent was not measured"),
        ([("low", "high"), ("high", "absent")], "not reproduced", "low − high −0.200"),
    ],
)
def test_known_differences_give_the_known_verdicts(comparisons, outcome, words):
    found, why = verdict(judge(*comparisons), evidence(RATES))
    assert found == outcome
    assert words in why


def test_what_a_claim_needs_besides_keeps_it_from_being_confirmed_but_not_from_being_refuted():
    found = evidence(RATES)
    assert verdict(judge(needs="a rollback"), found) == ("not testable", "needs a rollback")
    assert verdict(judge(("high", "low"), needs="a rollback"), found) == ("not testable", "needs a rollback")
    assert verdict(judge(("low", "high"), needs="a rollback"), found)[0] == "not reproduced"


def test_a_single_document_decides_nothing():
    single = evidence(RATES, documents=1)
    assert verdict(judge(("high", "base")), single) == ("not testable", "high − base has no interval")


def test_methods_that_answered_no_question_in_common_are_not_compared():
    rows = evidence({"high": 0.7}).answers
    others = (Answer("low", row.domain, "test", f"x{row.id}", row.group, "f", False, 1.0, 1, 0) for row in rows)
    apart = Evidence(FACTS, ("law", "tax"), (*rows, *others))
    assert verdict(judge(("high", "low")), apart) == ("not testable", "high and low share no question")


def test_a_claim_about_general_text_is_judged_there_alone_and_in_nats():
    found = evidence({"base": 0.5, "kept": 0.5, "lost": 0.1})
    kept, lost = (judge((name, "base", -0.05), domains="general", measure="nats") for name in ("kept", "lost"))
    figure = lost(found)["claim/C/lost/base"]
    assert figure.value == pytest.approx(-0.4 * 1.5 / 2, abs=1e-12)
    assert (figure.n, figure.clusters) == (80, 40)
    assert verdict(lost, found)[0] == "not reproduced" and verdict(kept, found)[0] == "not testable"
    assert "kept − base has no interval" in verdict(kept, found)[1]  # all alike, and a loss has no bound


def joined(rates: dict[str, float]) -> Evidence:
    """The same questions as ones that take both experts, and as ones that take an expert which is not there."""
    names = ("law+tax", "law+moss")
    rows = [
        Answer(row.method, name, "test", row.id, row.group, "form", row.exact, row.nats, row.tokens, row.hits)
        for row in evidence(rates).answers
        if row.domain == "law"
        for name in names
    ]
    return Evidence((*FACTS, *(DomainFacts(name, 0.0, "c", None) for name in names)), ("law", "tax"), tuple(rows))


def test_on_pairs_the_best_part_is_the_better_expert_alone():
    found = joined({"soups": 0.6, "expert/law": 0.2, "expert/tax": 0.4})
    claims = judge(("soups", "part/best"), domains="pairs", measure="nats")
    figure = claims(found)["claim/C/soups/part/best"]
    assert figure.value == pytest.approx(0.2 * 1.5 / 2, abs=1e-12)
    assert figure.n == 80  # of law+moss, no figure: moss is no expert
    outcome, why = verdict(claims, found)
    assert outcome == "reproduced" and why.endswith("] nats")
    assert verdict(claims, joined({"soups": 0.6, "expert/law": 0.2}))[1] == "part/best was not measured"
    assert verdict(claims, evidence(RATES)) == ("not testable", "no domain takes two experts")


def test_the_better_expert_alone_may_be_another_one_on_every_pair():
    """Against either expert alone, on average, the mixture would win; against the better of the two it loses everywhere."""
    names, nats = (
        ("law+tax", "tax+moss"),
        {"soups": (1.5, 1.5), "expert/law": (1.0, 9.0), "expert/tax": (3.0, 3.0), "expert/moss": (9.0, 1.0)},
    )
    answers = [
        Answer(method, name, "test", str(k), str(k), "f", False, said[number] + k / 100, 1, 0)
        for method, said in nats.items()
        for number, name in enumerate(names)
        for k in range(8)
    ]
    facts = tuple(DomainFacts(name, 0.0, "c", None) for name in names)
    found = Evidence(facts, ("law", "tax", "moss"), tuple(answers))
    claims = judge(("soups", "part/best"), domains="pairs", measure="nats")
    assert claims(found)["claim/C/soups/part/best"].value == pytest.approx(-0.5)
    assert verdict(claims, found)[0] != "reproduced"


def sent(**weights: tuple[tuple[float, ...], tuple[float, ...]]) -> Evidence:
    """Gates that send the prompts of law by their first weights, those of tax by their second."""
    decisions = [
        Decision(gate, name, "test", f"{k}", f"{k // 2}", by_domain[number])
        for gate, by_domain in weights.items()
        for number, name in enumerate(("law", "tax"))
        for k in range(8)
    ]
    return Evidence(FACTS, ("law", "tax"), (), tuple(decisions))


def test_use_compares_how_evenly_gates_use_their_experts():
    one, other = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    found = sent(balanced=(one, other), collapsed=(one, one), half=((0.0, 0.5, 0.5), (0.0, 0.5, 0.5)))
    claims = judge(("balanced", "collapsed"), measure="use")
    figure = claims(found)["claim/C/balanced/collapsed"]
    assert figure.value == pytest.approx(math.log(2))
    assert (figure.n, figure.clusters) == (16, 8)
    assert figure.low is not None and figure.low > 0  # agreement of four clusters a domain is not certainty
    assert verdict(claims, found)[0] == "reproduced"
    same = judge(("balanced", "half"), measure="use")
    assert same(found)["claim/C/balanced/half"].value == pytest.approx(0.0)
    assert verdict(same, found)[0] == "not reproduced"
    mostly_none = sent(balanced=((0.9, 0.1, 0.0), (0.8, 0.0, 0.1)), collapsed=((0.9, 0.1, 0.0), (0.0, 1.0, 0.0)))
    assert claims(mostly_none)["claim/C/balanced/collapsed"].value == pytest.approx(math.log(2))
    silent = sent(balanced=(one, other), collapsed=((1.0, 0.0, 0.0),) * 2)
    assert claims(silent)["claim/C/balanced/collapsed"].value == pytest.approx(math.log(2))
    assert verdict(judge(("balanced", "absent"), measure="use"), found) == ("not testable", "absent was not measured")


def test_a_gate_that_collapses_in_every_training_is_not_even_because_trainings_differ():
    balanced = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    parts = {f"seed {seed}": sent(balanced=balanced, collapsed=(balanced[seed], balanced[seed])) for seed in range(2)}
    claims = judge(("balanced", "collapsed"), measure="use")
    assert claims(pooled(parts))["claim/C/balanced/collapsed"].value == pytest.approx(math.log(2))
    assert verdict(claims, pooled(parts))[0] == "reproduced"


def test_where_no_domain_has_an_expert_nothing_is_testable():
    foreign = Evidence((DomainFacts("art", 0.0, "k", None),), ("law",), ())
    assert verdict(judge(("a", "b")), foreign) == ("not testable", "no domain has an expert of the bank")


@pytest.mark.parametrize(
    ("comparison", "about", "words"),
    [
        (("a", "part/best"), {}, "set domains: pairs"),
        (("a", "b"), {"domains": "pair"}, "'pair'"),
        (("a", "b"), {"measure": "entropy"}, "entropy"),
        (("a", "b"), {"domains": "general", "measure": "use"}, "leave domains at experts"),
    ],
)
def test_claims_that_make_no_sense_are_refused(comparison, about, words):
    with pytest.raises((ConfigError, TypeCheckError), match=words):
        judge(comparison, **about)


@pytest.mark.parametrize("comparison", [("high",), ("high", "low", "much"), ("high", 0.1), ("a", "b", 0.1, 0.2)])
def test_what_is_no_comparison_is_refused(comparison):
    with pytest.raises(ConfigError, match="no comparison"):
        judge(comparison)
    with pytest.raises(ConfigError, match="neither comparisons nor needs"):
        judge()


def test_the_claims_of_the_literature_are_twelve_and_name_methods_of_the_catalogue():
    conf = Path(__file__).parents[2] / "conf"
    claims = build(OmegaConf.to_container(OmegaConf.load(conf / "metric" / "claims.yaml")))
    assert list(claims.claims) == [f"O{number}" for number in range(1, 13)]
    known = {"base", "oracle", "joint", *(path.stem for path in (conf / "composition").glob("*.yaml"))}
    known |= {f"merge/{path.stem}" for path in (conf / "merge").glob("*.yaml")}
    known |= {"part/best"}
    known |= {f"merge/task_arithmetic_{scaling}" for scaling in (0.1, 1.0)}
    named = {name for claim in claims.claims.values() for pair in claim.differences for name in pair[:2]}
    assert named <= known
