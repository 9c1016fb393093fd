"""Scores of the embedded model on held-out puzzles, beside the controls.

    python -m cosutils.training.evaluate cos-mini --puzzles 200 --steps 1 4 20 --sealed

writes `data/results/<model>-scores.json` and prints the table of the README. Puzzles come from the report seeds of
`cosutils.mini.split`, with `--sealed` from those that are kept for what is published; with `--split content` only
puzzles count that such a training left out.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from .._check import whole, wholes
from .._files import read_json, writable_folder
from ..measures.chain import apart
from ..metrics import bootstrap_interval, share_interval
from ..mini import split, tasks
from ..mini.codec import PatchCodec
from ..mini.controls import CONTROLS, control
from ..mini.model import films_of
from ..pipelines import loading
from ..report.results import interval_text, record_numbers

__all__ = ["measure", "scores", "side_by_side", "table"]


def scores(pipe, samples: list[tasks.Sample], steps: int, seed: int = 0, batch: int = 32) -> list[tasks.Score]:
    """Score of one film per sample. The noise of sample k depends on (seed, sample seed) alone, not on the batch.

    ValueError for a model whose film is not finite.
    """
    films = films_of(pipe, samples, steps, seed, batch)
    return [sample.score(film) for sample, film in zip(samples, films, strict=True)]


def _numbers(prefix: str, rows: list[dict[str, float]]) -> dict[str, dict]:
    found = {}
    for part in rows[0]:
        interval = share_interval if part in ("decided", "solved") else bootstrap_interval
        v = interval([row[part] for row in rows])
        found[f"{prefix}/{part}"] = dict(value=v.estimate, low=v.low, high=v.high, n=len(rows))
    return found


def _scored(sample: tasks.Sample, film: np.ndarray) -> dict[str, float]:
    score = sample.score(film)
    return dict(score=score.total, solved=float(score.solved))


def measure(
    task: str,
    model: str,
    puzzles: int,
    steps: tuple[int, ...],
    seeds: range = split.REPORT,
    within: str | None = None,
) -> dict[str, dict]:
    """Numbers of one task, on the first `puzzles` of `seeds`: what `chain.apart` reads at every number of steps; score
    and solved of the truth and the controls; and `chance`, how often a guess among the possible answers is right.

    within: None, or one of `split.PARTS` for puzzles of that part alone.
    """
    torch.set_num_threads(1)
    pipe = loading.load(model)
    samples = split.draw(task, seeds, puzzles, within)
    numbers = _numbers(f"{task}/truth", [_scored(s, s.video) for s in samples])
    for name in CONTROLS:
        numbers |= _numbers(f"{task}/{name}", [_scored(s, control(name, s)) for s in samples])
    for count in steps:
        films = films_of(pipe, samples, count)
        numbers |= _numbers(f"{task}/{count} steps", [apart(s, film) for s, film in zip(samples, films, strict=True)])
    chance = float(np.mean([len(s.films) / len(s.options) for s in samples]))
    return numbers | {f"{task}/chance/decided": dict(value=chance, low=chance, high=chance, n=puzzles)}


def table(numbers: dict[str, dict], steps: tuple[int, ...]) -> str:
    """The README's table in markdown: mean score of truth and controls; score, deciding and solve rate of the model."""
    full = max(steps)

    def cell(key: str) -> str:
        return interval_text(numbers[key])

    one = f"score, {full} steps"
    lines = [["task", "truth", *CONTROLS, one, f"decided, {_steps(full)}", *(f"solved, {_steps(k)}" for k in steps)]]
    for task in tasks.NAMES:
        plain = [f"{numbers[f'{task}/{name}/score']['value']:.2f}" for name in ("truth", *CONTROLS)]
        last = (f"{task}/{full} steps/{part}" for part in ("score", "decided"))
        model = [*map(cell, last), *(cell(f"{task}/{k} steps/solved") for k in steps)]
        lines.append([task, *plain, *model])
    return _markdown(lines)


def side_by_side(models: dict[str, tuple[dict[str, dict], tuple[int, ...]]], part: str = "solved") -> str:
    """One of `chain.PARTS` of several models in markdown; models: label -> (recorded numbers, steps that are shown)."""
    columns = [(label, numbers, k) for label, (numbers, steps) in models.items() for k in steps]
    lines = [["task", *(f"{label}, {_steps(k)}" for label, _, k in columns)]]
    for task in tasks.NAMES:
        cells = (numbers[f"{task}/{k} steps/{part}"] for _, numbers, k in columns)
        lines.append([task, *map(interval_text, cells)])
    return _markdown(lines)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"


def _markdown(lines: list[list[str]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cos-mini")
    parser.add_argument("--puzzles", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--split", choices=["seed", "content"], default="seed", help="that of the model's training")
    parser.add_argument("--sealed", action="store_true", help="seeds that nobody has looked at before")
    args = parser.parse_args()
    seeds, within = split.SEALED if args.sealed else split.REPORT, "report" if args.split == "content" else None
    try:
        whole(args.puzzles, "--puzzles", least=2)  # an interval needs two
        whole(args.workers, "--workers", least=1)
        steps = wholes(args.steps, "number of steps")
        whole(steps[0], "the number of steps", least=1)
        out = writable_folder(args.out)
        if not isinstance(loading.load(args.model).vae, PatchCodec):
            raise ValueError(f"{args.model} is no embedded model")
        folder = Path(args.model).resolve()  # a training keeps its weights in <run>/model
        target = out / f"{folder.parent.name if folder.name == 'model' else folder.name}-scores.json"
        if target.is_file() and (other := read_json(target)["provenance"]["model"]) != args.model:
            raise ValueError(f"{target} holds the scores of {other}: choose another --out")
    except (TypeError, ValueError, OSError) as error:
        parser.error(str(error))
    work = partial(measure, model=args.model, puzzles=args.puzzles, steps=steps, seeds=seeds, within=within)
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        numbers = {k: v for part in pool.map(work, tasks.NAMES) for k, v in part.items()}
    options = " --split content" * (within is not None) + " --sealed" * args.sealed
    command = f"python -m cosutils.training.evaluate {args.model} --puzzles {args.puzzles} --steps"
    end = seeds.start + args.puzzles - 1 if within is None else f"the first {args.puzzles} of the report part"
    provenance = dict(model=args.model, seeds=[seeds.start, end], steps=list(steps),
                      command=f"{command} {' '.join(map(str, steps))}{options}")  # fmt: skip
    record_numbers(out, target.stem, numbers, provenance)
    print(table(numbers, steps))


if __name__ == "__main__":
    main()
