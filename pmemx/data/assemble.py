"""Placed examples of three splits to one domain, without leaks between the splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from pmemx.core.domain import Document, Domain, Example
from pmemx.data.columns import Placed, fail_on, short_digest
from pmemx.data.split import SPLITS, Split

BySplit = dict[Split, list[Placed]]


def refuse_repeated_ids(splits: BySplit) -> None:
    """Raise DataError with the places of rows of one split that share an id: paired statistics need one row an id."""
    findings = []
    for rows in splits.values():
        first: dict[str, str] = {}
        for row in rows:
            if row.example.id in first:
                findings.append(
                    f"{row.place} repeats the id {row.example.id!r} of {first[row.example.id]}; give each row its own, "
                    f"or set data.columns.id=null to number the rows"
                )
            first.setdefault(row.example.id, row.place)
    fail_on(findings)


def without_overlap(splits: BySplit, *, drop: bool, whole_text: bool) -> BySplit:
    """The splits, where no question of train is in validation or test, and none of validation in test.

    A question is document and prompt; with whole_text, prompt and response, as plain texts may share their first words.
    Raises DataError with the first pair of places when there are such rows and they are not to be dropped.
    """

    def question(row: Placed) -> tuple[str, ...]:
        example = row.example
        return (example.document, example.prompt, *([example.response] if whole_text else []))

    kept, findings = dict(splits), []
    for less, more in combinations(SPLITS, 2):
        places = {question(row): row.place for row in kept[more]}
        shared = [row for row in kept[less] if question(row) in places]
        kept[less] = [row for row in kept[less] if question(row) not in places]
        if shared and not drop:
            findings.append(
                f"{len(shared)} rows of {less} ask what {more} asks (first: {shared[0].place} and "
                f"{places[question(shared[0])]}); remove them, or set data.on_overlap=drop"
            )
    fail_on(findings)
    return kept


def to_domain(name: str, splits: Mapping[Split, Sequence[Example]], *, instruction: str) -> Domain:
    """A domain whose chance is that of always giving the most frequent training response (0 for an empty one).

    Its documents are those of the training rows: a held-out document is for no expert to read.
    """
    train, test = tuple(splits["train"]), tuple(splits["test"])
    usual, _ = Counter(example.response for example in train).most_common(1)[0]
    num_usual = sum(example.response == usual for example in test) if usual else 0
    return Domain(
        name,
        train=train,
        validation=tuple(splits["validation"]),
        test=test,
        documents=tuple(
            Document(short_digest(text), text) for text in dict.fromkeys(e.document for e in train if e.document)
        ),
        chance=num_usual / len(test),
        instruction=instruction,
    )
