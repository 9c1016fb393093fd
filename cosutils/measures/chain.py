"""Follow an answer along the denoising steps (paper Sec. 3.1): what each clean estimate holds open and gets right.

>>> from cosutils.measures.chain import alive, trace
>>> traces = [trace(pipe, cos.tasks.shelf.sample(seed), num_inference_steps=4) for seed in range(2)]
>>> alive(traces).shape       # effective number of candidates of every run at every step
(2, 4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline
from scipy.ndimage import gaussian_filter

from ..hooks.record import Run, record
from ..metrics import commitment_step, effective_number, leader
from ..mini import world
from ..mini.tasks import Sample, Score, agreement
from ..pipelines.loading import seeded, settings

__all__ = ["Trace", "alive", "blurred", "commitments", "estimates", "leading", "settling", "trace"]


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

    `settled` (S, T) is the share of cells of each frame, among those that the puzzle changes, that already look as
    they do at the last step: if the model reasoned frame by frame, early frames would settle at earlier steps.
    """
    with record(pipe, keep=("x0",)) as run:
        pipe(**sample.inputs, **(settings(pipe) | call), generator=seeded(seed), output_type="latent")
    films = estimates(run)
    evidence = np.array([list(sample.candidates(film).values()) for film in films])
    tiles = world.read(films)
    settled = np.stack([agreement(step, tiles[-1], sample.ids[0]) for step in tiles])
    scores = [sample.score(film) for film in films]
    sigmas = run.sigmas[:-1].numpy()
    return Trace(sample, seed, sigmas, evidence, scores, settled, films[:, -1].copy(), films if keep_films else None)


def estimates(run: Run, steps: Iterable[int] | None = None) -> np.ndarray:
    """Clean estimates of a recorded puzzle at `steps` (default: all), brought back to the size they are read at:
    (S, 17, 80, 80, 3) of the first video of the batch. Decoded few at a time, so that large films fit into memory."""
    steps = sorted(run.x0) if steps is None else list(steps)
    parts = [steps[start : start + 8] for start in range(0, len(steps), 8)]
    return np.concatenate([world.reduced(run.decode(part)[:, 0].numpy()) for part in parts])


def leading(sample: Sample, film: np.ndarray) -> str | None:
    """The possible answer with the most evidence in the last frame of a film (T, H, W, 3), None where none is shown."""
    return [*sample.options, None][leader(sample.candidates(film))]


def alive(traces: Sequence[Trace]) -> np.ndarray:
    """Effective number of candidates of every run and step, (runs, S)."""
    return _rows(traces, lambda one: effective_number(one.evidence))


def commitments(traces: Sequence[Trace]) -> np.ndarray:
    """Step from which the leading candidate never changes again, one for each run."""
    return _rows(traces, lambda one: commitment_step(one.evidence))


def settling(traces: Sequence[Trace], level: float = 0.9) -> np.ndarray:
    """First step at which each frame shows a share `level` in (0, 1] of its final cells, (runs, T) in 0..S-1."""
    if not 0 < level <= 1:
        raise ValueError(f"level is a share in (0, 1], got {level!r}")
    return (_rows(traces, lambda one: one.settled) >= level).argmax(1)  # the last step always does


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
