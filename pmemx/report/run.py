"""A finished run as the report reads it: its record, what the evaluation saw, and its training curves."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pmemx.core.evidence import DomainFacts, Evidence, SiteLoad
from pmemx.core.metric import Figure
from pmemx.core.record import EVIDENCE_FILE, CurvePoint, RunRecord, read_curves

LABELS = {
    "base": "base model",
    "teacher": "teacher (reads the document)",
    "oracle": "oracle (right expert)",
    "gate": "gate",
    "average": "average of experts",
    "sum": "sum of experts",
    "joint": "one LoRA, all domains at once",
    "experts_mean": "one expert always on (mean)",
    "sequential": "one LoRA, trained on",
    "bank": "bank with gate",
    "bank_oracle": "bank with oracle",
}
NO_EXPERT = "no_expert"


@dataclass(frozen=True)
class Run:
    """Evidence is None, and curves are empty, where the run left none."""

    record: RunRecord
    evidence: Evidence | None
    curves: tuple[CurvePoint, ...]
    config: str

    @staticmethod
    def read(folder: Path) -> "Run":
        """Read a run folder. Raises DataError without a readable record.json; everything else may be absent."""
        evidence, config = folder / EVIDENCE_FILE, folder / ".hydra" / "config.yaml"
        return Run(
            RunRecord.read(folder),
            Evidence.read(evidence) if evidence.exists() else None,
            read_curves(folder),
            config.read_text(encoding="utf-8") if config.exists() else "",
        )

    def figure(self, name: str) -> Figure | None:
        """A figure of the record by name."""
        return self.record.figures.get(name)

    def figures(self, names: dict[str, str]) -> dict[str, Figure]:
        """The figures that exist, by label, out of {label: name}."""
        return {label: figure for label, name in names.items() if (figure := self.figure(name)) is not None}

    @cached_property
    def domains(self) -> tuple[DomainFacts, ...]:
        """Domains with an expert of the bank, in the order of their experts."""
        if self.evidence is None:
            return ()
        experts = self.evidence.experts
        own = [facts for facts in self.evidence.domains if facts.expert in experts]
        return tuple(sorted(own, key=lambda facts: experts.index(facts.expert or "")))

    @cached_property
    def others(self) -> tuple[DomainFacts, ...]:
        """Domains that no expert of the bank belongs to: general text, unknown entities."""
        return tuple(facts for facts in self.evidence.domains if facts not in self.domains) if self.evidence else ()

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts in the order of the bank."""
        return self.evidence.experts if self.evidence else ()

    @cached_property
    def systems(self) -> tuple[str, ...]:
        """Methods that are neither a single expert nor a stage of growth."""
        partial = ("expert/", "sequential/", "bank/", "bank_oracle/")
        return tuple(m for m in self.evidence.methods if not m.startswith(partial)) if self.evidence else ()

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """Gates whose decisions were recorded, the main one first; what the oracle decides is known."""
        names = dict.fromkeys(decision.gate for decision in self.evidence.decisions) if self.evidence else {}
        names.pop("oracle", None)
        return tuple(sorted(names, key=lambda gate: gate != "gate"))

    @property
    def gate(self) -> str | None:
        """The method that the verdict is about: "gate", or else the first gate that answered as a method."""
        return next((gate for gate in ("gate", *self.gates) if gate in self.systems), None)

    def loads(self, gate: str) -> tuple[SiteLoad, ...]:
        """Loads per site of one gate."""
        return tuple(load for load in self.evidence.loads if load.gate == gate) if self.evidence else ()

    @cached_property
    def score(self) -> str:
        """The score that the report speaks of: exact match where experts gain by it, else loss."""
        gain = self.figure("specialisation/exact/diagonal")
        if gain is None:
            return "exact" if self.figure("specialisation/loss/diagonal") is None else "loss"
        return "exact" if gain.value > 0 else "loss"


def label(method: str) -> str:
    """A method in words."""
    return LABELS.get(method, method.replace("_", " "))
