"""Every task against a solver of its own that knows the first picture and the prompt and nothing else.

A solver returns the last frames of all *right* answers and of all *possible* ones. It shares no code with the task:
boards are read from the picture, mazes and routes are searched, the ball is flown by folding the plane.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
from cosutils.mini import tasks
from cosutils.mini.world import CELLS, TILE

GOLDEN = json.loads(Path(__file__).with_name("golden_tasks.json").read_text())
FLOOR, WALL, BALL, TRAIL, RED, AT_GOAL = (TILE[t] for t in ("floor", "wall", "ball", "blue", "red", "ball_on_red"))


def only(cells: np.ndarray) -> tuple[int, int]:
    """The one cell that is true."""
    ((r, c),) = np.argwhere(cells)
    return int(r), int(c)


def put(board: np.ndarray, **tiles: tuple[int, int]) -> np.ndarray:
    board = board.copy()
    for name, cell in tiles.items():
        board[cell] = TILE[name]
    return board


def paths(open_: np.ndarray, start: tuple[int, int]) -> Iterator[list[tuple[int, int]]]:
    """Every simple path from `start`, breadth first."""
    queue = [[start]]
    for path in queue:
        yield path
        r, c = path[-1]
        for a, b in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if 0 <= a < CELLS and 0 <= b < CELLS and open_[a, b] and (a, b) not in path:
                queue.append([*path, (a, b)])


def walked(first: np.ndarray, path: list[tuple[int, int]]) -> np.ndarray:
    last = first.copy()
    last[tuple(np.transpose(path[:-1]))] = TRAIL
    last[path[-1]] = AT_GOAL if first[path[-1]] == RED else BALL
    return last


def maze(first, prompt):
    assert prompt == "walk through the maze to the red goal"
    start, goal, free = only(first == BALL), only(first == RED), first != WALL
    ways = {path[-1]: path for path in paths(free, start)}  # a tree: one path to each cell
    doors = {(r, c): sum(free[a, b] for a, b in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1))) for r, c in ways}
    ends = [cell for cell in ways if cell == goal or (doors[cell] == 1 and cell != start)]
    return [walked(first, ways[goal])], [walked(first, ways[end]) for end in ends]


def two_routes(first, prompt):
    which = {"walk the short route to the red goal": min, "walk the long route to the red goal": max}[prompt]
    start, goal = only(first == BALL), only(first == RED)
    routes = [path for path in paths(first != WALL, start) if path[-1] == goal]
    length = which(map(len, routes))
    return [walked(first, path) for path in routes if len(path) == length], [walked(first, path) for path in routes]


def tictactoe(first, prompt):
    player = {"purple to move and win": "purple", "yellow to move and win": "yellow"}[prompt]
    wall = first == WALL
    r, c = (int(np.flatnonzero(wall.sum(axis) >= 8)[0]) - 2 for axis in (1, 0))  # the first bar of the board
    fields = [[(r + 3 * i + a, c + 3 * j + b) for a in (0, 1) for b in (0, 1)] for i in range(3) for j in range(3)]
    board = [first[field[0]] for field in fields]

    def won(board):
        square = np.array(board).reshape(3, 3)
        lines = [*square, *square.T, square.diagonal(), square[::-1].diagonal()]
        return any((line == TILE[player]).all() for line in lines)

    def marked(cell):
        last = first.copy()
        last[tuple(np.transpose(fields[cell]))] = TILE[player]
        return last

    empty = [cell for cell in range(9) if board[cell] == FLOOR]
    wins = [cell for cell in empty if won([*board[:cell], TILE[player], *board[cell + 1 :]])]
    return [marked(cell) for cell in wins], [marked(cell) for cell in empty]


def shelf(first, prompt):
    words = prompt.split()
    assert words[:5] + words[6:] == ["carry", "the", "ball", "to", "the", "level"]
    wall = first == WALL
    if wall[:, 0].any():
        right, possible = shelf(first[:, ::-1], prompt)
        return [last[:, ::-1] for last in right], [last[:, ::-1] for last in possible]
    boards = [r for r in range(CELLS) if wall[r, -1]][::-1]
    begin = CELLS - int(wall[boards[-1]].sum())  # of the uppermost board: no post beside it
    cleared = np.where(first == BALL, FLOOR, first)
    lasts = [put(cleared, ball=(r - 1, begin + 1)) for r in boards]
    return [lasts[["first", "second", "third", "fourth"].index(words[-2])]], lasts


def find_shape(first, prompt):
    def framed(cell):
        last = np.array(first)
        r, c = cell
        last[r - 1 : r + 2, c - 1 : c + 2] = TILE["purple"]
        last[cell] = first[cell]
        return last

    assert prompt.startswith("frame the ")
    named = TILE[prompt.removeprefix("frame the ").replace(" ", "_")]
    return [framed(only(first == named))], [framed(tuple(cell)) for cell in np.argwhere(first != FLOOR)]


def size_pattern(first, prompt):
    fields = [(0, 0), (5, 0), (0, 5)] if prompt == "continue the pattern by columns" else [(0, 0), (0, 5), (5, 0)]
    assert prompt in ("continue the pattern by columns", "continue the pattern by rows")
    squares = [np.argwhere(first[r : r + 4, c : c + 4] != FLOOR) for r, c in fields]
    a, b, c = (int(np.sqrt(len(square))) for square in squares)
    small = squares[int(np.argmin((a, b, c)))]  # it does not fill its field, so it tells the corner
    low, right = (small.max(0) == 3).astype(int)
    colour = first[tuple(fields[0] + squares[0][0])]

    def drawn(size):
        last = first.copy()
        top, left = 5 + low * (4 - size), 5 + right * (4 - size)
        last[top : top + size, left : left + size] = colour
        return last

    fourth = b if a == c else a if b == c else 2 * c - b
    return [drawn(fourth)], [drawn(size) for size in range(1, 5)]


def rotation(first, prompt):
    words = prompt.split()
    assert words[:4] + words[5:] == ["turn", "the", "shape", "by", "degrees"]
    pivot = np.array(only(first == WALL))

    def turned(times):
        last = np.full_like(first, FLOOR)
        for cell in np.argwhere(first != FLOOR):
            r, c = np.linalg.matrix_power([[0, 1], [-1, 0]], times) @ (cell - pivot) + pivot  # clockwise, rows down
            last[r, c] = first[tuple(cell)]
        return last

    return [turned(int(words[4]) // 90)], [turned(times) for times in (1, 2, 3)]


def reappear(first, prompt):
    side = {f"the ball leaves to the {s} and comes back": s for s in ("right", "left", "top", "bottom")}[prompt]
    r, c = only(first == BALL)
    cleared = np.where(first == BALL, FLOOR, first)
    line = [(r, k) for k in range(CELLS)] if side in ("left", "right") else [(k, c) for k in range(CELLS)]
    return [first], [put(cleared, ball=cell) for cell in line]


def occlusion(first, prompt):
    assert prompt == "the block slides across the small object"
    block = np.isin(first, [TILE["purple"], TILE["yellow"]])
    cells = np.argwhere(block)
    (top, left), side = cells.min(0), int(np.sqrt(len(cells)))
    r, c = only(~block & (first != FLOOR))
    if top <= r < top + side:
        left = CELLS - side - left
    else:
        top = CELLS - side - top
    last = np.full_like(first, FLOOR)
    last[top : top + side, left : left + side] = first[block][0]
    kinds = {kind: put(last, **{kind: (r, c)}) for kind in ("ball", "red_diamond", "blue_triangle", "red_ring")}
    return [kinds[next(kind for kind in kinds if TILE[kind] == first[r, c])]], list(kinds.values())


def flown(first: np.ndarray) -> list[tuple[int, int]]:
    """Cells of the ball until it meets a red one: a straight line in a plane that is folded at the edges."""
    start, tail = np.array(only(first == BALL)), np.array(only(first == TILE["yellow"]))
    period = 2 * (CELLS - 1)
    cells = []
    for k in range(17):
        unfolded = (start + k * (start - tail)) % period
        cells.append(tuple(int(i) for i in np.minimum(unfolded, period - unfolded)))
        if first[cells[-1]] == RED:
            return cells
    raise AssertionError("no target is met")


def bounce(first, prompt):
    assert prompt == "the ball bounces until it meets a target"
    gone = np.where(first == BALL, FLOOR, first)
    stops = {tuple(cell): put(gone, ball_on_red=tuple(cell)) for cell in np.argwhere(first == RED)}
    return [stops[flown(first)[-1]]], list(stops.values())


SOLVERS = {solver.__name__: solver for solver in (
    maze, two_routes, tictactoe, shelf, find_shape, size_pattern, rotation, reappear, occlusion, bounce,
)}  # fmt: skip


def puzzles(name: str, count: int) -> Iterator[tasks.Sample]:
    """`count` seeds at every difficulty, and the twins."""
    for difficulty, seed, twin in itertools.product(tasks.get(name).DIFFICULTIES, range(count), (False, True)):
        yield tasks.sample(name, seed, difficulty, twin)


def frames(films) -> list[bytes]:
    return sorted(np.ascontiguousarray(film, np.uint8).tobytes() for film in films)


def test_every_task_has_a_solver_and_a_digest():
    assert set(SOLVERS) == set(GOLDEN) == set(tasks.NAMES)


@tiny.every(name=tasks.NAMES)
def test_the_solver_finds_the_right_answers_and_all_possible_ones(name):
    for puzzle in puzzles(name, 40):
        right, possible = SOLVERS[name](puzzle.ids[0], puzzle.prompt)
        assert frames(right) == frames(film[-1] for film in puzzle.films.values()), puzzle
        assert frames(possible) == frames(puzzle.options.values()), puzzle
        assert all(np.array_equal(puzzle.options[name], film[-1]) for name, film in puzzle.films.items())


@tiny.every(name=tasks.NAMES)
def test_puzzles_are_the_same_as_ever(name):
    """Digests of the first 50 puzzles and twins of every difficulty: all films, options, blanks and prompts."""
    found = {}
    for difficulty in tasks.get(name).DIFFICULTIES:
        digest = hashlib.sha256()
        for seed, twin in itertools.product(range(50), (False, True)):
            puzzle = tasks.sample(name, seed, difficulty, twin)
            digest.update(puzzle.prompt.encode())
            for key, ids in itertools.chain(puzzle.films.items(), puzzle.options.items()):
                digest.update(key.encode() + np.ascontiguousarray(ids).tobytes())
            digest.update(np.ascontiguousarray(puzzle.blank).tobytes())
        found[str(difficulty)] = digest.hexdigest()
    assert found == GOLDEN.get(name), f"tests/golden_tasks.json has other digests than {json.dumps({name: found})}"


# ---------------------------------------------------------------- what happens on the way
@pytest.mark.parametrize("name", ["maze", "two_routes"])
def test_the_disc_walks_from_cell_to_cell(name):
    for puzzle in puzzles(name, 10):
        for film in puzzle.films.values():
            where = [only(np.isin(frame, [BALL, AT_GOAL])) for frame in film]
            trail = [set(map(tuple, np.argwhere(frame == TRAIL))) for frame in film]
            assert where[0] == only(film[0] == BALL) and film[-1][where[-1]] == AT_GOAL
            for before, after in itertools.pairwise(trail):
                assert before <= after and len(after - before) <= 2
            assert all(where[k] in trail[k + 1] | {where[k + 1]} for k in range(16))


def test_the_ball_flies_one_cell_a_frame_and_rests():
    for puzzle in puzzles("bounce", 20):
        cells = flown(puzzle.ids[0])
        where = [only(np.isin(frame, [BALL, AT_GOAL])) for frame in puzzle.ids]
        assert where == (cells + [cells[-1]] * 17)[:17]


def test_the_ball_leaves_on_the_named_side():
    axis = {"right": (1, 1), "left": (1, -1), "bottom": (0, 1), "top": (0, -1)}
    for puzzle in puzzles("reappear", 20):
        coordinate, sign = axis[puzzle.prompt.split()[5]]
        where = [np.argwhere(frame == BALL) for frame in puzzle.ids]
        out = [sign * int(cells[0][coordinate]) if len(cells) else CELLS for cells in where]
        assert out[6:11] == [CELLS] * 5 and out[:9] == sorted(out[:9]) and out == out[::-1]


def test_the_block_hides_the_object_on_the_way():
    for puzzle in puzzles("occlusion", 10):
        small = only(~np.isin(puzzle.ids[0], [FLOOR, TILE["purple"], TILE["yellow"]]))
        seen = puzzle.ids[:, small[0], small[1]] == puzzle.ids[0][small]
        assert seen[0] and seen[-1] and not seen.all()


def test_the_shape_turns_by_quarters():
    for puzzle in puzzles("rotation", 5):
        times = int(puzzle.prompt.split()[4]) // 90
        for f, frame in enumerate(puzzle.ids):
            turned = rotation(puzzle.ids[0], "turn the shape by 90 degrees")[1]
            assert np.array_equal(frame, [puzzle.ids[0], *turned][min(times, f // 4)])
