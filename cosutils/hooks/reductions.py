"""What a capture keeps of a state: reductions that run on the device, between two blocks of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .. import metrics
from .._check import whole
from ._shards import Shard

__all__ = ["Grid", "Reduction", "chooser", "energy", "projection", "raw", "region", "tokens"]

Grid = tuple[int, int, int]  # tokens along f, h, w
# numbers, a boolean mask (N,) or (f, h, w), a `region`
Tokens: TypeAlias = Iterable[int] | Tensor | Callable[[Grid], Tensor]


class Reduction:
    """What `capture` keeps of a state: a function of (states (B, N, D), grid (f, h, w)), run on the device.

    `capture` takes any such function and makes a Reduction of it. name: what messages call it. tokenwise: whether it
    makes (B, N, ...) of every token by itself, so that processes which share the tokens of one run
    (`enable_parallelism`) reduce their own and join the results; otherwise they join the states.
    """

    def __init__(self, function: Callable[[Tensor, Grid], Tensor], name: str = "", *, tokenwise: bool = False) -> None:
        if not callable(function):
            raise TypeError(f"reduce must be a function of (states, grid) such as energy or raw, got {function!r}")
        self.function, self.tokenwise = function, tokenwise
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    @classmethod
    def of(cls, reduce: Reduction | Callable[[Tensor, Grid], Tensor]) -> Reduction:
        """`reduce` itself, or the Reduction of a plain function; TypeError for anything else."""
        return reduce if isinstance(reduce, Reduction) else cls(reduce)

    def __repr__(self) -> str:
        return f"Reduction({self.name})"

    def __call__(self, states: Tensor, grid: Grid) -> Tensor:
        return self.function(states, grid)

    def check(self, grid: Grid) -> None:
        """ValueError where it cannot work on this token grid; asked at the start of a call."""

    def keep(self, states: Tensor, grid: Grid, shard: Shard | None) -> Tensor:
        """What it makes of the whole state, in every process, in memory of its own.

        states: (B, n, ...), a part where there is a shard, but whole at the input of block 0.
        """
        if shard is None or states.shape[1] == shard.count:
            kept = self(states, grid)
        elif self.tokenwise:
            return shard.whole(self(states, grid))
        else:
            kept = self(shard.whole(states), grid)
        if not isinstance(kept, Tensor):
            raise TypeError(f"reduce={self.name} must return a tensor, got {type(kept).__name__}")
        shared = kept.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()
        return kept.clone() if shared else kept

    def read(self, kept: Tensor, grid: Grid) -> Tensor:
        """What a reader gets of what was kept."""
        return kept


class _Energy(Reduction):
    """Between two blocks norms (B, N) only; the grid is laid over them when they are read."""

    def __call__(self, states: Tensor, grid: Grid | None = None) -> Tensor:
        return metrics.energy(states, grid)

    def keep(self, states: Tensor, grid: Grid, shard: Shard | None) -> Tensor:
        norms = metrics.energy(states)
        return norms if shard is None or norms.shape[1] == shard.count else shard.whole(norms)

    def read(self, kept: Tensor, grid: Grid) -> Tensor:
        return kept.unflatten(1, grid)


class _Raw(Reduction):
    """Whole states go to the host at once: the device has no room for those of a step."""

    def keep(self, states: Tensor, grid: Grid, shard: Shard | None) -> Tensor:
        states = states if shard is None or states.shape[1] == shard.count else shard.whole(states)
        return states.to("cpu", non_blocking=True, copy=True)


class _Chosen(Reduction):
    """Tokens by number: other processes send the chosen ones only."""

    def __init__(self, indices: Tokens) -> None:
        self.choose = chooser(indices)
        super().__init__(lambda states, grid: states.index_select(1, self.choose(grid).to(states.device)), "tokens")

    def check(self, grid: Grid) -> None:
        self.choose(grid)

    def keep(self, states: Tensor, grid: Grid, shard: Shard | None) -> Tensor:
        if shard is None or states.shape[1] == shard.count:
            return self(states, grid)
        return shard.chosen(states, self.choose(grid))


def _whole_state(states: Tensor, grid: Grid) -> Tensor:
    """The whole block state, tokens (B, N, D) in the model's dtype. What `swap` needs of a donor."""
    return states


