"""Private: tells block hooks which expert, CFG branch, absolute step and layer of a pipeline is running.

The expert is the transformer a hook sits on, the step is the scheduler's, the token grid (f, h, w) the call's size
in patches. The branch ("cond" or "uncond") follows from the order of the forwards in a step, or of the halves of
their batch (`families.Family.passes`). Hooks are kept out of `torch.compile`, so that regionally compiled blocks
(`compile_repeated_blocks`) call them without recompiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..pipelines.check import check_pipeline, experts
from ..pipelines.families import Family, family_of
from ._call import Hub, Tap, tapped

__all__ = ["BRANCHES", "Grid", "Seen", "check_branches", "check_layers", "check_steps", "watch"]

BRANCHES = ("cond", "uncond")
Grid = tuple[int, int, int]  # tokens along f, h, w
Seen = tuple[str, int, int, Grid, Tensor, Tensor]  # expert, step, layer, grid, input and output (B, N, D)


def _integers(values: Iterable[int] | int, what: str) -> tuple[int, ...]:
    values = (values,) if isinstance(values, int) else tuple(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what}s must be integers, got {value!r}")
    if not values:
        raise ValueError(f"no {what} chosen: {what}s must not be empty")
    return tuple(sorted(set(values)))


def check_layers(pipe: Any, layers: Iterable[int] | int | None) -> tuple[int, ...]:
    """Chosen layers, sorted; None is all. ValueError for a block that an expert of `pipe` does not have."""
    check_pipeline(pipe, hooks=True)
    models, family = experts(pipe).values(), family_of(pipe)
    if layers is None:
        return tuple(range(min(len(family.layers(model)) for model in models)))
    chosen = _integers(layers, "layer")
    for model in models:
        count = len(family.layers(model))
        for layer in chosen:
            if not 0 <= layer < count:
                owner = type(model).__name__
                raise ValueError(f"no block {layer}: {owner} has {count} blocks (0..{count - 1})")
    return chosen


def check_steps(steps: Iterable[int] | int | None) -> frozenset[int] | None:
    """Chosen steps as a set; None is all. ValueError for negative ones (a call tells the upper end)."""
    if steps is None:
        return None
    chosen = _integers(steps, "step")
    if chosen[0] < 0:
        raise ValueError(f"no step {chosen[0]}: steps count from 0 at the noisiest")
    return frozenset(chosen)


def check_branches(branch: str) -> tuple[str, ...]:
    """The branches meant by "cond", "uncond" or "both"; ValueError otherwise."""
    if branch == "both":
        return BRANCHES
    if branch not in BRANCHES:
        raise ValueError(f"no branch {branch!r}: allowed are 'cond', 'uncond' and 'both'")
    return (branch,)


def _compiled(family: Family, models: dict[str, nn.Module]) -> bool:
    """Whether any block of these transformers is compiled."""
    blocks = [block for model in models.values() for block in family.layers(model)]
    return any(hasattr(block, "_orig_mod") or block._compiled_call_impl is not None for block in blocks)


def _unguarded(hook: Callable) -> Callable:
    return hook


class _Watch(Tap):
    """Checks steps and branch against each call as it starts, follows the step, and passes on its end.

    at: the absolute step the model is working on. passes: for each forward of a step the branches in its batch;
    forwards: how many of them have begun; chosen: (place in its batch, branches in it) for the branches to visit in the
    last that began. grid: of the tokens. reached: the steps with a chosen branch so far.
    """

    hooks = True

    def __init__(
        self,
        steps: frozenset[int] | None,
        branches: tuple[str, ...],
        compiled: bool,
        begin: Callable[[Hub], None] | None,
        step_end: Callable[[], None] | None,
    ) -> None:
        self.steps, self.branches, self.compiled = steps, branches, compiled
        self.begin, self.step_end = begin, step_end
        self.at = self.forwards = 0
        self.passes: tuple[tuple[str, ...], ...] = ()
        self.chosen: tuple[tuple[int, int], ...] = ()
        self.grid: Grid = (0, 0, 0)
        self.reached: set[int] = set()

    def start(self, hub: Hub) -> None:
        self.at, self.forwards = hub.first, 0
        self.passes = hub.family.passes(hub.arguments)
        self.grid = tuple(n // p for n, p in zip(hub.size, hub.family.patch(hub.pipe), strict=True))
        if _compiled(hub.family, experts(hub.pipe)) and not self.compiled:
            raise ValueError("blocks were compiled while a context is open: compile them before opening it")
        late = max(self.steps) if self.steps is not None else 0
        if late >= hub.steps:
            raise ValueError(f"no step {late}: this run has {hub.steps} steps (0..{hub.steps - 1})")
        if self.branches == ("uncond",) and self.passes == (("cond",),):
            unguided = hub.family.unguided
            raise ValueError(f"no branch 'uncond': with {unguided} a run has only the branch 'cond'")
        if self.begin is not None:
            self.begin(hub)

    def forward(self, hub: Hub) -> None:
        """A forward of a transformer begins, in a call of the pipeline or outside one."""
        self.forwards += 1
        self.chosen = ()
        if hub.arguments is None or (self.steps is not None and self.at not in self.steps):
            return
        if self.forwards > len(self.passes):
            raise RuntimeError(f"the transformer ran more often than the pipeline does in one step ({self.at})")
        held = self.passes[self.forwards - 1]
        self.chosen = tuple((place, len(held)) for place, branch in enumerate(held) if branch in self.branches)
        if self.chosen:
            self.reached.add(self.at)

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor | None, x0: Tensor | None) -> None:
        self.at, self.forwards, self.chosen = step + 1, 0, ()
        if self.step_end is not None:
            self.step_end()


@contextmanager
def watch(
    pipe: Any,
    layers: tuple[int, ...],
    steps: frozenset[int] | None,
    branches: tuple[str, ...],
    visit: Callable[[Seen], Tensor | None],
    *,
    edits: bool = False,
    begin: Callable[[Hub], None] | None = None,
    step_end: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Call `visit` at the chosen blocks, steps and branches of every call inside.

    layers, steps, branches come from `check_layers`, `check_steps`, `check_branches`. With `edits`, the
    tokens that `visit` returns replace the block's output (without, it must return None). Edits come before
    observations whatever the order of the contexts; of two edits on one block the inner context acts first.
    Steps are absolute, also in a resumed run. `begin(hub)` may check a call's arguments, `step_end()` follows
    every step.
    ValueError when a call has not so many steps or no such branch, when blocks are compiled while the context
    is open, and at the end if a chosen step (or, without a choice, any block) was never reached.
    """
    models, family = experts(pipe), family_of(pipe)
    compiled = _compiled(family, models)
    # compiled blocks must not trace into hooks; elsewhere the guard would only cost time
    guard = torch.compiler.disable if compiled else _unguarded
    tap = _Watch(steps, branches, compiled, begin, step_end)

    def begins(module: nn.Module, arguments: tuple) -> None:
        tap.forward(hub)

    def block_hook(name: str, layer: int) -> Callable:
        def hook(module: nn.Module, arguments: tuple, named: dict[str, Any], output: Any) -> Tensor | None:
            edited = None
            for place, count in tap.chosen:
                given = arguments[0] if arguments else named["hidden_states"]
                states = output[0] if isinstance(output, tuple) else output  # text tokens go their own way
                if count > 1:
                    given, states = given.chunk(count)[place], states.chunk(count)[place]
                edited = visit((name, tap.at, layer, tap.grid, given, states))
            return edited

        return guard(hook)

    with ExitStack() as stack:
        hub = stack.enter_context(tapped(pipe, tap))
        for name, model in models.items():
            stack.callback(model.register_forward_pre_hook(begins).remove)
            blocks = family.layers(model)
            for layer in layers:
                hook = block_hook(name, layer)
                handle = blocks[layer].register_forward_hook(hook, prepend=edits, with_kwargs=True)
                stack.callback(handle.remove)
        yield
    missed = sorted((steps or frozenset()) - tap.reached)
    if missed:
        raise ValueError(f"steps {missed} were never reached by a call inside the context")
    if not tap.reached:
        raise ValueError("no block was reached by a call inside the context")
