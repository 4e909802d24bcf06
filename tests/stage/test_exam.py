"""An exam asks the same questions of every method, and no method twice: what was answered is read, bit for bit."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.base_model.freeze import frozen
from pmemx.base_model.word_tokenizer import word_tokenizer
from pmemx.core.access import Role
from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.domain import Corpus, Domain, DomainSource, Example
from pmemx.core.errors import ConfigError
from pmemx.core.event import Action
from pmemx.core.evidence import Answer, Evidence
from pmemx.core.stage import Workspace
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.uniform import UniformGate
from pmemx.metric.exact_match import ExactMatch
from pmemx.metric.sequential import Sequential
from pmemx.metric.token_loss import TokenLoss
from pmemx.runtime.attach import attached
from pmemx.runtime.cache_check import check_cached_generation
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from pmemx.stage import evaluate as module
from pmemx.stage.bank import note_course
from pmemx.stage.corpus import Rows
from pmemx.stage.evaluate import EvaluateStage
from pmemx.stage.exam import Exam
from pmemx.stage.training import loaded
from pmemx.stage.uncovered import UncoveredPrompts
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.members import Members

WIDTH = 8
WORDS = tuple(f"{name}{number}" for name in ("law", "art", "text", "odd") for number in range(12))
SITE = "model.layers.0.mlp.up_proj"


@dataclass(frozen=True)
class TinyBase(BaseModel):
    """A Llama of random weights."""

    def load(self) -> LoadedBase:
        tokenizer = word_tokenizer(WORDS, ".", context=32)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, **sizes
            )
        )
        return frozen(model, tokenizer, name="tiny", device="cpu")


@dataclass(frozen=True)
class TinyCorpus(DomainSource):
    """Two domains, of which one has documents; general text; and what nobody knows."""

    def load(self) -> Corpus:
        def domain(name: str, document: str = "") -> Domain:
            rows = [Example(f"{name}{i}", f"{name}{i}", f"{name}{11 - i}", document) for i in range(12)]
            return Domain(name, tuple(rows[:5]), (), tuple(rows[5:]))

        return Corpus((domain("law", "law1 law2"), domain("art")), domain("text"), domain("odd"))


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    """The one that stages will load; the check of its cache is no pass of an exam."""
    base = loaded(TinyBase())
    check_cached_generation(base.model)
    return base


def block(base: LoadedBase, name: str) -> CapabilityBlock:
    generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
    factors = LoraFactors(torch.randn(2, WIDTH, generator=generator), torch.randn(12, 2, generator=generator), 1.0)
    return CapabilityBlock(BlockCard(name, name, base.fingerprint), {SITE: factors})


@pytest.fixture
def exam(base) -> Exam:
    return Exam(base, TinyCorpus().load(), ExpertBank([block(base, "law"), block(base, "art")]), reliability_rows=2)


@pytest.fixture
def passes(base):
    """Grows by one for every pass of the model."""
    seen: list[int] = []
    handle = base.model.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def sit_oracle(exam: Exam) -> None:
    gate = OracleGate(exam.bank.shape(WIDTH))
    with attached(exam.base.model, exam.bank, gate=gate, select=TopK()) as routed:
        exam.sit("oracle", routed, train=True, decisions=True)


class TestQuestions:
    def ids(self, exam: Exam, domain: str, split: str = "test") -> list[str]:
        return [row.id for row in exam.answers if row.domain == domain and row.split == split]

    @pytest.mark.parametrize(
        ("questions", "expected"), [(0, range(5, 12)), (1, [5]), (3, [5, 7, 9]), (7, range(5, 12)), (99, range(5, 12))]
    )
    def test_at_most_so_many_of_each_domain_at_even_distances(self, exam, questions, expected):
        """Seven held-out ones; of three asked for, numbers 0, 7 // 3 and 14 // 3."""
        asked = replace(exam, questions=questions, answers=[])
        asked.sit_base()
        for name in ("law", "art", "text"):
            assert self.ids(asked, name) == [f"{name}{number}" for number in expected]

    def test_prompts_of_the_distillation_are_asked_of_domains_with_an_expert(self, exam):
        exam.sit_base()
        assert self.ids(exam, "law", "train") == ["law0", "law2", "law4"]
        assert self.ids(exam, "text", "train") == []

    def test_nobody_is_marked_where_nobody_knows_but_decisions_about_it_count(self, exam):
        sit_oracle(exam)
        assert {row.domain for row in exam.answers} == {"law", "art", "text"}
        weights = {row.domain: row.weights for row in exam.decisions}
        assert weights == {"law": (0, 1, 0), "art": (0, 0, 1), "text": (1, 0, 0), "odd": (1, 0, 0)}

    def test_the_teacher_is_asked_where_there_are_documents(self, exam):
        exam.sit_teacher()
        assert {(row.method, row.domain) for row in exam.answers} == {("teacher", "law")}

    def test_divergence_is_measured_on_general_text_alone_and_none_without_an_expert(self, exam):
        sit_oracle(exam)
        assert {(row.domain, row.kl) for row in exam.answers} == {("text", 0.0), ("law", None), ("art", None)}
        with attached(exam.base.model, exam.bank, weights=[1.0, 1.0]) as routed:
            exam.sit("sum", routed)
        general = [row.kl for row in exam.answers if row.method == "sum" and row.domain == "text"]
        assert len(general) == 7 and all(kl is not None and kl > 1e-3 for kl in general)


