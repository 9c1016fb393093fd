"""The text side of the embedded model: a word-level tokenizer and a small frozen UMT5 encoder.

The encoder keeps its seeded random weights: prompts are short and every word is told apart, the transformer learns
what they mean. Freezing it lets training encode each prompt once.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .tasks import MAX_LENGTH, WORDS

__all__ = ["MAX_LENGTH", "build_text_encoder", "build_tokenizer", "embed"]

FIRST = 59  # rows of the table of words that the seed draws before any others: those of the first ten tasks


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words, one end token; an unknown word becomes <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_text_encoder(seed: int = 0) -> UMT5EncoderModel:
    """A one-layer UMT5 encoder of width 64 with seeded random weights. Words of a further task change no others."""
    config = UMT5Config(vocab_size=FIRST, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4,
                        feed_forward_proj="gated-gelu")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = UMT5EncoderModel(config)
        words = encoder.resize_token_embeddings(len(WORDS) + 3, mean_resizing=False).weight.data
        for row in range(FIRST, len(words)):
            words[row] = torch.randn(words.shape[1], generator=torch.Generator().manual_seed(seed + row))
        return encoder.eval().requires_grad_(False)


@torch.no_grad()
def embed(tokenizer, encoder, prompts: list[str]) -> torch.Tensor:
    """Prompt embeddings (n, 16, 64), zero beyond the end token, as the Wan pipelines make them.

    ValueError for a prompt of more than 16 tokens and for one with a word that the tokenizer does not know.
    """
    tokens = tokenizer(prompts, padding="max_length", max_length=MAX_LENGTH)
    for prompt, ids in zip(prompts, tokens.input_ids, strict=True):
        if len(ids) > MAX_LENGTH:
            raise ValueError(f"a prompt has at most {MAX_LENGTH} tokens, got {sum(map(bool, ids))} in {prompt!r}")
        if tokenizer.unk_token_id in ids:
            unknown = [word for word in prompt.split() if tokenizer.unk_token_id in tokenizer(word).input_ids]
            raise ValueError(f"the model does not know {', '.join(map(repr, unknown))} in the prompt {prompt!r}")
    tokens = {name: torch.tensor(values) for name, values in tokens.items()}
    states = encoder(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    return states * tokens["attention_mask"][..., None]
