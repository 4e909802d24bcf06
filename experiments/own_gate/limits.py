"""What the tracking gate does not know: other kinds of text, other lengths, other ways of writing.

`python -m experiments.own_gate.limits --base <folder> --data <folder with domains/ and general/>`: the gate reads embeddings and no
experts, so it is learnt here as a run learns it, on the training prompts of conf/data/real_domains.yaml, once for each setting.
Held-out prompts, passages of held-out general text and of two other texts are then sent where it says.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from pmemx.base_model.hf import HfBaseModel
from pmemx.core.bank import BankShape
from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Corpus, Example
from pmemx.core.encoding import Encoded, collate, encode
from pmemx.core.metric import Figure
from pmemx.core.statistics import cluster_sums
from pmemx.gate.tracking import TrackingGate
from pmemx.metric.sample import figure
from pmemx.stage.build import build
from pmemx.stage.corpus import Rows
from pmemx.stage.uncovered import UncoveredPrompts

CONF = Path(__file__).parents[2] / "conf" / "data"
OPENING = 16
"""Words of a passage that alone were shown to gates before: its opening."""
CONFIGURED = "as configured: passages of every length, negatives"
SETTINGS: dict[str, tuple[str, bool, dict[str, float]]] = {
    "openings of texts, nothing else": ("openings", False, {}),
    "passages of every length, no negatives": ("passages", False, {}),
    CONFIGURED: ("passages", True, {}),
    "... and novelty 0.3": ("passages", True, {"novelty": 0.3}),
}
"""What a gate is shown of general text, whether negatives are added, and its settings besides the defaults."""
GERMAN = {
    "legal": [
        "Welches Recht gilt für diesen Vertrag?",
        "Wann läuft die Vereinbarung zwischen den Parteien aus?",
        "Darf der Vertrag ohne Zustimmung an einen Dritten abgetreten werden?",
    ],
    "maths": [
        "Tom hat 12 Äpfel und gibt jedem seiner 3 Freunde 2 davon. Wie viele Äpfel bleiben ihm?",
        "Ein Zug fährt 80 Kilometer in der Stunde. Wie weit kommt er in drei Stunden?",
        "Lisa spart jeden Monat 15 Euro. Wie viel hat sie nach einem Jahr?",
    ],
    "code": [
        "Schreibe eine Funktion in Python, die eine Liste von Zahlen umkehrt.",
        "Schreibe eine Funktion, die prüft, ob ein Wort ein Palindrom ist.",
        "Schreibe eine Funktion, die das größte Element eines Tupels findet.",
    ],
    "biomedical": [
        "Hilft Aspirin nach einem Herzinfarkt?",
        "Ist der Blutdruck bei älteren Patienten ein Risiko für einen Schlaganfall?",
        "Verbessert die frühe Operation das Überleben bei Darmkrebs?",
    ],
}
"""Questions in the manner of four domains, in a language that no example has."""


def main() -> None:
    """Print a line for each figure and write them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="folder with domains/ and general/")
    parser.add_argument("--questions", type=int, default=100, help="held-out prompts of each domain")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "limits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = HfBaseModel(path=options.base).load()
    corpus = corpus_of(options.data, base)
    bench = Bench(base, corpus, options.questions)
    rows: dict[str, dict[str, Figure]] = {}
    for name, (general, negatives, settings) in SETTINGS.items():
        gate = bench.taught(general, negatives, settings)
        rows[name] = bench.measured(gate)
        if negatives:
            rows[name] |= bench.rewritten(gate, Path(options.data) / "general")
    for name, figures in rows.items():
        for what, found in figures.items():
            print(f"{name:45} {what:40} {found.value:.3f} [{found.low}, {found.high}] of {found.n}")
    record = {name: {what: asdict(found) for what, found in figures.items()} for name, figures in rows.items()}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def corpus_of(root: str, base: LoadedBase) -> Corpus:
    """The corpus of conf/data/real_domains.yaml, without rows that are longer than the context."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = OmegaConf.to_container(compose("real_domains", [f"root={root}"]), resolve=True)
    return Rows(on_long="drop").load(build(settings), base)  # pyright: ignore[reportArgumentType]


class Bench:
    """The prompts of a corpus, encoded once, and what gates say of them."""

    def __init__(self, base: LoadedBase, corpus: Corpus, questions: int) -> None:
        self.base, self.corpus = base, corpus
        self.names = [domain.name for domain in corpus.domains]
        self.asked = {domain.name: domain.test[:questions] for domain in corpus.domains}
        self.table: Tensor = base.model.get_input_embeddings().weight.detach()

    def measured(self, gate: TrackingGate) -> dict[str, Figure]:
        """Own prompts right, each domain while its expert is barred, general text by length."""
        found: dict[str, Figure] = {}
        right = {name: self.choices(gate, self.prompts(rows)) for name, rows in self.asked.items()}
        groups = {name: [row.group or row.id for row in rows] for name, rows in self.asked.items()}
        hits = {name: [choice == self.names.index(name) + 1 for choice in chosen] for name, chosen in right.items()}
        found |= {f"right in {name}": share([(groups[name], hits[name])]) for name in self.names}
        found["right in all domains"] = share([(groups[name], hits[name]) for name in self.names])
        away = {}
        for number, (name, rows) in enumerate(self.asked.items(), start=1):
            chosen = self.choices(gate, self.prompts(rows), barred=number)
            away[name] = (groups[name], [choice == 0 for choice in chosen])
            found[f"to none, {name} away"] = share([away[name]])
        found["to none, own expert away"] = share([*away.values()])
        for length, passages in UncoveredPrompts(passages=100).of_lengths(self.base, self.corpus.general.test):
            chosen = self.choices(gate, [row for _, row in passages])
            found[f"to none, general text of {length} tokens"] = share(
                [([group for group, _ in passages], [choice == 0 for choice in chosen])]
            )
        return found

    def rewritten(self, gate: TrackingGate, general: Path) -> dict[str, Figure]:
        """On held-out prompts that are written otherwise, and on other text than the gate was shown."""
        found: dict[str, Figure] = {}
        for words, rewrite in REWRITES.items():
            parts, to_none = [], []
            for number, rows in enumerate(self.asked.values(), start=1):
                kept = [(row.group or row.id, text) for row in rows if (text := rewrite(row.prompt))]
                chosen = self.choices(gate, [self.encoded(text) for _, text in kept])
                parts.append(([group for group, _ in kept], [choice == number for choice in chosen]))
                to_none.append(([group for group, _ in kept], [choice == 0 for choice in chosen]))
            found[f"{words}: right"] = share(parts)
            found[f"{words}: to none"] = share(to_none)
        german = [(name, text) for name, texts in GERMAN.items() for text in texts]
        chosen = self.choices(gate, [self.encoded(text) for _, text in german])
        ids = [str(number) for number in range(len(german))]
        rights = [choice == self.names.index(name) + 1 for choice, (name, _) in zip(chosen, german, strict=True)]
        found["in German: right"] = share([(ids, rights)])
        found["in German: to none"] = share([(ids, [choice == 0 for choice in chosen])])
        for name in ("public_domain_novels.txt", "tinyshakespeare.txt"):
            words = (general / name).read_text(encoding="utf-8").split()
            for number in (16, 64, 128):
                places = range(0, len(words) - number, max(number, len(words) // 100))
                chosen = self.choices(gate, [self.encoded(" ".join(words[at : at + number])) for at in places])
                found[f"to none, {name} of {number} words"] = share(
                    [([str(at) for at in places], [choice == 0 for choice in chosen])]
                )
        return found

    def taught(self, general: str, negatives: bool, settings: dict[str, float]) -> TrackingGate:
        """As train_gate teaches it: prompts of every domain, and text of no expert."""
        width = self.table.shape[1]
        gate = TrackingGate(BankShape(tuple(self.names), {"site": width}, width), **settings)  # type: ignore[arg-type]
        none = self.corpus.general
        if general == "openings":
            first = {row.group: row for row in reversed(none.train)}
            texts = [opening(row) for row in first.values()]
        else:
            texts = [row.prompt for row in none.train]
        if negatives and self.corpus.negatives is not None:
            texts += [row.prompt for row in self.corpus.negatives.train]
        shown = {0: [self.encoded(text) for text in texts]}
        shown |= {number: self.prompts(domain.train) for number, domain in enumerate(self.corpus.domains, start=1)}
        for choice, rows in shown.items():
            for hidden, inside, chunk in self.batches(gate, rows):
                gate.note(hidden, inside, torch.full((len(chunk),), choice))
        gate.fit()
        return gate

    def choices(self, gate: TrackingGate, rows: Sequence[Encoded], barred: int | None = None) -> list[int]:
        """The likeliest choice of every prompt."""
        away = torch.arange(gate.shape.num_choices)[None] == (-1 if barred is None else barred)
        found: dict[int, int] = {}
        for hidden, inside, chunk in self.batches(gate, rows):
            said = gate.pool.on_prompt(gate.read(hidden), inside, away)[:, 0]
            found |= dict(zip(chunk, said.masked_fill(away, float("-inf")).argmax(dim=-1).tolist(), strict=True))
        return [found[number] for number in range(len(rows))]

    def batches(self, gate: TrackingGate, rows: Sequence[Encoded]) -> list[tuple[Tensor, Tensor, list[int]]]:
        """What the gate reads of rows of like length, with their places."""
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        made = []
        for start in range(0, len(order), 64):
            chunk = order[start : start + 64]
            batch = collate([rows[number] for number in chunk], self.base.tokenizer.pad_token_id)
            hidden = self.table[batch.ids].masked_fill(~batch.prompt[..., None], 0)
            before = hidden.new_zeros(len(chunk), gate.reach, hidden.shape[2])
            made.append((torch.cat([before, hidden], dim=1), batch.prompt, chunk))
        return made

    def prompts(self, rows: Sequence[Example]) -> list[Encoded]:
        return [self.encoded(row.prompt) for row in rows]

    def encoded(self, text: str) -> Encoded:
        ids = encode(self.base.tokenizer, Example("", text, "."), with_document=False)
        kept = ids.ids[: min(ids.prompt_length, self.base.context)]
        return Encoded(kept, len(kept))


def opening(row: Example) -> str:
    """The first words of a passage."""
    return " ".join(f"{row.prompt} {row.response}".split()[:OPENING])


def share(parts: Sequence[tuple[Sequence[str], Sequence[bool]]]) -> Figure:
    """Of the hits, each part counting once, with an interval over groups."""
    strata = [
        cluster_sums(list(groups), [float(hit) for hit in hits], [1.0] * len(groups))
        for groups, hits in parts
        if groups
    ]
    return figure(strata, sum(len(groups) for groups, _ in parts), bounds=(0.0, 1.0))


def mistyped(text: str) -> str:
    """Two neighbouring letters of every fourth long word change places, and of every capitalised one."""
    draw = random.Random(text)

    def swapped(match: re.Match[str]) -> str:
        word = match[0]
        if not (word[0].isupper() or draw.random() < 0.25):
            return word
        at = draw.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[^\W\d_]{4,}", swapped, text)


def names_alone(text: str) -> str:
    """Capitalised words that do not begin a sentence; empty where there are none."""
    return " ".join(re.findall(r"(?<=[^.!?:\n] )[A-Z][a-z]+", text))


REWRITES: dict[str, Callable[[str], str]] = {
    "UPPER CASE": str.upper,
    "lower case": str.lower,
    "typos": mistyped,
    "names alone": names_alone,
    "the last ten words alone": lambda text: " ".join(text.split()[-10:]),
}


if __name__ == "__main__":
    main()
