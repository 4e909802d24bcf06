"""Redaction: every field is decided, nothing masked is left, and a mark cannot stand in for the masking."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.canonical import canonical_json
from pmemx.core.card import BlockCard, Sensitivity
from pmemx.core.card_json import card_from, card_values
from pmemx.core.peft_config import rank_and_scale
from pmemx.core.redaction import KEPT, MASKS, is_redacted, redact, redact_message
from tests.exchange.banks import BASE, SECRETS, SIGNS

ORIGINAL = "a" * 64
CARD = BlockCard(
    "law", "contracts", BASE, "owner/tiny", "main", "mit", created="2027-01-01", semantic_type="skill",
    origin="fine_tuned", sensitivity=Sensitivity.CONFIDENTIAL, priority=3, ttl=60.0, half_life=5.0, parents=("p" * 64,),
    metrics={"exact": 0.5}, **SECRETS,
)  # fmt: skip


def test_every_field_of_a_card_is_decided_once() -> None:
    decided = [*KEPT, *MASKS, "base_name", "peft_config"]
    assert sorted(decided) == sorted(item.name for item in fields(BlockCard))


def test_what_a_client_needs_stays_and_what_may_be_secret_goes() -> None:
    after = redact(CARD, ORIGINAL)
    for name in KEPT | {"base_name"}:
        assert getattr(after, name) == getattr(CARD, name)
    assert (after.made_by, after.sources, after.recipe, after.embedding) == ("redacted", (), {}, ())
    masked = ["embedding", "extra", "made_by", "peft_config", "recipe", "sources"]
    assert after.extra == {"redacted": {"original": ORIGINAL, "fields": masked}}
    assert not [sign for sign in SIGNS if sign in canonical_json(after)]


def test_the_peft_config_still_gives_every_site_its_rank_and_scale() -> None:
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True, "rank_pattern": {"up": 7}, "alpha_pattern": {"q": 3},
        "corda_config": {"cache_file": "/secret"}, "an unknown field": "secret",
    }  # fmt: skip
    after = redact(replace(CARD, peft_config=config), ORIGINAL).peft_config
    assert [rank_and_scale(after, site) for site in ("m.up", "m.q")] == [
        rank_and_scale(config, s) for s in ("m.up", "m.q")
    ]
    assert "secret" not in canonical_json(after)


@pytest.mark.parametrize(
    ("called", "left"),
    [
        ("owner/name", "owner/name"),
        ("/home/alice/tiny", "tiny"),
        ("./alice/tiny/", "tiny"),
        ("~/tiny", "tiny"),
        ("C:\\Users\\alice\\tiny", "tiny"),
        ("s3://alice-bucket/tiny", "tiny"),
        ("", ""),
    ],
)
def test_of_a_base_that_is_called_by_a_path_its_last_part_is_left(called: str, left: str) -> None:
    card = redact(replace(CARD, base_name=called, peft_config={"base_model_name_or_path": called}), ORIGINAL)
    assert (card.base_name, card.peft_config["base_model_name_or_path"]) == (left, left)


@settings(deadline=None)
@given(
    st.sampled_from(["", "alice"]), st.lists(st.text(max_size=5)), st.dictionaries(st.text(max_size=3), st.integers())
)
def test_redacting_twice_is_redacting_once_and_survives_json(made_by: str, sources: list[str], recipe: dict) -> None:
    card = replace(CARD, made_by=made_by, sources=tuple(sources), recipe=recipe)
    once = redact(card, ORIGINAL)
    assert is_redacted(once) and not is_redacted(card)
    assert redact(once, "c" * 64) == once
    assert redact(card_from(card_values(once)), "c" * 64) == once


@pytest.mark.parametrize(
    "forged",
    [
        {"made_by": "alice"},
        {"sources": ("mail",)},
        {"peft_config": {"eva_config": {"cache": "secret"}}},
        {"base_name": "/home/alice/tiny"},
        {"extra": {"redacted": {"original": ORIGINAL, "fields": []}, "note": "secret"}},
        {"extra": {"redacted": {"original": ORIGINAL, "fields": ["secret"]}}},
        {"extra": {"redacted": {"original": "secret", "fields": []}}},
        {"extra": {"redacted": {"original": ORIGINAL, "fields": [], "note": "secret"}}},
    ],
)
def test_a_mark_beside_something_unmasked_is_masked_all_the_same(forged: dict) -> None:
    card = replace(redact(CARD, ORIGINAL), **forged)
    assert not is_redacted(card)
    after = canonical_json(redact(card, "d" * 64))
    assert not [sign for sign in ("alice", "mail", "secret") if sign in after]


def test_a_message_is_masked_where_there_is_one() -> None:
    assert (redact_message("why"), redact_message("")) == ("redacted", "")
