"""One exam for all methods: the questions, encoded once, and what the methods said."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pmemx.core.atomic import write_whole
from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Corpus, Domain, Example
from pmemx.core.encoding import Encoded, encode
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, SiteLoad, Split, UncoveredPrompt
from pmemx.runtime.attach import Routed
from pmemx.runtime.score import Scored, score
from pmemx.stage.uncovered import UncoveredPrompts


@dataclass(eq=False)
class Exam:
    """The questions of a corpus, and the answers so far.

    reliability_rows: about so many prompts of the distillation are asked per domain, evenly spread. questions: at most so many
    held-out ones of each domain, evenly spread; 0: all. Domains without an
    expert, general text among them, belong to no expert.
    """

    base: LoadedBase
    corpus: Corpus
    bank: ExpertBank
    reliability_rows: int
    questions: int = 0
    answers: list[Answer] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    loads: list[SiteLoad] = field(default_factory=list)
    uncovered: list[UncoveredPrompt] = field(default_factory=list)
    _reference: list[Tensor] = field(default_factory=list)

    def once(self, path: Path, sit: Callable[[], None]) -> None:
        """Sit, and keep what was said under the path; where it is kept already, read it instead."""
        if path.exists():
            part = Evidence.read(path)
            self.answers += part.answers
            self.decisions += part.decisions
            self.loads += part.loads
            self.uncovered += part.uncovered
            return
        before = len(self.answers), len(self.decisions), len(self.loads), len(self.uncovered)
        sit()
        part = Evidence(
            (),
            self.bank.names,
            tuple(self.answers[before[0] :]),
            tuple(self.decisions[before[1] :]),
            tuple(self.loads[before[2] :]),
            uncovered=tuple(self.uncovered[before[3] :]),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two runs may sit the same exam at once.
        partial = path.with_suffix(f".{os.getpid()}.partial")
        part.write(partial)
        write_whole(path, partial.read_bytes())
        partial.unlink()

    def sit_base(self) -> None:
        """The base alone."""
        for domain, split, examples in self._papers(train=True):
            if self._unanswered(domain):
                continue
            rows = self._encoded(examples)
            self._note("base", domain, split, examples, score(self.base.model, rows, pad=self._pad))

    def sit_teacher(self) -> None:
        """The base with the document in context, on domains that have documents."""
        for domain, split, examples in self._papers(train=True):
            if all(example.document for example in examples):
                rows = self._encoded(examples, with_document=True)
                self._note("teacher", domain, split, examples, score(self.base.model, rows, pad=self._pad))

    def sit(self, method: str, routed: Routed, *, train: bool = False, decisions: bool = False) -> None:
        """One method with experts attached; train asks the prompts of the distillation, too."""
        for domain, split, examples in self._papers(train=train):
            if not decisions and self._unanswered(domain):
                continue
            general = domain.name == self.corpus.general.name and split == "test"
            reference = self._references(routed) if general else None
            scored = score(
                self.base.model,
                self._encoded(examples),
                pad=self._pad,
                routed=routed,
                choice=self._choice(domain),
                reference=reference,
            )
            self._note(method, domain, split, examples, scored)
            if decisions:
                self._route(method, domain, split, examples, scored)

    def sit_uncovered(self, gate: str, routed: Routed, prompts: UncoveredPrompts) -> None:
        """Where a gate sends prompts that no expert covers: of each domain while its own expert is barred, and general text.

        Of a gate whose experts are independent (`choice_rows`), a barred expert is an absent one. A trained gate was trained
        with the expert, so that its share is no leave-one-out of the training.
        """
        for domain in self.corpus.domains:
            others = [name for name in self.bank.names if name != domain.name]
            if domain.name not in self.bank.names or not others:
                continue
            examples = _evenly(domain.test, prompts.questions)
            rows = [Encoded(row.ids[: row.prompt_length], row.prompt_length) for row in self._encoded(examples)]
            with routed.given(active=[others]):
                abstained = self._abstained(routed, rows)
            self.uncovered += [
                UncoveredPrompt(gate, domain.name, 0, example.id, example.group or example.id, none)
                for example, none in zip(examples, abstained, strict=True)
            ]
        general = self.corpus.general
        for length, passages in prompts.of_lengths(self.base, general.test):
            abstained = self._abstained(routed, [row for _, row in passages])
            self.uncovered += [
                UncoveredPrompt(gate, general.name, length, str(number), group, none)
                for number, ((group, _), none) in enumerate(zip(passages, abstained, strict=True))
            ]

    def _abstained(self, routed: Routed, rows: Sequence[Encoded]) -> list[bool]:
        """Whether no expert has the greatest weight, on average over the sites. Who is told the domain is told of none."""
        scored = score(self.base.model, rows, pad=self._pad, routed=routed, choice=0)
        return [int(torch.tensor(list(row.load.values())).mean(dim=0).argmax()) == 0 for row in scored]

    def evidence(self, sequence: tuple[str, ...], forms: Mapping[str, str]) -> Evidence:
        """All rows so far; see Evidence for what is said beside them."""
        facts = [
            DomainFacts(d.name, d.chance, d.family, d.name if d.name in self.bank.names else None) for d in self.corpus
        ]
        return Evidence(
            tuple(facts),
            self.bank.names,
            tuple(self.answers),
            tuple(self.decisions),
            tuple(self.loads),
            sequence,
            tuple(self.uncovered),
            forms,
        )

    def sample(self, rows: int = 4) -> list[tuple[list[Encoded], int]]:
        """A few questions of every domain with its choice, to count what a method costs."""
        return [(self._encoded(domain.test[:rows]), self._choice(domain)) for domain in self.corpus if domain.test]

    @property
    def _pad(self) -> int:
        return self.base.tokenizer.pad_token_id

    def _unanswered(self, domain: Domain) -> bool:
        """Nobody is asked to know the answers there; only decisions about them count."""
        return domain is self.corpus.unknown or domain is self.corpus.negatives

    def _references(self, routed: Routed) -> list[Tensor]:
        """The base's predictions on general text, from which divergences are measured."""
        if not self._reference:
            with routed.disabled():
                rows = self._encoded(self._held_out(self.corpus.general))
                scored = score(self.base.model, rows, pad=self._pad, keep=True)
            self._reference = [row.log_probs for row in scored if row.log_probs is not None]
        return self._reference

    def _papers(self, *, train: bool) -> Iterator[tuple[Domain, Split, Sequence[Example]]]:
        for domain in self.corpus:
            yield domain, "test", self._held_out(domain)
            if train and self.reliability_rows and domain.name in self.bank.names:
                step = max(1, len(domain.train) // self.reliability_rows)
                yield domain, "train", domain.train[::step]

    def _held_out(self, domain: Domain) -> Sequence[Example]:
        return _evenly(domain.test, self.questions)

    def _choice(self, domain: Domain) -> int:
        return self.bank.names.index(domain.name) + 1 if domain.name in self.bank.names else 0

    def _encoded(self, examples: Sequence[Example], *, with_document: bool = False) -> list[Encoded]:
        return [encode(self.base.tokenizer, example, with_document=with_document) for example in examples]

    def _note(
        self, method: str, domain: Domain, split: Split, examples: Sequence[Example], scored: Sequence[Scored]
    ) -> None:
        if self._unanswered(domain):
            return
        for example, row in zip(examples, scored, strict=True):
            self.answers.append(
                Answer(
                    method=method,
                    domain=domain.name,
                    split=split,
                    id=example.id,
                    group=example.group or example.id,
                    form=example.form,
                    exact=row.exact,
                    nats=row.nats,
                    tokens=row.tokens,
                    hits=row.hits,
                    kl=row.kl,
                )
            )

    def _route(
        self, gate: str, domain: Domain, split: Split, examples: Sequence[Example], scored: Sequence[Scored]
    ) -> None:
        sums: dict[str, Tensor] = {}
        for example, row in zip(examples, scored, strict=True):
            by_site = torch.tensor(list(row.load.values()))
            weights = tuple(by_site.mean(dim=0).tolist())
            self.decisions.append(Decision(gate, domain.name, split, example.id, example.group or example.id, weights))
            if split == "test":
                for site, load in row.load.items():
                    sums[site] = sums.get(site, torch.zeros(len(load))) + torch.tensor(load)
        for site, total in sums.items():
            self.loads.append(SiteLoad(gate, site, domain.name, tuple((total / len(examples)).tolist())))


def _evenly(examples: Sequence[Example], number: int) -> Sequence[Example]:
    """At most so many, at even distances, so that every document and every form has its turn; 0: all."""
    if not 0 < number < len(examples):
        return examples
    return [examples[i * len(examples) // number] for i in range(number)]
