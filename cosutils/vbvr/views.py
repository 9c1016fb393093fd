"""What block states look like: energies, channels and principal components of tokens, as the authors' tools draw them.

>>> with views(pipe, steps=[0, 3], layers=[0, 1, 2]) as seen:
...     output = pipe(**call)
>>> states = {name: captured.stack()[:, :, 0] for name, captured in seen.items()}  # of the first video, (S, L, ...)
>>> colours(states["components"]).shape  # (S, L, f, h, w, 3)
(2, 3, 5, 5, 5, 3)

The tools released with the paper copy every state to the host in float32 and draw from there. Here each quantity is a
reduction for `capture`: it is taken on the device, and what travels is thousands of times smaller than the state.

    their picture                     here
    norm map, layer grid              `metrics.energy`
    norm across layers, over steps    its mean over tokens
    temporal energy, heat map         `temporal_energy` of it
    PCA map                           `components`, `explained`, `colours`
    channel importance                `channel_variance`
    top channels                      `channels`

`change`, from frame to frame, is ours: temporal energy is a size, and stays large in a film where nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from .._check import whole
from ..hooks.capture import Capture, capture
from ..hooks.reductions import Grid, Reduction, energy

__all__ = [
    "change", "channel_variance", "channels", "colours", "components", "explained", "heat", "largest",
    "temporal_energy", "views",
]  # fmt: skip


# ---------------------------------------------------------------- reductions
def change(states: Tensor, grid: Grid) -> Tensor:
    """Mean squared difference of tokens (B, N, D) from those at the same place one latent frame before: (B, f - 1).

    Entry m compares frames m and m + 1, over all h w places and D channels, in float32. ValueError if the grid does not
    hold N tokens.
    """
    return _on_grid(states.float(), grid).diff(dim=2).square().mean((1, 3, 4))


def channel_variance(states: Tensor, grid: Grid) -> Tensor:
    """Variance of each channel over the N tokens of a state (B, N, D), unbiased, in float32: (B, D)."""
    return states.float().var(1)


def largest(variance: Tensor, count: int) -> Tensor:
    """Numbers of the `count` channels of largest variance (..., D), largest first, ties by number: (..., count).

    Raises ValueError unless 1 <= count <= D.
    """
    if not 1 <= count <= variance.shape[-1]:
        raise ValueError(f"count must lie in 1..{variance.shape[-1]}, the number of channels, got {count}")
    return variance.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def channels(which: int | Sequence[int]) -> Reduction:
    """Maps of single channels: states (B, N, D) to float32 (B, K, f, h, w).

    which: channel numbers, or how many of `largest` variance, found anew in every state; `largest` of the captured
    `channel_variance` tells their numbers. ValueError for a channel that the states do not have.
    """

    def reduce(states: Tensor, grid: Grid) -> Tensor:
        if isinstance(which, Iterable):
            numbers, width = list(which), states.shape[-1]
            if not numbers or not all(0 <= channel < width for channel in numbers):
                raise ValueError(f"channels must lie in 0..{width - 1} and not be none, got {numbers}")
            chosen = torch.tensor([numbers] * len(states), device=states.device)
        else:
            chosen = largest(channel_variance(states, grid), whole(which, "the number of channels"))
        picked = states.gather(2, chosen[:, None].expand(-1, states.shape[1], -1))
        return _on_grid(picked.float(), grid)

    return Reduction(reduce, "channels")


def components(count: int = 3) -> Reduction:
    """Principal components of tokens: states (B, N, D) to their scores, float32 (B, count, f, h, w), largest first.

    Fitted to the N tokens of this one state and video, all frames together (as the authors do): comparable between
    frames, not between layers, steps or videos. The sign makes the largest loading positive, so that the same state
    gives the same picture. Randomised (`torch.pca_lowrank` with a fixed seed; the global generators are left alone),
    exact where states have no more than count + 8 components. Raises ValueError unless 1 <= count <= min(N, D).
    """

    def reduce(states: Tensor, grid: Grid) -> Tensor:
        most = min(states.shape[1:])
        if not 1 <= count <= most:
            raise ValueError(f"count must lie in 1..{most}, the least of tokens and channels, got {count}")
        centred = states.float()
        centred = centred - centred.mean(1, keepdim=True)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            axes = torch.pca_lowrank(centred, q=min(count + 8, most), center=False, niter=4)[2][..., :count]
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        return _on_grid(centred @ axes, grid)

    return Reduction(reduce, "components")


@contextmanager
def views(
    pipe: Any,
    steps: Iterable[int] | int | None = None,
    layers: Iterable[int] | int | None = None,
    count: int = 6,
    branch: str = "cond",
) -> Iterator[dict[str, Capture]]:
    """Capture of the one run inside the block: {"energy", "change", "variance", "channels", "components"}.

    steps, layers, branch: as `capture` takes them (None is all). count: of the `channels` of largest variance, at most
    D. Shapes of the values as their functions say; the three `components` make the colours of a PCA map.
    """
    reductions = {"energy": energy, "change": Reduction.of(change), "variance": Reduction.of(channel_variance)}
    reductions |= {"channels": channels(count), "components": components(3)}
    steps, layers = (list(one) if isinstance(one, Iterable) else one for one in (steps, layers))
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(capture(pipe, layers, steps, reduce, branch))
            for name, reduce in reductions.items()
        }


# ---------------------------------------------------------------- of what was captured
def temporal_energy(energies: Tensor) -> Tensor:
    """The authors' temporal energy: L2 norm of all tokens of a latent frame, from `energy` (..., f, h, w): (..., f)."""
    return energies.square().sum((-2, -1)).sqrt()


