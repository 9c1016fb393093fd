"""See how a video diffusion model reasons along its denoising steps.

A companion to "Demystifying Video Reasoning" (arXiv 2603.16870): instruments for the unmodified diffusers Wan
image-to-video pipelines, and `cos-mini`, a small trained model of the same architecture.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

from ._quiet import quiet

with quiet():  # its imports remark on a torchvision that nothing here needs
    from diffusers import WanImageToVideoPipeline as _  # noqa: F401

from .hooks._blocks import Place
from .hooks._call import Tap, tapped
from .hooks.attention import attention
from .hooks.capture import Capture, capture
from .hooks.edit import edit
from .hooks.ensemble import ensemble, merge_then_single
from .hooks.inject import Edit, inject, inject_each, noise_at, noise_at_frame, noise_at_step, renoise
from .hooks.record import Run, Series, record, resume
from .hooks.reductions import Grid, Reduction, energy, projection, raw, region, tokens
from .hooks.swap import swap
from .metrics import (
    Interval,
    bootstrap_interval,
    commitment_step,
    effective_number,
    leader,
    linear_cka,
    paired_interval,
    rate_interval,
)
from .pipelines.loading import load, seeded, settings, use_preset
from .pipelines.schedule import PRESETS, ExactEulerScheduler, Preset, flow_sigmas

LAZY = {
    "chain": "cosutils.measures.chain",
    "figures": "cosutils.report.figures",
    "mini": "cosutils.mini",
    "results": "cosutils.report.results",
    "tasks": "cosutils.mini.tasks",
    "vbvr": "cosutils.vbvr",
}

__all__ = [
    "PRESETS",
    "Capture",
    "Edit",
    "ExactEulerScheduler",
    "Grid",
    "Interval",
    "Place",
    "Preset",
    "Reduction",
    "Run",
    "Series",
    "Tap",
    "attention",
    "bootstrap_interval",
    "capture",
    "chain",
    "commitment_step",
    "edit",
    "effective_number",
    "energy",
    "ensemble",
    "figures",
    "flow_sigmas",
    "inject",
    "inject_each",
    "leader",
    "linear_cka",
    "load",
    "merge_then_single",
    "mini",
    "noise_at",
    "noise_at_frame",
    "noise_at_step",
    "paired_interval",
    "projection",
    "rate_interval",
    "raw",
    "record",
    "region",
    "renoise",
    "results",
    "resume",
    "seeded",
    "settings",
    "swap",
    "tapped",
    "tasks",
    "tokens",
    "use_preset",
    "vbvr",
]


def __getattr__(name: str) -> ModuleType:
    if name not in LAZY:
        raise AttributeError(f"cosutils has no {name!r}: choose from {', '.join(__all__)}")
    return import_module(LAZY[name])
