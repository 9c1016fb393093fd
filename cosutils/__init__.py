"""See how a video diffusion model reasons along its denoising steps.

A companion to "Demystifying Video Reasoning" (arXiv 2603.16870): instruments for the unmodified diffusers Wan
image-to-video pipelines, and `cos-mini`, a small trained model of the same architecture.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

from .inject import Edit, inject, noise_at, noise_at_frame, noise_at_step, renoise, sweep
from .loading import load, seeded, settings, use_preset
from .record import Run, Series, record, resume
from .schedule import PRESETS, ExactEulerScheduler, Preset, flow_sigmas

LAZY = {"figures": "cosutils.figures", "mini": "cosutils.mini", "tasks": "cosutils.mini.tasks"}

__all__ = [
    "PRESETS",
    "Edit",
    "ExactEulerScheduler",
    "Preset",
    "Run",
    "Series",
    "figures",
    "flow_sigmas",
    "inject",
    "load",
    "mini",
    "noise_at",
    "noise_at_frame",
    "noise_at_step",
    "record",
    "renoise",
    "resume",
    "seeded",
    "settings",
    "sweep",
    "tasks",
    "use_preset",
]


def __getattr__(name: str) -> ModuleType:
    if name not in LAZY:
        raise AttributeError(f"cosutils has no {name!r}: choose from {', '.join(__all__)}")
    return import_module(LAZY[name])
