"""Laws of the procedural world: determinism, disjoint splits, exact answers, known chance."""

import random
import re
from dataclasses import replace
from itertools import chain, permutations

import pytest

from pmemx.core.digest import digest
from pmemx.core.domain import Corpus
from pmemx.core.errors import ConfigError
from pmemx.data.procedural import DOMAINS, ProceduralWorld
from pmemx.data.world import exam, letters, people, phrasing, records
from pmemx.data.world.knowledge import fresh_names
from pmemx.data.world.names import FAMILY, GIVEN, PROPER, TOPICS, entities
from pmemx.data.world.pretraining import Mix
from pmemx.data.world.vocabulary import vocabulary

KNOWLEDGE = [topic.name for topic in TOPICS]
RELATIONS = [*people.RELATIONS, *chain.from_iterable(topic.relations for topic in TOPICS)]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return ProceduralWorld().load()


def names(examples):
    """Entities of examples of knowledge or of unknown prompts, which their groups end with."""
    return {tuple(example.group.split("/")[-2:]) for example in examples}


def test_the_same_settings_give_the_same_bytes_and_another_seed_gives_others():
    small = ProceduralWorld(documents_per_domain=2, unknown_train=50, items_train=20, items_test=8)
    assert digest(list(small.load())) == digest(list(small.load()))
    assert digest(list(small.load())) != digest(list(replace(small, seed=1).load()))


def test_a_domain_does_not_depend_on_its_neighbours(corpus):
    alone = ProceduralWorld(domains=("finance", "sort")).load()
    assert alone.domain("finance") == corpus.domain("finance")
    assert alone.domain("sort") == corpus.domain("sort")


def test_the_default_world_holds_every_family(corpus):
    assert [domain.name for domain in corpus.domains] == list(DOMAINS)
    assert {"law", "finance", "medicine"} < set(KNOWLEDGE) and len(KNOWLEDGE) >= 6
    assert [domain.family for domain in corpus] == (
        ["knowledge"] * 6 + ["summarisation"] + ["skill"] * 4 + ["general", "unknown"]
    )


def test_ids_are_unique_and_splits_share_no_prompt(corpus):
    for domain in corpus:
        splits = (domain.train, domain.validation, domain.test)
        ids = [example.id for split in splits for example in split]
        assert len(ids) == len(set(ids))
        prompts = [{example.prompt for example in split if example.prompt} for split in splits]
        for left, right in permutations(prompts, 2):
            assert not left & right


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_every_document_states_its_facts_and_no_held_out_statement(corpus, name):
    domain = corpus.domain(name)
    assert len(domain.documents) == 8 and len(domain.train) == 8 * 5 * 6 and len(domain.test) == 8 * 5 * 4
    texts = {document.id: (document.text, *document.paraphrases) for document in domain.documents}
    for example in domain.test:
        assert example.document == texts[example.group][0]
        for text in texts[example.group]:
            assert example.response in text
            if example.form == "statement-2":
                assert f"{example.prompt} {example.response}" not in text
    assert all(len(set(renderings)) == 9 for renderings in texts.values())


def test_the_verbatim_control_has_no_paraphrases():
    domain = ProceduralWorld(domains=("law",), paraphrases=0).load().domain("law")
    assert [document.paraphrases for document in domain.documents] == [()] * 8


def test_relations_allow_no_confusion_of_values():
    assert len({value for relation in RELATIONS for value in relation.values}) == 16 * len(RELATIONS)
    for relation in RELATIONS:
        assert len({value.split()[0] for value in relation.values}) == 16
        assert all(1 <= len(value.split()) <= 2 for value in relation.values)
        assert len({phrasing.prompt(relation, "Arden Bank", form) for form in phrasing.FORMS}) == len(phrasing.FORMS)
        assert all("{e}" in wording for wording in (*relation.statements, *relation.questions))


def test_names_are_pairwise_distinct_words():
    kinds = [kind for topic in TOPICS for kind in topic.kinds]
    everything = [*PROPER, *GIVEN, *FAMILY, *kinds]
    assert len(PROPER) == 120 and len(everything) == len(set(everything))


def test_entities_of_experts_are_never_those_of_pretraining(corpus):
    for topic in TOPICS:
        base, experts = entities(topic, seen_by_base=True), entities(topic, seen_by_base=False)
        assert not set(base) & set(experts) and len(base) == len(experts) == 240
        assert {proper for proper, _ in base} == {proper for proper, _ in experts} == set(PROPER)
        assert names(corpus.domain(topic.name).test) <= {(topic.name, " ".join(pair)) for pair in experts}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_document_describes_an_unknown_entity(seed):
    corpus = ProceduralWorld(seed=seed).load()
    known = {pair for domain in corpus.domains if domain.family == "knowledge" for pair in names(domain.train)}
    assert corpus.unknown is not None
    train, validation, test = (
        names(split) for split in (corpus.unknown.train, corpus.unknown.validation, corpus.unknown.test)
    )
    for left, right in permutations((known, train, validation, test), 2):
        assert not left & right
    assert (len(corpus.unknown.train), len(corpus.unknown.test)) == (1500, 200)
    fresh = {pair for pair in test if pair[1].split()[0] in fresh_names(seed)}
    assert len(fresh) / len(test) == 0.25
    assert not {entity.split()[0] for _, entity in known | train | validation} & fresh_names(seed)


