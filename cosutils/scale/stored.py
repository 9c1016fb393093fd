"""What the runs of a study have left so far: results, failures, times, and who works at them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import alive, read_json
from .spec import Spec
from .study import Study

__all__ = ["failure", "hours_left", "hours_used", "names", "result", "running", "unit"]


def names(folder: Path) -> set[str]:
    """Keys of the JSON files in `folder`; hidden ones are not whole yet."""
    files = os.listdir(folder) if folder.is_dir() else []
    return {name.removesuffix(".json") for name in files if name.endswith(".json") and not name.startswith(".")}


def result(out: Path, name: str) -> dict[str, Any]:
    """What a finished run left in its JSON file; ValueError that names a damaged one."""
    return _read(out / "runs" / f"{name}.json", "spec", "values")


def failure(out: Path, name: str) -> str:
    """The one-line error of a run that failed."""
    lines = _read(out / "failed" / f"{name}.json", "error")["error"]
    return str(lines[0]) if lines else "no reason is stored"


def running(out: Path) -> dict[str, dict[str, Any]]:
    """{key: host, pid, since} of the runs that go on in `out`; those of killed processes of this machine are not."""
    found = {}
    for name in names(out / "running"):
        try:
            facts = _read(out / "running" / f"{name}.json", "host", "pid", "since")
        except FileNotFoundError:  # ended just now
            continue
        if facts["host"] != os.uname().nodename or alive(facts["pid"]):
            found[name] = facts
    return found


def hours_used(study: Study) -> float:
    """Hours that the finished runs took, without loading the model."""
    return sum(timing["seconds"] for _, timing in _timings(study)) / 3600


def hours_left(study: Study, todo: Sequence[Spec]) -> tuple[float | None, str]:
    """Hours that `todo` takes on one worker and how that is known; None where nothing is."""
    if study.seconds_per_run is not None:
        total = study.seconds_per_run * sum(spec.effort / spec.steps for spec in todo)
        return total / 3600, f"{study.seconds_per_run:g} s per plain run, stated"
    sums: dict[Any, np.ndarray] = defaultdict(lambda: np.zeros(2))
    timed = _timings(study)
    for spec, timing in timed:
        for group in (None, _geometry(spec)):  # of all, and of those alike
            sums[group] += timing["seconds"], timing["steps"]
    if not timed:
        return None, ""
    rates = {group: seconds / steps for group, (seconds, steps) in sums.items()}
    total = sum(rates.get(_geometry(spec), rates[None]) * spec.effort for spec in todo)
    return total / 3600, f"{rates[None]:.3g} s per step, measured over {len(timed)} runs"


def unit(study: Study) -> str:
    """What the hours are of."""
    return "GPU" if any(spec.device == "cuda" for spec in study.specs) else "CPU"


def _read(path: Path, *needed: str) -> dict[str, Any]:
    """A JSON file of a sweep; ValueError that names it where it is damaged or lacks one of `needed`."""
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not found.keys() >= set(needed):
            raise ValueError(f"{path}: needs {', '.join(needed)}")
    except ValueError as error:
        raise ValueError(f"damaged file, remove it and start the sweep again: {error}") from error
    return found


def _timings(study: Study) -> list[tuple[Spec, dict[str, Any]]]:
    """Spec, and seconds and steps, of every run of `study` that was timed."""
    timed = names(study.out / "timings")
    own = dict(zip(study.keys, study.specs, strict=True)) if timed else {}
    found = []
    for name in own.keys() & timed:
        path = study.out / "timings" / f"{name}.json"
        timing = _read(path, "seconds", "steps")
        if not all(isinstance(timing[what], (int, float)) and timing[what] > 0 for what in ("seconds", "steps")):
            raise ValueError(
                f"damaged file, remove it and start the sweep again: {path}: seconds and steps are above 0"
            )
        found.append((own[name], timing))
    return found


def _geometry(spec: Spec) -> tuple[Any, ...]:
    """What the time of one step depends on."""
    return spec.model, spec.preset, spec.device, spec.offload, spec.size, spec.frames