class TestOnce:
    def test_what_is_kept_is_read_bit_for_bit_and_nothing_is_scored(self, exam, passes, tmp_path):
        path = tmp_path / "new" / "cell.jsonl"
        exam.once(path, lambda: sit_oracle(exam))
        first, taken = exam.evidence((), {}), len(passes)
        # Four held-out papers, two of the distillation, and general text once more for the reference.
        assert taken == 7 and [file.name for file in path.parent.iterdir()] == ["cell.jsonl"]
        again = replace(exam, answers=[], decisions=[], loads=[])
        again.once(path, lambda: sit_oracle(again))
        assert len(passes) == taken
        assert again.evidence((), {}) == first and first.answers and first.decisions and first.loads

    def test_a_cell_holds_what_its_own_method_said(self, exam, tmp_path):
        exam.sit_base()
        before = len(exam.answers)
        exam.once(tmp_path / "teacher.jsonl", exam.sit_teacher)
        found = Evidence.read(tmp_path / "teacher.jsonl")
        assert found.answers == tuple(exam.answers[before:]) and found.methods == ("teacher",)

    def test_a_method_that_is_interrupted_leaves_no_cell(self, exam, tmp_path):
        path = tmp_path / "cell.jsonl"

        def killed() -> None:
            exam.sit_base()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            exam.once(path, killed)
        assert list(tmp_path.iterdir()) == []

    def test_a_cell_that_was_written_in_part_is_not_read(self, exam, tmp_path, monkeypatch):
        path = tmp_path / "cell.jsonl"

        def full(path: Path, data: bytes) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("pmemx.stage.exam.write_whole", full)
            with pytest.raises(OSError, match="no space"):
                exam.once(path, exam.sit_base)
        assert not path.exists()
        path.with_suffix(".partial").write_text('{"kind": "head", "dom')
        again = replace(exam, answers=[])
        again.once(path, again.sit_base)
        assert Evidence.read(path).answers == tuple(again.answers) == tuple(exam.answers)

    def test_figures_that_are_no_numbers_and_names_of_any_script_come_back(self, exam, tmp_path):
        row = Answer("naïve/é", "law", "test", "1", "g", "", True, float("inf"), 1, 1, kl=1e-300)
        exam.once(tmp_path / "cell.jsonl", lambda: exam.answers.append(row))
        again = replace(exam, answers=[])
        again.once(tmp_path / "cell.jsonl", lambda: pytest.fail("asked again"))
        assert again.answers == [row]


