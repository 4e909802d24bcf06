"""Stage: ask every method every question, and turn the answers into figures with intervals."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.digest import digest
from pmemx.core.domain import DomainSource
from pmemx.core.errors import AccessDenied, ConfigError, StorageError
from pmemx.core.metric import Figure, Metric
from pmemx.core.mix import Mixing
from pmemx.core.routing import Select
from pmemx.core.source import source_digest
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.runtime.attach import Routed, attached
from pmemx.runtime.cost import multiply_adds
from pmemx.stage.bank import GateFactory, course_digests, gate_learnt, load_bank, load_gate
from pmemx.stage.composition import Composition, all_compositions
from pmemx.stage.corpus import Rows
from pmemx.stage.exam import Exam
from pmemx.stage.origin import versions
from pmemx.stage.recording import record_figures
from pmemx.stage.together import Together, load_together
from pmemx.stage.training import loaded
from pmemx.stage.uncovered import UncoveredPrompts


@dataclass(frozen=True, eq=False)
class _Method:
    """identity: all that its answers come from, besides the exam. attach: as it serves, to count what it costs.

    version: digest of the one version that it applies, whole and to every question; empty for any other method.
    phase: how many phases of a curriculum the version has seen, 0 where it has none.
    """

    name: str
    identity: object
    sit: Callable[[], None]
    attach: Callable[[], AbstractContextManager[Routed]] | None = None
    version: str = ""
    phase: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Methods: the base, the teacher with the document in context, every gate and composition of the run, and the baselines.

    gates: trained or not, by the name under which the report shows them, null to leave one out; "oracle" among them is the ceiling of routing.
    select: how gates choose when it counts. mixing: what a gate's weights mix (see core.mix.Mixing). compositions say both
    themselves. together: mixtures of the run whose experts were trained with their gate ("together/<name>"). Baselines
    without a gate are made here: "average" and "sum" of all experts, each expert always on ("expert/<name>"), the adapters of
    other curricula ("sequential/<phase>", "joint"), and the blocks that the run merged ("merge/<name>").
    grow: gates under which the bank is also asked while it grows expert by expert, by the name of that run
    ("oracle": "bank_oracle" gives methods "bank_oracle/<phase>"); experts of later phases are then away.
    reliability_rows: about so many prompts of the distillation are asked per domain, evenly spread. questions: see Exam. costs: count the
    multiply-adds of every method beside the base's. cells: a folder in which the answers of a method are kept, so that a run
    that was killed asks no method twice; an edited program asks anew. Null keeps none. uncovered: prompts that no expert covers,
    which every gate is shown; None leaves them out.
    recorded: figures that the store keeps with each version that was asked alone (an expert, a merge, an adapter of another
    curriculum), by their names there. {method}, {domain} and {phase} stand for the method, the domain on the version's card,
    and how many phases of a sequence it has seen. A figure that no metric gave is left out.
    """

    base_model: BaseModel
    data: DomainSource
    rows: Rows
    store: Store
    gates: dict[str, GateFactory | None]
    select: Select
    metrics: dict[str, Metric]
    compositions: dict[str, Composition] = field(default_factory=dict)
    together: dict[str, Together] = field(default_factory=dict)
    mixing: Mixing = "after"
    average_and_sum: bool = True
    every_expert: bool = True
    grow: dict[str, str] | None = None
    reliability_rows: int = 240
    questions: int = 0
    costs: bool = False
    cells: str | None = None
    uncovered: UncoveredPrompts | None = None
    recorded: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, pattern in self.recorded.items():
            try:
                pattern.format(method="", domain="", phase="")
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(
                    f"stage.evaluate.recorded.{name} = {pattern!r} is no name of a figure ({error!r}); "
                    "write one in which {method}, {domain} and {phase} stand for what changes"
                ) from error

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Writes evidence.jsonl, puts figures into the ledger and returns their values by name.

        Raises IncompatibleBlock for a gate of this folder that was learnt over other versions of the experts.
        """
        base = loaded(self.base_model)
        bank = load_bank(self.store, workspace.folder)
        corpus = self.rows.load(self.data, base)
        exam = Exam(base, corpus, bank, self.reliability_rows, self.questions)
        methods = list(self._methods(workspace, exam))
        # One fingerprint serves a base in any precision, and knows no tokenizer.
        program = [repr(self.base_model), str(base.model.dtype), base.model.device.type, versions(), source_digest()]
        common = [
            base.fingerprint,
            program,
            list(corpus),
            bank.names,
            self.reliability_rows,
            self.questions,
            self.uncovered,
        ]
        figures: dict[str, Figure] = {}
        with workspace.progress("Evaluate", total=len(methods)) as advance:
            sample = exam.sample() if self.costs else []
            alone = multiply_adds(base.model, sample, pad=base.tokenizer.pad_token_id) if sample else 0.0
            for method in methods:
                if self.cells is None:
                    method.sit()
                else:
                    cell = digest([common, method.name, method.identity])
                    exam.once(Path(self.cells) / f"{cell[:32]}.jsonl", method.sit)
                if alone and method.attach is not None:
                    with method.attach() as routed:
                        taken = multiply_adds(base.model, sample, pad=base.tokenizer.pad_token_id, routed=routed)
                    figures[f"cost/multiply_adds/{method.name}"] = Figure(taken / alone)
                advance(1, method.name)
        grows = self.grow or course_digests(workspace.folder, "sequential")
        evidence = exam.evidence(bank.names if grows else (), self.data.forms())
        evidence.write(workspace.folder / "evidence.jsonl")
        figures |= {name: figure for metric in self.metrics.values() for name, figure in metric(evidence).items()}
        workspace.ledger.figures.update(figures)
        by = f"pmemx evaluate, questions {digest([list(corpus), self.questions])[:12]}"
        self._record(workspace, [method for method in methods if method.version], figures, by)
        return {name: figure.value for name, figure in figures.items()}

    def _record(self, workspace: Workspace, methods: Sequence[_Method], figures: Mapping[str, Figure], by: str) -> None:
        for method in methods:
            domain = self.store.find(method.version).card.domain
            names = {
                name: pattern.format(method=method.name, domain=domain, phase=method.phase)
                for name, pattern in self.recorded.items()
            }
            found = {name: figures[full] for name, full in names.items() if full in figures and _finite(figures[full])}
            known = self.store.promotions.of(method.version)
            new = {name: figure for name, figure in found.items() if known.get(name) != figure}
            if not new:
                continue
            try:
                record_figures(self.store, workspace, method.version, new, by=by)
            except (AccessDenied, StorageError) as error:
                # Whoever may only read a bank may still evaluate it.
                workspace.ledger.notes.append(f"the bank keeps no figures of {method.name}: {error}")

    def _methods(self, workspace: Workspace, exam: Exam) -> Iterator[_Method]:
        folder, bank = workspace.folder, exam.bank
        experts = [kept[-1] for kept in course_digests(folder, "experts").values()]
        yield _Method("base", None, exam.sit_base)
        yield _Method("teacher", None, exam.sit_teacher)
        made = all_compositions(self.gates, self.compositions, select=self.select, mixing=self.mixing)
        for name, composition in made.items():
            yield from self._composed(workspace, exam, name, composition, experts)
        for name, entry in self.together.items():
            yield self._together(workspace, exam, name, entry)
        if self.average_and_sum:
            yield self._weighed(exam, "average", bank, [1 / len(bank)] * len(bank), experts)
            yield self._weighed(exam, "sum", bank, [1.0] * len(bank), experts)
        if self.every_expert:
            for name, version in zip(bank.names, experts, strict=True):
                weights = [float(name == other) for other in bank.names]
                yield replace(self._weighed(exam, f"expert/{name}", bank, weights, experts), version=version)
        phases = [version for kept in course_digests(folder, "sequential").values() for version in kept]
        for number, version in enumerate(phases):
            yield self._alone(exam, f"sequential/{number}", version, phase=number + 1)
        for kept in list(course_digests(folder, "joint").values())[-1:]:
            yield self._alone(exam, "joint", kept[-1])
        for name, kept in course_digests(folder, "merge").items():
            yield self._alone(exam, f"merge/{name}", kept[-1])

    def _composed(
        self, workspace: Workspace, exam: Exam, name: str, composition: Composition, experts: list[str]
    ) -> Iterator[_Method]:
        base, gates = exam.base, workspace.folder / "gates"

        @contextmanager
        def attach() -> Iterator[Routed]:
            bank = composition.bank(self.store, experts, base) if composition.transforms else exam.bank
            shape = bank.shape(base.model.config.hidden_size)
            gate = load_gate(composition.gate, shape, gates, name, versions=experts)
            with attached(
                base.model,
                bank,
                gate=gate.to(base.model.device),
                select=composition.select,
                base=base.fingerprint,
                mixing=composition.mixing,
            ) as routed:
                yield routed

        def sit() -> None:
            with attach() as routed:
                exam.sit(name, routed, train=True, decisions=True)
                if self.uncovered is not None:
                    exam.sit_uncovered(name, routed, self.uncovered)

        learnt = gate_learnt(gates, name)
        method = [repr(composition.gate), composition.select, composition.mixing, list(composition.transforms)]
        identity = [experts, method, None if learnt is None else learnt.work]
        yield _Method(name, identity, sit, attach)
        for number in range(len(exam.bank)) if self.grow and name in self.grow else ():
            stage = f"{self.grow[name]}/{number}"  # pyright: ignore[reportOptionalSubscript]

            def sit_stage(stage: str = stage, number: int = number) -> None:
                with attach() as routed:
                    routed.activate(exam.bank.names[: number + 1])
                    exam.sit(stage, routed)

            yield _Method(stage, [identity, number], sit_stage)

    def _together(self, workspace: Workspace, exam: Exam, name: str, entry: Together) -> _Method:
        base = exam.base

        @contextmanager
        def attach() -> Iterator[Routed]:
            width = base.model.config.hidden_size
            bank, gate, select, mixing = load_together(self.store, workspace.folder, name, entry, width=width)
            with attached(
                base.model,
                bank,
                gate=gate.to(base.model.device),
                select=select,
                base=base.fingerprint,
                mixing=mixing,
            ) as routed:
                yield routed

        def sit() -> None:
            with attach() as routed:
                exam.sit(f"together/{name}", routed)

        trained = course_digests(workspace.folder, "together").get(name)
        return _Method(f"together/{name}", [trained, repr(entry.gate), entry.select, entry.mixing], sit, attach)

    def _alone(self, exam: Exam, name: str, version: str, *, phase: int = 0) -> _Method:
        return replace(self._weighed(exam, name, None, [1.0], [version]), version=version, phase=phase)

    def _weighed(
        self, exam: Exam, name: str, bank: ExpertBank | None, weights: list[float], versions: list[str]
    ) -> _Method:
        base: LoadedBase = exam.base

        @contextmanager
        def attach() -> Iterator[Routed]:
            held = bank if bank is not None else ExpertBank([self.store.get(version) for version in versions])
            with attached(base.model, held, weights=weights, base=base.fingerprint) as routed:
                yield routed

        def sit() -> None:
            with attach() as routed:
                exam.sit(name, routed)

        return _Method(name, [versions, weights], sit, attach)


def _finite(figure: Figure) -> bool:
    return all(value is None or math.isfinite(value) for value in asdict(figure).values())
