"""Answers that say what produced them: provenance is observed in the passes that generate, and costs no other pass."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from pmemx.core.bank import Resident
from pmemx.core.canonical import canonical_json, digest
from pmemx.core.digest import fingerprint
from pmemx.core.encoding import Encoded
from pmemx.core.errors import PmemxError
from pmemx.core.gate import Gate
from pmemx.core.profile import Profile
from pmemx.core.provenance import Provenance, Share
from pmemx.core.routing import Observation
from pmemx.runtime.attach import Routed
from pmemx.runtime.generate import generate_batch
from pmemx.runtime.request import by_row


@dataclass(frozen=True)
class Answer:
    """New token ids, without the end token, and what produced them."""

    ids: tuple[int, ...]
    provenance: Provenance


@torch.no_grad()
def answers(
    routed: Routed,
    tokenizer: Any,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    sample: bool = False,
    seed: int = 0,
    gate: str = "",
) -> list[Answer]:
    """What `generate` says to every prompt, with its provenance; a batch sees one state of the bank, and a change waits.

    What `given` and `disabled` say holds here too. gate: a name for the gate, where its weights shall not be read for a
    digest at every call. A weight is the mean over all sites and over the tokens that were read for the answer: those of
    the prompt and of the answer itself, none of the padding. It takes a number for each pass, row and slot.
    Raises PmemxError for an expert without a version, and where the model's settings ask for beams or drafts.
    """
    _check_search(routed)
    base = routed.bank.base or fingerprint(routed.model)
    gate = gate or ("" if routed.gate is None else gate_digest(routed.gate))
    selection = "" if routed.select is None else canonical_json(routed.select)
    found: list[Answer] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            with routed.unchanged():
                residents, profiles = _versioned(routed), _profiles(routed, len(batch))
                watch = _Watch(len(batch), len(residents))
                with routed.observed(watch):
                    said = generate_batch(routed.model, tokenizer, batch, max_new_tokens=max_new_tokens, sample=sample)
            read = torch.tensor([len(ids) for ids in said]) + max(row.prompt_length for row in batch)
            weights = watch.weights(read).tolist()
            for row, ids, profile, own in zip(batch, said, profiles, weights, strict=True):
                decided_by = watch.decided_by(profile, gate, selection)
                shares = _shares(residents, own)
                prompt = digest(row.ids[: row.prompt_length])
                found.append(Answer(ids, Provenance(base, *decided_by, shares, prompt, digest(ids))))
    return found


def gate_digest(gate: Gate) -> str:
    """sha-256 over a gate's class, settings and state, as 64 hex digits; what it reads from its experts is none of that."""
    hasher = hashlib.sha256(f"{type(gate).__module__}.{type(gate).__qualname__}".encode())
    hasher.update(canonical_json(gate.shape).encode())
    for name, module in gate.named_modules():
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        settings = {key: value for key, value in own.items() if isinstance(value, bool | int | float | str)}
        hasher.update(canonical_json([name, settings]).encode())
    for name, tensor in gate.state_dict().items():
        hasher.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


class _Watch:
    """Observes generation: sums of weights by pass, row and slot, and the number of decisions in the last column."""

    def __init__(self, rows: int, slots: int) -> None:
        self.rows, self.slots = rows, slots
        self._fixed = False
        self._passes: list[Float[Tensor, "row sum"]] = []
        self._starts: list[int] = []
        self._tokens = 0
        self._attended: Tensor | None = None

    def __call__(self, seen: Observation) -> None:
        routing = seen.routing
        if seen.attended is not self._attended:
            self._attended = seen.attended
            self._starts.append(self._tokens)
            self._tokens += seen.attended.shape[1]
            sums = torch.zeros(self.rows, self.slots + 1, dtype=torch.float64, device=routing.weight.device)
            self._passes.append(sums)
        self._fixed = seen.scores is None
        decisions = routing.weight.shape[1]
        by_token = decisions == seen.attended.shape[1]
        counted = (seen.attended if by_token else seen.attended.any(dim=1, keepdim=True))[..., None]
        weight = routing.weight.double() * counted
        index = routing.index.expand(weight.shape)
        self._passes[-1].scatter_add_(1, index.flatten(1), weight.flatten(1))
        self._passes[-1][:, -1] += counted.sum(dim=(1, 2))

    def decided_by(self, profile: Profile | None, gate: str, selection: str) -> tuple[str, str]:
        """Gate and selection of a row, as Provenance names them. profile: the one that the row asked for."""
        if not self._passes:
            return "", ""
        if profile is not None:
            return "", canonical_json(profile)
        return ("", "") if self._fixed else (gate, selection)

    def weights(self, read: Int[Tensor, " row"]) -> Float[Tensor, "row slot"]:
        """Means over the passes that read the first `read` tokens of a row: those behind its end are not of its answer."""
        if not self._passes:
            return torch.zeros(self.rows, self.slots, dtype=torch.float64)
        counts = torch.tensor(self._starts)[:, None] < read
        sums = torch.einsum("prs,pr->rs", torch.stack(self._passes).cpu(), counts.double())
        return sums[:, :-1] / sums[:, -1:].clamp_min(1)


def _check_search(routed: Routed) -> None:
    config = routed.model.generation_config
    mode: GenerationMode = config.get_generation_mode()  # type: ignore[operator,union-attr]
    returned: int = config.num_return_sequences or 1  # type: ignore[assignment,union-attr]
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) or returned > 1:
        raise PmemxError(
            f"the model's generation_config asks for {mode.value} with {returned} answers to a prompt, in which rows change "
            f"places or take tokens back, and no row could tell its provenance; set it to one beam, one answer and no drafts"
        )


def _versioned(routed: Routed) -> tuple[Resident | None, ...]:
    for resident in routed.bank.residents:
        if resident is not None and not resident.version:
            raise PmemxError(
                f"expert {resident.name!r} has no version, so no answer could say what produced it; build the bank with "
                f"`versions`, or swap it in with `version`"
            )
    return routed.bank.residents


def _profiles(routed: Routed, rows: int) -> list[Profile | None]:
    asked = routed.request.profiles
    names = [None] * rows if asked is None else by_row("profiles", asked, rows)
    return [None if name is None else routed.profiles[name] for name in names]


def _shares(residents: Sequence[Resident | None], weights: Sequence[float]) -> tuple[Share, ...]:
    pairs = zip(residents, weights, strict=True)
    return tuple(Share(who.name, who.version, weight) for who, weight in pairs if who is not None and weight)
