from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmemx.core.errors import DataError
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, SiteLoad, UncoveredPrompt
from pmemx.core.metric import Figure
from pmemx.core.record import BaseEntry, BlockEntry, CurvePoint, RunRecord, append_curve, read_curves

number = st.floats(0, 100, allow_nan=False)
text = st.text(min_size=1, max_size=8).filter(lambda s: s.isprintable())
answer = st.builds(
    Answer, text, text, st.sampled_from(["train", "test"]), text, text, text, st.booleans(), number,
    st.integers(1, 9), st.integers(0, 9), st.none() | number,
)  # fmt: skip
weights = st.lists(st.floats(0, 1), min_size=1, max_size=3).map(tuple)


@given(st.lists(answer, max_size=5), weights, text)
def test_evidence_survives_its_file(tmp_path_factory, answers, weight, name):
    evidence = Evidence(
        (DomainFacts(name, 0.25, "knowledge", None),),
        ("a", "b"),
        tuple(answers),
        (Decision("gate", name, "test", "1", "g", weight),),
        (SiteLoad("gate", "model.layers.0", name, weight),),
        (name,),
        (UncoveredPrompt("gate", name, 16, "1", "g", True),),
        {"ask-1": name},
    )
    path: Path = tmp_path_factory.mktemp("evidence") / "evidence.jsonl"
    evidence.write(path)
    assert Evidence.read(path) == evidence


def test_evidence_of_versions_without_words_for_forms_is_read(tmp_path):
    path = tmp_path / "evidence.jsonl"
    path.write_text('{"kind": "head", "domains": [], "experts": ["a"], "sequence": []}\n', encoding="utf-8")
    assert Evidence.read(path) == Evidence((), ("a",), ())


def test_rows_are_found_by_method_domain_and_split():
    rows = tuple(Answer(m, d, s, "1", "g", "f", True, 1.0, 1, 1) for m in "mn" for d in "de" for s in ("train", "test"))
    evidence = Evidence((), (), rows)
    assert evidence.rows("m", "e", "train") == (rows[2],)
    assert evidence.rows("m", "e") == (rows[3],)
    assert evidence.rows("x", "e") == ()
    assert evidence.methods == ("m", "n")


def test_a_record_survives_its_file(tmp_path):
    record = RunRecord(
        "quickstart", "2026-01-01T00:00:00Z", ("distill", "evaluate"), {"distill": 1.5}, "abc", "def", {"data": 0}, {"torch": "2.13"},
        BaseEntry("bundled", "f" * 64), (BlockEntry("law", 2, "d" * 64, "law"),),
        {"a/b": Figure(1.0, None, 2.0, 3, 2, 0.5, None)}, ("a note",),
    )  # fmt: skip
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_may_be_unfinished(tmp_path):
    RunRecord("half").write(tmp_path)
    assert RunRecord.read(tmp_path) == RunRecord("half")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"no record\.json"),
        ("{", "not JSON"),
        ('{"experiment": "x", "colour": 1}', "colour"),
        ("[]", "does not fit"),
    ],
)
def test_an_unusable_record_is_refused_by_name(tmp_path, content, words):
    if content is not None:
        (tmp_path / "record.json").write_text(content)
    with pytest.raises(DataError, match=words):
        RunRecord.read(tmp_path)


def test_a_figure_that_is_not_a_number_cannot_be_recorded(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunRecord("x", figures={"a": Figure(float("nan"))}).write(tmp_path)
    assert not (tmp_path / "record.json").exists()


def test_curves_survive_and_a_torn_last_line_is_dropped(tmp_path):
    points = [CurvePoint("distill", "law", 1, "loss", 0.5), CurvePoint("train_gate", None, 2, "loss", 0.25)]
    assert read_curves(tmp_path) == ()
    append_curve(tmp_path, points[:1])
    append_curve(tmp_path, points[1:])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "dist')
    assert read_curves(tmp_path) == tuple(points)
