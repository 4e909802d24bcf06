"""The tracking gate and what was tried of it, on the experts of a run: `python -m experiments.own_gate.ablate --run <folder>`.

Every variant learns from the same examples and is asked the same held-out questions. `switches` are rows of two turns with the
answer of the first between them: which choice serves the second turn, whose domain is another than that of the first.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Corpus, Domain, Example
from pmemx.core.encoding import Encoded, encode
from pmemx.core.gate import Gate
from pmemx.core.routing import Observation
from pmemx.data.procedural import ProceduralWorld
from pmemx.gate.oracle import OracleGate
from pmemx.gate.tracking import TrackingGate
from pmemx.lit.gate_module import Source
from pmemx.runtime.attach import Routed, attached
from pmemx.runtime.score import score
from pmemx.select.top_k import TopK
from pmemx.stage.gate_learning import note_examples, prompts_of
from pmemx.store.governed import GovernedStore

VARIANTS: dict[str, dict[str, object]] = {
    "as configured": {},
    "prompt": {"granularity": "prompt"},
    "prefix": {"granularity": "prefix"},
    "token": {"granularity": "token"},
    "single tokens": {"window": 1},
    "up to three tokens": {"window": 3},
    "hold 8": {"hold": 8.0},
    "hold 16": {"hold": 16.0},
    "hold 1000": {"hold": 1000.0},
    "no forgetting between turns": {"turn": 0.0},
    "half forgotten between turns": {"turn": 0.5},
    "l2 0.2": {"l2": 0.2},
    "l2 0.002": {"l2": 0.002},
    "weights drawn to zero": {"likelihood": 0.0},
    "weights drawn to a third of naive Bayes": {"likelihood": 0.3},
    "1024 buckets": {"buckets": 1024},
    "12 bits": {"bits": 12},
    "none 0.9": {"none": 0.9},
}


@dataclass(frozen=True)
class Bench:
    """What all variants are asked."""

    base: LoadedBase
    corpus: Corpus
    bank: ExpertBank
    questions: int
    switches: int

    def rows(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encoded, without documents."""
        return [encode(self.base.tokenizer, example, with_document=False) for example in examples]

    def choice(self, domain: Domain) -> int:
        """0 for a domain without an expert."""
        return self.bank.names.index(domain.name) + 1 if domain.name in self.bank.names else 0

    @contextmanager
    def attached(self, gate: Gate) -> Iterator[Routed]:
        """The best choice alone serves."""
        with attached(self.base.model, self.bank, gate=gate, select=TopK(k=1), base=self.base.fingerprint) as routed:
            yield routed


