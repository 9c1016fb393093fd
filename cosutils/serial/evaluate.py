"""The map of the testbed: length x depth x steps, on puzzles of one split.

    python -m cosutils.serial.evaluate            # validation puzzles: design and reading
    python -m cosutils.serial.evaluate --report   # the sealed puzzles: once, at the end

writes `<out>/<split>/<run>.json` for every shipped run that has none of its weights yet, with their sha256. The rules
that the numbers are judged by are `data/serial/rules.yaml`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from .._files import read_json, sha256, write_text
from ..metrics import rate_interval
from . import puzzles as world
from .model import LoopedWan, build_pipeline, embed, hasten
from .sampling import parallel, read, staircase, steps_of
from .train import LOOPS, Arguments, load_run

__all__ = [
    "STEPS",
    "cos_index",
    "curves",
    "d50",
    "facts_of",
    "horizon",
    "load_pipeline",
    "record",
    "write",
]

STEPS = (1, 2, 4, 8, 16, 32)
PASSES = 8  # of the parallel baseline


def load_pipeline(folder: Path) -> WanImageToVideoPipeline:
    """The stock pipeline of a run: see `build_pipeline` for how to call it."""
    return build_pipeline(*load_run(folder)[1:])


def _rate(hits: np.ndarray) -> dict[str, float]:
    return rate_interval(int(hits.sum()), len(hits)).stored()


def _share(rows: np.ndarray) -> float:
    return round(float(rows.mean()), 4)


def curves(transformer, codec, args: Arguments, split: str, each: int, steps=STEPS) -> list[dict]:
    """One row for each length, sampler and number of steps.

    decision, exact: rate with its Wilson interval. cells: mean share of right cells among those that change.
    first, corrected, spoiled: the first estimate is right / wrong and the last right / right and the last
    wrong. alive: mean number of candidates alive at the first step and at the last. A looped model is
    measured at 1, 2, 4 and 8 loops, one with a noise level a row also with rows that end one after the other, a
    student with its own number of steps.
    """
    embeds, rows = embed(), []
    steps = (args.steps,) if args.teacher else steps
    depths = [k for k in LOOPS if k in (1, 2, 4, 8)] if isinstance(transformer, LoopedWan) else [None]
    samplers = {"uniform": steps_of} | ({"staircase": staircase} if args.variant == "levels" else {})
    for length in world.lengths(args.task):
        sample = world.take(args.task, split, length, each)[0]
        for loops in depths:
            if loops:
                transformer.loops = loops
            base = dict(length=length, n=len(sample)) | ({"loops": loops} if loops else {})
            for name, sampler in samplers.items():
                for count in steps:
                    seen = read(transformer, codec, sample, args.film, embeds, count, sampler=sampler)
                    first, last = seen.right[0], seen.right[-1]
                    rows.append(base | dict(
                        sampler=name, steps=count, decision=_rate(last), exact=_rate(seen.exact),
                        cells=_share(seen.cells), first=_share(first),
                        corrected=_share(~first & last), spoiled=_share(first & ~last),
                        alive=[round(float(seen.alive[k].mean()), 3) for k in (0, -1)]))  # fmt: skip
            right = parallel(transformer, codec, sample, args.film, embeds, PASSES)
            rows.append(base | dict(sampler="parallel", steps=PASSES, decision=_rate(right)))
    return rows


def chance(task: str) -> float:
    return 1 / (world.LINES if task == "ladder" else world.ENDS)


def above_chance(rates: np.ndarray, null: float) -> np.ndarray:
    """Decision accuracy as a share of what lies between guessing and always right."""
    return (np.asarray(rates, float) - null) / (1 - null)


def d50(lengths, rates, null: float) -> float:
    """Length at which accuracy crosses half of the way above chance, interpolated; the ends of the range
    where it does not cross: a censored value."""
    share = above_chance(rates, null)
    below = np.flatnonzero(share < 0.5)
    if not below.size:
        return float(lengths[-1])
    k = below[0]
    if k == 0:
        return float(lengths[0])
    return float(lengths[k - 1] + (share[k - 1] - 0.5) / (share[k - 1] - share[k]) * (lengths[k] - lengths[k - 1]))


def horizon(rates, null: float) -> float:
    """Number of lengths of the range that are solved: the sum of accuracies above chance. Never censored
    inside the range.
    """
    return float(above_chance(rates, null).clip(0, 1).sum())


def slope(x, y) -> float:
    return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


def cos_index(by_depth: dict[int, float], by_steps: dict[int, float]) -> float:
    """Slope of the reach (`d50` or `horizon`) on log2 steps over its slope on log2 depth. 0: no chain; 1:
    doubling the steps is worth doubling the blocks. by_depth: blocks -> reach in one pass; by_steps: steps ->
    reach at one depth."""
    per_block = slope(np.log2(list(by_depth)), list(by_depth.values()))
    return slope(np.log2(list(by_steps)), list(by_steps.values())) / per_block


def facts_of(folder: Path, args: Arguments, split: str) -> dict:
    """What every record says about its model and its puzzles."""
    weights = sha256(folder / "weights.safetensors")
    teacher = {"teacher": sha256(Path(args.teacher) / "weights.safetensors")} if args.teacher else {}
    return dict(arguments=asdict(args), split=split, chance=chance(args.task), weights=weights) | teacher


def write(target: Path, facts: dict) -> None:
    """One JSON file, whole or not at all; lists of rows one row a line. ValueError for a number that is not
    finite.
    """

    def shown(value) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n  " + ",\n  ".join(json.dumps(row, allow_nan=False) for row in value) + "\n ]"
        return json.dumps(value, allow_nan=False)

    text = "{\n " + ",\n ".join(f"{json.dumps(key)}: {shown(value)}" for key, value in facts.items()) + "\n}\n"
    write_text(target, text)


def record(folder: Path, out: Path, split: str, each: int) -> None:
    """Measure one run and write its record, `<out>/<split>/<run>.json`."""
    args, codec, transformer = load_run(folder)
    command = f"python -m cosutils.serial.evaluate --each {each}" + (" --report" if split == "report" else "")
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    facts = facts_of(folder, args, split) | dict(each=each, command=command, training=last)
    facts["curves"] = curves(hasten(transformer), codec, args, split, each)
    write(out / split / f"{folder.name}.json", facts)


def _is_of(stored: dict, weights: Path, each: int) -> bool:
    """Is a record of these weights, and of as many puzzles or more?"""
    return stored["weights"] == sha256(weights) and stored["each"] >= each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="shipped runs, default all")
    parser.add_argument("--runs", type=Path, default=Path("data/serial/models"))
    parser.add_argument("--out", type=Path, default=Path("data/serial"))
    parser.add_argument("--report", action="store_true", help="the sealed puzzles instead of validation")
    parser.add_argument("--each", type=int, default=128, help="puzzles of each length")
    parser.add_argument(
        "--again", action="store_true", help="also what has a record of the same weights and of as many puzzles"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    split = "report" if args.report else "validation"
    shipped = {path.parent.name: path for path in sorted(args.runs.glob("*/weights.safetensors"))}
    if unknown := sorted(set(args.names) - set(shipped)):
        parser.error(f"no run {unknown[0]!r} in {args.runs}: choose from {', '.join(shipped) or 'none'}")
    for name in args.names or shipped:
        stored = args.out / split / f"{name}.json"
        kept = stored.is_file() and not args.again and _is_of(read_json(stored), shipped[name], args.each)
        print(f"{name}: {'kept' if kept else 'measured'}", flush=True)
        if not kept:
            record(shipped[name].parent, args.out, split, args.each)


if __name__ == "__main__":
    main()
