"""Other uses of several seeds than merging them (paper, "Training-free ensemble"), and what each costs.

Early planning beam search (arXiv 2603.30043): run several seeds for a few steps, go on with the most promising one.
Averages of latents or of clean estimates across seeds: the simplest ensembles, without hooks in the model.

    >>> from cosutils.measures.planning import choose_early, passes
    >>> three = call | dict(prompt=[puzzle.prompt] * 3, generator=cos.seeded([0, 1, 2]))
    >>> with passes(pipe) as count:
    ...     output, chosen = choose_early(pipe, 2, **three)
    >>> count.rows                # passes of a video through the transformer: three at two steps, then one at two
    8
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from .._check import whole
from ..hooks._blocks import check_steps
from ..hooks._call import Hub, Tap, tapped
from ..hooks.ensemble import check_alike, go_on, head
from ..pipelines.check import experts
from ..pipelines.families import only_wan

__all__ = ["Passes", "average", "choose_early", "closeness", "distances", "passes"]

AVERAGED = ("x0", "latents", "rescaled")


@dataclass
class Passes:
    """rows: videos that went through a transformer, summed over its calls; both CFG branches count."""

    rows: int = 0


@contextmanager
def passes(pipe: Any) -> Iterator[Passes]:
    """Count the transformer passes of all calls of `pipe` inside the block."""
    count = Passes()

    def add(module: Any, arguments: tuple, named: dict[str, Any]) -> None:
        count.rows += len(named["hidden_states"])

    with ExitStack() as stack:
        for model in experts(pipe).values():
            stack.callback(model.register_forward_pre_hook(add, with_kwargs=True).remove)
        yield count


def distances(films: np.ndarray) -> np.ndarray:
    """Root mean square pixel distance of every two of K films (K, ...) in [0, 1]: (K, K), symmetric."""
    flat = np.asarray(films).reshape(len(films), -1)
    rows = [[((one.astype(np.float64) - other) ** 2).mean() for other in flat] for one in flat]
    return np.sqrt(rows)


def closeness(films: np.ndarray) -> np.ndarray:
    """Minus the mean distance of each of K >= 2 films (K, ...) to the others: (K,), the largest is the medoid's."""
    if len(films) < 2:
        raise ValueError(f"closeness needs at least 2 films, got {len(films)}")
    return -distances(films).sum(1) / (len(films) - 1)


class _Average(Tap):
    def __init__(self, what: str, steps: frozenset[int]) -> None:
        self.what, self.steps = what, steps
        self.missed = set(steps)

    def check(self, hub: Hub) -> None:
        check_alike(hub.arguments)

    def start(self, hub: Hub) -> None:
        if max(self.steps) >= hub.steps:
            raise ValueError(f"no step {max(self.steps)}: this run has {hub.steps} steps (0..{hub.steps - 1})")

    def edit(self, hub: Hub, step: int, x: Tensor) -> tuple[Tensor, str] | None:
        if step not in self.steps:
            return None
        self.missed.discard(step)
        if len(x) == 1:
            return None
        x0 = cast(Tensor, hub.x0)  # there is one from step 1 on
        sigma, x = hub.sigmas[step].to(x.device), x.float()
        shared = (1 - sigma) * x0.mean(0, keepdim=True)
        noise = x - (1 - sigma) * x0  # sigma times each seed's own noise
        if self.what == "x0":
            x = shared + noise
        else:
            mean = noise.mean(0, keepdim=True)
            scale = noise.square().mean().sqrt() / mean.square().mean().sqrt() if self.what == "rescaled" else 1.0
            x = (shared + scale * mean).expand_as(x).contiguous()
        return x, f"average of {self.what}"


@contextmanager
def average(pipe: Any, what: str, steps: Iterable[int] | int) -> Iterator[None]:
    """Average the seeds of one batch in the states x_s that chosen steps begin with: s = (1 - sigma) x0hat + sigma n.

    what: "x0" gives all seeds the mean of their clean estimates x0hat (of the step before) and leaves each its
    own noise n; "latents" replaces x_s by its mean over the seeds, whose noise is too weak by the factor sqrt(K);
    "rescaled" is the same with the noise brought back to the root mean square of the seeds' own. After these two
    all seeds are one. steps: from 1 on, as step 0 has no estimate yet. A batch of one seed is left as it is.
    ValueError for another `what` or step and for seeds of different prompts or pictures; RuntimeError at the end for
    chosen steps that no call reached.
    """
    only_wan(pipe, "average")
    if what not in AVERAGED:
        raise ValueError(f"cannot average {what!r}: choose from {AVERAGED}")
    chosen = check_steps(steps) or frozenset()
    if not chosen or min(chosen) < 1:
        raise ValueError("averages act at steps from 1 on: step 0 has no estimate before it")
    averaged = _Average(what, chosen)
    with tapped(pipe, averaged):
        yield
    if averaged.missed:
        raise RuntimeError(f"average did not act: no call reached steps {sorted(averaged.missed)}")


def choose_early(
    pipe: Any,
    stop: int,
    choose: Callable[[np.ndarray], Sequence[float] | np.ndarray] = closeness,
    **arguments: Any,
) -> tuple[Any, int]:
    """Run K seeds of one prompt and picture for `stop` steps, then go on alone with the seed that `choose` rates best.

    choose: clean estimates x0hat after `stop` steps, films (K, T, H, W, 3) in [0, 1] -> K ratings, the highest wins.
    The default takes the seed that agrees best with the others: no rule of the task and no answer is used. arguments:
    those of the pipeline call with K seeds. Costs K stop + (S - stop) passes where S full steps cost S. Returns the
    call's output, one video, and the chosen row. ValueError unless 1 <= stop < S.
    """
    stop = whole(stop, "stop, the number of common steps,", least=1)
    first = head(pipe, stop - 1, **arguments)
    films = first.decode([stop - 1])[0].numpy()
    row = int(np.argmax(choose(films)))
    return go_on(pipe, first, [row], **arguments)[0], row
