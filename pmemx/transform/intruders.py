"""Intruder dimensions: damp the singular directions of W + dW that the base does not know (arXiv:2410.21228)."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.digest import fingerprint
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.transform import Transform


@dataclass(frozen=True, kw_only=True)
class IntruderReduction(Transform):
    """PEFT's reduce_intruder_dimension, site by site on copies of the base's weights.

    With W + dW = U S V^T, those of the first top_k columns u_i are intruders whose largest |cos| to a left singular
    vector of W is below epsilon. The update becomes dW + (mitigation_lambda - 1) sum_i s_i u_i v_i^T, cut to the rank
    that dW had: the rank of the sum may be higher, and what goes is not reported. Sites without intruders stay bit for
    bit. mitigation_lambda is the share of an intruder that remains, as in the paper and PEFT's code; PEFT's docstring has
    it the other way round. 1 leaves everything.

    Computed on the device of the model, in float32 or better; factors keep their own type and device.
    Raises ConfigError for settings out of range; IncompatibleBlock when a block is of another base, or adapts a site that
    is no linear layer of the model with floating-point weights of the block's widths.
    """

    top_k: int = 10
    epsilon: float = 0.5
    mitigation_lambda: float = 0.75

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k {self.top_k} looks at no direction; give at least 1")
        for name in ("epsilon", "mitigation_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is outside 0..1; choose a value inside")

    @torch.no_grad()
    def transformed(self, blocks: tuple[CapabilityBlock, ...], model: nn.Module) -> tuple[CapabilityBlock, ...]:
        """See Transform.transformed."""
        base = fingerprint(model)
        for block in blocks:
            if block.card.base not in ("", base):
                raise IncompatibleBlock(
                    f"{block.card.name!r} was trained on base {block.card.base[:12]}, but the model is {base[:12]}; "
                    "give the model that it was trained on"
                )
        layers = dict(model.named_modules())
        weights = {(block.card.name, site): _weight(layers, block, site) for block in blocks for site in block.factors}
        return tuple(
            self.changed(
                block,
                {site: self._reduced(weights[block.card.name, site], f) for site, f in block.factors.items()},
            )
            for block in blocks
        )

    def _reduced(self, weight: Float[Tensor, "width_out width_in"], update: LoraFactors) -> LoraFactors:
        # PEFT treats each layer by itself: a model of this one layer is all the copy that it needs. It would round to
        # half precision what it computes for a half-precision layer, so the copy is wide.
        dtype = reduce(torch.promote_types, (weight.dtype, update.A.dtype, update.B.dtype), torch.float32)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
        alone = nn.Sequential(OrderedDict(site=linear))
        config = LoraConfig(
            r=update.rank,
            lora_alpha=update.scale * update.rank,  # pyright: ignore[reportArgumentType]
            target_modules=["site"],
        )
        # PEFT draws initial values, which are overwritten at once, from the global generator.
        with torch.random.fork_rng(devices=[]):
            adapted = get_peft_model(alone, config, adapter_name="expert")  # pyright: ignore[reportArgumentType]
            layer = adapted.get_base_model().get_submodule("site")
            assert isinstance(layer, LoraLayer)
            _factor(layer.lora_A, "expert").data = update.A.to(weight.device, dtype)
            _factor(layer.lora_B, "expert").data = update.B.to(weight.device, dtype)
            reduce_intruder_dimension(
                adapted,
                old_adapter_name="expert",
                new_adapter_name="reduced",
                top_k=self.top_k,
                threshold_epsilon=self.epsilon,
                mitigation_lambda=self.mitigation_lambda,
                logging_sink=None,
            )
        A, B = _factor(layer.lora_A, "reduced").data, _factor(layer.lora_B, "reduced").data
        return LoraFactors(A.to(update.A, copy=True), B.to(update.B, copy=True), update.scale)


def _factor(factors: nn.ModuleDict, name: str) -> Tensor:
    linear = factors[name]
    assert isinstance(linear, nn.Linear)
    return linear.weight


def _weight(layers: Mapping[str, nn.Module], block: CapabilityBlock, site: str) -> Float[Tensor, "width_out width_in"]:
    layer = layers.get(site)
    where = f"{block.card.name!r} adapts {site!r}"
    if not isinstance(layer, nn.Linear):
        raise IncompatibleBlock(f"{where}, which is no linear layer of the model; give the model it was trained on")
    if not layer.weight.is_floating_point():
        raise IncompatibleBlock(
            f"{where}, which is quantised ({layer.weight.dtype}); load the base without quantisation"
        )
    found = (block.factors[site].B.shape[0], block.factors[site].A.shape[1])
    if found != tuple(layer.weight.shape):
        raise IncompatibleBlock(
            f"{where} from {found[1]} to {found[0]}, but in the model that maps {layer.weight.shape[1]} to "
            f"{layer.weight.shape[0]}; give the model it was trained on"
        )
    return layer.weight
