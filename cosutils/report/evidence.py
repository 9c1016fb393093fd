"""Every claim of the paper beside the numbers that were recorded for it, from two folders of records.

>>> findings = gather(data / "results" / "full", data / "results", data / "claims.yaml")
>>> head, groups = section_table(findings, "noise")  # as `figures.show_table` takes them
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from .._files import read_json
from ..mini.tasks import NAMES
from .claims import (
    CALIBRATION,
    CLAIMS,
    NOT_MEASURED,
    Judgement,
    interval,
    is_ours,
    judge,
    load_claims,
    range_text,
    verdict,
)
from .results import interval_text, read_numbers

__all__ = [
    "SIGNS",
    "Finding",
    "by_model",
    "gather",
    "number_text",
    "record_of",
    "section_table",
    "strip",
    "verdict_map",
]

SIGNS = {"supported": "✓", "undecided": "?", "not supported": "✗", "no room": "○", "not diagnostic": "≈"}
_COLOURS = ("#9ecae1", "#eeeeee", "#fdae6b", "#dadaeb", "#fff2ae")  # black text reads on all of them

Rows = dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None, tuple[float, float]]]


@dataclass(frozen=True)
class Finding:
    """One claim on one task. run: "full" or "default", the record it is judged by ("" where nothing was measured).

    rows: measure -> (number of the full run, number of the default run, claimed range), numbers as in `read_numbers`
    or None. judgement: what it was judged by, as `claims.summarise` takes it.
    """

    key: str
    claim: str
    paper: str
    evidence: str
    task: str
    verdict: str
    run: str
    rows: Rows
    judgement: Judgement | None = None

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]

    @property
    def ours(self) -> bool:
        """Is it a control, reading or measure of ours, not a claim of the paper? See `claims.is_ours`."""
        return is_ours(self.paper)


def record_of(folder: str | os.PathLike[str], section: str) -> pathlib.Path | None:
    """The record NN_section.json of a folder, or None; ValueError where there are several."""
    found = sorted(pathlib.Path(folder).glob(f"[0-9][0-9]_{section}.json"))
    if len(found) > 1:
        raise ValueError(f"{len(found)} records of {section} in {folder}: {', '.join(p.name for p in found)}")
    return found[0] if found else None


def gather(
    full: str | os.PathLike[str],
    default: str | os.PathLike[str] | None = None,
    claims: str | os.PathLike[str] = CLAIMS,
    model: str | None = None,
    calibration: str | os.PathLike[str] = CALIBRATION,
) -> list[Finding]:
    """Judge every claim on every task: by the record in folder `full` where it has the task, else by that in `default`.

    model: records that say they are of another one are left out; None takes all. calibration: as in `claims.judge`.
    Claims come in the order of the claims' file, tasks in the order in which they are listed in `tasks.NAMES`. A claim
    that neither folder has a number for is one finding with the verdict "not measured" and the task "".
    """
    listed = load_claims(claims)
    judged: dict[tuple[str, str], dict[str, Judgement]] = {}
    for section in dict.fromkeys(key.partition(".")[0] for key in listed):
        for run, folder in (("full", full), ("default", default)):
            path = None if folder is None else record_of(folder, section)
            if path is not None and model in (None, read_json(path)["provenance"].get("model", model)):
                for one in judge(path.stem, read_numbers(path), listed, calibration):
                    if one.task:
                        judged.setdefault((one.key, one.task), {})[run] = one
    findings = []
    for key, claim in listed.items():
        texts = claim["claim"], claim["paper"], claim["evidence"]
        tasks = [task for name, task in judged if name == key]
        tasks.sort(key=lambda task: NAMES.index(task) if task in NAMES else len(NAMES))
        for task in tasks:
            runs = judged[key, task]
            run = "full" if "full" in runs else "default"
            rows: Rows = {}
            for measure, (low, high) in claim["measures"].items():
                numbers = [runs[r].rows[measure][0] if r in runs else None for r in ("full", "default")]
                rows[measure] = (numbers[0], numbers[1], (low, high))
            findings.append(Finding(key, *texts, task, runs[run].verdict, run, rows, runs[run]))
        if not tasks:
            rows = {measure: (None, None, (low, high)) for measure, (low, high) in claim["measures"].items()}
            findings.append(Finding(key, *texts, "", NOT_MEASURED, "", rows))
    return findings


def by_model(
    found: Mapping[str, Sequence[Finding]], claims: str | os.PathLike[str] = CLAIMS
) -> dict[str, list[Finding]]:
    """`found`, model -> what `gather` returns, each claim at the model that its numbers are of (`of` in its entry)."""
    listed = load_claims(claims)
    moved = {key: claim["of"] for key, claim in listed.items() if "of" in claim}
    told = {key: [f for findings in found.values() for f in findings if f.key == key and f.task] for key in moved}
    places = dict.fromkeys([*found, *(model for key, model in moved.items() if told[key])])
    parted = {}
    for model in places:
        own = [f for f in found.get(model, ()) if f.key not in moved]
        own += [f for key, findings in told.items() if moved[key] == model for f in findings]
        parted[model] = sorted(own, key=lambda f: list(listed).index(f.key))
    return parted


def number_text(number: Mapping[str, Any] | None) -> str:
    """A recorded number as "0.31 [0.30, 0.32], N = 200"; a dash for None."""
    return "–" if number is None else f"{interval_text(number)}, N = {number['n']}"


def section_table(findings: Sequence[Finding], section: str) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Head and groups of rows, one group for each claim of `section`, as `figures.show_table` takes them.

    Columns: task, verdict, measure, claimed range, full run, default run. A verdict that rests on the default run, for
    want of a full one, says so. Raises ValueError for a section without claims.
    """
    groups: dict[str, list[list[str]]] = {}
    for finding in (f for f in findings if f.section == section):
        title = f"{finding.claim} Paper: {finding.paper}; its evidence: {finding.evidence}."
        sign = f"{SIGNS[finding.verdict]} {finding.verdict}" if finding.run else finding.verdict
        word = f"{sign} (default run)" if finding.run == "default" else sign
        for measure, (full, default, span) in finding.rows.items():
            row = [finding.task or "–", word, measure, range_text(span), number_text(full), number_text(default)]
            groups.setdefault(title, []).append(row)
    if not groups:
        raise ValueError(f"no claim of section {section!r} among the findings")
    return ["task", "verdict", "measure", "claimed", "full run", "default run"], groups


