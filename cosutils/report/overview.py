"""All claims on one screen: for each claim and model its pooled number against the claimed range, and the verdict.

overview({"ten blocks": gather("../data/results/full"), "three blocks": gather("../data/results/shallow")}, ours=False)
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .claims import NOT_MEASURED, Summary, range_text, summarise
from .evidence import SIGNS, Finding
from .results import interval_text

__all__ = ["Row", "chip", "overview", "overview_rows"]

_WIDTH, _HEIGHT, _PAD = 150, 26, 6


@dataclass(frozen=True)
class Row:
    """One claim. measure: the one that is drawn, the first that any model has a number for ("" where none has).

    span: its claimed range; summaries: model -> the claim over all tasks that the model was run on.
    """

    key: str
    claim: str
    paper: str
    measure: str
    span: tuple[float, float]
    summaries: Mapping[str, Summary]


def overview_rows(findings: Mapping[str, Sequence[Finding]], ours: bool) -> list[Row]:
    """One row for each claim of the paper, or of ours, that any model was measured for, in the order of the claims.

    findings: model -> its judged claims, as `evidence.gather` returns them.
    """
    judged = {
        model: {one.key: one for one in summarise([f.judgement for f in found if f.judgement is not None])}
        for model, found in findings.items()
    }
    rows = []
    for first in {f.key: f for found in findings.values() for f in found if f.ours == ours}.values():
        summaries = {model: found[first.key] for model, found in judged.items() if first.key in found}
        numbers = {m: any(one.numbers.get(m) is not None for one in summaries.values()) for m in first.rows}
        measure = next((m for m, there in numbers.items() if there), "")
        if summaries:
            span = first.rows[measure][2] if measure else (0.0, 1.0)
            rows.append(Row(first.key, first.claim, first.paper, measure, span, summaries))
    return rows


def chip(word: str) -> str:
    """A verdict as HTML: its sign and its word, in its colour."""
    text = f"{SIGNS[word]} {word}" if word in SIGNS else word
    return f'<span class="verdict verdict-{word.replace(" ", "-")}">{html.escape(text)}</span>'


def _scale(row: Row) -> tuple[float, float]:
    """The ends of the axis that all models of a row share: zero, the values and the ends of the range, and room.

    The bounds of a share, 1 and -1, do not count as ends. What reaches farther, a range or an interval, is cut off.
    """
    numbers = [number for one in row.summaries.values() if (number := one.numbers.get(row.measure)) is not None]
    ends = [0.0, *(end for end in row.span if math.isfinite(end) and abs(end) != 1.0)]
    ends += [number["value"] for number in numbers]
    margin = 0.35 * (max(ends) - min(ends) or 1.0)
    return min(ends) - margin, max(ends) + margin


def _number(number: Mapping[str, Any]) -> str:
    """A mean over tasks with its interval. Over two tasks the interval is so wide that it says nothing."""
    return f"{number['value']:.2f}, mean of two tasks" if number["n"] == 2 else interval_text(number)


def _plot(number: Mapping[str, Any], row: Row) -> str:
    """A dot with its interval (none over two tasks), above the claimed range as a band; the thin line is zero."""
    low, high = _scale(row)

    def x(value: float) -> str:
        inside = min(max(value, low), high)
        return f"{_PAD + (inside - low) / (high - low) * (_WIDTH - 2 * _PAD):.1f}"

    middle = _HEIGHT / 2
    start, stop = float(x(row.span[0])), float(x(row.span[1]))
    said = html.escape(f"{row.measure} {_number(number)}, claimed {range_text(row.span)}")
    ends = "" if number["n"] == 2 else f'x1="{x(number["low"])}" x2="{x(number["high"])}" y1="{middle}" y2="{middle}"'
    interval = ends and f'<line class="interval" {ends}/>'
    return (
        f'<svg class="overview-plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f'<rect class="claimed" x="{start}" y="2" width="{max(stop - start, 1):.1f}" height="{_HEIGHT - 4}"/>'
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="2" y2="{_HEIGHT - 2}"/>'
        f"{interval}"
        f'<circle cx="{x(number["value"])}" cy="{middle}" r="4.5"/></svg>'
    )


def _cell(row: Row, model: str) -> str:
    one = row.summaries.get(model)
    if one is None:
        return f'<td data-model="{model}">{chip(NOT_MEASURED)}</td>'
    tasks = " ".join(f"{SIGNS[word]}&nbsp;{count}" for word, count in one.cells.items() if count and word in SIGNS)
    said = f'{chip(one.verdict)} <span class="overview-tasks">{tasks}</span>'
    if (number := one.numbers.get(row.measure)) is None:
        return f'<td data-model="{model}">{said}</td>'
    said += f'{_plot(number, row)}<span class="overview-number">{_number(number)}</span>'
    return f'<td data-model="{model}">{said}</td>'


def overview(findings: Mapping[str, Sequence[Finding]], ours: bool, pages: Mapping[str, str]) -> tuple[str, str]:
    """The table of `overview_rows` as HTML, and the same as text without measured digits.

    pages: section of a claim -> the notebook's name, for the link.
    """
    rows = overview_rows(findings, ours)
    head = "".join(f'<th scope="col">{html.escape(model)}</th>' for model in findings)
    lines, plain = [], ["claim | " + " | ".join(findings)]
    for row in rows:
        page = pages[row.key.partition(".")[0]]
        cells = "".join(_cell(row, model) for model in findings)
        claimed = f' <span class="overview-claimed">claimed {html.escape(range_text(row.span))}</span>'
        measure = f' <span class="overview-measure">{html.escape(row.measure)}</span>{claimed}' if row.measure else ""
        lines.append(
            f'<tr><th scope="row"><a href="{page}.html">{html.escape(row.claim)}</a> '
            f'<span class="overview-paper">{html.escape(row.paper)}</span>{measure}</th>{cells}</tr>'
        )
        words = [row.summaries[model].verdict if model in row.summaries else NOT_MEASURED for model in findings]
        plain.append(f"{row.claim} | " + " | ".join(words))
    table = f'<table class="overview"><thead><tr><th scope="col">claim</th>{head}</tr></thead><tbody>'
    return f"{table}{''.join(lines)}</tbody></table>", "\n".join(plain)
