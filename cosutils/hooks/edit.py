"""A researcher's own intervention on the states of blocks, or of the parts of blocks.

Steering along a direction (D,) at the output of three blocks, in the first steps:

>>> with cos.edit(pipe, [0, 1, 2], range(2), lambda states, place: states + 4.0 * direction):
...     steered = pipe(**call).frames

Ablating one head of self-attention, before the heads are mixed:

>>> def without_head_1(states, place):  # (B, N, H, d)
...     kept = torch.ones(states.shape[2], dtype=states.dtype, device=states.device)
...     kept[1] = 0
...     return states * kept[:, None]
>>> with cos.edit(pipe, 2, None, without_head_1, branch="both", part="self_attention_heads"):
...     ablated = pipe(**call).frames

Patching what cross-attention brings in of another prompt, and nothing else:

>>> with cos.capture(pipe, reduce=cos.raw, part="cross_attention") as donor:
...     _ = pipe(**call | {"prompt": puzzle.twin().prompt})
>>> with cos.swap(pipe, donor.layers, donor, part="cross_attention"):
...     patched = pipe(**call).frames
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..pipelines.check import experts
from ._blocks import Place, check_branches, check_layers, check_steps, watch
from ._call import Hub
from ._shards import refuse_shards
from .reductions import Grid

__all__ = ["edit"]


def _check(edited: Any, states: Tensor, where: str) -> None:
    if not isinstance(edited, Tensor):
        raise TypeError(f"the edit at {where} must return a tensor or None, got {type(edited).__name__}")
    wanted, got = ((tuple(one.shape), one.dtype, one.device) for one in (states, edited))
    if wanted != got:
        raise ValueError(f"the edit at {where} must return {wanted}, as it was given, got {got}")


@contextmanager
def edit(
    pipe: Any,
    layers: Iterable[int] | int | None,
    steps: Iterable[int] | int | None,
    fn: Callable[[Tensor, Place], Tensor | None],
    branch: str = "cond",
    part: str = "block",
) -> Iterator[None]:
    """Replace states of the chosen layers and steps (None is all) by what `fn` makes of them, in every call inside.

    fn: a function of (states, place) that returns the new states, of the same shape, dtype and device, or None to
    leave them. place: `Place(expert, step, layer, branch, grid, sigma)`. Every branch is given by itself, also where
    the pipeline runs both in one batch.
    branch: "cond" (the positive CFG pass), "uncond" or "both".
    part: the output of the "block" (B, N, D), what it hands on; of its "self_attention", "cross_attention" or
    "feed_forward" (B, N, D), before its gate, what it adds; "self_attention_heads" and "cross_attention_heads"
    (B, N, H, d) before the heads are mixed. LTX-Video has all of these too, other families some.

    Edits act before captures see the states; of two edits at one place the inner context acts first.
    ValueError or TypeError, with layer and step, for another shape, dtype or device, for states changed in place
    while None was returned, and after the forward for values that are not finite. ValueError for a part that the
    blocks do not have or that is compiled. At the end ValueError if no chosen block was reached, RuntimeError if `fn`
    edited nothing.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of (states, place), got {fn!r}")
    acted = False
    finite: list[tuple[str, Tensor]] = []  # asked at the end of a forward, so that no block waits for the answer

    def begin(hub: Hub, grid: Grid) -> None:
        refuse_shards(hub.pipe, "edit")
        finite.clear()

    def visit(place: Place, given: Tensor, states: Tensor) -> Tensor | None:
        nonlocal acted
        before = None if states.is_inference() else states._version  # no version is counted in inference mode
        edited = fn(states, place)
        where = f"layer {place.layer}, step {place.step}"
        if edited is not None:
            acted = True
            _check(edited, states, where)
            finite.append((where, edited.isfinite().all()))
        elif before is not None and states._version != before:
            raise ValueError(f"the edit at {where} changed the states in place: return what shall replace them")
        return edited

    def forward_end(*_: Any) -> None:
        for where, good in finite:
            if not good:
                raise ValueError(f"the edit at {where} returned values that are not finite")
        finite.clear()

    layers, steps, branches = check_layers(pipe, layers), check_steps(steps), check_branches(branch)
    with watch(pipe, layers, steps, branches, visit, part=part, edits=True, begin=begin), ExitStack() as stack:
        for model in experts(pipe).values():
            stack.callback(model.register_forward_hook(forward_end).remove)
        yield
    if not acted:
        raise RuntimeError("edit edited nothing: fn returned None at every place it was asked (to look, use capture)")
