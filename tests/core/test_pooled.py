"""Pooling: seeds as strata, under which every metric works as it is."""

from dataclasses import replace

import pytest

from pmemx.core.errors import DataError
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, SiteLoad, pooled
from pmemx.metric.exact_match import ExactMatch
from pmemx.metric.forgetting_general import ForgettingGeneral
from pmemx.metric.recovery import Recovery
from pmemx.metric.routing import Routing

METRICS = (Recovery(), ExactMatch(by_form=False), Routing(), ForgettingGeneral())
OWN = ("law", "tax")
FACTS = (
    *(DomainFacts(name, 0.1, "knowledge", name) for name in OWN),
    DomainFacts("general", 0.0, "general", None),
    DomainFacts("unknown", 0.0, "unknown", None),
)
SKILL = {"base": 0.1, "oracle": 0.95, "gate": 0.7}


def part(seed: int, methods: tuple[str, ...] = tuple(SKILL), world: int | None = None) -> Evidence:
    """Six documents of two questions a domain, drawn anew by every world; scores differ by method, domain, document and seed."""
    world = seed if world is None else world
    answers = [
        Answer(method, domain, "test", f"{k}", f"{world}-{k // 2}", "form", exact, 3.0 - 2 * exact + draw, 3, 2)
        for method in methods
        for domain in (*OWN, "general")
        for k in range(12)
        for draw in [sum(map(ord, f"{method}{domain}{k}{seed}")) * 37 % 100 / 100]
        for exact in [draw < SKILL[method]]
    ]
    decisions = [
        Decision("gate", facts.name, "test", f"{k}", f"{world}-{k // 2}", weights)
        for facts in FACTS
        for k in range(12)
        for weights in [tuple(float(choice == (k + seed + len(facts.name)) % 3) for choice in range(3))]
    ]
    loads = [SiteLoad("gate", "site", facts.name, (0.2, 0.5, 0.3)) for facts in FACTS]
    return Evidence(FACTS, OWN, tuple(answers), tuple(decisions), tuple(loads), OWN)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_pooling_one_seed_changes_no_figure(metric):
    alone, found = metric(part(3)), metric(pooled({"seed 3": part(3)}))
    renamed = {_renamed(name, "seed 3"): figure for name, figure in alone.items()}
    assert renamed and found == renamed


def _renamed(name: str, seed: str) -> str:
    """A figure's name with the seed behind the domain, but not behind an expert that is a choice."""
    parts = name.split("/")
    sent = "confusion" in parts and parts[-1] in OWN
    last = len(parts) - 1 if sent else len(parts)
    if "utilisation" in parts:
        return name
    return "/".join([f"{p} ({seed})" if p in OWN and k < last else p for k, p in enumerate(parts)])


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_the_order_of_seeds_is_irrelevant(metric):
    parts = {f"seed {seed}": part(seed) for seed in range(2)}
    assert metric(pooled(dict(reversed(parts.items())))) == metric(pooled(parts))
    assert pooled(dict(reversed(parts.items()))) == pooled(parts)


def test_all_domains_is_the_mean_over_domains_and_seeds():
    parts = {f"seed {seed}": part(seed, ("gate",)) for seed in range(3)}
    rows = [found.rows("gate", name) for found in parts.values() for name in OWN]
    whole = ExactMatch(by_form=False)(pooled(parts))["exact_match/gate/all_domains/test"]
    assert whole.value == pytest.approx(sum(row.exact for part in rows for row in part) / 72, abs=1e-12)
    assert (whole.n, whole.clusters) == (72, 36)


def test_questions_of_different_seeds_are_never_paired():
    """Every seed asks questions of the same ids; a pair across seeds would compare different answers."""
    both = pooled({"seed 0": part(0), "seed 1": part(1)})
    assert {row.domain for row in both.rows("gate", "law (seed 0)")} == {"law (seed 0)"}
    assert both.rows("gate", "law") == ()
    ids = [(row.domain, row.id) for row in both.answers if row.method == "gate"]
    assert len(ids) == len(set(ids)) == 72
    general = both.rows("gate", "general")
    assert len(general) == 24 and len({row.group for row in general}) == 12


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_the_same_documents_answered_alike_by_three_trainings_are_no_more_evidence_than_by_one(metric):
    alone = metric(part(3))
    found = metric(pooled({f"seed {k}": part(3) for k in range(3)}))
    for name in alone:
        if not any(domain in name.split("/") for domain in OWN) or "utilisation" in name:
            one, three = alone[name], found[name]
            assert (three.low, three.high, three.clusters) == (
                pytest.approx(one.low),
                pytest.approx(one.high),
                one.clusters,
            )
            assert three.value == pytest.approx(one.value) and three.n == 3 * (one.n or 0), name


