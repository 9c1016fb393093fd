"""The claims' file is whole, and verdicts follow from intervals alone."""

from pathlib import Path

import numpy as np
import pytest

from cosutils.report.claims import judge, load_claims, verdict, verdict_text

CLAIMS = Path(__file__).resolve().parents[1] / "data" / "claims.yaml"


def number(low, high):
    return dict(value=(low + high) / 2, low=low, high=high, n=9)


def test_verdicts_follow_from_the_intervals():
    claimed = [(1.5, np.inf), (0, np.inf)]
    assert verdict([(1.6, 2), (0.1, 0.2)], claimed) == "supported"
    assert verdict([(1.4, 2), (0.1, 0.2)], claimed) == "undecided"
    assert verdict([(1.6, 2), (-0.3, -0.2)], claimed) == "not supported"


def test_claims_are_judged_by_task_and_a_missing_measure_decides_nothing():
    numbers = {
        "maze/alive_first": number(2, 3),
        "maze/alive_fall": number(1, 2),
        "shelf/alive_first": number(1, 1.2),
        "shelf/other": number(0, 1),
    }
    found = judge("01_chain_of_steps", numbers, CLAIMS)
    got = {(j.key, j.task): j.verdict for j in found}
    assert got == {
        ("chain_of_steps.several", "maze"): "supported",
        ("chain_of_steps.several", "shelf"): "not supported",
        ("chain_of_steps.pruning", "maze"): "undecided",
    }
    text = verdict_text(found)
    assert text.count("Early denoising steps") == 1 and "shelf          not supported" in text
    assert found[2].rows["alive_last"] == (None, (1.0, 1.25))
    with pytest.raises(ValueError, match="no claim .* begins with 'nothing.'"):
        judge("03_nothing", numbers, CLAIMS)


def test_a_claim_lacking_a_field_or_with_an_empty_range_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("a.b: {paper: x, claim: y, measures: {m: [0, 1]}}")
    with pytest.raises(ValueError, match="a.b: a claim has the fields"):
        load_claims(path)
    path.write_text("a.b: {paper: x, claim: y, evidence: z, measures: {m: [1, 1]}}")
    with pytest.raises(ValueError, match="range of m"):
        load_claims(path)


def test_every_claim_of_the_book_has_its_notebook():
    sections = {p.stem.partition("_")[2] for p in (CLAIMS.parents[1] / "notebooks").glob("*.ipynb")}
    claimed = {key.partition(".")[0] for key in load_claims(CLAIMS)}
    assert claimed <= sections, f"claims without a notebook: {sorted(claimed - sections)}"