energy = _Energy(metrics.energy, tokenwise=True)
raw = _Raw(_whole_state, "raw")


def region(
    frames: Iterable[int] | None = None,
    rows: Iterable[int] | None = None,
    columns: Iterable[int] | None = None,
) -> Callable[[Grid], Tensor]:
    """A box of space-time: calling it with a grid (f, h, w) gives a boolean mask (N,) in f-major token order.

    frames, rows, columns: token indices along f, h, w (None is all). Beyond the grid they raise ValueError.
    """
    wanted = tuple(None if axis is None else sorted(set(axis)) for axis in (frames, rows, columns))

    def mask(grid: Grid) -> Tensor:
        inside = torch.ones(grid, dtype=torch.bool)
        for axis, (name, chosen) in enumerate(zip(("frame", "row", "column"), wanted, strict=True)):
            if chosen is None:
                continue
            for index in chosen:
                if not 0 <= index < grid[axis]:
                    last = grid[axis] - 1
                    raise ValueError(f"no {name} {index}: the token grid {tuple(grid)} has 0..{last}")
            line = torch.zeros(grid[axis], dtype=torch.bool)
            line[chosen] = True
            inside &= line.reshape([-1 if i == axis else 1 for i in range(3)])
        return inside.flatten()

    return mask


def chooser(tokens: Tokens) -> Callable[[Grid], Tensor]:
    """Turns a grid (f, h, w) into the token numbers (n,) that `tokens` mean, in the given order.

    Its ValueError names what lies beyond the grid, a mask of another size, and a choice of no token.
    """
    given = tokens if callable(tokens) else torch.as_tensor(tokens if isinstance(tokens, Tensor) else list(tokens))

    def choose(grid: Grid) -> Tensor:
        count = grid[0] * grid[1] * grid[2]
        chosen = given(grid) if callable(given) else given
        if chosen.dtype == torch.bool:
            if chosen.numel() != count or (chosen.ndim == 3 and tuple(chosen.shape) != grid):
                shape = tuple(chosen.shape)
                raise ValueError(f"a mask of tokens must fit the token grid {grid} ({count} tokens), got {shape}")
            chosen = chosen.flatten().nonzero()[:, 0]
        elif chosen.numel() and (chosen.is_floating_point() or chosen.dtype == torch.uint8 or chosen.ndim != 1):
            raise TypeError(  # uint8 may be meant as a mask
                f"tokens must be numbers, a boolean mask or a region, got {chosen.dtype} {tuple(chosen.shape)}"
            )
        if len(chosen) == 0:
            raise ValueError(f"no token is chosen of the token grid {grid}")
        if chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"token indices must lie in 0..{count - 1}, got {chosen.tolist()[:8]}")
        return chosen.long()

    return choose


def tokens(indices: Tokens) -> Reduction:
    """Keep a subset of tokens: states (B, N, D) to (B, n, D).

    indices: token numbers in 0..N-1 (kept in the given order), a boolean mask (N,) or (f, h, w), or a `region`.
    ValueError beyond the grid and for none.
    """
    return _Chosen(indices)


def projection(dim: int, seed: int = 0) -> Reduction:
    """Random projection of tokens (B, N, D) to float32 (B, N, dim) by one D x dim Gaussian / sqrt(dim).

    Keeps inner products in expectation (Johnson and Lindenstrauss 1984), the same matrix at every layer and
    step.
    """
    dim = whole(dim, "dim", 1)
    matrices: dict[tuple[int, torch.device], Tensor] = {}

    def reduce(states: Tensor, grid: Any) -> Tensor:
        width = states.shape[-1], states.device
        if width not in matrices:
            matrix = torch.randn(width[0], dim, generator=torch.Generator().manual_seed(seed))
            matrices[width] = (matrix / dim**0.5).to(states.device)
        return states.float() @ matrices[width]

    return Reduction(reduce, "projection", tokenwise=True)
