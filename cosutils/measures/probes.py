"""Linear probes: from which layer on can a label be read from the hidden states? (Sec. 5.1, our measure)

A label belongs to a cell of the puzzle's 10 x 10 board. The token at the cell's place, in a latent frame
after the first or in one that is named, is asked for it by ridge regression in closed form: one probe for every place
of a cell within its token. P puzzles, F latent frames, K = h w places of tokens, n cells per token, D channels.

    fitted, held_out = ([activations(pipe, puzzle, probed=[0]) for puzzle in part] for part in (some, others))
    scores = by_layer(fitted, held_out, answered)              # (P, probed steps, L + 1) areas under the ROC curve
    floor = by_layer(fitted, held_out, answered, control=True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from ..hooks.reductions import Grid
from ..mini import world
from ..mini.tasks import Sample
from .layers import Activations

__all__ = [
    "Labels",
    "answered",
    "arrange",
    "auc",
    "by_layer",
    "gap",
    "halfway",
    "near_best",
    "occupied",
    "read_out",
    "shuffled",
]


class Labels(NamedTuple):
    """value: is the label true; counted: does the cell count. Both (H, W) of one puzzle, or (P, K, n) arranged."""

    value: np.ndarray
    counted: np.ndarray


def occupied(sample: Sample) -> Labels:
    """Perception: the cell holds a wall, an object or a mark in the first frame. Every cell counts."""
    value = sample.ids[0] != world.TILE["floor"]
    return Labels(value, np.ones_like(value))


def answered(sample: Sample) -> Labels:
    """Answer: the right answer changes the cell in the last frame (the path, the frame around the target).

    Only cells count that some possible answers change and others do not: what is where does not give the label away, as
    it would if free cells were told from walls.
    """
    changes = np.array([option != sample.blank for option in sample.options.values()])
    return _telling(sample.options[sample.answer] != sample.blank, changes)


def halfway(sample: Sample, latents: int) -> Labels:
    """Motion: the right film changes the cell in the pixel frames of its middle latent frame, `latents` // 2.

    latents: number of latent frames, of which the first holds the given picture alone. Only cells count that some
    possible answers' films change there and others do not. ValueError for fewer than three, which have no middle.
    """
    if latents < 3:
        raise ValueError(f"a film of {latents} latent frames has no middle one")
    ends = 1 + np.arange(latents) * (world.FRAMES - 1) // (latents - 1)
    frames = slice(*ends[latents // 2 - 1 : latents // 2 + 1])
    changes = np.array([(film[frames] != film[0]).any(0) for film in sample.possible.values()])
    return _telling((sample.ids[frames] != sample.ids[0]).any(0), changes)


def _telling(value: np.ndarray, changes: np.ndarray) -> Labels:
    """Labels of the cells that tell possible answers apart: some of them change it and others do not, (K, H, W)."""
    return Labels(value, np.asarray(changes.any(0) & ~changes.all(0)))


def arrange(label: Callable[[Sample], Labels], samples: Sequence[Sample], grid: Grid) -> Labels:
    """Labels of puzzles by token, (P, K, n): the n cells of each of the K = h w places of the token grid (f, h, w).

    Tokens smaller than cells are asked for one, the cell under their middle.
    """
    _, h, w = grid

    def by_token(cells: np.ndarray) -> np.ndarray:
        height, width = cells.shape
        if h > height or w > width:
            rows, columns = ((2 * np.arange(n) + 1) * size // (2 * n) for n, size in ((h, height), (w, width)))
            return cells[np.ix_(rows, columns)].reshape(h * w, 1)
        if height % h or width % w:
            raise ValueError(f"{height} x {width} cells do not fit {h} x {w} tokens")
        return cells.reshape(h, height // h, w, width // w).swapaxes(1, 2).reshape(h * w, -1)

    found = [label(sample) for sample in samples]
    return Labels(*(np.stack([by_token(part) for part in parts]) for parts in zip(*found, strict=True)))


def shuffled(labels: Labels) -> Labels:
    """The control: every puzzle has the labels of the one before it. What can still be read is the place alone."""
    return Labels(*(np.roll(part, 1, axis=0) for part in labels))


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve, chance 1/2: how often a true one scores above a false one; NaN where one is missing."""
    truth = np.asarray(truth, bool)
    positive, negative = truth.sum(), (~truth).sum()
    if not positive or not negative:
        return float("nan")
    return float((rankdata(scores)[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _ridge(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias of the ridge regression of y (n,) on x (n, D), penalty ridge * n."""
    middle = x.mean(0)
    centred = x - middle
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += ridge * len(x)
    weights = np.linalg.solve(gram, centred.T @ (y - y.mean()))
    return weights, float(y.mean() - middle @ weights)


def read_out(
    states: np.ndarray, labels: Labels, new_states: np.ndarray, new_labels: Labels, ridge: float = 0.01
) -> np.ndarray:
    """Fit probes on some puzzles and read others: area under the ROC curve of each new puzzle, (P',), over its cells.

    states: (P, F, K, D); labels: made by `arrange`. Channels are scaled to mean 0 and variance 1 on the fitting
    puzzles. ridge: the penalty, in units of that variance. Cells whose label never varies on the fitting
    puzzles do not count. NaN for a puzzle that has one kind of label only.
    """
    puzzles, frames, places, width = states.shape
    if labels.value.shape[:2] != (puzzles, places) or new_labels.value.shape[:2] != (len(new_states), places):
        raise ValueError(f"labels {labels.value.shape} do not fit states {states.shape}")
    scale = states.reshape(-1, width).std(0)
    middle, scale = states.reshape(-1, width).mean(0), np.where(scale > 0, scale, 1)
    x, new = ((part - middle) / scale for part in (states, new_states))
    value, counted = labels
    varies = (value & counted).any(0) & (~value & counted).any(0)  # (K, n)
    scores = np.full((*new.shape[:3], value.shape[2]), np.nan)
    for cell in range(value.shape[2]):
        puzzle, place = np.nonzero(counted[:, :, cell] & varies[:, cell])
        if len(puzzle):
            chosen = x[puzzle, :, place].reshape(-1, width)
            weights, bias = _ridge(chosen, np.repeat(value[puzzle, place, cell].astype(x.dtype), frames), ridge)
            scores[..., cell] = new @ weights + bias
    found = []
    for number, (truth, valid) in enumerate(zip(new_labels.value, new_labels.counted & varies, strict=True)):
        truth = np.broadcast_to(truth, (frames, *truth.shape))[:, valid]
        found.append(auc(scores[number][:, valid].reshape(-1), truth.reshape(-1)))
    return np.array(found)


def _states(found: Activations) -> np.ndarray:
    if found.states is None:
        raise ValueError("these activations hold no states: name steps to keep them at, activations(..., probed=[0])")
    return found.states


def by_layer(
    known: Sequence[Activations], new: Sequence[Activations], label: Callable[[Sample], Labels],
    frame: int | None = None, control: bool = False, ridge: float = 0.01,
) -> np.ndarray:  # fmt: skip
    """`read_out` at every probed step and layer, (P', probed steps, L + 1): probes of `known` read the `new` ones.

    frame: read the tokens of this latent frame alone, 0 for the one that is given, instead of all that follow it.
    control: the probes are fitted to `shuffled` labels.
    """
    steps, depth, *grid, width = _states(known[0]).shape
    labels, new_labels = (
        arrange(label, [one.sample for one in part], (grid[0], grid[1], grid[2])) for part in (known, new)
    )
    frames = slice(1, None) if frame is None else slice(frame, frame + 1)

    def tokens(part: Sequence[Activations], step: int, layer: int) -> np.ndarray:
        return np.stack([_states(one)[step, layer, frames].reshape(-1, grid[1] * grid[2], width) for one in part])

    fitted = shuffled(labels) if control else labels
    scores = [
        [read_out(tokens(known, s, k), fitted, tokens(new, s, k), new_labels, ridge) for k in range(depth)]
        for s in range(steps)
    ]
    return np.moveaxis(np.array(scores), -1, 0)


# ---------------------------------------------------------------- where along the layers
def near_best(curve: np.ndarray, floor: np.ndarray, level: float = 0.9, least: float = 0.05) -> np.ndarray:
    """Layer from which a read-out first comes near its best, (...): curves (..., L + 1) to layers -1..L-1.

    Near is `level` of the way from the floor (...), the control's score, to the best. NaN where the best lies less than
    `least` above the floor: nothing is readable that the place does not give.
    """
    curve, floor = np.asarray(curve), np.asarray(floor)
    best = curve.max(-1)
    reached = curve >= (floor + level * (best - floor))[..., None]
    return np.where(best - floor >= least, reached.argmax(-1) - 1.0, np.nan)


def gap(
    perception: np.ndarray, answer: np.ndarray, perception_floor: np.ndarray, answer_floor: np.ndarray,
    level: float = 0.9, resamples: int = 2000, seed: int = 0,
) -> dict[str, float | int] | None:  # fmt: skip
    """`near_best` layer of the answer minus that of perception, with a 95 % bootstrap interval over held-out puzzles.

    All (P, L + 1), the floors those of the controls; the floor is their mean over the layers, or chance (1/2)
    where that is more. In the form `results.record_numbers` takes, with a tolerance of at least one layer;
    None where either cannot be read.
    """
    curves = perception, answer, perception_floor, answer_floor
    known = ~np.any([np.isnan(c).any(1) for c in curves], 0)
    if known.sum() < 2:
        return None

    def gaps(chosen: np.ndarray) -> np.ndarray:
        means = [c[known][chosen].mean(-2) for c in curves]
        layers = [near_best(c, np.maximum(f.mean(-1), 0.5), level) for c, f in zip(means[:2], means[2:], strict=True)]
        return layers[1] - layers[0]

    count = int(known.sum())
    value = float(gaps(np.arange(count)))
    if np.isnan(value):
        return None
    drawn = gaps(np.random.default_rng(seed).integers(count, size=(resamples, count)))
    low, high = (float(end) for end in np.nanpercentile(drawn, [2.5, 97.5]))
    return dict(value=value, low=low, high=high, n=count, tolerance=max(1.0, (high - low) / 2))
