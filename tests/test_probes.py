"""Linear probes find what is there and nothing else, on made states."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from cosutils.measures import probes
from cosutils.mini import tasks

GRID = (3, 5, 5)


@pytest.fixture
def made():
    """Puzzles whose states at layer 0 hold the label of each token's second cell in one channel, hidden in noise."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(40):
        sample = tasks.maze.sample(seed)
        states = rng.normal(size=(1, 2, *GRID, 6))
        value = probes.arrange(probes.occupied, [sample], GRID).value[0].reshape(5, 5, 4)
        states[0, 1, 1:, :, :, 0] += 8 * value[..., 1]
        found.append(SimpleNamespace(sample=sample, grid=GRID, states=states))
    return found


def test_labels_lie_where_the_board_has_them():
    sample = tasks.maze.sample(3)
    labels = probes.arrange(probes.occupied, [sample], (5, 5, 5))
    assert labels.value.shape == (1, 25, 4)
    assert labels.value[0, 0].tolist() == probes.occupied(sample).value[:2, :2].reshape(-1).tolist()
    answer = probes.answered(sample)
    assert answer.counted.any() and (answer.value & answer.counted).any() and (~answer.value & answer.counted).any()
    every = np.all([option != sample.blank for option in sample.options.values()], 0)
    assert every.any() and not (answer.counted & every).any()  # told from walls, not from other answers
    with pytest.raises(ValueError, match="do not fit 3 x 5 tokens"):
        probes.arrange(probes.occupied, [sample], (5, 3, 5))


def test_activations_without_states_are_refused(made):
    bare = SimpleNamespace(sample=made[0].sample, states=None)
    with pytest.raises(ValueError, match="hold no states: name steps to keep them at"):
        probes.by_layer([bare], made, probes.occupied)


def test_area_under_the_curve():
    assert probes.auc(np.array([0.1, 0.4, 0.3, 0.9]), [0, 0, 1, 1]) == 0.75
    assert probes.auc(np.array([1.0, 1.0]), [0, 1]) == 0.5
    assert np.isnan(probes.auc(np.array([1.0, 2.0]), [1, 1]))


def second_cells(sample):
    labels = probes.occupied(sample)
    counted = np.zeros_like(labels.counted)
    counted[2:8:2, 3:7:2] = True  # inside, where the place does not tell
    return probes.Labels(labels.value, counted)


def test_a_probe_reads_the_layer_that_holds_the_label(made):
    scores = probes.by_layer(made[:25], made[25:], second_cells)
    control = probes.by_layer(made[:25], made[25:], second_cells, control=True)
    assert scores.shape == (15, 1, 2)
    assert np.nanmean(scores[:, 0, 1]) > 0.95 > 0.75 > np.nanmean(control[:, 0, 1])
    assert np.nanmean(scores[:, 0, 1]) > np.nanmean(scores[:, 0, 0]) + 0.15


def test_one_latent_frame_is_read_alone(made):
    """The given picture holds the label in another channel, and in no layer but the first."""
    for one in made:
        value = probes.arrange(probes.occupied, [one.sample], GRID).value[0].reshape(5, 5, 4)
        one.states[0, 0, 0, :, :, 3] += 8 * value[..., 1]

    given, later = (np.nanmean(probes.by_layer(made[:25], made[25:], second_cells, frame), (0, 1)) for frame in (0, 2))
    assert given[0] > 0.9 > 0.75 > given[1]
    assert later[1] > 0.9 > 0.75 > later[0]


def test_halfway_means_what_the_films_have_drawn_by_then():
    sample = tasks.find_shape.sample(0)
    middle = probes.halfway(sample, 5)
    assert np.array_equal(middle.value, (sample.ids[8] != sample.ids[0])) and middle.value.sum() == 4
    others = [(film[8] != film[0]) for film in sample.possible.values()]
    assert np.array_equal(middle.counted, np.any(others, 0)), "no cell lies around all shapes"
    assert (probes.halfway(sample, 3).value.sum(), probes.halfway(sample, 9).value.sum()) == (4, 4)
    with pytest.raises(ValueError, match="2 latent frames has no middle one"):
        probes.halfway(sample, 2)


def test_the_penalty_does_not_depend_on_how_many_puzzles_say_the_same():
    rng = np.random.default_rng(2)
    states, value = rng.normal(size=(8, 2, 1, 5)), rng.integers(0, 2, (8, 1, 4)).astype(bool)
    labels = probes.Labels(value, np.ones_like(value))
    truth = rng.integers(0, 2, (60, 1, 4)).astype(bool)
    new = rng.normal(size=(60, 2, 1, 5)), probes.Labels(truth, np.ones_like(truth))
    often = np.tile(states, (50, 1, 1, 1)), probes.Labels(*(np.tile(part, (50, 1, 1)) for part in labels))
    once = probes.read_out(states, labels, *new, ridge=1)
    assert np.allclose(once, probes.read_out(*often, *new, ridge=1), equal_nan=True)
    assert not np.allclose(once, probes.read_out(states, labels, *new, ridge=0.01))


def test_near_best_needs_something_to_read():
    curve = np.array([0.5, 0.6, 0.94, 1.0])
    assert probes.near_best(curve, np.array(0.5)) == 2  # layers -1, 0, 1, 2; near is from 0.95 on
    assert probes.near_best(curve, np.array(0.3)) == 1
    assert np.isnan(probes.near_best(np.full(4, 0.52), np.array(0.5)))


def test_the_gap_counts_layers_and_is_left_out_where_nothing_is_readable():
    rng = np.random.default_rng(1)
    early, late = np.array([0.5, 1, 1, 1, 1.0]), np.array([0.5, 0.5, 0.5, 1, 1.0])
    rows = [np.clip(curve + rng.normal(0, 0.01, (12, 5)), 0, 1) for curve in (early, late)]
    floor = np.full((12, 5), 0.5)
    found = probes.gap(*rows, floor, floor)
    assert found["value"] == 2 and found["low"] <= 2 <= found["high"] and found["n"] == 12
    assert probes.gap(rows[0], floor, floor, floor) is None
    assert found["tolerance"] == max(1, (found["high"] - found["low"]) / 2)


def test_the_interval_of_the_gap_is_that_of_95_percent():
    count = 101  # the answer of puzzle k is readable from layer k - 1 on, so half way up its mean the gap is a median
    answer = np.where(np.arange(count) >= np.arange(count)[:, None], 1.0, 0.5)
    seen, floor = np.ones((count, count)), np.full((count, count), 0.5)
    found = probes.gap(seen, answer, floor, floor, level=0.5, resamples=1000)
    below = stats.binom(count, np.arange(1, count + 1) / count).sf(count // 2)  # P(median of a resample <= k)
    low, high = (np.searchsorted(below, share) for share in (0.025, 0.975))
    assert found["value"] == 50 and found["tolerance"] == (found["high"] - found["low"]) / 2
    assert abs(found["low"] - low) <= 1 and abs(found["high"] - high) <= 1
