"""The study stage: seeds in any order, one table, known verdicts, a page that says what it lacks; and growth over sizes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pmemx.core.errors import DataError
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.record import BaseEntry, RunRecord
from pmemx.core.stage import Workspace
from pmemx.core.study import Spread, StudiedMethod
from pmemx.metric.claims import Claim, Claims
from pmemx.metric.exact_match import ExactMatch
from pmemx.metric.forgetting_general import ForgettingGeneral
from pmemx.metric.pairs import Pairs
from pmemx.metric.recovery import Recovery
from pmemx.metric.routing import Routing
from pmemx.metric.token_loss import TokenLoss
from pmemx.report.growth import write_growth
from pmemx.report.study import write_study
from pmemx.report.study_charts import frontier
from pmemx.stage.build import build
from pmemx.stage.growth_study import GrowthStudyStage
from pmemx.stage.study import StudyStage, group_of

NASTY = "merge/<b>odd</b> | $x_1$"
RATES = {"base": 0.1, "oracle": 0.9, "arrow": 0.5, "uniform": 0.3, "expert/law": 0.5, NASTY: 0.2, "tracking": 0.8}
GROUPS = {"Baselines": ["base", "oracle", "uniform"], "Merges": ["merge/*"], "Gates": ["arrow"]}
CLAIMS = {
    "A": Claim(statement="arrow > uniform", source="arXiv:2405.11157", comparisons=[["arrow", "uniform"]]),
    "B": Claim(statement="uniform > arrow", source="nowhere", comparisons=[["uniform", "arrow"]]),
    "C": Claim(statement="xlora > arrow", source="arXiv:2402.07148", comparisons=[["xlora", "arrow"]]),
}


def evidence(seed: int, experts: tuple[str, ...], rates: dict[str, float], world: int | None = None) -> Evidence:
    """Twenty documents of one question a domain, drawn by the world; the harder a question, the fewer methods have it right."""
    world = seed if world is None else world
    facts = [
        *(DomainFacts(e, 0.0, "k", e) for e in experts),
        *(DomainFacts(n, 0.0, n, None) for n in ("general", "unknown")),
    ]
    answers = [
        Answer(method, domain, "test", str(k), f"{world}/{k}", "f", exact, 0.5 if exact else 2.5, 2, 1)
        for method, rate in rates.items()
        for domain in (*experts, "general")
        for k in range(20)
        for exact in [(k * 7 + seed) % 20 / 20 < rate]
    ]
    decisions = [
        Decision(
            "arrow",
            fact.name,
            "test",
            str(k),
            f"{world}/{k}",
            tuple(float(c == choice) for c in range(len(experts) + 1)),
        )
        for fact in facts
        for k in range(20)
        for choice in [experts.index(fact.name) + 1 if fact.expert and k % 4 else 0]
    ]
    return Evidence(tuple(facts), experts, tuple(answers), tuple(decisions))


def run(
    folder: Path,
    seed: int = 0,
    *,
    experts: tuple[str, ...] = ("law", "tax"),
    rates: dict[str, float] = RATES,
    experiment: str = "composition/tiny",
    base: str = "f",
    settings: str = "",
    notice: str = "",
    world: int | None = None,
) -> Path:
    folder.mkdir(parents=True)
    evidence(seed, experts, rates, world).write(folder / "evidence.jsonl")
    recovered = {name: (rate - 0.1) / 0.8 for name, rate in rates.items() if name != "base"}
    figures = {
        f"recovery/exact/{name}/all_domains": Figure(r, r - 0.02 * len(experts), r + 0.1)
        for name, r in recovered.items()
    }
    figures |= {"routing/arrow/accuracy/all_domains/test": Figure(0.75, 0.7, 0.8)}
    figures |= {"cost/multiply_adds/arrow": Figure(1.2 + 0.1 * seed), "cost/multiply_adds/tracking": Figure(1.1)}
    figures |= {"cost/parameters/tracking": Figure(1234.0), "cost/seconds/tracking": Figure(2.0 + seed)}
    RunRecord(
        experiment, created=f"2026-01-0{seed + 1}", seeds={"data.seed": 9, "seed": seed}, base=BaseEntry("tiny", base), figures=figures, experiment_digest=settings, notice=notice
    ).write(folder)  # fmt: skip
    return folder


ALL = (Recovery(), ExactMatch(by_form=False), Routing(confusion=False), ForgettingGeneral())


def stage(*metrics: Metric, **settings) -> StudyStage:
    return StudyStage(
        metrics={type(metric).__name__: metric for metric in metrics},
        claims=Claims(claims=CLAIMS),
        write=write_study,
        groups=GROUPS,
        sources={"arrow": "arXiv:2405.11157"},
        limits=("A toy.",),
        **settings,
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    folder: Path = tmp_path_factory.mktemp("study")
    runs = [run(folder / f"seed{seed}", seed) for seed in range(3)]
    return folder, stage(*ALL).run(Workspace(runs[-1]))


def made(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.parent.name.startswith("seed")
    }


def study_of(folder: Path) -> dict:
    return json.loads((folder / "study.json").read_text(encoding="utf-8"))


def method(folder: Path, name: str) -> dict:
    return next(row for row in study_of(folder)["methods"] if row["name"] == name)


def test_it_says_what_it_made(three):
    folder, values = three
    assert values == {
        "seeds": 3.0, "methods": 6.0, "claims/reproduced": 1.0, "claims/not_reproduced": 1.0, "claims/not_testable": 1.0,
    }  # fmt: skip
    assert set(made(folder)) == {
        "index.html", "study.json", "table.md", "figures/recovery.svg", "figures/recovery.png", "figures/cost.svg", "figures/cost.png",
    }  # fmt: skip


def test_figures_of_a_method_by_hand(three):
    folder, _ = three
    arrow, tracking = method(folder, "arrow"), method(folder, "tracking")
    assert arrow["score"]["value"] == pytest.approx(0.5)
    assert arrow["recovery"]["value"] == pytest.approx((0.5 - 0.1) / (0.9 - 0.1))
    assert (arrow["recovery"]["n"], arrow["recovery"]["clusters"]) == (120, 120)
    assert arrow["routing"]["value"] == pytest.approx(0.75) and arrow["unknown"]["value"] == 1.0
    assert arrow["general"]["value"] == pytest.approx(-0.4 * 2 / 2)
    assert arrow["multiply_adds"] == {"mean": pytest.approx(1.3), "least": 1.2, "most": pytest.approx(1.4)}
    assert arrow["by_seed"] == {f"seed {seed}": pytest.approx(0.5) for seed in range(3)}
    assert (tracking["parameters"]["mean"], tracking["seconds"]) == (1234.0, {"mean": 3.0, "least": 2.0, "most": 4.0})
    assert method(folder, "uniform")["multiply_adds"] is None


def test_methods_stand_in_the_order_of_groups_and_the_rest_comes_last(three):
    folder, _ = three
    groups = [(row["group"], row["name"]) for row in study_of(folder)["methods"]]
    assert groups == [
        ("Baselines", "base"), ("Baselines", "oracle"), ("Baselines", "uniform"), ("Merges", NASTY), ("Gates", "arrow"), ("Other", "tracking"),
    ]  # fmt: skip
    assert group_of("merge/ties", GROUPS) == "Merges" and group_of("sum", GROUPS) == "Other"


def test_known_verdicts_reach_the_page_with_their_reasons(three):
    folder, _ = three
    verdicts = {row["claim"]: row for row in study_of(folder)["verdicts"]}
    assert {key: row["outcome"] for key, row in verdicts.items()} == {
        "A": "reproduced", "B": "not reproduced", "C": "not testable",
    }  # fmt: skip
    assert verdicts["C"]["why"] == "xlora was not measured"
    assert study_of(folder)["figures"]["claim/A/arrow/uniform"]["value"] == pytest.approx(0.2)
    page = (folder / "index.html").read_text(encoding="utf-8")
    for kind, outcome in (("yes", "reproduced"), ("no", "not reproduced"), ("open", "not testable")):
        assert f'<span class="{kind}">{outcome}</span>' in page


def test_the_last_seed_to_end_may_be_any_and_a_second_run_changes_no_byte(tmp_path):
    rates = {name: RATES[name] for name in ("base", "oracle", "arrow")}
    for seed in (1, 0):
        run(tmp_path / f"seed{seed}", seed, rates=rates)
    workspace = Workspace(tmp_path / "seed0")
    stage(Recovery()).run(workspace)
    before = made(tmp_path)
    assert "figures/cost.png" in before
    stage(Recovery(), folder=str(tmp_path)).run(Workspace(tmp_path / "seed1"))
    assert made(tmp_path) == before
    # Pooled figures under a run's names would pass for its own.
    assert workspace.ledger.figures == {}


def test_the_page_is_self_contained_and_escaped(three):
    page = (three[0] / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|<iframe", page)
    assert set(re.findall(r'href="(?!#)([^"]+)"', page)) == {
        "https://arxiv.org/abs/2405.11157", "https://arxiv.org/abs/2402.07148",
    }  # fmt: skip
    assert "<b>odd</b>" not in page and "&lt;b&gt;odd&lt;/b&gt;" in page
    assert all(f'id="{key}"' in page for key in ("abstract", "setup", "table", "recovery", "cost", "claims", "limits"))
    assert "A toy." in page and 'class="notice"' not in page


def test_the_table_as_markdown(three):
    lines = (three[0] / "table.md").read_text(encoding="utf-8").split("\n")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 4 + 6
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {11}
    arrow = next(row for row in rows if row.startswith("| **arrow**"))
    assert "**50.0 \\[" in arrow and "| 50.0 | 75.0 | 100.0 | −0.400 | 1.30× (1.20×–1.40×) |" in arrow


def test_one_seed_is_said_plainly_and_what_was_not_measured_is_a_dash(tmp_path):
    stage().run(Workspace(run(tmp_path / "seed4", 4)))
    page, table = ((tmp_path / name).read_text(encoding="utf-8") for name in ("index.html", "table.md"))
    assert "One seed only (seed 4)" in page and "One seed only (seed 4)" in table
    assert "| uniform |  | – | – | – | – | – | – | – |" in table
    assert 'id="recovery"' not in page and list((tmp_path / "figures").iterdir()) == []


def test_a_method_that_a_seed_lacks_is_named_as_left_out(tmp_path):
    run(tmp_path / "seed0", 0)
    last = run(tmp_path / "seed1", 1, rates={name: rate for name, rate in RATES.items() if name != "tracking"})
    stage().run(Workspace(last))
    assert study_of(tmp_path)["dropped"] == ["tracking"]
    assert "Left out, since a seed lacks them: tracking." in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_by_loss_the_score_is_nats(tmp_path):
    folder = run(tmp_path / "seed0", 0, rates={name: RATES[name] for name in ("base", "oracle", "arrow")})
    stage(Recovery(score="loss"), TokenLoss(), score="loss").run(Workspace(folder))
    assert method(tmp_path, "arrow")["score"]["value"] == pytest.approx((10 * 0.5 + 10 * 2.5) / 40)
    assert method(tmp_path, "arrow")["recovery"]["value"] == pytest.approx(0.5)
    assert "nats per token" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 0}, "again and seed0|seed0 and again"),
        ({"seed": 1, "experiment": "composition/else"}, "differ in their experiment"),
        ({"seed": 1, "base": "e"}, "differ in their base model"),
        ({"seed": 1, "experts": ("law", "moss")}, "seed 1 has the experts law, moss"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, other, words):
    folder = run(tmp_path / "seed0", 0)
    run(tmp_path / "again", **other)
    with pytest.raises(DataError, match=words):
        stage().run(Workspace(folder))
    assert not (tmp_path / "study.json").exists()


def test_what_lies_beyond_the_experts_has_a_part_of_its_own(tmp_path):
    folder, names = tmp_path / "seed0", ("law", "tax", "moss", "law+tax", "general", "unknown")
    run(folder)
    facts = [DomainFacts(name, 0.0, "k", name if name in ("law", "tax") else None) for name in names]
    nats = {"base": 3.0, "teacher": 0.5, "arrow": 1.0, "expert/law": 0.8, "expert/tax": 2.5}
    answers = [
        Answer(method, name, "test", str(k), str(k), "f", method == "arrow", said, 1, 0)
        for method, said in nats.items()
        for name in names
        for k in range(4)
    ]
    decisions = [
        Decision("arrow", name, "test", str(k), str(k), (1.0, 0.0, 0.0) if name == "moss" else (0.0, 0.75, 0.25))
        for name in names
        for k in range(4)
    ]
    Evidence(tuple(facts), ("law", "tax"), tuple(answers), tuple(decisions)).write(folder / "evidence.jsonl")
    stage(TokenLoss(), Routing(confusion=False), Pairs()).run(Workspace(folder))
    page, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("index.html", "table.md"))
    assert "Beyond the experts" in page and "## Sent to no expert" in text
    assert "| arrow | 100\u00a0% | 0\u00a0% | 0\u00a0% |" in text
    assert (
        "| the better expert alone | 0.800 |" in text
        and "| 0.500 |" in text
        and "| **arrow** | **1.000** |" not in text
    )
    assert "| arrow | **1.000** |" in text and "| arrow | 0.75 / 0.25 / 0.00 |" in text


def test_without_prompts_beyond_the_experts_there_is_no_such_part(tmp_path, three):
    assert "Beyond the experts" not in (three[0] / "index.html").read_text(encoding="utf-8")
    folder = tmp_path / "seed0"
    run(folder)
    facts = [DomainFacts(name, 0.0, "k", name if name == "law" else None) for name in ("law", "moss", "art", "tea")]
    answers = [
        Answer("base", fact.name, "test", str(k), str(k), "f", False, 1.0, 1, 0) for fact in facts for k in range(4)
    ]
    Evidence(tuple(facts), ("law",), tuple(answers)).write(folder / "evidence.jsonl")
    stage(TokenLoss()).run(Workspace(folder))  # no gate decided anything
    assert "Beyond the experts" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_documents_that_every_seed_asks_about_are_counted_once(three, tmp_path):
    for seed in range(3):
        last = run(tmp_path / f"seed{seed}", seed, world=0)
    stage(*ALL).run(Workspace(last))
    apart, together = method(three[0], "arrow")["recovery"], method(tmp_path, "arrow")["recovery"]
    assert together["value"] == pytest.approx(apart["value"])
    assert (study_of(tmp_path)["questions"], study_of(tmp_path)["clusters"], together["clusters"]) == (120, 40, 40)
    assert "120 held-out questions in 40 independent clusters" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_table_without_unanswerable_prompts_has_no_column_for_them(three, tmp_path):
    last = run(tmp_path / "seed0")
    seen = Evidence.read(last / "evidence.jsonl")
    known = tuple(facts for facts in seen.domains if facts.name != "unknown")
    decisions = tuple(row for row in seen.decisions if row.domain != "unknown")
    replace(seen, domains=known, decisions=decisions).write(last / "evidence.jsonl")
    stage(*ALL).run(Workspace(last))
    for folder, said in ((three[0], True), (tmp_path, False)):
        for page in ("index.html", "table.md"):
            assert ("unknown → none" in (folder / page).read_text(encoding="utf-8")) == said, (folder, page)


def test_seeds_that_ran_with_other_settings_are_pooled_and_the_page_says_so(tmp_path):
    for seed, settings in enumerate(("a", "", "b")):
        last = run(tmp_path / f"seed{seed}", seed, settings=settings)
    stage(*ALL).run(Workspace(last))
    words = "seed 2 ran with other settings than seed 0, beyond the seed"
    assert [line for line in study_of(tmp_path)["limits"] if "settings" in line][0].startswith(words)
    assert words in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_no_evidence_and_no_record_are_refused(tmp_path):
    (tmp_path / "seed0").mkdir()
    with pytest.raises(DataError, match="run the stage evaluate first"):
        stage().run(Workspace(tmp_path / "seed0"))
    evidence(0, ("law",), RATES).write(tmp_path / "seed0" / "evidence.jsonl")
    with pytest.raises(DataError, match=r"no record\.json"):
        stage().run(Workspace(tmp_path / "seed0"))


def test_the_frontier_by_hand():
    points = [(name, cost, Figure(value)) for name, cost, value in
              [("cheap", 1.0, 0.2), ("worse", 1.1, 0.1), ("better", 1.2, 0.5), ("same", 1.3, 0.505), ("best", 2.0, 0.9)]]  # fmt: skip
    found = frontier([(StudiedMethod(name, "g"), cost, figure) for name, cost, figure in points])
    assert [method.name for method in found] == ["cheap", "better", "best"]
    assert Spread.of([]) is None and Spread.of([1.0, 3.0]) == Spread(2.0, 1.0, 3.0)


def test_the_stages_as_configured_fit_and_group_the_whole_catalogue():
    conf = Path(__file__).parents[2] / "conf"
    defaults = OmegaConf.load(conf / "run.yaml").defaults
    assert {"stage@stage.study": "study"} in defaults and {"stage@stage.growth_study": "growth_study"} in defaults
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose(overrides=["+stage@stage.study=study", "+stage@stage.growth_study=growth_study"])
    node = OmegaConf.to_container(config, resolve=True)
    study, growth = build(node["stage"]["study"]), build(node["stage"]["growth_study"])
    assert isinstance(study, StudyStage) and isinstance(growth, GrowthStudyStage)
    assert study.metrics["recovery"] == Recovery() and not study.metrics["routing"].confusion
    methods = [path.stem for path in (conf / "composition").glob("*.yaml")]
    methods += [f"{kind}/{path.stem}" for kind in ("merge", "together") for path in (conf / kind).glob("*.yaml")]
    assert [name for name in methods if group_of(name, study.groups) == "Other"] == []
    assert [name for name in study.sources if name not in methods] == []
    assert growth.groups == study.groups


def growth_stage(**settings) -> GrowthStudyStage:
    return GrowthStudyStage(write=write_growth, groups=GROUPS, **settings)


def test_growth_draws_every_size_that_is_there(tmp_path):
    for size in (4, 2):
        last = run(tmp_path / f"e{size}", experts=tuple(f"d{k}" for k in range(size)))
    (tmp_path / "notes").mkdir()
    assert growth_stage().run(Workspace(last)) == {"sizes": 2.0, "methods": 4.0}
    page = (tmp_path / "growth.html").read_text(encoding="utf-8")
    assert "banks of 2, 4 experts" in page and "&lt;b&gt;odd" in page and "<b>odd" not in page
    assert "With 2 experts tracking is highest, at 87.5\u00a0%; with 4 experts tracking is highest" in page
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"growth_{what}.{kind}" for what in ("recovery", "routing") for kind in ("svg", "png")
    }
    alone = RunRecord.read(tmp_path / "e4").figures["recovery/exact/arrow/all_domains"]
    text = (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert alone.low is not None and f"50.0 \\[{100 * alone.low:.1f}, " in text
    before = page
    growth_stage().run(Workspace(tmp_path / "e2"))
    assert (tmp_path / "growth.html").read_text(encoding="utf-8") == before


def test_growth_takes_a_size_from_the_study_of_its_seeds(tmp_path):
    run(tmp_path / "e2", experts=("d0", "d1"))
    for seed in (0, 1):
        rates = {name: RATES[name] for name in ("base", "oracle", "arrow")}
        last = run(tmp_path / "e3" / f"seed{seed}", seed, experts=("d0", "d1", "d2"), rates=rates)
    stage(Recovery()).run(Workspace(last))
    growth_stage(folder=str(tmp_path)).run(Workspace(last))
    pooled = Figure(**study_of(tmp_path / "e3")["figures"]["recovery/exact/arrow/all_domains"])
    text = (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert pooled.n == 120 and pooled.low is not None and f"50.0 \\[{100 * pooled.low:.1f}, " in text


def test_a_notice_of_a_run_is_that_of_its_study_and_of_its_growth(tmp_path):
    for size in (2, 3):
        for seed in (0, 1):
            experts = tuple(f"d{k}" for k in range(size))
            last = run(tmp_path / f"e{size}" / f"seed{seed}", seed, experts=experts, notice="of <smoke>")
        stage(Recovery()).run(Workspace(last))
    growth_stage(folder=str(tmp_path)).run(Workspace(last))
    for page in (tmp_path / "e3" / "index.html", tmp_path / "growth.html"):
        assert '<p class="notice" role="note">of &lt;smoke&gt;</p>' in page.read_text(encoding="utf-8")
    assert "of <smoke>" in (tmp_path / "e2" / "table.md").read_text(encoding="utf-8")
    assert "of <smoke>" in (tmp_path / "growth.md").read_text(encoding="utf-8")


def test_growth_refuses_two_runs_of_one_size_and_none(tmp_path):
    with pytest.raises(DataError, match="run the stage evaluate first"):
        growth_stage(folder=str(tmp_path)).run(Workspace(tmp_path))
    run(tmp_path / "e2")
    last = run(tmp_path / "e2_again")
    with pytest.raises(DataError, match=r"e2 and e2_again in .* both have 2 experts"):
        growth_stage().run(Workspace(last))


def test_one_size_is_said_plainly(tmp_path):
    growth_stage().run(Workspace(run(tmp_path / "e2")))
    assert "One size only" in (tmp_path / "growth.html").read_text(encoding="utf-8")
