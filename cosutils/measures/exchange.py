"""Exchange hidden tokens of one block between twins: does the other answer win? (paper Sec. 5.2, Fig. 6b)

    >>> from cosutils.measures.exchange import Exchange, between_twins, leading_twin
    >>> sample, ways = cos.tasks.find_shape.sample(7), [Exchange(layer, "delta", first=1) for layer in range(2)]
    >>> donor, own, films = between_twins(pipe, sample, ways, num_inference_steps=4)
    >>> flipped = [leading_twin(sample, film) == sample.twin().answer for film in films]

The twins share the picture and the noise and differ in the prompt, so all runs go in one batch: row 0 is the donor,
row 1 the recipient as it is, every further row a recipient with one exchange.
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
from ..hooks.capture import Capture, capture
from ..hooks.reductions import Grid, raw
from ..hooks.swap import swap
from ..metrics import leader
from ..mini import world
from ..mini.tasks import Sample
from ..pipelines.loading import seeded, settings
from .layers import pool

__all__ = ["Exchange", "between_seeds", "between_twins", "captured", "leading_twin"]


@dataclass(frozen=True)
class Exchange:
    """What one run takes over from its donor, at the output of block `layer`.

    mode: "delta" the block's update, "state" its whole output, "region" the whole output of the tokens in which the two
    answers differ, in the latent frames after the first. first: at how many first steps (None: at all).
    """

    layer: int
    mode: str = "delta"
    first: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("delta", "state", "region"):
            raise ValueError(f"no mode {self.mode!r}: allowed are 'delta', 'state' and 'region'")
        if self.first is not None:
            whole(self.first, "first, the number of steps of an exchange,", least=1)

    def open(self, pipe: WanImageToVideoPipeline, sample: Sample, donor: Capture | dict[int, int]) -> Any:
        """The `swap` context of this exchange."""
        steps = None if self.first is None else range(self.first)
        if self.mode != "region":
            return swap(pipe, self.layer, donor, self.mode, steps=steps)
        differ = (sample.options[sample.answer] != sample.blank) | (sample.twin().ids[-1] != sample.twin().blank)

        def tokens(grid: Grid) -> torch.Tensor:
            mask = np.broadcast_to(pool(differ[None], (1, *grid[1:])), grid).copy()
            mask[0] = False
            return torch.from_numpy(mask)

        return swap(pipe, self.layer, donor, "state", tokens, steps)


def leading_twin(sample: Sample, film: np.ndarray) -> str | None:
    """`chain.leading` of a film (T, H, W, 3) in which either twin may be drawn: the larger of both shares counts."""
    own, other = sample.candidates(film), sample.twin().candidates(film)
    shares = {name: max(own[name], other.get(name, 0.0)) for name in own}
    return [*shares, None][leader(shares)]


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
    if not np.array_equal(sample.ids[0], sample.twin().ids[0]):
        raise ValueError(f"the twins of {sample.task} have different pictures; an exchange in one batch needs the same")
    return _exchanged(pipe, sample, sample.twin().prompt, (seed, seed), ways, rows, call)


def between_seeds(
    pipe: WanImageToVideoPipeline, sample: Sample, ways: Sequence[Exchange], seeds: tuple[int, int] = (0, 1),
    rows: int = 64, **call: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The same where donor and recipient share picture and prompt and differ in the noise: seeds (donor, recipient)."""
    return _exchanged(pipe, sample, sample.prompt, seeds, ways, rows, call)


def _exchanged(pipe, sample, prompt, seeds, ways, rows, call):
    call = sample.inputs | settings(pipe) | call | dict(output_type="np")
    found = []
    for start in range(0, max(len(ways), 1), rows):
        part = ways[start : start + rows]
        noise = [seeds[0]] + [seeds[1]] * (1 + len(part))
        with ExitStack() as stack:
            for row, way in enumerate(part, 2):
                stack.enter_context(way.open(pipe, sample, {row: 0}))
            prompts = [prompt] + [sample.prompt] * (1 + len(part))
            films = world.reduced(pipe(**call | dict(prompt=prompts), generator=seeded(noise)).frames)
        found.append(films[2:])
    return films[0], films[1], np.concatenate(found)


def captured(
    pipe: WanImageToVideoPipeline, sample: Sample, donor: Sample, way: Exchange, seed: int = 0, **call: Any
) -> np.ndarray:
    """Film (T, H, W, 3) of `sample` under an exchange with any puzzle on the same grid, which runs first.

    With `sample` as its own donor nothing changes, bit by bit.
    """
    call = settings(pipe) | call
    steps = None if way.first is None else range(way.first)
    with capture(pipe, way.layer, steps, raw, inputs=True) as states:
        pipe(**donor.inputs | call, generator=seeded(seed), output_type="latent")
    with way.open(pipe, sample, states):
        return pipe(**sample.inputs | call, generator=seeded(seed), output_type="np").frames[0]