class TestUncovered:
    def test_a_domain_is_asked_while_its_own_expert_is_barred(self, exam):
        """A gate that is sure of the right expert, and next of none: what is asked of law goes to none where law is away."""
        gate, told = OracleGate(exam.bank.shape(WIDTH)), []
        with attached(exam.base.model, exam.bank, gate=gate, select=TopK()) as routed, routed.observed(told.append):
            exam.sit_uncovered("oracle", routed, UncoveredPrompts(lengths=(), questions=3))
        assert [(row.gate, row.domain, row.tokens, row.id, row.abstained) for row in exam.uncovered] == [
            ("oracle", name, 0, f"{name}{number}", True) for name in ("law", "art") for number in (5, 7, 9)
        ]
        assert exam.answers == [] and exam.decisions == []
        # A beginning and a word: the answers are not read.
        assert {observation.attended.shape[1] for observation in told} == {2}

    def test_a_gate_that_never_abstains_sends_them_to_an_expert_that_is_there(self, exam):
        gate = UniformGate(exam.bank.shape(WIDTH))
        with attached(exam.base.model, exam.bank, gate=gate, select=Softmax()) as routed:
            exam.sit_uncovered("uniform", routed, UncoveredPrompts(lengths=(4, 999)))
        assert {(row.domain, row.tokens) for row in exam.uncovered} == {("law", 0), ("art", 0), ("text", 4)}
        assert not any(row.abstained for row in exam.uncovered)

    def test_passages_are_cut_from_held_out_text_at_even_distances_and_begin_anywhere(self, base):
        """Seven rows of two words: fourteen tokens, from which three passages of three are cut, each after the first token."""
        text = TinyCorpus().load().general.test
        words = [word for row in text for word in (row.prompt, row.response)]
        ids = base.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        (length, passages), *others = UncoveredPrompts(lengths=(4, 33), passages=3).of_lengths(base, text)
        own = [(row.ids[1:], group) for group, row in passages]
        assert others == [] and length == 4 and {row.prompt_length for _, row in passages} == {4}
        assert own == [(tuple(ids[start : start + 3]), f"text{5 + start // 2}") for start in (0, 5, 11)]

    def test_a_cell_keeps_them(self, exam, tmp_path):
        def sit() -> None:
            with attached(exam.base.model, exam.bank, gate=OracleGate(exam.bank.shape(WIDTH)), select=TopK()) as routed:
                exam.sit_uncovered("oracle", routed, UncoveredPrompts(lengths=(4,)))

        exam.once(tmp_path / "cell.jsonl", sit)
        again = replace(exam, uncovered=[])
        again.once(tmp_path / "cell.jsonl", lambda: None)
        assert again.uncovered == exam.uncovered and again.uncovered

    @pytest.mark.parametrize("setting", [{"passages": 0}, {"questions": 0}, {"lengths": (16, 1)}])
    def test_settings_that_ask_nothing_are_refused(self, setting):
        with pytest.raises(ConfigError, match=f"stage.evaluate.uncovered.{next(iter(setting))} holds"):
            UncoveredPrompts(**setting)


RECORDED = {
    "metrics": {"exact": ExactMatch(), "loss": TokenLoss(), "growth": Sequential()},
    "recorded": {
        "own_exact": "exact_match/{method}/{domain}/test",
        "own_loss": "token_loss/{method}/{domain}/test",
        "learnt": "sequential/exact/sequential/seen/{phase}",
    },
}