def verdict_map(findings: Sequence[Finding]) -> Figure:
    """All verdicts as one picture: rows are claims, columns are tasks, the last one counts "supported of judged".

    Each cell holds a sign besides its colour; an empty cell was not measured, a sign in brackets rests on the default
    run. Claims that are not the paper's but controls of ours are marked so.
    """
    keys = list(dict.fromkeys(f.key for f in findings))
    present = {f.task for f in findings if f.task}
    tasks = [name for name in NAMES if name in present] + sorted(present - set(NAMES))
    codes = np.full((len(keys), max(1, len(tasks))), np.nan)
    fig, ax = plt.subplots(figsize=(4.0 + 0.5 * len(tasks), 1.4 + 0.27 * len(keys)), layout="constrained")
    for f in findings:
        if f.task:
            row, column = keys.index(f.key), tasks.index(f.task)
            codes[row, column] = list(SIGNS).index(f.verdict)
            sign = SIGNS[f.verdict] if f.run == "full" else f"({SIGNS[f.verdict]})"
            ax.text(column, row, sign, ha="center", va="center", fontsize=10)
    for row, key in enumerate(keys):
        verdicts = [f.verdict for f in findings if f.key == key and f.task]
        text = f"{verdicts.count('supported')} of {len(verdicts)}" if verdicts else NOT_MEASURED
        ax.text(len(tasks) - 0.35, row, text, ha="left", va="center", fontsize=9)
    ax.imshow(codes, cmap=ListedColormap(_COLOURS), vmin=-0.5, vmax=len(SIGNS) - 0.5, aspect="auto")
    ax.set_xticks(range(len(tasks)), [task.replace("_", " ") for task in tasks], rotation=45, ha="left", fontsize=9)
    ours = {f.key for f in findings if f.ours}
    names = [key.replace("_", " ").replace(".", ": ") + " (ours)" * (key in ours) for key in keys]
    ax.set_yticks(range(len(keys)), names, fontsize=9)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.set_xticks(np.arange(len(tasks) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(keys) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="minor", length=0)
    sections = [key.partition(".")[0] for key in keys]
    for row in range(1, len(keys)):
        if sections[row] != sections[row - 1]:
            ax.axhline(row - 0.5, color="0.4", lw=0.8)
    ax.spines[:].set_visible(False)
    return fig


def strip(ax: Axes, numbers: Mapping[str, Mapping[str, Any]], span: tuple[float, float], end: str = "low") -> None:
    """How the verdict on each of several numbers depends on one end of its claimed range, a row of colours for each.

    numbers: label -> {value, low, high, n}; span: the claimed range, whose `end` ("low" or "high") is moved along the
    x axis, while the other stays; a line marks the one that is claimed. A long stretch of one colour around the line is
    a verdict that does not hang on the range. ValueError for another `end`, and for one that is not finite.
    """
    if end not in ("low", "high"):
        raise ValueError(f"the end of a range that moves is 'low' or 'high', got {end!r}")
    moving = span[end == "high"]
    if not np.isfinite(moving):
        raise ValueError(f"the {end} end of {span} is not finite: move the other one")
    known = {label: interval(number) for label, number in numbers.items()}
    finite = [edge for ends in known.values() for edge in ends if np.isfinite(edge)]
    lowest, highest = min([moving, *finite]), max([moving, *finite])
    room = 0.15 * (highest - lowest) or 1.0
    limits = lowest - room, highest + room
    for row, ends in enumerate(known.values()):
        edges = sorted({*limits, *(edge for edge in ends if limits[0] < edge < limits[1])})
        for left, right in itertools.pairwise(edges):
            middle = (left + right) / 2
            word = verdict([ends], [(middle, span[1]) if end == "low" else (span[0], middle)])
            ax.barh(row, right - left, left=left, color=_COLOURS[list(SIGNS).index(word)], height=0.7)
            ax.text(middle, row, SIGNS[word], ha="center", va="center", fontsize=9)
    ax.axvline(moving, color="black", lw=1.2, ls="--")
    ax.set_yticks(range(len(known)), list(known))
    ax.set(xlim=limits, ylim=(len(known) - 0.5, -0.5), xlabel=f"{end} end of the claimed range")
