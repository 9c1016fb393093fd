"""Block states of a run, reduced on the device and keyed by (expert, step, layer) (paper Sec. 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..metrics import energy
from ..pipelines.check import experts
from ..pipelines.families import only_wan
from ._blocks import BRANCHES, Grid, Seen, check_layers, check_steps, watch
from ._call import Hub
from ._shards import Shard, shard_of

__all__ = ["Capture", "Key", "capture", "projection", "raw", "region", "tokens"]

Key = tuple[str, int, int]
Reduction = Callable[[Tensor, Grid], Tensor]


def raw(states: Tensor, grid: Grid) -> Tensor:
    """The whole block state, tokens (B, N, D) in the model's dtype. What `swap` needs of a donor."""
    return states


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


def tokens(indices: Iterable[int] | Tensor | Callable[[Grid], Tensor]) -> Reduction:
    """Keep a subset of tokens: states (B, N, D) to (B, n, D).

    indices: token numbers in 0..N-1 (kept in the given order) or a `region`. ValueError beyond the grid.
    """
    fixed = None if callable(indices) else torch.as_tensor(list(indices), dtype=torch.long)

    def choose(grid: Grid, count: int) -> Tensor:
        chosen = indices(grid).nonzero()[:, 0] if fixed is None else fixed
        if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= count:
            given = chosen.tolist()[:8]
            raise ValueError(f"token indices must lie in 0..{count - 1} and not be empty, got {given}")
        return chosen

    def reduce(states: Tensor, grid: Grid) -> Tensor:
        return states.index_select(1, choose(grid, states.shape[1]).to(states.device))

    reduce.part = lambda states, grid, shard: shard.chosen(states, choose(grid, shard.count))
    return reduce


