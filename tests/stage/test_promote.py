"""The stage of promotion on two trained experts of the bundled base: measured, tagged, refused, or scaled until they fit."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pmemx.adapter.lora import Lora
from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.access import Role
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import AccessDenied, ConfigError
from pmemx.core.event import Action
from pmemx.core.peft_config import rank_and_scale
from pmemx.core.stage import Workspace
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.data.procedural import ProceduralWorld
from pmemx.distill.likelihood import Likelihood
from pmemx.export.peft import PeftExport
from pmemx.lit.settings import TrainerSettings
from pmemx.metric.exact_match import ExactMatch
from pmemx.metric.forgetting_general import ForgettingGeneral
from pmemx.metric.token_loss import TokenLoss
from pmemx.preflight import check
from pmemx.select.top_k import TopK
from pmemx.stage.build import build
from pmemx.stage.corpus import Rows
from pmemx.stage.curriculum import Experts
from pmemx.stage.distill import DistillStage
from pmemx.stage.evaluate import EvaluateStage
from pmemx.stage.fitness import Fitness
from pmemx.stage.promote import PromoteStage, scaled
from pmemx.stage.training import loaded
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.members import Members

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "base_model": BundledBaseModel(),
    "data": ProceduralWorld(
        domains=("sort", "rotate"), items_train=64, items_test=16, narratives=12, readings=12, documents_per_domain=1
    ),
    "rows": Rows(train=64, test=8),
}
# By value: the interval of 8 rows is wide, and what is tested here is the search.
GENTLE = TagPolicy(bounds=(Bound(metric="forgetting_general", at_most=0.05, judged="value"),))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank and a run folder with two experts that learnt a little and, without locality, forgot a little."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run").mkdir()
    DistillStage(
        **SETTINGS,
        store=GovernedStore(folder / "bank"),
        adapter=Lora(rank=8, alpha=8.0),
        objective=Likelihood(rows="answers"),
        gold_objective=Likelihood(rows="answers"),
        locality=None,
        trainer=TrainerSettings(steps=15, lr=0.01, batch_size=16),
        curricula={"experts": Experts()},
        checkpoints=str(folder / "checkpoints"),
    ).run(Workspace(folder / "run"))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of them for one test."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def store(folder: Path) -> GovernedStore:
    return GovernedStore(folder / "bank", principal="root")


def experts(folder: Path) -> dict[str, list[str]]:
    return json.loads((folder / "run" / "blocks.json").read_text())["experts"]


def promote(
    store: GovernedStore, folder: Path, policy: TagPolicy, *, only: Iterable[str] = ("sort",), **settings: Any
) -> tuple[Workspace, dict[str, float]]:
    """Run the stage on some of the experts."""
    kept = {name: experts(folder)[name] for name in only}
    (folder / "run" / "blocks.json").write_text(json.dumps({"experts": kept}))
    workspace = Workspace(folder / "run")
    stage = PromoteStage(**SETTINGS | {"store": store, "policy": policy, "halvings": 4} | settings)
    return workspace, stage.run(workspace)


def fitness() -> Fitness:
    base = loaded(SETTINGS["base_model"])
    return Fitness(base, SETTINGS["rows"].load(SETTINGS["data"], base))


def test_experts_that_fit_take_the_tag_with_their_figures(store, folder):
    workspace, numbers = promote(store, folder, TagPolicy(), only=("sort", "rotate"))
    for name in ("sort", "rotate"):
        figures = store.promotions.of(f"{name}@stable")
        assert set(figures) == {"forgetting_general", "kl_off_domain", "own_domain", "own_domain_exact"}
        for metric, figure in figures.items():
            assert (figure.n, figure.clusters) == (8, 8) and figure.low < figure.value + 1e-9 < figure.high + 2e-9
            assert numbers[f"{name}/{metric}"] == figure.value
            assert workspace.ledger.figures[f"promote/{name}/{metric}"] == figure
        assert figures["own_domain"].low > 1.0 and figures["kl_off_domain"].low > 0.0
        assert figures["own_domain_exact"].floor == pytest.approx(1 / 24)
        assert numbers[f"{name}/factor"] == 1.0
    assert json.loads((folder / "run" / "blocks.json").read_text())["promoted"] == experts(folder)
    assert workspace.ledger.notes == [] and store.verify() == ()


def test_figures_are_those_that_evaluate_gives_an_expert_that_is_always_on(store, folder):
    metrics = {"forgetting": ForgettingGeneral(), "exact": ExactMatch(), "loss": TokenLoss()}
    evaluate = EvaluateStage(
        **SETTINGS, store=store, gates={}, select=TopK(), metrics=metrics, average_and_sum=False, reliability_rows=1
    )
    workspace = Workspace(folder / "run")
    evaluate.run(workspace)
    theirs = workspace.ledger.figures
    for name in ("sort", "rotate"):
        ours = fitness().of(store.get(name), name)
        lost = theirs[f"forgetting_general/loss/expert/{name}"]
        assert ours["forgetting_general"].value == pytest.approx(lost.value, abs=1e-5)
        assert ours["forgetting_general"].high == pytest.approx(lost.high, abs=1e-5)
        assert ours["own_domain_exact"].value == theirs[f"exact_match/expert/{name}/{name}/test"].value
        gain = theirs[f"token_loss/base/{name}/test"].value - theirs[f"token_loss/expert/{name}/{name}/test"].value
        assert ours["own_domain"].value == pytest.approx(gain, abs=1e-5)


def test_the_divergence_off_domain_is_the_mean_over_the_other_domains(store):
    asked = fitness()
    sort, rotate = asked.corpus.domains
    alone = [
        replace(asked, corpus=replace(asked.corpus, domains=pair))
        for pair in ((sort, rotate), (sort, replace(rotate, name="r", test=rotate.test[:4])))
    ]
    parts = [one.of(store.get("sort"), "sort")["kl_off_domain"] for one in alone]
    both = replace(asked.corpus, domains=(sort, rotate, replace(rotate, name="r", test=rotate.test[:4])))
    whole = replace(asked, corpus=both).of(store.get("sort"), "sort")["kl_off_domain"]
    assert whole.value == pytest.approx((parts[0].value + parts[1].value) / 2, rel=1e-6)
    assert (whole.n, whole.clusters) == (12, 12)


def test_what_does_not_fit_is_left_without_the_tag_and_the_notes_tell_why(store, folder):
    workspace, numbers = promote(store, folder, GENTLE)
    assert store.tags("sort") == {} and len(store.history("sort")) == 1
    assert numbers["sort/factor"] == 0.0 and numbers["sort/forgetting_general"] > 0.05
    (note,) = workspace.ledger.notes
    assert note.startswith(
        "version 1 of shared/sort may not take the protected tag 'stable': forgetting_general, at most"
    )
    assert note == Journal(store.bank).entries(action=Action.REFUSED)[0].detail["reason"]
    assert json.loads((folder / "run" / "blocks.json").read_text())["promoted"] == {}


def test_scaling_lowers_forgetting_until_it_fits_and_not_further(store, folder):
    workspace, numbers = promote(store, folder, GENTLE, on_refusal="scale")
    whole, made = store.history("sort")
    factor = numbers["sort/factor"]
    assert 0 < factor < 1 and factor * 16 == int(factor * 16)
    assert store.tags("sort") == {"stable": 2} and f"sort@{made.number}" in workspace.ledger.blocks
    assert made.card.parents == (whole.digest,) and made.card.recipe["scaled_by"] == factor
    before, after = (store.promotions.of(v.digest)["forgetting_general"].value for v in (whole, made))
    assert after <= 0.05 < before and numbers["sort/forgetting_general"] == after
    assert made.card.metrics["forgetting_general"] == after
    more = fitness().of(scaled(store.get("sort@1"), factor + 1 / 16), "sort")["forgetting_general"].value
    assert after < more and more > 0.05, "the next larger factor does not fit"
    old, new = store.get("sort@1"), store.get("sort@2")
    for site, factors in old.factors.items():
        assert torch.equal(new.factors[site].A, factors.A) and torch.equal(new.factors[site].B, factors.B)
        assert new.factors[site].scale == factors.scale * factor
    assert json.loads((folder / "run" / "blocks.json").read_text())["promoted"] == {"sort": [made.digest]}
    (path,) = PeftExport().export([new], folder / "export")
    assert json.loads((path / "adapter_config.json").read_text())["lora_alpha"] == 8.0 * factor
    assert store.verify() == ()


def test_a_second_run_finds_what_the_first_one_scaled(store, folder):
    relative = Bound(metric="own_domain", at_least=-0.1, relative=True)
    policy = TagPolicy(bounds=(*GENTLE.bounds, relative))
    _, first = promote(store, folder, policy, on_refusal="scale")
    _, second = promote(store, folder, policy, on_refusal="scale")
    assert first == second and len(store.history("sort")) == 2 and store.tags("sort") == {"stable": 2}


def test_no_factor_fits_where_the_gain_goes_before_the_harm(store, folder):
    whole = fitness().of(store.get("sort"), "sort")
    gain = Bound(metric="own_domain", at_least=0.9 * whole["own_domain"].value, judged="value")
    harm = Bound(metric="kl_off_domain", at_most=0.1 * whole["kl_off_domain"].value, judged="value")
    workspace, numbers = promote(store, folder, TagPolicy(bounds=(harm, gain)), on_refusal="scale")
    assert numbers["sort/factor"] == 0.0 and store.tags("sort") == {} and len(store.history("sort")) == 1
    last = workspace.ledger.notes[-1]
    assert last.startswith("no factor makes sort fit; the last says kl_off_domain")
    assert last.count("; met") == 1 and last.endswith("broken by its value"), "the harm is gone, and the gain with it"


def test_no_factor_fits_where_even_the_least_one_harms(store, folder):
    harmless = TagPolicy(bounds=(Bound(metric="kl_off_domain", at_most=0.0, judged="value"),))
    workspace, numbers = promote(store, folder, harmless, on_refusal="scale", halvings=2)
    assert numbers["sort/factor"] == 0.0 and store.tags("sort") == {} and len(store.history("sort")) == 1
    assert workspace.ledger.notes[-1].startswith("no factor makes sort fit")


def test_what_the_corpus_cannot_measure_refuses_whatever_the_factor(store, folder):
    off = TagPolicy(bounds=(Bound(metric="kl_off_domain", at_most=100.0),))
    workspace, numbers = promote(store, folder, off, on_refusal="scale", rows=Rows(domains=1, train=64, test=8))
    assert "kl_off_domain" not in {name.split("/")[-1] for name in numbers} and store.tags("sort") == {}
    (note,) = workspace.ledger.notes
    assert "kl_off_domain, at most 100: not measured; record it" in note and len(store.history("sort")) == 1


def test_a_version_that_gains_less_than_the_tagged_one_is_refused(store, folder):
    promote(store, folder, TagPolicy())
    weak = store.put(scaled(store.get("sort"), 0.25))
    (folder / "run" / "blocks.json").write_text(json.dumps({"experts": {"sort": [weak.digest]}}))
    no_worse = TagPolicy(bounds=(Bound(metric="own_domain", at_least=-0.1, relative=True),))
    workspace, numbers = promote(store, folder, no_worse)
    assert store.tags("sort") == {"stable": 1} and numbers["sort/factor"] == 0.0
    replaced, refused = workspace.ledger.notes
    assert replaced == "this run replaced the policy that tag 'stable' had in the bank"
    assert "own_domain, at least -0.1 from the current version" in refused
    evaluated = Journal(store.bank).entries("sort", action=Action.EVALUATE)
    assert [entry.detail["number"] for entry in evaluated] == [1, 2, 1], (
        "the tagged version is asked the same questions"
    )
    assert len({entry.detail["by"] for entry in evaluated}) == 1


def test_a_stricter_policy_rolls_the_tag_back_from_a_version_that_the_run_finds_unfit(store, folder):
    weak = store.put(scaled(store.get("sort"), 1 / 16))
    store.promotions.record(weak.digest, fitness().of(store.get(weak.digest), "sort"))
    store.tag(weak.digest, "stable")
    assert store.rollback("sort", 1).number == 3
    promote(store, folder, TagPolicy())
    assert store.tags("sort") == {"stable": 3}
    workspace, numbers = promote(store, folder, GENTLE)
    assert store.tags("sort") == {"stable": 2} and numbers["sort/factor"] == 0.0
    assert any("an evaluation of version 3 breaks what 'stable' demands" in note for note in workspace.ledger.notes)


def test_the_base_is_bit_equal_afterwards(store, folder):
    model = loaded(SETTINGS["base_model"]).model
    ids = torch.arange(3, 19)[None]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(ids).logits
    promote(store, folder, GENTLE, on_refusal="scale")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_editor_promotes_under_the_policy_of_the_bank_and_cannot_change_it(store, folder):
    store.promotions.protect("stable", TagPolicy())
    members = Members(store.bank)
    members.enrol("root", role=Role.OWNER)
    members.enrol("eve", role=Role.EDITOR, scope="shared")
    eve = replace(store, principal="eve")
    with pytest.raises(AccessDenied, match="'eve' may not administer the bank"):
        promote(eve, folder, GENTLE)
    promote(eve, folder, TagPolicy())
    assert store.tags("sort") == {"stable": 1} and store.promotions.policies() == {"stable": TagPolicy()}


def test_a_search_of_no_steps_is_refused(store):
    with pytest.raises(ConfigError, match=r"stage\.promote\.halvings = 0"):
        PromoteStage(**SETTINGS, store=store, policy=TagPolicy(), halvings=0)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 3, "lora_alpha": 6, "use_rslora": True},
        {"r": 2, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"q_proj": 7, "v_proj": 3}},
    ],
)
@pytest.mark.parametrize("factor", [1 / 2, 3 / 16, 127 / 128])
def test_a_scaled_block_and_its_config_say_the_same(config, factor):
    factors = {
        site: LoraFactors(torch.ones(rank, 3), torch.ones(4, rank), scale)
        for site in ("model.q_proj", "model.v_proj")
        for rank, scale in [rank_and_scale(config, site)]
    }
    made = scaled(CapabilityBlock(BlockCard("a", "a", "b", peft_config=config), factors), factor)
    for site, new in made.factors.items():
        assert rank_and_scale(made.card.peft_config, site) == (new.rank, new.scale)
        assert new.scale == pytest.approx(factors[site].scale * factor, rel=1e-15)
    assert list(made.card.peft_config) == [*config, *(["lora_alpha"] if "lora_alpha" not in config else [])]


def test_a_config_that_says_otherwise_than_the_factors_does_not_survive_scaling():
    factors = {"q_proj": LoraFactors(torch.ones(2, 3), torch.ones(4, 2), 0.7)}
    made = scaled(CapabilityBlock(BlockCard("a", "a", "b", peft_config={"r": 2, "lora_alpha": 2}), factors), 0.5)
    assert made.factors["q_proj"].scale == 0.35 and made.card.peft_config == {}


@pytest.mark.parametrize("policy", sorted(path.stem for path in (ROOT / "conf" / "policy").glob("*.yaml")))
@pytest.mark.parametrize("store", ["embedded", "server"])
def test_every_policy_fits_the_stage(policy, store, monkeypatch):
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))
    monkeypatch.setenv("PMEMX_DATABASE", "postgresql+psycopg://here/bank")
    monkeypatch.setattr(GovernedStore, "check_writable", lambda store: None)  # there is no such server
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = compose(
            "run",
            [
                f"policy={policy}",
                f"store={store}",
                "plan=[distill,promote]",
                "run_folder=x",
                "experiment=x",
                "logger=csv",
            ],
        )
    check(made)
    assert isinstance(build(OmegaConf.to_container(made.policy, resolve=True)), TagPolicy)
