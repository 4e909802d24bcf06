"""Domains without an expert, from the curriculum to the figures: asked and routed, and never learnt from."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pmemx.adapter.lora import Lora
from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.domain import Domain, Example
from pmemx.core.errors import ConfigError
from pmemx.core.evidence import Evidence
from pmemx.core.stage import Workspace
from pmemx.data.procedural import ProceduralWorld
from pmemx.distill.likelihood import Likelihood
from pmemx.gate.oracle import OracleGate
from pmemx.gate.retrieval import RetrievalGate
from pmemx.gate.sequence import SequenceGate
from pmemx.lit.gate_module import GateLosses
from pmemx.lit.settings import TrainerSettings
from pmemx.metric.exact_match import ExactMatch
from pmemx.metric.pairs import Pairs
from pmemx.metric.routing import Routing
from pmemx.metric.token_loss import TokenLoss
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from pmemx.stage.build import build
from pmemx.stage.corpus import Rows
from pmemx.stage.curriculum import Experts
from pmemx.stage.distill import DistillStage
from pmemx.stage.evaluate import EvaluateStage
from pmemx.stage.train_gate import TrainGateStage
from pmemx.stage.training import loaded
from pmemx.store.governed import GovernedStore


def domains(*names: str) -> list[Domain]:
    rows = (Example("1", "a", "b"),)
    return [Domain(name, rows, (), rows) for name in names]


class TestExperts:
    def test_are_one_a_domain_in_the_order_of_the_corpus(self):
        courses = Experts().courses(domains("law", "tax", "moss"))
        assert [(course.name, len(course.phases), course.rank_factor) for course in courses] == [
            ("law", 1, 1),
            ("tax", 1, 1),
            ("moss", 1, 1),
        ]

    def test_leave_the_named_domains_out_and_all_others_as_they_are(self):
        corpus = domains("law", "tax", "moss", "law+tax")
        chosen = Experts(without=("law+tax", "tax")).courses(corpus)
        assert chosen == tuple(course for course in Experts().courses(corpus) if course.name in ("law", "moss"))

    def test_take_the_names_of_a_config(self):
        node = {"_target_": "pmemx.stage.curriculum.Experts", "without": ["tax"]}
        assert build(node) == Experts(without=("tax",))

    def test_refuse_a_name_that_no_domain_has(self):
        with pytest.raises(ConfigError, match=r"experts\.without names 'botani', which .*; did you mean 'botany'\?"):
            Experts(without=("law", "botani")).courses(domains("law", "botany"))

    def test_refuse_to_leave_every_domain_out(self):
        with pytest.raises(ConfigError, match=r"names every domain \(law, tax\); leave some"):
            Experts(without=("tax", "law")).courses(domains("law", "tax"))


LEFT_OUT = ("rotate", "sort+shift")
GATES = {"retrieval": RetrievalGate, "gate": partial(SequenceGate, filters=8)}


def settings(folder: Path, *, left_out: str = "rotate") -> dict[str, Any]:
    return {
        "base_model": BundledBaseModel(),
        "data": ProceduralWorld(
            domains=("sort", "shift", left_out),
            compounds=("sort+shift",),
        ),
        "rows": Rows(train=10, test=4),
        "store": GovernedStore(folder / "bank"),
    }


def distil(folder: Path, run: Path, **changes: str) -> None:
    """A bank of sort and shift, hardly trained: what matters here is who is asked and taught."""
    left_out = (changes.get("left_out", "rotate"), "sort+shift")
    DistillStage(
        **settings(folder, **changes),
        adapter=Lora(rank=2, alpha=2.0),
        objective=Likelihood(rows="answers"),
        gold_objective=Likelihood(rows="answers"),
        locality=None,
        trainer=TrainerSettings(steps=1, lr=0.01, batch_size=4),
        curricula={"experts": Experts(without=left_out)},
        checkpoints=str(folder / "checkpoints"),
    ).run(Workspace(run))
    TrainGateStage(
        **settings(folder, **changes),
        gates=GATES,
        select=Softmax(),
        losses=GateLosses(language_model=0.0),
        trainer=TrainerSettings(steps=2, lr=0.01, batch_size=4),
        per_domain=2,
        general=2,
        unknown=2,
        checkpoints=str(folder / "checkpoints"),
    ).run(Workspace(run))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with rotate left out, and one with reverse in its place."""
    folder = tmp_path_factory.mktemp("curriculum")
    for name in ("run", "other"):
        (folder / name).mkdir()
    distil(folder, folder / "run")
    distil(folder, folder / "other", left_out="reverse")
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    workspace = Workspace(folder / "run")
    EvaluateStage(
        **settings(folder),
        gates={"oracle": OracleGate, **GATES},
        select=TopK(),
        metrics={"exact": ExactMatch(), "loss": TokenLoss(), "routing": Routing(), "pairs": Pairs()},
        every_expert=False,
        average_and_sum=False,
        reliability_rows=2,
    ).run(workspace)
    return workspace.ledger.figures


