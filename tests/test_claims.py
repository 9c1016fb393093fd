"""The claims' file is whole, and verdicts follow from intervals alone."""

from pathlib import Path

import numpy as np
import pytest

from cosutils.report.claims import interval, judge, load_claims, verdict, verdict_text
from cosutils.report.results import mean_of, rate_of

CLAIMS = Path(__file__).resolve().parents[1] / "data" / "claims.yaml"


def number(low, high):
    return dict(value=(low + high) / 2, low=low, high=high, n=9)


def test_verdicts_follow_from_the_intervals():
    claimed = [(1.5, np.inf), (0, np.inf)]
    assert verdict([(1.6, 2), (0.1, 0.2)], claimed) == "supported"
    assert verdict([(1.4, 2), (0.1, 0.2)], claimed) == "undecided"
    assert verdict([(1.6, 2), (-0.3, -0.2)], claimed) == "not supported"


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_values_that_are_all_equal_decide_only_where_they_are_many(value):
    claimed = [(-1, 0.3)]
    few, many = (mean_of([value] * count) for count in (12, 200))
    assert few["low"] == few["high"] == value
    assert verdict([interval(few)], claimed) == "undecided"
    assert verdict([interval(many)], claimed) == ("supported" if value == 0 else "not supported")
    assert verdict([interval(rate_of([True] * 12))], [(0.5, 1)]) == "supported"  # a Wilson interval knows its N
    assert verdict([interval({"value": 0.1, "low": None, "high": None, "n": 200})], claimed) == "undecided"


def test_a_claim_is_decided_by_its_other_measure_where_one_does_not_vary():
    still = dict(value=0, low=0, high=0, n=12)
    numbers = {"maze/commitment": still, "maze/gain": number(-0.2, 0.01), "shelf/commitment": still}
    got = {(j.key, j.task): j.verdict for j in judge("02_chain_of_steps", numbers, CLAIMS)}
    assert got["chain_of_steps.steps", "maze"] == "not supported"
    assert got["chain_of_steps.steps", "shelf"] == "undecided"
    remarks = [j.remark for j in judge("02_chain_of_steps", numbers, CLAIMS) if j.key == "chain_of_steps.steps"]
    assert remarks == ["", "no variation in commitment; no number for gain; recorded: commitment, gain"]


def test_claims_are_judged_by_task_and_a_missing_measure_decides_nothing():
    numbers = {
        "maze/alive_first": number(2, 3),
        "maze/alive_fall": number(1, 2),
        "shelf/alive_first": number(1, 1.2),
        "shelf/other": number(0, 1),
    }
    found = judge("02_chain_of_steps", numbers, CLAIMS)
    assert {(j.key, j.task): j.verdict for j in found if j.task} == {
        ("chain_of_steps.several", "maze"): "supported",
        ("chain_of_steps.several", "shelf"): "not supported",
        ("chain_of_steps.pruning", "maze"): "undecided",
    }
    text = verdict_text(found)
    assert text.count("Early denoising steps") == 1 and "shelf          not supported" in text
    assert found[2].rows["alive_last"] == (None, (1.0, 1.25))
    assert "maze           undecided (no number for alive_last; recorded: alive_first, alive_fall, other)" in text
    with pytest.raises(ValueError, match=r"no claim .* begins with 'nothing\.'"):
        judge("03_nothing", numbers, CLAIMS)


def test_a_claim_whose_measure_was_never_recorded_is_named(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(f"a.b: {ENTRY % 'missspelt: [0, 1]'}\na.c: {ENTRY % 'm: [0, 1]'}")
    lost, kept = judge("01_a", {"maze/m": number(0.2, 0.3), "maze/k": number(0, 1)}, path)
    assert (lost.task, lost.verdict, kept.verdict) == ("", "not measured", "supported")
    assert "not measured (no number for missspelt; recorded: m, k)" in verdict_text([lost, kept])


ENTRY = "{paper: x, claim: y, evidence: z, measures: {%s}}"
BAD = {
    "{paper: x, claim: y, measures: {m: [0, 1]}}": "a.b: no field 'evidence'; a claim has the fields paper, claim, ",
    "{paper: x, claim: y, evidence: z, mesures: 1}": "a.b: unknown field 'mesures'; a claim has the fields paper, ",
    "text": "a.b: a claim has the fields paper, claim, evidence, measures, got 'text'",
    ENTRY % "": "a.b: measures are name: .low, high., got {}",
    ENTRY % "m: [1, 1]": r"a.b: the range of m is \[low, high\] with low < high, got \[1, 1\]",
    ENTRY % "m: [a, 1]": "a.b: the range of m is",
    ENTRY % "m: [0, 1, 2]": "a.b: the range of m is",
    ENTRY % "m: 3": "a.b: the range of m is",
    ENTRY % "m: [0, 1], m: [0, 2]": "line 1: the key 'm' stands there twice",
    "{x: 1}\na.b: {}": "line 2: the key 'a.b' stands there twice",
    "{": "line [12]: ",
}


@pytest.mark.parametrize("entry", BAD)
def test_a_malformed_claim_is_refused_in_one_sentence_with_the_file(tmp_path, entry):
    path = tmp_path / "claims.yaml"
    path.write_text(f"a.b: {entry}")
    with pytest.raises(ValueError, match=f"claims.yaml: {BAD[entry]}"):
        load_claims(path)


def test_a_file_without_claims_is_refused(tmp_path):
    (tmp_path / "claims.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"claims.yaml: expected a claim for each key, got \[1\]"):
        load_claims(tmp_path / "claims.yaml")


def test_every_claim_of_the_book_has_its_notebook():
    sections = {p.stem.partition("_")[2] for p in (CLAIMS.parents[1] / "notebooks").glob("*.ipynb")}
    claimed = {key.partition(".")[0] for key in load_claims(CLAIMS)}
    assert claimed <= sections, f"claims without a notebook: {sorted(claimed - sections)}"
