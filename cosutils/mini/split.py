"""Which puzzles a model is trained on, chosen by and reported on: by seed, and if wanted by content.

    python -m cosutils.mini.split --draws 100000

Seeds are split once and for all. `REPORT` seeds are those of a page's own run. `SEALED` seeds are for the runs that
judge: nobody looks at a score on them before the rules are fixed, and nothing is changed because of one. `VALIDATION`
seeds decide while a model is built. Training takes `TRAIN`.

A seed is a label, and a task with few puzzles deals the same ones to all ranges. `part` therefore tells to which part a
puzzle belongs by what it shows and asks: a tenth is for reports, a tenth for validation, the others for training. The
command prints how many puzzles each task has and how many of the report's occur in training without that.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from .._check import whole
from . import tasks

__all__ = ["PARTS", "REPORT", "SEALED", "TRAIN", "VALIDATION", "Count", "count", "draw", "identity", "part", "training"]

REPORT, SEALED = range(50_000), range(50_000, 60_000)
VALIDATION, TRAIN = range(100_000, 200_000), range(1_000_000_000, 2**62)
PARTS = ("train", "validation", "report")
TRIES, FURTHER = 1000, 2**50  # seeds that one training puzzle may try, and how far they lie apart


def identity(sample: tasks.Sample) -> bytes:
    """What tells two puzzles apart: the digest of the first picture's tiles and the prompt, 32 bytes."""
    return hashlib.sha256(sample.ids[0].tobytes() + sample.prompt.encode()).digest()


def part(sample: tasks.Sample) -> str:
    """One of `PARTS`, by the content of the puzzle: "report" and "validation" for a tenth of all puzzles each."""
    digit = int.from_bytes(identity(sample)[:8], "big") % 10
    return {0: "report", 1: "validation"}.get(digit, "train")


def draw(name: str, seeds: Iterable[int], number: int, within: str | None = None) -> list[tasks.Sample]:
    """The first `number` puzzles of a task that `seeds` give, if `within` is one of `PARTS` only those of that part.

    ValueError where the seeds do not hold so many.
    """
    number = whole(number, "the number of puzzles", least=1)
    if within not in (None, *PARTS):
        raise ValueError(f"unknown part {within!r}; parts are {', '.join(PARTS)}")
    found: list[tasks.Sample] = []
    for seed in seeds:
        puzzle = tasks.sample(name, seed)
        if within is None or part(puzzle) == within:
            found.append(puzzle)
        if len(found) == number:
            return found
    raise ValueError(f"{seeds} hold {len(found)} puzzles of {name} ({within or 'any'} part), {number} were asked for")


def training(name: str, number: int, difficulty: int | None = None, by_content: bool = False) -> tasks.Sample:
    """Training puzzle `number` of a task; `by_content` passes over those whose `part` is another."""
    for attempt in range(TRIES):
        puzzle = tasks.sample(name, TRAIN.start + number + attempt * FURTHER, difficulty)
        if not by_content or part(puzzle) == "train":
            return puzzle
    raise ValueError(
        f"{TRIES} puzzles of {name} (difficulty {puzzle.difficulty}) and none for training: it has too few"
    )


class Count(NamedTuple):
    """Distinct puzzles of a task at its default difficulty, among `draws` training seeds.

    seen: distinct ones drawn; total: all there are, by the bias-corrected estimate Chao1, a lower bound: seen +
    f1 (f1 - 1) / 2 (f2 + 1), f1 drawn once and f2 twice (Chao 1984, Scand. J. Stat. 11:265); exact: every puzzle came
    up at least twice, so that there is hardly another; shared: how many of the first `report` report puzzles are among
    those drawn.
    """

    seen: int
    total: float
    exact: bool
    shared: int
    draws: int
    report: int


def count(name: str, draws: int, report: int = 200) -> Count:
    """Count the puzzles of a task in `draws` training seeds, and those that `report` report puzzles share with them."""
    draws = whole(draws, "the number of draws", least=2)
    drawn = Counter(identity(training(name, number)) for number in range(draws))
    once, twice = (sum(times == k for times in drawn.values()) for k in (1, 2))
    shared = sum(identity(puzzle) in drawn for puzzle in draw(name, REPORT, report))
    total = len(drawn) + once * (once - 1) / (2 * (twice + 1))
    return Count(len(drawn), total, once == 0, shared, draws, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000, help="training seeds of each task")
    parser.add_argument("--puzzles", type=int, default=200, help="report seeds of each task")
    args = parser.parse_args()
    print("| task | distinct puzzles | how known | report puzzles that occur in training |\n|---|---|---|---|")
    try:
        for name in tasks.NAMES:
            c = count(name, args.draws, args.puzzles)
            found, how = f"{c.total:,.0f}", f"Chao1, at least; {c.seen:,} seen in {c.draws:,} seeds"
            if c.exact:
                how = f"counted in {c.draws:,} seeds"
            elif c.seen == c.draws:
                found, how = f"many more than {c.seen:,}", f"no two alike in {c.draws:,} seeds"
            print(f"| {name} | {found} | {how} | {c.shared / c.report:.0%} of {c.report} |", flush=True)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
