"""What a PEFT LoRA config means: ranks and scales by site, adapted sites, and what factors alone cannot represent."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# A LoraConfig field that, when set, makes the layer compute something else than W x + scale * B A x, or moves W itself.
_BEYOND_FACTORS = {
    "use_dora": "DoRA rescales by the norm of W + dW; retrain with use_dora=False or approximate with peft.convert_to_lora",
    "lora_bias": "a bias beside lora_B is no low-rank factor; retrain with lora_bias=False",
    "modules_to_save": "whole trained modules come with it; retrain without modules_to_save, or merge it into a base of its own",
    "trainable_token_indices": "trained token embeddings come with it; retrain without trainable_token_indices",
    "target_parameters": "it adapts bare parameters, not linear layers; retrain with target_modules",
    "layer_replication": "it duplicates layers of the base; save the deeper model as a base of its own and train on that",
    "alora_invocation_tokens": "it acts only after its invocation tokens; retrain without alora_invocation_tokens",
    "use_qalora": "QA-LoRA pools the input of A; retrain with use_qalora=False",
    "use_bdlora": "BD-LoRA factors are block-diagonal; retrain with use_bdlora=None or approximate with peft.convert_to_lora",
    "arrow_config": "it routes among other adapters; import those adapters one by one and choose a gate",
    "kasa_config": "KaSA truncates the base's weights; retrain with kasa_config=None",
    "monteclora_config": "MonteCLoRA samples its factors; retrain with monteclora_config=None",
    "velora_config": "VeLoRA keeps buffers of its own; retrain with velora_config=None",
    "megatron_config": "it belongs to tensor-parallel Megatron layers; gather it into an ordinary adapter first",
}
# Fields that choose sites, ranks and scales (read below), or that act on training and book-keeping alone.
# fmt: off
_UNDERSTOOD = frozenset(
    (
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
        "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
        "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
        "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora"
    )
)
# fmt: on
# Initial values that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from its weights.
_HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Every reason why the adapter of this config is more, or less, than low-rank factors; each says what to do."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return [
            f"peft_type is {kind!r}, not 'LORA'; methods that add a weight update (LoHa, LoKr, ...) can be approximated "
            "with peft.convert_to_lora, prompt and prefix methods cannot"
        ]
    reasons = [f"{field} is set: {why}" for field, why in _BEYOND_FACTORS.items() if config.get(field)]
    if config.get("bias", "none") != "none":
        reasons.append(f"bias is {config['bias']!r}: trained biases are no low-rank factors; retrain with bias='none'")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in _HARMLESS_INITS:
        reasons.append(
            f"init_lora_weights is {init!r}, which moves the base's weights at the start; save it again with "
            "path_initial_model_for_weight_conversion, or set it to true if it leaves the base as it is"
        )
    unknown = sorted(field for field in config.keys() - _UNDERSTOOD - _BEYOND_FACTORS.keys() if config[field])
    if unknown:
        reasons.append(
            f"unknown fields {', '.join(unknown)} may change what the adapter computes; remove them if they do not"
        )
    return reasons + _wrong_numbers(config)


def _wrong_numbers(config: Mapping[str, Any]) -> list[str]:
    reasons = []
    patterns = {field: config.get(field) or {} for field in ("rank_pattern", "alpha_pattern")}
    ranks = {"r": config.get("r", 8)} | {f"rank_pattern {key!r}": v for key, v in patterns["rank_pattern"].items()}
    for field, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            reasons.append(f"{field} is {rank!r}, not a positive integer; correct the config")
    alphas = {"lora_alpha": config.get("lora_alpha", 8)}
    alphas |= {f"alpha_pattern {key!r}": alpha for key, alpha in patterns["alpha_pattern"].items()}
    for field, alpha in alphas.items():
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
            reasons.append(f"{field} is {alpha!r}, not a finite number; correct the config")
    for field, pattern in ((field, pattern) for field, keys in patterns.items() for pattern in keys):
        try:
            re.compile(_anywhere(pattern))
        except re.error as error:
            reasons.append(
                f"{field} holds {pattern!r}, which is not a regular expression ({error}); correct the config"
            )
    return reasons


def rank_and_scale(config: Mapping[str, Any], site: str) -> tuple[int, float]:
    """The rank and the scale that PEFT gives a site: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
    rank = _by_pattern(config.get("rank_pattern"), site, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern"), site, config.get("lora_alpha", 8))
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, site: str, default: Any) -> Any:
    # The first pattern that matches wins, so their order has a meaning.
    return next((value for key, value in (patterns or {}).items() if re.match(_anywhere(key), site)), default)


def _anywhere(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def adapted_sites(config: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Those of a model's linear layers that PEFT would adapt. "all-linear" stands for every layer inside a block."""
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    if targets == "all-linear":
        targets = r".*\.\d+\..*"
    return {
        name
        for name in names
        if _matches(targets, name)
        and not _matches(excluded, name)
        and (isinstance(targets, str) or _in_layers(config, name))
    }


def _matches(targets: str | Iterable[str], name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _in_layers(config: Mapping[str, Any], name: str) -> bool:
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if layers is None or layers == []:
        return True
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def generated_config(sites: Mapping[str, tuple[int, float]], *, base_name: str) -> dict[str, Any]:
    """A plain LoRA config for sites of given rank and scale; deviations from the commonest become exact-name patterns.

    A scale that no alpha / r hits in float64 is met to one unit in its last place.
    """
    ranks = {site: rank for site, (rank, _) in sites.items()}
    alphas = {site: _alpha(rank, scale) for site, (rank, scale) in sites.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted(sites),
        "rank_pattern": {rf"^{re.escape(site)}": value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {rf"^{re.escape(site)}": value for site, value in alphas.items() if value != alpha},
    }


def _alpha(rank: int, scale: float) -> float:
    product = scale * rank
    near = (product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    alpha = min(near, key=lambda candidate: abs(candidate / rank - scale))
    return int(alpha) if alpha == int(alpha) else alpha
