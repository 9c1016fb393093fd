"""The ten tasks: exact ground truth, a score that separates the controls, evidence that recovers a mixture."""

import numpy as np
import pytest

from cosutils.mini import tasks, world
from cosutils.mini.controls import CONTROLS, control
from cosutils.training.evaluate import REPORT, TRAIN, VALIDATION

SEEDS = range(20)
every_task = pytest.mark.parametrize("name", tasks.NAMES)


@every_task
def test_truth_scores_one_and_is_a_possible_answer(name):
    for seed in SEEDS:
        puzzle = tasks.sample(name, seed)
        assert puzzle.video.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
        score = puzzle.score(puzzle.video)
        assert score.total == 1 and score.solved
        assert np.array_equal(puzzle.options[puzzle.answer], puzzle.ids[-1])
        assert len({option.tobytes() for option in puzzle.options.values()}) == len(puzzle.options) >= 2


@every_task
def test_controls_score_clearly_below_the_truth(name):
    totals = {kind: [] for kind in CONTROLS}
    for puzzle in (tasks.sample(name, seed) for seed in SEEDS):
        for kind in CONTROLS:
            film = control(kind, puzzle)
            score = puzzle.score(film)
            totals[kind].append(score.total)
            assert not score.solved or np.array_equal(film, puzzle.video)
    assert np.mean(totals["frozen"]) < 0.1 and np.mean(totals["noise"]) < 0.1
    assert np.mean(totals["jump"]) < 0.75 and np.mean(totals["other"]) < 0.5


@every_task
def test_candidates_recover_the_weights_of_a_mixture(name):
    puzzle = tasks.sample(name, 4)
    frames = world.draw(np.stack(list(puzzle.options.values())))
    weights = np.random.default_rng(1).dirichlet(np.ones(len(frames)))
    found = puzzle.candidates(np.tensordot(weights, frames, 1))
    assert found.keys() == puzzle.options.keys()
    assert np.allclose(list(found.values()), weights, atol=1e-5)


@every_task
def test_same_seed_same_puzzle_and_a_twin_that_differs(name):
    puzzle, again = tasks.sample(name, 5), tasks.sample(name, 5)
    assert puzzle.prompt == again.prompt and np.array_equal(puzzle.ids, again.ids)
    twin = puzzle.twin()
    assert twin.answer != puzzle.answer
    assert np.array_equal(twin.twin().ids, puzzle.ids)
    assert puzzle.score(twin.video).total < 0.9


@pytest.mark.parametrize("name", ["two_routes", "tictactoe", "shelf", "find_shape", "rotation"])
def test_prompt_twins_share_the_picture(name):
    puzzle = tasks.sample(name, 3)
    assert np.array_equal(puzzle.ids[0], puzzle.twin().ids[0]) and puzzle.prompt != puzzle.twin().prompt


def test_equal_routes_have_two_right_answers():
    puzzle = tasks.sample("two_routes", 0, difficulty=0)
    assert list(puzzle.films) == ["upper", "lower"]
    assert all(puzzle.score(world.draw(film)).solved for film in puzzle.films.values())


@every_task
def test_every_difficulty_builds(name):
    for difficulty in tasks.get(name).DIFFICULTIES:
        puzzle = tasks.sample(name, 0, difficulty)
        assert puzzle.score(puzzle.video).solved


def test_seed_ranges_are_disjoint():
    assert REPORT.stop <= VALIDATION.start and VALIDATION.stop <= TRAIN.start


