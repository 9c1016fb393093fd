"""What every instrument asks of a pipeline before it looks at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .families import family_of

__all__ = ["check_pipeline", "experts", "model_name", "remembering"]


def experts(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """Return the transformers of `pipe` by component name, noisiest first."""
    named = {name: getattr(pipe, name, None) for name in ("transformer", "transformer_2")}
    return {name: model for name, model in named.items() if model is not None}


def remembering(pipe: DiffusionPipeline) -> list[Any]:
    """The transformers of `pipe` that see their last estimate, such as `cosutils.mini.memory.RememberingWan`."""
    return [model for model in experts(pipe).values() if hasattr(model, "remember")]


def model_name(pipe: DiffusionPipeline) -> str | None:
    """Hub id or folder name of what `pipe` was loaded from, None where it was built."""
    model = pipe.config.get("_name_or_path")
    return Path(model).name if model and Path(model).is_dir() else model


def check_pipeline(pipe: Any, hooks: bool = False) -> None:
    """Raise TypeError or ValueError, in one sentence, for a pipeline whose recordings would be wrong.

    `hooks`: transformers will be hooked, so a whole-model `torch.compile` is refused too.
    """
    family_of(pipe).solver.check(pipe.scheduler)
    for name, model in experts(pipe).items():
        compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
        if hooks and compiled:
            raise ValueError(f"pipe.{name} is compiled as a whole, which hides hooks: use compile_repeated_blocks()")
        if getattr(model, "is_cache_enabled", False):
            raise ValueError(f"pipe.{name} has a feature cache enabled, which skips blocks: call its disable_cache()")
