"""Exchange hidden tokens of blocks between twins: does the other answer win? (paper Sec. 5.2, Fig. 6b)

    >>> from cosutils.measures.carried import recorded
    >>> from cosutils.measures.exchange import Exchange, at_step, flips, leading_twin
    >>> sample, ways = cos.tasks.find_shape.sample(7), [Exchange(layer) for layer in range(2)]
    >>> run = recorded(pipe, sample, num_inference_steps=4)
    >>> donor, own, films = at_step(pipe, sample, run, 0, ways)
    >>> leaders = [leading_twin(sample, film) for film in (donor, own, *films)]
    >>> ceiling, flipped = flips([(sample, leaders)], len(ways))

The twins share the picture and the noise and differ in the prompt, so all runs go in one batch: row 0 is the donor,
row 1 the recipient as it is, every further row a recipient with one exchange. `at_step` reads the answer at the step of
the exchange, `between_twins` at the end, when later steps have read the recipient's own prompt again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from .._check import whole
from ..hooks._blocks import check_branches
from ..hooks.capture import Capture, capture
from ..hooks.record import Run
from ..hooks.reductions import Grid, raw
from ..hooks.swap import swap
from ..metrics import leader
from ..mini import world
from ..mini.tasks import Sample
from ..pipelines.loading import seeded, settings
from .carried import carried, recorded
from .chain import estimates
from .layers import pool

__all__ = ["Exchange", "at_step", "between_seeds", "between_twins", "captured", "flips", "leading_twin"]

MODES = ("delta", "state", "region", "text")


@dataclass(frozen=True)
class Exchange:
    """What one run takes over from its donor, at block `layer`, or at each of several.

    mode: "delta" the block's update, "state" its whole output, "region" the whole output of the tokens in which the two
    answers differ, in the latent frames after the first, "text" what its cross-attention brings in of the prompt.
    first: at how many first steps (None: at all). branch: "cond", the pass that reads the prompt; with guidance above 1
    also "uncond", the one that does not, or "both".
    """

    layer: int | range
    mode: str = "delta"
    first: int | None = None
    branch: str = "cond"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"no mode {self.mode!r}: allowed are {', '.join(map(repr, MODES))}")
        check_branches(self.branch)
        if self.first is not None:
            whole(self.first, "first, the number of steps of an exchange,", least=1)

    def open(self, pipe: WanImageToVideoPipeline, sample: Sample, donor: Capture | dict[int, int]) -> Any:
        """The `swap` context of this exchange."""
        steps = None if self.first is None else range(self.first)
        if self.mode == "text":
            return swap(pipe, self.layer, donor, steps=steps, branch=self.branch, part="cross_attention")
        if self.mode != "region":
            return swap(pipe, self.layer, donor, self.mode, steps=steps, branch=self.branch)
        differ = (sample.options[sample.answer] != sample.blank) | (sample.twin().ids[-1] != sample.twin().blank)

        def tokens(grid: Grid) -> torch.Tensor:
            mask = np.broadcast_to(pool(differ[None], (1, *grid[1:])), grid).copy()
            mask[0] = False
            return torch.from_numpy(mask)

        return swap(pipe, self.layer, donor, "state", tokens, steps, self.branch)


def leading_twin(sample: Sample, film: np.ndarray) -> str | None:
    """`chain.leading` of a film (T, H, W, 3) in which either twin may be drawn: the larger of both shares counts."""
    own, other = sample.candidates(film), sample.twin().candidates(film)
    shares = {name: max(own[name], other.get(name, 0.0)) for name in own}
    return [*shares, None][leader(shares)]


def flips(pairs: Sequence[tuple[Sample, Sequence[str | None]]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Does the twin's whole prompt flip the answer, (p,) bool, and where it does, each exchange, (q, count) bool?

    pairs: a puzzle and the leaders of donor, own and every exchange, from `at_step`. p: pairs in which the own answer
    leads without an exchange; q: those of them that the whole prompt flips. An exchange cannot hand over more than the
    prompt does, so its rate is a share of this ceiling.
    """
    own = [(sample.twin().answer, leaders) for sample, leaders in pairs if leaders[1] == sample.answer]
    ceiling = np.array([leaders[0] == twin for twin, leaders in own], bool)
    rows = [[name == twin for name in leaders[2:]] for twin, leaders in own if leaders[0] == twin]
    return ceiling, np.array(rows, bool).reshape(len(rows), count)


