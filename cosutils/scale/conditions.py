"""What is done to a run: the conditions of a spec, written as text.

    plain                                            nothing
    noise_at_step 12                                 all of x_s is noise at step 12 (paper, Sec. 3.2)
    noise_at_frame 3                                 latent frame 3 is noise at every step (Sec. 3.2)
    renoise 12                                       control: the estimate stays, its noise is renewed
    ensemble 3 layers 20-29 steps 0                  three seeds merged there; measures are means over their films
    merge_then_single 3 layers 20-29 steps 0-4       the first of the three goes on alone after the merged steps

Layers and steps of an ensemble are numbers and ranges such as 0,4-6. Its member k starts like a plain run of
noise_seed + k; the film of the first one is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from ..hooks.ensemble import ensemble, merge_then_single
from ..hooks.inject import Edit, from_noise, inject, noise_at_frame, noise_at_step, renoise
from ..hooks.record import Run, record
from ..pipelines.loading import seeded

__all__ = ["CONDITIONS", "Merge", "effort", "films", "treatment"]

CONDITIONS = {
    "plain": None,
    "noise_at_step": noise_at_step,
    "noise_at_frame": noise_at_frame,
    "renoise": renoise,
}
MERGED = re.compile(r"(ensemble|merge_then_single) (\d+) layers (\d[\d,-]*) steps (\d[\d,-]*)")


@dataclass(frozen=True)
class Merge:
    """An ensemble condition: `size` seeds merged in `layers` at `steps`; single: one goes on after the last of them."""

    single: bool
    size: int
    layers: tuple[int, ...]
    steps: tuple[int, ...]


def treatment(spec: Mapping[str, Any]) -> Edit | Merge | None:
    """What the condition of a spec asks for; None for a plain run."""
    condition, steps = str(spec["condition"]), spec["steps"]
    if merged := MERGED.fullmatch(condition):
        what = Merge(merged[1] != "ensemble", int(merged[2]), _numbers(merged[3]), _numbers(merged[4]))
        if what.size < 1:
            raise ValueError(f"condition {condition!r}: an ensemble has 1 seed or more")
        if (last := max(what.steps)) >= steps - what.single:
            why = "leaves no step for a single seed" if what.single and last == steps - 1 else "does not exist"
            raise ValueError(f"condition {condition!r}: step {last} {why} in a run of {steps} steps (0..{steps - 1})")
        return what
    name, _, number = condition.partition(" ")
    if name not in CONDITIONS or (name == "plain") != (number == "") or not (number == "" or number.isdecimal()):
        forms = ", ".join(form if form == "plain" else f"'{form} K'" for form in CONDITIONS)
        raise ValueError(
            f"unknown condition {spec['condition']!r}; allowed are {forms} with a whole number K, and "
            "'ensemble K layers L steps S', 'merge_then_single K layers L steps S' with L and S such as 20-29 or 0,2"
        )
    if name == "plain":
        return None
    if name != "noise_at_frame" and int(number) >= steps:
        raise ValueError(f"condition {condition!r}: a run of {steps} steps has steps 0..{steps - 1}")
    return CONDITIONS[name](int(number), spec["noise_seed"] + spec.get("seed", 0))


def effort(spec: Mapping[str, Any]) -> int:
    """Steps of one film that the run of a completed `spec` computes: what its time is counted in.

    A run with noise at step i begins there (see `inject.from_noise`), unless a measure needs all its estimates.
    """
    what, steps = treatment(spec), spec["steps"]
    if isinstance(what, Merge):
        together = max(what.steps) + 1 if what.single else steps
        return what.size * together + steps - together
    return steps - what.step if _begins_in_noise(spec, what) else steps


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers that such as 0,4-6 names; ValueError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not span or (span[2] and int(span[2]) < int(span[1])):
            raise ValueError(f"layers and steps are numbers and rising ranges such as 0,4-6, got {text!r}")
        found += range(int(span[1]), int(span[2] or span[1]) + 1)
    return tuple(found)


def _begins_in_noise(spec: Mapping[str, Any], what: Edit | Merge | None) -> bool:
    """Whether no step before the condition can matter: all frames are replaced, and no measure looks at these steps."""
    noise = isinstance(what, Edit) and what.frame is None and not what.keep_estimate
    return noise and "commitment" not in spec["measures"]


def films(pipe: DiffusionPipeline, spec: Mapping[str, Any], call: dict[str, Any]) -> tuple[np.ndarray, Run]:
    """Films (K, T, H, W, 3) of the run, K = 1 but for "ensemble", and its recording."""
    what, first = treatment(spec), spec["noise_seed"] + spec.get("seed", 0)
    call |= {"generator": seeded(first), "output_type": "np"}
    keep = ("x0",) if "commitment" in spec["measures"] else ()
    if isinstance(what, Merge):
        merging = {"layers": what.layers, "steps": what.steps}
        call |= {"prompt": [call["prompt"]] * what.size, "generator": seeded(range(first, first + what.size))}
        if what.single:
            output, run = merge_then_single(pipe, **merging, **call)
            return output.frames, run
        with ensemble(pipe, **merging), record(pipe, keep=keep) as run:
            return pipe(**call).frames, run
    with record(pipe, keep=keep) as run:
        if _begins_in_noise(spec, what):
            return from_noise(pipe, what, **call).frames, run
        with inject(pipe, what) if what else nullcontext():
            return pipe(**call).frames, run
