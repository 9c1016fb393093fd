"""Where the last steps spoil a film: own states against true ones."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from cosutils.measures import drift
from cosutils.metrics import Interval
from cosutils.mini import split, tasks, world
from cosutils.mini.model import films_of
from cosutils.pipelines.loading import load


@pytest.fixture(scope="module")
def pipe():
    return load("cos-mini-two")


def test_own_estimates_are_those_of_the_run_and_true_ones_begin_where_it_does(pipe):
    """At sigma = 1 both states are the noise; the last own estimate is the film; near 0 a true state is the truth."""
    puzzles = [tasks.sample("occlusion", seed) for seed in (100_000, 100_001)]
    found = drift.estimates(pipe, puzzles, 4)
    assert [round(found[step][0], 3) for step in found] == [1.0, 0.938, 0.833, 0.625]
    assert np.allclose(found[0][1], found[0][2], atol=1e-5) and not np.allclose(found[3][1], found[3][2], atol=1e-2)
    for film, own in zip(films_of(pipe, puzzles, 4), found[3][1], strict=True):
        assert np.allclose(film, own, atol=1e-5)
    last = drift.estimates(pipe, puzzles, 400, [399])[399]
    assert last[0] < 0.02
    for puzzle, film in zip(puzzles, last[2], strict=True):
        assert (world.read(film) == puzzle.ids).mean() > 0.99


def test_a_model_with_a_memory_is_not_asked_in_a_true_state():
    with pytest.raises(ValueError, match="a model with a memory cannot be asked in a true state"):
        drift.estimates(load("cos-mini-memory"), [tasks.sample("occlusion", 100_000)], 4)


def test_every_puzzle_is_read_whatever_its_batch(pipe):
    puzzles = [tasks.sample("occlusion", 100_000 + k) for k in range(3)]
    together, apart = drift.read(pipe, puzzles), drift.read(pipe, puzzles, batch=2)
    assert together["own"].shape == together["true"].shape == (3, len(drift.LEVELS), 3)
    for name in together:
        assert np.allclose(together[name], apart[name], atol=1e-5)


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ((-0.1, -0.2, -0.01), "drifts"),
        ((-0.1, -0.2, 0.0), "undecided"),
        ((0.0, -0.04, 0.03), "holds"),
        ((0.2, 0.1, 0.3), "holds"),
        ((0.0, -0.05, 0.05), "undecided"),
        ((0.0, 0.0, 0.0), "undecided"),
    ],
)
def test_verdicts(late, said):
    assert drift.judge(Interval(*late)) == said


def made(many, few):
    """What `read` would give of 40 puzzles, the first `many` and `few` of which are exact in twenty and four steps, and
    the same in all steps up to the last four; all are decided, and half of their cells right.
    """
    exact = [(np.arange(40) < count).astype(float) for count in (many, few)]
    rows = [np.stack([np.ones(40), np.full(40, 0.5), one], 1) for one in exact]
    early, late = (np.repeat(rows[k][:, None], count, 1) for k, count in ((1, drift.KEPT + 1), (0, 4)))
    own = np.concatenate([early, late], 1)
    return dict(own=own, true=np.ones_like(own), few=rows[1], sigmas=np.linspace(1, 0.1, len(drift.LEVELS)))


def test_a_training_cures_a_drift_only_where_there_was_one():
    first, better = made(20, 38), made(38, 37)
    runs = [
        drift.run_row("first", "maze", first, first),
        drift.run_row("first", "shelf", made(38, 37), made(38, 37)),
        drift.run_row("cos-mini-rollout", "maze", better, first),
        drift.run_row("cos-mini-rollout", "shelf", made(40, 37), made(38, 37)),
        drift.run_row("cos-mini-longer", "maze", made(20, 18), first),
        drift.run_row("cos-mini", "maze", better, first),
    ]
    assert [row["verdict"] for row in runs] == ["drifts", *["holds"] * 5]
    assert runs[2]["solved"]["more"]["value"] == pytest.approx(18 / 40)
    assert drift.cured(runs) == [
        dict(model="cos-mini-rollout", task="maze", cured=True),
        dict(model="cos-mini-longer", task="maze", cured=False),  # it holds, at what the first has left
    ]


def test_own_states_are_blamed_only_for_films_that_were_exact_before():
    """38 are exact at the last level of four steps, 20 at the end; in true states all are. Two never were."""
    row = drift.run_row("first", "maze", made(20, 38), made(20, 38))
    assert row["own_states"] and row["harm"]["value"] == pytest.approx(18 / 38, abs=1e-3) and row["harm"]["n"] == 38
    wrong = drift.run_row("first", "maze", made(20, 20), made(20, 20))
    assert wrong["harm"]["value"] == 0 and not wrong["own_states"], "20 puzzles are decided wrongly from the start on"
    level = drift.level_rows("first", "maze", made(20, 38))[-1]
    assert level["solved"]["true - own"]["value"] == 0.5 and level["cells"]["true - own"]["value"] == 0.5
    assert level["decided"]["true - own"]["value"] == 0


def test_the_command_writes_levels_and_runs_of_sealed_puzzles(tmp_path, monkeypatch):
    out, asked = tmp_path / "drift.json", []
    draw = split.draw
    monkeypatch.setattr(split, "draw", lambda *given: asked.append(given) or draw(given[0], range(100_000, 100_009), 2))
    monkeypatch.setattr(sys, "argv", f"x --models cos-mini-two --tasks occlusion --puzzles 2 --out {out}".split())
    torch.manual_seed(0)
    drift.main()
    assert asked == [("occlusion", drift.SEEDS, 2)] and drift.SEEDS.start in split.SEALED
    stored = json.loads(out.read_text())
    assert [row["sigma"] for row in stored["levels"]] == sorted((r["sigma"] for r in stored["levels"]), reverse=True)
    assert stored["runs"][0]["n"] == 2 and len(stored["levels"]) == len(drift.LEVELS)
    assert stored["levels"][-1]["solved"]["own"] == stored["runs"][0]["solved"]["many"]
