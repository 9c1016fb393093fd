"""What is done to a run: the conditions of a spec, written as text.

    plain                                            nothing
    noise_at_step 12                                 all of x_s is noise at step 12 (paper, Sec. 3.2)
    noise_at_frame 3                                 latent frame 3 is noise at every step (Sec. 3.2)
    renoise 12                                       control: the estimate stays, its noise is renewed
    ensemble 3 layers 20-29 steps 0                  three seeds merged there; measures are means over their films
    merge_then_single 3 layers 20-29 steps 0-4       the first of the three goes on alone after the merged steps
    truth 12                                         begins at step 12 from the true film under noise of that level
    prompt_from 12                                   the prompt is empty before step 12
    prompt_until 12                                  the prompt is empty from step 12 on
    prompt_switch 12                                 the twin's prompt before step 12, of puzzles whose twin has another
    picture_until 12                                 a grey picture stands for the given one from step 12 on
    frames_apart steps 0-9                           no attention between latent frames there, see `measures.frames`
    frames_earlier steps 0-9, frames_later steps 0-9    none to later ones, none to earlier ones

Layers and steps are numbers and ranges such as 0,4-6. Member k of an ensemble starts like a plain run of
noise_seed + k; the film of the first one is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..hooks.ensemble import ensemble, head, merge_then_single
from ..hooks.inject import Edit, from_noise, inject, noise_at_frame, noise_at_step, renoise
from ..hooks.record import Run, Series, record, resume
from ..measures.frames import RULES, between_frames
from ..pipelines.check import remembering
from ..pipelines.families import family_of
from ..pipelines.loading import seeded

__all__ = ["CONDITIONS", "Exchanged", "Merge", "Narrowed", "Treatment", "Truth", "films", "numbers", "steps_computed",
           "treatment"]  # fmt: skip


@dataclass(frozen=True)
class Merge:
    """An ensemble condition: `size` seeds merged in `layers` at `steps`; single: one goes on after the last of them."""

    single: bool
    size: int
    layers: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Exchanged:
    """`what` is given in another form up to `step`, exclusive, or from it on: "no prompt", "twin's prompt", "grey"."""

    what: str
    step: int
    before: bool


@dataclass(frozen=True)
class Truth:
    """The run begins at `step`, in the true film under noise from `seed`."""

    step: int
    seed: int


@dataclass(frozen=True)
class Narrowed:
    """`between_frames` by this rule at `steps`."""

    rule: str
    steps: tuple[int, ...]


Treatment = Edit | Merge | Exchanged | Truth | Narrowed
CONDITIONS: dict[str, Callable[[int, int], Treatment] | None] = {  # "<name> K" -> f(K, seed)
    "plain": None,
    "noise_at_step": noise_at_step,
    "noise_at_frame": noise_at_frame,
    "renoise": renoise,
    "truth": Truth,
    "prompt_from": lambda step, seed: Exchanged("no prompt", step, before=True),
    "prompt_until": lambda step, seed: Exchanged("no prompt", step, before=False),
    "prompt_switch": lambda step, seed: Exchanged("twin's prompt", step, before=True),
    "picture_until": lambda step, seed: Exchanged("grey", step, before=False),
}
MERGED = re.compile(r"(ensemble|merge_then_single) (\d+) layers (\d[\d,-]*) steps (\d[\d,-]*)")
NARROWED = re.compile(rf"frames_({'|'.join(RULES)}) steps (\d[\d,-]*)")


def treatment(condition: str, steps: int, latent_frames: int, seed: int) -> Treatment | None:
    """What `condition` asks for in a run of `steps` and so many latent frames; None for a plain run.

    seed: of the noise that is put in. ValueError for an unknown condition, or a step or frame that is not there.
    """
    if narrowed := NARROWED.fullmatch(condition):
        chosen = numbers(narrowed[2])
        if max(chosen) >= steps:
            raise ValueError(
                f"condition {condition!r}: step {max(chosen)} does not exist in a run of {steps} steps (0..{steps - 1})"
            )
        return Narrowed(narrowed[1], chosen)
    if merged := MERGED.fullmatch(condition):
        together = Merge(merged[1] != "ensemble", int(merged[2]), numbers(merged[3]), numbers(merged[4]))
        if together.size < 1:
            raise ValueError(f"condition {condition!r}: an ensemble has 1 seed or more")
        if (last := max(together.steps)) >= steps - together.single:
            why = "leaves no step for a single seed" if together.single and last == steps - 1 else "does not exist"
            raise ValueError(f"condition {condition!r}: step {last} {why} in a run of {steps} steps (0..{steps - 1})")
        return together
    name, _, number = condition.partition(" ")
    if name not in CONDITIONS or (name == "plain") != (number == "") or not (number == "" or number.isdecimal()):
        forms = ", ".join(form if form == "plain" else f"'{form} K'" for form in CONDITIONS)
        raise ValueError(
            f"unknown condition {condition!r}; allowed are {forms} with a whole number K, and "
            "'ensemble K layers L steps S', 'merge_then_single K layers L steps S', 'frames_apart steps S', "
            "'frames_earlier steps S', 'frames_later steps S' with L and S such as 20-29 or 0,2"
        )
    make = CONDITIONS[name]
    if make is None:
        return None
    things, count = ("latent frames", latent_frames) if name == "noise_at_frame" else ("steps", steps)
    if int(number) >= count:
        raise ValueError(f"condition {condition!r}: a run of {count} {things} has {things} 0..{count - 1}")
    what = make(int(number), seed)
    if isinstance(what, Exchanged) and what.step == 0:
        raise ValueError(
            f"condition {condition!r}: an exchange at step 0 leaves nothing of the one side, choose 1 or more"
        )
    return what


def steps_computed(what: Treatment | None, steps: int, estimates: bool) -> int:
    """Steps of one film that a run of `steps` computes: what its time is counted in.

    A run with noise at step i begins there (see `inject.from_noise`), unless its `estimates` are all needed; one from
    the truth does in any case.
    """
    if isinstance(what, Truth):
        return steps - what.step
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


def _begins_in_noise(what: Treatment | None, estimates: bool) -> TypeGuard[Edit]:
    """Whether no step before the condition can matter: all frames are replaced, and nobody looks at these steps."""
    return isinstance(what, Edit) and what.frame is None and not what.keep_estimate and not estimates


def films(
    pipe: DiffusionPipeline,
    what: Treatment | None,
    seed: int,
    call: dict[str, Any],
    estimates: bool,
    sample: Any = None,
) -> tuple[np.ndarray, Run]:
    """Films (K, T, H, W, 3) of the run, K = 1 but for "ensemble", and its recording, with x0 for `estimates`.

    sample: the puzzle, whose true film or twin a condition needs.
    """
    call |= {"generator": seeded(seed), "output_type": "np"}
    keep = ("x0",) if estimates else ()
    if isinstance(what, Merge):
        call |= {"prompt": [call["prompt"]] * what.size, "generator": seeded(range(seed, seed + what.size))}
        if what.single:
            output, run = merge_then_single(pipe, layers=what.layers, steps=what.steps, **call)
            return output.frames, run
        with ensemble(pipe, what.layers, what.steps), record(pipe, keep=keep) as run:
            return pipe(**call).frames, run
    if isinstance(what, Exchanged):
        return _exchanged(pipe, what, call, keep, sample)
    with record(pipe, keep=keep) as run:
        if isinstance(what, Truth):
            return resume(pipe, _noisy_truth(pipe, what, call, sample), what.step, **call).frames, run
        if isinstance(what, Narrowed):
            with between_frames(pipe, what.rule, what.steps):
                return pipe(**call).frames, run
        if _begins_in_noise(what, estimates) and not remembering(pipe):
            return from_noise(pipe, what, **call).frames, run
        with inject(pipe, what) if what else nullcontext():
            return pipe(**call).frames, run


def _exchanged(
    pipe: DiffusionPipeline, what: Exchanged, call: dict[str, Any], keep: tuple[str, ...], sample: Any
) -> tuple[np.ndarray, Run]:
    """A run whose prompt or picture is exchanged on the way."""
    if what.what == "grey":
        other = call | {"image": Image.new("RGB", call["image"].size, (128, 128, 128))}
    else:
        other = call | {"prompt": "" if what.what == "no prompt" else sample.twin().prompt}
    first, second = (other, call) if what.before else (call, other)
    begun = head(pipe, what.step - 1, **first)
    with record(pipe, keep=keep) as run:  # without the facts that `resume` holds against another condition
        output = resume(pipe, replace(begun, info={}, generators={}), what.step, **second)
    for name in keep:
        getattr(run, name).update({step: getattr(begun, name)[step] for step in range(what.step)})
    return output.frames, run


def _noisy_truth(pipe: DiffusionPipeline, what: Truth, call: dict[str, Any], sample: Any) -> Run:
    """The true film at `what.step`: x_s = (1 - sigma) x0 + sigma n (paper, Eq. 1), as something to resume from."""
    solver, scheduler = family_of(pipe).solver, deepcopy(pipe.scheduler)
    if solver.is_multistep(scheduler):
        raise ValueError(
            f"condition 'truth {what.step}' needs a preset with Euler: this solver remembers earlier steps"
        )
    scheduler.set_timesteps(call["num_inference_steps"])
    sigmas = solver.sigmas(scheduler)
    film = torch.from_numpy(np.asarray(sample.video, np.float32))
    film = torch.cat([film, film[-1:].expand(max(0, call["num_frames"] - len(film)), *film.shape[1:])])
    pixels = (film[: call["num_frames"]].permute(3, 0, 1, 2)[None] * 2 - 1).to(pipe._execution_device, pipe.vae.dtype)
    config = pipe.vae.config
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(pixels) for values in (config.latents_mean, config.latents_std)
    )
    with torch.no_grad():
        latents = (pipe.vae.encode(pixels).latent_dist.mode() - mean) / std
    noise = torch.randn(latents.shape, generator=seeded(what.seed)).to(latents)
    x = (1 - sigmas[what.step]) * latents + sigmas[what.step] * noise
    before = {what.step - 1: latents.float().cpu()}
    return Run(x=Series("x", {what.step: x.float().cpu()}), x0=Series("x0", before), sigmas=sigmas.cpu())
