"""Noise schedules, exact, and the named settings a model is run with.

Linear flow: x_sigma = (1 - sigma) x0 + sigma n, v = dx / dsigma = n - x0. The schedule of N steps spaces s
evenly on linspace(1, 0, N + 1) and shifts it *once*, sigma = shift s / (1 + (shift - 1) s). Diffusers' own
`FlowMatchEulerDiscreteScheduler(shift=...)` shifts its end points first and everything again in
`set_timesteps`: with shift 5 its last of 50 sigmas is .0244 instead of .0926.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.configuration_utils import register_to_config

from .._check import whole

__all__ = ["PRESETS", "ExactEulerScheduler", "Preset", "flow_sigmas", "preset", "scheduler", "shifted"]


def flow_sigmas(steps: int, shift: float) -> torch.Tensor:
    """sigma_i = shift s_i / (1 + (shift - 1) s_i), s = linspace(1, 0, steps + 1). (authors' released sampler)

    Returns (steps + 1,) float32, from 1 down to the closing 0. Raises TypeError or ValueError unless `steps`
    is an integer of at least 1 and `shift` is positive.
    """
    steps = whole(steps, "steps", least=1)
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift must be positive and finite, got {shift}")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def shifted(s: torch.Tensor, shift: float) -> torch.Tensor:
    """sigma = shift s / (1 + (shift - 1) s): moves noise levels s in [0, 1] towards 1 for shift > 1."""
    return shift * s / (1 + (shift - 1) * s)


class ExactEulerScheduler(FlowMatchEulerDiscreteScheduler):
    """Diffusers' Euler solver on exactly `flow_sigmas(steps, shift)`.

    `timestep_dtype` "bfloat16" rounds what the model is told about time, sigma * 1000, as the authors'
    sampler does (steps of 4 near 1000); the sigmas that integrate stay exact.
    """

    timesteps: torch.Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0, timestep_dtype: str = "float32"):
        if timestep_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"timestep_dtype must be 'float32' or 'bfloat16', got {timestep_dtype!r}")
        super().__init__(num_train_timesteps=num_train_timesteps, shift=shift)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        flow_sigmas(num_inference_steps, self.shift)
        super().set_timesteps(sigmas=np.linspace(1, 0, num_inference_steps + 1)[:-1], device=device)
        rounded = getattr(torch, self.config.timestep_dtype)
        self.timesteps = self.timesteps.to(rounded).float()
        self.set_begin_index(0)  # rounded timesteps may repeat, the index must not be searched for


@dataclass(frozen=True)
class Preset:
    """Settings of one way to run a model; None means "as the model was shipped".

    steps: number of denoising steps. solver: "euler" (`ExactEulerScheduler`) or "unipc". shift: of the
    schedule. guidance, guidance_2: classifier-free guidance of the high-noise and of the low-noise expert.
    boundary: sigma in [0, 1] below which the low-noise expert takes over. Models with one expert (Wan2.1, TI2V-5B)
    take every preset too, without its boundary and second guidance. dtype, timestep_dtype: of the model
    and of what it is told about time.
    """

    name: str
    steps: int
    guidance: float
    guidance_2: float | None
    boundary: float | None
    solver: str | None
    shift: float | None
    dtype: str
    timestep_dtype: str


PRESETS = {
    row.name: row
    for row in (
        # name           steps  cfg  cfg2  boundary solver  shift  dtype       timesteps
        Preset("mini", 20, 1.0, None, None, "euler", 5.0, "float32", "float32"),
        Preset("paper", 50, 5.0, 5.0, 0.875, "euler", 5.0, "bfloat16", "bfloat16"),
        Preset("wan_official", 40, 3.5, 3.5, 0.9, "unipc", 5.0, "bfloat16", "float32"),
        Preset("hf_default", 50, 5.0, 5.0, None, None, None, "bfloat16", "float32"),
        Preset("distill4", 4, 1.0, 1.0, 0.9, "euler", 5.0, "bfloat16", "float32"),
        Preset("vbvr_pro", 30, 1.0, None, None, "euler", 5.0, "bfloat16", "float32"),
    )
}


def preset(name: str) -> Preset:
    """Return the preset called `name`; ValueError names the allowed ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def scheduler(settings: Preset) -> ExactEulerScheduler | UniPCMultistepScheduler | None:
    """Return a new scheduler for the preset, or None where the shipped one is meant."""
    if settings.solver is None:
        return None
    if settings.solver == "euler":
        return ExactEulerScheduler(shift=settings.shift, timestep_dtype=settings.timestep_dtype)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=settings.shift, solver_order=2
    )
