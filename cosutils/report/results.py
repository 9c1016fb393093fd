"""Numbers behind the claims: written with their intervals, compared with what is expected."""

from __future__ import annotations

import importlib.metadata
import math
import os
import pathlib
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from .. import __version__
from .._check import is_whole
from .._files import read_json, sha256, write_json
from ..metrics import bootstrap_interval, over_trainings, rate_interval
from ..pipelines.loading import SUMS, data_folder

__all__ = [
    "beside",
    "by_training",
    "check_numbers",
    "compare",
    "curve",
    "curve_of",
    "interval_text",
    "mean_of",
    "over_runs",
    "rate_gap",
    "rate_of",
    "read_numbers",
    "record_numbers",
    "stored_numbers",
    "text_table",
    "weights_digest",
]

_FIELDS = {"value", "low", "high", "n", "tolerance"}


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
    return {"python": platform.python_version(), "cosutils": __version__} | found


def weights_digest(model: object) -> str | None:
    """What tells one set of shipped weights from another: digest of the SHA256SUMS of an embedded model, else None."""
    sums = data_folder() / model / SUMS if isinstance(model, str) and model else None
    return sha256(sums)[:16] if sums is not None and sums.is_file() else None


def _entry(name: str, given: Mapping[str, Any]) -> dict[str, float | int | None]:
    """One checked number: finite value, low <= high or both None, n a whole number >= 1 or None."""
    if unknown := set(given) - _FIELDS:
        raise ValueError(f"{name}: unknown field {sorted(unknown)[0]!r}; allowed are {', '.join(sorted(_FIELDS))}")
    if "value" not in given or isinstance(given["value"], str) or not math.isfinite(given["value"]):
        raise ValueError(f"{name}: needs a finite value, not {given.get('value')!r}")
    low, high, n = given.get("low"), given.get("high"), given.get("n")
    if (low is None) != (high is None) or (low is not None and not low <= high):
        raise ValueError(f"{name}: an interval needs low <= high (or neither), not {low!r}, {high!r}")
    if n is not None and (not is_whole(n) or n < 1):
        raise ValueError(f"{name}: n counts samples, a whole number >= 1, not {n!r}")
    entry: dict[str, float | int | None] = {
        "value": float(given["value"]),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "n": None if n is None else int(n),
    }
    if given.get("tolerance") is not None:
        if not given["tolerance"] >= 0:
            raise ValueError(f"{name}: a tolerance is >= 0, not {given['tolerance']!r}")
        entry["tolerance"] = float(given["tolerance"])
    return entry


def mean_of(values: Sequence[float] | np.ndarray, tolerance: float | None = None) -> dict[str, float | int]:
    """Mean of independent values (n,) with its 95 % bootstrap interval, as `record_numbers` takes it.

    tolerance: how far (absolute) another machine's value may stray; default the larger of 0.02 and half the interval.
    """
    estimate, low, high = bootstrap_interval(values)
    tolerance = max(0.02, (high - low) / 2) if tolerance is None else tolerance
    return dict(value=estimate, low=low, high=high, n=len(values), tolerance=tolerance)


def rate_of(rows: Sequence[bool] | np.ndarray) -> dict[str, float | int]:
    """Rate of true rows (n,) with its 95 % Wilson interval, as `record_numbers` takes it.

    Unlike a bootstrap it does not claim certainty where all rows agree. tolerance as in `mean_of`. ValueError for a row
    that is neither true nor false (0 or 1).
    """
    rows = np.asarray(rows)
    if not np.isin(rows, (0, 1)).all():
        raise ValueError(f"a rate counts what is true or false, got {rows[~np.isin(rows, (0, 1))][0]!r}")
    value, low, high = rate_interval(rows.sum(), len(rows))
    return dict(value=value, low=low, high=high, n=len(rows), tolerance=max(0.02, (high - low) / 2))


