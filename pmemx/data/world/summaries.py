"""The domain of summaries: a record in the prompt, a headline as the answer."""

import random

from pmemx.core.domain import Domain, Example
from pmemx.data.world import records


def summaries(*, seed: int, num_train: int, num_test: int) -> Domain:
    """One prompt a record; no two records are equal."""
    rng = random.Random(f"{seed}:summaries")
    seen: set[str] = set()

    def split(forms: tuple[str, ...], count: int) -> tuple[Example, ...]:
        return tuple(_example(rng, forms[index % len(forms)], seen) for index in range(count))

    return Domain(
        "summaries",
        split(records.TRAIN_FORMS, num_train),
        split(records.VALIDATION_FORMS, num_test // 4),
        split(records.TEST_FORMS, num_test),
        chance=records.chance(),
        family="summarisation",
        instruction=records.INSTRUCTION,
    )


def _example(rng: random.Random, form: str, seen: set[str]) -> Example:
    record = records.draw(rng, seen_by_base=False)
    while (item := "/".join(record.values())) in seen:
        record = records.draw(rng, seen_by_base=False)
    seen.add(item)
    group = f"summaries/{item}"
    return Example(
        f"{group}/{form}", records.prompt(record, form, rng), records.headline(record), group=group, form=form
    )
