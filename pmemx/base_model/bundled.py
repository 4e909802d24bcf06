"""The base model that ships with the package: small, fast, and known to read cards and to remember a world."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import AutoModelForCausalLM, AutoTokenizer

from pmemx.base_model.freeze import frozen
from pmemx.core.base_model import BaseModel, LoadedBase

FOLDER = Path(__file__).parent / "bundled"


@dataclass(frozen=True, kw_only=True)
class BundledBaseModel(BaseModel):
    """See base_model/bundled/README.md for its recipe and its scores. device is a torch device ("cpu", "cuda:0")."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    def load(self) -> LoadedBase:
        """Needs no network."""
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=self.dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
        return frozen(model, tokenizer, name="bundled", device=self.device)
