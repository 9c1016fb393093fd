"""Private: tells block hooks which expert, CFG branch, absolute step and layer of a pipeline is running.

The expert is the transformer a hook sits on, the step is the scheduler's, the token grid (f, h, w) the call's size
in patches. The branch ("cond" or "uncond") follows from the order of the forwards in a step, or of the halves of
their batch (`families.Family.passes`). Hooks are kept out of `torch.compile`, so that regionally compiled blocks
(`compile_repeated_blocks`) call them without recompiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._check import wholes
from ..pipelines.check import check_pipeline, experts
from ..pipelines.families import Family, family_of
from ._call import Hub, Tap, tapped
from .reductions import Grid

__all__ = ["BRANCHES", "Place", "Visit", "check_branches", "check_layers", "check_part", "check_steps", "watch"]

BRANCHES = ("cond", "uncond")


class Place(NamedTuple):
    """Where a state is: expert ("transformer" or "transformer_2"), absolute step, layer, CFG branch ("cond" or
    "uncond"), token grid (f, h, w), and the noise level sigma in [0, 1] of the state x_s that the model was given.
    """

    expert: str
    step: int
    layer: int
    branch: str
    grid: Grid
    sigma: float


Visit = Callable[[Place, Tensor, Tensor], Tensor | None]  # of a part's input and output (B, N, ...)


def check_layers(pipe: Any, layers: Iterable[int] | int | None) -> tuple[int, ...]:
    """Chosen layers, sorted; None is all. ValueError for a block that an expert of `pipe` does not have."""
    check_pipeline(pipe, hooks=True)
    models, family = experts(pipe).values(), family_of(pipe)
    if layers is None:
        return tuple(range(min(len(family.layers(model)) for model in models)))
    chosen = wholes(layers, "layer")
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
    chosen = wholes(steps, "step")
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


def check_part(pipe: Any, part: str, layers: tuple[int, ...]) -> None:
    """ValueError if the chosen blocks of `pipe` have no such part, or are compiled around it."""
    family, models = family_of(pipe), experts(pipe)
    if part == "block":
        return
    if part not in family.parts:
        raise ValueError(f"no part {part!r} in a {type(pipe).__name__}: allowed are {('block', *family.parts)}")
    if _compiled(family, models):
        raise ValueError(f"the blocks are compiled, which hides part {part!r} inside them: look before compiling them")
    for model in models.values():
        for layer in layers:
            if not hasattr(family.layers(model)[layer], family.parts[part].partition(".")[0]):
                raise ValueError(f"block {layer} of {type(model).__name__} has no part {part!r}")


def _compiled(family: Family, models: dict[str, nn.Module]) -> bool:
    """Whether any block of these transformers is compiled."""
    blocks = [block for model in models.values() for block in family.layers(model)]
    return any(hasattr(block, "_orig_mod") or block._compiled_call_impl is not None for block in blocks)


def _unguarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook


class _Watch(Tap):
    """Checks steps and branch against each call as it starts, follows the step, and passes on its end.

    at: the absolute step the model is working on, sigma: its noise level. passes: for each forward of a step the
    branches in its batch; forwards: how many of them have begun; chosen: (branch, place in its batch, branches in it)
    for those to visit in the last that began. grid: of the tokens. reached: the steps with a chosen branch so far.
    """

    hooks = True

    def __init__(
        self,
        steps: frozenset[int] | None,
        branches: tuple[str, ...],
        compiled: bool,
        begin: Callable[[Hub, Grid], None] | None,
        step_end: Callable[[], None] | None,
    ) -> None:
        self.steps, self.branches, self.compiled = steps, branches, compiled
        self.begin, self.step_end = begin, step_end
        self.at = self.forwards = 0
        self.sigma = 0.0
        self.passes: tuple[tuple[str, ...], ...] = ()
        self.chosen: tuple[tuple[str, int, int], ...] = ()
        self.grid: Grid = (0, 0, 0)
        self.reached: set[int] = set()

    def check(self, hub: Hub) -> None:
        self.passes = hub.family.passes(hub.arguments)
        f, h, w = (n // p for n, p in zip(hub.size, hub.family.patch(hub.pipe), strict=True))
        self.grid = f, h, w
        if _compiled(hub.family, experts(hub.pipe)) and not self.compiled:
            raise ValueError("blocks were compiled while a context is open: compile them before opening it")
        if self.branches == ("uncond",) and self.passes == (("cond",),):
            unguided = hub.family.unguided
            raise ValueError(f"no branch 'uncond': with {unguided} a run has only the branch 'cond'")
        if self.begin is not None:
            self.begin(hub, self.grid)

    def start(self, hub: Hub) -> None:
        self.at, self.forwards, self.sigma = hub.first, 0, float(hub.sigmas[hub.first])
        late = max(self.steps) if self.steps is not None else 0
        if late >= hub.steps:
            raise ValueError(f"no step {late}: this run has {hub.steps} steps (0..{hub.steps - 1})")

    def forward(self, hub: Hub) -> None:
        """A forward of a transformer begins, in a call of the pipeline or outside one."""
        self.forwards += 1
        self.chosen = ()
        if hub.arguments is None or (self.steps is not None and self.at not in self.steps):
            return
        if self.forwards > len(self.passes):
            raise RuntimeError(f"the transformer ran more often than the pipeline does in one step ({self.at})")
        held = self.passes[self.forwards - 1]
        places = [(branch, place, len(held)) for place, branch in enumerate(held) if branch in self.branches]
        self.chosen = tuple(places)
        if self.chosen:
            self.reached.add(self.at)

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor | None, x0: Tensor | None) -> None:
        self.at, self.forwards, self.chosen = step + 1, 0, ()
        self.sigma = float(hub.sigmas[step + 1])
        if self.step_end is not None:
            self.step_end()

    def visited(self, visit: Visit, expert: str, layer: int, given: Tensor, states: Tensor) -> Tensor | None:
        """`states` (B, N, ...) with what `visit` returned for the chosen branches; None where it returned nothing."""
        replaced = None
        for branch, place, count in self.chosen:
            where = Place(expert, self.at, layer, branch, self.grid, self.sigma)
            if count == 1:
                replaced = visit(where, given, states)
                continue
            parts = list(states.chunk(count))
            edited = visit(where, given.chunk(count)[place], parts[place])
            if edited is not None:
                parts[place] = edited
                states = replaced = torch.cat(parts)
        return replaced

    def output_hook(self, visit: Visit, expert: str, layer: int) -> Callable[..., Any]:
        """A forward hook for a part that returns its tokens, alone or before those of the text."""

        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            if not self.chosen:
                return None
            given = arguments[0] if arguments else named["hidden_states"]
            if not isinstance(output, tuple):
                return self.visited(visit, expert, layer, given, output)
            replaced = self.visited(visit, expert, layer, given, output[0])
            return None if replaced is None else (replaced, *output[1:])

        return hook

    def heads_hook(self, visit: Visit, expert: str, layer: int, heads: int) -> Callable[..., Any]:
        """A forward pre-hook for the projection that mixes the heads, which are visited as (B, N, H, d)."""

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self.chosen:
                return None
            states = arguments[0].unflatten(2, (heads, -1))
            replaced = self.visited(visit, expert, layer, states, states)
            return None if replaced is None else (replaced.flatten(2), *arguments[1:])

        return hook


@contextmanager
def watch(
    pipe: Any,
    layers: tuple[int, ...],
    steps: frozenset[int] | None,
    branches: tuple[str, ...],
    visit: Visit,
    *,
    part: str = "block",
    edits: bool = False,
    begin: Callable[[Hub, Grid], None] | None = None,
    step_end: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Call `visit` at a part of the chosen blocks, at the chosen steps and branches of every call inside.

    layers, steps, branches come from `check_layers`, `check_steps`, `check_branches`. With `edits`, the
    tokens that `visit` returns replace the part's output (without, it must return None). Edits come before
    observations whatever the order of the contexts; of two edits on one block the inner context acts first.
    Steps are absolute, also in a resumed run. `begin(hub, grid)` may check a call's arguments before anything is
    computed, `step_end()` follows every step.
    ValueError when a call has not so many steps or no such branch, when blocks are compiled while the context
    is open, and at the end if a chosen step (or, without a choice, any block) was never reached.
    """
    models, family = experts(pipe), family_of(pipe)
    check_part(pipe, part, layers)
    compiled = _compiled(family, models)
    # compiled blocks must not trace into hooks; elsewhere the guard would only cost time
    guard = torch.compiler.disable if compiled else _unguarded
    tap = _Watch(steps, branches, compiled, begin, step_end)

    def begins(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        tap.forward(hub)

    def hooked(block: nn.Module, name: str, layer: int) -> Any:
        """The handle of the hook on this block."""
        module = block if part == "block" else block.get_submodule(family.parts[part])
        if not part.endswith("_heads"):
            hook = guard(tap.output_hook(visit, name, layer))
            return module.register_forward_hook(hook, prepend=edits, with_kwargs=True)
        attention = block.get_submodule(family.parts[part].partition(".")[0])
        return module.register_forward_pre_hook(tap.heads_hook(visit, name, layer, attention.heads), prepend=edits)

    with ExitStack() as stack:
        hub = stack.enter_context(tapped(pipe, tap))
        for name, model in models.items():
            stack.callback(model.register_forward_pre_hook(begins).remove)
            blocks = family.layers(model)
            for layer in layers:
                stack.callback(hooked(blocks[layer], name, layer).remove)
        yield
    missed = sorted((steps or frozenset()) - tap.reached)
    if missed:
        raise ValueError(f"steps {missed} were never reached by a call inside the context")
    if not tap.reached:
        raise ValueError("no block was reached by a call inside the context")
