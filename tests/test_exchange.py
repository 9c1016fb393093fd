"""Exchanges between twins on a tiny untrained pipeline."""

from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch

import tiny
from cosutils.measures.carried import carried, erased, recorded
from cosutils.measures.exchange import Exchange, at_step, between_seeds, between_twins, captured, flips, leading_twin
from cosutils.measures.layers import pool
from cosutils.mini import tasks, world
from cosutils.pipelines.loading import seeded, settings

CALL = dict(num_inference_steps=2)


@pytest.fixture(scope="module")
def pipe():
    return tiny.embedded()


def alone(pipe, sample, prompt, seed=0):
    call = sample.inputs | settings(pipe) | CALL | dict(prompt=prompt, output_type="np")
    return pipe(**call, generator=seeded(seed)).frames[0]


def test_the_leader_is_the_answer_that_is_drawn():
    sample = tasks.find_shape.sample(0)
    assert (
        leading_twin(sample, sample.video) == sample.answer
        and leading_twin(sample, sample.twin().video) == sample.twin().answer
    )


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


def test_with_guidance_an_exchange_takes_place_in_the_pass_that_is_named(pipe):
    """The last state exchanged in both passes gives the donor's film; the pass without a prompt is alike in both."""
    sample = tasks.find_shape.sample(0)
    ways = [Exchange(1, "state", branch=branch) for branch in ("both", "cond", "uncond")]
    donor, own, (both, cond, uncond) = between_twins(pipe, sample, ways, guidance_scale=3.0, num_inference_steps=1)
    assert np.allclose(both, donor, atol=1e-5) and np.allclose(cond, donor, atol=1e-5)
    assert np.allclose(uncond, own, atol=1e-5) and not np.allclose(own, donor, atol=1e-3)


@contextmanager
def by_hand(pipe, layer, mode, steps):
    """The exchange as two lines of a plain hook: row 1 of a batch takes what block `layer` makes of row 0."""
    calls = count()

    def take(block, arguments, output):
        if next(calls) in steps:
            new = output[0] if mode == "state" else arguments[0][1] + output[0] - arguments[0][0]
            return torch.stack([output[0], new])
        return None

    hook = pipe.transformer.blocks[layer].register_forward_hook(take)
    yield
    hook.remove()


@pytest.mark.parametrize("layer, mode, first", [(0, "delta", 1), (1, "delta", None), (0, "state", 1)])
def test_an_exchange_takes_place_at_its_layer_and_from_donor_to_recipient(pipe, layer, mode, first):
    sample = tasks.tictactoe.sample(3)
    call = sample.inputs | settings(pipe) | CALL | dict(output_type="np")
    with by_hand(pipe, layer, mode, range(first or 2)):
        donor, film = pipe(**call | dict(prompt=[sample.twin().prompt, sample.prompt]), generator=seeded([4, 4])).frames
    found = between_twins(pipe, sample, [Exchange(layer, mode, first)], seed=4, **CALL)
    assert np.allclose(found[0], donor, atol=1e-5) and np.allclose(found[2][0], film, atol=1e-5)
    assert not np.allclose(found[1], film, atol=1e-4)
    with by_hand(pipe, layer, mode, range(first or 2)):
        donor, film = pipe(**call | dict(prompt=[sample.prompt] * 2), generator=seeded([5, 6])).frames
    found = between_seeds(pipe, sample, [Exchange(layer, mode, first)], (5, 6), **CALL)
    assert np.allclose(found[0], donor, atol=1e-5) and np.allclose(found[2][0], film, atol=1e-5)
    assert np.allclose(found[0], alone(pipe, sample, sample.prompt, 5), atol=1e-5)
    assert np.allclose(found[1], alone(pipe, sample, sample.prompt, 6), atol=1e-5)


def test_the_donor_of_a_captured_exchange_is_the_other_puzzle(pipe):
    sample, donor = tasks.find_shape.sample(0), tasks.maze.sample(1)
    film = captured(pipe, sample, donor, Exchange(1, "state"), seed=2, **CALL)[-1]
    call = settings(pipe) | CALL | dict(output_type="np")  # the whole last state at every step is all of a velocity
    assert np.allclose(film, pipe(**donor.inputs | call, generator=seeded(2)).frames[0], atol=1e-5)


