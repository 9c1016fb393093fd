"""Object movement (Fig. 2c): carry the disc to the shelf level that the prompt names, counted from below.

It stops at the second place of the board.
Difficulty: the number of levels. Twin: the prompt names another level."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE, paced

STREAM = 3
WORDS = "carry ball first second third fourth level"
DIFFICULTIES, DIFFICULTY = (2, 3, 4), 4
LEVELS = ("first", "second", "third", "fourth")


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    boards = np.sort(rng.choice(np.arange(2, CELLS, 2), difficulty, replace=False))[::-1] - rng.integers(2)
    left = rng.integers(4, 7)
    start, slot = (int(rng.integers(CELLS)), int(rng.integers(3))), int(left) + 1  # at most 16 moves
    scene = np.full((CELLS, CELLS), TILE["floor"], np.uint8)
    for board in boards:
        scene[board, left:] = TILE["wall"]
    scene[boards[0] :, left - 1] = TILE["wall"]  # the post tells where the shelf begins
    mirror = bool(rng.integers(2))

    def film(level):
        row = int(boards[level]) - 1
        path = [(start[0], c) for c in range(start[1], 3)] or [start]
        step = 1 if row >= start[0] else -1
        path += [(r, 2) for r in range(start[0], row + step, step)] + [(row, c) for c in range(3, slot + 1)]
        path = list(dict.fromkeys(path))
        frames = []
        for k in paced(len(path)):
            frame = scene.copy()
            frame[path[k]] = TILE["ball"]
            frames.append(frame[:, ::-1] if mirror else frame)
        return np.stack(frames)

    level = int((rng.integers(difficulty) + int(twin) * rng.integers(1, difficulty)) % difficulty)
    films = [film(k) for k in range(difficulty)]
    options = {f"{LEVELS[k]} level": f for k, f in enumerate(films)}
    prompt = f"carry the ball to the {LEVELS[level]} level"
    return prompt, {f"{LEVELS[level]} level": films[level]}, options, films[level][0]