def projection(dim: int, seed: int = 0) -> Reduction:
    """Random projection of tokens (B, N, D) to float32 (B, N, dim) by one D x dim Gaussian / sqrt(dim).

    Keeps inner products in expectation (Johnson and Lindenstrauss 1984), the same matrix at every layer and
    step.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    matrices: dict[tuple[int, torch.device], Tensor] = {}

    def reduce(states: Tensor, grid: Grid) -> Tensor:
        width = states.shape[-1], states.device
        if width not in matrices:
            matrix = torch.randn(width[0], dim, generator=torch.Generator().manual_seed(seed))
            matrices[width] = (matrix / dim**0.5).to(states.device)
        return states.float() @ matrices[width]

    reduce.part = lambda states, grid, shard: shard.whole(reduce(states, grid))
    return reduce


def _joined(reduce: Reduction, states: Tensor, grid: Grid, shard: Shard | None) -> Tensor:
    """What `reduce` makes of the whole state, in every process: norms, projections and chosen tokens travel alone.

    Any other function gets the whole state. states: (B, n, D), or whole: without a shard, and at the input of block 0.
    """
    if reduce is energy:  # `Capture._settle` lays the grid over them, not here between two blocks
        norms = energy(states)
        return norms if shard is None or norms.shape[1] == shard.count else shard.whole(norms)
    if shard is None or states.shape[1] == shard.count:
        return reduce(states, grid)
    part = getattr(reduce, "part", None)
    return reduce(shard.whole(states), grid) if part is None else part(states, grid, shard)


class Capture(Mapping[Key, Tensor]):
    """Captured states on the host, read as a mapping from (expert, step, layer).

    Attributes: branch, reduce, grid (f, h, w) of the tokens. Complete steps are readable while the run goes on.
    """

    def __init__(self, branch: str, reduce: Reduction, inputs: bool) -> None:
        self.branch = branch
        self.reduce = reduce
        self._stores = 1 + inputs
        self._shards: dict[str, Shard] = {}  # of the experts whose tokens are spread over processes
        self.grid: Grid | None = None
        self._inputs: dict[Key, Tensor] = {}
        self._outputs: dict[Key, Tensor] = {}
        self._reduced: list[tuple[dict[Key, Tensor], Key, Tensor]] = []  # waiting for the end of the step
        self._flat: list[tuple[dict[Key, Tensor], Key]] = []  # where energies (B, N) wait for their grid

    def _begin(self, hub: Hub) -> None:
        """Forget what a call that failed within a step left behind, and see where this one has its tokens."""
        self._reduced = []
        count = math.prod(n // p for n, p in zip(hub.size, hub.family.patch(hub.pipe), strict=True))
        shards = {name: shard_of(model, count) for name, model in experts(hub.pipe).items()}
        self._shards = {name: shard for name, shard in shards.items() if shard is not None}
        if self._shards:
            only_wan(hub.pipe, "capture of a run that several processes share")

    def _see(self, seen: Seen) -> None:
        """Reduce one block's state, on the device."""
        expert, step, layer, self.grid, block_input, block_output = seen
        key, shard = (expert, step, layer), self._shards.get(expert)
        if key in self._outputs:
            raise ValueError(f"{key} was captured before; open a new capture for every run")
        self._keep(self._outputs, key, _joined(self.reduce, block_output, self.grid, shard))
        if self._stores > 1:
            self._keep(self._inputs, key, _joined(self.reduce, block_input, self.grid, shard))

    def _keep(self, store: dict[Key, Tensor], key: Key, state: Tensor) -> None:
        self._reduced.append((store, key, state.to("cpu", non_blocking=True) if self.reduce is raw else state))

    def _flush(self) -> None:
        """Bring what was reduced in the step that just ended to the host in one copy."""
        states = [state for _, _, state in self._reduced]
        if any(state.device.type != "cpu" for state in states):
            states = torch.stack(states).to("cpu", non_blocking=True).unbind()
        for (store, key, _), state in zip(self._reduced, states, strict=True):
            store[key] = state
            if self.reduce is energy:
                self._flat.append((store, key))
        self._reduced = []

    def _settle(self) -> None:
        """Wait for copies under way, and lay energies over the grid."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        flat, self._flat = self._flat, []
        for store, key in flat:
            store[key] = store[key].unflatten(1, self.grid)

    @property
    def inputs(self) -> Mapping[Key, Tensor]:
        """Block inputs under the same keys, if they were asked for."""
        self._settle()
        return self._inputs

    def __getitem__(self, key: Key) -> Tensor:
        self._settle()
        if key not in self._outputs:
            raise KeyError(f"{key} was not captured; steps {self.steps}, layers {self.layers}")
        return self._outputs[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    @property
    def steps(self) -> list[int]:
        """Captured steps, ascending."""
        return sorted({step for _, step, _ in self})

    @property
    def layers(self) -> list[int]:
        """Captured layers, ascending."""
        return sorted({layer for _, _, layer in self})

    def stack(self) -> Tensor:
        """All states as one tensor (S, L, ...) over `steps` and `layers`; a step has one expert."""
        by_place = {(step, layer): self[expert, step, layer] for expert, step, layer in self}
        return torch.stack([torch.stack([by_place[s, k] for k in self.layers]) for s in self.steps])


@contextmanager
def capture(
    pipe: Any,
    layers: Iterable[int] | int | None = None,
    steps: Iterable[int] | int | None = None,
    reduce: Reduction = energy,
    branch: str = "cond",
    *,
    inputs: bool = False,
) -> Iterator[Capture]:
    """Record block outputs of the one run inside the `with` block, without changing it (`torch.equal`).

    layers, steps: which ones (None is all). reduce: `energy` (B, f, h, w), `tokens(...)`, `projection(...)`,
    `raw` or any function of (states (B, N, D), grid), run on the device; one copy to the host at the end of
    each step.
    branch: "cond" (the positive CFG pass, as in the paper) or "uncond". inputs: keep block inputs too, which
    `swap(mode="delta")` needs of a donor.
    Where context parallelism spreads the tokens over several processes, each gets the same whole result; all of
    them open the same contexts.
    Raises ValueError or TypeError for an unknown layer, step or branch, a feature cache, a whole-model
    compile, or a second run in the same context.
    """
    if branch not in BRANCHES:
        raise ValueError(f"no branch {branch!r}: allowed are 'cond' and 'uncond'")
    if not callable(reduce):
        raise TypeError(f"reduce must be a function of (states, grid) such as energy or raw, got {reduce!r}")
    states = Capture(branch, reduce, inputs)

    layers, steps = check_layers(pipe, layers), check_steps(steps)
    with watch(pipe, layers, steps, (branch,), states._see, begin=states._begin, step_end=states._flush):
        yield states
    states._settle()
