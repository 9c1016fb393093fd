"""The paper's claims, each judged by ranges fixed beforehand (`data/claims.yaml`).

    numbers = {"maze/alive_first": results.mean_of(values), ...}
    judgements = judge("02_chain_of_steps", numbers)
    print(verdict_text(judgements))
    verdicts = {one.key: one.verdict for one in summarise(judgements)}

A verdict is one of `VERDICTS`:

- supported, not supported: the intervals of all measures lie inside their ranges, one lies wholly outside;
- undecided: neither, or a number that is asked for was not recorded;
- no room: a precondition of the claim (`room`) does not hold, so that the run could not have told;
- not diagnostic: the ranges say supported, and they say so of a model of known mechanism of which the claim is false
  (`known`); or they say not supported, and they say so of one of which it is true;
- not measured: none of the claim's measures was recorded.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .._files import read_yaml
from ..mini.known import MECHANISMS
from .results import read_numbers

__all__ = [
    "CALIBRATION",
    "CLAIMS",
    "NOT_MEASURED",
    "VERDICTS",
    "Calibration",
    "Judgement",
    "Summary",
    "calibrate",
    "interval",
    "is_ours",
    "judge",
    "load_claims",
    "pooled",
    "range_text",
    "read_entries",
    "separates",
    "summarise",
    "verdict",
    "verdict_text",
]

CLAIMS = pathlib.Path("../data/claims.yaml")  # as seen from the notebooks
CALIBRATION = pathlib.Path("../data/results/calibration.json")
NOT_MEASURED = "not measured"
VERDICTS = ("supported", "undecided", "not supported", "no room", "not diagnostic", NOT_MEASURED)


@dataclass(frozen=True)
class Judgement:
    """One claim on one task. rows: measure -> (recorded number or None, claimed range).

    A claim of which no task has a measure is one judgement with the verdict "not measured" and the task "".
    remark: which of its measures were not recorded, which left it undecided for want of variation, which precondition
    failed, which known mechanism the ranges mistake, else "". by_ranges: the verdict by the ranges alone.
    """

    key: str
    claim: str
    paper: str
    evidence: str
    task: str
    verdict: str
    rows: dict[str, tuple[Mapping[str, Any] | None, tuple[float, float]]]
    remark: str = ""
    by_ranges: str = ""


def is_ours(paper: str) -> bool:
    """Is a claim a control, reading or measure of ours, not the paper's? Its field `paper` says so: "none, our ..."."""
    return ", our " in paper


