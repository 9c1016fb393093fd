"""What was learned, in words: a sentence for each main claim, written from its verdicts and numbers.

findings = evidence.gather("../data/results/full", "../data/results")
display(Markdown(lessons.told(findings, lessons.load_lessons())))
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from .claims import read_entries
from .evidence import SIGNS, Finding, number_text

__all__ = ["LESSONS", "Lesson", "load_lessons", "told"]

_SAID = {"no room": "without room to tell"}  # where a verdict does not read as an adjective


class Lesson(NamedTuple):
    """What is said of claim `key` where all judged tasks support it (held) or refuse it (failed), and of a measure."""

    key: str
    title: str
    held: str
    failed: str
    measure: str
    words: str


LESSONS = pathlib.Path("../data/lessons.yaml")  # as seen from the notebooks


def load_lessons(path: str | os.PathLike[str] = LESSONS) -> list[Lesson]:
    """The lessons of a file, key -> the other fields; ValueError where one lacks a field or has an unknown one."""
    fields = Lesson._fields[1:]
    return [Lesson(key, **lesson) for key, lesson in read_entries(pathlib.Path(path), fields, "lesson").items()]


def _listed(findings: Sequence[Finding]) -> str:
    return ", ".join(f.task.replace("_", " ") for f in findings)


def _spread(findings: Sequence[Finding], measure: str) -> str:
    """The measure of the given findings: all where they are three or fewer, else the lowest and the highest."""
    found = []
    for finding in findings:
        full, default, _ = finding.rows[measure]
        if (number := full if finding.run == "full" else default) is not None:
            found.append((finding, number))
    texts = []
    for finding, number in sorted(found, key=lambda pair: pair[1]["value"]):
        task = finding.task.replace("_", " ") + ", default run" * (finding.run == "default")
        texts.append(f"{number_text(number)} ({task})")
    return "; ".join(texts) if len(texts) <= 3 else f"from {texts[0]} to {texts[-1]}"


def told(findings: Sequence[Finding], lessons: Sequence[Lesson]) -> str:
    """A Markdown list: a sentence for each claim in `lessons`, and the numbers that it rests on.

    The sentence follows from the verdicts: `held` where all judged tasks support the claim, `failed` where all refuse
    it, else which tasks do what. Claims that were not measured are named at the end. Raises ValueError for a
    claim that is not among the findings.
    """
    lines, silent = [], []
    for lesson in lessons:
        judged = [f for f in findings if f.key == lesson.key]
        if not judged:
            raise ValueError(f"no claim {lesson.key!r} among the findings")
        judged = [f for f in judged if f.task]
        if not judged:
            silent.append(lesson.title)
            continue
        parts = {word: [f for f in judged if f.verdict == word] for word in SIGNS}
        agreed = f"(Tasks: {len(judged)} of {len(judged)}.)"
        if len(parts["supported"]) == len(judged):
            said = f"{lesson.held} {agreed}"
        elif len(parts["not supported"]) == len(judged):
            said = f"{lesson.failed} {agreed}"
        else:
            shares = [f"{_SAID.get(word, word)} on {_listed(part)}" for word, part in parts.items() if part]
            said = f"“{judged[0].claim.rstrip('.')}” is {'; '.join(shares)}."
        numbers = _spread(judged, lesson.measure) or "not measured"
        lines.append(f"- **{lesson.title}.** {said} {lesson.words}: {numbers}.")
    if silent:
        lines.append(f"- *Not measured*: {', '.join(silent)}.")
    return "\n".join(lines)
