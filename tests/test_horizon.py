"""Mazes by the length of their way, read with few and many steps."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from cosutils.measures import horizon
from cosutils.mini import world
from cosutils.pipelines.loading import data_folder


@pytest.fixture(scope="module")
def groups():
    return horizon.mazes(2)


def test_each_group_holds_ways_of_its_length(groups):
    for group, (least, most) in zip(groups, horizon.LENGTHS, strict=True):
        assert len(group) == 2 and all(least <= horizon.moves(maze) <= most for maze in group)


def test_a_true_film_is_read_as_right_and_an_empty_one_is_not(groups, monkeypatch):
    films = [world.draw(maze.ids) for maze in groups[0]]
    films[1] = np.repeat(films[1][:1], len(films[1]), 0)  # nothing moves
    monkeypatch.setattr(horizon, "films_of", lambda *_: iter(films))
    seen = horizon.read(None, groups[0], 1)
    assert seen["cells"][0] == 1 and seen["leads"] == [1, 0] and seen["cells"][1] < 0.5


def test_the_command_writes_a_row_for_each_length(tmp_path, monkeypatch):
    out = tmp_path / "horizon.json"
    monkeypatch.setattr(sys, "argv", f"x --models cos-mini-two --steps 3 2 --mazes 2 --out {out}".split())
    horizon.main()
    rows = json.loads(out.read_text())["rows"]
    assert [tuple(row["moves"]) for row in rows[::3]] == list(horizon.LENGTHS)
    for group in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        one, two, three = (row["cells"]["value"] for row in group)
        assert [row["steps"] for row in group] == [1, 2, 3] and ["late" in row for row in group] == [False, False, True]
        assert group[1]["added"]["value"] == pytest.approx(two - one, abs=2e-4)
        assert group[2]["added"]["value"] == pytest.approx(three - one, abs=2e-4)
        assert group[2]["late"]["value"] == pytest.approx(three - two, abs=2e-4)
        assert group[2]["drifts"] == (group[2]["late"]["high"] < 0)
        assert group[2]["verdict"] == horizon.verdict("plain", group[2]["added"])
    assert all(row["cells"]["low"] <= row["cells"]["value"] <= row["cells"]["high"] for row in rows)


def test_trainings_are_summed_up_seed_by_seed(tmp_path, monkeypatch):
    """What each of three trainings adds is the unit: the interval is over them, and pairs share their seed."""
    for name in horizon.KINDS.values():
        for seed in (1, 2):
            (tmp_path / f"{name}-seed{seed}").mkdir()
    monkeypatch.setattr(horizon, "data_folder", lambda: tmp_path)
    gains = dict(plain=[0.0, 0.1, 0.2], memory=[0.3, 0.4, 0.5])
    rows = [
        dict(model=model, moves=[4, 7], steps=20, added=dict(value=value))
        for kind, values in gains.items()
        for model, value in zip(horizon.trainings(kind), values, strict=True)
    ]
    found = {row["kind"]: row["added"] for row in horizon.sum_up(rows)}
    assert found["memory - plain"] == dict(value=0.3, low=0.3, high=0.3, n=3)
    assert found["plain"]["value"] == 0.1 and found["plain"]["high"] == pytest.approx(0.3484, abs=1e-4)
    assert {row["added"]["n"] for row in horizon.sum_up(rows[1:])} == {2} and horizon.sum_up(rows[:2]) == []
    (tmp_path / "cos-mini-longer-seed1").rmdir()
    (tmp_path / "cos-mini-memory-seed2").rmdir()
    assert horizon.sum_up([row for row in rows if row["model"].endswith(("longer-seed2", "memory-seed1"))]) == []


@pytest.mark.parametrize(
    ("kind", "added", "said"),
    [
        ("plain", dict(value=0.2), "one training"),
        ("plain", dict(value=0.2, low=0.06, high=0.34), "extends"),
        ("memory", dict(value=0.2, low=0.04, high=0.36), "neither"),
        ("memory", dict(value=-0.2, low=-0.34, high=-0.06), "shortens"),
        ("memory - plain", dict(value=0.2, low=0.01, high=0.39), "helps"),
        ("memory - plain", dict(value=-0.2, low=-0.34, high=-0.06), "not shown"),
    ],
)
def test_the_verdict_follows_the_rules(kind, added, said):
    assert horizon.verdict(kind, added) == said


@pytest.mark.parametrize("kind", horizon.KINDS)
def test_models_of_a_kind_differ_in_their_training_seed_alone(kind):
    """By their cards; `precision` is what was asked for. What it was the logs say, and the README where it was another.

    Older cards lack `lengths`.
    """
    told = (data_folder() / "README.md").read_text()
    tables = []
    for number, model in enumerate(horizon.trainings(kind)):
        card = (data_folder() / model / "README.md").read_text()
        table = {line for line in card.splitlines() if line.startswith("| ")}
        assert f"| seed | {number} |" in table
        tables.append({line for line in table if not line.startswith(("| seed |", "| precision |", "| lengths |"))})
        log = (data_folder() / model / "training.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in log]
        (precision,) = {row["precision"] for row in rows}
        assert precision == "float32" or f"`{model}`, in {precision} autocast" in told
        assert rows[-1]["seen"] == 170016
    assert all(table == tables[0] for table in tables)
