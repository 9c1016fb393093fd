"""The ten tasks: exact ground truth, a score that separates the controls, evidence that recovers a mixture."""

import dataclasses
import sys

import numpy as np
import pytest

import tiny
from cosutils.mini import tasks, world
from cosutils.mini.controls import CONTROLS, control

SEEDS = range(20)
every_task = tiny.every(name=tasks.NAMES)


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A further folder of tasks; afterwards everything is as before."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    tasks.base.modules.cache_clear()
    yield tmp_path
    sys.modules.pop("cosutils.mini.tasks.corner", None)
    tasks.base.modules.cache_clear()


CORNER = """
import numpy as np
STREAM, WORDS, DIFFICULTIES, DIFFICULTY = 10, "paint corner", (1,), 1
def build(rng, difficulty, twin):
    corners = rng.permutation(4)
    films = {str(k): np.zeros((17, 10, 10), np.uint8) for k in range(4)}
    for k in range(4):
        films[str(k)][:, 9 * (k // 2), 9 * (k % 2)] = 3
    answer = str(corners[int(twin)])
    return "paint the corner", {answer: films[answer]}, films, films[answer][0] * 0
"""


def test_a_task_is_one_file_that_is_found_by_itself(folder):
    before = [tasks.sample(name, 3) for name in tasks.NAMES]
    (folder / "corner.py").write_text(CORNER)
    tasks.base.modules.cache_clear()
    assert list(tasks.base.modules()) == [*tasks.NAMES, "corner"]
    puzzle = tasks.get("corner").sample(5, pixels=160)
    assert puzzle.score(puzzle.video).solved and puzzle.twin().answer != puzzle.answer
    assert all(np.array_equal(tasks.sample(p.task, 3).ids, p.ids) for p in before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CORNER.replace("STREAM, WORDS", "STREAM, SPOKEN"), "the task corner .* does not define WORDS"),
        (CORNER.replace("= 10,", "= 3,"), "the tasks (corner|shelf) and (corner|shelf) have the same STREAM 3"),
    ],
)
def test_a_file_that_is_no_whole_task_is_named(folder, text, message):
    (folder / "corner.py").write_text(text)
    with pytest.raises(ImportError, match=message):
        tasks.base.modules()


def test_a_task_whose_answers_are_no_films_is_refused(folder):
    (folder / "corner.py").write_text(
        CORNER.replace(", films, films[answer]", ", {k: f[-1] for k, f in films.items()}, films[answer]")
    )
    tasks.base.modules.cache_clear()
    with pytest.raises(ValueError, match=r"the film of '0' has shape \(17, 10, 10\), got \(10, 10\)"):
        tasks.get("corner").sample(5)


@every_task
def test_every_possible_answer_has_a_film_from_the_given_picture_to_it(name):
    for seed in range(5):
        puzzle = tasks.sample(name, seed)
        assert puzzle.possible.keys() == puzzle.options.keys() >= puzzle.films.keys()
        for answer, film in puzzle.possible.items():
            assert np.array_equal(film[-1], puzzle.options[answer])
            if answer in puzzle.films:
                assert np.array_equal(film, puzzle.films[answer])
            elif name not in ("occlusion", "reappear"):  # there the given picture shows the answer
                assert np.array_equal(film[0], puzzle.ids[0])


# ---------------------------------------------------------------- the score, exactly
@every_task
def test_one_wrong_cell_is_not_solved(name):
    """Whatever cell of the last frame is exchanged: the answer loses exactly this cell, one of thirteen or of two."""
    for seed in range(3):
        puzzle = tasks.sample(name, seed, tasks.get(name).DIFFICULTIES[-1])
        for r, c in np.random.default_rng(seed).integers(world.CELLS, size=(8, 2)):
            ids = puzzle.ids.copy()
            ids[-1, r, c] = (ids[-1, r, c] + 1) % len(world.TILES)
            changed = (ids[-1] != ids[0]) | (puzzle.ids[-1] != ids[0])
            score = puzzle.score(world.draw(ids))
            assert not score.solved and score.parts["motion"] == 1
            assert score.parts["answer"] == score.total == pytest.approx(1 - 1 / changed.sum())


def test_the_nearest_answer_is_that_of_the_last_frame():
    puzzle = next(p for p in map(tasks.two_routes.sample, range(9), [0] * 9) if len(p.films) == 2)
    first, second = puzzle.films.values()
    score = puzzle.score(world.draw(np.concatenate([first[:-1], second[-1:]])))
    assert score.parts["answer"] == 1 and score.total == score.parts["motion"] < 0.8 and not score.solved


def test_solved_needs_four_fifths_of_the_motion():
    puzzle = tasks.find_shape.sample(0)
    for wrong, solved in ((2, True), (6, False)):
        ids = puzzle.ids.copy()
        ids[1 : 1 + wrong] = world.TILE["wall"]  # agreement of these frames: almost none
        score = puzzle.score(world.draw(ids))
        assert score.parts["motion"] == pytest.approx(1 - wrong / 15, abs=0.01)
        assert score.solved == solved and score.parts["answer"] == 1


