"""Kept, corrected, placed before it moves: on made evidence and films, and exchanges on a tiny untrained pipeline."""

from dataclasses import replace

import numpy as np
import pytest

from cosutils.measures.behaviour import (
    confident,
    confident_turns,
    frame_lag,
    onset,
    onsets,
    right,
    solved,
    switches,
    turns,
    twin_run,
    unseen,
    winner,
    worst,
)
from cosutils.measures.chain import Trace, trace
from cosutils.mini import tasks, world
from cosutils.pipelines.loading import load

LAYERS = 2


@pytest.fixture(scope="module")
def pipe():
    pipe = load("cos-mini-two")  # trained: of an untrained model all runs end alike
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(evidence=None, films=None, sample=None) -> Trace:
    sample = tasks.find_shape.sample(0) if sample is None else sample
    evidence = np.zeros((len(films), 5)) if evidence is None else np.asarray(evidence, float)
    scores = [] if films is None else [sample.score(film) for film in films]
    last = None if films is None else films[:, -1]
    return Trace(sample, 0, np.linspace(1, 0, len(evidence)), evidence, scores, None, last, films)


def test_right_answers_lead_and_nothing_shown_is_not_right():
    t = made([[0, 0, 0, 0, 0], [0.3, 0.4, 0, 0, 0], [0.4, 0.3, 0, 0, 0]])
    assert t.names[0] == t.sample.answer  # otherwise the rows below mean something else
    assert right(t).tolist() == [False, False, True]


def test_a_wrong_answer_is_confident_only_with_most_of_the_evidence():
    t = made([[0, 0, 0, 0, 0], [0.3, 0.4, 0.2, 0, 0], [0.1, 0.8, 0, 0, 0], [0.9, 0, 0, 0, 0]])
    assert confident(t).tolist() == [False, False, True, False]
    assert confident(t, share=0.4).tolist() == [False, True, True, False]


def test_confidence_in_a_right_answer_is_told_apart_from_that_in_a_wrong_one():
    t = made([[0.3, 0.4, 0.2, 0, 0], [0.1, 0.8, 0, 0, 0], [0.9, 0, 0, 0, 0]])
    assert confident(t, of_right=True).tolist() == [False, False, True]


def test_confident_turns_count_confident_runs_alone():
    sure, wrong, torn = [0.9, 0, 0, 0, 0], [0.1, 0.8, 0, 0, 0], [0.3, 0.4, 0.2, 0, 0]
    runs = [made([first, last]) for first, last in ((wrong, sure), (wrong, wrong), (torn, sure), (sure, torn))]
    corrected, spoiled = confident_turns([*runs, made([sure, sure]), made([sure, sure])])
    assert corrected.tolist() == [True, False] and spoiled.tolist() == [True, False, False]


def test_the_worst_step_is_the_one_with_the_lowest_rate():
    step, rows = worst(np.array([[1, 0, 1], [1, 1, 1], [1, 0, 0]]))
    assert step == 1 and rows.tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"\(runs, steps\)"):
        worst(np.array([True]))


def test_turns_tell_repairs_from_damage():
    fixed, broken = turns(np.array([[0, 1, 0, 1], [1, 1, 0, 0]]))
    assert fixed.astype(int).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert broken.astype(int).tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("task, tile", [("reappear", "ball"), ("occlusion", None)])
def test_unseen_latent_frames_hide_the_object(task, tile):
    for seed in range(10):
        sample = tasks.sample(task, seed)
        kind = world.TILE[tile or sample.answer]
        hidden = unseen(sample)
        assert hidden and 0 not in hidden
        for frame in hidden:
            shown = (sample.ids[4 * frame - 3 : 4 * frame + 1] == kind).any((1, 2))
            assert shown.mean() <= 0.5
        assert 4 not in hidden  # there the answer is read


