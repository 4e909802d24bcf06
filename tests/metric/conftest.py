"""A small run with known scores: two domains with an expert each, general text and unknown prompts."""

from collections.abc import Callable

import pytest

from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence

FACTS = (
    DomainFacts("law", 0.25, "knowledge", "law"),
    DomainFacts("tax", 0.125, "knowledge", "tax"),
    DomainFacts("general", 0.0, "general", None),
    DomainFacts("unknown", 0.0, "unknown", None),
)
EXACT = {
    "base": {"law": "1000", "tax": "0000", "general": "1110"},
    "teacher": {"law": "1111", "tax": "1110"},
    "oracle": {"law": "1111", "tax": "1110"},
    "gate": {"law": "1110", "tax": "1010", "general": "1100"},
    "expert/law": {"law": "1111", "tax": "0010"},
    "expert/tax": {"law": "0000", "tax": "1110"},
}
CHOICES = {"law": [1, 1, 1, 2], "tax": [2, 2, 2, 2], "general": [0, 0, 0, 1], "unknown": [0, 1, 0, 2]}


def answers(method: str, domain: str, bits: str, split: str = "test") -> list[Answer]:
    """One answer a bit, two to a document; a right one costs 0.5 nats on two tokens, a wrong one 4."""
    return [
        Answer(
            method, domain, split, f"{domain}-{k}", f"{domain}-{k // 2}", f"question-{k % 2}",  # type: ignore[arg-type]
            bit == "1", 0.5 if bit == "1" else 4.0, 2, 2 if bit == "1" else 1,
            0.25 * k if domain == "general" and method != "base" else None,
        )
        for k, bit in enumerate(bits)
    ]  # fmt: skip


@pytest.fixture
def make() -> Callable[..., Evidence]:
    """Evidence from {method: {domain: bits}}."""

    def build(
        exact: dict[str, dict[str, str]] = EXACT, *, sequence: tuple[str, ...] = (), choices: bool = True
    ) -> Evidence:
        rows = [
            row for method, by in exact.items() for domain, bits in by.items() for row in answers(method, domain, bits)
        ]
        decisions = [
            Decision(
                "gate",
                domain,
                "test",
                f"{domain}-{k}",
                f"{domain}-{k // 2}",
                tuple(float(c == choice) for c in range(3)),
            )
            for domain, chosen in CHOICES.items()
            for k, choice in enumerate(chosen)
        ]
        return Evidence(FACTS, ("law", "tax"), tuple(rows), tuple(decisions) if choices else (), (), sequence)

    return build
