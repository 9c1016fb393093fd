"""Block states of a run, reduced on the device and keyed by (expert, step, layer) (paper Sec. 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ..pipelines.check import experts
from ..pipelines.families import only_wan
from ..pipelines.provenance import identity
from ._blocks import BRANCHES, Place, check_layers, check_steps, watch
from ._call import Hub
from ._shards import Shard, shard_of
from .reductions import Grid, Reduction, energy, raw

__all__ = ["Capture", "Key", "capture"]

Key = tuple[str, int, int]


class Capture(Mapping[Key, Tensor]):
    """Captured states on the host, read as a mapping from (expert, step, layer).

    Attributes: branch, part, reduce, grid (f, h, w) of the tokens; models: of whole states the `identity` of each
    expert. Complete steps are readable while the run goes on.
    """

    def __init__(self, branch: str, part: str, reduce: Reduction, inputs: bool) -> None:
        self.branch, self.part, self.reduce = branch, part, reduce
        self._stores = 1 + inputs
        self._shards: dict[str, Shard] = {}  # of the experts whose tokens are spread over processes
        self.grid: Grid | None = None
        self.models: dict[str, dict[str, Any]] = {}
        self._inputs: dict[Key, Tensor] = {}
        self._outputs: dict[Key, Tensor] = {}
        self._reduced: list[tuple[dict[Key, Tensor], Key, Tensor]] = []  # waiting for the end of the step
        self._unread: list[tuple[dict[Key, Tensor], Key]] = []  # on their way to the host

    def begin(self, hub: Hub, grid: Grid) -> None:
        """Forget what a call that failed within a step left behind, and see where this one has its tokens."""
        self._reduced = []
        self.reduce.check(grid)
        if self.reduce is raw:
            self.models = {name: identity(hub.pipe, [name])[name] for name in experts(hub.pipe)}
        shards = {name: shard_of(model, math.prod(grid)) for name, model in experts(hub.pipe).items()}
        self._shards = {name: shard for name, shard in shards.items() if shard is not None}
        if self._shards:
            only_wan(hub.pipe, "capture of a run that several processes share")

    def see(self, place: Place, given: Tensor, states: Tensor) -> None:
        """Reduce one block's state, on the device."""
        expert, step, layer, _, self.grid, _ = place
        key, shard = (expert, step, layer), self._shards.get(expert)
        if key in self._outputs:
            raise ValueError(f"{key} was captured before; open a new capture for every run")
        self._reduced.append((self._outputs, key, self.reduce.keep(states, self.grid, shard)))
        if self._stores > 1:
            self._reduced.append((self._inputs, key, self.reduce.keep(given, self.grid, shard)))

    def flush(self) -> None:
        """Bring what was reduced in the step that just ended to the host in one copy."""
        states = [state for _, _, state in self._reduced]
        if any(state.device.type != "cpu" for state in states):
            states = torch.stack(states).to("cpu", non_blocking=True).unbind()
        for (store, key, _), state in zip(self._reduced, states, strict=True):
            store[key] = state
            self._unread.append((store, key))
        self._reduced = []

    def settle(self) -> None:
        """Wait for copies under way, and give them the form in which they are read."""
        if self._unread and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        unread, self._unread = self._unread, []
        for store, key in unread:
            store[key] = self.reduce.read(store[key], cast(Grid, self.grid))

    @property
    def inputs(self) -> Mapping[Key, Tensor]:
        """Block inputs under the same keys, if they were asked for."""
        self.settle()
        return self._inputs

    def __getitem__(self, key: Key) -> Tensor:
        self.settle()
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
    reduce: Reduction | Callable[[Tensor, Grid], Tensor] = energy,
    branch: str = "cond",
    *,
    inputs: bool = False,
    part: str = "block",
) -> Iterator[Capture]:
    """Record block outputs of the one run inside the `with` block, without changing it (`torch.equal`).

    layers, steps: which ones (None is all). reduce: `energy` (B, f, h, w), `tokens(...)`, `projection(...)`,
    `raw` or any function of (states (B, N, D), grid), run on the device; one copy to the host at the end of
    each step.
    branch: "cond" (the positive CFG pass, as in the paper) or "uncond". inputs: keep block inputs too, which
    `swap(mode="delta")` needs of a donor. part: the "block", or a part of it, as `edit` takes it.
    Where context parallelism spreads the tokens over several processes, each gets the same whole result; all of
    them open the same contexts.
    Raises ValueError or TypeError for an unknown layer, step, branch or part, a feature cache, a whole-model
    compile, or a second run in the same context.
    """
    if branch not in BRANCHES:
        raise ValueError(f"no branch {branch!r}: allowed are 'cond' and 'uncond'")
    states = Capture(branch, part, Reduction.of(reduce), inputs)
    layers, steps = check_layers(pipe, layers), check_steps(steps)
    with watch(pipe, layers, steps, (branch,), states.see, part=part, begin=states.begin, step_end=states.flush):
        yield states
    states.settle()
