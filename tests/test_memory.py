"""A model that sees its last estimate, under the instruments that begin a run in its middle."""

from __future__ import annotations

import pytest
import torch

import cosutils as cos
from cosutils.hooks.inject import from_noise, inject, inject_each, noise_at_frame, noise_at_step
from cosutils.hooks.record import record, resume
from cosutils.measures.carried import carried, recorded
from cosutils.mini.model import films_of
from cosutils.pipelines.loading import seeded, settings

STEPS = 6


@pytest.fixture(scope="module")
def pipe():
    pipe = cos.load("cos-mini-memory")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def run(pipe):
    return recorded(pipe, cos.tasks.sample("maze", 3), 3, num_inference_steps=STEPS)


def call(pipe, seed=3, **changes):
    inputs = cos.tasks.sample("maze", seed).inputs | settings(pipe) | dict(num_inference_steps=STEPS) | changes
    return inputs | dict(generator=seeded(seed), output_type="latent")


def test_a_resumed_run_goes_on_with_what_the_model_remembered(pipe, run):
    for step in (0, 1, 3, STEPS - 1):
        pipe(**call(pipe, seed=4))  # whatever another run left behind
        assert torch.equal(resume(pipe, run, step, **call(pipe)).frames, run.latents)


@pytest.mark.parametrize("edit", [noise_at_step(3), noise_at_frame(2)], ids=str)
def test_an_edit_of_a_recorded_run_is_that_of_the_whole_call(pipe, run, edit):
    with inject(pipe, edit):
        whole = pipe(**call(pipe)).frames
    ((_, output),) = inject_each(pipe, run, [edit], **call(pipe))
    assert torch.equal(output.frames, whole)


def test_a_carried_run_does_not_depend_on_what_ran_before_it(pipe, run):
    other = cos.tasks.sample("maze", 5)
    first = carried(pipe, run, 4, other, once=True).x0[4]
    carried(pipe, run, 1, other, once=True)
    assert torch.equal(carried(pipe, run, 4, other, once=True).x0[4], first)


def test_what_cannot_keep_the_memory_is_refused(pipe):
    with record(pipe) as guided:
        pipe(**call(pipe, guidance_scale=2.0))
    with pytest.raises(ValueError, match="cannot be resumed under guidance"):
        resume(pipe, guided, 3, **call(pipe, guidance_scale=2.0))
    with pytest.raises(ValueError, match="sees its last estimate"):
        from_noise(pipe, noise_at_step(3), **call(pipe))


def test_a_batch_of_puzzles_is_drawn_as_each_alone(pipe):
    mazes = [cos.tasks.sample("maze", seed) for seed in (3, 4)]
    pairs = zip(films_of(pipe, mazes, 4), (next(films_of(pipe, [maze], 4)) for maze in mazes), strict=True)
    assert all(abs(together - alone).max() < 1e-3 for together, alone in pairs)
