"""The README of a Hub repository with blocks: front matter that the Hub reads, and what a person asks first."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from pmemx.core.card import Version
from pmemx.core.metric import Figure
from pmemx.core.redaction import REDACTED, is_redacted

# Licences by the names that the Hub knows; any other stands in the table alone.
_LICENCES = frozenset(
    (
        "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-4.0",
        "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "ecl-2.0",
        "epl-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "llama2",
        "llama3", "llama3.1", "llama3.2", "llama3.3", "mit", "mpl-2.0", "odbl", "openrail", "unlicense", "wtfpl", "zlib",
    )
)  # fmt: skip
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~!#])")


@dataclass(frozen=True)
class Shown:
    """One block as the README shows it. history: its versions, oldest first. folder: of its PEFT form, in the repository."""

    reference: str
    history: tuple[Version, ...]
    tags: Mapping[str, int]
    scores: Mapping[str, Figure]
    keys: tuple[str, ...]
    rank: int
    size: int
    folder: str


def model_card(shown: Sequence[Shown], repo_id: str, origin: str) -> ModelCard:
    """The README. origin: the bank that the blocks are from, by its id."""
    text = "\n\n".join(
        (
            "# Capability blocks",
            f"{len(shown)} LoRA experts from a [pmemx](https://pypi.org/project/pmemx/) bank, with their whole history.",
            _blocks(shown),
            "## Use",
            _USE.format(repo_id=repo_id, folder=shown[0].folder),
            "## Scores",
            _scores(shown),
            "## Provenance",
            _provenance(shown, origin),
        )
    )
    return ModelCard(f"---\n{_front(shown).to_yaml()}\n---\n\n{text}\n")


_USE = """With PEFT, which needs nothing else:

```python
model = PeftModel.from_pretrained(base_model, "{repo_id}", subfolder="{folder}")
```

With pmemx, which takes the history, the scores and the tags as well, and checks every byte:

```bash
pmemx bank pull hub:{repo_id}
```

`sha256sum -c SHA256SUMS` checks a download without either."""


def _front(shown: Sequence[Shown]) -> ModelCardData:
    cards = [one.history[-1].card for one in shown]
    bases = sorted({card.base_name for card in cards if _HUB_NAME.fullmatch(card.base_name)})
    licences = sorted({card.licence for card in cards})
    known = licences[0].lower() if len(licences) == 1 else ""
    named = known in _LICENCES
    return ModelCardData(
        base_model=bases or None,
        library_name="peft",
        license=known if named else "other" if any(licences) else None,
        license_name=None if named or not any(licences) else "see-the-table-of-blocks",
        tags=["pmemx", "lora", *sorted({card.semantic_type for card in cards} - {""})],
    )


def _blocks(shown: Sequence[Shown]) -> str:
    rows = []
    for one in shown:
        version, card = one.history[-1], one.history[-1].card
        tags = ", ".join(f"{tag} → {number}" for tag, number in sorted(one.tags.items()))
        base = card.base_name or card.base[:12]
        rows.append(
            (
                one.reference,
                version.number,
                version.digest[:12],
                card.domain,
                base,
                one.rank,
                one.size,
                tags,
                card.licence,
            )
        )
    return _table(("block", "version", "digest", "domain", "base", "rank", "bytes", "tags", "licence"), rows)


def _scores(shown: Sequence[Shown]) -> str:
    rows = [
        (one.reference, one.history[-1].number, metric, f"{figure.value:.4g}", _interval(figure), figure.n or "", figure.clusters or "")
        for one in shown
        for metric, figure in sorted(one.scores.items())
    ]  # fmt: skip
    if not rows:
        return "Nobody has recorded a score of these versions."
    note = "Intervals are 95 %, clustered by group; n counts questions, groups the independent ones among them."
    return _table(("block", "version", "metric", "value", "interval", "n", "groups"), rows) + f"\n\n{note}"


def _interval(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"


def _provenance(shown: Sequence[Shown], origin: str) -> str:
    rows = []
    for one in shown:
        card = one.history[-1].card
        parents = ", ".join(parent[:12] for parent in card.parents)
        masked = ", ".join(card.extra[REDACTED]["fields"]) if is_redacted(card) else ""
        keys = ", ".join(key[:12] for key in one.keys)
        rows.append((one.reference, card.base[:12], card.made_by, card.created, card.origin, parents, keys, masked))
    head = ("block", "base's fingerprint", "made by", "created", "origin", "parents", "signed by", "redacted")
    return (
        f"From bank `{origin}`. A digest is the sha-256 of a version's manifest, which names its weights.\n\n"
        + _table(head, rows)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(cell: object) -> str:
    """Text that shows as it is: a name may hold what Markdown or HTML would act on."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(cell).split()), quote=False))
