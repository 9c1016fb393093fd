"""Run a study as jobs of Slurm: an example of how the parts of a study go to a scheduler, made with submitit.

    python -m cosutils.scale.slurm noise.yaml --jobs 8 --hours 24 partition=gpu    # returns when they are submitted
    python -m cosutils.scale.slurm noise.yaml --jobs 2 --cluster local             # the same on this machine; waits

Job k of n does every n-th run from k on, so all machines must see the study, `out`, the model and the samples at the
same paths. A job that is preempted or killed loses the run it was at; the same command again does what is left.
What stands after --hours are settings of Slurm by the names that submitit gives them. Needs the extra [cluster].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._check import whole
from .study import Study, read
from .sweep import answers, summary, sweep

__all__ = ["main", "submit"]


def submit(study: Study, jobs: int, hours: float = 24, cluster: str = "slurm", **settings: Any) -> list[Any]:
    """Submit `study` in so many parts, one core and, where its specs need it, one GPU each; returns submitit's jobs.

    cluster: "slurm", or "local" for processes of this machine. settings: more of Slurm's, such as partition="gpu".
    Logs lie in <place of the study>/jobs. Raises RuntimeError where submitit is not installed or there is no Slurm,
    ValueError for settings of Slurm's with "local".
    """
    try:
        import submitit
    except ImportError as error:
        raise RuntimeError("Slurm jobs need the extra [cluster]: pip install 'cosutils[cluster]'") from error
    count = whole(jobs, "jobs", least=1)
    if settings and cluster != "slurm":
        raise ValueError(f"{', '.join(settings)} belongs to Slurm: leave it out with cluster={cluster!r}")
    executor = submitit.AutoExecutor(folder=study.place.resolve() / "jobs" / "%j", cluster=cluster)
    gpus = int(any(spec.device == "cuda" for spec in study.specs))
    settings = {f"slurm_{name}": value for name, value in settings.items()}
    executor.update_parameters(
        name=study.name, timeout_min=int(60 * hours), nodes=1, cpus_per_task=1, gpus_per_node=gpus, **settings
    )
    parts = [slice(first, None, count) for first in range(min(count, len(study.specs)))]
    return executor.map_array(sweep, [study] * len(parts), parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m cosutils.scale.slurm`; returns 0, 1 where runs failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m cosutils.scale.slurm", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="YAML file with a grid of specs")
    parser.add_argument("--jobs", type=int, default=1, help="parts of the study, one GPU each (default 1)")
    parser.add_argument("--hours", type=float, default=24, help="time limit of a job (default 24)")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="default slurm")
    parser.add_argument("settings", nargs="*", help="settings of Slurm such as partition=gpu")
    options = parser.parse_args(arguments)
    try:
        study = read(options.file)
        settings = dict(text.split("=", 1) for text in options.settings)
        jobs = submit(study, options.jobs, options.hours, options.cluster, **settings)
        for job in jobs:
            print(f"job {job.job_id}: {job.paths.stdout}")
        if options.cluster == "slurm":
            return 0
        errors = {name: error for job in jobs for name, error in job.result().items()}
        for name, error in sorted(errors.items()):
            print(f"failed: {study.out / 'failed' / name}.json: {error}")
        print(summary(study))
        for folder in answers(study).values():
            print(f"videos: {folder}")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if errors else 0


if __name__ == "__main__":
    from .slurm import main as command  # jobs import functions by name, not those of __main__

    sys.exit(command())