def at_step(
    pipe: WanImageToVideoPipeline, sample: Sample, run: Run, step: int, ways: Sequence[Exchange], rows: int = 64,
    **call: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Clean estimates of one step of `run`, a recorded run of `sample`: (T, H, W, 3), (T, H, W, 3), (n, T, H, W, 3).

    First of the donor, the same x_s under the twin's whole prompt: the ceiling, no exchange can hand over more.
    Then of the run as it is, and under each of the exchanges, which take place at this step. For the rest see
    `between_twins`.
    """
    _same_picture(sample)
    found = []
    for part in _parts(ways, rows):
        with _opened(pipe, sample, part):
            prompts = [sample.twin().prompt] + [sample.prompt] * (1 + len(part))
            one = carried(pipe, run, step, sample, once=True, prompt=prompts, **call)
        films = world.reduced(one.decode([step])[0].numpy())
        found.append(films[2:])
    return films[0], films[1], np.concatenate(found)


def between_twins(
    pipe: WanImageToVideoPipeline,
    sample: Sample,
    ways: Sequence[Exchange],
    seed: int = 0,
    rows: int = 64,
    **call: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Films of the donor (the twin's prompt), of the recipient, and of the recipient under each exchange.

    (17, 80, 80, 3), (17, 80, 80, 3) and (n, 17, 80, 80, 3), `world.reduced` where the puzzle's own size is
    larger. rows: at most so many exchanges in one batch, which has two rows more. ValueError where the twins'
    pictures differ: a batch has one picture.
    """
    _same_picture(sample)
    return _exchanged(pipe, sample, sample.twin().prompt, (seed, seed), ways, rows, call)


def between_seeds(
    pipe: WanImageToVideoPipeline, sample: Sample, ways: Sequence[Exchange], seeds: tuple[int, int] = (0, 1),
    rows: int = 64, **call: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The same where donor and recipient share picture and prompt and differ in the noise: seeds (donor, recipient)."""
    return _exchanged(pipe, sample, sample.prompt, seeds, ways, rows, call)


def _same_picture(sample: Sample) -> None:
    if not np.array_equal(sample.ids[0], sample.twin().ids[0]):
        raise ValueError(f"the twins of {sample.task} have different pictures; an exchange in one batch needs the same")


def _parts(ways: Sequence[Exchange], rows: int) -> list[Sequence[Exchange]]:
    return [ways[start : start + rows] for start in range(0, max(len(ways), 1), rows)]


def _opened(pipe: WanImageToVideoPipeline, sample: Sample, ways: Sequence[Exchange]) -> ExitStack:
    """The exchanges of one batch, the first of them in row 2, with row 0 as donor."""
    with ExitStack() as stack:
        for row, way in enumerate(ways, 2):
            stack.enter_context(way.open(pipe, sample, {row: 0}))
        return stack.pop_all()


def _exchanged(pipe, sample, prompt, seeds, ways, rows, call):
    call = sample.inputs | settings(pipe) | call | dict(output_type="np")
    found = []
    for part in _parts(ways, rows):
        noise = [seeds[0]] + [seeds[1]] * (1 + len(part))
        prompts = [prompt] + [sample.prompt] * (1 + len(part))
        with _opened(pipe, sample, part):
            films = world.reduced(pipe(**call | dict(prompt=prompts), generator=seeded(noise)).frames)
        found.append(films[2:])
    return films[0], films[1], np.concatenate(found)


def captured(
    pipe: WanImageToVideoPipeline, sample: Sample, donor: Sample, way: Exchange, seed: int = 0, **call: Any
) -> np.ndarray:
    """Clean estimates (S, T, H, W, 3) of `sample` under an exchange with any puzzle on the same grid, which runs first.

    With `sample` as its own donor nothing changes, bit by bit. Not for the mode "text".
    """
    steps = None if way.first is None else range(way.first)
    with capture(pipe, way.layer, steps, raw, inputs=True) as states:
        recorded(pipe, donor, seed, **call)
    with way.open(pipe, sample, states):
        return estimates(recorded(pipe, sample, seed, **call))
