"""Where prompts went: domains by experts from what a run left behind, answers by blocks from a bank's journal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pmemx.core.access import Permission
from pmemx.core.clock import to_microseconds
from pmemx.core.errors import ConfigError, DataError
from pmemx.core.evidence import Decision, Evidence, SiteLoad
from pmemx.core.record import EVIDENCE_FILE, RunRecord
from pmemx.page.questions import Json
from pmemx.page.words import iso
from pmemx.store.answers import Answers
from pmemx.store.bank import Bank
from pmemx.store.ledger import Identity

NO_EXPERT, WITHHELD = "no expert", "not yours to read"
_ANSWERS, _COLUMNS = 50, 40


@dataclass(frozen=True)
class Run:
    """What a run tells of its routing. experts: choices after "no expert". expert_of: the right choice by domain."""

    name: str
    created: str
    experts: tuple[str, ...]
    expert_of: Mapping[str, str | None]
    decisions: tuple[Decision, ...]
    loads: tuple[SiteLoad, ...]

    @property
    def gates(self) -> tuple[str, ...]:
        """Gates in the order of their first decision."""
        return tuple(dict.fromkeys(decision.gate for decision in self.decisions))

    @staticmethod
    def read(folder: Path) -> "Run":
        """Raises DataError for a folder without a record, or without a line of evidence on decisions."""
        file = folder / EVIDENCE_FILE
        record = RunRecord.read(folder)
        if not file.is_file():
            raise DataError(f"{folder} has no {EVIDENCE_FILE}, so it tells of no decision; give a run that evaluated")
        return _read(folder, record.experiment, record.created, file.stat().st_mtime_ns)


# Files of a run may be large, and pages are asked for often; `changed` makes a new version of the file be read.
@lru_cache(maxsize=4)
def _read(folder: Path, name: str, created: str, changed: int) -> Run:
    evidence = Evidence.read(folder / EVIDENCE_FILE)
    held_out = tuple(decision for decision in evidence.decisions if decision.split == "test")
    expert_of = {facts.name: facts.expert for facts in evidence.domains}
    return Run(name, created, evidence.experts, expert_of, held_out, evidence.loads)


def routing(bank: Bank, who: Identity, record: Path | None, gate: str) -> Json:
    """Heatmaps of a run, where one was given, and of the answers that the bank knows."""
    return {"run": None if record is None else _of_run(bank, who, Run.read(record), gate), "answers": _of_answers(bank)}


def _of_run(bank: Bank, who: Identity, run: Run, gate: str) -> Json:
    """By domain, and by site the weight of the domain's own choice; what the principal may not read is summed up in one column, and its domains are left out."""
    gate = gate or next((name for name in run.gates if name != "oracle"), next(iter(run.gates), ""))
    if run.gates and gate not in run.gates:
        raise ConfigError(f"the run has decisions of {', '.join(run.gates)}, but of no gate {gate!r}; choose one")

    def may_read(expert: str) -> bool:
        return who.decide(Permission.READ, bank.full(expert)).allowed

    readable = [may_read(expert) for expert in run.experts]
    columns = [expert for expert, shown in zip(run.experts, readable, strict=True) if shown]
    columns += [WITHHELD] * (not all(readable)) + [NO_EXPERT]

    def row(weights: Sequence[float]) -> list[float]:
        nothing, *rest = weights
        shown = [weight for weight, open_ in zip(rest, readable, strict=True) if open_]
        hidden = [weight for weight, open_ in zip(rest, readable, strict=True) if not open_]
        return shown + ([math.fsum(hidden)] if hidden else []) + [nothing]

    domains = [domain for domain, expert in run.expert_of.items() if expert is None or may_read(expert)]
    own = [decision for decision in run.decisions if decision.gate == gate]
    right = {domain: 1 + run.experts.index(expert) if expert else 0 for domain, expert in run.expert_of.items()}
    by_domain = {domain: [one.weights for one in own if one.domain == domain] for domain in domains}
    by_site: dict[str, dict[str, float]] = {}
    for load in run.loads:
        if load.gate == gate and load.domain in domains:
            by_site.setdefault(load.site, {})[load.domain] = load.weights[right[load.domain]]
    return {
        "name": run.name,
        "created": run.created,
        "gate": gate,
        "gates": list(run.gates),
        "columns": columns,
        "domains": [
            {
                "domain": domain,
                "expert": run.expert_of[domain] or NO_EXPERT,
                "n": len(rows),
                "weights": row(_mean(rows)),
            }
            for domain, rows in by_domain.items()
            if rows
        ],
        "site_columns": domains,
        "sites": [{"site": site, "weights": [found.get(name) for name in domains]} for site, found in by_site.items()],
    }


def _of_answers(bank: Bank) -> Json:
    """Answers newest first, and the weight of each of the blocks that took part most; the rest of them is one column."""
    found = Answers(bank).recent(limit=_ANSWERS)
    total: dict[str, float] = {}
    for answer in found:
        for part in answer.parts:
            total[part.name] = total.get(part.name, 0.0) + abs(part.weight)
    names = sorted(total, key=lambda name: (-total[name], name))[:_COLUMNS]
    return {
        "columns": [name.removeprefix("shared/") for name in names],
        "others": len(total) - len(names),
        "rows": [
            {
                "answer": answer.provenance.id,
                "entry": answer.seq,
                "time": iso(to_microseconds(answer.time)),
                "principal": answer.principal,
                "weights": [_summed(answer.parts, name) for name in names],
                "nothing": answer.provenance.nothing,
            }
            for answer in found
        ],
    }


def _summed(parts: Iterable, name: str) -> float | None:
    weights = [part.weight for part in parts if part.name == name]
    return math.fsum(weights) if weights else None


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
