"""What an evaluation saw, row by row, so that every figure can be recomputed with its interval."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from pmemx.core.errors import DataError

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
class UncoveredPrompt:
    """Where one gate sent one prompt that no expert it could choose covers.

    domain: general text, of which the prompt is a passage of so many tokens, or a domain whose own expert was barred, of which
    it is a held-out prompt (tokens is 0: whatever length it has). abstained: no expert had the greatest weight.
    """

    gate: str
    domain: str
    tokens: int
    id: str
    group: str
    abstained: bool


@dataclass(frozen=True)
class SiteLoad:
    """Mean weight of each choice at one site over the prompts of one domain."""

    gate: str
    site: str
    domain: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class DomainFacts:
    """What a reader must know beside a score: exact-match rate of guessing, family, and the expert that belongs to the domain.

    part: which of several pooled runs the domain is of. asks: the name that the domain has in each of these runs if all of
    them asked the same questions, else empty. See `pooled`.
    """

    name: str
    chance: float
    family: str
    expert: str | None
    part: str = ""
    asks: str = ""


@dataclass(frozen=True)
class Evidence:
    """All rows of one run.

    experts: the order of choices after "no expert". sequence: domains in the order of growth. forms: what prompts of a
    form say, by its name, where the data tells.
    """

    domains: tuple[DomainFacts, ...]
    experts: tuple[str, ...]
    answers: tuple[Answer, ...]
    decisions: tuple[Decision, ...] = ()
    loads: tuple[SiteLoad, ...] = ()
    sequence: tuple[str, ...] = ()
    uncovered: tuple[UncoveredPrompt, ...] = ()
    forms: Mapping[str, str] = field(default_factory=dict)
    _index: dict[tuple[str, str, str], tuple[Answer, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _asking: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._asking.update({facts.name: facts.asks or facts.name for facts in self.domains})
        grouped: dict[tuple[str, str, str], list[Answer]] = {}
        for answer in self.answers:
            grouped.setdefault((answer.method, answer.domain, answer.split), []).append(answer)
        self._index.update({key: tuple(rows) for key, rows in grouped.items()})

    def rows(self, method: str, domain: str, split: Split = "test") -> tuple[Answer, ...]:
        """The answers of one method on one domain and split; empty where none were measured."""
        return self._index.get((method, domain, split), ())

    def cluster(self, row: Answer | Decision | UncoveredPrompt) -> str:
        """Name of what is independent of other questions: a document, in whichever of pooled runs it was asked about."""
        return f"{self._asking.get(row.domain, row.domain)}/{row.group}"

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of their first answer."""
        return tuple(dict.fromkeys(answer.method for answer in self.answers))

    @property
    def passage_lengths(self) -> tuple[int, ...]:
        """Of the passages of general text that gates were shown, in tokens, ascending."""
        return tuple(sorted({row.tokens for row in self.uncovered if row.tokens}))

    def write(self, path: Path) -> None:
        """One JSON object a line: a head, then answers, decisions, loads and uncovered prompts."""
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
                "forms": dict(self.forms),
            },
        )
        for kind, rows in (
            ("answer", self.answers),
            ("decision", self.decisions),
            ("load", self.loads),
            ("uncovered", self.uncovered),
        ):
            for row in rows:
                yield kind, asdict(row)

    @staticmethod
    def read(path: Path) -> "Evidence":
        """The evidence that `write` wrote."""
        head: dict = {}
        answers, decisions, loads, uncovered = [], [], [], []
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
                    case "uncovered":
                        uncovered.append(UncoveredPrompt(**row))
        return Evidence(
            tuple(DomainFacts(**domain) for domain in head["domains"]),
            tuple(head["experts"]),
            tuple(answers),
            tuple(decisions),
            tuple(loads),
            tuple(head["sequence"]),
            tuple(uncovered),
            head.get("forms", {}),
        )

    @staticmethod
    def experts_of(path: Path) -> tuple[str, ...]:
        """The experts alone, from the head of what `write` wrote; a large bank's evidence is long."""
        with path.open(encoding="utf-8") as file:
            return tuple(json.loads(file.readline())["experts"])


Row = TypeVar("Row", Answer, Decision, UncoveredPrompt)


