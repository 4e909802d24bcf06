"""Prompts that take two experts: exact answers, known words, and a world that stays as it was without them."""

import re
from itertools import product

import pytest

from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.digest import digest
from pmemx.core.domain import Corpus, Example
from pmemx.core.encoding import encode
from pmemx.core.errors import ConfigError
from pmemx.data.procedural import ProceduralWorld
from pmemx.data.world import letters
from pmemx.data.world.compounds import needs_both
from pmemx.data.world.vocabulary import PUNCTUATION, vocabulary
from pmemx.stage.training import loaded

SMALL = {
    "domains": ("law", "finance", "engineering", *letters.SKILLS),
    "documents_per_domain": 3,
    "items_train": 40,
    "items_test": 24,
    "unknown_train": 20,
    "unknown_test": 8,
    "narratives": 4,
    "readings": 4,
}
TWO_SKILLS = [f"{a}+{b}" for a, b in product(letters.SKILLS, repeat=2) if a != b and needs_both(a, b)]
TWO_TOPICS = ["law+engineering", "finance+law"]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return ProceduralWorld(**SMALL, compounds=(*TWO_SKILLS, *TWO_TOPICS)).load()


def rows(corpus: Corpus, name: str) -> tuple[Example, ...]:
    domain = corpus.domain(name)
    return (*domain.train, *domain.validation, *domain.test)


def test_the_world_without_compounds_is_byte_for_byte_what_it_was_before_there_were_any():
    corpus = ProceduralWorld(**SMALL).load()
    made = digest([corpus.domains, corpus.general, corpus.unknown])
    assert made == "1defc771af275d3bacfa48720849e43a72c706ee212efed549f106e359dbd190"


def test_compounds_come_last_and_leave_every_other_domain_as_it_is(corpus):
    plain = ProceduralWorld(**SMALL).load()
    assert [domain.name for domain in corpus.domains[-len(TWO_SKILLS) - 2 :]] == [*TWO_SKILLS, *TWO_TOPICS]
    assert corpus.domains[: len(plain.domains)] == plain.domains
    assert (corpus.general, corpus.unknown) == (plain.general, plain.unknown)


def test_skills_that_only_sort_differently_ordered_letters_need_one_expert():
    assert set(product(letters.SKILLS, repeat=2)) - {tuple(name.split("+")) for name in TWO_SKILLS} == {
        *((name, name) for name in letters.SKILLS),
        ("reverse", "sort"),
        ("rotate", "sort"),
    }
    assert not needs_both("reverse", "sort") and needs_both("sort", "reverse") and needs_both("shift", "sort")


def test_two_skills_by_hand():
    answers = {
        "reverse+shift": "coel",
        "shift+reverse": "coel",
        "sort+rotate": "dknb",
        "rotate+reverse": "kbnd",
        "sort+reverse": "nkdb",
        "shift+sort": "celo",
    }
    for name, answer in answers.items():
        first, second = name.split("+")
        assert "".join(letters.SKILLS[second](letters.SKILLS[first](list("kdnb")))) == answer


@pytest.mark.parametrize("name", TWO_SKILLS)
def test_two_skills_are_applied_in_their_order_and_neither_alone_is_right(corpus, name):
    first, second = (letters.SKILLS[part] for part in name.split("+"))
    examples = rows(corpus, name)
    assert len(examples) == 40 + 6 + 24 == len({example.group for example in examples})
    for example in examples:
        row = list(example.group.split("/")[1])
        assert f"{', then '.join(name.split('+'))} the letters {' '.join(row)}" in example.prompt
        answer = example.response.split()
        assert answer == second(first(row)) and answer != first(row) and answer != second(row)


