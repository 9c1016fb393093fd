"""The claims' file is whole, and verdicts follow from intervals alone."""

from pathlib import Path

import numpy as np
import pytest

from cosutils.report.claims import (
    VERDICTS,
    interval,
    judge,
    load_claims,
    pooled,
    separates,
    summarise,
    verdict,
    verdict_text,
)
from cosutils.report.results import mean_of, rate_of, record_numbers

CLAIMS = Path(__file__).resolve().parents[1] / "data" / "claims.yaml"


def number(low, high):
    return dict(value=(low + high) / 2, low=low, high=high, n=9)


def test_verdicts_follow_from_the_intervals():
    claimed = [(1.5, np.inf), (0, np.inf)]
    assert verdict([(1.6, 2), (0.1, 0.2)], claimed) == "supported"
    assert verdict([(1.4, 2), (0.1, 0.2)], claimed) == "undecided"
    assert verdict([(1.6, 2), (-0.3, -0.2)], claimed) == "not supported"


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_values_that_are_all_equal_decide_nothing(value):
    claimed = [(-1, 0.3)]
    for count in (12, 200):
        still = mean_of([value] * count)
        assert still["low"] == still["high"] == value
        assert verdict([interval(still)], claimed) == "undecided"
    assert verdict([interval(rate_of([True] * 12))], [(0.5, 1)]) == "supported"  # a Wilson interval knows its N
    assert verdict([interval({"value": 0.1, "low": None, "high": None, "n": 200})], claimed) == "undecided"


RULES = """
chain.several: {paper: x, claim: Several., evidence: z, measures: {alive: [1.5, .inf]}, room: {first: [0, 0.9]},
  known: {holds: [hop], fails: [guess]}}
chain.pruning: {paper: "none, our control", claim: Pruned., evidence: z,
  measures: {fall: [0.25, .inf], last: [1, 1.25]}, room: {}, known: It reads blocks.}
"""


@pytest.fixture
def rules(tmp_path):
    """A function (numbers, numbers of the known mechanisms) -> judgements by `RULES`."""
    (tmp_path / "claims.yaml").write_text(RULES)

    def judged(numbers, known=None):
        if known:
            record_numbers(tmp_path, "calibration", known)
        return judge("02_chain", numbers, tmp_path / "claims.yaml", tmp_path / "calibration.json")

    return judged


def test_a_claim_is_decided_by_its_other_measure_where_one_does_not_vary(rules):
    still = dict(value=1, low=1, high=1, n=12)
    numbers = {"maze/fall": number(-0.2, 0.01), "maze/last": still, "shelf/last": still}
    found = [one for one in rules(numbers) if one.key == "chain.pruning"]
    assert [(one.task, one.verdict) for one in found] == [("maze", "not supported"), ("shelf", "undecided")]
    assert [one.remark for one in found] == ["", "no variation in last; no number for fall"]


def test_claims_are_judged_by_task_and_a_missing_measure_decides_nothing(rules):
    numbers = {"maze/alive": number(2, 3), "maze/first": number(0, 0.1), "maze/fall": number(1, 2)}
    numbers |= {"shelf/alive": number(1, 1.2), "shelf/first": number(0, 0.1), "shelf/other": number(0, 1)}
    found = rules(numbers)
    assert {(j.key, j.task): j.verdict for j in found if j.task} == {
        ("chain.several", "maze"): "supported",
        ("chain.several", "shelf"): "not supported",
        ("chain.pruning", "maze"): "undecided",
    }
    text = verdict_text(found)
    assert text.count("Several.") == 1 and "shelf          not supported" in text
    assert found[2].rows["last"] == (None, (1, 1.25))
    assert "maze           undecided (no number for last)" in text
    with pytest.raises(ValueError, match=r"no claim .* begins with 'nothing\.'"):
        judge("03_nothing", numbers, CLAIMS)


def test_without_room_nothing_is_said_and_an_unknown_room_leaves_it_open(rules):
    for alive in (number(2, 3), number(1, 1.2)):
        full, open_ = rules({"maze/alive": alive, "maze/first": number(0.9, 1), "shelf/alive": alive})[:2]
        assert (full.verdict, full.remark) == ("no room", "first is not ≤ 0.9")
        assert full.by_ranges in ("supported", "not supported")
        assert (open_.verdict, open_.remark) == ("undecided", "no number for first")


