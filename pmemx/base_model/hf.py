"""Any causal language model that transformers can load, from the Hub or from a local folder."""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import AutoModelForCausalLM, AutoTokenizer

from pmemx.base_model.freeze import frozen
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HfBaseModel(BaseModel):
    """path: Hub id or local folder. revision: branch, tag or commit on the Hub.

    end_token: what ends a response, where it is not the tokenizer's own end token. A low-rank update of linear layers
    cannot teach a model to say a token that its pre-training never saw.

    Code that comes with a model is never run.
    """

    path: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "cpu"
    attn_implementation: str | None = None
    end_token: str | None = None

    def load(self) -> LoadedBase:
        """Raises ConfigError when path is missing or nothing can be loaded from it."""
        if not self.path:
            raise ConfigError("base_model.path is empty, but hf needs one: base_model.path=<Hub id or local folder>")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.path,
                revision=self.revision,
                dtype=self.dtype,
                attn_implementation=self.attn_implementation,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"base_model.path={self.path} holds no causal language model with a tokenizer that transformers can "
                f"load ({error}); give a Hub id or a folder with config.json, weights and tokenizer files"
            ) from error
        if self.end_token is not None:
            if self.end_token not in tokenizer.get_vocab():
                raise ConfigError(
                    f"base_model.end_token={self.end_token!r} is no token of {self.path}; give one of its vocabulary"
                )
            tokenizer.eos_token = self.end_token
        loaded = frozen(model, tokenizer, name=self.path, device=self.device)
        return replace(loaded, revision=self.revision or "")
