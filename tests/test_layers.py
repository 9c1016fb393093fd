"""Energies on and off the foreground, on made maps and on a tiny untrained pipeline."""

import numpy as np
import pytest
import torch

from cosutils.hooks.capture import capture
from cosutils.hooks.reductions import raw
from cosutils.measures import layers
from cosutils.mini import tasks
from cosutils.mini.codec import PatchCodec
from cosutils.mini.model import build_pipeline, build_transformer
from cosutils.pipelines.loading import seeded, settings, use_preset

GRID = (5, 5, 5)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = build_pipeline(PatchCodec(), build_transformer(layers=3, width=32))
    pipe.set_progress_bar_config(disable=True)
    return use_preset(pipe, "mini")


def test_a_token_is_true_where_any_of_its_cells_is():
    cells = np.zeros((17, 10, 10), bool)
    cells[0, 0, 1] = cells[6, 9, 9] = True  # frame 0 alone; frames 5 to 8 are latent frame 2
    tokens = layers.pool(cells, GRID)
    assert tokens.shape == GRID and tokens.sum() == 2 and tokens[0, 0, 0] and tokens[2, 4, 4]
    with pytest.raises(ValueError, match="does not fit the token grid"):
        layers.pool(cells, (1, 5, 5))


def test_foreground_is_what_is_drawn_and_the_places_of_answers_do_not_overlap():
    sample = tasks.find_shape.sample(0)
    marks = layers.foreground(sample, GRID)
    assert marks[4].sum() > marks[0].sum() >= 1  # the purple frame grows
    ball = tasks.shelf.sample(0)
    drawn = layers.pool(~np.isin(ball.ids, layers.STRUCTURE), GRID)
    left = layers.pool(ball.ids != ball.ids[0], GRID) & ~drawn
    assert left.any() and layers.foreground(ball, GRID)[left].all()  # where the ball was, the floor is of interest too
    own, others = layers.named(sample, GRID)
    assert own.any() and others.any() and not (own & others).any()


def test_contrast_is_a_log_ratio_without_the_artefacts():
    energies, mask = np.ones((2, *GRID)), np.zeros(GRID, bool)
    mask[:, 2, 2] = True
    energies[..., mask] = np.e
    assert layers.contrast(energies, mask) == pytest.approx([1, 1])
    energies[:, 0] = 50.0  # the given frame
    energies[:, 3, 0, 0] = 1e6  # one massive token of the background
    assert layers.contrast(energies, mask)[0] < 0
    assert layers.contrast(energies, mask, first=False, large=0.005) == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="share in"):
        layers.contrast(energies, mask, large=1.0)


def test_gain_rank_and_concordance():
    ratio = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5.0]])
    assert (
        layers.gain(ratio) == 4
        and layers.rank(ratio) == pytest.approx(1)
        and layers.concordance(ratio) == pytest.approx(1)
    )
    assert layers.concordance(np.stack([ratio[0], -ratio[0]])) == pytest.approx(-1)
    assert layers.thirds(10) == ([0, 1, 2, 3], [4, 5, 6], [7, 8, 9])
    with pytest.raises(ValueError, match="at least 3 layers"):
        layers.thirds(2)


def test_activations_hold_the_energies_and_states_of_the_run(pipe):
    sample = tasks.maze.sample(1)
    found = layers.activations(pipe, sample, seed=3, probed=[0, 1], num_inference_steps=2)
    call = settings(pipe) | dict(num_inference_steps=2, output_type="latent", generator=seeded(3))
    with capture(pipe, reduce=raw, inputs=True) as states:
        pipe(**sample.inputs | call)
    block = states["transformer", 1, 2]
    assert found.energy.shape == found.variance.shape == (2, 3, *GRID)
    assert found.energy[1, 2] == pytest.approx(block.norm(dim=-1).reshape(GRID).numpy(), rel=1e-5)
    assert found.states.shape == (2, 4, *GRID, 32)
    assert np.array_equal(found.states[1, 3].reshape(-1, 32), block[0].numpy())
    assert np.array_equal(found.states[0, 0].reshape(-1, 32), states.inputs["transformer", 0, 0][0].numpy())


def test_maps_lie_on_the_grid_as_tokens_are_counted():
    f, h, w = grid = (2, 3, 5)
    states = torch.randn(2, f * h * w, 4, generator=torch.Generator().manual_seed(0))
    found = layers.maps(states, grid)
    assert found.shape == (2, 2, *grid)
    for frame, row, column in np.ndindex(*grid):
        token = (frame * h + row) * w + column
        rows, columns = (range(max(0, k - 1), min(n, k + 2)) for k, n in ((row, h), (column, w)))
        near = states[:, [(frame * h + r) * w + c for r in rows for c in columns]]
        assert torch.allclose(found[:, 0, frame, row, column], states[:, token].norm(dim=-1))
        variance = near.var(1, correction=0).sum(-1)
        assert torch.allclose(found[:, 1, frame, row, column], variance, atol=1e-5)


def test_local_variance_sees_neighbours_only():
    states = torch.zeros(1, 125, 2)
    states[0, :25, 0] = torch.arange(25.0) // 5  # rows of frame 0: 0, 1, 2, 3, 4
    local = layers.maps(states, GRID)[0, 1]
    assert local[0, 2, 2] == pytest.approx(2 / 3, abs=1e-4) and local[0, 0, 2] == pytest.approx(0.25, abs=1e-4)
    assert not local[1:].any()


def test_centred_energy_takes_away_what_all_tokens_share():
    own = np.zeros((2, 3, *GRID, 4))
    own[..., 1, 2, 2, 0], own[..., 1, 2, 3, 0] = 3.0, -3.0  # a mean of zero
    found = layers.centred(own + np.arange(4) * 100)
    assert found.shape == (2, 3, *GRID)
    assert found[..., 1, 2, 2] == pytest.approx(np.full((2, 3), 3)) and found.sum() == pytest.approx(2 * 3 * 6)


def test_updates_are_what_a_block_adds(pipe):
    sample = tasks.maze.sample(1)
    found = layers.updates(layers.activations(pipe, sample, probed=[1], num_inference_steps=2).states)
    call = settings(pipe) | dict(num_inference_steps=2, output_type="latent", generator=seeded(0))
    with capture(pipe, 1, 1, raw, inputs=True) as states:
        pipe(**sample.inputs | call)
    added = states["transformer", 1, 1] - states.inputs["transformer", 1, 1]
    assert found.shape == (1, 3, *GRID)
    assert found[0, 1] == pytest.approx(added.norm(dim=-1).reshape(GRID).numpy(), rel=1e-4)
