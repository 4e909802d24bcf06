"""LoGo: choose by how strongly each expert answers the last token of a prompt at one site (arXiv:2511.07129)."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, FactorGate
from pmemx.core.vote import Granularity, Last, Pool

Signal = Literal["norm", "inverse_entropy"]
_QUERIES = ("q_proj", "query", "qkv_proj", "query_key_value", "Wqkv", "c_attn")


class OutputNormGate(FactorGate):
    """log s_e with s_e = |dW_e x| or 1 / entropy(softmax(dW_e x)), of the last token, at one site, for the whole model.

    A softmax over the best k logarithms is s_e / sum s, which are the published weights: take select=top_k. site: the name
    of the site, or its end ("self_attn.q_proj"), of which the one in the last layer counts; None takes the last query
    projection (or a joint one of queries, keys and values), and where the experts adapt none the last site of the bank.
    normalise: divide each update by its Frobenius norm; without it, as published, an expert 20 times larger captures
    everything. abstain: the log-signal of "no expert"; None, as published, never takes it.

    Published, x comes from a pass with all experts attached; here from the base alone, as for every gate. It is what the
    site reads, as in the paper's formula, where the released code takes the state before the layer's normalisation. An
    expert that skips the site scores the logarithm of the smallest float32, a weight of nothing.

    The norm is that of rank numbers: with B = QR it is |R A x|. Of inverse entropy, whose softmax needs every output, one
    expert's at a time are computed.
    """

    pool: Pool = Last()

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        site: str | None = None,
        signal: Signal = "norm",
        normalise: bool = True,
        abstain: float | None = None,
    ) -> None:
        # The sum over sites, of which all but one say 0, makes one site decide for all.
        super().__init__(shape, granularity=granularity, level="model")
        if signal not in ("norm", "inverse_entropy"):
            raise ConfigError(f"gate.signal {signal!r} is not one of norm, inverse_entropy")
        self.site = last_site(shape.sites, site)
        self.signal, self.normalise = signal, normalise
        self.abstain = NEVER if abstain is None else abstain
        num_experts = len(shape.experts)
        self.register_buffer("down", torch.zeros(num_experts, 1, shape.sites[self.site]), persistent=False)
        self.register_buffer("up", torch.zeros(num_experts, 1, 1), persistent=False)

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate."""
        self.get_buffer("down")[expert] = 0
        self.get_buffer("up")[expert] = 0
        if self.site not in factors:
            return
        found = factors[self.site]
        up, core = torch.linalg.qr(found.scale * found.B.double())
        down = core @ found.A.double()
        if self.normalise:
            down = F.normalize(down.flatten(), dim=0).view_as(down)
        self._hold("down", expert, down)
        self._hold("up", expert, up)

    def _hold(self, name: str, expert: int, found: Float[Tensor, "row column"]) -> None:
        held = self.get_buffer(name)
        rows, columns = (max(0, wanted - room) for wanted, room in zip(found.shape, held.shape[1:], strict=True))
        if rows or columns:
            held = F.pad(held, (0, columns, 0, rows))
            self.register_buffer(name, held, persistent=False)
        held[expert, : found.shape[0], : found.shape[1]] = found.to(held)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token feature"]:
        """R_e A_e x of every expert at the site that decides; nothing elsewhere."""
        if site != self.site:
            return x[..., :0].float()
        return x.float() @ self.get_buffer("down").flatten(0, 1).T

    def score(
        self, site: str, pooled: Float[Tensor, "batch decision feature"]
    ) -> Float[Tensor, "batch decision choice"]:
        """Zero at all sites but one."""
        if site != self.site:
            return pooled.new_zeros(*pooled.shape[:2], self.shape.num_choices)
        down = self.get_buffer("down")
        low = pooled.unflatten(-1, down.shape[:2])
        if self.signal == "norm":
            found = low.norm(dim=-1)
        else:
            found = torch.stack(
                [_inverse_entropy(low[..., e, :] @ up.T) for e, up in enumerate(self.get_buffer("up"))], -1
            )
            # Nothing is evenly spread as well, and has an entropy that would count.
            found = found.masked_fill(~down.flatten(1).any(dim=1), 0)
        return F.pad(found.clamp_min(torch.finfo(found.dtype).tiny).log(), (1, 0), value=self.abstain)


def last_site(sites: Iterable[str], site: str | None) -> str:
    """The site of that name or end in the last layer; None: see OutputNormGate. Raises ConfigError where there is none."""
    known = list(sites)
    if site is None:
        found = [name for name in known if name.endswith(_QUERIES)] or known
    else:
        found = [name for name in known if name == site or name.endswith(f".{site}")]
    if not found:
        raise ConfigError(
            f"gate.site {site!r} is no site of the bank, whose last is {last_site(known, None)!r}; name one of it"
        )
    # The order of a bank may be that of strings, where layer 10 comes before layer 9.
    return max(found, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], known.index(name)))


def _inverse_entropy(outputs: Float[Tensor, "batch decision width_out"]) -> Float[Tensor, "batch decision"]:
    share = outputs.log_softmax(dim=-1)
    # The released code's constant: an entropy of zero has an inverse too.
    return 1 / (1e-6 - (share.exp() * share).sum(dim=-1))
