"""LoRA through PEFT: delta W = alpha / r * B A (arXiv:2106.09685), with rsLoRA's alpha / sqrt(r) (arXiv:2312.03732) as an option."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pmemx.core.adapter import Adapter
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.peft_config import adapted_sites

# Only initial values that leave the base's weights alone.
Init = Literal["default", "gaussian", "orthogonal"]
_PEFT_INIT: dict[Init, bool | Literal["gaussian", "orthogonal"]] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
}


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """Low-rank factors on linear layers.

    target_modules: "all-linear" (every linear layer but the head), a regular expression for whole names, or name endings
    ("q_proj"). rank_pattern, alpha_pattern: exceptions by regular expression for name endings. layers_to_transform: layer
    indices, all where None. init "orthogonal" wants even ranks.
    """

    rank: int = 4
    alpha: float = 8.0
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    use_rslora: bool = False
    init: Init = "default"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if self.layers_to_transform is not None:
            object.__setattr__(self, "layers_to_transform", tuple(self.layers_to_transform))
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        ranks = (self.rank, *self.rank_pattern.values())
        if min(ranks) < 1:
            raise ConfigError(f"adapter.rank must be at least 1, got {min(ranks)}")
        if self.init == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ConfigError(
                f"adapter.init=orthogonal wants even ranks, got {ranks}; choose even ones or another init"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout is a probability below 1, got {self.dropout}")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ConfigError(
                "adapter.layers_to_transform needs adapter.target_modules as a list of name endings, got "
                f"{self.target_modules!r}; write [q_proj, v_proj, ...]"
            )

    def widened(self, factor: int) -> "Lora":
        """See Adapter.widened; rsLoRA's scale falls with the root of the rank, so its alpha grows with the root alone."""
        grow = factor**0.5 if self.use_rslora else factor
        return replace(
            self,
            rank=self.rank * factor,
            alpha=self.alpha * grow,
            rank_pattern={name: rank * factor for name, rank in self.rank_pattern.items()},
            alpha_pattern={name: alpha * grow for name, alpha in self.alpha_pattern.items()},
        )

    def inject(self, model: nn.Module, seed: int) -> nn.Module:
        """See Adapter.inject; the result is a PeftModel whose adapter has a name that is no part of a module's name."""
        self._check_targets(model)
        name = _free_name(model, seed)
        # PEFT draws on the CPU, from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            adapted = get_peft_model(model, self._config(), adapter_name=name)  # pyright: ignore[reportArgumentType]
        # The frozen base stays in eval mode; the adapter's own dropout is what training is about.
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout.train()
        return adapted

    def extract(self, adapted: nn.Module) -> tuple[dict[str, LoraFactors], dict[str, Any]]:
        """See Adapter.extract; the config is what PEFT itself would save, with its sets sorted."""
        name, layers = _layers(adapted)
        factors = {
            site: LoraFactors(layer.A.detach().cpu().clone(), layer.B.detach().cpu().clone(), layer.scale)
            for site, layer in layers.items()
        }
        assert isinstance(adapted, PeftModel)
        config = adapted.peft_config[name].to_dict() | {"inference_mode": True}
        # Sorted at the top alone: PEFT sorts inside rank_pattern too, although the first pattern that matches wins.
        return factors, json.loads(json.dumps(dict(sorted(config.items())), default=sorted))

    @torch.no_grad()
    def restore(self, adapted: nn.Module, factors: Mapping[str, LoraFactors]) -> None:
        """See Adapter.restore."""
        _, layers = _layers(adapted)
        if layers.keys() != factors.keys():
            odd = sorted(layers.keys() ^ factors.keys())
            raise IncompatibleBlock(
                f"adapter and factors differ in {len(odd)} sites ({', '.join(odd[:4])}); inject the adapter that made them"
            )
        for site, layer in layers.items():
            have = (tuple(layer.A.shape), tuple(layer.B.shape), layer.scale)
            given = (tuple(factors[site].A.shape), tuple(factors[site].B.shape), factors[site].scale)
            if have != given:
                raise IncompatibleBlock(
                    f"{site} has shapes and scale {have}, the factors {given}; inject the adapter that made them"
                )
        for site, layer in layers.items():
            layer.A.copy_(factors[site].A)
            layer.B.copy_(factors[site].B)

    def remove(self, adapted: nn.Module) -> nn.Module:
        """See Adapter.remove."""
        assert isinstance(adapted, PeftModel)
        return adapted.base_model.unload()  # pyright: ignore[reportCallIssue]

    def _config(self) -> LoraConfig:
        targets, layers = self.target_modules, self.layers_to_transform
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=_short(self.alpha),  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=self.use_rslora,
            init_lora_weights=_PEFT_INIT[self.init],
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern={key: _short(alpha) for key, alpha in self.alpha_pattern.items()},
            layers_to_transform=None if layers is None else list(layers),
        )

    def _check_targets(self, model: nn.Module) -> None:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        layers = None if self.layers_to_transform is None else list(self.layers_to_transform)
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        asked = {"target_modules": targets, "layers_to_transform": layers}
        endings = sorted({name.rpartition(".")[2] for name in linear})
        for target in [targets] if isinstance(targets, str) else targets:
            if not adapted_sites({"target_modules": target if isinstance(targets, str) else [target]}, linear):
                near = difflib.get_close_matches(target, endings, n=1)
                hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(endings)}"
                raise ConfigError(f"adapter.target_modules: no linear layer of the model is called {target!r}; {hint}")
        sites = adapted_sites(asked, linear)
        if not sites:
            raise ConfigError(f"adapter.layers_to_transform {layers} leaves no layer to adapt; choose among {linear}")
        for name in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, name):
                if not adapted_sites({"target_modules": rf"(.*\.)?({pattern})"}, sites):
                    raise ConfigError(f"adapter.{name}: {pattern!r} fits no adapted layer; remove it, or correct it")


def _short(alpha: float) -> float:
    # PEFT's alphas are integers where they can be, and its config says 8, not 8.0.
    return int(alpha) if alpha == int(alpha) else alpha


def _free_name(model: nn.Module, seed: int) -> str:
    # PEFT drops tensors from what it saves when an adapter is called like a part of a module's name ("0", "mlp").
    taken = {part for name, _ in model.named_modules() for part in name.split(".")}
    attempt = 0
    while (name := "px" + hashlib.sha256(f"{seed}:{attempt}".encode()).hexdigest()[:12]) in taken:
        attempt += 1
    return name


@dataclass(frozen=True, eq=False)
class _Layer:
    A: Tensor
    B: Tensor
    scale: float


def _layers(adapted: nn.Module) -> tuple[str, dict[str, _Layer]]:
    assert isinstance(adapted, PeftModel)
    (name,) = adapted.peft_config
    layers = {}
    for site, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            A, B = module.lora_A[name], module.lora_B[name]
            assert isinstance(A, nn.Linear)
            assert isinstance(B, nn.Linear)
            layers[site] = _Layer(A.weight, B.weight, float(module.scaling[name]))
    return name, layers
