"""What an answer does along the denoising steps (paper Sec. 4, Fig. 4-5): kept, corrected, placed before it moves.

>>> from cosutils.measures.chain import trace
>>> traces = [trace(pipe, cos.tasks.reappear.sample(seed), num_inference_steps=4) for seed in range(2)]
>>> leads = np.stack([right(t) for t in traces])  # (runs, S), True where a right answer leads
>>> step, rows = worst(leads)  # working memory at its weakest step
>>> fixed, broken = turns(leads)  # self-correction, and its opposite, at every step

S steps, T frames, K candidates. Frames are told apart in pixels where the estimate is read and in latent frames where
hidden states are exchanged (the token grid's first axis).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline

from ..hooks.capture import Capture, capture
from ..hooks.reductions import raw, region
from ..hooks.swap import swap
from ..metrics import leader
from ..mini import world
from ..mini.tasks import Sample
from ..pipelines.loading import seeded, settings
from .chain import Trace, leading, trace

__all__ = [
    "Onsets", "confident", "confident_turns", "frame_lag", "onset", "onsets", "right", "solved", "switches", "turns",
    "twin_run", "unseen", "winner", "worst",
]  # fmt: skip


def right(trace: Trace) -> np.ndarray:
    """Does a right answer lead the candidates of each clean estimate? (S,) bool; False where nothing is shown."""
    return np.isin(leader(trace.evidence), [k for k, name in enumerate(trace.names) if name in trace.sample.films])


def solved(trace: Trace) -> np.ndarray:
    """Does each clean estimate, taken as the answer, solve the puzzle exactly? (S,) bool."""
    return np.array([score.solved for score in trace.scores])


def confident(trace: Trace, share: float = 0.5, of_right: bool = False) -> np.ndarray:
    """Is a *wrong* (or right) candidate held with more than `share` of the evidence? (S,) bool.

    The control of self-correction: a wrong leader that is hardly ahead is indecision, not an error.
    """
    chosen = [(name in trace.sample.films) == of_right for name in trace.names]
    total = trace.evidence.sum(1)
    return trace.evidence[:, chosen].max(1, initial=0) > share * np.where(total > 0, total, np.inf)


# ---------------------------------------------------------------- working memory (Sec. 4.1)
def worst(rows: np.ndarray) -> tuple[int, np.ndarray]:
    """The step at which the fewest runs are true, and the rows there: (runs, S) bool -> (step, (runs,)).

    The first of equally bad steps. A minimum picked and read on the same runs lies below its expectation, so that
    "kept at every step" is judged the harder way.
    """
    rows = np.asarray(rows, bool)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"worst needs rows (runs, steps), got shape {rows.shape}")
    step = int(rows.mean(0).argmin())
    return step, rows[:, step]


def unseen(sample: Sample, stride: int = 4) -> list[int]:
    """Latent frames that do not tell the puzzle from its twin: at least half of their pixel frames are in the gap.

    The gap is the longest unbroken run of pixel frames in which both true films are alike: the object is outside
    (reappear) or covered (occlusion). stride: pixel frames of one latent frame; latent frame 0 holds pixel frame 0
    alone. The last latent frame, where the answer is read, never counts.
    """
    alike = (sample.ids == sample.twin().ids).all((1, 2))[world.shown(sample.frames)]
    runs = np.split(np.arange(len(alike)), np.flatnonzero(np.diff(alike)) + 1)
    gap = max((run for run in runs if alike[run[0]]), key=len, default=np.array([], int))
    parts = np.isin(np.arange(1, len(alike)), gap).reshape(-1, stride).mean(1)
    return [1 + k for k, share in enumerate(parts[:-1]) if share >= 0.5]


def twin_run(
    pipe: WanImageToVideoPipeline, sample: Sample, layers: Iterable[int], seed: int = 0, **call: Any
) -> tuple[Trace, Capture]:
    """The donor of an exchange: trace of the twin with the same noise, and its hidden states after each of `layers`."""
    with capture(pipe, layers, reduce=raw) as states:
        donor = trace(pipe, sample.twin(), seed, **call)
    return donor, states


def winner(
    pipe: WanImageToVideoPipeline, sample: Sample, states: Capture, layer: int, frames: Iterable[int],
    seed: int = 0, steps: Iterable[int] | None = None, **call: Any,
) -> str | None:  # fmt: skip
    """The answer that leads in the final film when tokens of the latent `frames` are the donor's (Sec. 5.2's swap).

    The whole state is exchanged at the output of block `layer`, at `steps` (None is all), in the positive branch. With
    the frames after the first alone, the recipient's own first frame stays in the condition and in the hidden states:
    an answer that is only re-read there stays the recipient's. See `chain.leading` for what is returned.
    """
    call = sample.inputs | settings(pipe) | call | dict(output_type="np")
    with swap(pipe, layer, states, tokens=region(frames=frames), steps=steps):
        film = pipe(**call, generator=seeded(seed)).frames[0]
    return leading(sample, film)


# ---------------------------------------------------------------- self-correction (Sec. 4.2)
def turns(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which runs turn right and turn wrong, (runs, S) bool -> two (runs, S) bool; nothing turns at step 0."""
    rows = np.asarray(rows, bool)
    before = np.concatenate([rows[:, :1], rows[:, :-1]], 1)
    return rows & ~before, before & ~rows


