"""Puzzles that are trained on, that choose a model and that report: by seed and by content."""

from collections import Counter

import numpy as np
import pytest

import tiny
from cosutils.mini import split, tasks
from cosutils.mini.split import PARTS, REPORT, SEALED, TRAIN, VALIDATION


def test_seed_ranges_are_disjoint():
    for a, b in zip((REPORT, SEALED, VALIDATION), (SEALED, VALIDATION, TRAIN), strict=True):
        assert a.start < a.stop <= b.start < b.stop
    assert TRAIN.start + split.TRIES * split.FURTHER < TRAIN.stop


@tiny.every(name=tasks.NAMES)
def test_the_part_of_a_puzzle_follows_from_what_it_shows_and_asks(name):
    puzzle = tasks.sample(name, 3)
    assert split.part(puzzle) == split.part(tasks.sample(name, 3, pixels=160)) in PARTS
    assert split.identity(puzzle) != split.identity(puzzle.twin())
    seeds = {split.identity(p): p.seed for p in (tasks.sample(name, seed) for seed in range(40))}
    for identity, seed in seeds.items():
        again = tasks.sample(name, seed)
        assert split.identity(again) == identity


@pytest.mark.slow
def test_parts_hold_the_shares_they_are_to():
    found = Counter(split.part(tasks.sample("find_shape", seed)) for seed in range(2000))
    assert found["report"] / 2000 == pytest.approx(0.1, abs=0.03)
    assert found["validation"] / 2000 == pytest.approx(0.1, abs=0.03)


def test_the_split_is_the_same_as_ever():
    """The digits of the first puzzles: a change here mixes what was kept apart."""
    found = "".join(split.part(tasks.sample(name, seed))[0] for name in tasks.NAMES for seed in range(6))
    assert found == "ttttrtrttrtrtttrtttrrvrvtttttttttrrttttttttvtttttttttttttvtt"


@tiny.every(name=["size_pattern", "tictactoe", "maze"])
def test_a_training_by_content_meets_no_puzzle_that_is_kept(name):
    drawn = [split.training(name, number, by_content=True) for number in range(150)]
    assert {split.part(p) for p in drawn} == {"train"}
    plain = [split.training(name, number) for number in range(150)]
    assert {split.part(p) for p in plain} == set(PARTS)
    for mine, theirs in zip(drawn, plain, strict=True):
        if split.part(theirs) == "train":
            assert np.array_equal(mine.ids, theirs.ids)
    report = {split.identity(p) for p in split.draw(name, REPORT, 20, "report")}
    assert not report & {split.identity(p) for p in drawn}


def test_draw_takes_the_first_puzzles_of_the_seeds():
    assert [p.seed for p in split.draw("maze", SEALED, 3)] == [50_000, 50_001, 50_002]
    within = split.draw("maze", REPORT, 3, "validation")
    assert {split.part(p) for p in within} == {"validation"} and within[0].seed > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split.draw("maze", REPORT, 0), "the number of puzzles must be 1 or more, got 0"),
        (
            lambda: split.draw("maze", range(3), 4),
            r"range\(0, 3\) hold 3 puzzles of maze \(any part\), 4 were asked for",
        ),
        (lambda: split.draw("maze", REPORT, 1, "test"), "unknown part 'test'; parts are train, validation, report"),
        (lambda: split.count("maze", 1), "the number of draws must be 2 or more, got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_a_task_of_few_puzzles_is_counted_and_one_of_many_is_estimated(monkeypatch):
    few = split.count("size_pattern", 1500, report=40)
    drawn = {split.identity(split.training("size_pattern", k)) for k in range(1500)}
    shared = sum(split.identity(p) in drawn for p in split.draw("size_pattern", REPORT, 40))
    assert few.seen == len(drawn) and few.shared == shared > 20 and few.total >= few.seen
    many = split.count("maze", 100, report=5)
    assert many.seen == 100 and many.total > 1000 and not many.exact and many.shared == 0


def test_the_estimate_is_right_where_the_number_is_known(monkeypatch):
    """500 made puzzles, drawn evenly: Chao1 finds most of those not yet seen."""
    drawn = np.random.default_rng(0).integers(500, size=600)
    monkeypatch.setattr(split, "training", lambda name, number: drawn[number])
    monkeypatch.setattr(split, "draw", lambda name, seeds, number: range(number))
    monkeypatch.setattr(split, "identity", int)
    found = split.count("made", 600, report=500)
    assert found.seen == len(set(drawn)) == found.shared < 400 and found.total == pytest.approx(500, rel=0.1)


def test_the_table_names_every_task(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["split", "--draws", "3", "--puzzles", "2"])
    split.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(tasks.NAMES)
