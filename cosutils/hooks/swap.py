"""Replace what one block hands on by the state of another run (paper Sec. 5.2, Fig. 6b)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .._check import whole
from ..pipelines.families import only_wan
from ..pipelines.provenance import identity
from ._blocks import BRANCHES, Place, check_branches, check_layers, check_steps, watch
from ._call import Hub
from ._shards import refuse_shards
from .capture import Capture
from .reductions import Grid, Tokens, chooser, raw

__all__ = ["swap"]

MODES = ("state", "delta")


def _check_capture(
    donor: Capture, layers: tuple[int, ...], mode: str, steps: frozenset[int] | None, branch: str, part: str
) -> frozenset[int]:
    """Steps to swap at; ValueError if the captured donor cannot serve them."""
    if donor.reduce is not raw:
        raise ValueError("the donor must be captured with reduce=raw; a block's output has all its channels")
    for name, held, wanted in (("branch", donor.branch, branch), ("part", donor.part, part)):
        if held != wanted:
            raise ValueError(f"the donor holds {name} {held!r}, not the swap's {name} {wanted!r}")
    if mode == "delta" and not donor.inputs:
        raise ValueError("mode='delta' needs the donor's block inputs: capture with reduce=raw, inputs=True")
    for name, there, asked in (("layer", donor.layers, layers), ("step", donor.steps, steps or ())):
        missing = sorted(set(asked) - set(there))
        if missing:
            raise ValueError(f"the donor holds no {name} {missing[0]}; it has {name}s {there}")
    steps = frozenset(donor.steps) if steps is None else steps
    for key in donor:
        if key[1] in steps and key[2] in layers:
            states = [donor[key], donor.inputs[key]] if mode == "delta" else [donor[key]]
            if not all(state.isfinite().all() for state in states):
                raise ValueError(f"the donor's states at layer {key[2]}, step {key[1]} are not finite")
    return steps


def _check_model(donor: Capture, pipe: Any) -> None:
    """ValueError that names both models where the donor was captured on another."""

    def named(facts: dict[str, Any] | None) -> str:
        if facts is None:
            return "none"
        weights = facts.get("commit") or facts.get("digest") or "of unknown weights"
        return " ".join(
            [facts["class"], weights[:12], facts["dtype"], *(f"with {lora}" for lora in facts.get("lora", ()))]
        )

    for name, facts in donor.models.items():
        own = identity(pipe, [name]).get(name)
        if own != facts:
            raise ValueError(
                f"the donor was captured on another model: its {name} is {named(facts)}, here {named(own)}"
            )


def _rows(donor: Mapping[int, int]) -> dict[int, int]:
    """{recipient row: donor row} in Python's numbers."""
    if not isinstance(donor, Mapping):
        raise TypeError(f"donor must be a Capture or {{recipient row: donor row}}, got {type(donor).__name__}")
    if not donor:
        raise ValueError("donor rows are empty; give {recipient row: donor row}")
    return {whole(mine, "a donor row", 0): whole(theirs, "a donor row", 0) for mine, theirs in donor.items()}


def _theirs(
    donor: Capture | Mapping[int, int], place: Place, own_in: Tensor, own_out: Tensor
) -> tuple[list[int], Tensor, Tensor]:
    """Recipient rows R; for them the donor's input (own where none was kept) and output of the part, (R, N, ...)."""
    batch, grid = len(own_out), place.grid
    if not isinstance(donor, Capture):
        last = max(*donor.keys(), *donor.values())
        if last >= batch:
            raise ValueError(f"no row {last}: the batch has {batch} rows (0..{batch - 1})")
        sources = list(donor.values())
        return list(donor.keys()), own_in[sources], own_out[sources]
    key = (place.expert, place.step, place.layer)
    if key not in donor:
        raise ValueError(f"the donor holds no {key}; it ran another expert at this step")
    block_in, block_out = donor.inputs.get(key, own_in), donor[key]
    if donor.grid != grid or block_out.shape[2:] != own_out.shape[2:] or len(block_out) not in (1, batch):
        raise ValueError(
            f"the donor's states {tuple(block_out.shape)} on grid {donor.grid} do not fit the recipient's "
            f"{tuple(own_out.shape)} on grid {grid}"
        )
    return list(range(batch)), block_in.to(own_in).expand_as(own_in), block_out.to(own_out).expand_as(own_out)


@contextmanager
def swap(
    pipe: Any,
    layer: Iterable[int] | int,
    donor: Capture | Mapping[int, int],
    mode: str = "state",
    tokens: Tokens | None = None,
    steps: Iterable[int] | int | None = None,
    branch: str = "cond",
    part: str = "block",
) -> Iterator[None]:
    """Give the recipient the donor's tokens at the output of a block, or of several, at the chosen steps (None is all).

    donor: a `capture(..., reduce=raw)` of another run on the same grid (batch 1 or the recipient's), or rows
        of the same batch as {recipient row: donor row}, e.g. {1: 0} with `prompt=[donor, recipient]`.
    mode: "state" puts the donor's output h_out in place; "delta" gives the recipient's own block input the
        donor's residual update, h_in + (donor h_out - donor h_in).
    tokens: a boolean mask (N,) or (f, h, w), a `region`, or token numbers; other tokens keep their own state. None
        is all.
    branch: "cond", "uncond", or for rows "both". part: the "block", or in mode "state" a part of it, as `edit`
        takes it: part="cross_attention" hands over what the other prompt brought in, and nothing else.

    With the whole state, all layers give the same answer when donor and recipient share the prompt: after the
    block nothing else tells them apart. A swap with oneself is a no-op, bit by bit, in both modes.
    ValueError for a donor of another model, with values that are not finite, or without what is asked of it.
    """
    only_wan(pipe, "swap")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: allowed are {MODES}")
    if mode == "delta" and part != "block":
        raise ValueError(f"mode='delta' is a block's update; the output of part {part!r} is one: use mode='state'")
    if layer is None:
        raise ValueError("name the layer to swap at, for example layer=20, or several")
    layers, steps, branches = check_layers(pipe, layer), check_steps(steps), check_branches(branch)
    if isinstance(donor, Capture):
        if len(branches) != 1:
            raise ValueError(f"a captured donor holds one branch; name it, allowed are {BRANCHES}")
        _check_model(donor, pipe)
        steps = _check_capture(donor, layers, mode, steps, branch, part)
    else:
        donor = _rows(donor)
    choose = None if tokens is None else chooser(tokens)

    def begin(hub: Hub, grid: Grid) -> None:
        refuse_shards(hub.pipe, "swap")
        if choose is not None:
            choose(grid)

    def visit(place: Place, own_in: Tensor, own_out: Tensor) -> Tensor:
        rows, their_in, their_out = _theirs(donor, place, own_in, own_out)
        fresh = their_out
        if mode == "delta":
            fresh = (their_out.float() + (own_in[rows].float() - their_in.float())).to(own_out.dtype)
        if choose is not None:
            chosen, replaced = choose(place.grid).to(own_out.device), own_out[rows]
            replaced[:, chosen] = fresh[:, chosen]
            fresh = replaced
        edited = own_out.clone()
        edited[rows] = fresh
        return edited

    with watch(pipe, layers, steps, branches, visit, part=part, edits=True, begin=begin):
        yield
