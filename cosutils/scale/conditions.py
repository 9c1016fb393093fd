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
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from diffusers import DiffusionPipeline

from ..hooks.ensemble import ensemble, merge_then_single
from ..hooks.inject import Edit, from_noise, inject, noise_at_frame, noise_at_step, renoise
from ..hooks.record import Run, record
from ..pipelines.loading import seeded

__all__ = ["CONDITIONS", "Merge", "films", "numbers", "steps_computed", "treatment"]

CONDITIONS: dict[str, Callable[[int, int], Edit] | None] = {
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


def treatment(condition: str, steps: int, latent_frames: int, seed: int) -> Edit | Merge | None:
    """What `condition` asks for in a run of `steps` and so many latent frames; None for a plain run.

    seed: of the noise that is put in. ValueError for an unknown condition, or a step or frame that is not there.
    """
    if merged := MERGED.fullmatch(condition):
        what = Merge(merged[1] != "ensemble", int(merged[2]), numbers(merged[3]), numbers(merged[4]))
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
            f"unknown condition {condition!r}; allowed are {forms} with a whole number K, and "
            "'ensemble K layers L steps S', 'merge_then_single K layers L steps S' with L and S such as 20-29 or 0,2"
        )
    make = CONDITIONS[name]
    if make is None:
        return None
    things, count = ("latent frames", latent_frames) if name == "noise_at_frame" else ("steps", steps)
    if int(number) >= count:
        raise ValueError(f"condition {condition!r}: a run of {count} {things} has {things} 0..{count - 1}")
    return make(int(number), seed)


def steps_computed(what: Edit | Merge | None, steps: int, estimates: bool) -> int:
    """Steps of one film that a run of `steps` computes: what its time is counted in.

    A run with noise at step i begins there (see `inject.from_noise`), unless its `estimates` are all needed.
    """
    if isinstance(what, Merge):
        together = max(what.steps) + 1 if what.single else steps
        return what.size * together + steps - together
    return steps - (what.step or 0) if _begins_in_noise(what, estimates) else steps


def numbers(text: str) -> tuple[int, ...]:
    """The numbers that such as 0,4-6 names; ValueError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not span or (span[2] and int(span[2]) < int(span[1])):
            raise ValueError(f"layers and steps are numbers and rising ranges such as 0,4-6, got {text!r}")
        found += range(int(span[1]), int(span[2] or span[1]) + 1)
    return tuple(found)


def _begins_in_noise(what: Edit | Merge | None, estimates: bool) -> TypeGuard[Edit]:
    """Whether no step before the condition can matter: all frames are replaced, and nobody looks at these steps."""
    return isinstance(what, Edit) and what.frame is None and not what.keep_estimate and not estimates


def films(
    pipe: DiffusionPipeline, what: Edit | Merge | None, seed: int, call: dict[str, Any], estimates: bool
) -> tuple[np.ndarray, Run]:
    """Films (K, T, H, W, 3) of the run, K = 1 but for "ensemble", and its recording, with x0 for `estimates`."""
    call |= {"generator": seeded(seed), "output_type": "np"}
    keep = ("x0",) if estimates else ()
    if isinstance(what, Merge):
        call |= {"prompt": [call["prompt"]] * what.size, "generator": seeded(range(seed, seed + what.size))}
        if what.single:
            output, run = merge_then_single(pipe, layers=what.layers, steps=what.steps, **call)
            return output.frames, run
        with ensemble(pipe, what.layers, what.steps), record(pipe, keep=keep) as run:
            return pipe(**call).frames, run
    with record(pipe, keep=keep) as run:
        if _begins_in_noise(what, estimates):
            return from_noise(pipe, what, **call).frames, run
        with inject(pipe, what) if what else nullcontext():
            return pipe(**call).frames, run