def test_documents_that_every_seed_asks_about_are_resampled_in_all_of_them_together():
    same = pooled({f"seed {seed}": part(seed, world=0) for seed in range(3)})
    drawn = pooled({f"seed {seed}": part(seed) for seed in range(3)})
    by = {
        key: Recovery(score="loss")(of)["recovery/loss/gate/all_domains"]
        for key, of in (("same", same), ("drawn", drawn))
    }
    assert by["same"].value == pytest.approx(by["drawn"].value)
    assert (by["same"].clusters, by["drawn"].clusters) == (12, 36)
    assert same.cluster(same.rows("gate", "law (seed 0)")[0]) == same.cluster(same.rows("gate", "law (seed 2)")[0])
    laws, taxes = ({same.cluster(row) for row in same.rows("gate", f"{name} (seed 1)")} for name in OWN)
    assert not laws & taxes  # documents of equal names in two domains are two documents


def test_seeds_that_share_some_documents_only_are_told_apart():
    whole = part(1, world=0)
    short = replace(
        whole,
        answers=tuple(row for row in whole.answers if (row.domain, row.id) != ("law", "0")),
        decisions=tuple(row for row in whole.decisions if (row.domain, row.id) != ("law", "0")),
    )
    both = pooled({"seed 0": part(0), "seed 1": short})
    assert {facts.name: facts.asks for facts in both.domains if facts.expert} == {
        "law (seed 0)": "", "tax (seed 0)": "tax", "law (seed 1)": "", "tax (seed 1)": "tax",
    }  # fmt: skip


def test_general_text_that_some_seeds_share_is_one_document():
    """Seeds of the bundled world draw from one list of facts: a fact that two of them ask about is no new fact."""
    both = pooled({"seed 0": part(0), "seed 1": part(1, world=0), "seed 2": part(2)})
    assert {facts.asks for facts in both.domains} == {""}
    assert len({both.cluster(row) for row in both.rows("gate", "general")}) == 12
    assert ForgettingGeneral()(both)["forgetting_general/loss/gate"].clusters == 12
    assert len({both.cluster(row) for seed in range(3) for row in both.rows("gate", f"law (seed {seed})")}) == 18


def test_an_expert_keeps_its_name_and_a_domain_without_one_its_own():
    both = pooled({"seed 0": part(0), "seed 1": part(1)})
    names = {facts.name: facts.expert for facts in both.domains}
    assert names == {
        "law (seed 0)": "law", "tax (seed 0)": "tax", "law (seed 1)": "law", "tax (seed 1)": "tax",
        "general": None, "unknown": None,
    }  # fmt: skip
    assert both.experts == OWN and both.sequence == ()


def test_a_method_or_gate_that_a_seed_lacks_is_left_out():
    short = replace(part(1, ("base", "gate")), decisions=(), loads=())
    both = pooled({"seed 0": part(0), "seed 1": short})
    assert both.methods == ("base", "gate")
    assert both.decisions == () and both.loads == ()


def test_runs_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="no evidence"):
        pooled({})
    with pytest.raises(DataError, match="seed 1 has the experts tax, law, seed 0 has law, tax"):
        pooled({"seed 0": part(0), "seed 1": replace(part(1), experts=("tax", "law"))})
    other = replace(part(1), domains=(*FACTS[:2], replace(FACTS[2], chance=0.5), FACTS[3]))
    with pytest.raises(DataError, match="describes the domain general unlike seed 0"):
        pooled({"seed 0": part(0), "seed 1": other})


def test_the_experts_are_read_from_the_head_alone(tmp_path):
    path = tmp_path / "evidence.jsonl"
    part(0).write(path)
    head = path.read_text(encoding="utf-8").split("\n")[0]
    path.write_text(head + "\nno more\n", encoding="utf-8")
    assert Evidence.experts_of(path) == OWN


def test_what_a_site_is_given_where_no_expert_belongs_is_averaged_over_the_seeds():
    other = replace(part(1), loads=tuple(replace(row, weights=(0.4, 0.1, 0.5)) for row in part(1).loads))
    loads = pooled({"seed 0": part(0), "seed 1": other}).loads
    keys = [(row.gate, row.site, row.domain) for row in loads]
    assert len(keys) == len(set(keys)) == 6
    by_domain = {row.domain: row.weights for row in loads}
    assert by_domain["general"] == pytest.approx((0.3, 0.3, 0.4))
    assert by_domain["law (seed 1)"] == (0.4, 0.1, 0.5)
