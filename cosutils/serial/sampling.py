"""Many different puzzles in one batch: sampling, and what every step says about the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..mini import model
from ..mini.model import noise_of
from ..pipelines.schedule import shifted
from . import puzzles as world
from .model import CHANNELS, SHIFT, _cells, condition, encode

__all__ = ["Reading", "nearest", "noise_for", "parallel", "read", "shares", "staircase", "steps_of"]


def noise_for(puzzles: world.Puzzles, seed: int = 0) -> Tensor:
    """Starting noise (n, 2, 3, 10, 10): a pure function of the noise seed and of each puzzle's seed, batch or
    not.
    """
    return noise_of(puzzles.seed, (CHANNELS, 3, world.CELLS, world.CELLS), seed)


def steps_of(
    transformer, noise: Tensor, given: Tensor, embeds: Tensor, steps: int
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Euler sampling of different pictures in one batch at the testbed's noise levels; yields sigma, x_s and x0hat of
    every step: see `mini.model.steps_of`.
    """
    return model.steps_of(transformer, noise, given, embeds, steps, shift=SHIFT)


def shares(codec, puzzles: world.Puzzles, x0: Tensor) -> Tensor:
    """How far each candidate's answer cell has turned into an end, in the last latent frame of x0hat: (n, K),
    0 to 1.
    """
    cells = _cells(codec)
    options = torch.from_numpy(puzzles.options.copy())
    index = torch.arange(len(puzzles))[:, None]
    seen = x0[:, :, 2].permute(0, 2, 3, 1)[index, options[..., 0], options[..., 1]]
    base = cells[torch.from_numpy(puzzles.first).long()[index, options[..., 0], options[..., 1]]]
    way = cells[world.END] - base
    return ((seen - base) * way).sum(-1) / way.square().sum(-1)


@dataclass(frozen=True)
class Reading:
    """What the steps of one run say; n puzzles, S steps. leader (S, n): the candidate that leads in x0hat;
    right (S, n); alive (S, n): 1 / sum p^2 of the candidates' clipped shares, 1 to K; exact (n,): every cell
    of the final film is nearest to its true tile; cells (n,): share of such cells among those that change."""

    leader: np.ndarray
    right: np.ndarray
    alive: np.ndarray
    exact: np.ndarray
    cells: np.ndarray


def nearest(codec, x0: Tensor) -> Tensor:
    """The nearest tile of every cell of x0hat: (n, 3, 10, 10)."""
    return torch.cdist(x0.permute(0, 2, 3, 4, 1).flatten(0, 3), _cells(codec)).argmin(1).view(len(x0), *x0.shape[2:])


@torch.no_grad()
def read(transformer, codec, puzzles: world.Puzzles, film: str, embeds: Tensor, steps: int, seed: int = 0,
         batch: int = 512, sampler=steps_of) -> Reading:  # fmt: skip
    """Run `steps` steps on every puzzle and read each step."""
    parts = []
    for start in range(0, len(puzzles), batch):
        part = puzzles[start : start + batch]
        truth = part.film(film)
        given = condition(codec, encode(codec, truth))
        leaders, alive, x0 = [], [], None
        for _, _, x0 in sampler(transformer, noise_for(part, seed), given, embeds, steps):
            share = shares(codec, part, x0)
            p = share.clamp(min=1e-6)
            p = p / p.sum(1, keepdim=True)
            leaders.append(share.argmax(1).numpy())
            alive.append((1 / p.square().sum(1)).numpy())
        same = nearest(codec, x0).numpy() == truth
        moved = truth != truth[:, :1]
        leader = np.stack(leaders)
        parts.append(Reading(leader, leader == part.answer, np.stack(alive), same.all((1, 2, 3)),
                             (same & moved).sum((1, 2, 3)) / moved.sum((1, 2, 3))))  # fmt: skip
    return Reading(*(np.concatenate([getattr(p, name) for p in parts], -1) for name in vars(parts[0])))


@torch.no_grad()
def staircase(
    transformer, noise: Tensor, given: Tensor, embeds: Tensor, steps: int
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """As `steps_of`, with a noise level for each row: the first row is clean after half of the steps, the last at the
    end. The Wan classes take a timestep for each token (B, N); the stock pipeline passes one for all."""
    late = torch.arange(world.CELLS) / (world.CELLS - 1)
    time = torch.linspace(0, 1, steps + 1)[:, None]
    sigmas = shifted((1 + late - 2 * time).clamp(0, 1), SHIFT)  # (steps + 1, rows)
    x = noise
    for step in range(steps):
        s, s_next = (row.view(1, 1, 1, -1, 1) for row in sigmas[step : step + 2])
        level = (sigmas[step] * 1000).repeat(3).expand(len(x), -1)
        v = transformer(torch.cat([x, given], 1), level, embeds.expand(len(x), -1, -1), return_dict=False)[0].float()
        x0 = x - s * v
        yield float(sigmas[step].mean()), x, x0
        x = x + (s_next - s) * v


@torch.no_grad()
def parallel(
    transformer, codec, puzzles: world.Puzzles, film: str, embeds: Tensor, passes: int, batch: int = 512
) -> np.ndarray:
    """Is the leader right in the mean of `passes` first estimates from different noise? (n,): the compute of
    a chain of as many steps, without a chain."""
    right = []
    for start in range(0, len(puzzles), batch):
        part = puzzles[start : start + batch]
        given = condition(codec, encode(codec, part.film(film)))
        share = torch.zeros(part.options.shape[:2])
        for seed in range(passes):
            *_, (_, _, x0) = steps_of(transformer, noise_for(part, seed), given, embeds, 1)
            share = share + shares(codec, part, x0)
        right.append(share.argmax(1).numpy() == part.answer)
    return np.concatenate(right)