def test_a_word_that_is_said_of_a_mechanism_of_the_other_kind_is_withheld(rules):
    model = {"maze/alive": number(2, 3), "maze/first": number(0, 0.1)}
    low = {"maze/alive": number(1, 1.2), "maze/first": number(0, 0.1)}
    fair = {"hop/maze/alive": number(2, 2.1), "guess/maze/alive": number(1, 1.1)}
    assert [rules(one, fair)[0].verdict for one in (model, low)] == ["supported", "not supported"]
    fooled = rules(model, fair | {"guess/maze/alive": number(4, 5)})[0]
    assert (fooled.verdict, fooled.by_ranges) == ("not diagnostic", "supported")
    assert fooled.remark == "the ranges say supported of guess too"
    assert rules(low)[0].verdict == "not supported"  # that word is still sound
    missed = rules(low, {"hop/maze/alive": number(1, 1.1)})[0]
    assert missed.remark == "the ranges say not supported of hop too"
    assert rules({f"shelf/{k[5:]}": v for k, v in model.items()})[0].verdict == "supported"  # not calibrated there


def test_a_measure_separates_where_no_interval_of_one_kind_meets_one_of_the_other():
    known = dict(holds=["hop"], fails=["guess", "one_pass"])
    numbers = {f"{name}/maze/m": number(low, low + 0.5) for name, low in (("hop", 2), ("guess", 1), ("one_pass", 3))}
    assert separates(known, "maze", "m", numbers) is True
    assert separates(known, "maze", "m", numbers | {"guess/maze/m": number(1, 2.1)}) is False
    assert separates(known, "shelf", "m", numbers) is None


def test_the_mean_over_tasks_holds_their_differences():
    alike = pooled([number(0.4, 0.6)] * 4)
    apart = pooled([number(v - 0.1, v + 0.1) for v in (0.1, 0.4, 0.6, 0.9)])
    assert alike["value"] == pytest.approx(0.5) and apart["value"] == pytest.approx(0.5)
    assert alike["low"] > 0.4 and apart["low"] < 0.1  # the first is surer than each, the second is not
    assert pooled([number(0.4, 0.6)])["low"] == 0.4 and pooled([]) is None
    assert pooled([number(0.4, 0.6), dict(value=1, low=None, high=None, n=9)]) is None
    assert pooled([dict(value=1, low=1, high=1, n=200), number(1, 3)])["high"] > 1


def test_a_summary_counts_cells_and_leaves_out_those_without_room(rules):
    numbers = {f"t{k}/alive": number(2 + k / 9, 3) for k in range(4)} | {
        f"t{k}/first": number(0, 0.1) for k in range(4)
    }
    numbers |= {"full/alive": number(0.9, 1), "full/first": number(1, 1.1)}
    several, pruning = summarise(rules(numbers))
    assert several.verdict == "supported" and several.numbers["alive"]["n"] == 4
    assert several.cells == dict.fromkeys(VERDICTS, 0) | {"supported": 4, "no room": 1}
    assert (pruning.verdict, pruning.ours, several.ours) == ("not measured", True, False)
    known = {f"guess/t{k}/alive": number(2, 3) for k in range(3)}
    assert summarise(rules(numbers, known))[0].verdict == "not diagnostic"
    still = {"t4/alive": dict(value=1, low=1, high=1, n=200), "t4/first": number(0, 0.1)}
    assert summarise(rules(numbers | still))[0].verdict == "undecided"  # it cannot be pooled, and says no effect


def test_a_claim_whose_measure_was_never_recorded_is_named(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(f"a.b: {ENTRY % 'missspelt: [0, 1]'}\na.c: {ENTRY % 'm: [0, 1]'}")
    lost, kept = judge("01_a", {"maze/m": number(0.2, 0.3), "maze/k": number(0, 1)}, path)
    assert (lost.task, lost.verdict, kept.verdict) == ("", "not measured", "supported")
    assert "not measured (no number for missspelt; recorded: m, k)" in verdict_text([lost, kept])


ENTRY = "{paper: x, claim: y, evidence: z, measures: {%s}, room: {}, known: none}"
BAD = {
    "{paper: x, claim: y, measures: {m: [0, 1]}}": "a.b: no field 'evidence'; a claim has the fields paper, claim, ",
    "{paper: x, claim: y, evidence: z, mesures: 1}": "a.b: unknown field 'mesures'; a claim has the fields paper, ",
    "text": "a.b: a claim has the fields paper, claim, evidence, measures, room, known, got 'text'",
    (ENTRY % "m: [0, 1]").replace("{}", "{r: 2}"): r"a.b: the range of r is \[low, high\]",
    (ENTRY % "m: [0, 1]").replace("{}", "3"): r"a.b: room holds name: \[low, high\] or is {}, got 3",
    (ENTRY % "m: [0, 1]").replace(
        "none", "{holds: [hop]}"
    ): "a.b: known is a reason, or {holds: .* of guess, one_pass,",
    (ENTRY % "m: [0, 1]").replace("none", "{holds: [hops], fails: []}"): "a.b: known is a reason, or {holds",
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
