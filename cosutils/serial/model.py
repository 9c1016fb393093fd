"""The testbed's models: diffusers' Wan classes at the size of a row, in the stock image-to-video pipeline.

A token is one row of the board in one latent frame (patch 1 x 1 x 10), a film has 3 x 10 tokens. The codec is
`PatchCodec` with two components, the hue of a cell, which is exact because every cell is of one colour and
all colours lie in one plane.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from torch import Tensor, nn

from ..mini import text
from ..mini.codec import PatchCodec
from ..mini.memory import RememberingWan
from ..mini.model import condition, decode
from ..pipelines.schedule import ExactEulerScheduler
from . import puzzles as world

__all__ = [
    "SHIFT",
    "LoopedWan",
    "build_codec",
    "build_pipeline",
    "build_transformer",
    "condition",
    "decode",
    "embed",
    "encode",
    "hasten",
]

SHIFT = 3.0  # of the noise levels, in training and sampling
CHANNELS = 2


class _Repeated(nn.ModuleList):
    """Blocks that are gone through `times` times, with the same weights."""

    times = 1

    def __iter__(self):
        for _ in range(self.times):
            yield from super().__iter__()


class LoopedWan(WanTransformer3DModel):
    """A Wan transformer whose blocks are gone through `loops` times: a depth that can be chosen at run time."""

    @functools.wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.blocks = _Repeated(self.blocks)

    @property
    def loops(self) -> int:
        return self.blocks.times

    @loops.setter
    def loops(self, times: int) -> None:
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise ValueError(f"loops must be an integer of at least 1, got {times!r}")
        self.blocks.times = times


class _OneKey:
    """Cross-attention to a single word, without the softmax that is 1: equal to the stock processor, and
    cheaper.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        if encoder_hidden_states.shape[1] != 1:
            raise ValueError(f"this processor attends to one word, got {encoder_hidden_states.shape[1]}")
        out = attn.to_out[0](attn.to_v(encoder_hidden_states))
        return attn.to_out[1](out).expand_as(hidden_states)


def hasten(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Give its cross-attention the processor for prompts of one word; returns it. For training and batches
    only.
    """
    for block in transformer.blocks.children():
        block.attn2.set_processor(_OneKey())
    return transformer


def build_codec(scale: float, films: np.ndarray) -> PatchCodec:
    """The hue of each cell, centred on `films` (n, 3, 10, 10) and with root mean square `scale` over them."""
    colours = torch.from_numpy(world.COLOURS) * 2 - 1
    mean = colours[torch.from_numpy(films).long()].flatten(0, -2).mean(0)
    plane = torch.linalg.svd(colours, full_matrices=False)[2][:CHANNELS]
    pixels = 4 * 8 * 8  # of a patch
    codec = PatchCodec(CHANNELS)
    codec.basis.data = plane.repeat(1, pixels) / pixels**0.5
    codec.mean.data = mean.repeat(pixels)
    rms = float(encode(codec, films).square().mean().sqrt())
    codec.register_to_config(latents_std=[rms / scale] * CHANNELS)
    return codec.eval()


def _cells(codec: PatchCodec) -> Tensor:
    """Normalised latents of every tile, (6, 2)."""
    patches = (torch.from_numpy(world.COLOURS) * 2 - 1).repeat(1, codec.mean.numel() // 3)
    return (patches - codec.mean) @ codec.basis.T / torch.tensor(codec.config.latents_std)


def encode(codec: PatchCodec, films: np.ndarray) -> Tensor:
    """Normalised latents (n, 2, 3, 10, 10) of films of tile numbers (n, 3, 10, 10): equal to encoding the
    drawn films.
    """
    return _cells(codec)[torch.from_numpy(films).long()].permute(0, 4, 1, 2, 3).contiguous()


def build_transformer(layers: int, variant: str = "plain", loops: bool = False, width: int = 64, heads: int = 2,
                      scale: float = 1.0) -> WanTransformer3DModel:  # fmt: skip
    """A Wan transformer of `layers` blocks; with variant "memory" a `RememberingWan`, with loops a
    `LoopedWan`.
    """
    if loops and variant == "memory":
        raise ValueError("a looped transformer with a memory is not part of the testbed")
    kind = RememberingWan if variant == "memory" else LoopedWan if loops else WanTransformer3DModel
    model = kind(
        patch_size=(1, 1, world.CELLS), num_attention_heads=heads, attention_head_dim=width // heads, num_layers=layers,
        in_channels=2 * CHANNELS + 4, out_channels=CHANNELS, text_dim=64, freq_dim=64, ffn_dim=4 * width,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    for block in model.blocks.children():
        _open(block)
    if kind is RememberingWan:
        model.patch_embedding.weight.data[:, -CHANNELS:] /= scale
    return model


def _open(block: nn.Module) -> None:
    """A start that learns in minutes: gates open, and the first head looks at its own row, the others at the
    row above.

    Rotary positions turn row j by j rad (first pair) and 0.16 j rad (second pair of the rows' dimensions): a
    constant query turned back by one row finds the row above.
    """
    block.scale_shift_table.data.zero_()
    block.scale_shift_table.data[:, [2, 5]] = 1
    attention = block.attn1
    size = attention.to_q.out_features // attention.heads
    rows = 2 * (size // 6)
    for layer in (attention.to_q, attention.to_k):
        layer.weight.data *= 0.5
        layer.bias.data.zero_()
    for head in range(attention.heads):
        for pair in range(2):
            at = head * size + size - 2 * rows + 2 * pair
            turn = torch.tensor(-(head > 0) * 10_000.0 ** (-2 * pair / rows))
            attention.to_q.bias.data[at : at + 2] = 2 * torch.stack([turn.cos(), turn.sin()])
            attention.to_k.bias.data[at] = 2
    for norm in (attention.norm_q, attention.norm_k):  # sharp: neighbours are one radian apart
        norm.weight.data.fill_(1.7)


def build_pipeline(codec: PatchCodec, transformer: WanTransformer3DModel) -> WanImageToVideoPipeline:
    """The stock pipeline. Call it with an empty prompt, `max_sequence_length=1` and 9 frames of 80 x 80
    pixels.
    """
    pipe = WanImageToVideoPipeline(
        tokenizer=text.build_tokenizer(), text_encoder=text.build_text_encoder(), vae=codec,
        transformer=transformer.eval(), scheduler=ExactEulerScheduler(shift=SHIFT),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embed() -> Tensor:
    """Embedding of the empty prompt, (1, 1, 64): the picture says everything."""
    return text.embed(text.build_tokenizer(), text.build_text_encoder(), [""])[:, :1]
