"""How much faster two workers of a sweep are than one: throughput of `cosutils.scale.cluster`'s engines here.

    python -m benchmarks.sweep                       # engines local and, if it is installed, ray
    python -m benchmarks.sweep --engines ray --runs 40 --repeats 5 --out runs

Real runs of cos-mini, as in any sweep. One and two workers take turns, each with processes of its own; what counts is
the time in which every worker has its model loaded and still has work. A ratio is formed from neighbours in time, the
median over the repeats is given with a bootstrap interval; the exit status is 1 if a median is below 1.8. Other load on
the machine lowers the ratio unless a core is left for each worker; Ray's workers, nice by default, are not here.
Writes <out>/benchmarks-sweep.json whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from cosutils.metrics import bootstrap_interval
from cosutils.report.results import interval_text, record_numbers
from cosutils.scale import cluster
from cosutils.scale.spec import Spec, run_one

BAR = 1.8
NICE = "RAY_worker_niceness"  # Ray's own setting, 15 unless set: behind all other work of the machine


def timed_run(spec: Spec, out: Path) -> None:
    """Do one run and note when this process ended it."""
    run_one(spec, out)
    with (out / f"{os.getpid()}.ends").open("a") as file:
        file.write(f"{time.time()}\n")


def rate(engine: str, workers: int, runs: int, steps: int) -> float:
    """Runs per second of `workers` of `engine`, from when the last of them had ended its first run until one of them
    ended its last; `runs` a worker.
    """
    specs = [
        Spec(model="cos-mini", preset="mini", task="maze", seed=seed, steps=steps) for seed in range(runs * workers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for spec, error in cluster.ENGINES[engine](partial(timed_run, out=Path(folder)), specs, workers):
            if error is not None:
                raise RuntimeError(f"a run of the benchmark failed: {spec}: {error}")
        ends = [np.loadtxt(path, ndmin=1) for path in Path(folder).glob("*.ends")]
    start, stop = max(one[0] for one in ends), min(one[-1] for one in ends)
    if len(ends) < workers or stop <= start:
        raise RuntimeError(f"one of {workers} workers of {engine} had done all before the others began: more --runs")
    return sum(((one > start) & (one <= stop)).sum() for one in ends) / (stop - start)


def main() -> int:
    """Measure, print one line for each engine, write the record; 1 if a ratio is below the bar."""
    installed = ["local"] + ["ray"] * (importlib.util.find_spec("ray") is not None)
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.sweep", description=__doc__, formatter_class=raw_text)
    parser.add_argument("--engines", nargs="+", choices=cluster.ENGINES, default=installed)
    parser.add_argument("--runs", type=int, default=40, help="runs a worker and measurement (default 40)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a run (default 20)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    if options.repeats < 2 or options.runs < 4:
        parser.error(f"--repeats is at least 2 and --runs at least 4, got {options.repeats} and {options.runs}")
    os.environ.setdefault(NICE, "0")
    numbers = {}
    for engine in options.engines:
        ratios = []
        for turn in range(options.repeats):
            order = (1, 2) if turn % 2 else (2, 1)
            found = {workers: rate(engine, workers, options.runs, options.steps) for workers in order}
            ratios.append(found[2] / found[1])
            print(
                f"{engine} {turn}: {found[1]:.2f} and {found[2]:.2f} runs/s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
        value, low, high = bootstrap_interval(ratios, np.median)
        number = {"value": value, "low": low, "high": high, "n": len(ratios)}
        numbers[f"{engine}_two_over_one"] = number
        verdict = "met" if value >= BAR else "MISSED"
        print(f"{engine:6s} two workers / one  {interval_text(number)}   bar >= {BAR}: {verdict}")
    facts = {
        "runs": options.runs,
        "steps": options.steps,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print("written to", record_numbers(options.out, "benchmarks-sweep", numbers, facts))
    return int(any(number["value"] < BAR for number in numbers.values()))


if __name__ == "__main__":
    sys.exit(main())