def confident_turns(traces: Sequence[Trace], share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Of runs `confident` of a wrong answer at first: right at the end? Of a right one: wrong? (n,) and (m,) bool.

    A chain that only wanders between answers does both: what it corrects, it spoils elsewhere.
    """
    corrected = [right(t)[-1] for t in traces if confident(t, share)[0]]
    spoiled = [not right(t)[-1] for t in traces if confident(t, share, of_right=True)[0]]
    return np.array(corrected, bool), np.array(spoiled, bool)


def switches(trace: Trace) -> np.ndarray:
    """Step at which each frame goes over from the first estimate to the final one, (T,) float; NaN: nothing to go over.

    Only cells are looked at that are read as another tile in the first estimate than in the last. Position along the
    way is the projection on (last - first), 0 to 1; the switch is the first step from which it stays at 1/2 or above.
    Frame 0 is given and NaN. ValueError for a trace without films.
    """
    films = _films(trace)
    first, last = films[0], films[-1]
    cells = world.read(first) != world.read(last)
    weight = np.kron(cells, np.ones((1, world.CELL, world.CELL)))[..., None]
    way = (last - first) * weight
    length = (way**2).sum((1, 2, 3))
    place = np.einsum("sthwc,thwc->st", films - first, way) / np.where(length > 0, length, np.nan)
    moved = np.isfinite(place).all(0) & (np.arange(films.shape[1]) > 0)
    return np.where(moved, onset(np.nan_to_num(place).T, 0.5), np.nan)


def frame_lag(steps: np.ndarray) -> float:
    """Mean switch of the later half of the frames that switch minus that of the earlier half, in steps; NaN below two.

    steps: (T,) of `switches`. With an odd number of frames the middle one is left out.
    """
    known = np.asarray(steps)[np.isfinite(steps)]
    half = len(known) // 2
    return float(known[-half:].mean() - known[:half].mean()) if half else float("nan")


# ---------------------------------------------------------------- perception before action (Sec. 4.3)
def onset(share: np.ndarray, level: float) -> np.ndarray:
    """First step from which `share` (..., S) stays at `level` or above, (...) integers; S where it ends below.

    level: in (0, 1], ValueError otherwise.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is a share in (0, 1], got {level!r}")
    good = np.flip(np.logical_and.accumulate(np.flip(np.asarray(share) >= level, -1), -1), -1)
    return np.where(good[..., -1], good.argmax(-1), good.shape[-1])


@dataclass(frozen=True)
class Onsets:
    """One run's onset steps of what/where and how, read with as many cells each.

    where: of the changed cells of the last frame. how: of equally many changed cells of the frames in motion, mean over
    random draws. same: the control, a gap read in the same way with one of the frames in motion in place of the last.
    cells: how many cells each reading has. frames: (T,) onset of each frame's own changed cells, NaN without any.
    where_share, how_share: (S,) share of cells that look as in the end.
    """

    where: float
    how: float
    same: float
    cells: int
    frames: np.ndarray = field(repr=False)
    where_share: np.ndarray = field(repr=False)
    how_share: np.ndarray = field(repr=False)

    @property
    def gap(self) -> float:
        """how - where: positive where what and where are settled first."""
        return self.how - self.where


def onsets(trace: Trace, level: float = 0.9, draws: int = 50) -> Onsets | None:
    """Onset of "what and where" against "how" in one run (Fig. 5), by the same rule on the same number of cells.

    A cell of a frame counts where the run's final film differs there from the given picture, and is settled when it is
    read as in the final film; an onset is the first step from which a share `level` of the cells is settled for good.
    What and where are read in the last frame. How is read in the frames in motion, those that differ from the given
    picture and from the last frame, on random draws of as many cells as the last frame has (where there are fewer, all,
    and the last frame's are drawn). For the control one frame in motion, drawn at random, stands in for the last frame
    and the others for the motion. None where fewer than two frames are in motion or the last shows no change.
    """
    tiles = world.read(_films(trace))
    final, given = tiles[-1], trace.sample.ids[0]
    changed, settled = final != given, tiles == final
    moving = changed.any((1, 2)) & (final != final[-1]).any((1, 2))
    moving[0] = False
    where, how = settled[:, -1, changed[-1]], settled[:, moving][:, changed[moving]]
    if moving.sum() < 2 or not where.shape[1]:
        return None
    owner = np.nonzero(changed[moving])[0]  # the frame in motion that each cell of `how` lies in
    rng = np.random.default_rng(trace.sample.seed)

    cells = min(where.shape[1], how.shape[1])

    def drawn(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
        count = min(cells, one.shape[1], other.shape[1])
        return [onset(rng.permutation(part, axis=1)[:, :count].mean(1), level) for part in (one, other)]

    rows = []
    for _ in range(draws):
        stand_in = owner == rng.integers(moving.sum())
        rows.append(drawn(where, how) + drawn(how[:, stand_in], how[:, ~stand_in]))
    first, second, one, other = np.mean(rows, 0)
    frames = [float(onset(settled[:, t, now].mean(1), level)) if now.any() else np.nan for t, now in enumerate(changed)]
    frames[0] = np.nan
    shares = where.mean(1), how.mean(1)
    return Onsets(first, second, other - one, cells, np.array(frames, float), *shares)


def _films(trace: Trace) -> np.ndarray:
    if trace.films is None:
        raise ValueError("the trace kept no films: trace(..., keep_films=True)")
    return trace.films