class TestStage:
    METHODS = ("base", "teacher", "oracle", "arrow", "average", "sum", "expert/law", "expert/art")
    # base 6 papers, teacher 2, oracle 6 and the reference, arrow 6, four baselines of 4.
    PASSES = 5 + 2 + 7 + 6 + 12

    @pytest.fixture
    def folder(self, tmp_path, base) -> Path:
        (tmp_path / "run").mkdir()
        store = GovernedStore(tmp_path / "bank")
        made = {name: [store.put(block(base, name)).digest] for name in ("law", "art")}
        (tmp_path / "run" / "blocks.json").write_text(json.dumps({"experts": made}))
        return tmp_path

    def run(self, folder: Path, **settings) -> bytes:
        self.run_in(folder, **settings)
        return (folder / "run" / "evidence.jsonl").read_bytes()

    def run_in(self, folder: Path, **settings) -> Workspace:
        given = {
            "base_model": TinyBase(),
            "data": TinyCorpus(),
            "rows": Rows(),
            "store": GovernedStore(folder / "bank"),
            "gates": {"oracle": OracleGate, "arrow": partial(ArrowGate, granularity="prompt", level="model")},
            "select": TopK(),
            "metrics": {},
            "reliability_rows": 2,
            "cells": str(folder / "cells"),
        }
        workspace = Workspace(folder / "run")
        EvaluateStage(**(given | settings)).run(workspace)
        return workspace

    def cells(self, folder: Path) -> set[str]:
        return {path.name for path in (folder / "cells").iterdir()}

    def test_a_second_run_reads_every_cell_and_scores_nothing(self, folder, passes):
        first = self.run(folder)
        assert len(passes) == self.PASSES and len(self.cells(folder)) == len(self.METHODS)
        assert self.run(folder) == first and len(passes) == self.PASSES
        assert self.run(folder, cells=None) == first and len(passes) == 2 * self.PASSES
        assert Evidence.read(folder / "run" / "evidence.jsonl").methods == self.METHODS

    def test_a_killed_run_goes_on_where_it_was(self, folder, passes, monkeypatch):
        sit = Exam.sit

        def killed(exam: Exam, method: str, *args, **kwargs) -> None:
            sit(exam, method, *args, **kwargs)
            if method == "sum":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Exam, "sit", killed)
            with pytest.raises(KeyboardInterrupt):
                self.run(folder)
        assert len(self.cells(folder)) == 5
        before = len(passes)
        resumed = self.run(folder)
        # The sum and the two experts, and the reference.
        assert len(passes) - before == 3 * 3 + 1
        assert resumed == self.run(folder, cells=None)

    def test_what_changes_the_answers_of_a_method_asks_that_method_anew(self, folder, passes):
        self.run(folder)
        before = self.cells(folder)
        self.run(folder, select=Softmax())
        # Both gates choose by it.
        assert len(self.cells(folder) - before) == 2 and len(passes) == self.PASSES + 7 + 6
        before = self.cells(folder)
        warmer = {"oracle": OracleGate, "arrow": partial(ArrowGate, granularity="prompt", level="site")}
        self.run(folder, gates=warmer)
        assert len(self.cells(folder) - before) == 1

    def test_other_questions_or_another_program_ask_every_method_anew(self, folder, monkeypatch):
        few = {"gates": {"oracle": OracleGate}, "average_and_sum": False, "every_expert": False}
        for change in ({}, {"questions": 3}, {"reliability_rows": 5}, {"rows": Rows(test=4)}):
            before = self.cells(folder) if (folder / "cells").exists() else set()
            self.run(folder, **few, **change)
            assert len(self.cells(folder) - before) == 3, change
        monkeypatch.setattr(module, "source_digest", lambda: "edited")
        before = self.cells(folder)
        self.run(folder, **few)
        assert len(self.cells(folder) - before) == 3

    def test_figures_of_a_version_that_was_asked_alone_are_kept_with_it(self, folder, base):
        store = GovernedStore(folder / "bank")
        phases = [store.put(block(base, name), message=name).digest for name in ("growing", "later")]
        note_course(folder / "run", "sequential", {"sequential": phases})
        note_course(folder / "run", "merge", {"both": [store.put(block(base, "both")).digest]})
        workspace = self.run_in(folder, **RECORDED)
        ledger = workspace.ledger.figures
        for name in ("law", "art"):
            assert store.promotions.of(name) == {
                "own_exact": ledger[f"exact_match/expert/{name}/{name}/test"],
                "own_loss": ledger[f"token_loss/expert/{name}/{name}/test"],
            }
        # Its card names a domain that the corpus does not have: nothing is made up for it.
        assert store.promotions.of("both") == {}
        for number, name in enumerate(("growing", "later"), 1):
            assert store.promotions.of(name) == {"learnt": ledger[f"sequential/exact/sequential/seen/{number}"]}
        entries = Journal(store.bank).entries(action=Action.EVALUATE)
        assert [entry.name for entry in entries] == ["later", "growing", "art", "law"]
        assert all(entry.detail["by"].startswith("pmemx evaluate, questions ") for entry in entries)
        self.run_in(folder, **RECORDED)
        assert len(Journal(store.bank).entries(action=Action.EVALUATE)) == 4, "what is known is not said again"
        self.run_in(folder, **RECORDED, questions=3)
        assert store.promotions.of("law")["own_loss"].n == 3

    def test_whoever_may_only_read_the_bank_evaluates_it_and_is_told_that_it_keeps_nothing(self, folder):
        store = GovernedStore(folder / "bank", principal="root")
        Members(store.bank).enrol("eve", role=Role.READER)
        workspace = self.run_in(folder, **RECORDED, store=replace(store, principal="eve"))
        assert [note.split(": ")[0] for note in workspace.ledger.notes] == [
            "the bank keeps no figures of expert/law",
            "the bank keeps no figures of expert/art",
        ]
        assert "'eve' may not write shared/law" in workspace.ledger.notes[0]
        assert store.promotions.of("law") == {} and "exact_match/expert/law/law/test" in workspace.ledger.figures

    @pytest.mark.parametrize("pattern", ["exact_match/{expert}/test", "exact_match/{}/test", "exact_match/{method"])
    def test_a_pattern_that_names_no_figure_is_refused_before_anything_is_asked(self, folder, pattern):
        with pytest.raises(ConfigError, match=r"stage.evaluate.recorded.own = .* is no name of a figure"):
            self.run(folder, recorded={"own": pattern})
