"""What every base model goes through before it is handed out: eval mode, no gradients, a pad token, an identity."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmemx.core.base_model import LoadedBase
from pmemx.core.digest import fingerprint
from pmemx.core.errors import ConfigError


def frozen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, device: str) -> LoadedBase:
    """Move the model to its device and freeze it in place.

    Raises ConfigError when the tokenizer has neither a pad nor an end token.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {name} has neither pad_token nor eos_token, but rows are padded; "
                f"add a pad_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    # The identity is taken on the CPU: devices may not round alike.
    identity = fingerprint(model)
    model.requires_grad_(False).eval().to(device)  # type: ignore[arg-type]
    context = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return LoadedBase(model, tokenizer, name, identity, int(context))
