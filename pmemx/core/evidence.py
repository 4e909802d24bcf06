"""What an evaluation saw, row by row, so that every figure can be recomputed with its interval."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Answer:
    """One question answered by one method.

    method: "base", "teacher", "oracle", "gate", "average", "sum", "expert/<name>", "sequential/<stage>", ...
    split: train (a phrasing the expert was distilled on: reliability) or test (held out: generality).
    exact: greedy decoding gives the response to the last token. nats: summed loss over the `tokens` response tokens.
    hits: how many response tokens are the arg-max. kl: KL(base || method) summed over the response tokens, in nats; None where not measured.
    """

    method: str
    domain: str
    split: Split
    id: str
    group: str
    form: str
    exact: bool
    nats: float
    tokens: int
    hits: int
    kl: float | None = None


@dataclass(frozen=True)
class Decision:
    """Where one gate sent one prompt: the weight of each choice, no expert first, averaged over tokens and sites."""

    gate: str
    domain: str
    split: Split
    id: str
    group: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class SiteLoad:
    """Mean weight of each choice at one site over the prompts of one domain."""

    gate: str
    site: str
    domain: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class DomainFacts:
    """What a reader must know beside a score: exact-match rate of guessing, family, and the expert that belongs to the domain."""

    name: str
    chance: float
    family: str
    expert: str | None


@dataclass(frozen=True)
class Evidence:
    """All rows of one run. experts: the order of choices after "no expert". sequence: domains in the order of growth."""

    domains: tuple[DomainFacts, ...]
    experts: tuple[str, ...]
    answers: tuple[Answer, ...]
    decisions: tuple[Decision, ...] = ()
    loads: tuple[SiteLoad, ...] = ()
    sequence: tuple[str, ...] = ()
    _index: dict[tuple[str, str, str], tuple[Answer, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        grouped: dict[tuple[str, str, str], list[Answer]] = {}
        for answer in self.answers:
            grouped.setdefault((answer.method, answer.domain, answer.split), []).append(answer)
        self._index.update({key: tuple(rows) for key, rows in grouped.items()})

    def rows(self, method: str, domain: str, split: Split = "test") -> tuple[Answer, ...]:
        """The answers of one method on one domain and split; empty where none were measured."""
        return self._index.get((method, domain, split), ())

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of their first answer."""
        return tuple(dict.fromkeys(answer.method for answer in self.answers))

    def write(self, path: Path) -> None:
        """One JSON object a line: a head, then answers, decisions and loads."""
        with path.open("w", encoding="utf-8") as file:
            for kind, row in self._lines():
                file.write(json.dumps({"kind": kind} | row, ensure_ascii=False) + "\n")

    def _lines(self) -> Iterator[tuple[str, dict[str, object]]]:
        yield (
            "head",
            {
                "domains": [asdict(domain) for domain in self.domains],
                "experts": self.experts,
                "sequence": self.sequence,
            },
        )
        for kind, rows in (("answer", self.answers), ("decision", self.decisions), ("load", self.loads)):
            for row in rows:
                yield kind, asdict(row)

    @staticmethod
    def read(path: Path) -> "Evidence":
        """The evidence that `write` wrote."""
        head: dict = {}
        answers, decisions, loads = [], [], []
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                match row.pop("kind"):
                    case "head":
                        head = row
                    case "answer":
                        answers.append(Answer(**row))
                    case "decision":
                        decisions.append(Decision(**row | {"weights": tuple(row["weights"])}))
                    case "load":
                        loads.append(SiteLoad(**row | {"weights": tuple(row["weights"])}))
        return Evidence(
            tuple(DomainFacts(**domain) for domain in head["domains"]),
            tuple(head["experts"]),
            tuple(answers),
            tuple(decisions),
            tuple(loads),
            tuple(head["sequence"]),
        )