def test_general_text_tests_128_facts_that_its_training_never_uses(corpus):
    def facts(split):
        return {
            (person, relation)
            for (person, relation), value in people.FACTS.items()
            for example in split
            if not example.form.startswith("reading")
            and person in f"{example.prompt} {example.response}"
            and value in example.response
        }

    train, test = facts(corpus.general.train), facts(corpus.general.test)
    assert len(train) == len(test) == 128 and not train & test


def test_the_world_holds_256_facts_with_equally_frequent_values():
    assert len(people.PEOPLE) == 32 and len(people.FACTS) == 256
    for relation in people.RELATIONS:
        values = [people.FACTS[person, relation] for person in people.PEOPLE]
        assert all(values.count(value) == 2 for value in relation.values)


def test_skills_by_hand():
    row = ["k", "d", "n", "b"]
    assert {name: "".join(rule(row)) for name, rule in letters.SKILLS.items()} == {
        "reverse": "bndk",
        "shift": "leoc",
        "sort": "bdkn",
        "rotate": "dnbk",
    }


def test_the_chance_of_a_skill_is_the_rate_at_which_a_random_order_is_right():
    rng = random.Random(0)
    hits = 0
    for _ in range(20000):
        row = letters.draw(rng, letters.LENGTHS_OF_SKILLS)
        hits += rng.sample(row, len(row)) == letters.SKILLS["sort"](row)
    assert letters.LENGTHS_OF_SKILLS == (4,) and letters.chance("sort") == 1 / 24
    assert hits / 20000 == pytest.approx(letters.chance("sort"), abs=4e-3)
    assert letters.chance("shift") == pytest.approx(1 / 43680)


@pytest.mark.parametrize("name", letters.SKILLS)
def test_items_of_a_skill_are_disjoint_and_answered_by_its_rule(corpus, name):
    domain = corpus.domain(name)
    groups = [example.group for example in (*domain.train, *domain.validation, *domain.test)]
    assert len(groups) == len(set(groups))
    for example in domain.test:
        row = list(example.group.split("/")[1])
        assert example.response.split() == letters.SKILLS[name](row) and name in example.prompt


def test_a_headline_selects_fields_of_the_record_in_its_prompt(corpus):
    domain = corpus.domain("summaries")
    for example in (*domain.train, *domain.test):
        record = dict(line.split(": ", 1) for line in example.prompt.split("\n\n")[0].split("\n"))
        assert len(record) == 6 and example.response == records.headline(record)
    assert not {example.group for example in domain.train} & {example.group for example in domain.test}
    assert domain.chance < 1e-4


def test_pretraining_shows_facts_of_domains_only_with_their_card_and_no_expert_entity():
    rng = random.Random(3)
    experts = {" ".join(pair) for topic in TOPICS for pair in entities(topic, seen_by_base=False)}
    values = {value for topic in TOPICS for relation in topic.relations for value in relation.values}
    passages = Mix().passages(rng)
    for passage in (next(passages) for _ in range(800)):
        text = " ".join((passage.context, *(part for pair in passage.continuations for part in pair)))
        assert not any(name in text for name in experts)
        if not passage.context:
            assert not any(response in values for _, response in passage.continuations)


def test_pretraining_never_shows_a_skill_of_an_expert():
    passages = Mix(reading=0, world=0, letters=1, records=0).passages(random.Random(0))
    words = {
        word.strip(".,?:")
        for passage in (next(passages) for _ in range(500))
        for prompt, _ in passage.continuations
        for word in prompt.split()
    }
    assert "repeat" in words and not words & set(letters.SKILLS)


def test_pretraining_trains_every_word_of_the_vocabulary():
    passages, missing = Mix().passages(random.Random(0)), set(vocabulary())
    for passage in (next(passages) for _ in range(6000)):
        text = " ".join((passage.context, *(part for pair in passage.continuations for part in pair)))
        missing -= {word.rstrip(".,?:;") for word in text.split()}
    assert not missing


def test_exams_ask_every_card_and_every_fact_in_every_form():
    assert all(len(p.continuations) == len(phrasing.FORMS) for p in exam.reading_exam(0, 4).passages)
    assert len(exam.world_exam().passages) == 256
    for passage in exam.reading_exam(0, 20).passages:
        assert all(response in passage.context for _, response in passage.continuations)


@pytest.mark.parametrize("settings", [{"domains": ("law", "lore")}, {"documents_per_domain": 0}, {"paraphrases": -1}])
def test_a_misfit_is_named_before_any_work(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ProceduralWorld(**settings)


def test_every_form_of_the_world_has_words_that_its_prompts_say():
    world = ProceduralWorld(documents_per_domain=1, items_train=12, items_test=12, unknown_train=12, unknown_test=12)
    told, corpus = world.forms(), world.load()
    asked = {
        (d.family, e.form, e.prompt) for d in corpus.domains for split in (d.train, d.validation, d.test) for e in split
    }
    assert {form for _, form, _ in asked} <= told.keys()
    frames = {form: text for form, text in told.items() if "in words of its own" not in text}
    for family, form, prompt in asked:
        if form in frames:
            sayings = [text.split(": ", 1)[1] for text in frames[form].split(" / ")]
            pieces = [
                [p for p in re.split(r"\((?:skill|row|fact|entity)\)", saying) if p.strip()] for saying in sayings
            ]
            assert any(all(piece in prompt for piece in some) for some in pieces), (family, form, prompt)
    assert told["ask-11"] == "letters: Can you (skill) the letters (row)?"


def test_forms_of_families_that_a_world_has_not_are_left_out():
    assert not [form for form in ProceduralWorld(domains=("law",)).forms() if form.startswith("ask-")]
