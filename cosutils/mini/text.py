"""The text side of the embedded model: a word-level tokenizer and a small frozen UMT5 encoder.

The encoder keeps its seeded random weights: prompts are short and every word is told apart, the transformer learns
what they mean. Freezing it lets training encode each prompt once.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

__all__ = ["MAX_LENGTH", "build_text_encoder", "build_tokenizer", "embed"]

MAX_LENGTH = 16
WORDS = ["walk", "through", "the", "maze", "to", "red", "goal", "short", "long", "route", "purple", "yellow", "move", "and", "win", "carry", "ball", "first", "second", "third", "fourth", "level", "frame", "blue", "diamond", "triangle", "ring", "continue", "pattern", "by", "rows", "columns", "turn", "shape", "90", "180", "270", "degrees", "leaves", "right", "top", "left", "bottom", "comes", "back", "block", "slides", "across", "small", "object", "bounces", "until", "it", "meets", "a", "target"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words, one end token; an unknown word becomes <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_text_encoder(seed: int = 0) -> UMT5EncoderModel:
    """A one-layer UMT5 encoder of width 64 with seeded random weights."""
    config = UMT5Config(vocab_size=len(WORDS) + 3, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4,
                        feed_forward_proj="gated-gelu")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config).eval().requires_grad_(False)


@torch.no_grad()
def embed(tokenizer, encoder, prompts: list[str]) -> torch.Tensor:
    """Prompt embeddings (n, 16, 64), zero beyond the end token, as the Wan pipelines make them."""
    tokens = tokenizer(prompts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return states * tokens.attention_mask[..., None]