def test_the_prompt_of_either_twin_names_the_player_whose_winning_cell_is_the_answer():
    for seed in range(20):
        for sample in (tasks.tictactoe.sample(seed), tasks.tictactoe.sample(seed).twin()):
            drawn = sample.ids[-1][sample.ids[-1] != sample.ids[0]]
            (player,) = {name for name in ("purple", "yellow") if (drawn == world.TILE[name]).all()}
            assert sample.prompt.startswith(player)


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
    films = captured(pipe, sample, sample, Exchange(1, "delta", first=1), **CALL)
    assert np.array_equal(films, recorded(pipe, sample, **CALL).decode()[:, 0].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1])
def test_at_its_step_an_exchange_is_read_before_a_later_step_can_overrule_it(pipe, step):
    sample = tasks.find_shape.sample(0)
    run = recorded(pipe, sample, seed=3, **CALL)
    ways = [Exchange(1, "state"), Exchange(range(2), "text"), Exchange(0, "text"), Exchange(0, "delta")]
    ceiling, own, films = at_step(pipe, sample, run, step, ways)
    assert np.allclose(own, run.decode([step])[0, 0].numpy(), atol=1e-5)
    switched = carried(pipe, run, step, sample, prompt=sample.twin().prompt)
    assert sorted(switched.x0) == [*range(step, 2)]
    assert np.allclose(ceiling, switched.decode([step])[0, 0].numpy(), atol=1e-5)
    # the last block's whole state is the donor's velocity, and a prompt comes in through cross-attention alone
    assert np.allclose(films[:2], ceiling, atol=1e-5) and not np.allclose(ceiling, own, atol=1e-3)
    assert all(not np.allclose(film, end, atol=1e-4) for film in films[2:] for end in (own, ceiling))
    assert np.allclose(at_step(pipe, sample, run, step, ways, rows=3)[2], films, atol=1e-5)


def test_flips_are_a_share_of_what_the_whole_prompt_flips():
    sample = tasks.find_shape.sample(0)
    own, twin = sample.answer, sample.twin().answer
    pairs = [
        (sample, [twin, own, twin, own]),
        (sample, [own, own, twin, twin]),  # the prompt itself does not flip it
        (sample, [twin, None, twin, twin]),  # nothing to flip
        (sample, [twin, own, None, twin]),
    ]
    ceiling, flipped = flips(pairs, 2)
    assert ceiling.tolist() == [True, False, True] and flipped.tolist() == [[True, False], [False, True]]
    assert flips(pairs[1:2], 2)[1].shape == (0, 2)


@pytest.mark.parametrize("task", ["reappear", "occlusion"])
def test_an_erased_picture_does_not_tell_the_twins_apart(task):
    sample = tasks.sample(task, 0, pixels=160)
    picture = np.asarray(erased(sample))
    assert picture.shape == (160, 160, 3) and np.array_equal(picture, erased(sample.twin()))
    changed = (picture != np.asarray(sample.image)).any(-1)
    assert 0 < changed.sum() <= 2 * 16 * 16  # one cell, or the two places of the ball
    with pytest.raises(ValueError, match="the twins of tictactoe have the same picture"):
        erased(tasks.tictactoe.sample(0))


def test_a_state_carried_on_under_its_own_condition_ends_as_its_own_run(pipe):
    sample = tasks.reappear.sample(0)
    run = recorded(pipe, sample, seed=3, **CALL)
    same, other = (carried(pipe, run, 1, one).x0[1] for one in (sample, sample.twin()))
    assert torch.equal(same, run.x0[1]) and not torch.allclose(other, run.x0[1], atol=1e-3)
    with pytest.raises(KeyError, match="no step 2"):
        carried(pipe, run, 2, sample)


def test_what_cannot_be_exchanged_is_refused(pipe):
    with pytest.raises(ValueError, match="no mode 'part'"):
        Exchange(1, "part")
    with pytest.raises(ValueError, match="branch"):
        Exchange(1, branch="none")
    with pytest.raises(ValueError, match="first, the number of steps of an exchange, must be 1 or more, got 0"):
        Exchange(1, first=0)
    with pytest.raises(ValueError, match="different pictures"):
        between_twins(pipe, tasks.maze.sample(0), [Exchange(1)], **CALL)
    with pytest.raises(ValueError, match="different pictures"):
        at_step(pipe, tasks.maze.sample(0), None, 0, [Exchange(1)])
