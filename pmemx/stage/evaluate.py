"""Stage: ask every method every question, and turn the answers into figures with intervals."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.domain import Corpus, Domain, DomainSource, Example
from pmemx.core.encoding import Encoded, encode
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, SiteLoad, Split
from pmemx.core.metric import Metric
from pmemx.core.mix import Mixing
from pmemx.core.routing import Select
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.runtime.attach import Routed, attached
from pmemx.runtime.score import Scored, score
from pmemx.stage.bank import GateFactory, course_digests, load_bank, load_gate
from pmemx.stage.corpus import Rows
from pmemx.stage.training import loaded


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Methods: the base, the teacher with the document in context, every gate of the run, and the baselines.

    gates: trained or not, by the name under which the report shows them; "oracle" among them is the ceiling of routing.
    select: how gates choose when it counts. mixing: what a gate's weights mix (see core.mix.Mixing). Baselines without a
    gate are made here: "average" and "sum" of all experts, each expert always on ("expert/<name>"), the adapters of other
    curricula ("sequential/<phase>", "joint"), and the blocks that the run merged ("merge/<name>").
    grow: gates under which the bank is also asked while it grows expert by expert, by the name of that run
    ("oracle": "bank_oracle" gives methods "bank_oracle/<phase>"); experts of later phases are then away.
    reliability_rows: about so many prompts of the distillation are asked per domain, evenly spread.
    """

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    gates: dict[str, GateFactory]
    select: Select
    metrics: dict[str, Metric]
    mixing: Mixing = "after"
    average_and_sum: bool = True
    every_expert: bool = True
    grow: dict[str, str] | None = None
    reliability_rows: int = 240

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Writes evidence.jsonl, puts figures into the ledger and returns their values by name."""
        base = loaded(self.base_model)
        bank = load_bank(self.store, workspace.folder)
        corpus = self.rows.load(self.data, base)
        sequence = course_digests(workspace.folder, "sequential")
        phases = [digest for versions in sequence.values() for digest in versions]
        joint = [versions[-1] for versions in course_digests(workspace.folder, "joint").values()]
        merges = {name: versions[-1] for name, versions in course_digests(workspace.folder, "merge").items()}
        grow = self.grow or {}
        growth = len(bank) * len(grow)
        total = (
            2
            + growth
            + len(self.gates)
            + 2 * self.average_and_sum
            + self.every_expert * len(bank)
            + len(phases)
            + len(joint)
            + len(merges)
        )
        exam = _Exam(base, corpus, bank, self.reliability_rows)
        with workspace.progress("Evaluate", total=total) as advance:
            for method in self._methods(workspace, exam, phases, joint, merges):
                advance(1, method)
        evidence = exam.evidence(bank.names if phases or grow else ())
        evidence.write(workspace.folder / "evidence.jsonl")
        figures = {name: figure for metric in self.metrics.values() for name, figure in metric(evidence).items()}
        workspace.ledger.figures.update(figures)
        return {name: figure.value for name, figure in figures.items()}

    def _methods(
        self, workspace: Workspace, exam: "_Exam", phases: list[str], joint: list[str], merges: dict[str, str]
    ) -> Iterator[str]:
        yield exam.sit_base()
        yield exam.sit_teacher()
        model, bank, base = exam.base.model, exam.bank, exam.base.fingerprint
        shape = bank.shape(model.config.hidden_size)
        for name, factory in self.gates.items():
            gate = load_gate(factory, shape, workspace.folder / "gates", name).to(model.device)
            with attached(model, bank, gate=gate, select=self.select, base=base, mixing=self.mixing) as routed:
                yield exam.sit(name, routed, train=True, decisions=True)
                if self.grow is not None and name in self.grow:
                    for number in range(len(bank)):
                        routed.activate(bank.names[: number + 1])
                        yield exam.sit(f"{self.grow[name]}/{number}", routed)
        always = {f"expert/{name}": [float(i == j) for j in range(len(bank))] for i, name in enumerate(bank.names)}
        if self.average_and_sum:
            with attached(model, bank, weights=[1 / len(bank)] * len(bank), base=base) as routed:
                yield exam.sit("average", routed)
            with attached(model, bank, weights=[1.0] * len(bank), base=base) as routed:
                yield exam.sit("sum", routed)
        if self.every_expert:
            for name, weights in always.items():
                with attached(model, bank, weights=weights, base=base) as routed:
                    yield exam.sit(name, routed)
        for number, digest in enumerate(phases):
            with self._alone(exam, digest) as routed:
                yield exam.sit(f"sequential/{number}", routed)
        for digest in joint:
            with self._alone(exam, digest) as routed:
                yield exam.sit("joint", routed)
        for name, digest in merges.items():
            with self._alone(exam, digest) as routed:
                yield exam.sit(f"merge/{name}", routed)

    @contextmanager
    def _alone(self, exam: "_Exam", digest: str) -> Iterator[Routed]:
        bank = ExpertBank([self.store.get(digest)])
        with attached(exam.base.model, bank, weights=[1.0], base=exam.base.fingerprint) as routed:
            yield routed


@dataclass(eq=False)
class _Exam:
    """The questions, encoded once, and the answers so far."""

    base: LoadedBase
    corpus: Corpus
    bank: ExpertBank
    reliability_rows: int
    answers: list[Answer] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    loads: list[SiteLoad] = field(default_factory=list)
    _reference: list[Tensor] = field(default_factory=list)

    def sit_base(self) -> str:
        """The base alone; its predictions on general text become the reference of every divergence."""
        for domain, split, examples in self._papers(train=True):
            general = domain.name == self.corpus.general.name and split == "test"
            rows = self._encoded(examples)
            scored = score(self.base.model, rows, pad=self.base.tokenizer.pad_token_id, keep=general)
            if general:
                self._reference = [row.log_probs for row in scored if row.log_probs is not None]
            self._note("base", domain, split, examples, scored)
        return "base"

    def sit_teacher(self) -> str:
        """The base with the document in context, on domains that have documents."""
        for domain, split, examples in self._papers(train=True):
            if all(example.document for example in examples):
                rows = self._encoded(examples, with_document=True)
                self._note(
                    "teacher",
                    domain,
                    split,
                    examples,
                    score(self.base.model, rows, pad=self.base.tokenizer.pad_token_id),
                )
        return "teacher"

    def sit(self, method: str, routed: Routed, *, train: bool = False, decisions: bool = False) -> str:
        """One method with experts attached; train asks the prompts of the distillation, too."""
        for domain, split, examples in self._papers(train=train):
            general = domain.name == self.corpus.general.name and split == "test"
            scored = score(
                self.base.model,
                self._encoded(examples),
                pad=self.base.tokenizer.pad_token_id,
                routed=routed,
                choice=self._choice(domain),
                reference=self._reference if general else None,
            )
            self._note(method, domain, split, examples, scored)
            if decisions:
                self._route(method, domain, split, examples, scored)
        return method

    def evidence(self, sequence: tuple[str, ...]) -> Evidence:
        """All rows so far."""
        facts = [
            DomainFacts(d.name, d.chance, d.family, d.name if d.name in self.bank.names else None) for d in self.corpus
        ]
        return Evidence(
            tuple(facts), self.bank.names, tuple(self.answers), tuple(self.decisions), tuple(self.loads), sequence
        )

    def _papers(self, *, train: bool) -> Iterator[tuple[Domain, Split, Sequence[Example]]]:
        for domain in self.corpus:
            yield domain, "test", domain.test
            if train and domain.name in self.bank.names:
                step = max(1, len(domain.train) // self.reliability_rows)
                yield domain, "train", domain.train[::step]

    def _choice(self, domain: Domain) -> int:
        return self.bank.names.index(domain.name) + 1 if domain.name in self.bank.names else 0

    def _encoded(self, examples: Sequence[Example], *, with_document: bool = False) -> list[Encoded]:
        return [encode(self.base.tokenizer, example, with_document=with_document) for example in examples]

    def _note(
        self, method: str, domain: Domain, split: Split, examples: Sequence[Example], scored: Sequence[Scored]
    ) -> None:
        if self.corpus.unknown is not None and domain.name == self.corpus.unknown.name:
            return  # Nobody knows the answers there; only decisions about them count.
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