def read_entries(
    path: pathlib.Path, fields: Iterable[str], what: str, perhaps: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """A YAML file of entries, key -> {field: value}; ValueError where one has an unknown field or lacks one.

    perhaps: fields that an entry may lack.
    """
    entries, fields = read_yaml(path), list(fields)
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected a {what} for each key, got {entries!r}")
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {key}: a {what} has the fields {', '.join(fields)}, got {entry!r}")
        wrong = [f"unknown field {name!r}" for name in entry if name not in (*fields, *perhaps)]
        wrong += [f"no field {name!r}" for name in fields if name not in entry]
        if wrong:
            raise ValueError(f"{path}: {key}: {wrong[0]}; a {what} has the fields {', '.join(fields)}")
    return entries


def load_claims(path: str | os.PathLike[str] = CLAIMS) -> dict[str, dict[str, Any]]:
    """The claims by key; ValueError where one has wrong fields or a range is not [low, high] with low < high.

    room: ranges of the preconditions, perhaps none. known: {holds: [...], fails: [...]}, of which of `MECHANISMS` the
    claim is true and of which it is false, or a text that says why they cannot tell. of: the model, as pages name it,
    that its numbers are of, where it is not the page's own.
    """
    fields = ("paper", "claim", "evidence", "measures", "room", "known")
    claims = read_entries(pathlib.Path(path), fields, "claim", perhaps=["of"])
    for key, claim in claims.items():
        if not isinstance(claim["measures"], dict) or not claim["measures"]:
            raise ValueError(f"{path}: {key}: measures are name: [low, high], got {claim['measures']!r}")
        if not isinstance(claim["room"], dict):
            raise ValueError(f"{path}: {key}: room holds name: [low, high] or is {{}}, got {claim['room']!r}")
        for name, span in (*claim["measures"].items(), *claim["room"].items()):
            ends = [end for end in span if type(end) in (int, float)] if isinstance(span, list) else []
            if len(ends) != 2 or len(span) != 2 or not ends[0] < ends[1]:
                raise ValueError(f"{path}: {key}: the range of {name} is [low, high] with low < high, got {span!r}")
        known = claim["known"]
        if not (isinstance(known, str) and known) and not (
            isinstance(known, dict)
            and known.keys() == {"holds", "fails"}
            and all(isinstance(part, list) and set(part) <= set(MECHANISMS) for part in known.values())
        ):
            raise ValueError(
                f"{path}: {key}: known is a reason, or {{holds: [...], fails: [...]}} of {', '.join(MECHANISMS)}, "
                f"got {known!r}"
            )
    return claims


def interval(number: Mapping[str, Any] | None) -> tuple[float, float]:
    """(low, high) of a recorded number for `verdict`: without limits where the number says too little.

    It does where it is missing, has no interval, or is the mean of values that are all equal: a bootstrap of these has
    width 0, whatever other values there are. Rates have Wilson intervals, which are never that.
    """
    if number is None or number.get("low") is None or _still(number):
        return -math.inf, math.inf
    return number["low"], number["high"]


def _still(number: Mapping[str, Any]) -> bool:
    """Is it the mean of values that are all equal?"""
    return number.get("low") is not None and number["low"] == number["high"]


def verdict(intervals: Sequence[tuple[float, float]], claimed: Sequence[tuple[float, float]]) -> str:
    """Judge numbers by ranges fixed beforehand: intervals and claimed are (low, high), one claimed range per interval.

    "supported" where every interval lies inside its range, "not supported" where one lies wholly outside, else
    "undecided".
    """
    pairs = list(zip(intervals, claimed, strict=True))
    if any(high < start or low > stop for (low, high), (start, stop) in pairs):
        return "not supported"
    return "supported" if all(low >= start and high <= stop for (low, high), (start, stop) in pairs) else "undecided"


# ---------------------------------------------------------------- what the known mechanisms say of a rule
@dataclass(frozen=True)
class Calibration:
    """What a claim's ranges make of the known mechanisms on one task.

    verdicts: mechanism -> verdict by the ranges alone, of those of which the claim is true (holds) or false (fails).
    """

    holds: Mapping[str, str]
    fails: Mapping[str, str]

    @property
    def fooled(self) -> list[str]:
        """Mechanisms of which the claim is false, and which are "supported"."""
        return [name for name, word in self.fails.items() if word == "supported"]

    @property
    def missed(self) -> list[str]:
        """Mechanisms of which the claim is true, and which are "not supported"."""
        return [name for name, word in self.holds.items() if word == "not supported"]

    @property
    def diagnostic(self) -> bool:
        """Do the ranges mistake none of them?"""
        return not self.fooled and not self.missed


def calibrate(claim: Mapping[str, Any], task: str, numbers: Mapping[str, Mapping[str, Any]]) -> Calibration | None:
    """Judge the mechanisms that a claim names by its ranges on one task; None where no number of the claim's is there.

    claim: an entry of `load_claims`. numbers: "mechanism/task/measure" -> {value, low, high, n}.
    """
    if isinstance(claim["known"], str):
        return None
    found: dict[str, dict[str, str]] = {"holds": {}, "fails": {}}
    for side, names in claim["known"].items():
        for name in names:
            own = [numbers.get(f"{name}/{task}/{measure}") for measure in claim["measures"]]
            if any(own):
                spans = [(low, high) for low, high in claim["measures"].values()]
                found[side][name] = verdict([interval(number) for number in own], spans)
    return Calibration(**found) if any(found.values()) else None


def separates(
    known: Mapping[str, Sequence[str]], task: str, measure: str, numbers: Mapping[str, Mapping[str, Any]]
) -> bool | None:
    """Does a measure tell the mechanisms of which its claim is true from those of which it is false, on one task?

    It does where no interval of the former meets one of the latter. None where either kind has no number.
    """
    sides = []
    for names in (known["holds"], known["fails"]):
        own = [numbers[f"{name}/{task}/{measure}"] for name in names if f"{name}/{task}/{measure}" in numbers]
        if not own:
            return None
        sides.append([(number["low"], number["high"]) for number in own])
    return all(one[1] < other[0] or other[1] < one[0] for one in sides[0] for other in sides[1])


# ---------------------------------------------------------------- verdicts
def judge(
    section: str,
    numbers: Mapping[str, Mapping[str, Any]],
    claims: str | os.PathLike[str] | Mapping[str, Any] = CLAIMS,
    calibration: str | os.PathLike[str] = CALIBRATION,
) -> list[Judgement]:
    """Judge every claim of a section on every task that has one of its measures.

    section: the notebook's name such as "03_noise"; its claims have keys "noise.*". numbers: "task/measure" ->
    {value, low, high, n}. claims: their file, or what `load_claims` read from it. calibration: record of the known
    mechanisms; where there is no such file, or it lacks the task, verdicts are those of the ranges and preconditions
    alone. A measure or precondition that was not recorded leaves its claim "undecided", and is named; see `Judgement`
    for a claim of which no measure was. ValueError for a section without claims.
    """
    prefix = section.partition("_")[2] + "."
    listed = claims if isinstance(claims, Mapping) else load_claims(claims)
    chosen = {key: claim for key, claim in listed.items() if key.startswith(prefix)}
    if not chosen:
        raise ValueError(f"no claim of {'those given' if listed is claims else claims} begins with {prefix!r}")
    known = read_numbers(calibration) if pathlib.Path(calibration).is_file() else {}
    tasks = list(dict.fromkeys(name.partition("/")[0] for name in numbers))
    found = []
    for key, claim in chosen.items():
        measured = [task for task in tasks if any(f"{task}/{measure}" in numbers for measure in claim["measures"])]
        found += [_judged(key, claim, task, numbers, known) for task in measured or [""]]
    return found


def _judged(
    key: str,
    claim: Mapping[str, Any],
    task: str,
    numbers: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
) -> Judgement:
    """One claim on one task, "" where no task has a measure of it."""
    rows = {measure: (numbers.get(f"{task}/{measure}"), tuple(span)) for measure, span in claim["measures"].items()}
    room = {name: (numbers.get(f"{task}/{name}"), span) for name, span in claim["room"].items()} if task else {}
    word = by_ranges = NOT_MEASURED
    remarks = []
    if task:
        intervals = [interval(number) for number, _ in rows.values()]
        word = by_ranges = verdict(intervals, [span for _, span in rows.values()])
        still = [m for m, (number, _) in rows.items() if number is not None and _still(number)]
        if still and word == "undecided":
            remarks.append(f"no variation in {', '.join(still)}")
    missing = [name for name, (number, _) in (rows | room).items() if number is None]
    if missing:
        recorded = ", ".join(dict.fromkeys(name.partition("/")[2] for name in numbers)) or "none"
        remarks.append(f"no number for {', '.join(missing)}" + f"; recorded: {recorded}" * (not task))
    if any(number is None for number, _ in room.values()):
        word = "undecided"
    outside = [name for name, (number, span) in room.items() if number and not span[0] <= number["value"] <= span[1]]
    if outside:
        word = "no room"
        remarks = [f"{name} is not {_wanted(*claim['room'][name])}" for name in outside]
    test = calibrate(claim, task, known)
    mistaken = [] if test is None else {"supported": test.fooled, "not supported": test.missed}.get(word, [])
    if mistaken:
        remarks.append(f"the ranges say {word} of {', '.join(mistaken)} too")
        word = "not diagnostic"
    texts = claim["claim"], claim["paper"], claim["evidence"]
    return Judgement(key, *texts, task, word, rows, "; ".join(remarks), by_ranges)


def range_text(span: Sequence[float]) -> str:
    """A claimed range in words: "≥ 0.1", "≤ 0.15" or "0.25 to 1"."""
    low, high = (f"{end:g}" for end in span)
    return f"≥ {low}" if span[1] == math.inf else f"≤ {high}" if span[0] == -math.inf else f"{low} to {high}"


def _wanted(low: float, high: float) -> str:
    """A precondition in words. Those from 0 on are of shares, which cannot be less."""
    text = range_text((-math.inf if low == 0 else low, high))
    return f"in {text}" if " to " in text else text


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


# ---------------------------------------------------------------- one summary for each claim
@dataclass(frozen=True)
class Summary:
    """One claim over all its judgements (tasks, models).

    numbers: measure -> its `pooled` number over the judgements with room, or None; cells: verdict -> how many
    judgements have it.
    """

    key: str
    claim: str
    paper: str
    ours: bool
    verdict: str
    numbers: Mapping[str, Mapping[str, Any] | None]
    cells: Mapping[str, int]


def pooled(numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean of one measure over tasks and models with a 95 % interval that holds their differences, n = how many.

    A random-effects mean: variances from the single intervals, variance between them by DerSimonian and Laird, interval
    by Hartung and Knapp with a t distribution (IntHout et al. 2014, BMC Med. Res. Methodol. 14:25). One number is
    returned with its own interval; None for none, or where one has no interval.
    """
    if not numbers or any(number.get("low") is None for number in numbers):
        return None
    values = np.array([number["value"] for number in numbers], float)
    if len(values) == 1:
        return dict(value=values[0], low=numbers[0]["low"], high=numbers[0]["high"], n=1)
    spread = np.array([number["high"] - number["low"] for number in numbers]) / (2 * stats.norm.ppf(0.975))
    within = np.maximum(spread, 1e-3) ** 2  # an interval without width is not certainty
    weights = 1 / within
    fixed = (weights * values).sum() / weights.sum()
    excess = (weights * (values - fixed) ** 2).sum() - (len(values) - 1)
    between = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (within + between)
    mean = (weights * values).sum() / weights.sum()
    error = np.sqrt((weights * (values - mean) ** 2).sum() / (len(values) - 1) / weights.sum())
    half = stats.t.ppf(0.975, len(values) - 1) * max(error, 1 / np.sqrt(weights.sum()))
    return dict(value=float(mean), low=float(mean - half), high=float(mean + half), n=len(values))


def summarise(judgements: Sequence[Judgement]) -> list[Summary]:
    """One summary for each claim over tasks and models, in the order in which claims come.

    Judgements without room or without a measure do not count; where none is left, the verdict is theirs. Otherwise the
    `pooled` numbers are judged by the claim's ranges. The result is "not diagnostic" where most of the judgements that
    say the same by their ranges are, and "undecided" where a number was left out because its values are all equal: it
    has no interval to be pooled by.
    """
    found = []
    for key in dict.fromkeys(one.key for one in judgements):
        own = [one for one in judgements if one.key == key]
        cells = {word: sum(one.verdict == word for one in own) for word in VERDICTS}
        counted = [one for one in own if one.verdict not in ("no room", NOT_MEASURED)]
        rows: dict[str, dict[str, Any] | None] = dict.fromkeys(own[0].rows)
        word = "no room" if cells["no room"] else NOT_MEASURED
        if counted:
            still = False
            for measure in rows:
                given = [number for one in counted if (number := one.rows[measure][0]) is not None]
                moving = [number for number in given if not _still(number)]
                rows[measure], still = pooled(moving), still or len(moving) < len(given)
            spans = [span for _, span in own[0].rows.values()]
            word = verdict([interval(number) for number in rows.values()], spans)
            word = "undecided" if still else word
            same = [one for one in counted if one.by_ranges == word != "undecided"]
            if 2 * sum(one.verdict == "not diagnostic" for one in same) > len(same):
                word = "not diagnostic"
            elif 2 * sum(one.verdict == "undecided" for one in same) > len(same):
                word = "undecided"
        first = own[0]
        found.append(Summary(key, first.claim, first.paper, is_ours(first.paper), word, rows, cells))
    return found
