"""CogVideoX image-to-video: v-prediction of a variance-preserving diffusion, both branches in one batch.

x_s = sqrt(abar) x0 + sqrt(1 - abar) n, and the model's v gives x0hat = sqrt(abar) x_s - sqrt(1 - abar) v. The sigma
of a step is the noise's weight sqrt(1 - abar), so that sqrt(abar) = sqrt(1 - sigma^2). The loop's latents are
(B, F, C, H, W). CogVideoX 1.5 pads the latent frames at the front to whole patches; recorded states keep the padding.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline
from torch import Tensor

from .base import Call, Family, Flow

__all__ = ["CogVideoX"]


class _Diffusion(Flow):
    """The schedulers of CogVideoX. The multistep one (DPM) is given its memory, the estimate of the step before, by
    the pipeline, and draws fresh noise at every step.
    """

    def check(self, scheduler: Any) -> None:
        known = isinstance(scheduler, (CogVideoXDDIMScheduler, CogVideoXDPMScheduler))
        if not known or scheduler.config.prediction_type != "v_prediction":
            raise ValueError(
                f"{type(scheduler).__name__} is not a scheduler of CogVideoX: use CogVideoXDDIMScheduler or "
                "CogVideoXDPMScheduler with v_prediction"
            )

    def sigmas(self, scheduler: Any) -> Tensor:
        times, known = scheduler.timesteps.cpu(), scheduler.alphas_cumprod.cpu()
        last = int(times[-1]) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        final = known[last] if last >= 0 else scheduler.final_alpha_cumprod.cpu()
        return (1 - torch.cat([known[times], final[None].to(known)])).sqrt().float()

    def signal(self, sigma: Tensor) -> Tensor:
        return (1 - sigma.double() ** 2).sqrt().float()

    def estimate(self, x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        return self.signal(sigma).to(x) * x - sigma.to(x) * v.float()

    def begin(self, scheduler: Any, step: int) -> None:
        pass  # its schedulers find their step by its timestep

    def draws(self, scheduler: Any, arguments: dict[str, Any]) -> str | None:
        if isinstance(scheduler, CogVideoXDPMScheduler):
            return "CogVideoXDPMScheduler"
        return f"eta={arguments['eta']}" if arguments["eta"] > 0 else None

    def state(self, scheduler: Any, arguments: tuple[Any, ...]) -> Tensor:
        return arguments[3 if isinstance(scheduler, CogVideoXDPMScheduler) else 1]

    def taken(self, scheduler: Any, arguments: tuple[Any, ...]) -> int:
        timestep = arguments[1 if isinstance(scheduler, CogVideoXDPMScheduler) else 0]
        return int((scheduler.timesteps == timestep).nonzero())

    def undisturbed(
        self, scheduler: Any, edits: dict[int, list[str]], v: Tensor, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """In place of the memory goes the step's own estimate: the step is of first order, yet draws as many random
        numbers as in the plain run, so that the noise of later steps stays the same.
        """
        if not isinstance(scheduler, CogVideoXDPMScheduler) or arguments[0] is None:
            return arguments
        step = self.taken(scheduler, arguments)
        if step not in edits:
            return arguments
        sigma = self.sigmas(scheduler)[step]
        return (self.estimate(arguments[3].float(), v, sigma), *arguments[1:])


class CogVideoX(Family):
    pipeline = CogVideoXImageToVideoPipeline
    parts = MappingProxyType({"self_attention": "attn1"})  # of text and video together
    solver = _Diffusion()
    settings = ("guidance_scale", "use_dynamic_cfg")

    def patch(self, pipe: Any) -> tuple[int, int, int]:
        config = pipe.transformer.config
        return config.patch_size_t or 1, config.patch_size, config.patch_size

    def complete(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        config, (_, side) = pipe.transformer.config, self.scales(pipe)
        sizes = {"height": config.sample_height * side, "width": config.sample_width * side}
        return arguments | {name: arguments[name] or default for name, default in sizes.items()}

    def size(self, pipe: Any, arguments: dict[str, Any]) -> tuple[int, int, int]:
        frames, rows, columns = super().size(pipe, arguments)
        return frames + -frames % self.patch(pipe)[0], rows, columns

    def passes(self, arguments: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        return (("uncond", "cond"),) if arguments["guidance_scale"] > 1 else (("cond",),)

    def unpack(self, call: Call, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def pack(self, call: Call, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def from_solver(self, call: Call, part: Tensor, held: Tensor | None = None) -> Tensor:
        return part.transpose(1, 2)

    def to_solver(self, call: Call, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def decode(self, pipe: Any, latents: Tensor, frames: int) -> Tensor:
        padding = latents.shape[2] - ((frames - 1) // self.scales(pipe)[0] + 1)
        return pipe.decode_latents(latents[:, :, padding:].transpose(1, 2))
