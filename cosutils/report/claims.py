"""The paper's claims, each judged by ranges fixed beforehand (`data/claims.yaml`).

numbers = {"maze/alive_first": results.measure(values), ...}
print(table(judge("01_chain_of_steps", numbers)))
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

__all__ = ["CLAIMS", "Judgement", "judge", "load_claims", "table", "verdict"]

CLAIMS = pathlib.Path("../data/claims.yaml")  # as seen from the notebooks
FIELDS = {"paper", "claim", "evidence", "measures"}


@dataclass(frozen=True)
class Judgement:
    """One claim on one task. rows: measure -> (recorded number or None, claimed range)."""

    key: str
    claim: str
    paper: str
    evidence: str
    task: str
    verdict: str
    rows: dict[str, tuple[Mapping[str, Any] | None, tuple[float, float]]]


def load_claims(path: str | os.PathLike[str] = CLAIMS) -> dict[str, dict[str, Any]]:
    """The claims by key; ValueError where one lacks a field or a range is not [low, high] with low < high."""
    claims = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
    for key, claim in claims.items():
        if set(claim) != FIELDS:
            raise ValueError(f"{key}: a claim has the fields {sorted(FIELDS)}, got {sorted(claim)}")
        for name, span in claim["measures"].items():
            if len(span) != 2 or not span[0] < span[1]:
                raise ValueError(f"{key}: the range of {name} is [low, high] with low < high, got {span!r}")
    return claims


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

    section: the notebook's name such as "02_noise"; its claims have keys "noise.*". numbers: "task/measure" ->
    {value, low, high, n}. A measure that was not recorded leaves its claim "undecided".
    """
    prefix = section.partition("_")[2] + "."
    chosen = {key: claim for key, claim in load_claims(claims).items() if key.startswith(prefix)}
    if not chosen:
        raise ValueError(f"no claim of {claims} begins with {prefix!r}")
    tasks = list(dict.fromkeys(name.partition("/")[0] for name in numbers))
    found = []
    for key, claim in chosen.items():
        for task in tasks:
            rows = {m: (numbers.get(f"{task}/{m}"), tuple(span)) for m, span in claim["measures"].items()}
            if not any(number for number, _ in rows.values()):
                continue
            known = [(number or {"low": -np.inf, "high": np.inf}, span) for number, span in rows.values()]
            word = verdict([(number["low"], number["high"]) for number, _ in known], [span for _, span in known])
            found.append(Judgement(key, claim["claim"], claim["paper"], claim["evidence"], task, word, rows))
    return found


def table(judgements: Sequence[Judgement]) -> str:
    """Claims and verdicts as text without measured digits, for stored outputs."""
    lines, last = [], None
    for j in judgements:
        if j.key != last:
            lines.append(f"{j.claim}  [{j.key}]")
        last = j.key
        lines.append(f"    {j.task:14s} {j.verdict}")
    return "\n".join(lines)
