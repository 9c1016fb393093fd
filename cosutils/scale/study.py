"""A study: a grid of specs under a name, read from a YAML file::

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

The fields of the grid are those of `spec.Spec`; a list of low-rank weights is one of several values and stands in
brackets of its own, lora: [[[a.safetensors, 0.5], [b.safetensors, 1]]].
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from .._files import read_yaml
from .spec import FIELDS, Spec, key

__all__ = ["Study", "labels", "read"]

RANGES = ("seed", "noise_seed", "steps", "condition")  # fields that may be written 0..59
CASES = ("seed", "sample")  # the fields that tell one case of a condition from another
ALLOWED = ("grid", "out", "seconds_per_run")


@dataclass(frozen=True)
class Study:
    """Specs under a name. Runs of all studies with one `out` lie together, for each is named by its content; what is
    made of several runs lies in `place`, which no other study has.

    seconds_per_run: of a plain run, stated; None where it is to be measured. ValueError for a study without a run, and
    for two samples with the same place in the official layout.
    """

    name: str
    specs: Sequence[Spec]
    out: Path
    seconds_per_run: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", tuple(Spec.of(spec) for spec in self.specs))
        object.__setattr__(self, "out", Path(self.out).expanduser())
        if not self.specs:
            raise ValueError(f"the study {self.name!r} has no run")
        seen: dict[tuple[str, ...], str] = {}
        for spec, label in zip(self.specs, labels(self.specs), strict=True):
            if spec.sample is not None and spec.has_film:
                folder = seen.setdefault((label, *Path(spec.sample).parts[-3:]), spec.sample)
                if folder != spec.sample:
                    raise ValueError(f"{folder} and {spec.sample} have one place in the official layout: two studies")

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """`spec.key` of every spec; ValueError where the weights are not on this machine."""
        return tuple(key(spec) for spec in self.specs)

    @property
    def place(self) -> Path:
        """Folder of summary, answers and page: of these runs and no others."""
        digest = hashlib.sha256("".join(sorted(self.keys)).encode()).hexdigest()
        return self.out / "studies" / f"{self.name}-{digest[:8]}"


def labels(specs: Sequence[Spec], without: Sequence[str] = ()) -> list[str]:
    """What tells the runs of one case apart, for every spec: its condition, after all other fields that differ.

    Left out are seed and sample, which tell the cases apart, and the fields in `without`. The frames of samples
    differ where one sample has several numbers of them.
    """
    differ = [name for name in FIELDS if name not in (*CASES, *without, "condition") and _differs(specs, name)]
    parts = [[(name, getattr(spec, name)) for name in differ] for spec in specs]
    return [
        ", ".join([*(f"{name} {_text(value)}" for name, value in part if value is not None), spec.condition])
        for part, spec in zip(parts, specs, strict=True)
    ]


def _differs(specs: Sequence[Spec], name: str) -> bool:
    found = defaultdict(set)
    for spec in specs:
        found[spec.sample if name == "frames" else None].add(_text(getattr(spec, name)))
    return any(len(values) > 1 for values in found.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read(path: str | Path) -> Study:
    """The study described by the YAML file at `path`, under its name.

    Ranges such as 0..59 include both ends; a sample that is no folder but a pattern stands for all folders of that
    pattern which hold a first_frame.png. ValueError or TypeError in one sentence for anything not allowed.
    """
    path = Path(path).expanduser()
    given = read_yaml(path)
    if not isinstance(given, dict) or not isinstance(given.get("grid"), dict) or not given["grid"]:
        raise ValueError(f"{path} needs a grid of spec fields; allowed at the top are {', '.join(ALLOWED)}")
    for name in given:
        if name not in ALLOWED:
            raise ValueError(f"unknown field {name!r} in {path}; allowed at the top are {', '.join(ALLOWED)}")
    seconds = given.get("seconds_per_run")
    if seconds is not None:
        number = isinstance(seconds, Real) and not isinstance(seconds, bool)
        if not number or not 0 < seconds < math.inf:
            raise ValueError(f"seconds_per_run must be a positive number, got {seconds!r}")
    out = given.get("out", os.path.join("runs", "sweeps", path.stem))
    if not isinstance(out, str) or not out:
        raise ValueError(f"out must be a folder as text, got {out!r}")
    order = (*FIELDS, *given["grid"])  # the model varies slowest: a process keeps only one
    grid = {name: list(_values(name, given["grid"][name])) for name in order if name in given["grid"]}
    for name, values in grid.items():
        texts = [json.dumps(value, default=str) for value in values]
        if not values:
            raise ValueError(f"{name} has an empty list of values")
        if len(set(texts)) < len(texts):
            raise ValueError(f"{name} lists {next(text for text in texts if texts.count(text) > 1)} twice")
    points = itertools.product(*grid.values())
    return Study(path.stem, [Spec.of(dict(zip(grid, point, strict=True))) for point in points], Path(out), seconds)


def _values(name: str, value: Any) -> Iterator[Any]:
    """The values a grid field stands for; measures is one value, a list."""
    for one in value if isinstance(value, list) and name != "measures" else [value]:
        span = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)", one) if name in RANGES and isinstance(one, str) else None
        if span:
            first, last = int(span[2]), int(span[3])
            if last < first:
                raise ValueError(f"the range {one!r} of {name} runs backwards")
            yield from (f"{span[1]}{k}" if span[1] else k for k in range(first, last + 1))
        elif name == "sample" and isinstance(one, str) and any(sign in one for sign in "*?["):
            yield from _folders(one)
        else:
            yield one


def _folders(pattern: str) -> list[str]:
    """The folders of `pattern` with a first frame; what is there under that very name is no pattern."""
    path = Path(pattern).expanduser()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    rest = path.relative_to(there)
    hits = glob.glob(f"{glob.escape(str(there))}/{rest}/first_frame.png", recursive=True)
    if not hits:
        raise ValueError(f"no folder of the pattern {pattern!r} holds a first_frame.png")
    return sorted(str(Path(hit).parent) for hit in hits)
