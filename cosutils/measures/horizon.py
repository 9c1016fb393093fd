"""How far a model sees in a maze, and whether the steps move that horizon.

    python -m cosutils.measures.horizon

writes `data/results/horizon.json`. A row is one model, number of steps and length of the way: the share of cells of the
last frame that are right (`Score.parts["answer"]`), how often the right goal leads, what the steps add to one pass of
the same model, and what they add to the fewest steps beyond one (`late`), maze by maze, with the verdicts of the rules
below. `trainings` sums up the models of each of `KINDS`, which differ in their training seed alone: what the steps add,
its mean over trainings, and how much more a memory lets them add than the plain training of the same seed. The mazes
come from sealed seeds, and the run is made once.

The rules, older than the run. At a length, steps *extend* the horizon where the interval of what they add to the cells
lies above .05, and *shorten* it where that lies below -.05; where there are several trainings, the interval is
Student's over them. A model *drifts* where the interval of `late` lies below 0. The memory *helps* at a length where
the interval of the difference lies above 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from .._files import write_json
from ..metrics import bootstrap_interval, over_trainings, rate_interval
from ..mini import split, tasks
from ..mini.model import films_of
from ..pipelines.loading import data_folder, load
from .chain import leading

__all__ = ["KINDS", "LENGTHS", "mazes", "read", "sum_up", "trainings", "verdict"]

LENGTHS = ((4, 7), (8, 11), (12, 15), (16, 21), (22, 40))
"""Moves on the way, from and to, of each group of mazes."""
KINDS = {"plain": "cos-mini-longer", "memory": "cos-mini-memory"}
"""Models that differ in the seed of their training alone: the folder of this name and those with -seed1, -seed2 ..."""
SEEDS = split.SEALED
MODELS = ["cos-mini-shallow", "cos-mini-two", "cos-mini"]


def trainings(kind: str) -> list[str]:
    """The shipped models of one of `KINDS`, in the order of their training seeds."""
    name = KINDS[kind]
    return [name, *sorted(path.name for path in data_folder().glob(f"{name}-seed?"))]


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
        rows["leads"].append(float(leading(maze, film) in maze.films))
    return rows


def verdict(kind: str, added: dict[str, float]) -> str:
    """What the rules above say of what steps add; "one training" where it has no interval."""
    if "low" not in added:
        return "one training"
    if kind not in KINDS:
        return "helps" if added["low"] > 0 else "not shown"
    return "extends" if added["low"] > 0.05 else "shortens" if added["high"] < -0.05 else "neither"


def sum_up(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What steps add, over the trainings: kind "plain", "memory" or "memory - plain", moves, steps, added as
    `over_trainings` gives it, and its `verdict`. A training seed that is not in `rows` for both kinds is left out.
    """
    added = {(row["model"], tuple(row["moves"]), row["steps"]): row["added"]["value"] for row in rows if "added" in row}
    models = {model for model, _, _ in added}
    seeds = [model.removeprefix(KINDS["plain"]) for model in trainings("plain")]
    pairs = [pair for seed in seeds if models.issuperset(pair := [name + seed for name in KINDS.values()])]
    found = []
    for moves, steps in dict.fromkeys(key[1:] for key in added if pairs):
        each = dict(
            zip(KINDS, np.array([[added[model, moves, steps] for model in pair] for pair in pairs]).T, strict=True)
        )
        each["memory - plain"] = each["memory"] - each["plain"]
        for kind, values in each.items():
            rounded = {name: round(value, 4) for name, value in over_trainings(values).items()}
            found.append(dict(kind=kind, moves=list(moves), steps=steps, added=rounded, verdict=verdict(kind, rounded)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*MODELS, *trainings("plain"), *trainings("memory")])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20], help="beside one pass")
    parser.add_argument("--mazes", type=int, default=100, help="of each group of lengths")
    parser.add_argument("--out", type=Path, default=Path("data/results/horizon.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    groups, rows = mazes(args.mazes), []
    for model in args.models:
        pipe = load(model)
        for (least, most), group in zip(LENGTHS, groups, strict=True):
            cells: dict[int, list[float]] = {}
            for steps in (1, *sorted(args.steps)):
                seen = read(pipe, group, steps)
                cells[steps] = seen["cells"]
                found = dict(cells=bootstrap_interval(seen["cells"]),
                             leads=rate_interval(int(sum(seen["leads"])), len(group)))  # fmt: skip
                for name, before in zip(("added", "late"), [*cells][:-1][:2], strict=False):
                    found[name] = bootstrap_interval(np.subtract(seen["cells"], cells[before]))
                row: dict[str, Any] = dict(model=model, moves=[least, most], steps=steps, n=len(group))
                row |= {name: interval.stored() for name, interval in found.items()}
                if "added" in row:
                    row["verdict"] = verdict("plain", row["added"])
                if "late" in row:
                    row["drifts"] = row["late"]["high"] < 0
                rows.append(row)
                print(rows[-1], flush=True)
    facts = dict(command="python -m cosutils.measures.horizon", seeds=[SEEDS.start, SEEDS.stop])
    write_json(args.out, facts | dict(rows=rows, trainings=sum_up(rows)))


if __name__ == "__main__":
    main()
