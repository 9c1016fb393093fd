"""Exchanges between twins on a tiny untrained pipeline."""

import numpy as np
import pytest
import torch

from cosutils.measures.exchange import Exchange, between_seeds, between_twins, captured, leading_twin
from cosutils.measures.layers import pool
from cosutils.mini import tasks
from cosutils.mini.model import build_pipeline, build_transformer
from cosutils.pipelines.loading import seeded, settings, use_preset
from cosutils.training.train import fit_codec

CALL = dict(num_inference_steps=2)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    transformer = build_transformer(layers=2, width=32)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    pipe = build_pipeline(fit_codec(), transformer)
    pipe.set_progress_bar_config(disable=True)
    return use_preset(pipe, "mini")


def alone(pipe, sample, prompt, seed=0):
    call = sample.inputs | settings(pipe) | CALL | dict(prompt=prompt, output_type="np")
    return pipe(**call, generator=seeded(seed)).frames[0]


def test_the_leader_is_the_answer_that_is_drawn():
    sample = tasks.find_shape.sample(0)
    assert leading_twin(sample, sample.video) == sample.answer and leading_twin(sample, sample.twin().video) == sample.twin().answer


def test_rows_are_the_donor_the_recipient_and_every_exchange(pipe):
    sample = tasks.find_shape.sample(0)
    ways = [Exchange(1, "state"), Exchange(0, "delta", first=1), Exchange(1, "region")]
    donor, own, films = between_twins(pipe, sample, ways, **CALL)
    assert np.allclose(donor, alone(pipe, sample, sample.twin().prompt), atol=1e-5)
    assert np.allclose(own, alone(pipe, sample, sample.prompt), atol=1e-5)
    assert np.allclose(films[0], donor, atol=1e-5)  # the whole last state at every step is the donor's velocity
    assert len(films) == 3 and not np.allclose(films[2], donor, atol=1e-4)
    parts = between_twins(pipe, sample, ways, rows=2, **CALL)[2]
    assert np.allclose(parts, films, atol=1e-5)


def test_a_whole_state_under_the_same_prompt_is_the_same_at_every_layer(pipe):
    sample = tasks.find_shape.sample(1)
    ways = [Exchange(layer, "state", first=1) for layer in (0, 1)]
    _, own, films = between_seeds(pipe, sample, ways, (5, 6), **CALL)
    assert np.allclose(films[0], films[1], atol=1e-5) and not np.allclose(films[0], own, atol=1e-3)


def test_a_region_is_both_answers_places_after_the_given_frame(pipe):
    sample, once = (
        tasks.find_shape.sample(0),
        dict(num_inference_steps=1),
    )  # no later step mixes the tokens again
    donor, own, (film,) = between_twins(pipe, sample, [Exchange(1, "region")], **once)
    changed = [(option != sample.blank) for option in (sample.options[sample.answer], sample.twin().ids[-1])]
    inside = np.kron(pool((changed[0] | changed[1])[None], (1, 5, 5))[0], np.ones((16, 16), bool))  # whole tokens
    assert not np.allclose(donor[0], own[0], atol=1e-4) and np.allclose(film[0], own[0], atol=1e-6)
    assert np.allclose(film[-1][inside], donor[-1][inside], atol=1e-5)
    assert np.allclose(film[-1][~inside], own[-1][~inside], atol=1e-6)


def test_an_exchange_ends_after_its_steps(pipe):
    sample = tasks.find_shape.sample(0)
    _, own, (once, always) = between_twins(pipe, sample, [Exchange(1, "state", first=1), Exchange(1, "state")], **CALL)
    assert not np.allclose(once, always, atol=1e-4) and not np.allclose(once, own, atol=1e-4)


def test_own_states_change_nothing(pipe):
    sample = tasks.find_shape.sample(2)
    film = captured(pipe, sample, sample, Exchange(1, "delta", first=1), **CALL)
    assert np.array_equal(film, alone(pipe, sample, sample.prompt))


def test_what_cannot_be_exchanged_is_refused(pipe):
    with pytest.raises(ValueError, match="no mode 'part'"):
        Exchange(1, "part")
    with pytest.raises(ValueError, match="one step or more, got first = 0"):
        Exchange(1, first=0)
    with pytest.raises(ValueError, match="different pictures"):
        between_twins(pipe, tasks.maze.sample(0), [Exchange(1)], **CALL)
