"""What a disturbance costs (paper Sec. 3.2, Fig. 3): scores by step and frame, maps of CKA dissimilarity.

    >>> from cosutils.measures.perturb import by_step, disturb, edits, propagation
    >>> runs = [disturb(pipe, puzzle, edits(steps=[1, 3], frames=[2]), num_inference_steps=4)]
    >>> sorted(by_step(runs))     # fall of the score under noise at each of these steps: step -> (runs,)
    [1, 3]
    >>> propagation(pipe, puzzle, noised=[1], num_inference_steps=4).noise["estimate"].shape
    (4, 4)

S steps, F latent frames. A *fall* is the plain run's score minus the disturbed run's, read on the same
frames. Frames are told apart by the latent frame that they decode from. That is exact for the embedded codec;
Wan's own decoder is causal and lets a disturbed latent frame reach into the pixel frames after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from .._check import whole
from ..hooks.capture import Capture, capture
from ..hooks.inject import Edit, inject_each, noise_at, noise_at_frame, noise_at_step, renoise
from ..hooks.record import Run, record
from ..hooks.reductions import Reduction, projection, raw
from ..metrics import linear_cka
from ..mini import world
from ..mini.tasks import Sample, agreement
from ..pipelines.loading import seeded, settings
from .chain import Trace, trace

__all__ = [
    "Propagation",
    "Runs",
    "by_cell",
    "by_frame",
    "by_step",
    "dissimilarity",
    "disturb",
    "edits",
    "measures",
    "parts",
    "peaks",
    "pixel_frames",
    "propagation",
    "sketch",
    "unrelated",
]


def pixel_frames(frame: int, stride: int = 4) -> range:
    """The pixel frames that latent frame `frame` decodes to: frame 0 alone, then `stride` for each."""
    return range(1) if frame == 0 else range(stride * (frame - 1) + 1, stride * frame + 1)


def parts(sample: Sample, film: np.ndarray, disturbed: Iterable[int] = ()) -> dict[str, float]:
    """Scores of `film` (T, H, W, 3), each in [0, 1], with the pixel frames in `disturbed` kept apart.

    Of a film of 16 m + 1 frames every m-th is read, and those of `disturbed` that are not read do not count.
    whole: of all frames, as `Sample.score` gives it. answer: of the last frame, motion: mean of the frames
    between first and last, both of frames left alone; others: their product, a missing part left out. own:
    mean agreement of the disturbed frames. background: share of the cells that no possible answer touches
    which show what they showed in the given picture, over the scored frames left alone. A part without scored
    frames is missing; frame 0 is given and never scored. The right film is the one nearest in the last frame
    left alone. ValueError where no scored frame was left alone.
    """
    read = range(0, len(film), (len(film) - 1) // (world.FRAMES - 1) or 1)
    film, disturbed = world.reduced(film), {k for k, frame in enumerate(read) if frame in set(disturbed)}
    last = len(film) - 1
    alone = [k for k in range(1, last + 1) if k not in disturbed]
    if not alone:
        raise ValueError(f"all of the scored frames 1..{last} are disturbed")
    seen, first = world.read(film), sample.ids[0]
    row = max((agreement(seen, right, first) for right in sample.films.values()), key=lambda a: a[alone[-1]])
    still = (np.concatenate([*sample.films.values(), [*sample.options.values()]]) == first).all(0)
    between, own = [k for k in alone if k < last], sorted(disturbed - {0})
    found = {"whole": sample.score(film).total}
    found |= {"answer": float(row[last])} if last in alone else {}
    found |= {"motion": float(row[between].mean())} if between else {}
    found["background"] = float((seen[alone] == first)[:, still].mean())
    found["others"] = found.get("answer", 1.0) * found.get("motion", 1.0)
    return found | ({"own": float(row[own].mean())} if own else {})


@dataclass(frozen=True)
class Runs:
    """One puzzle, plain and under every edit, in S steps and F latent frames.

    plain: score of the plain film. falls: edit -> part -> fall of that part of the score, in [-1, 1], see
    `parts`; an edit of all frames keeps none apart. restarts: noised step i > 0 -> score of a plain run of
    the S - i steps that are left then, which is what noise at step i would be if the schedule were told of it
    and began anew.
    """

    sample: Sample
    steps: int
    frames: int
    plain: float
    falls: dict[Edit, dict[str, float]] = field(repr=False)
    restarts: dict[int, float] = field(repr=False)


def edits(
    steps: Iterable[int], frames: Iterable[int], cells: Iterable[tuple[int, int]] = (),
    renoised_frames: Iterable[int] = (), seed: int = 0,
) -> list[Edit]:  # fmt: skip
    """The disturbances of Sec. 3.2 and their controls, as edits with noise from `seed`.

    Noise and renoise of all latent frames at each of `steps`, noise at every step in each of `frames`, noise
    in single `cells` (step, frame), renoise at every step in `renoised_frames`. At step 0, where there is no
    estimate yet, renoise is noise and is left out.
    """
    steps = list(steps)
    found = [noise_at_step(step, seed) for step in steps]
    found += [renoise(step, seed) for step in steps if step > 0]
    found += [noise_at_frame(frame, seed) for frame in frames]
    found += [noise_at(step, frame, seed) for step, frame in cells]
    return found + [Edit(None, frame, seed, keep_estimate=True) for frame in renoised_frames]


def disturb(pipe: WanImageToVideoPipeline, sample: Sample, todo: Iterable[Edit], seed: int = 0, **call: Any) -> Runs:
    """Run `pipe` on `sample` plainly, then under each edit from the edited step on, and score what comes out.

    seed: of the initial noise. call: overrides of the preset's settings.
    """
    call = sample.inputs | settings(pipe) | call | dict(output_type="np")
    with record(pipe) as run:
        plain = pipe(**call, generator=seeded(seed)).frames[0]
    falls, restarts = {}, {}
    for edit, output in inject_each(pipe, run, todo, **call):
        own = () if edit.frame is None else pixel_frames(edit.frame, pipe.vae_scale_factor_temporal)
        before, after = parts(sample, plain, own), parts(sample, output.frames[0], own)
        falls[edit] = {name: before[name] - after[name] for name in before}
        if edit.step and edit.frame is None and not edit.keep_estimate:
            shorter = call | dict(num_inference_steps=run.steps - edit.step)
            restarts[edit.step] = sample.score(pipe(**shorter, generator=seeded(seed)).frames[0]).total
    return Runs(sample, run.steps, run.x[0].shape[2], sample.score(plain).total, falls, restarts)


def _fall(runs: Sequence[Runs], kind: tuple, part: str) -> np.ndarray:
    """Falls (runs,) under the edit of `kind` = (step, frame, keep_estimate); NaN where a run lacks it."""
    rows = []
    for run in runs:
        found = [fall for edit, fall in run.falls.items() if (edit.step, edit.frame, edit.keep_estimate) == kind]
        rows.append(found[0].get(part, np.nan) if found else np.nan)
    return np.array(rows)


def by_step(runs: Sequence[Runs], renoised: bool = False, part: str = "whole") -> dict[int, np.ndarray]:
    """Fall of one of the `parts` under noise (renoise) in all frames at each swept step, step -> (runs,)."""
    steps = sorted({
        edit.step for run in runs for edit in run.falls
        if edit.step is not None and edit.frame is None and edit.keep_estimate == renoised
    })  # fmt: skip
    return {step: _fall(runs, (step, None, renoised), part) for step in steps}


def by_frame(runs: Sequence[Runs], part: str = "others", renoised: bool = False) -> dict[int, np.ndarray]:
    """Fall of one of the `parts` under noise (renoise) in each latent frame at every step, frame -> (runs,).

    NaN where the part is missing: "own" of frame 0, "answer" of the last.
    """
    frames = sorted({
        edit.frame for run in runs for edit in run.falls
        if edit.step is None and edit.frame is not None and edit.keep_estimate == renoised
    })  # fmt: skip
    return {frame: _fall(runs, (None, frame, renoised), part) for frame in frames}


def by_cell(runs: Sequence[Runs], part: str = "others") -> np.ndarray:
    """Fall of one of the `parts` under noise in single (step, frame) cells, (runs, S, F); NaN: not swept."""
    steps, frames = runs[0].steps, runs[0].frames
    table = [[_fall(runs, (step, frame, False), part) for frame in range(frames)] for step in range(steps)]
    return np.moveaxis(np.array(table), -1, 0)


def measures(runs: Sequence[Runs]) -> dict[str, np.ndarray]:
    """The values judged by `data/claims.yaml` (noise.*), one for each run.

    step_damage, renoise_damage: mean fall over the swept steps but step 0, where noise is only another seed.
    frame_damage: mean fall of the undisturbed frames' score over the noised latent frames that the model
    makes (frame 0 repeats the given picture). cell_gap: the first per disturbed latent frame minus the last
    per disturbed step, since the settings disturb F and S cells.
    """

    def late(table: dict[int, np.ndarray]) -> np.ndarray:
        return np.mean([fall for step, fall in table.items() if step > 0], 0)

    step = late(by_step(runs))
    frame = np.mean([fall for number, fall in by_frame(runs).items() if number > 0], 0)
    return dict(
        step_damage=step,
        frame_damage=frame,
        step_minus_frame=step - frame,
        cell_gap=step / runs[0].frames - frame / runs[0].steps,
        renoise_damage=late(by_step(runs, renoised=True)),
    )


# ---------------------------------------------------------------- Fig. 3 c
@dataclass(frozen=True)
class Propagation:
    """CKA dissimilarity of one puzzle's disturbed runs to its plain run.

    noise, renoise: read-out -> (S, S), injected step x later step, in [0, 1], NaN where step < injected or
    not swept. A read-out is "layer k" or "estimate". plain: the read-outs of the plain run, read-out -> (S,
    N, D), or what their reduction leaves of them. trace: the plain run's `Trace`, for its commitment step.
    """

    trace: Trace
    noise: dict[str, np.ndarray] = field(repr=False)
    renoise: dict[str, np.ndarray] = field(repr=False)
    plain: dict[str, torch.Tensor] = field(repr=False)


def dissimilarity(plain: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """1 - linear CKA of tokens (S, N, D) step by step, (S,) in [0, 1]: 0 same geometry, 1 nothing in common.

    Rows are the N tokens of one film, so that CKA asks whether tokens that were alike are still alike. Paper
    Fig. 3c.
    """
    return np.array([1 - linear_cka(a, b) for a, b in zip(plain, other, strict=True)])


def sketch(rows: int, width: int) -> Reduction:
    """Keep about `rows` tokens, evenly spaced, projected at random to `width` channels: (B, N, D) to (B, n, width).

    For `propagation` with large models: CKA needs rows many times the columns, not all of them. n is N
    divided by the whole number N // rows (at least 1), rounded up. ValueError for fewer than 2 rows or 1
    channel.
    """
    rows = whole(rows, "rows, the tokens that CKA compares,", least=2)
    project = projection(width)
    return Reduction(lambda states, grid: project(states[:, :: max(1, states.shape[1] // rows)], grid), "sketch")


def propagation(
    pipe: WanImageToVideoPipeline, sample: Sample, noised: Iterable[int], renoised: Iterable[int] = (),
    layers: Sequence[int] | None = None, seed: int = 0, reduce: Reduction = raw, **call: Any,
) -> Propagation:  # fmt: skip
    """Trace `sample` plainly, then with noise (renoise) at each step of `noised` (`renoised`), and compare.

    layers: blocks whose output tokens are read, default the middle one. The clean estimate is read too: rows
    are latent cells, columns channels. reduce: what is kept of the tokens; a large model's, whole and at all
    steps, fill tens of GB, see `sketch`.
    """
    layers = [len(pipe.transformer.blocks) // 2] if layers is None else list(layers)
    arguments = sample.inputs | settings(pipe) | call | dict(output_type="latent")
    with record(pipe) as run, capture(pipe, layers, reduce=reduce) as states:
        plain_trace = trace(pipe, sample, seed, **call)
    plain, steps = _read_outs(run, states), run.steps

    def rows(edit_at: Callable[[int, int], Edit], injected: Iterable[int]) -> dict[str, np.ndarray]:
        maps = {name: np.full((steps, steps), np.nan) for name in plain}
        for step in injected:
            with record(pipe, keep=("x0",)) as other, capture(pipe, layers, reduce=reduce) as states:
                list(inject_each(pipe, run, [edit_at(step, seed)], **arguments))
            for name, tokens in _read_outs(other, states).items():
                maps[name][step, step:] = dissimilarity(plain[name][step:], tokens)
        return maps

    return Propagation(plain_trace, rows(noise_at_step, noised), rows(renoise, renoised), plain)


def _read_outs(run: Run, states: Capture) -> dict[str, torch.Tensor]:
    """Tokens (S, N, D) of every captured layer, and of the clean estimate, of a call with one video."""
    tokens = states.stack()[:, :, 0].float()
    found = {f"layer {layer}": tokens[:, k] for k, layer in enumerate(states.layers)}
    return found | {"estimate": run.x0.stack()[:, 0].flatten(2).transpose(1, 2)}


def peaks(ends: np.ndarray) -> np.ndarray:
    """The swept step at which the *other* runs' mean is largest, for each run: (runs, S) -> (runs,) integers.

    A maximum picked and read on the same run exceeds its neighbours by construction; one picked on other runs
    need not. Columns of NaN (steps not swept) are passed over. ValueError for fewer than two runs.
    """
    ends = np.asarray(ends, float)
    if ends.ndim != 2 or len(ends) < 2:
        raise ValueError(f"a peak needs at least 2 runs (runs, steps), got {ends.shape}")
    others = (ends.sum(0) - ends) / (len(ends) - 1)
    return np.nanargmax(others, 1)


def unrelated(flows: Sequence[Propagation], name: str) -> np.ndarray:
    """Dissimilarity of plain runs of different puzzles, each and the next, (runs, S): how "destroyed" reads.

    ValueError for fewer than two runs.
    """
    if len(flows) < 2:
        raise ValueError(f"unrelated runs need at least 2 puzzles, got {len(flows)}")
    after = [*flows[1:], flows[0]]
    return np.stack(
        [dissimilarity(one.plain[name], other.plain[name]) for one, other in zip(flows, after, strict=True)]
    )
