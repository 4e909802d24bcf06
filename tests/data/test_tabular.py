"""The user's own rows: what is read, how it is split, and which error names which line."""

import csv
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.digest import digest
from pmemx.core.domain import Example
from pmemx.core.errors import DataError
from pmemx.data.split import sample, split_groups, split_of
from pmemx.data.tabular import Tabular

FRACTIONS = {"train": 0.6, "validation": 0.1, "test": 0.3}
REAL = Path(os.environ.get("PMEMX_REAL_DATA", Path(__file__).parents[3] / "shared")) / "data"


def rows(number, tag="q"):
    return [{"prompt": f"{tag} {i}?", "response": f"answer {i}"} for i in range(number)]


def write_jsonl(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with general text, into which a test puts its domains."""
    write_jsonl(
        tmp_path / "general.jsonl", [{"text": f"Once upon a time there was cat number {i}."} for i in range(40)]
    )
    return tmp_path


def load(folder, domains, **settings):
    return Tabular(
        root=str(folder), **{"general": "general.jsonl", "split_fractions": FRACTIONS, "domains": domains} | settings
    ).load()


def everything(domain):
    return (*domain.train, *domain.validation, *domain.test)


def pairs(domain):
    return sorted((example.prompt, example.response) for example in everything(domain))


# Splits

KEYS = st.lists(st.text(max_size=8), unique=True, max_size=60)


def by_hash(keys, seed):
    return {key: split_of(key, FRACTIONS, seed) for key in keys}


def divided(keys, seed, **settings):
    return split_groups(dict.fromkeys(keys, FRACTIONS), seed, **settings)


def empty(splits):
    return set(FRACTIONS) - set(splits.values())


def moved(one, other):
    return {key for key in one.keys() & other.keys() if one[key] != other[key]}


@given(keys=KEYS, added=KEYS, seed=st.integers(0, 9))
def test_added_rows_move_no_row_to_another_split_but_those_that_filled_an_empty_one(keys, added, seed):
    if len(keys) < len(FRACTIONS):
        return
    more = [*added, *keys]
    allowed = len(empty(by_hash(keys, seed))) + len(empty(by_hash(more, seed)))
    assert len(moved(divided(keys, seed), divided(more, seed))) <= allowed


@given(keys=KEYS, seed=st.integers(0, 9))
def test_a_split_is_that_of_the_hash_but_for_one_group_of_each_split_that_would_be_empty(keys, seed):
    if len(keys) < len(FRACTIONS):
        return
    found = divided(keys, seed)
    assert found == divided(keys[::-1], seed)
    assert empty(found) == set()
    assert len(moved(by_hash(keys, seed), found)) == len(empty(by_hash(keys, seed)))


def test_splits_by_hash_are_those_of_every_earlier_version():
    splits = "".join(split_of(str(i), FRACTIONS, 0)[0] for i in range(4000))
    assert splits[:20] == "ttvtttttvtttttvttttt"
    assert hashlib.sha256(splits.encode()).hexdigest()[:16] == "2855fcba171f95b5"


def test_the_group_that_an_empty_split_takes_is_the_nearest_by_its_draw():
    keys = [str(i) for i in range(40)]
    trained = [key for key in keys if split_of(key, FRACTIONS, 0) == "train"]
    tested = [key for key in keys if split_of(key, FRACTIONS, 0) == "test"]
    # A share of a half instead of 0.3 for the test reaches the nearest draws of the others first.
    shares = [{"train": 0.6 - step / 1000, "validation": 0.1, "test": 0.3 + step / 1000} for step in range(600)]
    order = dict.fromkeys(key for wider in shares for key in trained if split_of(key, wider, 0) == "test")
    found = split_groups(dict.fromkeys(trained, FRACTIONS), 0, filled=["validation"])
    assert moved(by_hash(trained, 0), found) == {next(iter(order))}
    assert divided([*trained, tested[0]], 0, filled=["validation"]) == by_hash([*trained, tested[0]], 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_few_documents_fill_every_split(folder, seed):
    items = [row | {"document": f"text {i % 12}"} for i, row in enumerate(rows(36))]
    write_jsonl(folder / "law.jsonl", items)
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    domain = load(folder, {"law": "law.jsonl"}, seed=seed, split_fractions=shares).domain("law")
    documents = [{e.document for e in part} for part in (domain.train, domain.validation, domain.test)]
    assert all(documents)
    assert sum(map(len, documents)) == 12


def test_rows_that_are_too_long_do_not_count_as_rows_of_a_split(folder):
    items = [row | {"group": f"g{i}"} for i, row in enumerate(rows(12))]
    tested = {f"g{i}" for i in range(12) if split_of(f"g{i}", FRACTIONS, 0) == "test"}
    assert 0 < len(tested) < 9
    items = [row | {"response": "x" * 500} if row["group"] in tested else row for row in items]
    write_jsonl(folder / "law.jsonl", items)
    domain = load(folder, {"law": "law.jsonl"}, max_characters=100).domain("law")
    assert len(everything(domain)) == 12 - len(tested)
    assert len(domain.test) == 1


def test_files_of_splits_count_as_rows_of_a_split(folder):
    for name in ("train", "test"):
        write_jsonl(folder / "own" / f"{name}.jsonl", [{"text": f"A {name} text of {i} words."} for i in range(3)])
    write_jsonl(folder / "more.jsonl", [{"text": "One text more, of words."}])
    write_jsonl(folder / "law.jsonl", rows(30))
    general = load(folder, {"law": "law.jsonl"}, general=["own", "more.jsonl"]).general
    assert [len(part) for part in (general.train, general.validation, general.test)] == [3, 1, 3]


@pytest.mark.parametrize("seed", range(5))
def test_splits_have_about_their_fractions(seed):
    counts = Counter(split_of(str(i), FRACTIONS, seed) for i in range(4000))
    for split, fraction in FRACTIONS.items():
        # Five standard deviations of a binomial share.
        assert abs(counts[split] / 4000 - fraction) < 5 * (fraction * (1 - fraction) / 4000) ** 0.5


@given(keys=KEYS, count=st.integers(0, 70), seed=st.integers(0, 9))
def test_a_sample_keeps_order_and_does_not_depend_on_it(keys, count, seed):
    drawn = sample(keys, count, seed, str)
    assert len(drawn) == min(count, len(keys))
    assert list(drawn) == [key for key in keys if key in set(drawn)]
    assert set(sample(keys[::-1], count, seed, str)) == set(drawn)


@settings(max_examples=20, deadline=None)
@given(groups=st.lists(st.integers(0, 12), min_size=80, max_size=120), seed=st.integers(0, 99))
def test_no_group_is_in_two_splits(tmp_path_factory, groups, seed):
    folder = tmp_path_factory.mktemp("groups")
    items = [row | {"group": f"g{group}"} for row, group in zip(rows(len(groups)), groups, strict=True)]
    # Neither split that must have rows can be empty: these groups are sure of their place.
    sure = {
        split: next(f"s{i}" for i in range(999) if split_of(f"s{i}", FRACTIONS, seed) == split) for split in FRACTIONS
    }
    items += [row | {"group": group} for row, group in zip(rows(3, "sure"), sure.values(), strict=True)]
    path = str(write_jsonl(folder / "law.jsonl", items))
    domain = load(folder, {"law": path}, general=path, seed=seed).domain("law")
    owners = [{example.group for example in split} for split in (domain.train, domain.validation, domain.test)]
    assert sum(map(len, owners)) == len(set.union(*owners)) == len(set(groups)) + 3
    assert len(everything(domain)) == len(groups) + 3


def test_rows_about_one_document_are_in_one_split_unless_split_by_prompt(folder):
    items = [row | {"document": f"text {i % 40}"} for i, row in enumerate(rows(160))]
    write_jsonl(folder / "law.jsonl", items)

    def shared(split_by):
        domain = load(folder, {"law": "law.jsonl"}, split_by=split_by).domain("law")
        return {e.document for e in domain.train} & {e.document for e in domain.test}

    assert shared("group") == set()
    assert len(shared("prompt")) > 20


def test_the_seed_changes_the_split_and_nothing_else_does(folder):
    write_jsonl(folder / "law.jsonl", rows(60))
    first, again, other = (load(folder, {"law": "law.jsonl"}, seed=seed) for seed in (0, 0, 1))
    assert digest(first) == digest(again) != digest(other)
    assert pairs(first.domain("law")) == pairs(other.domain("law"))


# Formats


def write_csv(path, items, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(items[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(items)


WRITERS = {
    "law.jsonl": write_jsonl,
    "law.json": lambda path, items: path.write_text(json.dumps(items, indent=1), encoding="utf-8"),
    "law.csv": write_csv,
    "law.tsv": lambda path, items: write_csv(path, items, "\t"),
    "law.parquet": lambda path, items: Dataset.from_list(items).to_parquet(str(path)),
    "law": lambda path, items: Dataset.from_list(items).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_examples(folder, name):
    items = [*rows(30), {"prompt": 'quoted "a", b', "response": "two\nlines \u2028 \u00fc 1"}]
    WRITERS[name](folder / name, items)
    domain = load(folder, {"law": name}).domain("law")
    assert pairs(domain) == sorted((item["prompt"], item["response"]) for item in items)


def test_reading_parquet_leaves_no_file_behind(folder, monkeypatch):
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    Dataset.from_list(rows(30)).to_parquet(str(folder / "law.parquet"))
    before = sorted(folder.rglob("*"))
    load(folder, {"law": "law.parquet"})
    assert sorted(folder.rglob("*")) == before


def test_numbers_in_csv_are_text(folder):
    write_csv(folder / "law.csv", [{"prompt": f"{i} + 0 =", "response": f"{i:03}"} for i in range(30)])
    assert ("7 + 0 =", "007") in pairs(load(folder, {"law": "law.csv"}).domain("law"))


def test_columns_can_have_other_names(folder):
    items = [{"q": r["prompt"], "a": r["response"], "ctx": f"d{i}", "key": i} for i, r in enumerate(rows(30))]
    write_jsonl(folder / "law.jsonl", items)
    columns = {"prompt": "q", "response": "a", "document": "ctx", "id": "key"}
    example = next(
        e for e in everything(load(folder, {"law": "law.jsonl"}, columns=columns).domain("law")) if e.id == "3"
    )
    assert (example.prompt, example.response, example.document) == ("q 3?", "answer 3", "d3")


def test_a_role_that_names_itself_may_be_absent(folder):
    write_jsonl(folder / "law.jsonl", rows(30))
    columns = {"prompt": "prompt", "document": "document", "form": "form"}
    assert load(folder, {"law": "law.jsonl"}, columns=columns) == load(folder, {"law": "law.jsonl"})


def test_columns_of_one_domain_override_the_common_ones(folder):
    write_jsonl(folder / "law.jsonl", [{"q": r["prompt"], "response": r["response"]} for r in rows(30)])
    write_jsonl(folder / "tax.jsonl", rows(30))
    corpus = load(folder, {"law": {"path": "law.jsonl", "columns": {"prompt": "q"}}, "tax": "tax.jsonl"})
    assert pairs(corpus.domain("law")) == pairs(corpus.domain("tax"))


# Where rows are


def test_a_folder_holds_one_domain_an_entry(folder):
    write_jsonl(folder / "all" / "tax.jsonl", rows(30))
    write_csv(folder / "all" / "law.csv", rows(30))
    for split, number in (("train", 5), ("dev", 2), ("test", 3)):
        write_jsonl(folder / "all" / "art" / f"{split}.jsonl", rows(number, split))
    (folder / "all" / "README.md").write_text("prose")
    corpus = load(folder, "all")
    assert [domain.name for domain in corpus.domains] == ["art", "law", "tax"]
    art = corpus.domain("art")
    assert [len(split) for split in (art.train, art.validation, art.test)] == [5, 2, 3]
    assert art.test[0] == Example("test-1", "test 0?", "answer 0", group=art.test[0].group)


def test_a_folder_of_split_files_is_one_domain(folder):
    for split in ("train", "test"):
        write_jsonl(folder / "art" / f"{split}.jsonl", rows(5, split))
    assert [domain.name for domain in load(folder, "art").domains] == ["art"]


def test_the_parts_of_an_unsplit_folder_are_one_domain(folder):
    for part in ("a", "b"):
        write_jsonl(folder / "art" / f"{part}.jsonl", rows(20, part))
    assert len(everything(load(folder, {"art": "art"}).domain("art"))) == 40


def test_splits_can_be_files_of_any_name(folder):
    write_jsonl(folder / "old.jsonl", rows(4, "old"))
    write_jsonl(folder / "new.jsonl", rows(3, "new"))
    domain = load(folder, {"law": {"splits": {"train": "old.jsonl", "test": "new.jsonl"}}}).domain("law")
    assert (len(domain.train), len(domain.validation), len(domain.test)) == (4, 0, 3)


def test_a_dataset_by_name_is_read_through_datasets_with_its_own_splits(folder):
    for split in ("train", "test"):
        write_jsonl(folder / "repository" / "data" / f"{split}.jsonl", rows(6, split))
    for where in ({"hub": str(folder / "repository")}, {"path": "repository"}):
        domain = load(folder, {"law": where}).domain("law")
        assert [e.prompt for e in domain.test] == [f"test {i}?" for i in range(6)]


def test_a_saved_dataset_keeps_its_splits(folder):
    splits = {name: Dataset.from_list(rows(4, name)) for name in ("fit", "check", "more")}
    DatasetDict(**splits).save_to_disk(str(folder / "law"))
    domain = load(folder, {"law": {"path": "law", "splits": {"train": "fit", "test": "check"}}}).domain("law")
    assert {e.prompt.split()[0] for e in domain.train} == {"fit"}
    assert {e.prompt.split()[0] for e in domain.test} == {"check"}
    with pytest.raises(DataError, match=r"no split 'nope', but fit, check, more"):
        load(folder, {"law": {"path": "law", "splits": {"train": "fit", "test": "nope"}}})


# What becomes of rows


def test_a_sample_is_the_stated_number_of_rows(folder):
    write_jsonl(folder / "law.jsonl", rows(200))
    domain = load(folder, {"law": "law.jsonl"}, max_rows={"train": 7, "test": 5}).domain("law")
    whole = load(folder, {"law": "law.jsonl"}).domain("law")
    assert (len(domain.train), len(domain.test)) == (7, 5)
    assert domain.validation == whole.validation
    assert set(domain.train) < set(whole.train)


def test_long_rows_are_left_out_before_the_sample_is_drawn(folder):
    items = [row | {"document": "x" * (100 if i % 2 else 1)} for i, row in enumerate(rows(100))]
    for split, part in (("train", items[:60]), ("test", items[60:])):
        write_jsonl(folder / "law" / f"{split}.jsonl", part)
    domain = load(folder, {"law": "law"}, max_characters=60, max_rows={"train": 30}).domain("law")
    assert len(domain.train) == 30
    assert len(domain.test) == 20
    assert {e.document for e in everything(domain)} == {"x"}


def test_a_document_becomes_part_of_the_prompt_where_asked(folder):
    for name in ("law", "tax"):
        write_jsonl(folder / f"{name}.jsonl", [row | {"document": f"d {i}"} for i, row in enumerate(rows(30))])
    corpus = load(folder, {"law": "law.jsonl", "tax": "tax.jsonl"}, document_in_prompt=["law"])
    law, tax = corpus.domain("law"), corpus.domain("tax")
    assert ("d 4\n\nq 4?", "answer 4") in pairs(law)
    assert not law.has_documents
    assert law.documents == ()
    assert ("q 4?", "answer 4") in pairs(tax)
    assert tax.has_documents
    assert {d.text for d in tax.documents} == {e.document for e in tax.train}
    assert [e.group for e in law.test] == [e.group for e in tax.test]


def test_chance_is_the_rate_of_the_most_frequent_training_response(folder):
    answers = {"train": ["yes", "yes", "no"], "test": ["no", "no", "no", "yes"]}
    for split, responses in answers.items():
        items = [{"prompt": f"{split} {i}", "response": response} for i, response in enumerate(responses)]
        write_jsonl(folder / "law" / f"{split}.jsonl", items)
    assert load(folder, {"law": "law"}).domain("law").chance == 0.25


def test_plain_text_is_cut_into_passages_with_a_prompt(folder):
    story = " ".join(f"Word {i} of the story." for i in range(400))
    (folder / "story.txt").write_text(story, encoding="utf-8")
    write_jsonl(folder / "law.jsonl", rows(30))
    general = load(
        folder, {"law": "law.jsonl"}, general="story.txt", general_characters=200, general_prompt_words=5
    ).general
    assert all(len(f"{e.prompt} {e.response}") <= 200 for e in everything(general))
    told = {f"{e.prompt} {e.response}" for e in everything(general)}
    # Prompts of every length from five words to three quarters of the passage, which begins anywhere in a sentence.
    lengths = [(len(e.prompt.split()), len(f"{e.prompt} {e.response}".split())) for e in everything(general)]
    assert all(5 <= prompt <= max(5, 3 * whole / 4) or whole < 7 for prompt, whole in lengths)
    assert len({prompt for prompt, _ in lengths}) > 15
    assert {passage.split()[0] for passage in told} >= {"Word", "of", "the", "story."}
    again = load(folder, {"law": "law.jsonl"}, general="story.txt", general_characters=200, general_prompt_words=5)
    assert again.general == general
    assert sum(map(len, told)) + len(told) - 1 == len(story)
    assert all(part in story for part in told)


def test_passages_of_one_document_of_many_are_in_one_split(folder):
    stories = [" ".join(f"Tale {n} has word {i}." for i in range(40)) for n in range(30)]
    (folder / "tales.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    write_jsonl(folder / "law.jsonl", rows(30))
    general = load(folder, {"law": "law.jsonl"}, general=["tales.txt"], general_characters=150).general
    tales = [{e.group for e in split} for split in (general.train, general.validation, general.test)]
    assert sum(map(len, tales)) == 30
    assert len(everything(general)) > 100


def test_general_text_may_be_prompts_and_responses_of_several_files(folder):
    write_jsonl(folder / "law.jsonl", rows(30))
    write_jsonl(folder / "more.jsonl", rows(30, "more"))
    general = load(folder, {"law": "law.jsonl"}, general=["general.jsonl", "more.jsonl"]).general
    assert len(everything(general)) == 70
    assert ("more 3?", "answer 3") in pairs(general)


def test_negatives_are_passages_of_text_or_prompts_without_a_response(folder):
    write_jsonl(folder / "law.jsonl", rows(30))
    (folder / "other.txt").write_text(" ".join(f"Other {i} text." for i in range(900)), encoding="utf-8")
    write_jsonl(folder / "asked.jsonl", [{"prompt": f"who is {i}?"} for i in range(30)])
    negatives = load(folder, {"law": "law.jsonl"}, negatives=["other.txt", "asked.jsonl"]).negatives
    assert negatives is not None and negatives.name == "negatives"
    prompts = {e.prompt for e in everything(negatives)}
    assert "who is 3?" in prompts and any(prompt.startswith(("Other", "text.")) for prompt in prompts)
    assert load(folder, {"law": "law.jsonl"}).negatives is None


def test_unknown_prompts_need_no_response(folder):
    write_jsonl(folder / "law.jsonl", rows(30))
    write_jsonl(folder / "unknown.jsonl", [{"prompt": f"who is {i}?"} for i in range(30)])
    unknown = load(folder, {"law": "law.jsonl"}, unknown="unknown.jsonl").unknown
    assert unknown is not None
    assert {e.response for e in everything(unknown)} == {""}
    assert unknown.chance == 0.0


# Errors


def refused(folder, domains, **settings):
    with pytest.raises(DataError) as caught:
        load(folder, domains, **settings)
    return str(caught.value)


def test_bad_rows_of_all_files_are_named_with_file_and_line_in_one_message(folder):
    lines = [
        '{"prompt": "a", "response": "b"}',
        "{oops",
        '{"prompt": "a", "response": 3}',
        '{"prompt": " ", "response": "b"}',
    ]
    lines += ['{"prompt": "a"}', "[1]", "", '{"prompt": "\\ud800", "response": "b"}']
    (folder / "law.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tax.jsonl").write_bytes(b'{"prompt": "\xff", "response": "b"}\n')
    (folder / "art.csv").write_text('prompt,response\n"two\nlines",b\nx\n"", y\n', encoding="utf-8")
    message = refused(folder, {"law": "law.jsonl", "tax": "tax.jsonl", "art": "art.csv"})
    for finding in (
        "law.jsonl:2 is not JSON",
        "law.jsonl:3: 'response' must be text, but is int '3'",
        "law.jsonl:4: 'prompt' is empty",
        "law.jsonl:5: 'response' must be text, but is missing",
        "law.jsonl:6 is a JSON list",
        "law.jsonl:8: 'prompt' holds half a surrogate",
        "tax.jsonl:1 is not UTF-8",
        "art.csv:4 has 1 fields, the header 2",
        "art.csv:5: 'prompt' is empty",
    ):
        assert finding in message, finding
    assert "law.jsonl:1" not in message
    assert "law.jsonl:7" not in message


def test_a_missing_column_names_those_there_are_and_the_remedy(folder):
    write_jsonl(folder / "law.jsonl", [{"question": "a", "response": "b"}])
    message = refused(folder, {"law": "law.jsonl"})
    assert "no column 'prompt', but 'question', 'response'" in message
    assert "data.columns.prompt=" in message


def test_a_column_name_that_occurs_nowhere_is_an_error(folder):
    write_jsonl(folder / "law.jsonl", rows(30))
    assert "data.columns.document=contxt" in refused(folder, {"law": "law.jsonl"}, columns={"document": "contxt"})
    where = {"law": {"path": "law.jsonl", "columns": {"group": "grop"}}}
    assert "names 'grop', but the columns are prompt, response" in refused(folder, where)


def test_two_files_of_one_name_are_an_error(folder):
    write_jsonl(folder / "all" / "law.jsonl", rows(30))
    write_csv(folder / "all" / "law.csv", rows(30))
    for domains in ("all", ["all/law.jsonl", "all/law.csv"]):
        message = refused(folder, domains)
        assert "both give a domain 'law'" in message
        assert "law.csv" in message
        assert "rename" in message


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        ("law.jsonl", "", "there are no rows"),
        ("law.csv", "", "there are no rows"),
        ("law.xlsx", "x", "'.xlsx', which cannot be read"),
        ("law.parquet", "x", "not a readable Parquet file"),
        ("law.csv", "prompt,prompt\n", "names a column twice"),
        ("law.csv", 'prompt,response\n"a,b\n', "law.csv:2 breaks the format"),
        ("law.json", "[1]", "item 1 is a JSON value"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder, name, content, finding):
    (folder / name).write_text(content, encoding="utf-8")
    message = refused(folder, {"law": name})
    assert finding in message
    assert "law" in message


@pytest.mark.parametrize(
    ("domains", "finding"),
    [
        ({"law": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ("nowhere", "nowhere does not exist"),
        ({}, "gives no domain"),
        ({"general": "law.jsonl"}, "cannot be named 'general'"),
        ({"law": {"pth": "law.jsonl"}}, "did you mean 'path'?"),
        ({"law": {"columns": {}}}, "give `path`, `hub` or `splits`"),
        ({"law": {"path": "law.jsonl", "hub": "a/b"}}, "give one of the two"),
        ({"law": {"path": "law.jsonl", "splits": {"train": "a.jsonl"}}}, "gives no test"),
        ({"law": {"path": "law.jsonl", "splits": {"train": "a.jsonl", "tset": "b"}}}, "splits has tset"),
        ({"law": {"path": "law.jsonl", "split_fractions": {"train": 1.0}}}, "split_fractions.test is 0"),
        ({"law": {"hub": "nobody/nothing-of-the-kind"}}, "cannot read 'nobody/nothing-of-the-kind'"),
        ({"law": 3}, "data.domains.law is 3"),
    ],
)
def test_a_wrong_place_is_refused_with_its_remedy(folder, domains, finding):
    write_jsonl(folder / "law.jsonl", rows(30))
    assert finding in refused(folder, domains)


@pytest.mark.parametrize(
    ("setting", "finding"),
    [
        ({"general": None}, "forgetting is measured"),
        ({"split_fractions": {"train": 0.5, "test": 0.4}}, "sums to 0.9"),
        ({"split_fractions": {"train": 0.5, "tset": 0.5}}, "names tset"),
        ({"max_rows": {"train": 0}}, "data.max_rows.train is 0"),
        ({"columns": {"promt": "q"}}, "data.columns has promt"),
        ({"columns": {"response": None}}, "data.columns.response is null"),
        ({"max_characters": 0}, "data.max_characters is 0"),
        ({"document_in_prompt": ["lwa"]}, "names 'lwa', but the domains are law"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_remedy(folder, setting, finding):
    write_jsonl(folder / "law.jsonl", rows(30))
    assert finding in refused(folder, {"law": "law.jsonl"}, **setting)


def test_a_question_in_two_splits_is_an_error_or_is_dropped_from_train(folder):
    write_jsonl(folder / "law" / "train.jsonl", rows(5))
    write_jsonl(folder / "law" / "test.jsonl", rows(2))
    message = refused(folder, {"law": "law"})
    assert "2 rows of train ask what test asks" in message
    assert "train.jsonl:1" in message
    assert "test.jsonl:1" in message
    domain = load(folder, {"law": "law"}, on_overlap="drop").domain("law")
    assert (len(domain.train), len(domain.test)) == (3, 2)


def test_an_id_that_repeats_in_a_split_is_an_error_that_numbering_mends(folder):
    for split in ("train", "test"):
        write_jsonl(folder / "law" / f"{split}.jsonl", [row | {"id": "same"} for row in rows(3, split)])
    message = refused(folder, {"law": "law"})
    assert "train.jsonl:2 repeats the id 'same'" in message
    assert "data.columns.id=null" in message
    domain = load(folder, {"law": "law"}, columns={"id": None}).domain("law")
    assert [e.id for e in domain.train] == ["train-1", "train-2", "train-3"]


def test_too_few_groups_for_a_test_split_say_so(folder):
    write_jsonl(folder / "law.jsonl", [row | {"group": "one"} for row in rows(9)])
    message = refused(folder, {"law": "law.jsonl"})
    assert "law: 1 group is too few for train, validation, test" in message
    assert "data.split_by=prompt" in message
    assert len(everything(load(folder, {"law": "law.jsonl"}, split_by="prompt").domain("law"))) == 9


def test_a_share_of_zero_needs_no_row(folder):
    write_jsonl(folder / "law.jsonl", rows(2))
    domain = load(folder, {"law": "law.jsonl"}, split_fractions={"train": 0.8, "test": 0.2}).domain("law")
    assert [len(domain.train), len(domain.validation), len(domain.test)] == [1, 0, 1]


def test_dropped_overlaps_that_leave_no_row_say_so(folder):
    write_jsonl(folder / "law.jsonl", [{"prompt": "same?", "response": "b", "group": str(i)} for i in range(9)])
    assert "no row is left for train" in refused(folder, {"law": "law.jsonl"}, on_overlap="drop")


def test_a_folder_without_a_test_file_asks_for_one(folder):
    for split in ("train", "validation"):
        write_jsonl(folder / "law" / f"{split}.jsonl", rows(5, split))
    assert "has train, validation, but no test" in refused(folder, {"law": "law"})


def test_a_file_of_no_split_beside_files_of_splits_is_not_left_out_in_silence(folder):
    for split in ("train", "test", "extra"):
        write_jsonl(folder / "law" / f"{split}.jsonl", rows(5, split))
    message = refused(folder, {"law": "law"})
    assert "extra.jsonl" in message
    assert "set `splits`" in message


def test_a_long_list_of_bad_rows_is_cut_short(folder):
    write_jsonl(folder / "law.jsonl", [{"prompt": "a", "response": ""}] * 50)
    message = refused(folder, {"law": "law.jsonl"})
    assert "law.jsonl:10: " in message
    assert "law.jsonl:11: " not in message
    assert "and 40 more" in message


# Real rows


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}; set PMEMX_REAL_DATA to its parent folder")
def test_real_rows_load_with_their_own_splits_or_with_splits_by_hash():
    names = sorted(folder.name for folder in (REAL / "domains").iterdir())
    hashed = {name: f"domains/{name}/validation.jsonl" for name in names if name != "encyclopaedic"}
    corpus = Tabular(
        root=str(REAL),
        domains={"encyclopaedic": "domains/encyclopaedic"} | hashed,
        general="general/tinystories_selfgen.jsonl",
        split_fractions=FRACTIONS,
        document_in_prompt=["finance"],
        max_characters=800,
        max_rows={"train": 20, "validation": 5, "test": 10},
    ).load()
    assert {"legal", "finance", "summarisation"} < {domain.name for domain in corpus.domains}
    for domain in corpus.domains:
        assert (len(domain.train), len(domain.validation), len(domain.test)) == (20, 5, 10)
        assert all(len(e.document) + len(e.prompt) + len(e.response) <= 800 for e in everything(domain))
    assert not any(e.document for e in everything(corpus.domain("finance")))
    assert all(e.document for e in everything(corpus.domain("summarisation")))
    assert {e.id.split("-")[1] for e in corpus.domain("encyclopaedic").test} == {"eqa"}
    assert len(corpus.general.test) == 10
