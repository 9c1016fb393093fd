"""Carry a recorded state on under another condition: what does x_s hold, what is read anew? (paper Sec. 4.1 and 5.2)

    >>> from cosutils.measures.carried import carried, recorded
    >>> sample = cos.tasks.reappear.sample(0)
    >>> run = recorded(pipe, sample, num_inference_steps=4)
    >>> sorted(carried(pipe, run, 2, sample.twin()).x0)  # two steps of its own, then under the twin's picture
    [2, 3]

The condition of an image-to-video model, its picture and its prompt, is given anew at every step. What an answer owes
to the state x_s is seen where the condition is exchanged or taken away on the way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline
from PIL import Image

from ..hooks.record import Run, record, resume
from ..mini import world
from ..mini.tasks import Sample
from ..pipelines.loading import seeded, settings

__all__ = ["carried", "erased", "recorded"]


def recorded(pipe: WanImageToVideoPipeline, sample: Sample, seed: int = 0, **call: Any) -> Run:
    """Run `pipe` on `sample` and keep x_s and x0hat of every step. call: overrides of the preset's settings."""
    with record(pipe, keep=("x", "x0")) as run:
        pipe(**sample.inputs | settings(pipe) | call, generator=seeded(seed), output_type="latent")
    return run


def carried(
    pipe: WanImageToVideoPipeline, run: Run, step: int, sample: Sample, once: bool = False, **call: Any
) -> Run:  # fmt: skip
    """Go on from x_s of `run` at `step` under the condition of `sample`; holds x0hat of the steps that were taken.

    run: of one video, by `recorded`. once: stop after this one step, so that x0hat is read where the condition changed
    and no later step can overrule it. call: overrides, such as another image, or a list of prompts: the rows of this
    batch all begin with the same state. Unlike `resume`, which refuses another condition, this is made for one.
    KeyError for a step that was not recorded.
    """
    call = sample.inputs | settings(pipe) | call
    rows = len(call["prompt"]) if isinstance(call["prompt"], list) else 1
    state = replace(run.rows([0] * rows), info={}, generators={})  # without the facts that `resume` compares
    call |= dict(num_inference_steps=run.steps, output_type="latent", generator=seeded(0))
    if once:
        call["callback_on_step_end"] = _stop
    with record(pipe, keep=("x0",)) as found:
        resume(pipe, state, step, **call)
    return found


def erased(sample: Sample) -> Image.Image:
    """The given picture without what tells it from its twin's: floor in the cells in which the two differ.

    Of reappear the place of the ball, of occlusion the small object. ValueError where the twins share the picture.
    """
    first, other = sample.ids[0], sample.twin().ids[0]
    if np.array_equal(first, other):
        raise ValueError(f"the twins of {sample.task} have the same picture: it holds nothing to erase")
    film = sample.ids.copy()
    film[0] = np.where(first == other, first, world.TILE["floor"])
    return replace(sample, films={sample.answer: film}).image


def _stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Skip the steps that are left, by the pipeline's own switch."""
    pipe._interrupt = True
    return {}
