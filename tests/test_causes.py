"""States exchanged, mistakes put in, answers solved again: on models of known mechanism."""

import numpy as np
import pytest
import torch

from cosutils.measures import causes
from cosutils.measures.horizon import KINDS
from cosutils.mini import known, tasks
from cosutils.mini.model import build_transformer, steps_of

STEPS = 6


@pytest.fixture(scope="module")
def puzzles():
    return [tasks.rotation.sample(seed) for seed in range(3)]


def asked(mechanism, puzzles):
    pipe = known.pipeline(mechanism, puzzles)
    return pipe.transformer, causes.posed(pipe, puzzles)


def test_a_mistake_is_mended_by_one_that_never_looks_at_the_state_and_kept_by_a_guess(puzzles):
    decided, guessed = (causes.recovery(*asked(name, puzzles), STEPS) for name in ("one_pass", "guess"))
    assert [row["step"] for row in decided] == list(range(1, STEPS))
    assert all(row["right"] == 1 and row["kept"] == 0 for row in decided)
    assert guessed[-1]["kept"] == 1 and guessed[-1]["right"] == 0


def test_the_wrong_film_is_a_possible_one_that_is_not_right(puzzles):
    _, posed = asked("guess", puzzles)
    assert not posed.is_right(posed.mistake).any() and posed.is_right(posed.leaders(posed.truth)).all()
    assert (posed.leaders(posed.wrong) == posed.mistake).all()
    assert posed.is_right(np.full(3, -1)).tolist() == [False] * 3  # nothing leads
    right, wrong = posed.noised(posed.truth, 1.0, 0), posed.noised(posed.wrong, 1.0, 0)
    assert torch.equal(right, wrong) and not torch.equal(right, posed.noise(0))  # of noise that no run has


def test_a_puzzle_without_a_wrong_answer_is_refused_and_never_drawn(puzzles):
    bare = next(one for one in map(tasks.maze.sample, range(200)) if len(one.options) == 1)
    with pytest.raises(ValueError, match=f"every possible answer of maze {bare.seed} is right"):
        causes.posed(known.pipeline("guess", puzzles), [bare])
    drawn = causes._samples("maze", 40)
    assert len(drawn) == 40 and all(len(one.options) > 1 for one in drawn)
    assert drawn[-1].seed > drawn[0].seed + 39  # some were left out


@pytest.mark.parametrize("task", tasks.NAMES)
def test_a_mistake_keeps_the_given_picture(task):
    samples = causes._samples(task, 2)
    posed = causes.posed(known.pipeline("guess", samples), samples)
    assert torch.equal(posed.wrong[:, :, 0], posed.truth[:, :, 0]) and not torch.equal(posed.wrong, posed.truth)
    assert not posed.is_right(posed.mistake).any() and (posed.leaders(posed.wrong) == posed.mistake).all()


def test_a_run_cannot_begin_where_there_is_no_step_or_remember_before_it(puzzles):
    transformer, posed = asked("guess", puzzles)
    call = transformer, posed.noise(0), posed.given, posed.words, 3
    for first in (-1, 3):
        with pytest.raises(ValueError, match=f"one of 0 to 2, got {first}"):
            list(steps_of(*call, first=first))
    with pytest.raises(ValueError, match="no estimate to remember"):
        list(steps_of(*call, memory=posed.truth))


def test_only_what_looks_at_the_state_changes_its_answer_with_it(puzzles):
    still, moved = (causes.dependence(*asked(name, puzzles), STEPS) for name in ("one_pass", "guess"))
    assert all(row[name]["flips"] == 0 for row in still for name in ("own", "other", "truth", "noise"))
    assert moved[-1]["own"]["flips"] == 0 and moved[-1]["truth"]["right"] == 1
    assert max(row["noise"]["flips"] for row in moved) > 0


def test_answers_return_to_one_that_knows_them(puzzles):
    found = causes.verifier(*asked("one_pass", puzzles), STEPS, 0.9)
    assert found["right"] == 1 and found["returns_right"] == 1
    assert found["returns_wrong"] is None and found["auroc"] is None  # no film is wrong


def test_a_run_that_begins_later_goes_on_as_the_whole_one_did_memory_included(puzzles):
    torch.manual_seed(0)
    _, posed = asked("guess", puzzles)
    net = build_transformer(layers=1, memory=True).eval()
    whole = posed.run(net, 4)
    rest = list(steps_of(net, whole[2][1], posed.given, posed.words, 4, first=2, memory=whole[1][2]))
    assert len(rest) == 2 and all(torch.equal(a[2], b[2]) for a, b in zip(rest, whole[2:], strict=True))
    bare = list(steps_of(net, whole[2][1], posed.given, posed.words, 4, first=2))
    assert not torch.equal(bare[0][2], whole[2][2])


def measured(model, after, right, auroc):
    recovery = [dict(sigma=sigma, right=value) for sigma, value in zip((0.9, 0.5), after, strict=True)]
    return dict(model=model, task="maze", recovery=recovery, verifier=[dict(right=right, auroc=a) for a in auroc])


def test_the_summary_follows_the_rules(monkeypatch):
    monkeypatch.setattr(causes, "trainings", lambda kind: [KINDS[kind], f"{KINDS[kind]}-seed1", f"{KINDS[kind]}-seed2"])
    rows = []
    for seed, name in enumerate(("", "-seed1", "-seed2")):
        rows.append(measured(KINDS["plain"] + name, (0.58, 0.1 + 0.01 * seed), 0.6, (0.6, 0.69, 0.5)))
        rows.append(measured(KINDS["memory"] + name, (0.9, 0.9 + 0.02 * seed), 0.92, (None, 0.9, 0.9)))
    (row,) = causes.sum_up(rows)
    assert row["plain"]["mended"] == [0.9] and row["memory"]["mended"] == [0.9, 0.5]
    assert [row[kind]["verifier"] for kind in KINDS] == ["not usable", "no room"] and row["memory"]["auroc"][0] is None
    assert row["memory_helps"]["verdict"] == "helps" and row["memory_helps"]["n"] == 3
    assert causes.sum_up(rows[:-1])[0]["memory_helps"]["n"] == 2  # a training has no partner: it is left out
    assert causes.sum_up([rows[0], rows[3], rows[5]]) == []
    assert causes.sum_up(rows[:2])[0]["memory_helps"]["verdict"] == "one training"


@pytest.mark.parametrize(("right", "after", "mended"), [(0.4, 0.35, True), (0.2, 0.15, True), (0.9, 0.84, False)])
def test_the_edges_of_the_rules_are_exact(right, after, mended, monkeypatch):
    rows = [measured(name, (after, 0.0), right, (0.7, 0.7, 0.7)) for name in KINDS.values()]
    monkeypatch.setattr(causes, "trainings", lambda kind: [KINDS[kind]])
    assert (0.9 in causes.sum_up(rows)[0]["plain"]["mended"]) == mended
    area = dict(value=np.mean([0.7] * 3), low=0.55, high=0.85)
    assert causes.usable(np.mean([0.8] * 3), [None, area]) == "usable"
    assert causes.usable(0.81, [area]) == "no room" and causes.usable(0.5, [None]) == "not usable"
    assert causes.usable(0.5, [area | dict(low=0.5)]) == "not usable"  # it may be blind