@every_task
def test_candidates_are_shares(name):
    """None is below zero or above one, in whatever picture; the true film alone gives the answer the whole."""
    puzzle = tasks.sample(name, 2)
    pictures = [
        np.zeros(puzzle.shape),
        np.ones(puzzle.shape),
        control("noise", puzzle),
        world.draw(np.full((17, 10, 10), 2)),
    ]
    found = np.array([list(puzzle.candidates(film).values()) for film in pictures])
    assert found.min() >= 0 and found.max() <= 1
    own = puzzle.candidates(puzzle.video)
    assert own[puzzle.answer] == pytest.approx(1) and sum(own.values()) == pytest.approx(1)


def test_a_share_beyond_one_is_clipped():
    puzzle = tasks.two_routes.sample(0)
    where, basis, blank = puzzle._basis
    film = np.zeros(puzzle.shape[1:])  # black: further from the floor than any trail
    raw = np.linalg.lstsq(basis, film.reshape(-1)[where] - blank, rcond=None)[0]
    assert raw.max() > 1 and max(puzzle.candidates(film).values()) == 1


TRUE = tasks.maze.sample(0)
WRONG = {
    "eight bits": (
        np.uint8(TRUE.video * 255),
        r"floats in \[0, 1\], got uint8 from \d+ to \d+: divide 8-bit values by 255",
    ),
    "eight bits as floats": (TRUE.video * 255, r"values in \[0, 1\], got float32 from \d+.* to \d+"),
    "the range of the VAE": (TRUE.video * 2 - 1, r"values in \[0, 1\], got float32 from -0\.\d+ to"),
    "not a number": (np.where(np.arange(80)[:, None] == 3, np.nan, TRUE.video), "finite values, got 4080 of 326400"),
    "infinite": (np.where(TRUE.video > 0.9, np.inf, TRUE.video), "finite values"),
    "truth values": (TRUE.video > 0.5, "floats in .* got bool"),
    "no frames": (TRUE.video[:0], "film has shape"),
    "channels first": (np.moveaxis(TRUE.video, -1, 1), "film has shape"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("read", ["score", "candidates"])
def test_films_that_are_none_are_refused(kind, read):
    film, message = WRONG[kind]
    with pytest.raises(
        ValueError, match=message if read == "score" else message.replace("4080 of 326400", "240 of 19200")
    ):
        getattr(TRUE, read)(film)


def test_rounding_beyond_the_range_is_none():
    film = TRUE.video * np.float32(1.0005)
    assert TRUE.score(film).solved and TRUE.candidates(film)[TRUE.answer] == pytest.approx(1, abs=0.01)


@every_task
def test_every_puzzle_of_a_floor_has_a_film_of_its_own(name):
    """No control repeats a film that belongs to another puzzle."""
    puzzles = [tasks.sample(name, seed) for seed in SEEDS[:6]]
    assert len({control("noise", p).tobytes() for p in puzzles}) == len(puzzles)
    assert all(np.array_equal(control("noise", p), control("noise", dataclasses.replace(p))) for p in puzzles)
    others = [control("other", p) for p in puzzles]
    assert all(
        np.array_equal(film, tasks.sample(name, p.seed + 1_000_000).video)
        for film, p in zip(others, puzzles, strict=True)
    )


def test_read_inverts_draw():
    ids = np.random.default_rng(0).integers(len(world.TILES), size=(3, 10, 10)).astype(np.uint8)
    assert np.array_equal(world.read(world.draw(ids)), ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.sample("mase", 0), "unknown task 'mase'; tasks are maze, two_routes"),
        (lambda: tasks.sample("maze", -1), "a seed must be 0 or more, got -1"),
        (lambda: tasks.sample("maze", "7"), "a seed must be an integer, got '7'"),
        (lambda: tasks.sample("maze", 1.0), "a seed must be an integer, got 1.0"),
        (lambda: tasks.sample("maze", 0, 6.0), "a difficulty must be an integer, got 6.0"),
        (lambda: tasks.sample("maze", 0, 5), r"maze has difficulties \[4, 6, 8, 10, 12\], got 5"),
        (lambda: tasks.sample("maze", 0).score(np.zeros((16, 80, 80, 3))), "a maze film has shape"),
        (lambda: tasks.sample("maze", 0).candidates(np.zeros((40, 40, 3))), "the last frame of a maze film"),
        (
            lambda: control("blur", tasks.sample("maze", 0)),
            "unknown control 'blur'; controls are frozen, noise",
        ),
        (lambda: world.read(np.zeros((40, 40, 3))), "pictures must end in"),
        (lambda: world.draw(np.zeros((4, 4), int)), "tile numbers must end in"),
        (lambda: world.draw(np.full((10, 10), -1)), "tile numbers are integers from 0 to 13, got int64 from -1 to -1"),
        (lambda: world.draw(np.zeros((10, 10))), "tile numbers are integers from 0 to 13, got float64"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


LARGE = dict(pixels=160, frames=33)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_film_is_read_by_the_mean_of_its_blocks_at_every_mth_frame():
    small = tasks.maze.sample(0)
    large = tasks.maze.sample(0, pixels=240, frames=49)
    film = large.video + np.random.default_rng(0).normal(0, 0.3, large.shape)
    film[1::3] = film[2::3] = 0.5  # not among the frames that are read: 0, 3, 6, ...
    film = film.clip(0, 1)
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