def rate_gap(
    first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray, same: bool = True
) -> dict[str, float | int]:  # fmt: skip
    """Difference of two rates over the same runs, both (n,) bool, in the form of `rate_of`.

    same: False where they are of different runs, (n,) and (m,); n is the smaller number then.

    Interval from the two Wilson intervals and, of the same runs, their correlation (Newcombe 1998, Stat. Med. 17:873
    and 17:2635, method 10 of both): two events that were never seen do not make a difference of certainly zero.
    """
    if same and len(first) != len(second):
        raise ValueError(f"both rates are of the same runs, got {len(first)} and {len(second)}")
    a, b = rate_of(first), rate_of(second)
    phi = _correlation(np.asarray(first, bool), np.asarray(second, bool)) if same else 0.0
    value = a["value"] - b["value"]

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(one**2 - 2 * phi * one * other + other**2))

    low = value - reach(a["value"] - a["low"], b["high"] - b["value"])
    high = value + reach(a["high"] - a["value"], b["value"] - b["low"])
    return dict(value=value, low=low, high=high, n=min(a["n"], b["n"]), tolerance=max(0.02, (high - low) / 2))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of two events in the same runs, (n,) bool, as method 10 takes it: a positive one is corrected by n / 2."""
    n = len(first)
    margins = float(first.sum() * second.sum()) * float((~first).sum() * (~second).sum())
    excess = float(
        (first & second).sum() * (~first & ~second).sum() - (first & ~second).sum() * (~first & second).sum()
    )
    return (max(0.0, excess - n / 2) if excess > 0 else excess) / np.sqrt(margins) if margins else 0.0


def curve_of(
    name: str,
    places: Sequence[float],
    columns: Sequence[Sequence[float] | np.ndarray],
    of: Callable[..., dict[str, float | int]] = mean_of,
) -> dict[str, dict[str, float | int]]:
    """A curve as numbers to record, "name/place" -> number: at each place of the x axis, `of` its column (n,).

    Values that are not finite are left out, and so is a place with fewer than two. ValueError where there are not as
    many columns as places.
    """
    found = {}
    for place, column in zip(places, columns, strict=True):
        values = np.asarray(column, float)
        if (known := values[np.isfinite(values)]).size >= 2:
            found[f"{name}/{place:g}"] = of(known)
    return found


def curve(numbers: Mapping[str, Mapping[str, Any]], name: str) -> dict[float, Mapping[str, Any]]:
    """The curve `name` among recorded numbers, place -> number in order of the places; {} where there is none."""
    ends = {key.removeprefix(f"{name}/"): number for key, number in numbers.items() if key.startswith(f"{name}/")}
    return {float(place): ends[place] for place in sorted(ends, key=float)}


def interval_text(number: Mapping[str, Any], digits: int = 2) -> str:
    """A number with its interval, "0.31 [0.30, 0.32]", or alone where it has none; digits: after the point.

    number: {value[, low, high]}, as `record_numbers` takes it.
    """
    ends = [number[end] for end in ("low", "high") if number.get(end) is not None]
    value, *ends = (f"{one:z.{digits}f}" for one in (number["value"], *ends))
    return f"{value} [{', '.join(ends)}]" if ends else value


def text_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows of texts as columns that begin below each other, with a head or, where it is empty, without."""
    lines = tabulate(rows, head, tablefmt="plain", disable_numparse=True).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def record_numbers(
    path: str | os.PathLike[str],
    section: str,
    numbers: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write `<path>/<section>.json` (whole or not at all) and return where it lies.

    numbers: name -> {value, low, high, n[, tolerance]}: the value, its interval (both or neither), the number
    of samples, and how far (absolute) another machine may stray. provenance: JSON-ready facts about the run
    (preset, seeds, schedule, ...), stored beside the package versions and, where its "model" names an embedded
    one, the digest of the weights. Raises ValueError on a number that is not finite, an interval upside down, or
    an empty record.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", section):
        raise ValueError(f"a section is a plain file name such as '02_chain_of_steps', not {section!r}")
    if not numbers:
        raise ValueError(f"{section}: no numbers to record")
    facts = dict(provenance or {})
    if digest := weights_digest(facts.get("model")):
        facts["weights"] = digest
    record = {
        "section": section,
        "numbers": {name: _entry(name, numbers[name]) for name in numbers},
        "provenance": {**facts, "versions": _versions()},
    }
    target = pathlib.Path(path).expanduser() / f"{section}.json"
    write_json(target, record)
    return target


def read_numbers(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The numbers of a record, name -> {value, low, high, n[, tolerance]}; ValueError where it is not one."""
    record = read_json(pathlib.Path(path))
    try:
        return {name: _entry(name, given) for name, given in record["numbers"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record written by record_numbers") from error


def by_training(
    results: str | os.PathLike[str], kinds: Sequence[str], section: str, name: str
) -> dict[str, np.ndarray]:
    """One number of the stored runs of several kinds of model, an array (trainings,) for each, in one order of seeds.

    They lie in `results`/<kind>, <kind>_seed1, ...; a seed that a kind lacks is left out. ValueError where fewer than
    two are left.
    """
    rows = _trainings(pathlib.Path(results), kinds, section)
    values = [[numbers[name]["value"] for numbers in row] for row in rows if all(name in numbers for numbers in row)]
    if len(values) < 2:
        raise ValueError(f"{len(values)} trainings of {' and '.join(kinds)} have {name} of {section} in {results}")
    return dict(zip(kinds, np.array(values).T, strict=True))


def _trainings(root: pathlib.Path, kinds: Sequence[str], section: str) -> list[list[dict[str, dict[str, Any]]]]:
    """The numbers of each training that all kinds have: a row for each seed, in it one record for each kind."""
    seeds = ["", *sorted(path.name.removeprefix(kinds[0]) for path in root.glob(f"{kinds[0]}_seed?"))]
    paths = [[root / f"{kind}{seed}" / f"{section}.json" for kind in kinds] for seed in seeds]
    return [[read_numbers(path) for path in row] for row in paths if all(path.is_file() for path in row)]


def over_runs(results: str | os.PathLike[str], kind: str, section: str) -> dict[str, dict[str, Any]]:
    """The stored runs of one kind of model as one record: each number that all its trainings have, `over_trainings`.

    n is the number of trainings. Where the interval of every training lies in [0, 1], as that of a share does, the one
    over them is cut there. They lie as for `by_training`; ValueError where there are fewer than two.
    """
    records = [row[0] for row in _trainings(pathlib.Path(results), [kind], section)]
    if len(records) < 2:
        raise ValueError(f"{len(records)} trainings of {kind} have {section} in {results}")
    found = {}
    for name in records[0]:
        own = [record[name] for record in records if name in record]
        if len(own) == len(records):
            found[name] = number = over_trainings([one["value"] for one in own])
            if all(one["low"] is not None and 0 <= one["low"] <= one["high"] <= 1 for one in own):
                number |= dict(low=max(0.0, number["low"]), high=min(1.0, number["high"]))
    return found


def stored_numbers(path: str | os.PathLike[str], **facts: Any) -> dict[str, dict[str, Any]]:
    """`read_numbers` of a record whose provenance has these facts, such as model="cos-mini"; {} where there is none."""
    path = pathlib.Path(path)
    if not path.is_file():
        return {}
    given = read_json(path)["provenance"]
    return read_numbers(path) if all(given.get(name) == fact for name, fact in facts.items()) else {}


def check_numbers(
    path: str | os.PathLike[str],
    expected_path: str | os.PathLike[str],
    rtol: float = 1e-2,
    atol: float = 1e-3,
) -> list[str]:
    """Differences between two records beyond tolerance, one sentence each; an empty list means agreement.

    A number agrees when it differs from the expected value by no more than that one's `tolerance`, or, where it
    has none, by `atol` plus `rtol` times the expected value. A name that only one record has and a different n are
    differences too.
    """
    found, expected = read_numbers(path), read_numbers(expected_path)
    differences = [f"{name}: expected, not recorded" for name in expected if name not in found]
    differences += [f"{name}: recorded, not expected" for name in found if name not in expected]
    for name in sorted(found.keys() & expected.keys()):
        new, old = found[name], expected[name]
        allowed = old.get("tolerance", atol + rtol * abs(old["value"]))
        if abs(new["value"] - old["value"]) > allowed:
            differences.append(f"{name}: {new['value']:.6g}, expected {old['value']:.6g} within {allowed:.2g}")
        if new["n"] != old["n"]:
            differences.append(f"{name}: n = {new['n']}, expected n = {old['n']}")
    return differences


def compare(path: str | os.PathLike[str], stored: str | os.PathLike[str]) -> str:
    """One sentence, or one for each difference: does the record at `path` agree with the one stored with the book?

    Runs with other parameters (their provenance differs, versions and weights aside) are not compared.
    """
    if not pathlib.Path(stored).is_file():
        return "no numbers are stored for this page"

    def facts(record: str | os.PathLike[str]) -> dict[str, Any]:
        given = read_json(pathlib.Path(record))["provenance"]
        return {name: value for name, value in given.items() if name not in ("versions", "weights")}

    if facts(path) != facts(stored):
        return "run with other parameters than the stored numbers: not compared"
    return "\n".join(check_numbers(path, stored)) or "the numbers are those stored with the book"


def beside(numbers: Mapping[str, Mapping[str, Any]], stored: str | os.PathLike[str] | None = None) -> str:
    """Recorded numbers as a text table; `stored`, a record of `record_numbers`, stands beside them where it exists."""
    full = read_numbers(stored) if stored is not None and pathlib.Path(stored).is_file() else {}

    def text(number: Mapping[str, Any] | None) -> str:
        return "" if number is None else f"{interval_text(number)} N = {number['n']}"

    rows = [[name, text(number), text(full.get(name))] for name, number in numbers.items()]
    return text_table(["", "here", "full run"] if full else [], rows)
