"""Follow an answer along the denoising steps (paper Sec. 3.1): what each clean estimate holds open and gets right.

>>> from cosutils.measures.chain import alive, trace
>>> traces = [trace(pipe, cos.tasks.shelf.sample(seed), num_inference_steps=4) for seed in range(2)]
>>> alive(traces).shape       # effective number of candidates of every run at every step
(2, 4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline
from scipy.ndimage import gaussian_filter

from ..hooks.record import Run, record
from ..metrics import commitment_step, effective_number, leader
from ..mini import tasks, world
from ..mini.tasks import Sample, Score, agreement
from ..pipelines.loading import seeded, settings

__all__ = [
    "PARTS", "Trace", "alive", "apart", "blurred", "commitments", "decided", "decision", "estimates", "frame_lag",
    "leading", "measures", "opened", "settling", "trace",
]  # fmt: skip

PARTS = ("score", "decided", "cells", "motion", "solved")  # of a film, see `apart`
NAMED = ("tictactoe", "shelf", "find_shape", "rotation")  # tasks in which the prompt alone names the answer


def opened(task: str, seed: int, **scale: Any) -> Sample | None:
    """Puzzle `seed` of a task with several right answers: without its prompt, or with two routes of equal length.

    None for a task that cannot be posed so. scale: `pixels` and `frames`, as `tasks.sample` takes them.
    """
    if task == "two_routes":
        return tasks.sample(task, seed, 0, **scale)
    return replace(tasks.sample(task, seed, **scale), prompt="") if task in NAMED else None


@dataclass(frozen=True)
class Trace:
    """One recorded run of S steps on a puzzle with K possible answers.

    evidence: (S, K) share of each candidate in the last frame of x0hat, see `Sample.candidates`; scores: of x0hat,
    taken as the answer at each step; settled: (S, 17), see `trace`; last: last frame of x0hat (S, 80, 80, 3);
    films: all of x0hat in pixels (S, 17, 80, 80, 3), or None where they were not kept. Larger films are
    brought back to that size (`world.reduced`).
    """

    sample: Sample
    seed: int
    sigmas: np.ndarray
    evidence: np.ndarray
    scores: list[Score] = field(repr=False)
    settled: np.ndarray = field(repr=False)
    last: np.ndarray = field(repr=False)
    films: np.ndarray | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        return list(self.sample.options)

    @property
    def on_answer(self) -> np.ndarray:
        """Share of the right answers in the evidence, (S,) in [0, 1]; 0 where there is no evidence for anything."""
        return self._share([name in self.sample.films for name in self.names])

    @property
    def on_final(self) -> np.ndarray:
        """Share of the candidate that leads at the last step, (S,) in [0, 1]; 0 where none does."""
        return self._share(np.arange(len(self.names)) == leader(self.evidence[-1]))

    def _share(self, chosen: Sequence[bool]) -> np.ndarray:
        total = self.evidence.sum(1)
        return np.divide(self.evidence[:, chosen].sum(1), total, out=np.zeros(len(total)), where=total > 0)


def trace(pipe: WanImageToVideoPipeline, sample: Sample, seed: int = 0, keep_films: bool = False, **call: Any) -> Trace:
    """Run `pipe` on `sample` and read every step's clean estimate. call: overrides of the preset's settings.

    `settled` (S, T) is the `agreement` of each frame with that of the last step, over the cells in which the possible
    answers differ: if the model reasoned frame by frame, early frames would settle at earlier steps. A frame that
    all answers share needs no decision: it is NaN.
    """
    with record(pipe, keep=("x0",)) as run:
        pipe(**sample.inputs, **(settings(pipe) | call), generator=seeded(seed), output_type="latent")
    films = estimates(run)
    evidence = np.array([list(sample.candidates(film).values()) for film in films])
    tiles = world.read(films)
    ways, first = np.stack([*sample.possible.values()]), sample.ids[0]
    open_ = (ways != ways[0]).any(0)
    tiles = np.where(open_, tiles, first)
    settled = np.stack([agreement(step, tiles[-1], first) for step in tiles])
    settled[:, ~open_.any((1, 2))] = np.nan
    scores = [sample.score(film) for film in films]
    sigmas = run.sigmas[:-1].numpy()
    return Trace(sample, seed, sigmas, evidence, scores, settled, films[:, -1].copy(), films if keep_films else None)


def estimates(run: Run, steps: Iterable[int] | None = None) -> np.ndarray:
    """Clean estimates of a recorded puzzle at `steps` (default: all), brought back to the size they are read at:
    (S, 17, 80, 80, 3) of the first video of the batch. Decoded few at a time, so that large films fit into memory."""
    steps = sorted(run.x0) if steps is None else list(steps)
    parts = [steps[start : start + 8] for start in range(0, len(steps), 8)]
    return np.concatenate([world.reduced(run.decode(part)[:, 0].numpy()) for part in parts])


def leading(sample: Sample, film: np.ndarray, least: float = 0.0) -> str | None:
    """The possible answer with the most evidence in the last frame of a film (T, H, W, 3), None where none is shown.

    least: the share of an answer, 0 to 1, below which it is not shown. A film of nothing has shares of a few percent.
    """
    shares = sample.candidates(film)
    return [*sample.options, None][leader(shares)] if max(shares.values()) >= least else None


def alive(traces: Sequence[Trace]) -> np.ndarray:
    """Effective number of candidates of every run and step, (runs, S)."""
    return _rows(traces, lambda one: effective_number(one.evidence))


def commitments(traces: Sequence[Trace]) -> np.ndarray:
    """Step from which the leading candidate never changes again, one for each run."""
    return _rows(traces, lambda one: commitment_step(one.evidence))


def settling(traces: Sequence[Trace], level: float = 0.9) -> np.ndarray:
    """First step at which each frame shows a share `level` in (0, 1] of its final cells, (runs, T) in 0..S-1.

    NaN for a frame that all answers share.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is a share in (0, 1], got {level!r}")
    settled = _rows(traces, lambda one: one.settled)
    return np.where(np.isnan(settled[:, 0]), np.nan, (settled >= level).argmax(1))  # the last step always does


