"""LTX-Video image-to-video: tokens (B, N, C) in the loop, latent frame 0 held, both branches in one batch.

A VAE with timestep conditioning decodes at timestep 0 and without added noise, the pipeline's defaults.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import LTXImageToVideoPipeline
from torch import Tensor

from .base import Call, Family

__all__ = ["LTX"]


class LTX(Family):
    """`Call.known` is the latent frame of the given image (B, C, 1, H, W)."""

    pipeline = LTXImageToVideoPipeline
    parts = MappingProxyType({**Family.parts, "feed_forward": "ff"})
    settings = ("guidance_scale", "guidance_rescale", "frame_rate")

    def scales(self, pipe: Any) -> tuple[int, int]:
        return pipe.vae_temporal_compression_ratio, pipe.vae_spatial_compression_ratio

    def passes(self, arguments: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        return (("uncond", "cond"),) if arguments["guidance_scale"] > 1 else (("cond",),)

    def held(self, pipe: Any) -> int:
        return 1

    def handed_on(self, pipe: Any) -> torch.dtype:
        return torch.float32 if pipe.do_classifier_free_guidance else super().handed_on(pipe)

    def unpack(self, call: Call, latents: Tensor) -> Tensor:
        time, side, _ = self.patch(call.pipe)
        grid = [size // patch for size, patch in zip(call.size, self.patch(call.pipe), strict=True)]
        return call.pipe._unpack_latents(latents, *grid, side, time)

    def pack(self, call: Call, x: Tensor) -> Tensor:
        time, side, _ = self.patch(call.pipe)
        return call.pipe._pack_latents(x, side, time)

    def decode(self, pipe: Any, latents: Tensor, frames: int) -> Tensor:
        vae = pipe.vae
        latents = pipe._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        timestep = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        return vae.decode(latents, timestep, return_dict=False)[0]
