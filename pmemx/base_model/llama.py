"""A small Llama with untrained weights and one token a word."""

from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pmemx.base_model.word_tokenizer import SPECIALS, word_tokenizer
from pmemx.core.pretraining import UntrainedModel


@dataclass(frozen=True, kw_only=True)
class UntrainedLlama(UntrainedModel):
    """Size of a Llama with tied embeddings (arXiv:2302.13971)."""

    layers: int = 3
    width: int = 128
    heads: int = 2
    mlp: int = 320
    context: int = 256

    def build(
        self, words: tuple[str, ...], punctuation: tuple[str, ...]
    ) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        """The model in train mode, and its tokenizer."""
        tokenizer = word_tokenizer(words, punctuation, context=self.context)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=SPECIALS.index("<s>"),
            eos_token_id=SPECIALS.index("</s>"),
            pad_token_id=SPECIALS.index("<pad>"),
            # At the default of 0.02 a model this narrow attends evenly for hundreds of steps.
            initializer_range=self.width**-0.5,
        )
        return LlamaForCausalLM(config), tokenizer
