"""Run a grid of experiments, on as many processes or machines as there are, and survive being stopped at any moment.

    python -m cosutils.scale.sweep noise.yaml --dry-run        # number of runs, hours they will take
    python -m cosutils.scale.sweep noise.yaml --workers 8      # the same command again goes on where it stopped

    # noise.yaml: every field of a spec has one value, a list, or a range; the grid is their product
    out: runs/sweeps/noise            # default: runs/sweeps/<name of this file>
    seconds_per_run: 0.5              # of a plain run, optional, for the dry run; else measured on the finished runs
    grid:
      model: cos-mini
      preset: mini
      task: [maze, reappear]
      seed: 0..59
      condition: [plain, noise_at_step 0..9, ensemble 3 layers 4-6 steps 0..2]     # .. spreads the grid, - does not
      measures: [score, solved]

The fields of the grid are those of a spec, see `spec.complete`; a list of low-rank weights is one of several values and
stands in brackets of its own, lora: [[[a.safetensors, 0.5], [b.safetensors, 1]]]. Every run leaves its files as
`spec.run_one` says, and the sweep adds

    out/failed/<key>.json             spec and error of a run that failed; the next start tries it again
    out/summary.json                  mean and interval of every measure in every condition
    out/answers/<condition>/          for samples with keep "video": the layout the official evaluator reads
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .._files import write_json
from ..report.progress import progress
from ..report.results import interval_text, mean_of, record_numbers
from . import cluster
from .conditions import effort
from .spec import FIELDS, complete, key, run_one

__all__ = ["answers", "estimate", "main", "read", "summary", "sweep"]

RANGES = ("seed", "noise_seed", "steps", "condition")  # fields that may be written 0..59
CASES = ("seed", "sample", "frames", "measures", "keep")  # every other field tells conditions apart
REPLICATES = (*CASES, "noise_seed")


def sweep(
    specs: Iterable[Mapping[str, Any]],
    out: str | Path,
    workers: int = 1,
    engine: str = "local",
    retries: int = 1,
) -> dict[str, str]:
    """Do all unfinished `specs` on `workers` of an engine of `cluster.ENGINES`; returns {key: error} of what failed.

    A failed run is tried `retries` more times after the others, and again by the next sweep. ValueError for a bad spec
    or engine before anything is run.
    """
    if engine not in cluster.ENGINES:
        raise ValueError(f"unknown engine {engine!r}; engines are {', '.join(cluster.ENGINES)}")
    if workers < 1 or retries < 0:
        raise ValueError(f"workers must be 1 or more and retries 0 or more, got {workers} and {retries}")
    out = Path(out).resolve()
    every = {key(spec): complete(spec) for spec in specs}
    todo = {name: spec for name, spec in every.items() if not (out / "runs" / f"{name}.json").is_file()}
    ended = cluster.ENGINES[engine](partial(_do, out=out), todo.items(), workers, retries)
    errors = {}
    for (name, spec), error in progress(ended, "runs", total=len(todo)):
        if error is not None:
            errors[name] = error.splitlines()[0]
            write_json(out / "failed" / f"{name}.json", {"spec": spec, "error": error.splitlines()})
    for name in every.keys() - errors.keys():
        (out / "failed" / f"{name}.json").unlink(missing_ok=True)
        for left in out.glob(f"*/.{name}.*"):  # of a process that was killed
            left.unlink(missing_ok=True)
    return errors


def read(path: str | Path) -> dict[str, Any]:
    """The sweep described by the YAML file at `path`: {"specs", "out", "seconds_per_run" or None}, specs completed.

    Ranges such as 0..59 include both ends; a sample with * stands for all folders of that pattern which hold a
    first_frame.png. A combination listed twice is run once. ValueError in one sentence for anything not allowed.
    """
    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    allowed = ("grid", "out", "seconds_per_run")
    if not isinstance(given, dict) or not isinstance(given.get("grid"), dict) or not given["grid"]:
        raise ValueError(f"{path} needs a grid of spec fields; allowed at the top are {', '.join(allowed)}")
    for name in given:
        if name not in allowed:
            raise ValueError(f"unknown field {name!r} in {path}; allowed at the top are {', '.join(allowed)}")
    seconds = given.get("seconds_per_run")
    if seconds is not None and (isinstance(seconds, (bool, str)) or not seconds > 0):
        raise ValueError(f"seconds_per_run must be a positive number, got {seconds!r}")
    order = (*FIELDS, *given["grid"])  # the model varies slowest: a process keeps only one
    grid = {name: _values(name, given["grid"][name]) for name in order if name in given["grid"]}
    points = (dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values()))
    specs = {json.dumps(spec, sort_keys=True): spec for spec in map(complete, points)}
    out = Path(given.get("out") or Path("runs") / "sweeps" / path.stem)
    return {"specs": list(specs.values()), "out": out, "seconds_per_run": seconds}


def estimate(specs: Sequence[Mapping[str, Any]], out: str | Path, stated: float | None = None, workers: int = 1) -> str:
    """What is left to do of `specs` and the hours it takes, in a few lines.

    stated: seconds of a plain run; None: seconds per step, measured over the finished runs of `out`. Both count the
    steps that a run computes (`conditions.effort`): one with noise at step i begins there, an ensemble takes K at once.
    """
    out = Path(out)
    finished = {path.stem for path in (out / "runs").glob("[!.]*.json")}
    todo = [spec for spec in specs if not finished or key(spec) not in finished]  # without any, no weights are needed
    lines = [f"{len(specs)} runs, {len(specs) - len(todo)} finished, {len(todo)} to do"]
    timings = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "timings").glob("[!.]*.json")]
    if stated is not None:
        total = stated * sum(effort(spec) / spec["steps"] for spec in todo)
        source = f"{stated:g} s per plain run, stated"
    elif timings:
        per_step = sum(t["seconds"] for t in timings) / sum(t["steps"] for t in timings)
        total = per_step * sum(map(effort, todo))
        source = f"{per_step:.3g} s per step, measured over {len(timings)} runs"
    else:
        return lines[0] + "\nhours unknown: state seconds_per_run in the file, or measure a few runs with --limit 3"
    unit = "GPU" if any(spec["device"] == "cuda" for spec in specs) else "CPU"
    wall = f"{total / workers / 3600:.3g} hours on {workers} worker{'s' * (workers > 1)}"
    return f"{lines[0]}\nabout {total / 3600:.3g} {unit} hours, {wall} ({source})"


def summary(specs: Iterable[Mapping[str, Any]], out: str | Path) -> str:
    """Write `out`/summary.json over the finished `specs` and return its table: mean, 95 % interval and N per condition.

    N counts puzzles or samples: runs of the same one with several noise seeds are averaged first, as they are no
    independent cases. A condition is named by the fields that differ between the specs. ValueError if none is finished.
    """
    out, specs = Path(out), [complete(spec) for spec in specs]
    labels = _labels(specs, REPLICATES)
    cells: dict[str, dict[str, dict[Any, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    finished = 0
    for spec, label in zip(specs, labels, strict=True):
        path = out / "runs" / f"{key(spec)}.json"
        if not path.is_file():
            continue
        finished += 1
        for name, value in json.loads(path.read_text(encoding="utf-8"))["values"].items():
            cells[label][name][spec.get("sample", spec.get("seed"))].append(value)
    numbers = {}
    for label, measures in cells.items():
        for name, cases in measures.items():
            means = [float(np.mean(values)) for values in cases.values()]
            alone = {"value": means[0], "low": None, "high": None, "n": 1}
            numbers[f"{label}/{name}"] = mean_of(means) if len(means) > 1 else alone
    if not numbers:
        raise ValueError(f"no run of this sweep is finished in {out}")
    record_numbers(out, "summary", numbers, {"runs": len(specs), "finished": finished})
    width, columns = max(map(len, cells)), sorted({name for measures in cells.values() for name in measures})
    lines = [f"{'':{width}s}  " + "  ".join(f"{name:20s}" for name in columns) + "     N"]
    for label in cells:
        row = [numbers.get(f"{label}/{name}") for name in columns]
        n = max(number["n"] for number in row if number)
        lines.append(f"{label:{width}s}  " + "  ".join(f"{_cell(number):20s}" for number in row) + f"{n:6d}")
    return "\n".join(lines)


def answers(specs: Iterable[Mapping[str, Any]], out: str | Path) -> dict[str, Path]:
    """Link the kept videos of benchmark samples into the layout that the official evaluator reads: {condition: folder}.

    `out`/answers/<condition>/<split>/<task>/<00000>.mp4, one folder for each condition and noise seed, for
    `official.score`. Raises ValueError where the names of two conditions would make one folder.
    """
    out = Path(out)
    specs = [spec for spec in map(complete, specs) if "sample" in spec and spec["keep"] == "video"]
    folders = {label: out / "answers" / re.sub(r"[^\w.-]+", "_", label) for label in _labels(specs, CASES)}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"two conditions have the same folder name: {', '.join(sorted(folders))}")
    for spec, label in zip(specs, _labels(specs, CASES), strict=True):
        video = out / "runs" / f"{key(spec)}.mp4"
        if video.with_suffix(".json").is_file():
            link = folders[label].joinpath(*Path(spec["sample"]).parts[-3:]).with_suffix(".mp4")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            os.link(video, link)
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m cosutils.scale.sweep`; returns 0, 1 where runs failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m cosutils.scale.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="YAML file with a grid of specs")
    parser.add_argument("--dry-run", action="store_true", help="print the number of runs and the hours, run nothing")
    parser.add_argument("--workers", type=int, default=1, help="processes or actors, one GPU each (default 1)")
    parser.add_argument("--engine", choices=cluster.ENGINES, default="local", help="default local")
    parser.add_argument("--limit", type=int, help="only the first LIMIT runs of the grid")
    parser.add_argument("--retries", type=int, default=1, help="further attempts at a failed run (default 1)")
    options = parser.parse_args(arguments)
    try:
        plan = read(options.file)
        specs, out = plan["specs"][: options.limit], plan["out"]
        print(estimate(specs, out, plan["seconds_per_run"], options.workers))
        if options.dry_run:
            return 0
        errors = sweep(specs, out, options.workers, options.engine, options.retries)
        for name, error in sorted(errors.items()):
            print(f"failed: {out / 'failed' / name}.json: {error}")
        print(summary(specs, out))
        for folder in answers(specs, out).values():
            print(f"videos: {folder}")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from here", file=sys.stderr)
        return 130
    return 1 if errors else 0


def _labels(specs: Sequence[Mapping[str, Any]], without: Sequence[str]) -> list[str]:
    """Name of the condition of every spec: its condition and the fields that differ, those in `without` left out."""
    varied = [
        name
        for name in FIELDS
        if name == "condition" or (name not in without and len({json.dumps(spec.get(name)) for spec in specs}) > 1)
    ]
    texts = [[(name, spec[name]) for name in varied if spec.get(name) is not None] for spec in specs]
    return [", ".join(v if isinstance(v, str) else f"{n} {v}" for n, v in parts) for parts in texts]


def _do(run: tuple[str, Mapping[str, Any]], out: Path) -> None:
    name, spec = run
    if run_one(spec, out).stem != name:
        raise RuntimeError("the weights or the sample were changed while the sweep ran: start it again")


def _values(name: str, value: Any) -> list[Any]:
    """The values a grid field stands for; measures is one value, a list."""
    if name == "measures":
        return [value]
    found = []
    for one in value if isinstance(value, list) else [value]:
        span = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)", one) if name in RANGES and isinstance(one, str) else None
        if span:
            first, last = int(span[2]), int(span[3])
            if last < first:
                raise ValueError(f"the range {one!r} of {name} runs backwards")
            found += [f"{span[1]}{k}" if span[1] else k for k in range(first, last + 1)]
        elif name == "sample" and isinstance(one, str) and "*" in one:
            found += sorted(str(Path(hit).parent) for hit in glob(f"{one}/first_frame.png", recursive=True))
            if not found:
                raise ValueError(f"no folder of the pattern {one!r} holds a first_frame.png")
        else:
            found.append(one)
    if not found:
        raise ValueError(f"{name} has an empty list of values")
    return found


def _cell(number: Mapping[str, Any] | None) -> str:
    return "" if number is None else interval_text(number, 3)


if __name__ == "__main__":
    from .sweep import main as command  # workers import functions by name, not those of __main__

    sys.exit(command())
