"""Films that do not solve a puzzle, to score beside a model's."""

from __future__ import annotations

import numpy as np

from . import tasks

__all__ = ["CONTROLS", "control"]

CONTROLS = ("frozen", "noise", "jump", "other")


def control(name: str, sample: tasks.Sample) -> np.ndarray:
    """A film of the size of `sample` that does not solve it: the first frame held, uniform noise, a jump from the first
    to the true last frame in the middle, or the true film of another puzzle of the task."""
    first, last = sample.video[:1], sample.video[-1:]
    if name == "frozen":
        return np.repeat(first, len(sample.video), 0)
    if name == "noise":
        return np.random.default_rng(sample.seed).random(sample.shape)
    if name == "jump":
        half = len(sample.video) // 2
        return np.concatenate([first] * half + [last] * (len(sample.video) - half))
    if name == "other":
        seed = sample.seed + 1_000_000
        return tasks.sample(sample.task, seed, sample.difficulty, pixels=sample.pixels, frames=sample.frames).video
    raise ValueError(f"unknown control {name!r}; controls are {', '.join(CONTROLS)}")
