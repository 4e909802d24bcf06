"""What every metric keeps, found by its file in conf/metric."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, UncoveredPrompt
from pmemx.core.metric import Figure, Metric
from pmemx.stage.build import build

CONF = Path(__file__).parents[2] / "conf" / "metric"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SHARES = re.compile(
    r"exact_match/|/exact/(matrix|own)|own_is_best|/(accuracy|confusion|utilisation)/|uncovered/|/p$|/exact/.*/R/"
)
NOT_NEGATIVE = re.compile(r"token_loss/|/kl/|/loss/(matrix|own)|entropy|mutual_information")


def metric_of(name: str) -> Metric:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return build(OmegaConf.to_container(compose(name)))


@cache
def figures_of(name: str) -> dict[str, Figure]:
    return metric_of(name)(run())


@cache
def run() -> Evidence:
    """Every kind of row, with scores that differ by method, domain and document."""
    domains = ("law", "tax")
    facts = [DomainFacts(name, 0.1, "knowledge", name) for name in domains]
    facts += [DomainFacts("general", 0.0, "general", None), DomainFacts("unknown", 0.0, "unknown", None)]
    methods = ["base", "teacher", "oracle", "gate", *(f"expert/{name}" for name in domains)]
    methods += [f"{kind}/{i}" for kind in ("sequential", "bank") for i in range(len(domains))]
    answers = [
        _answer(method, fact.name, split, k)
        for method in methods
        for fact in facts[:-1]
        for split in (("train", "test") if method == "gate" else ("test",))
        for k in range(6)
    ]
    decisions = [
        Decision("gate", fact.name, "test", f"{fact.name}-{k}", f"{k // 2}", _weights(fact.name, k, len(domains)))
        for fact in facts
        for k in range(6)
    ]
    uncovered = [
        UncoveredPrompt("gate", name, tokens, f"{name}-{tokens}-{k}", f"{k // 2}", k % 4 > 0)
        for name, tokens in (*((name, 0) for name in domains), ("general", 16), ("general", 64))
        for k in range(6)
    ]
    return Evidence(tuple(facts), domains, tuple(answers), tuple(decisions), (), domains, tuple(uncovered))


def _answer(method: str, domain: str, split, k: int) -> Answer:
    draw = sum(map(ord, f"{method}{domain}{split}{k}")) * 37 % 100 / 100
    exact = draw < (0.9 if method.endswith((domain, "oracle", "teacher")) else 0.4)
    kl = None if method == "base" else draw
    return Answer(
        method, domain, split, f"{domain}-{k}", f"{k // 2}", f"form-{k % 2}", exact, 0.5 + 3 * draw, 3, 3 * exact, kl
    )


def _weights(domain: str, k: int, experts: int) -> tuple[float, ...]:
    chosen = (sum(map(ord, domain)) + k) % (experts + 1)
    return tuple(0.7 if choice == chosen else 0.3 / experts for choice in range(experts + 1))


@pytest.mark.parametrize("name", NAMES)
class TestMetric:
    def test_it_is_a_metric_with_something_to_say(self, name):
        assert isinstance(metric_of(name), Metric)
        assert figures_of(name)

    def test_every_number_is_finite_and_inside_its_interval(self, name):
        for label, figure in figures_of(name).items():
            numbers = [figure.value, figure.low, figure.high, figure.floor, figure.ceiling]
            assert all(math.isfinite(number) for number in numbers if number is not None), label
            assert figure.n >= figure.clusters >= 1, label
            assert (figure.low is None) == (figure.high is None), label
            if figure.low is not None and figure.high is not None and "own_is_best" not in label:
                assert figure.low <= figure.high, label

    def test_values_and_intervals_keep_their_range(self, name):
        for label, figure in figures_of(name).items():
            ends = [end for end in (figure.value, figure.low, figure.high) if end is not None]
            if SHARES.search(label):
                assert min(ends) >= 0 and max(ends) <= 1 + 1e-12, label
            if NOT_NEGATIVE.search(label):
                assert min(ends) >= 0, label

    def test_the_order_of_domains_and_rows_is_irrelevant(self, name):
        metric, evidence = metric_of(name), run()
        turned = replace(
            evidence, domains=evidence.domains[::-1], answers=evidence.answers[::-1], decisions=evidence.decisions[::-1]
        )
        assert metric(turned) == figures_of(name)

    def test_what_was_not_measured_is_left_out(self, name):
        metric = metric_of(name)
        facts, experts = run().domains, run().experts
        assert metric(Evidence(facts, experts, ())) == {}
        assert metric(Evidence((), (), ())) == {}

    def test_a_domain_without_rows_changes_no_other_figure(self, name):
        metric, evidence = metric_of(name), run()
        more = replace(evidence, domains=(*evidence.domains, DomainFacts("empty", 0.0, "text", None)))
        assert metric(more) == figures_of(name)

    def test_a_method_without_one_domain_has_no_figure_there_or_over_all(self, name):
        metric, evidence = metric_of(name), run()
        fewer = replace(evidence, answers=tuple(a for a in evidence.answers if (a.method, a.domain) != ("gate", "law")))
        figures = metric(fewer)
        assert not any(
            "/gate/law" in label or "/gate/all_domains/test" in label for label in figures if "routing" not in label
        )
        assert figures.items() <= figures_of(name).items()

    def test_a_single_document_has_no_interval(self, name):
        metric, evidence = metric_of(name), run()
        answers = tuple(replace(answer, group="one") for answer in evidence.answers)
        decisions = tuple(replace(decision, group="one") for decision in evidence.decisions)
        uncovered = tuple(replace(row, group="one") for row in evidence.uncovered)
        figures = metric(replace(evidence, answers=answers, decisions=decisions, uncovered=uncovered))
        assert figures and all(figure.low is None for figure in figures.values())

    def test_the_same_evidence_gives_the_same_figures(self, name):
        assert metric_of(name)(run()) == figures_of(name)
