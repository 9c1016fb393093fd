"""The paper's ensemble where one run is right in part: on the serial puzzles.

    python -m cosutils.serial.ensemble

writes `data/serial/ensemble.json`. Three seeds of a puzzle are three rows of a batch. `runs` has, for each model, split
and length, how often the leader is right in one run (mean over the three seeds), and what each of `METHODS` and an
oracle, which picks the best seed, add to that. `judged` has the mean over the trainings of a group. Each training has
puzzles of its own, none of which the curves of `cosutils.serial.evaluate` have read, with noise of their own; short
ladders are so few that a puzzle can come back. The models have one or two blocks, so that nothing follows the merged
block here: a merge gives all seeds one velocity.

The rule, older than the run. A length has *room* for a group where on validation puzzles one run is right in .5 to .8
and the oracle adds .05 or more, both as means over the trainings. Only there it is judged, on sealed puzzles: a method
is *supported* where Student's interval of what it adds, over the trainings, lies above 0, otherwise *not supported*
where it lies below .05, and otherwise *undecided*, as are an interval without width and a single training. Two blocks
with a memory are left out: they were right at every length on validation puzzles.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hooks.ensemble import merge
from ..metrics import over_trainings
from ..mini.memory import RememberingWan
from . import puzzles as world
from .evaluate import write
from .model import CHANNELS, condition, embed, encode, hasten
from .sampling import noise_for, shares, steps_of
from .train import load_run

__all__ = ["METHODS", "NAMES", "added", "has_room", "judge", "lockstep", "unread"]

METHODS = {
    "merged": "states after the last block merged",
    "estimates": "mean estimates",
    "together": "the shares of the seeds' answers added up",
    "more": "one run of as many passes",
}
ORACLE = "oracle"
NAMES = tuple(f"ladder-trail-{kind}-x1-s{seed}" for kind in ("1-plain", "1-memory", "2-plain") for seed in range(3))
SIZE, STEPS, MERGED = 3, 8, 2  # seeds, steps, and how many of them are merged
READ = 128  # puzzles of each length that the curves have read


@contextmanager
def lockstep(transformer, size: int, passes: int, what: str) -> Iterator[None]:
    """Rows of a batch go together, `size` consecutive ones, in the first `passes` passes of the transformer.

    what: "merged" for the hidden states after the blocks that layers 20 to 29 are of the paper's 40, or "estimates" for
    the clean estimates, which all seeds then share while each keeps its own noise.
    """
    blocks, count = transformer.blocks, 0
    chosen = blocks[len(blocks) // 2 : round(0.75 * len(blocks))]

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    def states(_: Any, __: Any, output: Tensor) -> Tensor | None:
        return merge(output, size) if count <= passes else None

    def estimates(_: Any, arguments: tuple, output: tuple) -> tuple | None:
        if count > passes:
            return None
        x, sigma = arguments[0][:, :CHANNELS], (arguments[1] / 1000).view(-1, 1, 1, 1, 1)
        common = merge((x - sigma * output[0]).flatten(1)[:, None], size).view_as(x)
        if isinstance(transformer, RememberingWan):
            transformer.remember(common, float(sigma[0]))
        return ((x - common) / sigma, *output[1:])

    with ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(counted).remove)
        if what == "merged":
            for block in chosen:
                hooks.callback(block.register_forward_hook(states).remove)
        elif what == "estimates":
            hooks.callback(transformer.register_forward_hook(estimates).remove)
        else:
            raise ValueError(f"rows are {what!r} in no way that is known: merged or estimates")
        yield


@torch.no_grad()
def added(transformer, codec, puzzles: world.Puzzles, film: str) -> dict[str, np.ndarray]:
    """Puzzle by puzzle (n,): `one`, the share of `SIZE` single runs with the right leader, and what `METHODS` and the
    oracle add to it.
    """
    given = condition(codec, encode(codec, puzzles.film(film))).repeat_interleave(SIZE, 0)
    noise = torch.stack([noise_for(puzzles, seed) for seed in range(SIZE)], 1).flatten(0, 1)

    def shown(count: int) -> Tensor:
        """Shares of the candidates at the end of every run, (n, SIZE, K)."""
        *_, (_, _, x0) = steps_of(transformer, noise, given, embed(), count)
        return torch.stack([shares(codec, puzzles, x0[k::SIZE]) for k in range(SIZE)], 1)

    def right(share: Tensor) -> np.ndarray:
        return share.argmax(-1).numpy() == puzzles.answer.reshape(-1, *[1] * (share.ndim - 2))

    alone = shown(STEPS)
    found = dict(together=right(alone.clamp(0, 1).sum(1)), more=right(shown(SIZE * STEPS)).mean(1))
    found[ORACLE] = right(alone).any(1)
    for what in ("merged", "estimates"):
        with lockstep(transformer, SIZE, MERGED, what):
            found[what] = right(shown(STEPS)).mean(1)
    one = right(alone).mean(1)
    return dict(one=one) | {name: values - one for name, values in found.items()}


def unread(task: str, split: str, length: int, each: int, training: int) -> world.Puzzles:
    """`each` puzzles for training seed `training`: after those of the curves and of the trainings before it."""
    used = world.take(task, split, length, READ)[1]
    for _ in range(training):
        used = world.take(task, split, length, each, used)[1]
    return world.take(task, split, length, each, used)[0]


def has_room(one: Sequence[float], oracle: Sequence[float]) -> bool:
    """Whether a group has room at a length: of its trainings, the rates of one run and what the oracle adds."""
    return bool(0.5 <= np.mean(one) <= 0.8 and np.mean(oracle) >= 0.05)


def verdict(gain: dict[str, float | int]) -> str:
    """What the rule above says of what a method adds, as `over_trainings` gives it."""
    if "low" not in gain or gain["high"] - gain["low"] < 1e-9:
        return "undecided"
    return "supported" if gain["low"] > 0 else "not supported" if gain["high"] < 0.05 else "undecided"


def judge(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `judged`: group, length, method, `one` and `added` as `over_trainings` gives them, and the verdict, which
    the oracle has none of ("room").
    """
    groups = dict.fromkeys(run["name"].rsplit("-s", 1)[0] for run in runs)
    found = []
    for group in groups:
        mine = [run for run in runs if run["name"].rsplit("-s", 1)[0] == group]
        for length in dict.fromkeys(run["length"] for run in mine):
            split = {name: [run for run in mine if (run["split"], run["length"]) == (name, length)]
                     for name in ("validation", "report")}  # fmt: skip
            if not has_room(*([run[key] for run in split["validation"]] for key in ("one", "oracle"))):
                continue
            one = over_trainings([run["one"] for run in split["report"]])
            for method in (*METHODS, ORACLE):
                gain = over_trainings([run[method] for run in split["report"]])
                said = "room" if method == ORACLE else verdict(gain)
                found.append(dict(group=group, length=length, method=method, one=one, added=gain, verdict=said))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="shipped runs")
    parser.add_argument("--data", type=Path, default=Path("data/serial"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7])
    parser.add_argument("--each", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in given.names:
        args, codec, transformer = load_run(given.data / "models" / name)
        for split in ("validation", "report"):
            for length in given.lengths:
                puzzles = unread(args.task, split, length, given.each, args.seed)
                gains = added(hasten(transformer), codec, puzzles, args.film)
                row = {key: round(float(values.mean()), 4) for key, values in gains.items()}
                runs.append(dict(name=name, split=split, length=length, n=len(puzzles)) | row)
                print(runs[-1], flush=True)
    command = f"python -m cosutils.serial.ensemble --each {given.each} --lengths {' '.join(map(str, given.lengths))}"
    facts = dict(command=command, size=SIZE, steps=STEPS, merged_steps=MERGED, names=[*given.names])
    write(given.data / "ensemble.json", facts | dict(judged=judge(runs), runs=runs))


if __name__ == "__main__":
    main()
