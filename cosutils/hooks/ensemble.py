"""Training-free ensemble: seeds in lockstep, their hidden states merged in chosen blocks at chosen steps.

The paper averages layers 20-29 of three seeds at the critical early steps ("Training-free ensemble"). The
seeds are rows of one batch, so the merge is a mean over rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .._check import whole
from ..pipelines.families import only_wan
from ._blocks import Place, check_branches, check_layers, check_steps, watch
from ._call import Hub, Tap, tapped
from ._shards import refuse_shards
from .record import Run, record, resume
from .reductions import Grid

__all__ = ["ensemble", "merge", "merge_then_single"]

MODES = ("token", "pooled")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
PER_ROW = ("prompt", "negative_prompt", "image", "last_image", "generator", *EMBEDS)


def merge(states: Tensor, size: int, mode: str = "token") -> Tensor:
    """Merge block states of `size` consecutive rows: tokens (B, N, D) to (B, N, D), B a multiple of `size`.

    "token": every row becomes the mean over its group at each space-time position.
    "pooled": every row is shifted so that its mean over space-time is the group's; its variation stays its
    own. Computed in float32, returned in the dtype of `states`.
    """
    groups = states.float().unflatten(0, (-1, size))
    if mode == "token":
        merged = groups.mean(1, keepdim=True).expand_as(groups)
    else:
        centres = groups.mean(2, keepdim=True)
        merged = groups + (centres.mean(1, keepdim=True) - centres)
    return merged.flatten(0, 1).to(states.dtype)


def _same(a: Any, b: Any) -> bool:
    return a is b or (torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b))


def _rows_of(value: Any, count: int, name: str) -> TypeGuard[list[Any] | Tensor]:
    """Whether argument `name` of a call holds an entry for each of `count` videos; a picture (3, H, W) does not."""
    one = name in ("image", "last_image") and isinstance(value, Tensor) and value.ndim < 4
    return isinstance(value, (list, Tensor)) and len(value) == count and not one


def _batch_of(arguments: Mapping[str, Any]) -> int:
    """Number of videos a call makes."""
    prompt = arguments.get("prompt")
    if isinstance(prompt, str):
        return 1
    return len(arguments["prompt_embeds"] if prompt is None else prompt)


def check_alike(arguments: Mapping[str, Any], size: int | None = None) -> None:
    """ValueError if a group of `size` consecutive videos, None: all, mixes prompts, pictures or embeddings."""
    batch = _batch_of(arguments)
    size = batch if size is None else size
    for name in PER_ROW:
        values = arguments.get(name)
        if name != "generator" and _rows_of(values, batch, name):
            for row in range(batch):
                if not _same(values[row], values[row - row % size]):
                    raise ValueError(
                        f"row {row} has another {name} than its group of {size} seeds: keep the seeds of one "
                        "prompt and image next to each other and give their number as size"
                    )


def _check_groups(arguments: Mapping[str, Any], size: int | None) -> int:
    """Seeds in each group; ValueError if the batch does not divide or a group mixes prompts or images."""
    batch = _batch_of(arguments)
    if batch == 0:
        raise ValueError("an ensemble of no video: the list of prompts is empty")
    size = batch if size is None else size
    if batch % size:
        raise ValueError(f"a batch of {batch} videos does not divide into groups of {size} seeds")
    check_alike(arguments, size)
    generators = arguments.get("generator")
    if _rows_of(generators, batch, "generator") and arguments.get("latents") is None:
        for row, one in enumerate(generators):
            for other in generators[row - row % size : row]:
                if None not in (one, other) and one is not other and torch.equal(one.get_state(), other.get_state()):
                    seed = one.initial_seed()
                    raise ValueError(f"seed {seed} is given twice in a group of {size}: the mean needs different seeds")
    return size


@contextmanager
def ensemble(
    pipe: Any,
    layers: Iterable[int] | int,
    steps: Iterable[int] | int,
    mode: str = "token",
    *,
    size: int | None = None,
    branch: str = "both",
) -> Iterator[None]:
    """Merge the hidden states of seeds that run as one batch, at the output of chosen blocks and steps.

    Call the pipeline with `prompt=[p] * K, generator=seeded([...])`. Several prompts run together as groups
    of `size` consecutive rows, `prompt=[p1] * K + [p2] * K`; size None makes the whole batch one group.
    mode: see `merge`. branch: "both" (default), "cond" or "uncond". Both CFG branches are merged by default:
    guidance multiplies their difference, and if only one were merged the noise of each seed would stay in
    that difference. An ensemble of one seed is a plain run. ValueError for unknown layers, steps, modes, or
    groups that do not divide.
    """
    only_wan(pipe, "ensemble")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: allowed are {MODES}")
    size = None if size is None else whole(size, "size", 1)
    if layers is None or steps is None:
        raise ValueError("name the layers and steps to merge at, for example layers=range(20, 30), steps=[0]")
    layers, chosen, branches = check_layers(pipe, layers), check_steps(steps), check_branches(branch)
    group = 1

    def begin(hub: Hub, grid: Grid) -> None:
        nonlocal group
        if hub.arguments["num_videos_per_prompt"] != 1:
            raise ValueError("give K seeds as prompt=[p] * K and a list of generators, not num_videos_per_prompt")
        group = _check_groups(hub.arguments, size)
        if mode == "pooled":  # a mean over all tokens; a merge position by position may see a part of them
            refuse_shards(hub.pipe, "ensemble with mode='pooled'")

    def visit(place: Place, given: Tensor, states: Tensor) -> Tensor | None:
        return None if group == 1 else merge(states, group, mode)

    with watch(pipe, layers, chosen, branches, visit, edits=True, begin=begin):
        yield


class _Stop(Tap):
    """Ends a call after step `last` and keeps the state the next step would have begun with."""

    def __init__(self, last: int) -> None:
        self.last = last

    def start(self, hub: Hub) -> None:
        if self.last + 1 >= hub.steps:
            raise ValueError(f"step {self.last} is the last of this run: none is left for a single trajectory")

    def step(self, hub: Hub, step: int, x: Tensor, v: Tensor, x0: Tensor) -> None:
        if step == self.last:
            hub.pipe._interrupt = True

    def edit(self, hub: Hub, step: int, x: Tensor) -> None:
        if step == self.last + 1:
            self.state = x.detach().to("cpu", torch.float32, copy=True)


def head(pipe: Any, last: int, **arguments: Any) -> Run:
    """Record steps 0..`last` of a call and compute no more; x_s of step `last` + 1 is kept too, edits included."""
    stop = _Stop(last)
    try:
        with record(pipe) as first, tapped(pipe, stop):
            pipe(**arguments | {"output_type": "latent"})
    finally:
        pipe._interrupt = False
    first.x[last + 1] = stop.state
    return first


def go_on(pipe: Any, first: Run, rows: list[int], **arguments: Any) -> tuple[Any, Run]:
    """Go on with some `rows` of a batch where `head` stopped; returns the output and these rows' whole recording."""
    step, batch = max(first.x), _batch_of(arguments)
    run = first.rows(rows)
    single = {}
    for name, value in arguments.items():
        if name in PER_ROW and _rows_of(value, batch, name):
            value = [value[row] for row in rows] if isinstance(value, list) else value[rows]
        single[name] = value
    single.pop("latents", None)
    with record(pipe) as rest:
        output = resume(pipe, run, step, **single)
    for name in ("x", "v", "x0"):
        getattr(run, name).update(getattr(rest, name))
    run.latents, run.edits = rest.latents, first.edits | rest.edits
    run.info = rest.info | {"first": 0, "seeds": run.info["seeds"]}
    return output, run


