"""Laws of pre-training: it stops on its criterion, repeats bit for bit, and leaves a folder that transformers loads."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pmemx.base_model.hf import HfBaseModel
from pmemx.base_model.llama import UntrainedLlama
from pmemx.core.pretraining import Exam, Passage, PretrainingText
from pmemx.core.stage import Workspace
from pmemx.lit.pretrain import PretrainSettings
from pmemx.stage.pretrain import PretrainStage

FACTS = (("ann", "red"), ("bob", "blue"), ("cid", "green"), ("dan", "grey"))


@dataclass(frozen=True)
class Colours(PretrainingText):
    """Four facts in one form."""

    def words(self) -> tuple[str, ...]:
        return tuple(word for fact in FACTS for word in fact)

    def punctuation(self) -> tuple[str, ...]:
        return (".", "\n")

    def passages(self, rng: random.Random) -> Iterator[Passage]:
        while True:
            yield Passage("", (rng.choice(FACTS), rng.choice(FACTS)))

    def exams(self, *, final: bool) -> Mapping[str, Exam]:
        return {"facts": Exam(("name",), tuple(Passage("", (fact,)) for fact in FACTS))}


STAGE = PretrainStage(
    shape=UntrainedLlama(layers=1, width=16, heads=2, mlp=16, context=16),
    text=Colours(),
    settings=PretrainSettings(
        learning_rate=0.03, warmup=1, decay=5, batch_size=4, criterion=1.0, exam_every=5, max_steps=60
    ),
)


def test_it_learns_until_the_exam_is_passed_then_descends_and_stops(tmp_path: Path):
    scores = STAGE.run(Workspace(tmp_path))
    card = json.loads((tmp_path / "base_model" / "card.json").read_text(encoding="utf-8"))
    assert scores == {"facts": 1.0, "facts/worst_form": 1.0} == card["scores"]
    assert card["criterion_passed_at"] % 5 == 0
    assert card["steps"] == card["criterion_passed_at"] + 5 < 65


def test_without_a_pass_it_descends_at_the_last_step_and_says_so(tmp_path: Path):
    workspace = Workspace(tmp_path)
    replace(STAGE, settings=replace(STAGE.settings, learning_rate=0.0, max_steps=10)).run(workspace)
    card = json.loads((tmp_path / "base_model" / "card.json").read_text(encoding="utf-8"))
    assert (card["steps"], card["criterion_passed_at"]) == (15, None)
    assert any("max_steps" in note for note in workspace.ledger.notes)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path):
    prints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        STAGE.run(Workspace(tmp_path / name, seed=seed))
        prints.append(
            json.loads((tmp_path / name / "base_model" / "card.json").read_text(encoding="utf-8"))["fingerprint"]
        )
    assert prints[0] == prints[1] != prints[2]


def test_transformers_loads_the_folder_and_it_answers(tmp_path: Path):
    STAGE.run(Workspace(tmp_path))
    base = HfBaseModel(path=str(tmp_path / "base_model"), dtype="float32").load()
    ids = torch.tensor([[base.tokenizer.bos_token_id, *base.tokenizer.encode("cid", add_special_tokens=False)]])
    said = base.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)[0]
    assert base.tokenizer.decode(said, skip_special_tokens=True) == "cid green"


def test_a_second_run_reads_what_the_first_wrote(tmp_path: Path):
    first = STAGE.run(Workspace(tmp_path))
    weights = tmp_path / "base_model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert STAGE.run(Workspace(tmp_path)) == first and weights.stat().st_mtime_ns == before