@pytest.mark.parametrize("name", TWO_TOPICS)
def test_two_questions_are_those_of_the_two_domains_and_so_are_the_answers(corpus, name):
    domain, (first, second) = corpus.domain(name), (corpus.domain(part) for part in name.split("+"))
    for split in ("train", "validation", "test"):
        known = [{e.id: e for e in getattr(part, split)} for part in (first, second)]
        for example in getattr(domain, split):
            ids = re.fullmatch(rf"{re.escape(name)}/({first.name}/.+)\+({second.name}/.+)", example.id)
            assert ids is not None
            one, other = known[0][ids[1]], known[1][ids[2]]
            assert example.prompt == f"{one.prompt} {other.prompt}" and example.prompt.endswith(("?", "."))
            assert example.response == f"{one.response} {other.response}"
            assert example.document == f"{one.document}\n\n{other.document}"
            assert example.form == one.form == other.form and not example.form.startswith("statement")
    assert domain.chance == first.chance * second.chance


@pytest.mark.parametrize("name", TWO_TOPICS)
def test_an_entity_is_asked_with_one_other_alone_so_that_groups_are_independent(corpus, name):
    pairs = {tuple(example.group.removeprefix(f"{name}/").split("+")) for example in rows(corpus, name)}
    assert len(pairs) == 3
    assert all(len({pair[side] for pair in pairs}) == 3 for side in (0, 1))


def test_one_entity_a_topic_gives_as_many_questions_as_its_facts_and_forms_allow():
    few = {**SMALL, "documents_per_domain": 1, "items_train": 600, "items_test": 100}
    domain = ProceduralWorld(**few, compounds=("law+engineering",)).load().domain("law+engineering")
    # Five facts of each, in four forms that ask in training, one in validation and three in tests.
    assert [len(split) for split in (domain.train, domain.validation, domain.test)] == [100, 25, 75]


def test_shards_of_topics_can_be_joined():
    world = ProceduralWorld(**{**SMALL, "shards": 2}, compounds=("law-1+law-2", "law-2+finance-1"))
    domain = world.load().domain("law-1+law-2")
    assert len(domain.test) == 24 and all(example.group.count("law/") == 2 for example in domain.test)


def test_another_seed_draws_other_prompts(corpus):
    other = ProceduralWorld(**SMALL, seed=1, compounds=(*TWO_SKILLS, *TWO_TOPICS)).load()
    for name in (*TWO_SKILLS, *TWO_TOPICS):
        assert {e.prompt for e in rows(corpus, name)} != {e.prompt for e in rows(other, name)}


def test_ids_are_unique_and_splits_share_no_prompt(corpus):
    for name in (*TWO_SKILLS, *TWO_TOPICS):
        prompts = [example.prompt for example in rows(corpus, name)]
        assert len(prompts) == len(set(prompts)) == len({example.id for example in rows(corpus, name)})


def test_compounds_use_the_words_of_the_world_alone(corpus):
    known = {*vocabulary(), *PUNCTUATION}
    for name in (*TWO_SKILLS, *TWO_TOPICS):
        for example in rows(corpus, name):
            words = re.findall(r"[.,?:;\n]|[^\s.,?:;]+", f"{example.document} {example.prompt} {example.response}")
            assert set(words) <= known, example.prompt


def test_the_bundled_tokenizer_has_a_token_for_every_word_and_its_context_holds_both_documents(corpus):
    base = loaded(BundledBaseModel())
    for name in (*TWO_SKILLS, *TWO_TOPICS):
        for example in corpus.domain(name).test:
            encoded = encode(base.tokenizer, example, with_document=True)
            assert len(encoded.ids) <= base.context
            tokens = base.tokenizer.convert_ids_to_tokens(list(encoded.ids))
            assert base.tokenizer.unk_token not in tokens
            assert not any(token.startswith("<0x") for token in tokens), tokens


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse", "join two skills or two topics"),
        ("law+reverse", "join two skills or two topics"),
        ("sort+sort", "join two skills or two topics"),
        ("reverse+shift+sort", "join two skills or two topics"),
        ("law+botany", "join two skills or two topics .*: reverse, rotate, shift, sort; engineering, finance, law"),
        ("reverse+sort", "'reverse.sort', which 'sort' alone answers"),
    ],
)
def test_what_is_no_compound_of_this_world_is_named_before_any_work(name, message):
    with pytest.raises(ConfigError, match=rf"data\.compounds holds .*{message}"):
        ProceduralWorld(**SMALL, compounds=(name,))