def merge_then_single(
    pipe: Any,
    *,
    layers: Iterable[int] | int,
    steps: Iterable[int] | int,
    mode: str = "token",
    size: int | None = None,
    branch: str = "both",
    keep: int = 0,
    **arguments: Any,
) -> tuple[Any, Run]:
    """Run K seeds merged up to the last of `steps`, then go on with one seed of each group alone.

    arguments: those of the pipeline call with K seeds, as for `ensemble`. keep: which seed of a group
    (0..K-1) goes on. Beyond the merged steps the cost is that of one run. Returns the call's output and the
    recording of the kept trajectory over all steps. ValueError where `ensemble` raises it, or if no step is
    left after the merged ones.
    """
    chosen = check_steps(steps)
    if layers is None or chosen is None:
        raise ValueError("an ensemble needs chosen layers and steps: merging all of them leaves nothing to go on with")
    layers = check_layers(pipe, layers)
    last = max(chosen)
    batch, group = _batch_of(arguments), _check_groups(arguments, size)
    keep = whole(keep, "keep")
    if not 0 <= keep < group:
        raise ValueError(f"no seed {keep!r} to keep: a group has {group} seeds (0..{group - 1})")
    with ensemble(pipe, layers, chosen, mode, size=size, branch=branch):
        first = head(pipe, last, **arguments)
    output, run = go_on(pipe, first, list(range(keep, batch, group)), **arguments)
    run.info["ensemble"] = {
        "layers": list(layers),
        "steps": sorted(chosen),
        "mode": mode,
        "branch": branch,
        "size": group,
        "keep": keep,
        "seeds": first.info["seeds"],
    }
    return output, run
