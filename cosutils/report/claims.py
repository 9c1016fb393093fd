"""The paper's claims, each judged by ranges fixed beforehand (`data/claims.yaml`).

numbers = {"maze/alive_first": results.mean_of(values), ...}
print(verdict_text(judge("02_chain_of_steps", numbers)))
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._files import read_yaml

__all__ = [
    "CLAIMS",
    "NOT_MEASURED",
    "Judgement",
    "interval",
    "judge",
    "load_claims",
    "read_entries",
    "verdict",
    "verdict_text",
]

CLAIMS = pathlib.Path("../data/claims.yaml")  # as seen from the notebooks
NOT_MEASURED = "not measured"
FEW = 60  # of fewer equal values more than 5 % may be others: rule of three, 3 / n at 95 % (Hanley 1983, JAMA 249:1743)


@dataclass(frozen=True)
class Judgement:
    """One claim on one task. rows: measure -> (recorded number or None, claimed range).

    A claim of which no task has a measure is one judgement with the verdict "not measured" and the task "".
    remark: which of its measures were not recorded, and which left it undecided for want of variation, else "".
    """

    key: str
    claim: str
    paper: str
    evidence: str
    task: str
    verdict: str
    rows: dict[str, tuple[Mapping[str, Any] | None, tuple[float, float]]]
    remark: str = ""


def read_entries(path: pathlib.Path, fields: Iterable[str], what: str) -> dict[str, dict[str, Any]]:
    """A YAML file of entries, key -> {field: value}; ValueError where one has an unknown field or lacks one."""
    entries, fields = read_yaml(path), list(fields)
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected a {what} for each key, got {entries!r}")
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {key}: a {what} has the fields {', '.join(fields)}, got {entry!r}")
        wrong = [f"unknown field {name!r}" for name in entry if name not in fields]
        wrong += [f"no field {name!r}" for name in fields if name not in entry]
        if wrong:
            raise ValueError(f"{path}: {key}: {wrong[0]}; a {what} has the fields {', '.join(fields)}")
    return entries


def load_claims(path: str | os.PathLike[str] = CLAIMS) -> dict[str, dict[str, Any]]:
    """The claims by key; ValueError where one has wrong fields or a range is not [low, high] with low < high."""
    claims = read_entries(pathlib.Path(path), ("paper", "claim", "evidence", "measures"), "claim")
    for key, claim in claims.items():
        if not isinstance(claim["measures"], dict) or not claim["measures"]:
            raise ValueError(f"{path}: {key}: measures are name: [low, high], got {claim['measures']!r}")
        for name, span in claim["measures"].items():
            ends = [end for end in span if type(end) in (int, float)] if isinstance(span, list) else []
            if len(ends) != 2 or len(span) != 2 or not ends[0] < ends[1]:
                raise ValueError(f"{path}: {key}: the range of {name} is [low, high] with low < high, got {span!r}")
    return claims


def interval(number: Mapping[str, Any] | None) -> tuple[float, float]:
    """(low, high) of a recorded number for `verdict`: without limits where the number says too little.

    It does where it is missing, has no interval, or is the mean of fewer than `FEW` values that are all equal: a
    bootstrap of these has width 0, whatever other values there are. Rates have Wilson intervals, which are never that.
    """
    if number is None or number.get("low") is None or _still(number):
        return -math.inf, math.inf
    return number["low"], number["high"]


def _still(number: Mapping[str, Any]) -> bool:
    """Is it the mean of few values that are all equal?"""
    return number.get("low") is not None and number["low"] == number["high"] and (number["n"] or 0) < FEW


def verdict(intervals: Sequence[tuple[float, float]], claimed: Sequence[tuple[float, float]]) -> str:
    """Judge numbers by ranges fixed beforehand: intervals and claimed are (low, high), one claimed range per interval.

    "supported" where every interval lies inside its range, "not supported" where one lies wholly outside, else
    "undecided".
    """
    pairs = list(zip(intervals, claimed, strict=True))
    if any(high < start or low > stop for (low, high), (start, stop) in pairs):
        return "not supported"
    return "supported" if all(low >= start and high <= stop for (low, high), (start, stop) in pairs) else "undecided"


def judge(
    section: str, numbers: Mapping[str, Mapping[str, Any]], claims: str | os.PathLike[str] = CLAIMS
) -> list[Judgement]:
    """Judge every claim of a section on every task that has one of its measures.

    section: the notebook's name such as "03_noise"; its claims have keys "noise.*". numbers: "task/measure" ->
    {value, low, high, n}. A measure that was not recorded leaves its claim "undecided", and is named; see
    `Judgement` for a claim of which none was. ValueError for a section without claims.
    """
    prefix = section.partition("_")[2] + "."
    chosen = {key: claim for key, claim in load_claims(claims).items() if key.startswith(prefix)}
    if not chosen:
        raise ValueError(f"no claim of {claims} begins with {prefix!r}")
    tasks = list(dict.fromkeys(name.partition("/")[0] for name in numbers))
    recorded = ", ".join(dict.fromkeys(name.partition("/")[2] for name in numbers))
    found = []
    for key, claim in chosen.items():
        spans = {measure: tuple(span) for measure, span in claim["measures"].items()}
        of_task = {task: {m: numbers.get(f"{task}/{m}") for m in spans} for task in tasks}
        measured = {task: own for task, own in of_task.items() if any(own.values())}
        for task, own in (measured or {"": dict.fromkeys(spans)}).items():
            intervals = [interval(number) for number in own.values()]
            word = verdict(intervals, list(spans.values())) if measured else NOT_MEASURED
            missing = [m for m, number in own.items() if number is None]
            still = [m for m, number in own.items() if number is not None and _still(number) and word == "undecided"]
            remarks = [f"no variation in {', '.join(still)}"] if still else []
            remarks += [f"no number for {', '.join(missing)}; recorded: {recorded or 'none'}"] if missing else []
            rows = {m: (own[m], span) for m, span in spans.items()}
            texts = claim["claim"], claim["paper"], claim["evidence"]
            found.append(Judgement(key, *texts, task, word, rows, "; ".join(remarks)))
    return found


def verdict_text(judgements: Sequence[Judgement]) -> str:
    """Claims and verdicts as text without measured digits, for stored outputs."""
    lines, last = [], None
    for j in judgements:
        if j.key != last:
            lines.append(f"{j.claim}  [{j.key}]")
        last = j.key
        remark = f" ({j.remark})" if j.remark else ""
        lines.append(f"    {j.task:14s} {j.verdict}{remark}" if j.task else f"    {j.verdict}{remark}")
    return "\n".join(lines)
