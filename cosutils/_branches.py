"""Private: tells block hooks which expert, CFG branch, absolute step and layer of a Wan pipeline is running.

The expert is the transformer a hook sits on, the branch is the name the pipeline gives to
`transformer.cache_context` ("cond" or "uncond"), the step is the scheduler's, the token grid (f, h, w) is the
shape of `patch_embedding`'s output. Hooks are kept out of `torch.compile`, so that regionally compiled blocks
(`compile_repeated_blocks`) call them without recompiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._scheduler import Hub, Tap, check_pipeline, experts, tapped

__all__ = ["BRANCHES", "Grid", "Seen", "check_branches", "check_layers", "check_steps", "watch"]

BRANCHES = ("cond", "uncond")
Grid = tuple[int, int, int]  # tokens along f, h, w
Seen = tuple[str, int, int, Grid, Tensor, Tensor]  # expert, step, layer, grid, input and output (B, N, D)


class _Context:
    """Stands in for `cache_context` on one transformer and remembers the branch; shared by nested watches."""

    def __init__(self, original: Callable) -> None:
        self.original = original
        self.branch: str | None = None
        self.users = 0

    @contextmanager
    def __call__(self, name: str, **details: Any) -> Iterator[None]:
        before, self.branch = self.branch, name
        try:
            with self.original(name, **details):
                yield
        finally:
            self.branch = before


@contextmanager
def _branch_of(transformer: nn.Module) -> Iterator[_Context]:
    """Wrap `cache_context` of this instance for the first user, unwrap it with the last."""
    context = vars(transformer).get("cache_context")
    if not isinstance(context, _Context):
        context = transformer.cache_context = _Context(transformer.cache_context)
    context.users += 1
    try:
        yield context
    finally:
        context.users -= 1
        if context.users == 0:
            del transformer.cache_context


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
    models = experts(pipe).values()
    if layers is None:
        return tuple(range(min(len(model.blocks) for model in models)))
    chosen = _integers(layers, "layer")
    for model in models:
        count = len(model.blocks)
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


def _compiled(models: dict[str, nn.Module]) -> bool:
    """Whether any block of these transformers is compiled."""
    blocks = [block for model in models.values() for block in model.blocks]
    return any(hasattr(block, "_orig_mod") or block._compiled_call_impl is not None for block in blocks)


def _unguarded(hook: Callable) -> Callable:
    return hook


class _Watch(Tap):
    """Checks steps and branch against each call as it starts, follows the step, and passes on its end.

    at: the absolute step the model is working on. reached: the steps at which a chosen block was.
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
        self.at = 0
        self.reached: set[int] = set()

    def start(self, hub: Hub) -> None:
        self.at = hub.first
        if _compiled(experts(hub.pipe)) and not self.compiled:
            raise ValueError("blocks were compiled while a context is open: compile them before opening it")
        late = max(self.steps) if self.steps is not None else 0
        if late >= hub.steps:
            raise ValueError(f"no step {late}: this run has {hub.steps} steps (0..{hub.steps - 1})")
        if self.branches == ("uncond",) and hub.arguments["guidance_scale"] <= 1:
            raise ValueError("no branch 'uncond': with guidance_scale <= 1 a run has only the branch 'cond'")
        if self.begin is not None:
            self.begin(hub)

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor, x0: Tensor | None) -> None:
        self.at = step + 1
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
    models = experts(pipe)
    compiled = _compiled(models)
    # compiled blocks must not trace into hooks; elsewhere the guard would only cost time
    guard = torch.compiler.disable if compiled else _unguarded
    tap = _Watch(steps, branches, compiled, begin, step_end)
    grids: dict[str, Grid] = {}

    def shape_hook(name: str) -> Callable:
        def hook(module: nn.Module, arguments: tuple, output: Tensor) -> None:
            grids[name] = tuple(output.shape[2:])

        return guard(hook)

    def block_hook(name: str, context: _Context, layer: int) -> Callable:
        def hook(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
            branch, step = context.branch, tap.at
            if branch not in branches or (steps is not None and step not in steps):
                return None
            tap.reached.add(step)
            return visit((name, step, layer, grids[name], arguments[0], output))

        return guard(hook)

    with ExitStack() as stack:
        stack.enter_context(tapped(pipe, tap))
        for name, model in models.items():
            context = stack.enter_context(_branch_of(model))
            stack.callback(model.patch_embedding.register_forward_hook(shape_hook(name)).remove)
            for layer in layers:
                hook = block_hook(name, context, layer)
                stack.callback(model.blocks[layer].register_forward_hook(hook, prepend=edits).remove)
        yield
    missed = sorted((steps or frozenset()) - tap.reached)
    if missed:
        raise ValueError(f"steps {missed} were never reached by a call inside the context")
    if not tap.reached:
        raise ValueError("no block was reached by a call inside the context")
