"""Two cards differ exactly where they differ, under paths that name one field each, and in JSON."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmemx.core.card import BlockCard
from pmemx.core.card_diff import Change, card_changes, score_changes

CARD = BlockCard("law", "law", "ba5e", licence="MIT", recipe={"lr": 1e-3, "optimizer": {"name": "adam"}})
leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["", "a", "nan"])
keys = st.text("ab.\"'é", max_size=3)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3))
recipes = st.dictionaries(keys, trees, max_size=4)


def with_recipe(**recipe) -> BlockCard:
    return replace(CARD, recipe=recipe)


def test_by_hand():
    after = replace(
        CARD,
        licence="Apache-2.0",
        ttl=60.0,
        parents=("a1",),
        recipe={"lr": 1e-3, "optimizer": {"name": "sgd"}, "seed": 7},
        extra={"note": "x"},
    )
    assert card_changes(CARD, after) == {
        "licence": Change("MIT", "Apache-2.0", "changed"),
        "ttl": Change(None, 60.0, "changed"),
        "parents": Change([], ["a1"], "changed"),
        "recipe.optimizer.name": Change("adam", "sgd", "changed"),
        "recipe.seed": Change(None, 7, "added"),
        "extra.note": Change(None, "x", "added"),
    }


def test_a_null_is_not_an_absent_value():
    assert card_changes(with_recipe(seed=None), with_recipe()) == {"recipe.seed": Change(None, None, "removed")}
    assert card_changes(with_recipe(seed=None), with_recipe(seed=1)) == {"recipe.seed": Change(None, 1, "changed")}


def test_a_mapping_against_something_else_is_one_change():
    assert card_changes(with_recipe(data={"rows": 3}), with_recipe(data="all")) == {
        "recipe.data": Change({"rows": 3}, "all", "changed")
    }


def test_a_mapping_that_comes_or_goes_is_told_entry_by_entry_unless_it_is_empty():
    full, empty = with_recipe(data={"rows": {"first": 1}, "shuffle": True}), with_recipe(data={})
    entries = {"recipe.data.rows.first": Change(None, 1, "added"), "recipe.data.shuffle": Change(None, True, "added")}
    assert card_changes(with_recipe(), full) == card_changes(empty, full) == entries
    assert card_changes(with_recipe(), empty) == {"recipe.data": Change(None, {}, "added")}


def test_keys_with_dots_share_no_path():
    dotted = with_recipe(**{"a.b": 1, "a": {"b": 2}, 'a."b': 3, "": 4})
    assert {path: change.after for path, change in card_changes(with_recipe(), dotted).items()} == {
        'recipe."a.b"': 1,
        "recipe.a.b": 2,
        'recipe."a.\\"b"': 3,
        'recipe.""': 4,
    }


@pytest.mark.parametrize(("one", "other"), [(1, True), (0, False), (1, 1.0), ("1", 1), (0.0, -0.0), ([1], [1, 1])])
def test_values_of_other_bytes_differ(one, other):
    assert card_changes(with_recipe(x=one), with_recipe(x=other)).keys() == {"recipe.x"}


@pytest.mark.parametrize(
    ("one", "other"), [((1, 2), [1, 2]), (math.nan, math.nan), ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
)
def test_values_of_equal_bytes_do_not(one, other):
    assert card_changes(with_recipe(x=one), with_recipe(x=other)) == {}


def test_only_in_the_peft_config_the_order_of_keys_is_a_change():
    one, other = {"up": 4, "up_proj": 8}, {"up_proj": 8, "up": 4}
    before, after = (replace(CARD, peft_config={"r": 2, "rank_pattern": pattern}) for pattern in (one, other))
    changes = card_changes(before, after)
    assert changes == {"peft_config.rank_pattern": Change(one, other, "changed")}
    assert json.dumps(changes["peft_config.rank_pattern"].after) == '{"up_proj": 8, "up": 4}'
    assert card_changes(with_recipe(pattern=one), with_recipe(pattern=other)) == {}


def test_a_reordered_config_tells_its_other_changes_too():
    before = replace(CARD, peft_config={"rank_pattern": {"up": 4, "down": 2, "gate": 1}})
    after = replace(CARD, peft_config={"rank_pattern": {"down": 3, "up": 4}})
    assert card_changes(before, after).keys() == {
        "peft_config.rank_pattern",
        "peft_config.rank_pattern.down",
        "peft_config.rank_pattern.gate",
    }


def test_scores_tell_how_much_they_grew():
    before = replace(CARD, metrics={"exact": 0.25, "f1": 0.5, "lost": 1.0, "at.5": 3.0})
    after = replace(CARD, metrics={"exact": 0.75, "f1": 0.5, "new": 2.0, "at.5": 1.0})
    scores = score_changes(before, after)
    assert scores == {
        "exact": Change(0.25, 0.75, "changed"),
        "lost": Change(1.0, None, "removed"),
        "at.5": Change(3.0, 1.0, "changed"),
        "new": Change(None, 2.0, "added"),
    }
    assert [change.delta for change in scores.values()] == [0.5, None, -2.0, None]
    assert card_changes(before, after) == {
        "metrics.exact": scores["exact"],
        "metrics.lost": scores["lost"],
        'metrics."at.5"': scores["at.5"],
        "metrics.new": scores["new"],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "2"])
def test_only_finite_numbers_have_a_delta(value):
    assert Change(value, 1.0, "changed").delta is None and Change(1.0, value, "changed").delta is None


def test_json_has_no_nan():
    change = Change({"a": [math.nan, 1.5]}, -math.inf, "changed")
    assert change.to_json() == {"kind": "changed", "before": {"a": ["nan", 1.5]}, "after": "-inf"}


def test_what_is_no_json_type_is_refused():
    with pytest.raises(TypeError, match="canonical form"):
        card_changes(CARD, with_recipe(x=object()))


@given(recipes)
def test_a_card_differs_from_itself_in_nothing(recipe):
    card = replace(CARD, recipe=recipe, peft_config=recipe)
    assert card_changes(card, card) == {}


@given(recipes, recipes)
def test_the_way_back_mirrors_every_change(one, other):
    before, after = with_recipe(**one), with_recipe(**other)
    forth, back = card_changes(before, after), card_changes(after, before)
    mirror = {"added": "removed", "removed": "added", "changed": "changed"}
    turned = {path: (change.after, change.before, mirror[change.kind]) for path, change in forth.items()}
    assert {path: (change.before, change.after, change.kind) for path, change in back.items()} == turned
    assert bool(forth) == (json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True))


@given(recipes)
def test_changes_survive_json(recipe):
    told = {path: change.to_json() for path, change in card_changes(with_recipe(), with_recipe(**recipe)).items()}
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_needs_no_torch():
    code = (
        "import sys, pmemx.core.card_diff; "
        "assert not {'torch', 'safetensors', 'peft', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
