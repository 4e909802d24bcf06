"""A lossless tokenizer with one token per word of a closed vocabulary, and bytes for everything else."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


def word_tokenizer(words: Sequence[str], punctuation: Sequence[str], *, context: int) -> PreTrainedTokenizerFast:
    """Unigram (arXiv:1808.06226) over whole words, so that foreign text decodes to itself byte by byte.

    Each word is the token "▁word", punctuation stands without the mark of a space. No text is ever unknown. A text begins
    with "<s>" unless add_special_tokens is false.
    context: the most tokens that the model of this tokenizer can read.
    """
    byte_tokens = tuple(f"<0x{byte:02X}>" for byte in range(256))
    pieces = (*SPECIALS, *byte_tokens, "▁", *punctuation, *(f"▁{word}" for word in words))
    tokenizer = Tokenizer(
        # Every piece costs the same, so the segmentation with the fewest pieces wins: the whole word.
        models.Unigram([(piece, -1.0) for piece in pieces], unk_id=pieces.index("<unk>"), byte_fallback=True)
    )
    # A line's first word would otherwise be another token than the same word after a space.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\n(?=[^\n])"), "\n "), normalizers.Prepend(" "), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"[{''.join(punctuation)}]"), "isolated"),
            pre_tokenizers.Split(Regex("▁"), "merged_with_next"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # As every text of pre-training began: a model that reads a prompt without it answers worse.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", pieces.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=context,
    )
