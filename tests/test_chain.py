"""Traces of an answer along the steps, on a tiny untrained pipeline and on made evidence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from cosutils.measures.chain import (
    NAMED,
    Trace,
    alive,
    blurred,
    commitments,
    decision,
    frame_lag,
    leading,
    measures,
    opened,
    settling,
    trace,
)
from cosutils.mini import tasks, world
from cosutils.mini.model import build_pipeline, build_transformer
from cosutils.pipelines.loading import use_preset


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = build_pipeline(tiny.codec(), build_transformer(layers=1, width=32))
    pipe.set_progress_bar_config(disable=True)
    return use_preset(pipe, "mini")


def made(evidence, last=None) -> Trace:
    sample = tasks.find_shape.sample(0)
    steps = len(evidence)
    settled = np.linspace(0, 1, steps)[:, None].repeat(17, 1)
    return Trace(sample, 0, np.linspace(1, 0, steps), np.asarray(evidence), [], settled, last)


def test_a_trace_reads_every_step(pipe):
    sample = tasks.maze.sample(1)
    t = trace(pipe, sample, seed=3, keep_films=True, num_inference_steps=4)
    assert t.evidence.shape == (4, len(sample.options)) and t.films.shape == (4, 17, 80, 80, 3)
    assert t.sigmas[0] == 1 and len(t.scores) == 4
    shared = np.all([film == sample.ids for film in sample.possible.values()], (0, 2, 3))
    assert shared[0] and not shared[-1] and np.isnan(t.settled[:, shared]).all()
    assert np.all(t.settled[-1, ~shared] == 1) and t.settled[0, -1] < 1
    assert list(sample.candidates(t.films[2]).values()) == pytest.approx(list(t.evidence[2]))
    again = trace(pipe, sample, seed=3, num_inference_steps=4)
    assert np.array_equal(again.evidence, t.evidence) and again.films is None
    assert np.array_equal(again.last, t.films[:, -1])


def test_candidates_alive_commitment_and_share_of_the_answer():
    t = made([[0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.5, 0, 0, 0], [0.9, 0.1, 0, 0, 0], [1, 0, 0, 0, 0]])
    assert alive([t])[0] == pytest.approx([5, 0.36 / 0.26, 1 / 0.82, 1])
    assert commitments([t, t]).tolist() == [2, 2]
    assert t.names[0] == t.sample.answer and t.on_answer == pytest.approx([0.2, 1 / 6, 0.9, 1])
    assert made([[0.3, 0.1, 0, 0, 0], [0.2, 0.2, 0, 0, 0], [0, 1, 0, 0, 0]]).on_final == pytest.approx([0.25, 0.5, 1])
    assert settling([t], level=0.5).tolist() == [[2] * 17]
    slow = replace(t, settled=np.array([0.5, 0.89, 0.9, 1])[:, None].repeat(17, 1))
    assert settling([slow]).tolist() == [[2] * 17]


def test_a_frame_that_all_answers_share_does_not_settle():
    t = made(np.eye(5)[[1, 0, 0, 0]])
    late = np.where(np.arange(17) < 9, 1.0, np.arange(4)[:, None] == 3)  # the later half settles at the last step
    assert frame_lag([replace(t, settled=late)]) == pytest.approx(3)
    late[:, 1:4] = np.nan
    assert frame_lag([replace(t, settled=late)]) == pytest.approx(3)
    assert np.isnan(settling([replace(t, settled=late)])[0, 1:4]).all()
    late[:, 1:6] = np.nan
    assert np.isnan(frame_lag([replace(t, settled=late)]))


def test_deciding_is_told_from_drawing(pipe):
    ties = made([[0.2, 0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert decision([ties])[0] == pytest.approx([0.2, 0.5, 0, 0])
    near = made([[0.92, 1, 0, 0, 0], [0.88, 1, 0, 0, 0]])
    assert decision([near])[0] == pytest.approx([0.5, 0])
    puzzle = tasks.find_shape.sample(1)
    found = trace(pipe, puzzle, keep_films=True, num_inference_steps=4)
    pale = replace(found, evidence=np.array([[0.3, 0.1, 0.1, 0, 0], [0.9, 0, 0, 0, 0]]))
    drawn = replace(
        pale, scores=[puzzle.score(puzzle.video * 0.0 + world.draw(puzzle.ids[:1])), puzzle.score(puzzle.video)]
    )
    values = {name: row[0] for name, row in measures([drawn]).items()}
    assert (values["decision_gain"], values["gain"], values["drawing_gain"]) == (0, 1, 1)
    assert values["beyond_guess"] == pytest.approx(1 - 0.6) and values["chance"] == 0.2
    assert (values["cells_first"], values["cells_last"]) == (0, 1)


def test_an_answer_leads_only_where_it_is_shown():
    sample = tasks.reappear.sample(0)
    blank, full = (world.draw(ids)[None] for ids in (sample.blank, sample.ids[-1]))
    faint = 0.8 * blank + 0.2 * full
    assert leading(sample, faint) == sample.answer == leading(sample, full, least=0.5)
    assert leading(sample, faint, least=0.5) is None and leading(sample, blank) is None


@pytest.mark.parametrize("read", [alive, commitments, settling, decision])
def test_no_trace_and_a_level_that_is_no_share_are_refused(read):
    with pytest.raises(ValueError, match="no traces were given"):
        read([])
    with pytest.raises(ValueError, match=r"level is a share in \(0, 1\], got 90"):
        settling([made(np.eye(5))], level=90)


def test_blur_matches_sharpness_but_not_the_mixture_of_answers():
    sample = tasks.find_shape.sample(0)
    frames = world.draw(np.stack(list(sample.options.values())))
    last = np.stack([frames.mean(0), frames[0]])
    blur = blurred(made(np.eye(5)[:2], last), 0)

    def sharpness(p):
        return (np.diff(p, axis=0) ** 2).mean() + (np.diff(p, axis=1) ** 2).mean()

    assert sharpness(blur) == pytest.approx(sharpness(last[0]), rel=1e-2)
    found = sample.candidates(blur)
    assert found[sample.answer] > 3 * max(v for k, v in found.items() if k != sample.answer)


@pytest.mark.parametrize("task", tasks.NAMES)
def test_an_open_puzzle_has_several_right_answers(task):
    """Without its prompt nothing names the answer, and the scene stays; two routes of equal length are both right."""
    puzzle, plain = opened(task, 3), tasks.sample(task, 3)
    if task == "two_routes":
        assert len(puzzle.films) == 2
    elif task in NAMED:
        assert (
            puzzle.prompt == "" and plain.prompt and np.array_equal(puzzle.ids, plain.ids) and len(puzzle.options) > 1
        )
    else:
        assert puzzle is None