def test_exchanging_later_frames_of_the_last_block_gives_the_donors_answer(pipe):
    sample = tasks.reappear.sample(0)
    donor, states = twin_run(pipe, sample, range(LAYERS), seed=1, num_inference_steps=2)
    assert donor.sample.is_twin and states.layers == [0, 1] and states.steps == [0, 1]
    own = trace(pipe, sample, seed=1, num_inference_steps=2)
    twin = trace(pipe, sample.twin(), seed=1, num_inference_steps=2)
    assert np.array_equal(donor.evidence, twin.evidence) and not np.array_equal(donor.evidence, own.evidence)
    leaders = [names.names[names.evidence[-1].argmax()] for names in (own, donor)]
    assert leaders[0] != leaders[1]
    call = dict(seed=1, num_inference_steps=2)
    assert winner(pipe, sample, states, LAYERS - 1, range(1, 5), **call) == leaders[1]
    assert winner(pipe, sample, states, LAYERS - 1, [0], **call) == leaders[0]
    with pytest.raises(ValueError, match="no frame 5"):
        winner(pipe, sample, states, 0, [5], **call)


def late(sample, order):
    """Films (S, 17, 80, 80, 3): frame t is that of the wrong film before step order[t], then that of the right one."""
    wrong, true = sample.twin().video, sample.video
    steps = np.arange(max(order) + 2)
    return np.stack([np.where((s >= np.array(order))[:, None, None, None], true, wrong) for s in steps])


def test_switches_find_the_step_of_each_frame():
    sample = tasks.find_shape.sample(0)
    films = late(sample, [0] + [1] * 8 + [4] * 8)
    found = switches(made(films=films))
    assert np.isnan(found[:2]).all()  # nothing is drawn before frame 2
    assert found[2:].tolist() == [1] * 7 + [4] * 8
    assert frame_lag(found) == 3 and frame_lag(switches(made(films=late(sample, [0] + [2] * 16)))) == 0
    assert np.isnan(frame_lag(np.full(17, np.nan)))
    assert solved(made(films=films)).tolist() == [False] * 4 + [True] * 2


def test_a_switch_that_is_taken_back_does_not_count():
    films = late(tasks.find_shape.sample(0), [0] + [1] * 16)
    films = np.concatenate([films[:2], films[:1], films[1:]])  # wrong, right, wrong, right, right
    assert set(switches(made(films=films))[2:]) == {3}


def test_an_onset_holds_to_the_end():
    with pytest.raises(ValueError, match=r"level is a share in \(0, 1\], got 90"):
        onset(np.ones(3), 90)
    assert onset([[0.9, 0.2, 0.9, 1.0], [1, 1, 1, 1], [1, 1, 1, 0]], 0.9).tolist() == [2, 0, 4]


@pytest.mark.parametrize("where, how", [(1, 4), (4, 1), (2, 2)])
def test_onsets_tell_the_last_frame_from_the_motion(where, how):
    sample = tasks.shelf.sample(3)
    order = np.array([0] + [how] * 15 + [where])
    shown = np.arange(7)[:, None, None, None, None] >= order[:, None, None, None]
    found = onsets(made(films=np.where(shown, sample.video, sample.video[0]), sample=sample))
    assert (found.where, found.how, found.gap) == (where, how, how - where)
    assert found.same == 0 and found.frames[-1] == where and np.isnan(found.frames[0])
    assert found.where_share[-1] == found.how_share[-1] == 1


def test_the_control_of_onsets_sees_a_frame_that_settles_late():
    sample = tasks.shelf.sample(3)
    order = np.array([0] + [1] * 16)
    order[3] = 5  # one of the frames in motion comes late: a gap between them, none to the last frame's rule
    shown = np.arange(7)[:, None, None, None, None] >= order[:, None, None, None]
    found = onsets(made(films=np.where(shown, sample.video, sample.video[0]), sample=sample), draws=200)
    assert found.where == 1 and 1 < found.how < 5 and found.frames[3] == 5
    assert abs(found.same) < 1.5 and found.same != 0


def test_onsets_of_a_film_that_stands_still_and_of_a_trace_without_films():
    sample = tasks.shelf.sample(3)
    still = np.repeat(np.repeat(sample.video[:1], 17, 0)[None], 3, 0)
    assert onsets(made(films=still, sample=sample)) is None
    with pytest.raises(ValueError, match="keep_films"):
        onsets(replace(made(films=still, sample=sample), films=None))
