"""Wan 2.1 and 2.2 image-to-video, with one or two experts, and TI2V-5B.

TI2V-5B gives the solver all latent frames and puts the given image back into frame 0 before every forward.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor

from .base import Call, Family

__all__ = ["Wan"]


class Wan(Family):
    """`Call.known` is (condition, mask) for TI2V-5B, else None."""

    pipeline = WanImageToVideoPipeline
    blocks = ("blocks",)
    parts = MappingProxyType({**Family.parts, "feed_forward": "ffn"})
    settings = ("guidance_scale", "guidance_scale_2")

    def patch(self, pipe: Any) -> tuple[int, int, int]:
        return tuple((pipe.transformer or pipe.transformer_2).config.patch_size)

    def given(self, pipe: Any) -> int:
        return int(bool(pipe.config.expand_timesteps))

    def known(self, call: Call, x: Tensor, rest: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        return tuple(rest) if len(rest) == 2 else None

    def velocity(self, call: Call, v: Tensor) -> Tensor:
        return v

    def with_given(self, call: Call, x: Tensor) -> Tensor:
        if call.known is None:
            return x
        condition, mask = call.known
        return (1 - mask) * condition + mask * x

    def decode(self, pipe: Any, latents: Tensor, frames: int) -> Tensor:
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
            for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
        )
        return pipe.vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
