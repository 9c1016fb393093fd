"""Train, ship and measure the runs of a plan one after the other, each once; to be stopped and started again
at any time.

    python -m cosutils.serial.plan --runs runs/serial

Shipped weights and records of validation puzzles go to the folder of the plan. The plan, `data/serial/plan.yaml`, is a
list of what differs from the defaults of `Arguments`, most informative first. It is read again after each
run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from .._files import read_yaml
from .evaluate import record
from .release import checksums, release
from .train import Arguments, train

__all__ = ["name_of", "planned", "work"]

PLAN = Path("data/serial/plan.yaml")


def name_of(args: Arguments) -> str:
    """The folder of a run, such as ladder-trail-1-memory-x1-s0; with the number of films where it is not the
    usual one, and the number of steps of a student.
    """
    depth = f"{args.layers}{'loops' if args.loops else ''}"
    longer = "" if args.samples == Arguments.samples else f"-n{args.samples}"
    few = f"-to{args.steps}" if args.teacher else ""
    return f"{args.task}-{args.film}-{depth}-{args.variant}-x{args.scale:g}-s{args.seed}{longer}{few}"


def planned(path: Path = PLAN) -> list[Arguments]:
    """The runs of a plan, in order; `seed` may be a list. TypeError or ValueError for one that cannot be."""
    runs: list[Arguments] = []
    for row in read_yaml(path):
        seeds = row.get("seed", 0)
        for seed in seeds if isinstance(seeds, list) else [seeds]:
            runs.append(Arguments(**row | {"seed": seed}))
            runs[-1].check()
    names = Counter(map(name_of, runs))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{path} has two runs of the name {twice[0]}")
    return runs


def work(runs: Path, path: Path, out: Path, each: int = 128) -> None:
    """Go on until nothing of the plan is left to do; the records say so."""
    while todo := [a for a in planned(path) if not (out / "validation" / f"{name_of(a)}.json").is_file()]:
        args, name = todo[0], name_of(todo[0])
        print(f"{len(todo)} to do, now {name}: {asdict(args)}", flush=True)
        train(runs / name, args)
        release(runs / name, out / "models" / name)
        checksums(out)
        record(out / "models" / name, out, "validation", each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--out", type=Path, help="default: the folder of the plan")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work(args.runs, args.plan, args.out or args.plan.parent)


if __name__ == "__main__":
    main()