def frame_lag(traces: Sequence[Trace]) -> np.ndarray:
    """Mean settling step of the late frames minus that of the early ones, (runs,).

    Of T frames the early ones are the T // 3 after frame 0, which is given, the late ones the last T // 3 + 1.

    NaN for a run in which all answers share the early frames or the late ones.
    """
    settled = settling(traces)
    third = settled.shape[1] // 3
    early, late = settled[:, 1 : third + 1], settled[:, -third - 1 :]
    known = np.isfinite(early).any(1) & np.isfinite(late).any(1)
    lag = np.full(len(settled), np.nan)
    lag[known] = np.nanmean(late[known], 1) - np.nanmean(early[known], 1)
    return lag


def decision(traces: Sequence[Trace], tie: float = 0.1) -> np.ndarray:
    """Does a right answer lead each clean estimate, (runs, S) in [0, 1]: see `decided`."""
    return _rows(traces, lambda one: decided(one.sample, one.evidence, tie))


def decided(sample: Sample, evidence: np.ndarray, tie: float = 0.1) -> np.ndarray:
    """Does a right answer lead, (S,) in [0, 1]: 1, 0, or its share of those that tie. evidence: (S, K) of K options.

    Candidates tie whose evidence lies less than a share `tie` below the largest: among K equal ones a right answer
    counts 1 / K. The read-out itself is that rough: in the even mixture of all walks of a maze, which share cells, the
    shares differ by a few percent, always to the disadvantage of the goal. 0 where there is no evidence for
    anything.
    """
    most = evidence.max(1, keepdims=True)
    leads = (evidence >= (1 - tie) * most) & (most > 0)
    is_right = np.array([name in sample.films for name in sample.options])
    return (leads & is_right).sum(1) / np.maximum(leads.sum(1), 1)


def apart(sample: Sample, film: np.ndarray) -> dict[str, float]:
    """Deciding and drawing apart in one film (T, H, W, 3), each of `PARTS` in [0, 1].

    decided: a right answer leads the last frame, see the function; cells: share of right cells there; motion: that of
    the frames between; score: cells * motion; solved: `Score.solved`.
    """
    score, evidence = sample.score(film), np.array([list(sample.candidates(film).values())])
    values = score.total, decided(sample, evidence)[0], score.parts["answer"], score.parts["motion"], score.solved
    return dict(zip(PARTS, map(float, values), strict=True))


def measures(traces: Sequence[Trace]) -> dict[str, np.ndarray]:
    """The values judged by `data/claims.yaml` (chain_of_steps.*) and their companions, one for each run.

    alive_first, alive_last, alive_fall: candidates at the first step, the last, their difference. not_blur: those at
    the first minus those in the final frame made as unsharp. commitment, frame_lag: see the functions.

    Deciding and drawing apart, each at the first and the last step and as a gain: decision (a right answer leads,
    `decision`; chance: what a guess has), cells (agreement of the last frame with the right answer), solved (every cell
    right; its gain is called gain). beyond_guess: decision at the last step minus the share of the right answer in
    the first estimate, which is 0 on average for a guess that holds all answers and draws one. drawing_gain: gain minus
    decision_gain.
    """
    count, right = alive(traces), decision(traces)
    blur = [effective_number(one.sample.candidates(blurred(one, 0))) for one in traces]
    cells = np.array([[score.parts["answer"] for score in one.scores] for one in traces])
    solved = np.array([[score.solved for score in one.scores] for one in traces], float)
    share = _rows(traces, lambda one: one.on_answer)
    found = dict(
        alive_first=count[:, 0], alive_last=count[:, -1], alive_fall=count[:, 0] - count[:, -1],
        not_blur=count[:, 0] - blur, commitment=commitments(traces), frame_lag=frame_lag(traces),
        beyond_guess=right[:, -1] - share[:, 0],
        chance=np.array([len(one.sample.films) / len(one.names) for one in traces]),
    )  # fmt: skip
    for name, rows in dict(decision=right, cells=cells, solved=solved).items():
        found |= {f"{name}_first": rows[:, 0], f"{name}_last": rows[:, -1]}
        found["gain" if rows is solved else f"{name}_gain"] = rows[:, -1] - rows[:, 0]
    return found | dict(drawing_gain=found["gain"] - found["decision_gain"])


def _rows(traces: Sequence[Trace], read: Callable[[Trace], Any]) -> np.ndarray:
    """What `read` finds in every trace, (runs, ...)."""
    if not len(traces):
        raise ValueError("no traces were given: at least one run is needed")
    return np.stack([read(one) for one in traces])


def blurred(trace: Trace, step: int) -> np.ndarray:
    """The control "only blur": the last frame of the final estimate, blurred until it is as unsharp as that of `step`.

    Sharpness is the mean squared difference of neighbouring pixels; the width of the Gaussian is found by bisection,
    from 0 to 16 px. Returns (80, 80, 3).
    """
    last, early = trace.last[-1], trace.last[step]

    def sharpness(picture):
        return (np.diff(picture, axis=0) ** 2).mean() + (np.diff(picture, axis=1) ** 2).mean()

    low, high = 0.0, 16.0
    for _ in range(20):
        middle = (low + high) / 2
        blur = gaussian_filter(last, (middle, middle, 0), mode="nearest")
        low, high = (middle, high) if sharpness(blur) > sharpness(early) else (low, middle)
    return blur
