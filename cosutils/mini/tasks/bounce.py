"""Ball bounce (Fig. 4c): the ball flies diagonally, bounces off the edges at constant speed and stops at the first red
target it meets.

The yellow cell behind the ball tells where it comes from. Difficulty: the least number of moves. Options: every
target. Twin: the ball starts in another direction (the yellow cell moves)."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE, paced

STREAM = 9
WORDS = "bounces until it meets a target"
DIFFICULTIES, DIFFICULTY = (3, 5, 7, 9), 5
TARGETS, LONGEST = 4, 14


def flight(start: tuple[int, int], heading: tuple[int, int], moves: int) -> list[tuple[int, int]]:
    """Cells that the ball visits, reflected at the edges of the grid; moves + 1 entries."""
    (r, c), (a, b) = start, heading
    cells = [(r, c)]
    for _ in range(moves):
        a = -a if not 0 <= r + a < CELLS else a
        b = -b if not 0 <= c + b < CELLS else b
        r, c = r + a, c + b
        cells.append((r, c))
    return cells


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    headings = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    while True:
        r, c = rng.integers(1, CELLS - 1, size=2)
        start = int(r), int(c)
        first, second = (headings[i] for i in rng.permutation(4)[:2])
        paths = [flight(start, heading, LONGEST) for heading in (first, second)]
        ends = [path[int(rng.integers(difficulty, LONGEST + 1))] for path in paths]
        cells = [tuple(int(i) for i in rng.integers(CELLS, size=2)) for _ in range(TARGETS - 2)]
        targets = set(ends + cells)
        hits = [next(k for k, cell in enumerate(path) if cell in targets) for path in paths]
        tails = {(start[0] - a, start[1] - b) for a, b in (first, second)}
        apart = paths[0][hits[0]] != paths[1][hits[1]] and not targets & (tails | {start})
        if len(targets) == TARGETS and min(hits) >= difficulty and apart:
            break
    heading, path = ((first, paths[0]), (second, paths[1]))[int(twin)]
    path = path[: hits[int(twin)] + 1]
    scene = np.full((CELLS, CELLS), TILE["floor"], np.uint8)
    for target in targets:
        scene[target] = TILE["red"]
    tail = (start[0] - heading[0], start[1] - heading[1])

    def film(path):
        frames = []
        for k in paced(len(path)):
            frame = scene.copy()
            if path[k] != tail:
                frame[tail] = TILE["yellow"]
            frame[path[k]] = TILE["ball_on_red"] if path[k] in targets else TILE["ball"]
            frames.append(frame)
        return np.stack(frames)

    def straight(target):
        """No flight leads to a wrong target: the ball goes there on the straight line, with as many moves."""
        places = np.rint(np.linspace(start, target, len(path))).astype(int)
        return [(int(r), int(c)) for r, c in places]

    blank = scene.copy()
    if path[-1] != tail:
        blank[tail] = TILE["yellow"]
    name = "target {0[0]},{0[1]}".format
    options = {name(t): film(path if t == path[-1] else straight(t)) for t in sorted(targets)}
    return "the ball bounces until it meets a target", {name(path[-1]): film(path)}, options, blank
