"""How a study stands: in a few lines, and as a page of its films so far.

The page is one static HTML file beside the study's summary. It shows samples × conditions × steps, asks no other
machine for anything, and has a place for six labels: a person who looks at the films writes them into
`out`/labels.yaml, one line a run, "<key>": [Multi-Path, Memory], and the next `status` shows them. A run without a
line is Unknown.
"""

from __future__ import annotations

import html
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._files import read_yaml, write_text
from .spec import Spec
from .stored import failure, hours_left, hours_used, names, result, running, unit
from .study import Study, labels

__all__ = ["LABELS", "page", "read_labels", "status"]

LABELS = ("Unknown", "Multi-Path", "Superposition", "Memory", "Self-correction", "Perception Before Action")
SHOWN = 10  # runs that `status` names of a kind
HEAD = f"""\
# What people see in the films: one line a run, its key in quotes, as the page of the study shows it.
# Labels are {", ".join(LABELS)}.
# "0123456789abcdef0123456789abcdef": [Multi-Path, Memory]
"""
STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1a1a1a; background: #fff }
section { content-visibility: auto; contain-intrinsic-size: auto 20rem; margin-top: 2rem }
table { border-collapse: collapse } th, td { padding: .3rem .6rem; text-align: left; vertical-align: top }
tr + tr { border-top: 1px solid #ccc } video { width: 10rem; display: block; background: #eee }
code { font-size: .8rem; user-select: all } .label { background: #dde8f5; padding: 0 .4rem; border-radius: .3rem }
.failed { color: #a01010 } .film { overflow-x: auto }"""
SCRIPT = """\
// films play while they can be seen, unless the reader asks for less motion
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const seen = new IntersectionObserver((all) => all.forEach(({ target, isIntersecting }) =>
    isIntersecting ? target.play().catch(() => {}) : target.pause()));
  document.querySelectorAll("video").forEach((video) => seen.observe(video));
}"""


@dataclass(frozen=True)
class Progress:
    """Keys of a study's runs: {key: case and condition}, those that are done, {key: host, pid, since} of those that
    go on, and those that failed."""

    titles: dict[str, str]
    done: set[str]
    going: dict[str, dict[str, Any]]
    failed: set[str]

    @property
    def line(self) -> str:
        rest = len(self.titles) - len(self.done) - len(self.going) - len(self.failed)
        return (
            f"{len(self.titles)} runs, {len(self.done)} done, {len(self.going)} running, {len(self.failed)} failed, "
            f"{rest} to do"
        )


def status(study: Study) -> str:
    """What is done, running, failed and left to do, and the hours used and left, in a few lines."""
    found, now = _progress(study), time.time()
    lines = [f"{study.place.name}: {found.line}"]
    lines += _some(
        f"running: {found.titles[name]}: process {at['pid']} on {at['host']}, {(now - at['since']) / 60:.1f} min"
        for name, at in found.going.items()
    )
    lines += _some(f"failed: {found.titles[name]}: {failure(study.out, name)}" for name in sorted(found.failed))
    specs = dict(zip(study.keys, study.specs, strict=True))
    hours, source = hours_left(study, [spec for name, spec in specs.items() if name not in found.done])
    left = "left unknown" if hours is None else f"about {hours:.3g} left ({source})"
    return "\n".join([*lines, f"{unit(study)} hours: {hours_used(study):.3g} used by finished runs, {left}"])


def page(study: Study) -> Path:
    """Write index.html of the study as it stands, and return it; `out`/labels.yaml is begun where there is none."""
    found, folder = _progress(study), study.place
    notes = study.out / "labels.yaml"
    if not notes.is_file():
        write_text(notes, HEAD)
    given = read_labels(notes, names(study.out / "runs"))
    cases: dict[str, list[tuple[str, str, Spec]]] = {}
    for name, spec, label in zip(study.keys, study.specs, labels(study.specs, ["task"]), strict=True):
        cases.setdefault(_case(spec), []).append((name, label, spec))
    steps = sorted({step for spec in study.specs for step in spec.kept_steps})
    head = "".join(
        f"<th>{text}</th>" for text in ["condition", *(f"step {s}" for s in steps), "film", "found", "labels"]
    )
    parts = []
    for case, runs in cases.items():
        rows = [_row(study, found, folder, steps, given.get(name, LABELS[:1]), name, label) for name, label, _ in runs]
        table = f'<div class="film"><table><tr>{head}</tr>\n{"".join(rows)}</table></div>'
        parts.append(f"<section><h2>{html.escape(case)}</h2>\n{table}</section>\n")
    title, there = html.escape(study.name), html.escape(os.path.relpath(notes, folder))
    count = Counter(label for name in found.done for label in given.get(name, LABELS[:1]))
    told = ", ".join(f"{label} {count[label]}" for label in LABELS)
    write_text(
        folder / "index.html",
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width">\n<style>\n{STYLE}\n</style></head><body>\n'
        f"<h1>{title}</h1>\n<p>{found.line}; {time.strftime('%Y-%m-%d %H:%M')}</p>\n"
        f"<p>Labels: {told}. They are kept in <code>{there}</code>, one line a run.</p>\n"
        f"{''.join(parts)}<script>\n{SCRIPT}\n</script></body></html>\n",
    )
    return folder / "index.html"


def read_labels(path: Path, known: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{key: labels} of a file that a person edits; ValueError for an unknown label, or a run that is not in `known`."""
    known, found = set(known), {}
    given = read_yaml(path) or {}
    if not isinstance(given, Mapping):
        raise ValueError(f'{path} needs lines such as "<key of a run>": [Multi-Path]')
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{path}: no finished run {name!r}; a key stands in quotes, as the page shows it")
        found[name] = tuple(value) if isinstance(value, list) else (value,)
        for label in found[name]:
            if label not in LABELS:
                raise ValueError(f"{path}: unknown label {label!r} for {name}; labels are {', '.join(LABELS)}")
    return found


def _progress(study: Study) -> Progress:
    rows = zip(study.keys, study.specs, labels(study.specs, ["task"]), strict=True)
    titles = {name: f"{_case(spec)}, {label}" for name, spec, label in rows}
    done = names(study.out / "runs") & titles.keys()
    going = {name: at for name, at in running(study.out).items() if name in titles and name not in done}
    return Progress(titles, done, going, (names(study.out / "failed") & titles.keys()) - done - going.keys())


def _case(spec: Spec) -> str:
    return f"{spec.task} {spec.seed}" if spec.sample is None else "/".join(Path(spec.sample).parts[-3:])


def _row(
    study: Study, found: Progress, folder: Path, steps: Iterable[int], given: Iterable[str], name: str, label: str
) -> str:
    """One run as a row of its table."""
    if name in found.done:
        values = result(study.out, name)["values"]
        told = "<br>".join(f"{html.escape(what)} {value:.3f}" for what, value in sorted(values.items()))
    elif name in found.going:
        told = f"running on {html.escape(str(found.going[name]['host']))}"
    elif name in found.failed:
        told = f'<span class="failed">{html.escape(failure(study.out, name))}</span>'
    else:
        told = "to do"
    cells = [html.escape(label)]
    for ending in [*(f"step_{step:03d}.mp4" for step in steps), "mp4"]:
        film = study.out / "runs" / f"{name}.{ending}"
        link = quote(Path(os.path.relpath(film, folder)).as_posix())
        shown = f'<video src="{link}" preload="none" muted loop controls playsinline></video>'
        cells.append(shown if name in found.done and film.is_file() else "")
    marks = " ".join(f'<span class="label">{html.escape(one)}</span>' for one in given) if name in found.done else ""
    cells += [told, f"{marks}<br><code>&quot;{name}&quot;: [{html.escape(', '.join(given))}]</code>"]
    return f'<tr id="{name}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _some(lines: Iterable[str]) -> list[str]:
    every = list(lines)
    return every[:SHOWN] + [f"and {len(every) - SHOWN} more"] * (len(every) > SHOWN)
