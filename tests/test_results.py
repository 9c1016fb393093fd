"""Recorded numbers: whole files, checked entries, differences named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cosutils.metrics import over_trainings
from cosutils.report import results
from cosutils.report.results import (
    beside,
    by_training,
    check_numbers,
    compare,
    interval_text,
    mean_of,
    over_runs,
    rate_gap,
    rate_of,
    record_numbers,
    stored_numbers,
    text_table,
)

ROOT = Path(__file__).resolve().parents[1]

GOOD = {
    "solved": {"value": 0.9, "low": 0.85, "high": 0.94, "n": 200},
    "steps": {"value": 7.0, "low": None, "high": None, "n": 50},
}


def test_record_is_whole_and_carries_its_provenance(tmp_path):
    path = record_numbers(tmp_path, "01_maze", GOOD, {"preset": "mini", "seeds": [0, 1]})
    record = json.loads(path.read_text())
    assert path.name == "01_maze.json" and [p.name for p in tmp_path.iterdir()] == ["01_maze.json"]
    assert record["numbers"] == GOOD
    assert record["provenance"]["preset"] == "mini"
    assert record["provenance"]["versions"]["torch"].startswith("2.")


def test_recording_twice_gives_the_same_bytes(tmp_path):
    first = record_numbers(tmp_path, "a", GOOD).read_bytes()
    assert record_numbers(tmp_path, "a", GOOD).read_bytes() == first


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"value": float("nan"), "low": None, "high": None, "n": 1}, "finite"),
        ({"low": 0, "high": 1, "n": 1}, "finite"),
        ({"value": 1, "low": 2, "high": 1, "n": 1}, "low <= high"),
        ({"value": 1, "low": 2, "high": None, "n": 1}, "low <= high"),
        ({"value": 1, "low": None, "high": None, "n": 0}, "n counts samples"),
        ({"value": 1, "low": None, "high": None, "n": 1.5}, "n counts samples"),
        ({"value": 1, "tolerance": -1}, "tolerance"),
        ({"value": 1, "mean": 1}, "unknown field 'mean'"),
    ],
)
def test_a_bad_number_is_refused_and_leaves_the_old_file(tmp_path, entry, words):
    before = record_numbers(tmp_path, "a", GOOD).read_bytes()
    with pytest.raises(ValueError, match=words):
        record_numbers(tmp_path, "a", GOOD | {"bad": entry})
    assert (tmp_path / "a.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_provenance_that_is_not_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        record_numbers(tmp_path / "new", "a", GOOD, {"set": {1}})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("section", ["", "../a", "a/b", ".hidden"])
def test_section_is_a_plain_name(tmp_path, section):
    with pytest.raises(ValueError, match="plain file name"):
        record_numbers(tmp_path, section, GOOD)


def test_empty_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no numbers"):
        record_numbers(tmp_path, "a", {})


def changed(tmp_path, **fields):
    old = record_numbers(tmp_path / "old", "a", GOOD)
    new = record_numbers(tmp_path / "new", "a", {**GOOD, "solved": GOOD["solved"] | fields})
    return check_numbers(new, old)


def test_agreement_is_an_empty_list(tmp_path):
    assert changed(tmp_path) == []
    assert changed(tmp_path, value=0.905) == []


def test_a_number_that_moved_is_named(tmp_path):
    assert changed(tmp_path, value=0.95) == ["solved: 0.95, expected 0.9 within 0.01"]
    assert changed(tmp_path, n=100) == ["solved: n = 100, expected n = 200"]


def test_the_expected_tolerance_wins(tmp_path):
    wide = {"a": {"value": 1.0, "n": 1, "tolerance": 0.5}}
    old = record_numbers(tmp_path / "old", "x", wide)
    new = record_numbers(tmp_path / "new", "x", {"a": {"value": 1.4, "n": 1}})
    assert check_numbers(new, old) == []
    assert len(check_numbers(old, new)) == 1


def test_missing_and_extra_names_are_differences(tmp_path):
    old = record_numbers(tmp_path / "old", "x", {"a": {"value": 1.0}})
    new = record_numbers(tmp_path / "new", "x", {"b": {"value": 1.0}})
    assert check_numbers(new, old) == ["a: expected, not recorded", "b: recorded, not expected"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"numbers": {"a": 3}}'])
def test_a_broken_record_is_refused_by_name(tmp_path, text):
    good = record_numbers(tmp_path, "good", GOOD)
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match="bad.json"):
        check_numbers(tmp_path / "bad.json", good)


def test_a_measure_is_a_mean_with_interval_and_tolerance():
    number = mean_of([0, 1, 1, 1, 0, 1, 1, 1])
    assert number["value"] == 0.75 and number["n"] == 8 and number["low"] < 0.75 < number["high"]
    assert number["tolerance"] == (number["high"] - number["low"]) / 2
    assert mean_of([0.5, 0.5, 0.5])["tolerance"] == 0.02
    assert mean_of([0.5, 0.5, 0.5], tolerance=0.1)["tolerance"] == 0.1


def test_a_rate_is_not_certain_where_all_rows_agree():
    found = rate_of([True] * 8)
    assert found["value"] == 1 and found["low"] == pytest.approx(0.6756, abs=1e-3) and found["n"] == 8
    assert rate_of([True, False])["tolerance"] > 0.02
    with pytest.raises(ValueError, match="true or false, got .*0.5"):
        rate_of([True, 0.5])
    with pytest.raises(ValueError, match="trials >= 1"):
        rate_of([])


def test_a_gap_of_rates_is_not_certain_where_nothing_was_seen():
    none = rate_gap([False] * 24, [False] * 24)
    assert none["value"] == 0 and none["low"] == pytest.approx(-rate_of([False] * 24)["high"]) and none["high"] > 0.1
    some = rate_gap([True] * 20 + [False] * 20, [False] * 38 + [True] * 2)
    assert some["value"] == pytest.approx(0.45) and (some["low"], some["high"]) == pytest.approx(
        (0.24275, 0.61022), abs=1e-5
    )
    with pytest.raises(ValueError, match="same runs"):
        rate_gap([True], [True, False])
    apart = rate_gap([True] * 20 + [False] * 20, [False] * 30, same=False)
    assert apart["value"] == 0.5 and apart["n"] == 30


def newcombe(first, second, n):
    return rate_gap([True] * first + [False] * (n - first), [True] * second + [False] * (n - second), same=False)


@pytest.mark.parametrize(
    "first, second, n, low, high",
    [(9, 3, 10, 0.1705, 0.8090), (6, 2, 7, 0.0582, 0.8062), (10, 0, 10, 0.6075, 1.0)],
)
def test_a_gap_of_rates_has_the_limits_that_newcombe_printed(first, second, n, low, high):
    found, turned = newcombe(first, second, n), newcombe(second, first, n)  # his Table II, method 10
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=6e-5)
    assert (turned["low"], turned["high"]) == pytest.approx((-high, -low), abs=6e-5)


@pytest.mark.parametrize(
    "both, first, second, neither, low, high", [(36, 12, 2, 0, 0.0569, 0.3404), (1, 1, 7, 12, -0.5069, -0.0256)]
)
def test_a_gap_of_rates_over_the_same_runs_knows_their_correlation(both, first, second, neither, low, high):
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    found = rate_gap(one, other)  # Newcombe 1998, Stat. Med. 17:2635, method 10
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=6e-5)


def test_a_gap_of_events_that_exclude_each_other_is_as_sure_as_it_says():
    rng, hit, draws = np.random.default_rng(0), 0, 600
    for _ in range(draws):
        case = rng.choice(3, size=60, p=[0.4, 0.4, 0.2])
        found = rate_gap(case == 0, case == 1)
        hit += found["low"] <= 0 <= found["high"]
    assert hit / draws > 0.93  # 95 % intervals; without the correlation .87


def test_tolerances_are_half_an_interval_and_two_hundredths_at_least():
    for found in (rate_of([True, False] * 10), newcombe(10, 5, 20)):
        assert found["tolerance"] == pytest.approx((found["high"] - found["low"]) / 2)
    assert rate_of([True] * 2000)["tolerance"] == newcombe(20000, 20000, 20000)["tolerance"] == 0.02


def test_a_number_is_printed_in_one_way():
    number = {"value": 0.3149, "low": -0.001, "high": 0.5, "n": 8}
    assert interval_text(number) == "0.31 [0.00, 0.50]"  # no minus before a zero
    assert interval_text(number, 3) == "0.315 [-0.001, 0.500]"
    assert interval_text({"value": 2}) == interval_text({"value": 2, "low": None, "high": None}) == "2.00"


def test_columns_of_a_table_begin_below_each_other():
    lines = text_table(["", "value", "N"], [["a", "0.5", 3], ["much longer", "", 20]]).splitlines()
    assert lines == ["             value    N", "a            0.5      3", "much longer           20"]
    assert text_table([], [["a", "007"]]) == "a  007"  # texts stay as they are


def test_no_file_prints_an_interval_in_its_own_way():
    own = re.compile(r"\[\{[^{}]*low[^{}]*:[^{}]*f\}, ?\{")
    files = [path for part in ("cosutils", "benchmarks", "tools") for path in (ROOT / part).rglob("*.py")]
    files += (ROOT / "notebooks").glob("*.ipynb")
    assert [path.name for path in files if own.search(path.read_text(encoding="utf-8"))] == []


def test_only_runs_with_the_same_parameters_are_compared(tmp_path):
    def write(folder, solved, steps):
        numbers = GOOD | {"solved": GOOD["solved"] | {"value": solved}}
        return record_numbers(tmp_path / folder, "a", numbers, dict(steps=steps))

    stored = write("stored", 0.9, 20)
    assert compare(write("b", 0.9, 20), stored) == "the numbers are those stored with the book"
    assert "solved: 0.5, expected 0.9" in compare(write("b", 0.5, 20), stored)
    assert "not compared" in compare(write("b", 0.5, 10), stored)
    assert compare(stored, tmp_path / "none.json") == "no numbers are stored for this page"


def test_stored_numbers_are_those_of_the_same_model_or_none(tmp_path):
    path = record_numbers(tmp_path, "a", GOOD, dict(model="cos-mini", steps=4))
    assert stored_numbers(path, model="cos-mini") == stored_numbers(path) == GOOD
    assert stored_numbers(path, model="cos-mini-two") == stored_numbers(tmp_path / "b.json", model="cos-mini") == {}


def test_live_numbers_stand_beside_the_full_run(tmp_path):
    stored = record_numbers(tmp_path, "a", {"solved": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 200}})
    lines = beside(GOOD, stored).splitlines()
    assert lines[1].split() == [
        "solved",
        "0.90",
        "[0.85,",
        "0.94]",
        "N",
        "=",
        "200",
        "0.50",
        "[0.40,",
        "0.60]",
        "N",
        "=",
        "200",
    ]
    assert lines[2].split() == ["steps", "7.00", "N", "=", "50"]
    assert len(beside(GOOD).splitlines()) == 2


def test_a_curve_is_recorded_and_read_by_its_places():
    rows = np.array([[0.0, 1.0, np.nan], [1.0, 1.0, np.nan]])
    numbers = results.curve_of("maze/held", [0, 10, 2.5], rows.T, results.rate_of)
    assert list(numbers) == ["maze/held/0", "maze/held/10"] and numbers["maze/held/10"] == results.rate_of([1, 1])
    known = results.curve(numbers | results.curve_of("maze/other", [2], [[0.5, 0.7]]), "maze/held")
    assert known == {0.0: results.rate_of([0, 1]), 10.0: results.rate_of([1, 1])}
    assert results.curve(numbers, "maze/none") == {}
    with pytest.raises(ValueError, match="shorter"):
        results.curve_of("a", [1, 2], [[1.0, 2.0]])


def test_numbers_of_several_trainings_keep_their_order_of_seeds(tmp_path):
    values = {"plain": 0.1, "plain_seed1": 0.2, "plain_seed2": 0.3, "memory": 0.4, "memory_seed2": 0.6}
    for folder, value in values.items():
        record_numbers(tmp_path / folder, "03_noise", {"maze/damage": dict(value=value)}, {})
    found = by_training(tmp_path, ["plain", "memory"], "03_noise", "maze/damage")
    assert {kind: rows.tolist() for kind, rows in found.items()} == {"plain": [0.1, 0.3], "memory": [0.4, 0.6]}
    with pytest.raises(ValueError, match="0 trainings of plain and memory have maze/other of 03_noise"):
        by_training(tmp_path, ["plain", "memory"], "03_noise", "maze/other")


def test_several_trainings_are_one_record_with_their_number_as_n(tmp_path):
    for seed, share in enumerate((0.9, 1.0, 0.98)):
        numbers = {
            "maze/share": dict(value=share, low=share - 0.1, high=1.0, n=200),
            "maze/candidates": dict(value=1 + share, low=1.5, high=2.5, n=200),
            f"maze/of seed {seed}": dict(value=1.0),
        }
        record_numbers(tmp_path / f"plain_seed{seed}", "03_noise", numbers, {})
    found = over_runs(tmp_path, "plain", "03_noise")
    assert found.keys() == {"maze/share", "maze/candidates"}
    assert found["maze/candidates"] == over_trainings([1.9, 2.0, 1.98]) and found["maze/candidates"]["n"] == 3
    assert found["maze/share"]["high"] == 1.0 < over_trainings([0.9, 1.0, 0.98])["high"]  # no share is above 1
    assert found["maze/share"]["low"] == over_trainings([0.9, 1.0, 0.98])["low"]
    with pytest.raises(ValueError, match="0 trainings of memory have 03_noise"):
        over_runs(tmp_path, "memory", "03_noise")
