"""How far a model sees in a maze, and whether the steps move that horizon.

    python -m cosutils.measures.horizon

writes `data/results/horizon.json`. A row is one model, number of steps and length of the way: the share of cells of
the last frame that are right (`Score.parts["answer"]`), how often the right goal leads, and what the steps add to one
pass of the same model, maze by maze. The mazes come from report seeds that no other number uses.

The rule, older than the run: at a length, steps *extend* the horizon where the interval of what they add to the cells
lies above .05, and *shorten* it where that lies below -.05.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from .._files import write_json
from ..metrics import bootstrap_interval, leader, rate_interval
from ..mini import split, tasks
from ..mini.model import films_of
from ..pipelines.loading import load

__all__ = ["LENGTHS", "mazes", "read"]

LENGTHS = ((4, 7), (8, 11), (12, 15), (16, 21), (22, 40))
"""Moves on the way, from and to, of each group of mazes."""
SEEDS = split.REPORT[20_000:]
MODELS = ["cos-mini-shallow", "cos-mini-longer", "cos-mini-two", "cos-mini", "cos-mini-memory"]


def moves(maze: tasks.Sample) -> int:
    """Number of moves from the disc to the goal."""
    film = next(iter(maze.films.values()))
    return int((film[-1] != film[0]).sum()) - 1


def mazes(number: int) -> list[list[tasks.Sample]]:
    """`number` mazes for each group of `LENGTHS`, from the seeds on, of whatever difficulty gives such a way."""
    found: list[list[tasks.Sample]] = [[] for _ in LENGTHS]
    for seed in SEEDS:
        level = tasks.get("maze").DIFFICULTIES[seed % len(tasks.get("maze").DIFFICULTIES)]
        maze = tasks.sample("maze", seed, level)
        for group, (least, most) in zip(found, LENGTHS, strict=True):
            if least <= moves(maze) <= most and len(group) < number:
                group.append(maze)
        if all(len(group) == number for group in found):
            break
    return found


def read(pipe: WanImageToVideoPipeline, group: Sequence[tasks.Sample], steps: int) -> dict[str, list[float]]:
    """For each maze: cells, the share of right ones in the last frame; leads, whether the right goal leads (0 or 1)."""
    rows: dict[str, list[float]] = dict(cells=[], leads=[])
    for maze, film in zip(group, films_of(pipe, group, steps), strict=True):
        rows["cells"].append(maze.score(film).parts["answer"])
        place = leader(maze.candidates(film))
        rows["leads"].append(float([*maze.options, None][place] in maze.films))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20], help="beside one pass")
    parser.add_argument("--mazes", type=int, default=100, help="of each group of lengths")
    parser.add_argument("--out", type=Path, default=Path("data/results/horizon.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    groups, rows = mazes(args.mazes), []
    for model in args.models:
        pipe = load(model)
        for (least, most), group in zip(LENGTHS, groups, strict=True):
            once = read(pipe, group, 1)
            for steps in (1, *args.steps):
                seen = read(pipe, group, steps) if steps > 1 else once
                found = dict(cells=bootstrap_interval(seen["cells"]),
                             leads=rate_interval(int(sum(seen["leads"])), len(group)))  # fmt: skip
                if steps > 1:
                    found["added"] = bootstrap_interval(np.subtract(seen["cells"], once["cells"]))
                rows.append(dict(model=model, moves=[least, most], steps=steps, n=len(group)) | {
                    name: dict(value=round(v.estimate, 4), low=round(v.low, 4), high=round(v.high, 4))
                    for name, v in found.items()
                })  # fmt: skip
                print(rows[-1], flush=True)
    write_json(
        args.out, dict(command="python -m cosutils.measures.horizon", seeds=[SEEDS.start, SEEDS.stop], rows=rows)
    )


if __name__ == "__main__":
    main()
