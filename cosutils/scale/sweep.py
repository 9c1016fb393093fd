"""Run a study, on as many processes or machines as there are, and survive being stopped at any moment.

    python -m cosutils.scale.sweep noise.yaml --dry-run        # number of runs, hours they will take
    python -m cosutils.scale.sweep noise.yaml --workers 8      # the same command again goes on where it stopped
    python -m cosutils.scale.sweep noise.yaml status           # what is done, running and failed, and a page of it

`study` tells how the file is written. Every run leaves its files as `spec.run_one` says, and the sweep adds

    out/failed/<key>.json                       spec and error of a run that failed; the next start tries it again
    out/studies/<study>/summary.json            mean and interval of every measure in every condition
    out/studies/<study>/answers/<condition>/    of samples whose films are kept: the layout the official evaluator reads
    out/studies/<study>/index.html              the films so far, side by side, see `page`

<study> is the file's name with a digest of its runs, so that no study can overwrite what another one found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .._check import whole
from .._files import remove_leftovers, write, write_json
from ..report.progress import progress
from ..report.results import interval_text, mean_of, record_numbers, text_table
from . import cluster
from .spec import Spec, check_place, run_one
from .status import page, status
from .stored import hours_left, names, result, running, unit
from .study import Study, labels, read

__all__ = ["answers", "estimate", "main", "summary", "sweep"]

ALL = slice(None)


def sweep(study: Study, part: slice = ALL, workers: int = 1, engine: str = "local", retries: int = 1) -> dict[str, str]:
    """Do the unfinished runs of `study` on `workers` of an engine of `cluster.ENGINES`; returns {key: error} of what
    failed.

    part: which of its specs. A failed run is tried `retries` more times after the others, and again by the next sweep.
    Before anything is run: ValueError for an unknown engine or weights that are missing, OSError for an `out` that
    cannot be written, RuntimeError for a missing ffmpeg or GPU.
    """
    if engine not in cluster.ENGINES:
        raise ValueError(f"unknown engine {engine!r}; engines are {', '.join(cluster.ENGINES)}")
    workers, retries = whole(workers, "workers", least=1), whole(retries, "retries", least=0)
    chosen, out = dict(zip(study.keys[part], study.specs[part], strict=True)), study.out.resolve()
    check_place(out, any(spec.has_film for spec in chosen.values()))
    finished = names(out / "runs")
    todo = {name: spec for name, spec in chosen.items() if name not in finished}
    gpu = any(spec.device == "cuda" for spec in todo.values())
    ended = cluster.ENGINES[engine](partial(_do, out=out), todo.items(), workers, retries, gpu)
    errors = {}
    for (name, spec), error in progress(ended, "runs", total=len(todo)):
        if error is not None:
            errors[name] = error.splitlines()[0]
            write_json(out / "failed" / f"{name}.json", {"spec": spec.facts(), "error": error.splitlines()})
    for name in names(out / "failed") & names(out / "runs"):
        (out / "failed" / f"{name}.json").unlink(missing_ok=True)
    for name in names(out / "running") - running(out).keys():  # of processes that were killed
        (out / "running" / f"{name}.json").unlink(missing_ok=True)
    for folder in ("runs", "timings", "failed", "running"):
        remove_leftovers(out / folder)
    return errors


def estimate(study: Study, part: slice = ALL, workers: int = 1) -> str:
    """What is left to do of `study` and the hours it takes, in a few lines.

    Counted in the steps that a run computes (`Spec.effort`), at the seconds of a plain run that the study states, else
    at those measured over its finished runs, of the same model and size where there are some.
    """
    workers, specs = whole(workers, "workers", least=1), study.specs[part]
    finished = names(study.out / "runs")
    known = study.keys[part] if finished else [""] * len(specs)  # without any, no weights are needed
    todo = [spec for spec, name in zip(specs, known, strict=True) if name not in finished]
    first = f"{len(specs)} runs, {len(specs) - len(todo)} finished, {len(todo)} to do"
    hours, source = hours_left(study, todo)
    if hours is None:
        return f"{first}\nhours unknown: state seconds_per_run in the file, or measure a few runs with --limit 3"
    wall = f"{hours / workers:.3g} hours on {workers} worker{'s' * (workers > 1)}"
    return f"{first}\nabout {hours:.3g} {unit(study)} hours, {wall} ({source})"


def summary(study: Study) -> str:
    """Write summary.json of the finished runs and return its table: mean, 95 % interval and N per condition.

    N counts puzzles or samples: runs of the same one with several noise seeds are averaged first, as they are no
    independent cases. A condition is named by all fields that differ, see `study.labels`. ValueError where no run is
    finished or a file is damaged.
    """
    cells: dict[str, dict[str, dict[Any, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    finished = names(study.out / "runs")
    done = [
        triple
        for triple in zip(study.keys, study.specs, labels(study.specs, ["noise_seed"]), strict=True)
        if triple[0] in finished
    ]
    for name, spec, label in done:
        for what, value in result(study.out, name)["values"].items():
            cells[label][what][spec.sample or spec.seed].append(value)
    numbers = {}
    for label, measures in cells.items():
        for name, cases in measures.items():
            means = [float(np.mean(values)) for values in cases.values()]
            alone = {"value": means[0], "low": None, "high": None, "n": 1}
            numbers[f"{label}/{name}"] = mean_of(means) if len(means) > 1 else alone
    if not numbers:
        raise ValueError(f"no run of this sweep is finished in {study.out}")
    record_numbers(study.place, "summary", numbers, {"runs": len(study.specs), "finished": len(done)})
    columns, rows = sorted({name for measures in cells.values() for name in measures}), []
    for label in cells:
        row = [numbers.get(f"{label}/{name}") for name in columns]
        texts = [interval_text(number, 3) if number else "" for number in row]
        rows.append([label, *texts, max(number["n"] or 0 for number in row if number)])
    return text_table(["", *columns, "N"], rows)


def answers(study: Study) -> dict[str, Path]:
    """Link the kept videos of benchmark samples into the layout that the official evaluator reads: {condition: folder}.

    <place>/answers/<condition>/<split>/<task>/<00000>.mp4, one folder for each condition and noise seed, for
    `official.score`; kept clean estimates lie in folders of their own, "<condition>, step 7". Where the file system
    refuses links the videos are copied.
    """
    finished = names(study.out / "runs")
    kept = [
        (f"{label}{which}", name, ending, Path(spec.sample).parts[-3:])
        for label, name, spec in zip(labels(study.specs), study.keys, study.specs, strict=True)
        if spec.sample is not None and spec.has_film
        for which, ending in [("", "mp4"), *((f", step {step}", f"step_{step:03d}.mp4") for step in spec.kept_steps)]
    ]
    shorts = _short({label for label, *_ in kept})
    folders = {label: study.place / "answers" / shorts[label] for label, *_ in kept}
    for label, name, ending, puzzle in kept:
        answer = folders[label].joinpath(*puzzle).with_suffix(".mp4")
        if name in finished and not answer.exists():
            write(answer, partial(_link, study.out / "runs" / f"{name}.{ending}"))
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m cosutils.scale.sweep`; returns 0, 1 where runs failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m cosutils.scale.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="YAML file with a grid of specs")
    parser.add_argument("verb", nargs="?", choices=("run", "status"), default="run", help="default run")
    parser.add_argument("--dry-run", action="store_true", help="print the number of runs and the hours, run nothing")
    parser.add_argument("--workers", type=int, default=1, help="processes or actors, one GPU each (default 1)")
    parser.add_argument("--engine", choices=cluster.ENGINES, default="local", help="default local")
    parser.add_argument("--limit", type=int, help="only the first LIMIT runs of the grid")
    parser.add_argument("--retries", type=int, default=1, help="further attempts at a failed run (default 1)")
    options = parser.parse_args(arguments)
    try:
        study = read(options.file)
        if options.verb == "status":
            print(status(study))
            print(f"page: {page(study)}")
            return 0
        part = slice(None if options.limit is None else whole(options.limit, "limit", least=1))
        print(estimate(study, part, options.workers))
        if options.dry_run:
            return 0
        errors = sweep(study, part, options.workers, options.engine, options.retries)
        for name, error in sorted(errors.items()):
            print(f"failed: {study.out / 'failed' / name}.json: {error}")
        print(summary(study))
        print(f"summary: {study.place / 'summary.json'}")
        for folder in answers(study).values():
            print(f"videos: {folder}")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from here", file=sys.stderr)
        return 130
    return 1 if errors else 0


def _do(run: tuple[str, Spec], out: Path) -> None:
    name, spec = run
    if run_one(spec, out).stem != name:
        raise RuntimeError("the weights or the sample were changed while the sweep ran: start it again")


def _short(labels: Iterable[str]) -> dict[str, str]:
    """A folder name for each of `labels`, none like another: with a digest where signs or length were lost to it."""
    plain = {name: re.sub(r"[^\w.-]+", "_", name)[:100] for name in labels}
    count = Counter(plain.values())
    digests = {name: hashlib.sha256(name.encode()).hexdigest()[:8] for name in labels}
    return {
        name: short if count[short] == 1 and len(short) < 100 else f"{short}-{digests[name]}"
        for name, short in plain.items()
    }


def _link(video: Path, part: Path) -> None:
    """`part` as another name of `video`, or a copy where the file system has no such links."""
    part.unlink(missing_ok=True)  # copying into an old link would change the file it is a name of
    try:
        os.link(video, part)
    except OSError:
        shutil.copyfile(video, part)


if __name__ == "__main__":
    from .sweep import main as command  # workers import functions by name, not those of __main__

    sys.exit(command())