def main() -> None:
    """Print a line a variant and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder with blocks.json and record.json")
    parser.add_argument("--store", type=Path, default=Path("outputs/bank"))
    parser.add_argument("--seed", type=int, default=0, help="of the run's data")
    parser.add_argument("--questions", type=int, default=60, help="a domain")
    parser.add_argument("--switches", type=int, default=120, help="rows of each kind")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="variants by name")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = BundledBaseModel().load()
    corpus = ProceduralWorld(seed=options.seed, items_train=600).load()
    experts = json.loads((options.run / "blocks.json").read_text(encoding="utf-8"))["experts"]
    store = GovernedStore(options.store)
    bank = ExpertBank([store.get(versions[-1]) for versions in experts.values()])
    bench = Bench(base, corpus, bank, options.questions, options.switches)
    oracle = asked(bench, OracleGate(bank.shape(base.model.config.hidden_size)).eval())
    found = {}
    for name in options.only:
        gate = TrackingGate(bank.shape(base.model.config.hidden_size), **VARIANTS[name]).eval()  # type: ignore[arg-type]
        learn(bench, gate)
        seen = asked(bench, gate)
        found[name] = summary(bench, seen, oracle) | switched(bench, gate)
        print(name.ljust(30), "  ".join(f"{key} {value:.3f}" for key, value in found[name].items()), flush=True)
    options.out.write_text(json.dumps({"seed": options.seed, "variants": found}, indent=1) + "\n", encoding="utf-8")


def learn(bench: Bench, gate: TrackingGate) -> None:
    """From the training prompts of every domain, general text, and questions about the unknown."""
    domains = [*bench.corpus.domains, bench.corpus.general]
    sources = [Source(tuple(bench.rows(domain.train)), bench.choice(domain), 1) for domain in domains]
    assert bench.corpus.unknown is not None
    sources.append(Source(tuple(bench.rows(bench.corpus.unknown.train)), 0, 1, speaks=False))
    prompts = prompts_of(sources, unanswerable=True)
    with bench.attached(gate) as routed:
        pad = bench.base.tokenizer.pad_token_id
        note_examples(gate, routed, prompts, pad=pad, batch_size=32, advance=lambda steps=1, note="": None)


def asked(bench: Bench, gate: Gate) -> dict[str, tuple[float, float]]:
    """By domain: the share of exact answers, and of prompts that are sent where they belong."""
    found = {}
    with bench.attached(gate) as routed:
        for domain in bench.corpus:
            choice = bench.choice(domain)
            count = min(bench.questions, len(domain.test))
            chosen = [domain.test[i * len(domain.test) // count] for i in range(count)]
            scored = score(
                bench.base.model,
                bench.rows(chosen),
                pad=bench.base.tokenizer.pad_token_id,
                routed=routed,
                choice=choice,
            )
            right = [torch.tensor(list(row.load.values())).mean(dim=0).argmax().item() == choice for row in scored]
            found[domain.name] = sum(row.exact for row in scored) / count, sum(right) / count
    return found


def summary(
    bench: Bench, seen: dict[str, tuple[float, float]], oracle: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Shares of the oracle's exact answers by family, and of prompts sent where they belong."""

    def share(family: str) -> float:
        names = [domain.name for domain in bench.corpus.domains if domain.family == family]
        return sum(seen[name][0] for name in names) / sum(oracle[name][0] for name in names)

    families = dict.fromkeys(domain.family for domain in bench.corpus.domains)
    routed = [seen[domain.name][1] for domain in bench.corpus.domains]
    assert bench.corpus.unknown is not None
    return {family: share(family) for family in families} | {
        "routed": sum(routed) / len(routed),
        "general to none": seen[bench.corpus.general.name][1],
        "unknown to none": seen[bench.corpus.unknown.name][1],
    }


@torch.no_grad()
def switched(bench: Bench, gate: Gate) -> dict[str, float]:
    """The share of second turns that are served as they should be."""
    drawn, kinds = random.Random(0), {"expert to expert": [], "expert to none": [], "none to expert": []}
    with bench.attached(gate) as routed:
        for _ in range(bench.switches):
            first, second = drawn.sample(bench.corpus.domains, 2)
            one, other, text = (
                bench.rows([drawn.choice(domain.test)])[0] for domain in (first, second, bench.corpus.general)
            )
            general = Encoded(text.ids, len(text.ids))  # said by the user: what is marked as no turn says nothing
            for kind, (before, after, choice) in zip(
                kinds,
                (
                    (one, other, bench.choice(second)),
                    (one, general, 0),
                    (general, one, bench.choice(first)),
                ),
                strict=True,
            ):
                kinds[kind].append(_second_turn(bench, routed, before, after) == choice)
    return {kind: sum(right) / len(right) for kind, right in kinds.items()}


def _second_turn(bench: Bench, routed: Routed, before: Encoded, after: Encoded) -> int:
    """Who serves the last token of the second prompt. The mark of beginning of the second row is left out."""
    ids = torch.tensor([[*before.ids, *after.ids[1:]]])
    begin, end = len(before.ids), len(before.ids) + after.prompt_length - 1
    prompt = torch.zeros_like(ids, dtype=torch.bool)
    prompt[0, : before.prompt_length] = prompt[0, begin:end] = True
    seen: list[Observation] = []
    # A gate of granularity "prompt" decides once for both turns.
    with routed.observed(seen.append), routed.given(prompt=prompt):
        bench.base.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    weights = seen[0].routing.dense()[0]
    last = weights[min(end, weights.shape[0]) - 1]
    return int(last.argmax()) + 1 if last.sum() > 0.5 else 0


if __name__ == "__main__":
    main()
