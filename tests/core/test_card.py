"""A card says only what it may say, and comes back from JSON as it went in, with what nobody knows yet."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.card import HIGHEST_PRIORITY, LONGEST, BlockCard, Origin, SemanticType, Sensitivity
from pmemx.core.card_json import FIELDS, card_from, card_values
from pmemx.core.errors import ConfigError

# beartype draws the item of a mapping that it checks from the random module, inside a strategy.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

PLAIN = BlockCard("law", "contracts", "b" * 64)

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SECONDS = st.none() | st.floats(0, LONGEST, exclude_min=True) | st.integers(1, int(LONGEST))
CARDS = st.builds(
    BlockCard,
    name=TEXT,
    domain=TEXT,
    base=TEXT,
    base_name=TEXT,
    base_revision=TEXT,
    licence=TEXT,
    made_by=TEXT,
    created=TEXT,
    semantic_type=st.sampled_from(["", *(word.value for word in SemanticType)]),
    origin=st.sampled_from(["", *(word.value for word in Origin)]),
    sources=st.lists(TEXT, max_size=2).map(tuple),
    sensitivity=st.sampled_from([word.value for word in Sensitivity]),
    priority=st.integers(0, HIGHEST_PRIORITY),
    ttl=SECONDS,
    half_life=SECONDS,
    embedding=st.lists(NUMBERS, max_size=3).map(tuple),
    parents=st.lists(TEXT, max_size=2).map(tuple),
    recipe=st.dictionaries(TEXT, JSON, max_size=3),
    metrics=st.dictionaries(TEXT, NUMBERS, max_size=3),
    peft_config=st.dictionaries(TEXT, JSON, max_size=3),
    extra=st.dictionaries(TEXT, JSON, max_size=3).filter(
        lambda extra: "extra" not in extra and not extra.keys() & {*FIELDS}
    ),
)


@given(CARDS)
@settings(max_examples=150, deadline=None)
def test_any_card_comes_back_from_json(card: BlockCard) -> None:
    assert card_from(json.loads(json.dumps(card_values(card)))) == card


def test_the_fields_of_a_card_in_json_are_those_of_the_class_but_extra() -> None:
    assert tuple(item.name for item in fields(BlockCard))[:-1] == FIELDS
    assert card_values(PLAIN).keys() == set(FIELDS)


def test_what_a_newer_pmemx_wrote_survives_at_its_place() -> None:
    newer = card_values(PLAIN) | {"mood": ["calm", {"since": 3}]}
    card = card_from(newer)
    assert card.extra == {"mood": ["calm", {"since": 3}]}
    assert card_values(card) == newer


def test_a_card_of_an_older_pmemx_has_the_defaults_of_what_it_lacks() -> None:
    assert card_from({"name": "law", "domain": "contracts", "base": "b" * 64}) == PLAIN
    assert (PLAIN.sensitivity, PLAIN.priority, PLAIN.ttl, PLAIN.half_life) == ("internal", 0, None, None)
    with pytest.raises(TypeError, match="domain"):
        card_from({"name": "law"})


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("semantic_type", "poem", "fact, preference, task_prompt, domain_knowledge, skill"),
        ("origin", "stolen", "fine_tuned, merged, imported, inference, user_input, retrieval"),
        ("sensitivity", "", "public, internal, confidential, secret"),
        ("sensitivity", "Secret", "public, internal, confidential, secret"),
    ],
)
def test_a_word_that_is_none_is_refused_with_those_that_are(field: str, value: str, known: str) -> None:
    with pytest.raises(ConfigError, match=f"card 'law': {field} is '{value}', but it is one of {known}"):
        replace(PLAIN, **{field: value})


@pytest.mark.parametrize("field", ["ttl", "half_life"])
@pytest.mark.parametrize(
    "seconds", [0.0, -1.0, float("nan"), float("inf"), -float("inf"), -(10**400), 10**400, 1e12, True]
)
def test_a_time_to_live_is_a_positive_number_of_seconds(field: str, seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"card 'law': {field} is .*above 0 and at most 1e\\+11, or None for never"):
        replace(PLAIN, **{field: seconds})
    assert getattr(replace(PLAIN, **{field: 1e-6}), field) == 1e-6


@pytest.mark.parametrize("priority", [-1, 2**31, 10**400, True])
def test_a_priority_is_a_small_number_and_no_truth_value(priority: int) -> None:
    with pytest.raises(ConfigError, match=f"card 'law': priority is {priority}; the least is 0"):
        replace(PLAIN, priority=priority)


@pytest.mark.parametrize("field", ["name", "priority", "extra"])
def test_extra_may_not_hide_a_field(field: str) -> None:
    with pytest.raises(ConfigError, match=f"extra holds '{field}'"):
        replace(PLAIN, extra={field: 1})


WRONG: dict[str, list[Any]] = {
    "recipe": [None, [], "a"],
    "metrics": [[], {"exact": "high"}, {"exact": None}],
    "peft_config": [[], "r=4"],
    "sources": ["one", [1], {"a": 1}, None],
    "parents": ["p" * 64, [None]],
    "embedding": [1.0, ["a"], "abc"],
    "priority": [1.5, "1", None],
    "ttl": ["1", [1]],
    "half_life": [{}, "soon"],
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_refused_by_name(field: str) -> None:
    for value in WRONG.get(field, [None, 1, ["a"], {"a": "b"}]):
        with pytest.raises(ConfigError, match=f"the field '{field}' of a card"):
            card_from(card_values(PLAIN) | {field: value})


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        card_values(replace(PLAIN, recipe={"when": object()}))


def test_a_card_is_read_without_torch() -> None:
    code = "import sys, pmemx.core.card_json; assert not {'torch', 'numpy', 'sqlalchemy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