def explained(scores: Tensor, variance: Tensor) -> Tensor:
    """Share in [0, 1] of a state's variance that its `components` (..., K, f, h, w) hold; variance: (..., D).

    1 for a state that does not vary.
    """
    held, total = scores.flatten(-3).var(-1).sum(-1), variance.sum(-1)
    return torch.where(total > 0, held / total, 1.0).clamp(max=1)


def colours(scores: Tensor, cut: float = 0.01) -> np.ndarray:
    """Three `components` (..., 3, f, h, w) as red, green and blue in [0, 1]: (..., f, h, w, 3).

    Each component of a state is spread over its range, less the share `cut` of tokens at either end, lest a few massive
    ones leave the rest grey; 0 gives the authors' pictures. One that does not vary is 0. ValueError unless there are
    three components and 0 <= cut < 0.5.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim < 4 or values.shape[-4] != 3:
        raise ValueError(f"colours need three components (..., 3, f, h, w), got {values.shape}")
    if not 0 <= cut < 0.5:
        raise ValueError(f"cut is a share in [0, 0.5), got {cut!r}")
    low, high = np.quantile(values, (cut, 1 - cut), axis=(-3, -2, -1), keepdims=True)
    spread = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.moveaxis(spread, -4, -1)


def heat(maps: Tensor, cmap: str = "viridis", centred: bool = False) -> np.ndarray:
    """Maps (R, C, h, w) as pictures (R, C, h, w, 3) in [0, 1] for `figures.picture_grid`, each row on its own scale.

    From the row's least to its largest value; centred: from minus to plus its largest size, so that the middle of
    `cmap` is 0.
    """
    values = np.asarray(maps, np.float64)
    if values.ndim != 4:
        raise ValueError(f"maps must be (rows, columns, h, w), not {values.shape}")
    high = (abs(values) if centred else values).max((1, 2, 3), keepdims=True)
    low = -high if centred else values.min((1, 2, 3), keepdims=True)
    return plt.colormaps[cmap]((values - low) / np.where(high > low, high - low, 1))[..., :3]


def _on_grid(tokens: Tensor, grid: Grid) -> Tensor:
    """Values of tokens (B, N, K) on their grid: (B, K, f, h, w)."""
    if tokens.shape[1] != grid[0] * grid[1] * grid[2]:
        raise ValueError(f"grid {tuple(grid)} does not hold {tokens.shape[1]} tokens")
    return tokens.mT.unflatten(2, grid)
