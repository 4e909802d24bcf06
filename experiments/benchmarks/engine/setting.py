"""What is measured on: a random Llama, adapter folders as PEFT saves them, and the two engines that load them."""

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from peft import ArrowConfig, LoraConfig, PeftModel, XLoraConfig, get_peft_model
from peft.tuners.lora.arrow import check_loaded_lora_compatibility_arrow
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.peft_folder import read_peft_folder, write_peft_folder

from .memory import resident_bytes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Shapes and sizes. batch x tokens is the full batch, few rows are used where PEFT is slow; prompt + new tokens are
    generated in the mixed batch, long_prompt + long_new with X-LoRA. peer: numbers of experts at which PEFT is measured."""

    hidden: int = 512
    intermediate: int = 1376
    layers: int = 8
    vocab: int = 8192
    rank: int = 8
    alpha: int = 16
    batch: int = 8
    few: int = 2
    tokens: int = 128
    prompt: int = 16
    new: int = 16
    long_prompt: int = 64
    long_new: int = 32
    experts: tuple[int, ...] = (8, 32, 128, 512)
    peer: tuple[int, ...] = (8, 32, 128)
    trained: tuple[int, ...] = (8, 32)
    rounds: int = 7
    strategy_experts: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    strategy_chosen: tuple[int, ...] = (1, 2, 4)
    strategy_tokens: tuple[int, ...] = (2, 16, 64, 256, 1024)
    strategy_rounds: int = 3
    device: str = "cpu"
    dtype: str = "float32"


QUICK = Setting(
    hidden=64,
    intermediate=96,
    layers=2,
    vocab=97,
    rank=4,
    batch=4,
    tokens=12,
    prompt=5,
    new=4,
    long_prompt=6,
    long_new=4,
    experts=(2, 4),
    peer=(2, 4),
    trained=(2,),
    rounds=2,
    strategy_experts=(4,),
    strategy_chosen=(2,),
    strategy_tokens=(4, 16),
    strategy_rounds=1,
)


@dataclass(frozen=True)
class Loaded:
    """What loading adapters into PEFT cost: seconds for each, and resident bytes for all."""

    seconds: tuple[float, ...]
    resident: int


class Bench:
    """A base model with adapters on disk; every engine gets its own modules over the same weights."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        self.dtype, self.device = getattr(torch, setting.dtype), torch.device(setting.device)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=setting.vocab,
            hidden_size=setting.hidden,
            intermediate_size=setting.intermediate,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.hidden // min(64, setting.hidden // 2),
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        self.base = LlamaForCausalLM(config).to(self.device, self.dtype).eval().requires_grad_(False)
        self.sites = {
            name: (module.in_features, module.out_features)
            for name, module in self.base.named_modules()
            if name.endswith(TARGETS)
        }
        self._config = self._peft_config()

    def twin(self) -> LlamaForCausalLM:
        """Modules of its own over the base model's weights."""
        twin = LlamaForCausalLM(LlamaConfig.from_dict(self.base.config.to_dict())).to(self.device, self.dtype)
        twin.load_state_dict(self.base.state_dict(), assign=True)
        return twin.eval().requires_grad_(False)

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ids(self, rows: int, length: int) -> Tensor:
        """Random text, the same at every call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(3, self.setting.vocab, (rows, length), generator=generator).to(self.device)

    # The experts.

    def _peft_config(self) -> dict:
        config = LoraConfig(
            r=self.setting.rank, lora_alpha=self.setting.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM"
        )
        with torch.device("meta"):
            model = get_peft_model(LlamaForCausalLM(self.base.config), config)
        saved = self.folder / "config"
        model.peft_config["default"].save_pretrained(str(saved))
        return json.loads((saved / "adapter_config.json").read_text())

    def block(self, number: int) -> CapabilityBlock:
        """Expert `number`: A as PEFT draws it, B of a size that trained adapters have."""
        generator = torch.Generator().manual_seed(number)
        factors = {}
        for site, (width_in, width_out) in self.sites.items():
            A = (torch.rand(self.setting.rank, width_in, generator=generator) * 2 - 1) * width_in**-0.5
            B = torch.randn(width_out, self.setting.rank, generator=generator) * 0.02
            factors[site] = LoraFactors(A, B, self.setting.alpha / self.setting.rank)
        return CapabilityBlock(BlockCard(f"e{number}", "random", "", peft_config=self._config), factors)

    def adapter(self, number: int) -> Path:
        """The folder of expert `number`, written when it is first asked for."""
        path = self.folder / f"e{number}"
        return path if path.exists() else write_peft_folder(self.block(number), path)

    def bank(self, experts: int) -> ExpertBank:
        """Experts 0 to `experts` - 1."""
        return ExpertBank([self.block(number) for number in range(experts)])

    def imported(self, experts: int) -> ExpertBank:
        """The same bank from the adapters' folders."""
        return ExpertBank([read_peft_folder(self.adapter(number), name=f"e{number}") for number in range(experts)])

    # PEFT's engines.

    def peft(self, experts: int) -> tuple[PeftModel, Loaded]:
        """A model with the adapters e0, e1, ..."""
        folders = [str(self.adapter(number)) for number in range(experts)]
        twin = self.twin()
        before, seconds = resident_bytes(), []
        for number, folder in enumerate(folders):
            start = perf_counter()
            if number == 0:
                model = PeftModel.from_pretrained(twin, folder, adapter_name="e0")
            else:
                model.load_adapter(folder, adapter_name=f"e{number}")
            seconds.append(perf_counter() - start)
        return model.eval(), Loaded(tuple(seconds), resident_bytes() - before)

    def add_arrow(self, model: PeftModel, experts: int, top_k: int) -> None:
        """What peft.create_arrow_model does once it has loaded its adapters."""
        names = [f"e{number}" for number in range(experts)]
        targets, rank = check_loaded_lora_compatibility_arrow(model, adapter_names=names)
        arrow = ArrowConfig(top_k=top_k, router_temperature=1.0, rng_seed=0)
        arrow.task_adapter_names = names
        model.add_adapter("arrow_router", LoraConfig(arrow_config=arrow, target_modules=targets, r=rank))
        model.set_adapter("arrow_router")
        model.eval()

    def xlora(self, experts: int) -> PeftModel:
        """X-LoRA with one linear classifier for all sites."""
        twin = self.twin()
        twin.config.use_cache = False
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=self.setting.hidden,
            # PEFT looks adapters up by these numbers; other names raise KeyError in 0.21.
            adapters={str(number): str(self.adapter(number)) for number in range(experts)},
            xlora_depth=1,
            layerwise_scalings=False,
        )
        torch.manual_seed(5)
        return get_peft_model(twin, config).eval()
