"""What blocks look at: token energy on and off the foreground, and local variance, by layer and step (Sec. 5.1).

    >>> from cosutils.measures import layers
    >>> found = layers.activations(pipe, puzzle, probed=[0, 3], num_inference_steps=4)
    >>> ratio = layers.contrast(found.energy, layers.foreground(puzzle, found.grid), first=False, large=0.02)
    >>> ratio.shape               # steps, layers
    (4, 3)

S steps, L layers, tokens (f, h, w) on the grid of the patch embedding. Layer numbers count from 0; where states stand
for themselves, index 0 of an axis of L + 1 is the input of the first block, "layer -1".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from scipy.stats import spearmanr
from torch.nn.functional import adaptive_avg_pool3d, avg_pool2d

from ..hooks.capture import capture
from ..hooks.reductions import Grid, Reduction, energy, projection, raw
from ..mini import world
from ..mini.tasks import Sample
from ..pipelines.loading import seeded, settings

__all__ = [
    "Activations", "activations", "centred", "coarse", "concordance", "contrast", "foreground", "gain", "maps", "named",
    "pool", "rank", "thirds", "updates",
]  # fmt: skip

STRUCTURE = [world.TILE["floor"], world.TILE["wall"]]  # every other tile is an object or a mark


# ---------------------------------------------------------------- the film on the token grid
def pool(cells: np.ndarray, grid: Grid) -> np.ndarray:
    """True cells of a film (T, H, W) bool to tokens (f, h, w) bool: a token is true where any cell that it overlaps is.

    The first latent frame holds frame 0 alone, the others share the later frames evenly. Tokens may be larger
    or smaller than cells. ValueError for one latent frame of a film of several frames, or the reverse.
    """
    frames, height, width = np.shape(cells)
    f, h, w = grid
    if (f == 1) != (frames == 1):
        raise ValueError(f"a film of {frames} x {height} x {width} cells does not fit the token grid {tuple(grid)}")
    boxes = _overlap(_overlap(np.asarray(cells, bool), h, 1), w, 2)
    return np.concatenate([boxes[:1], _overlap(boxes[1:], f - 1, 0)]) if f > 1 else boxes


def _overlap(cells: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Bool cells along `axis` to `count` equal parts of its length: true where any cell that the part overlaps is."""
    size = cells.shape[axis]
    parts = [np.arange(size * k // count, -(-size * (k + 1) // count)) for k in range(count)]
    return np.stack([cells.take(part, axis).any(axis) for part in parts], axis)


def foreground(sample: Sample, grid: Grid) -> np.ndarray:
    """Tokens (f, h, w) bool that hold an object, or a cell that the true film has changed since its first frame.

    Floor and walls are background. In a maze the trail counts from the frame on in which it is drawn.
    """
    return pool(~np.isin(sample.ids, STRUCTURE) | (sample.ids != sample.ids[0]), grid)


def named(sample: Sample, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Places (h, w) bool of the right answer, and of the other possible answers only; no token is in both."""
    answer = sample.options[sample.answer] != sample.blank
    others = np.any([option != sample.blank for option in sample.options.values()], 0) & ~answer
    grid = (1, *grid[1:])
    own = pool(answer[None], grid)[0]
    return own, pool(others[None], grid)[0] & ~own


# ---------------------------------------------------------------- one run
def maps(states: torch.Tensor, grid: Grid) -> torch.Tensor:
    """A reduction for `capture`: token energy and local channel variance, (B, 2, f, h, w) float32.

    Energy is the L2 norm over the D channels. Local variance is each channel's variance over the token and its
    neighbours in the same frame (3 x 3, fewer at the edges), summed over channels, so that its square root compares
    with an energy.
    """
    batch, _, width = states.shape
    f, h, w = grid
    picture = states.float().reshape(batch * f, h, w, width).permute(0, 3, 1, 2)
    near = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    mean = near(picture)
    spread = near((picture - picture.mean((2, 3), keepdim=True)) ** 2)
    spread = spread - (mean - picture.mean((2, 3), keepdim=True)) ** 2
    local = spread.clamp(min=0).sum(1).view(batch, f, h, w)
    return torch.stack([energy(states, grid), local], 1)


@dataclass(frozen=True)
class Activations:
    """One run. energy, variance: (S, L, f, h, w); states: (probed steps, L + 1, f, h, w, D), index 0 of the second axis
    the first block's input, or None. With a `width` the states are `coarse`, their f, h, w and D smaller."""

    sample: Sample
    grid: Grid
    energy: np.ndarray = field(repr=False)
    variance: np.ndarray = field(repr=False)
    states: np.ndarray | None = field(repr=False, default=None)


def coarse(width: int) -> Reduction:
    """A reduction for large models: tokens averaged to at most 5 x 10 x 10 and projected at random to `width` channels.

    (B, N, D) to (B, n, width). 10 x 10 are the cells of a puzzle and 5 the latent frames of a film of 17; the first
    latent frame stays by itself.
    """
    project = projection(width)

    def reduce(states: torch.Tensor, grid: Grid) -> torch.Tensor:
        f, h, w = grid
        volume = project(states, grid).transpose(1, 2).unflatten(2, grid)
        room = min(h, world.CELLS), min(w, world.CELLS)
        later = [adaptive_avg_pool3d(volume[:, :, 1:], (min(f, 5) - 1, *room))] if f > 1 else []
        parts = [adaptive_avg_pool3d(volume[:, :, :1], (1, *room)), *later]
        return torch.cat(parts, 2).flatten(2).transpose(1, 2)

    return Reduction(reduce, "coarse")


def activations(
    pipe: WanImageToVideoPipeline, sample: Sample, seed: int = 0, probed: list[int] | None = None,
    width: int | None = None, **call: Any,
) -> Activations:  # fmt: skip
    """Run `pipe` on `sample` and keep `maps` of all blocks and steps, and the states themselves at the `probed` steps.

    width: keep of these states only what `coarse` leaves; a large model's fill tens of GB. call: overrides of the
    preset's settings. The positive branch is looked at, as in the paper.
    """
    reduce = raw if width is None else coarse(width)
    call = sample.inputs | settings(pipe) | call | dict(output_type="latent", generator=seeded(seed))
    with capture(pipe, reduce=maps) as reduced:
        if probed is None:
            pipe(**call)
            states = None
        else:
            with (
                capture(pipe, 0, probed, reduce, inputs=True) as entry,
                capture(pipe, None, probed, reduce) as whole,
            ):
                pipe(**call)
            first = torch.stack([entry.inputs[key][0] for key in sorted(entry, key=lambda key: key[1])])
            states = torch.cat([first[:, None], whole.stack()[:, :, 0]], 1).float()
            f, h, w = grid = cast(Grid, whole.grid)  # known once a call has run
            grid = grid if width is None else (min(f, 5), min(h, world.CELLS), min(w, world.CELLS))
            states = states.unflatten(2, grid).numpy()
    stack = reduced.stack()[:, :, 0].numpy()
    return Activations(sample, cast(Grid, reduced.grid), stack[:, :, 0], stack[:, :, 1], states)


# ---------------------------------------------------------------- numbers
def centred(states: np.ndarray) -> np.ndarray:
    """Energy of what a token has of its own, (..., f, h, w): norm of states (..., f, h, w, D) less their mean token.

    The mean is over the f h w tokens of a layer. What it takes away is common to all of them and tells none apart.
    """
    states = np.asarray(states)
    return np.asarray(np.linalg.norm(states - states.mean((-4, -3, -2), keepdims=True), axis=-1))


def updates(states: np.ndarray) -> np.ndarray:
    """Norm of what each block adds to a token, (S, L, f, h, w). states: (S, L + 1, f, h, w, D), as in `Activations`."""
    return np.asarray(np.linalg.norm(np.diff(states, axis=1), axis=-1))


def contrast(
    energies: np.ndarray,
    mask: np.ndarray,
    against: np.ndarray | None = None,
    first: bool = True,
    large: float = 0.0,
) -> np.ndarray:
    """Log ratio of the mean energy of tokens in `mask` to that of tokens in `against` (None: all others), (...).

    energies: (..., f, h, w); masks: (f, h, w) or (h, w) for every frame. Two artefacts can be left out: the `first`
    latent frame, which holds the given picture, and in each map the share `large` in [0, 1) of the largest tokens
    (rounded up), so that a few massive ones do not decide. NaN where either side has no token left.
    """
    energies = np.asarray(energies, np.float64)
    if not 0 <= large < 1:
        raise ValueError(f"large is a share in [0, 1), got {large!r}")
    inside, other = (
        np.broadcast_to(m, energies.shape[-3:])[0 if first else 1 :].reshape(-1)
        for m in (mask, ~mask if against is None else against)
    )
    tokens = energies[..., 0 if first else 1 :, :, :].reshape(*energies.shape[:-3], -1)
    keep = np.ones(tokens.shape, bool)
    if count := int(np.ceil(large * tokens.shape[-1])):
        np.put_along_axis(keep, np.argsort(tokens, -1)[..., -count:], False, -1)

    def mean(chosen: np.ndarray) -> np.ndarray:
        chosen = keep & chosen
        amount = chosen.sum(-1)
        return np.divide((tokens * chosen).sum(-1), amount, out=np.full(amount.shape, np.nan), where=amount > 0)

    return np.log(mean(inside)) - np.log(mean(other))


def thirds(layers: int) -> tuple[list[int], list[int], list[int]]:
    """Layer numbers of the first, middle and last third; the first take what does not divide. ValueError below 3."""
    if layers < 3:
        raise ValueError(f"thirds need at least 3 layers, got {layers}")
    return tuple(part.tolist() for part in np.array_split(np.arange(layers), 3))


def gain(ratio: np.ndarray) -> float:
    """Mean of a ratio (S, L) over the last third of the layers minus its mean over the first third, over all steps."""
    first, _, last = thirds(ratio.shape[-1])
    return float(ratio[..., last].mean() - ratio[..., first].mean())


def rank(values: np.ndarray) -> float:
    """Rank correlation of layer number and values (S, L), in [-1, 1], mean over steps: 1 where they grow with depth."""
    return float(np.mean([spearmanr(range(values.shape[1]), row).statistic for row in values]))


def concordance(ratio: np.ndarray) -> float:
    """Rank correlation of the layers' ratios (S, L) between two steps, in [-1, 1], mean over all pairs of S >= 2 steps.

    Kendall's coefficient of concordance W is the same on another scale: W = (1 + (S - 1) concordance) / S.
    """
    steps = len(ratio)
    if steps < 2:
        raise ValueError(f"a concordance of steps needs at least 2 of them, got {steps}")
    ranks = np.argsort(np.argsort(ratio, -1), -1)
    return float(np.asarray(np.corrcoef(ranks))[np.triu_indices(steps, 1)].mean())
