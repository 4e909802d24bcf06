"""Gates on the held-out documents that nobody had looked at when the tracking gate's settings were chosen.

`python -m experiments.own_gate.unseen_documents --looked-at <run> --runs <run> ...`: `--runs` are one experiment at several
seeds, asked more questions than `--looked-at`; documents of the latter are left out of every domain, then the runs are pooled.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from pmemx.core.errors import DataError
from pmemx.core.evidence import Evidence, pooled
from pmemx.metric.forgetting_general import ForgettingGeneral
from pmemx.metric.recovery import Recovery
from pmemx.metric.routing import Routing


def without(evidence: Evidence, looked_at: Evidence) -> Evidence:
    """The rows whose document is none of `looked_at`. Raises DataError where that leaves nothing of a domain."""
    known = {(row.domain, row.group) for row in (*looked_at.answers, *looked_at.decisions)}
    answers = tuple(row for row in evidence.answers if (row.domain, row.group) not in known)
    decisions = tuple(row for row in evidence.decisions if (row.domain, row.group) not in known)
    left = {row.domain for row in answers} & {row.domain for row in decisions}
    for facts in evidence.domains:
        if facts.name not in left:
            raise DataError(f"every document of {facts.name!r} was looked at; run evaluate with more questions")
    return replace(evidence, answers=answers, decisions=decisions)


def main() -> None:
    """Print recovery, routing accuracy and what general text loses for every gate, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looked-at", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    looked_at = Evidence.read(given.looked_at / "evidence.jsonl")
    if len({run.name for run in given.runs}) < len(given.runs):
        parser.error(
            f"two of the runs are called alike: {', '.join(run.name for run in given.runs)}; name them by seed"
        )
    evidence = pooled({run.name: without(Evidence.read(run / "evidence.jsonl"), looked_at) for run in given.runs})
    figures = Recovery(score="loss")(evidence) | Routing(confusion=False)(evidence) | ForgettingGeneral()(evidence)
    rows = {}
    for gate in dict.fromkeys(row.gate for row in evidence.decisions):
        names = {
            "recovery": f"recovery/loss/{gate}/all_domains",
            "routed right": f"routing/{gate}/accuracy/all_domains/test",
            "general text to none": f"routing/{gate}/accuracy/general/test",
            "general text: nats lost": f"forgetting_general/loss/{gate}",
        }
        names |= {
            f"routed right in {facts.name}": f"routing/{gate}/accuracy/{facts.name}/test"
            for facts in evidence.domains
            if facts.expert
        }
        rows[gate] = {what: asdict(figures[name]) for what, name in names.items()}
        print(gate, *(f"{what} {figures[name].value:.4f}" for what, name in names.items()), sep="  ")
    given.out.write_text(json.dumps({"runs": [run.name for run in given.runs], "gates": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
