"""An answer's provenance: its law, its canonical form, and an id that is the same everywhere and for nothing else."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmemx.core.canonical import digest
from pmemx.core.errors import ConfigError, CorruptBlock
from pmemx.core.provenance import Provenance, Share

LAW, MEDICINE = Share("law", "a" * 64, 0.5), Share("medicine", "b" * 64, 0.25)
ANSWER = Provenance("f" * 64, "e" * 64, '{"k":2}', (LAW, MEDICINE), digest([1, 5, 9]), digest([7, 8]))

weights = st.lists(st.floats(0, 1), min_size=0, max_size=20).map(lambda found: [w / max(1, sum(found)) for w in found])
signed = st.lists(st.floats(-3, 3), max_size=6)


def of(given_weights: list[float]) -> Provenance:
    shares = tuple(Share(f"expert-{n}", f"{n:064x}", weight) for n, weight in enumerate(given_weights))
    return replace(ANSWER, shares=shares)


@given(weights)
def test_weights_and_no_expert_sum_to_one(given_weights):
    provenance = of(given_weights)
    rounding = 0.5e-6 * len(given_weights) + 1e-9
    assert sum(share.weight for share in provenance.shares) + provenance.nothing == pytest.approx(1, abs=rounding)
    assert provenance.nothing >= 0


@given(signed)
def test_json_brings_back_the_same_provenance_and_id(given_weights):
    provenance = of(given_weights)
    back = Provenance.from_json(provenance.to_json())
    assert back == provenance and back.id == provenance.id and back.to_json() == provenance.to_json()


def test_nothing_by_hand():
    assert ANSWER.nothing == 0.25
    assert replace(ANSWER, shares=()).nothing == 1.0
    assert replace(ANSWER, shares=(replace(LAW, weight=1.5),)).nothing == 0.0
    assert replace(ANSWER, shares=(replace(LAW, weight=1.0), replace(MEDICINE, weight=-0.5))).nothing == 0.5


def test_order_rounding_and_weightless_shares_do_not_change_what_it_is():
    weightless = Share("poetry", "c" * 64, 1e-8)
    other = replace(ANSWER, shares=(MEDICINE, replace(LAW, weight=0.5 + 1e-9), weightless))
    assert other == ANSWER and other.id == ANSWER.id
    assert (
        replace(ANSWER, shares=(Share("law", "a" * 64, 1),)).id
        == replace(ANSWER, shares=(replace(LAW, weight=1.0),)).id
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"base": "0" * 64},
        {"gate": "oracle"},
        {"selection": ""},
        {"prompt": digest([1, 5, 8])},
        {"answer": digest([7, 8, 8])},
        {"shares": (LAW,)},
        {"shares": (replace(LAW, version="c" * 64), MEDICINE)},
        {"shares": (replace(LAW, weight=0.500001), MEDICINE)},
        {"shares": (replace(LAW, block="team:legal/law"), MEDICINE)},
    ],
)
def test_whatever_produced_another_answer_has_another_id(changed):
    assert replace(ANSWER, **changed).id != ANSWER.id


def test_an_id_is_the_same_in_every_process():
    script = "import sys; from pmemx.core.provenance import Provenance; print(Provenance.from_json(sys.argv[1]).id, 'torch' in sys.modules)"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script, ANSWER.to_json()],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [ANSWER.id, "False"]


def test_the_id_of_a_known_provenance_never_changes():
    assert ANSWER.id == "353db086687545bbc393fc6d854d99e30ef734bb18f131e012c88bfd714a4803"


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(ConfigError, match=f"block 'law' has the weight {weight} in an answer; it must be finite"):
        replace(ANSWER, shares=(replace(LAW, weight=weight),))


def test_a_share_without_a_version_or_with_two_is_refused():
    with pytest.raises(ConfigError, match="block 'law' has a share in an answer, but no version; give its digest"):
        replace(ANSWER, shares=(replace(LAW, version=""),))
    with pytest.raises(ConfigError, match="block 'law' has two shares in one answer; add them up"):
        replace(ANSWER, shares=(LAW, replace(LAW, version="d" * 64)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        ANSWER.to_json()[:-2],
        json.dumps(ANSWER.values() | {"nothing": 0.5}),
        json.dumps(ANSWER.values() | {"more": 1}),
        json.dumps(ANSWER.values() | {"base": 5}),
        json.dumps(ANSWER.values() | {"shares": [{"block": "law", "version": "a", "weight": "heavy"}]}),
        json.dumps(ANSWER.values() | {"shares": [{"block": "law", "version": "a", "weight": math.nan}]}),
        json.dumps(ANSWER.values() | {"shares": [{"block": "law", "version": "a", "weight": 10**400}]}),
        json.dumps(ANSWER.values() | {"shares": [{"block": "law", "version": "", "weight": 1.0}]}),
    ],
)
def test_text_that_is_no_provenance_is_refused(text):
    with pytest.raises(CorruptBlock, match="is no provenance"):
        Provenance.from_json(text)
