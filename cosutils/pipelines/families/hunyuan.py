"""HunyuanVideo image-to-video: guidance embedded in the model, dual-stream blocks followed by single-stream ones.

A model with `token_replace` holds latent frame 0. One with `latent_concat` denoises all frames, the first as a stand-in
for the image; the pipeline drops it from the latents it returns and its 4 pixel frames from the film, and so does
`decode`, while recorded states keep it. The branch "uncond" exists with true_cfg_scale > 1 and a negative prompt only.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from diffusers import HunyuanVideoImageToVideoPipeline
from torch import Tensor

from .base import Call, Family

__all__ = ["HunyuanVideo"]

DROPPED = 4  # pixel frames of the stand-in


class HunyuanVideo(Family):
    """`Call.known` is the latent frame of the given image (B, C, 1, H, W) where it is held, else None."""

    pipeline = HunyuanVideoImageToVideoPipeline
    blocks = ("transformer_blocks", "single_transformer_blocks")
    parts = MappingProxyType({"self_attention": "attn", "feed_forward": "ff"})  # the latter in dual-stream blocks
    settings = ("guidance_scale", "true_cfg_scale")
    unguided = "true_cfg_scale <= 1 or no negative_prompt"

    def passes(self, arguments: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        embeds = (arguments["negative_prompt_embeds"], arguments["negative_pooled_prompt_embeds"])
        negative = arguments["negative_prompt"] is not None or all(one is not None for one in embeds)
        return (("cond",), ("uncond",)) if negative and arguments["true_cfg_scale"] > 1 else (("cond",),)

    def held(self, pipe: Any) -> int:
        return int(pipe.transformer.config.image_condition_type == "token_replace")

    def known(self, call: Call, x: Tensor, rest: list[Tensor]) -> Tensor | None:
        return rest[0] if self.held(call.pipe) else None

    def decode(self, pipe: Any, latents: Tensor, frames: int) -> Tensor:
        film = pipe.vae.decode(latents / pipe.vae_scaling_factor, return_dict=False)[0]
        return film if self.held(pipe) else film[:, :, DROPPED:]
