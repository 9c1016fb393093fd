"""The instruments at another size than cos-mini's: larger pictures, longer films, tokens below cells, two experts."""

import numpy as np
import pytest
import torch

import cosutils as cos
import tiny
from cosutils.measures import behaviour, chain, layers, perturb, probes
from cosutils.measures.exchange import Exchange, between_twins
from cosutils.mini import tasks, world

LARGE = dict(pixels=160, frames=33)  # latents (9, 20, 20), tokens (9, 10, 10)
CALL = dict(num_inference_steps=2)


@pytest.fixture(scope="module")
def pipe():
    return cos.use_preset(tiny.build("a14b"), "paper")  # steps 0 and 1 of 2 in one expert each


@pytest.fixture(scope="module")
def traced(pipe):
    return chain.trace(pipe, tasks.shelf.sample(0, **LARGE), 3, keep_films=True, **CALL)


@pytest.mark.slow
def test_a_trace_of_a_large_film_is_what_its_small_reading_gives(pipe, traced):
    sample = traced.sample
    assert traced.films.shape == (2, 17, 80, 80, 3) and traced.settled.shape == (2, 17)
    with cos.record(pipe, keep="x0") as run:
        pipe(**sample.inputs, **cos.settings(pipe) | CALL, generator=cos.seeded(3), output_type="latent")
    whole = run.decode()[:, 0].numpy()
    assert whole.shape == (2, 33, 160, 160, 3)
    assert np.allclose(whole[:, ::2].reshape(2, 17, 80, 2, 80, 2, 3).mean((3, 5)), traced.films, atol=1e-6)
    assert [sample.score(film) for film in whole] == traced.scores


def test_parts_of_a_large_film_are_those_of_the_small_one():
    small, large = tasks.maze.sample(1), tasks.maze.sample(1, **LARGE)
    noise = np.random.default_rng(0).random(small.video.shape)
    film = small.video.copy()
    film[5:9] = noise[5:9]  # latent frame 2 of 5, and of 9 the frames 3 and 4
    found = perturb.parts(large, world.enlarged(film, 160, 33), [*perturb.pixel_frames(3), *perturb.pixel_frames(4)])
    assert found == pytest.approx(perturb.parts(small, film, perturb.pixel_frames(2)))
    assert found["others"] == 1 and found["own"] < 0.3


def test_frames_between_those_that_are_read_have_no_part_of_their_own():
    large = tasks.maze.sample(1, frames=81)
    assert "own" not in perturb.parts(large, large.video, perturb.pixel_frames(1))  # 1..4, read are 0, 5, 10, ...
    assert perturb.parts(large, large.video, perturb.pixel_frames(5))["own"] == 1  # 17..20


def test_unseen_frames_of_longer_films_lie_in_the_same_gap():
    found = [behaviour.unseen(tasks.reappear.sample(0, frames=frames)) for frames in (17, 33, 81)]
    assert found == [[2, 3], [3, 4, 5], [*range(7, 14)]]  # the ball is away in the frames 6 to 10 of 17


def test_smaller_tokens_lie_in_one_cell_and_larger_ones_hold_several():
    sample = tasks.find_shape.sample(0)
    coarse, exact, fine = (layers.foreground(sample, grid) for grid in ((5, 5, 5), (17, 10, 10), (33, 30, 30)))
    assert np.array_equal(fine[::2], exact.repeat(3, 1).repeat(3, 2))
    assert np.array_equal(exact.reshape(17, 5, 2, 5, 2).any((2, 4))[0], coarse[0])
    odd = layers.pool(
        np.arange(100).reshape(1, 10, 10) % 10 == 1, (1, 15, 15)
    )  # a token of 2/3 cell overlaps one or two
    assert odd[0, 0].tolist() == [False, True, True] + [False] * 12


def test_probes_ask_small_tokens_for_the_cell_under_their_middle():
    sample = tasks.maze.sample(3)
    labels = probes.arrange(probes.occupied, [sample], (9, 20, 20))
    assert labels.value.shape == (1, 400, 1)
    assert np.array_equal(labels.value.reshape(20, 20), probes.occupied(sample).value.repeat(2, 0).repeat(2, 1))


@pytest.mark.slow
def test_a_look_keeps_states_on_the_puzzles_grid(pipe):
    sample = tasks.find_shape.sample(0, frames=33)
    found = layers.activations(pipe, sample, probed=[0, 1], width=6, **CALL)
    assert found.grid == (9, 5, 5) and found.energy.shape == (2, tiny.LAYERS, 9, 5, 5)
    assert found.states.shape == (2, tiny.LAYERS + 1, 5, 5, 5, 6)
    with cos.capture(pipe, 1, 0, cos.projection(6)) as states:
        pipe(**sample.inputs, **cos.settings(pipe) | CALL, generator=cos.seeded(0), output_type="latent")
    volume = states["transformer", 0, 1][0].unflatten(0, states.grid).numpy()
    assert np.allclose(found.states[0, 2, 0], volume[0], atol=1e-5)
    assert np.allclose(found.states[0, 2, 1:], volume[1:].reshape(4, 2, 5, 5, 6).mean(1), atol=1e-5)
    scores = probes.by_layer([found] * 3, [found], probes.occupied)
    assert scores.shape == (1, 2, tiny.LAYERS + 1)


def test_tokens_smaller_than_cells_are_averaged_over_cells():
    states = torch.randn(1, 9 * 30 * 20, 8, generator=torch.Generator().manual_seed(0))
    kept = layers.coarse(4)(states, (9, 30, 20)).view(5, 10, 10, 4)
    volume = cos.projection(4)(states, (9, 30, 20)).view(9, 10, 3, 10, 2, 4).mean((2, 4))
    assert torch.allclose(kept[0], volume[0], atol=1e-6)
    assert torch.allclose(kept[1:], volume[1:].view(4, 2, 10, 10, 4).mean(1), atol=1e-6)


def test_a_sketch_is_some_tokens_in_fewer_channels():
    states = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
    kept = perturb.sketch(10, 4)(states, (1, 5, 6))
    assert torch.equal(kept, cos.projection(4)(states, (1, 5, 6))[:, ::3])
    with pytest.raises(ValueError, match="rows, the tokens that CKA compares, must be 2 or more, got 1"):
        perturb.sketch(1, 4)


@pytest.mark.slow
def test_the_flow_of_a_two_expert_model_is_read_from_sketches(pipe):
    sample = tasks.maze.sample(0, frames=33)  # 9 x 5 x 5 tokens
    found = perturb.propagation(pipe, sample, [0, 1], [1], [2], reduce=perturb.sketch(100, 4), **CALL)
    assert found.plain["layer 2"].shape == (2, 113, 4)
    assert np.isfinite(found.noise["layer 2"][np.triu_indices(2)]).all() and found.noise["layer 2"][0, 0] > 0.01


@pytest.mark.slow
def test_exchanges_hand_back_small_films(pipe):
    sample = tasks.find_shape.sample(0, frames=33)
    donor, own, films = between_twins(pipe, sample, [Exchange(1, "region")], **CALL)
    assert donor.shape == own.shape == (17, 80, 80, 3) and films.shape == (1, 17, 80, 80, 3)
    call = sample.inputs | cos.settings(pipe) | CALL | dict(output_type="np")
    alone = pipe(**call, generator=cos.seeded(0)).frames[0]
    assert np.allclose(own, world.reduced(alone), atol=1e-4)
