"""Replace what one block hands on by the state of another run (paper Sec. 5.2, Fig. 6b)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..pipelines.families import only_wan
from ._blocks import BRANCHES, Grid, Seen, check_branches, check_layers, check_steps, watch
from ._shards import refuse_shards
from .capture import Capture, raw

__all__ = ["swap"]

MODES = ("state", "delta")


def _check_capture(donor: Capture, layer: int, mode: str, steps: frozenset[int] | None, branch: str) -> frozenset[int]:
    """Steps to swap at; ValueError if the captured donor cannot serve them."""
    if donor.reduce is not raw:
        raise ValueError("the donor must be captured with reduce=raw; a block's output has all its channels")
    if donor.branch != branch:
        raise ValueError(f"the donor holds branch {donor.branch!r}, not the swap's branch {branch!r}")
    if mode == "delta" and not donor.inputs:
        raise ValueError("mode='delta' needs the donor's block inputs: capture with reduce=raw, inputs=True")
    held = frozenset(step for _, step, k in donor if k == layer)
    if not held:
        raise ValueError(f"the donor holds no layer {layer}; it has layers {donor.layers}")
    if steps is not None and not steps <= held:
        missing = min(steps - held)
        raise ValueError(f"the donor holds no step {missing} of layer {layer}; it has {sorted(held)}")
    return held if steps is None else steps


def _check_rows(donor: Mapping[int, int]) -> None:
    if not donor:
        raise ValueError("donor rows are empty; give {recipient row: donor row}")
    for row in [*donor.keys(), *donor.values()]:
        if isinstance(row, bool) or not isinstance(row, int) or row < 0:
            raise TypeError(f"donor rows must be integers from 0, got {row!r}")


def _theirs(donor: Capture | Mapping[int, int], seen: Seen) -> tuple[list[int], Tensor | None, Tensor]:
    """Recipient rows R, and the donor's block input (R, N, D), if kept, and output (R, N, D) for them."""
    expert, step, layer, grid, own_in, own_out = seen
    batch = len(own_out)
    if not isinstance(donor, Capture):
        last = max(*donor.keys(), *donor.values())
        if last >= batch:
            raise ValueError(f"no row {last}: the batch has {batch} rows (0..{batch - 1})")
        sources = list(donor.values())
        return list(donor.keys()), own_in[sources], own_out[sources]
    key = (expert, step, layer)
    if key not in donor:
        raise ValueError(f"the donor holds no {key}; it ran another expert at this step")
    block_in, block_out = donor.inputs.get(key), donor[key]
    if donor.grid != grid or block_out.shape[2] != own_out.shape[2] or len(block_out) not in (1, batch):
        raise ValueError(
            f"the donor's states {tuple(block_out.shape)} on grid {donor.grid} do not fit the recipient's "
            f"{tuple(own_out.shape)} on grid {grid}"
        )
    block_in = None if block_in is None else block_in.to(own_in).expand_as(own_in)
    return list(range(batch)), block_in, block_out.to(own_out).expand_as(own_out)


def _mask(tokens: Tensor | Callable[[Grid], Tensor] | None, grid: Grid) -> Tensor | None:
    """The token mask as boolean (N,); ValueError if it is not boolean or does not fit the grid."""
    if tokens is None:
        return None
    mask = torch.as_tensor(tokens(grid) if callable(tokens) else tokens)
    size = grid[0] * grid[1] * grid[2]
    if mask.dtype != torch.bool or mask.numel() != size or (mask.ndim == 3 and tuple(mask.shape) != grid):
        raise ValueError(
            f"tokens must be a boolean mask over the token grid {grid} ({size} tokens), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask.flatten()


@contextmanager
def swap(
    pipe: Any,
    layer: int,
    donor: Capture | Mapping[int, int],
    mode: str = "state",
    tokens: Tensor | Callable[[Grid], Tensor] | None = None,
    steps: Iterable[int] | int | None = None,
    branch: str = "cond",
) -> Iterator[None]:
    """Give the recipient the donor's tokens at the output of one block, at the chosen steps (None is all).

    donor: a `capture(..., reduce=raw)` of another run on the same grid (batch 1 or the recipient's), or rows
        of the same batch as {recipient row: donor row}, e.g. {1: 0} with `prompt=[donor, recipient]`.
    mode: "state" puts the donor's output h_out in place; "delta" gives the recipient's own block input the
        donor's residual update, h_in + (donor h_out - donor h_in).
    tokens: boolean mask (N,) or (f, h, w), or a `region`; tokens outside keep their own state. None is all.
    branch: "cond", "uncond", or for rows "both".

    With the whole state, all layers give the same answer when donor and recipient share the prompt: after the
    block nothing else tells them apart. A swap with oneself is a no-op, bit by bit, in both modes.
    """
    only_wan(pipe, "swap")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: allowed are {MODES}")
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer must be one integer, got {layer!r}")
    layers = check_layers(pipe, layer)
    steps, branches = check_steps(steps), check_branches(branch)
    if isinstance(donor, Capture):
        if len(branches) != 1:
            raise ValueError(f"a captured donor holds one branch; name it, allowed are {BRANCHES}")
        steps = _check_capture(donor, layer, mode, steps, branch)
    elif isinstance(donor, Mapping):
        _check_rows(donor)
    else:
        kind = type(donor).__name__
        raise TypeError(f"donor must be a Capture or {{recipient row: donor row}}, got {kind}")

    def visit(seen: Seen) -> Tensor:
        *_, grid, own_in, own_out = seen
        rows, their_in, their_out = _theirs(donor, seen)
        fresh = their_out
        if mode == "delta":
            fresh = (their_out.float() + (own_in[rows].float() - their_in.float())).to(own_out.dtype)
        mask = _mask(tokens, grid)
        if mask is not None:
            fresh = torch.where(mask.to(own_out.device)[None, :, None], fresh, own_out[rows])
        edited = own_out.clone()
        edited[rows] = fresh
        return edited

    with watch(pipe, layers, steps, branches, visit, edits=True, begin=lambda hub: refuse_shards(hub.pipe, "swap")):
        yield
