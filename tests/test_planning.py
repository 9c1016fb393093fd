"""Choice and average of seeds on tiny real Wan pipelines: identities, cost, formulas, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_capture import untouched

import tiny
from cosutils.hooks.record import record, resume
from cosutils.measures.chain import leading
from cosutils.measures.planning import average, choose_early, closeness, distances, passes
from cosutils.mini import tasks, world
from cosutils.pipelines.check import experts

P = "the red ball moves"
THREE = {"prompt": [P] * 3, "seed": [0, 1, 2]}


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("a14b")


def first_film(films):
    return -np.arange(len(films))


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("solver", tiny.SOLVERS)
def test_the_chosen_seed_ends_where_it_ends_alone(kind, solver):
    pipe = tiny.build(kind, solver)
    output, row = choose_early(pipe, 2, lambda films: [0, 0, 1], **tiny.call(**THREE, kind=kind))
    assert row == 2
    assert torch.allclose(output.frames, pipe(**tiny.call(P, seed=2, kind=kind)).frames, atol=1e-4)
    untouched(pipe)


@pytest.mark.slow
def test_ratings_are_of_the_estimates_at_the_stop(pipe):
    seen = []
    with record(pipe) as run:
        pipe(**tiny.call(**THREE))
    choose_early(pipe, 3, lambda films: seen.append(films) or closeness(films), **tiny.call(**THREE))
    assert np.allclose(seen[0], run.decode([2])[0].numpy(), atol=1e-4)


def test_passes_count_rows_and_both_branches(pipe):
    with passes(pipe) as count:
        pipe(**tiny.call(**THREE))
    assert count.rows == 2 * 3 * 5
    with passes(pipe) as count:
        choose_early(pipe, 2, **tiny.call(**THREE))
    assert count.rows == 2 * (3 * 2 + 3)
    pipe(**tiny.call())
    assert count.rows == 2 * (3 * 2 + 3)


def test_passes_leave_nothing_behind_after_an_error(pipe):
    with pytest.raises(RuntimeError, match="in the middle"), passes(pipe) as count:
        pipe(**tiny.call(P))
        raise RuntimeError("in the middle")
    rows = count.rows
    untouched(pipe)
    assert not any(model._forward_pre_hooks for model in experts(pipe).values())
    pipe(**tiny.call(P))
    assert count.rows == rows


@tiny.every(what=["x0", "latents", "rescaled"])
def test_averages_do_what_the_formula_says(pipe, what):
    with record(pipe) as plain:
        pipe(**tiny.call(**THREE))
    with record(pipe) as run, average(pipe, what, 2):
        pipe(**tiny.call(**THREE))
    assert torch.equal(run.x[1], plain.x[1]) and list(run.edits) == [2]
    sigma, x, x0 = plain.sigmas[2], plain.x[2], plain.x0[1]
    noise = (x - (1 - sigma) * x0) / sigma
    level = (noise**2).mean() ** 0.5 / (noise.mean(0) ** 2).mean() ** 0.5
    assert 1.3 < level < 3**0.5 * 1.2
    expected = {
        "x0": (1 - sigma) * x0.mean(0) + sigma * noise,
        "latents": x.mean(0, keepdim=True).expand_as(x),
        "rescaled": ((1 - sigma) * x0.mean(0) + sigma * level * noise.mean(0)).expand_as(x),
    }[what]
    assert torch.allclose(run.x[2], expected, atol=1e-4)
    assert torch.allclose(run.latents[0], run.latents[1], atol=1e-3) == (what != "x0")
    untouched(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["x0", "latents", "rescaled"])
def test_averages_of_one_seed_or_of_equal_seeds(pipe, what):
    plain = pipe(**tiny.call()).frames
    with average(pipe, what, [1, 2]):
        assert torch.equal(pipe(**tiny.call()).frames, plain)
    with average(pipe, what, [1, 2]):
        assert torch.allclose(pipe(**tiny.call([P] * 3, seed=[0] * 3)).frames, plain, atol=1e-4)


def test_an_average_then_one_run_keeps_the_average(pipe):
    with average(pipe, "latents", [1, 2]):
        full = pipe(**tiny.call(**THREE)).frames
        with passes(pipe) as count:
            output, _ = choose_early(pipe, 2, first_film, **tiny.call(**THREE))
    assert torch.allclose(output.frames, full[:1], atol=1e-4) and count.rows == 2 * (3 * 2 + 3)


def test_the_odd_one_out_is_not_chosen():
    films = np.random.default_rng(0).random((1, 2, 4, 4, 3)) * 0.1 + np.array([0, 0.9, 0.02])[:, None, None, None, None]
    assert closeness(films).argmin() == 1 and closeness(films).max() < 0
    apart = distances(films)
    assert np.allclose(apart, apart.T) and np.all(np.diag(apart) == 0) and apart[0, 1] == pytest.approx(0.9)


def test_leaders_read_the_last_frame():
    sample = tasks.find_shape.sample(0)
    names = list(sample.options)[:2]
    films = [world.draw(np.stack([sample.ids[0], sample.options[name]])) for name in names]
    assert [leading(sample, film) for film in films] == names
    assert leading(sample, world.draw(sample.blank)[None]) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mean", 1), "cannot average 'mean': choose from"),
        (("x0", 0), "step 0 has no estimate"),
        (("x0", 7), r"no step 7: this run has 5 steps \(0\.\.4\)"),
    ],
)
def test_bad_averages_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message), average(pipe, *arguments):
        pipe(**tiny.call(**THREE))
    untouched(pipe)


def test_seeds_of_different_prompts_are_not_averaged(pipe):
    call = tiny.call(["a", "b"], seed=[0, 1])
    with pytest.raises(ValueError, match="row 1 has another prompt than its group of 2 seeds"):
        with average(pipe, "x0", 1):
            pipe(**call)
    untouched(pipe)


def test_an_average_that_no_call_reaches_is_an_error(pipe):
    with record(pipe) as run:
        pipe(**tiny.call(**THREE))
    with pytest.raises(RuntimeError, match=r"average did not act: no call reached steps \[1\]"):
        with average(pipe, "x0", [1, 4]):
            resume(pipe, run, 3, **tiny.call(**THREE))


def test_bad_choices_are_refused(pipe):
    with pytest.raises(ValueError, match="1 or more, got 0"):
        choose_early(pipe, 0, **tiny.call(**THREE))
    with pytest.raises(ValueError, match="step 4 is the last of this run"):
        choose_early(pipe, 5, **tiny.call(**THREE))
    with pytest.raises(ValueError, match="at least 2 films, got 1"):
        choose_early(pipe, 2, **tiny.call())
    untouched(pipe)
