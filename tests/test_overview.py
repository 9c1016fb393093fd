"""All claims on one screen: the rows, what is drawn in them, and their text."""

from __future__ import annotations

import math
import re

import pytest

from cosutils.report.claims import judge
from cosutils.report.evidence import Finding
from cosutils.report.overview import overview, overview_rows

CLAIMS = """
noise.step: {paper: Sec. 3.2, claim: Noise hurts., evidence: scores, measures: {damage: [0.25, 1.0]}, %s}
noise.again: {paper: "none, our control", claim: So does <new>., evidence: none, measures: {again: [0.1, .inf]}, %s}
""".replace("%s", "room: {}, known: no mechanism")
PAGES = {"noise": "03_noise"}


@pytest.fixture
def findings(tmp_path):
    """Function that judges numbers "task/measure" of each model."""
    (tmp_path / "claims.yaml").write_text(CLAIMS)

    def judged(**models):
        found = {}
        for model, numbers in models.items():
            given = {
                name: dict(value=(low + high) / 2, low=low, high=high, n=200) for name, (low, high) in numbers.items()
            }
            found[model] = [
                Finding(one.key, one.claim, one.paper, one.evidence, one.task, one.verdict, "full",
                        {m: (number, None, span) for m, (number, span) in one.rows.items()}, one)
                for one in judge("03_noise", given, tmp_path / "claims.yaml", tmp_path / "none.json")
            ]  # fmt: skip
        return found

    return judged


def test_a_row_holds_each_models_pooled_number_and_verdict(findings):
    found = findings(ten={"maze/damage": (0.3, 0.5)}, three={"maze/damage": (0.0, 0.1), "maze/again": (0.2, 0.3)})
    (row,) = overview_rows(found, ours=False)
    assert (row.key, row.measure, row.span) == ("noise.step", "damage", (0.25, 1.0))
    assert {model: one.verdict for model, one in row.summaries.items()} == {
        "ten": "supported",
        "three": "not supported",
    }
    (ours,) = overview_rows(found, ours=True)
    assert (
        ours.key == "noise.again" and ours.span == (0.1, math.inf) and ours.summaries["ten"].verdict == "not measured"
    )


def test_the_table_draws_and_says_them(findings):
    found = findings(ten={"maze/damage": (0.3, 0.5)}, three={"maze/damage": (0.0, 0.1), "maze/again": (0.2, 0.3)})
    table, text = overview(found, False, PAGES)
    assert text.splitlines() == ["claim | ten | three", "Noise hurts. | supported | not supported"]
    assert table.count("<circle") == 2 and '<a href="03_noise.html">Noise hurts.</a>' in table
    assert "0.40 [0.30, 0.50]" in table and "claimed 0.25 to 1<" in table and "verdict-not-supported" in table
    ours, _ = overview(found, True, PAGES)
    assert "So does &lt;new&gt;." in ours and ours.count("<circle") == 1 and "not measured" in ours
    assert "claimed ≥ 0.1<" in ours


def test_a_dot_lies_in_its_band_where_the_value_is_in_its_range(findings):
    table, _ = overview(findings(ten={"maze/damage": (0.3, 0.5)}, three={"maze/damage": (0.0, 0.1)}), False, PAGES)
    bands = [
        (float(x), float(x) + float(w))
        for x, w in re.findall(r'class="claimed" x="([\d.]+)" y="2" width="([\d.]+)"', table)
    ]
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', table)]
    inside = [low <= dot <= high for (low, high), dot in zip(bands, dots, strict=True)]
    assert inside == [True, False]