def test_read_inverts_draw():
    ids = np.random.default_rng(0).integers(len(world.TILES), size=(3, 10, 10)).astype(np.uint8)
    assert np.array_equal(world.read(world.draw(ids)), ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.sample("mase", 0), "unknown task 'mase'; tasks are maze, two_routes"),
        (lambda: tasks.sample("maze", -1), "a seed is an integer >= 0, got -1"),
        (lambda: tasks.sample("maze", "7"), "a seed is an integer >= 0, got '7'"),
        (lambda: tasks.sample("maze", 0, 5), r"maze has difficulties \[4, 6, 8, 10, 12\], got 5"),
        (lambda: tasks.sample("maze", 0).score(np.zeros((16, 80, 80, 3))), "a maze film has shape"),
        (lambda: tasks.sample("maze", 0).candidates(np.zeros((40, 40, 3))), "the last frame of a maze film"),
        (
            lambda: control("blur", tasks.sample("maze", 0)),
            "unknown control 'blur'; controls are frozen, noise",
        ),
        (lambda: world.read(np.zeros((40, 40, 3))), "pictures must end in"),
        (lambda: world.draw(np.zeros((4, 4), int)), "tile numbers must end in"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


LARGE = dict(pixels=160, frames=33)


@every_task
def test_the_same_puzzle_at_another_size_is_read_the_same(name):
    small, large = tasks.sample(name, 4), tasks.sample(name, 4, **LARGE)
    assert large.prompt == small.prompt and np.array_equal(large.ids, small.ids)
    assert large.video.shape == large.shape == (33, 160, 160, 3) and large.image.size == (160, 160)
    assert np.array_equal(world.reduced(large.video), small.video)
    assert np.array_equal(np.asarray(large.image) / np.float32(255), large.video[0])
    assert large.score(large.video).solved and large.twin().shape == large.shape
    assert np.allclose([*large.candidates(large.video).values()], [*small.candidates(small.video).values()], atol=1e-6)
    for kind in CONTROLS:
        assert control(kind, large).shape == large.shape
        if kind != "noise":  # the mean of more noise is greyer
            assert large.score(control(kind, large)) == small.score(control(kind, small))


def test_a_film_is_read_by_the_mean_of_its_blocks_at_every_mth_frame():
    small = tasks.maze.sample(0)
    large = tasks.maze.sample(0, pixels=240, frames=49)
    film = large.video + np.random.default_rng(0).normal(0, 0.3, large.shape)
    film[1::3] = film[2::3] = 0.5  # not among the frames that are read: 0, 3, 6, ...
    assert np.abs(world.reduced(film) - small.video).mean() < 0.1  # 0.3 / 3, times 0.8
    assert large.score(film).solved and large.score(world.reduced(film)).solved
    assert np.array_equal(world.read(film[-1]), small.ids[-1])


def test_frames_are_held_and_the_last_of_each_is_read():
    assert world.shown(17).tolist() == list(range(17))
    assert world.shown(33).tolist() == [0] + [k for k in range(1, 17) for _ in range(2)]
    assert world.shown(81)[::5].tolist() == list(range(17))


def test_inputs_name_the_prompt_length_of_the_embedded_model_only():
    assert tasks.maze.sample(0).inputs["max_sequence_length"] == 16
    inputs = tasks.maze.sample(0, **LARGE).inputs
    assert "max_sequence_length" not in inputs
    assert (inputs["height"], inputs["width"], inputs["num_frames"]) == (160, 160, 33)


@pytest.mark.parametrize(
    "size",
    [dict(pixels=100), dict(pixels=0), dict(pixels=80.0), dict(frames=21), dict(frames=1), dict(frames=True)],
)
def test_sizes_that_cannot_be_drawn_are_refused(size):
    with pytest.raises(ValueError, match=r"a multiple of 80 pixels a side and 16 m \+ 1 frames .* got pixels="):
        tasks.sample("maze", 0, **size)


def test_films_of_another_size_are_refused():
    large = tasks.maze.sample(0, **LARGE)
    with pytest.raises(ValueError, match=r"a maze film has shape \(33, 160, 160, 3\), got"):
        large.score(np.zeros((33, 80, 80, 3)))
    with pytest.raises(ValueError, match="pictures must end in"):
        world.shrunk(np.zeros((160, 80, 3)))
    with pytest.raises(ValueError, match="films have shape"):
        world.reduced(np.zeros((160, 160, 3)))
    with pytest.raises(ValueError, match="got pixels=80 and frames=5"):
        world.reduced(np.zeros((5, 80, 80, 3)))


def turned(first, prompt):
    """The rotation puzzle solved from picture and prompt alone: every cell about the dark one."""
    times = int(prompt.split()[-2]) // 90
    ((r, c),) = np.argwhere(first == world.TILE["wall"])
    last = np.full_like(first, world.TILE["floor"])
    for y, x in np.argwhere(first != world.TILE["floor"]):
        a, b = y - r, x - c
        for _ in range(times):
            a, b = b, -a
        last[r + a, c + b] = first[y, x]
    return last


def carried(first, prompt):
    """The shelf puzzle solved from picture and prompt alone: the second place of the named board."""
    wall = first == world.TILE["wall"]
    mirrored = wall[:, 0].any()
    first, wall = (first[:, ::-1], wall[:, ::-1]) if mirrored else (first, wall)
    boards = [r for r in range(world.CELLS) if wall[r, -1]][::-1]
    level = ["first", "second", "third", "fourth"].index(prompt.split()[-2])
    begin = world.CELLS - wall[boards[-1]].sum()  # of the uppermost board: no post beside it
    last = np.where(first == world.TILE["ball"], world.TILE["floor"], first)
    last[boards[level] - 1, begin + 1] = world.TILE["ball"]
    return last[:, ::-1] if mirrored else last


@pytest.mark.parametrize("name, solve", [("rotation", turned), ("shelf", carried)])
def test_picture_and_prompt_decide_the_answer(name, solve):
    for seed in range(200):
        puzzle = tasks.sample(name, seed)
        assert np.array_equal(solve(puzzle.ids[0], puzzle.prompt), puzzle.ids[-1])