def test_the_bank_holds_the_other_domains_alone(folder):
    experts = json.loads((folder / "run" / "blocks.json").read_text())["experts"]
    assert list(experts) == ["sort", "shift"]
    # What else is in the corpus is no part of what an expert is.
    assert experts == json.loads((folder / "other" / "blocks.json").read_text())["experts"]


@pytest.mark.parametrize("name", GATES)
def test_gates_learn_nothing_from_a_domain_without_an_expert(folder, name):
    ours, other = (load_file(folder / run / "gates" / f"{name}.safetensors") for run in ("run", "other"))
    assert ours.keys() == other.keys() and all(torch.equal(ours[key], other[key]) for key in ours)


def test_a_gate_that_is_shown_examples_counts_those_of_experts_and_of_general_text_alone(folder):
    state = load_file(folder / "run" / "gates" / "retrieval.safetensors")
    corpus = settings(folder)["rows"].load(settings(folder)["data"], loaded(BundledBaseModel()))
    shown = sum(bool(example.prompt) for example in corpus.general.train)
    assert state["count"].tolist() == [shown, 10, 10]


def test_what_has_no_expert_is_asked_of_every_method_and_none_is_right_unless_it_takes_two(folder, figures):
    evidence = Evidence.read(folder / "run" / "evidence.jsonl")
    assert {facts.name: facts.expert for facts in evidence.domains} == {
        **{"sort": "sort", "shift": "shift"},
        **dict.fromkeys((*LEFT_OUT, "general", "unknown")),
    }
    for method in ("base", "oracle", "retrieval", "gate"):
        for name in LEFT_OUT:
            assert len(evidence.rows(method, name)) == 4 and not evidence.rows(method, name, "train")
            assert figures[f"exact_match/{method}/{name}/test"].n == 4
    for name in LEFT_OUT:
        for gate in ("retrieval", "gate"):
            shares = [figures[f"routing/{gate}/confusion/{name}/{c}"].value for c in ("no_expert", "sort", "shift")]
            assert sum(shares) == pytest.approx(1.0)
            if "+" in name:  # its prompts take two experts: no one choice is right
                assert f"routing/{gate}/accuracy/{name}/test" not in figures
            else:
                assert figures[f"routing/{gate}/accuracy/{name}/test"].value == shares[0]
                assert figures[f"routing/oracle/accuracy/{name}/test"].value == 1.0
        for base, oracle in zip(evidence.rows("base", name), evidence.rows("oracle", name), strict=True):
            assert oracle.nats == pytest.approx(base.nats, abs=1e-5)


def test_figures_over_all_domains_leave_it_out(figures):
    for gate in ("retrieval", "gate"):
        for prefix, suffix in (("exact_match", "/test"), ("token_loss", "/test")):
            values = [figures[f"{prefix}/{gate}/{name}{suffix}"] for name in ("sort", "shift")]
            whole = figures[f"{prefix}/{gate}/all_domains{suffix}"]
            assert whole.n == 8 and whole.value == pytest.approx(sum(value.value for value in values) / 2)
        values = [figures[f"routing/{gate}/accuracy/{name}/test"].value for name in ("sort", "shift")]
        assert figures[f"routing/{gate}/accuracy/all_domains/test"].value == pytest.approx(sum(values) / 2)
        use = [figures[f"routing/{gate}/utilisation/{choice}"] for choice in ("no_expert", "sort", "shift")]
        assert {figure.n for figure in use} == {8}


def test_a_pair_of_experts_is_weighed_where_their_compound_is_asked(figures):
    names = ("sort", "shift", "others", "no_expert")
    weights = {name: figures[f"pairs/gate/weight/sort+shift/{name}"].value for name in names}
    assert sum(weights.values()) == pytest.approx(1.0) and weights["others"] == 0.0
    # One choice a prompt: never both.
    assert figures["pairs/gate/heaviest/sort+shift"].value == 0.0
    assert "pairs/gate/heaviest/rotate" not in figures