def pooled(parts: Mapping[str, Evidence]) -> Evidence:
    """Several runs of one experiment as strata of one: domain "law" of part "seed 0" becomes "law (seed 0)".

    Its expert keeps its name, and ids are told apart by part, so that every metric pairs questions within a part and
    counts every domain of every part once. Where all parts asked the very same questions (ids and groups are equal, as
    with tables of real text, which a seed does not draw), a group is one document in all parts and resampled in all of
    them together, since more trainings are no more documents; elsewhere groups are told apart by part too. A domain
    without an expert keeps its name, and the parts' rows lie in it side by side, a group of one name being one document:
    metrics ask for general text by its name, and a site's loads there are averaged over the parts.

    Methods and gates that a part lacks are left out, and so are uncovered prompts of a gate, domain and length that a part
    lacks, since an average over fewer parts is no comparison: what is missing from `methods` was dropped. Growth, a story of one run, is left out. The order of the parts is irrelevant.

    Raises DataError for no parts, and where parts disagree about the experts, or about a domain without an expert.
    """
    if not parts:
        raise DataError("there is no evidence to pool; run the experiment with at least one seed")
    ordered = {name: parts[name] for name in sorted(parts)}
    first, experts = next((name, part.experts) for name, part in ordered.items())
    for name, part in ordered.items():
        if part.experts != experts:
            raise DataError(
                f"{name} has the experts {', '.join(part.experts)}, {first} has {', '.join(experts)}; "
                "pool runs of one experiment, which differ by their seed alone"
            )
    methods = set.intersection(*(set(part.methods) for part in ordered.values()))
    gates = set.intersection(*({row.gate for row in part.decisions} for part in ordered.values()))
    shown = set.intersection(
        *({(row.gate, row.domain, row.tokens) for row in part.uncovered} for part in ordered.values())
    )
    same = _asked_alike(list(ordered.values()), methods, gates)
    one_text = same | {domain.name for part in ordered.values() for domain in part.domains if domain.expert is None}
    facts: dict[str, DomainFacts] = {}
    for part_name, part in ordered.items():
        for domain in part.domains:
            asks = domain.name if domain.name in same else ""
            there = (
                domain
                if domain.expert is None
                else replace(domain, name=_domain_in(domain, part_name), part=part_name, asks=asks)
            )
            if facts.setdefault(there.name, there) != there:
                raise DataError(
                    f"{part_name} describes the domain {domain.name} unlike {first}; pool equal experiments"
                )
    answers: list[Answer] = []
    decisions: list[Decision] = []
    loads: list[SiteLoad] = []
    uncovered: list[UncoveredPrompt] = []
    for name, part in ordered.items():
        domains = {domain.name: _domain_in(domain, name) for domain in part.domains}

        def moved(row: Row, name: str = name, domains: Mapping[str, str] = domains) -> Row:
            group = row.group if row.domain in one_text else f"{name}/{row.group}"
            return replace(row, domain=domains[row.domain], id=f"{name}/{row.id}", group=group)

        answers += [moved(row) for row in part.answers if row.method in methods]
        decisions += [moved(row) for row in part.decisions if row.gate in gates]
        loads += [replace(row, domain=domains[row.domain]) for row in part.loads if row.gate in gates]
        uncovered += [moved(row) for row in part.uncovered if (row.gate, row.domain, row.tokens) in shown]
    return Evidence(
        tuple(facts.values()),
        experts,
        tuple(answers),
        tuple(decisions),
        _averaged(loads),
        uncovered=tuple(uncovered),
    )


def _asked_alike(parts: Sequence[Evidence], methods: Collection[str], gates: Collection[str]) -> set[str]:
    """Domains of which all parts, two or more, asked the same questions of the same documents."""
    asked: list[dict[str, set[tuple[str, str, str]]]] = []
    for part in parts:
        by_domain: dict[str, set[tuple[str, str, str]]] = {}
        asking = (
            *(row for row in part.answers if row.method in methods),
            *(row for row in part.decisions if row.gate in gates),
        )
        for row in asking:
            by_domain.setdefault(row.domain, set()).add((row.split, row.id, row.group))
        asked.append(by_domain)
    first, *others = asked
    return {name for name, rows in first.items() if others and all(of.get(name) == rows for of in others)}


def _averaged(loads: list[SiteLoad]) -> tuple[SiteLoad, ...]:
    same: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    for row in loads:
        same.setdefault((row.gate, row.site, row.domain), []).append(row.weights)
    means = {key: tuple(sum(of) / len(rows) for of in zip(*rows, strict=True)) for key, rows in same.items()}
    return tuple(SiteLoad(*key, weights) for key, weights in means.items())


def _domain_in(domain: DomainFacts, part: str) -> str:
    return domain.name if domain.expert is None else f"{domain.name} ({part})"
