"""Object reappearance (Fig. 4a): the ball leaves the picture on the named side and comes back to where it was.

While it is away no frame shows where it belongs: the place must be remembered along the steps. Difficulty: the least
number of cells to the edge. Options: every place on the ball's line. Twin: the ball starts elsewhere on that line."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE

STREAM = 7
WORDS = "leaves right top left bottom comes back"
DIFFICULTIES, DIFFICULTY = (1, 2, 3), 2
SIDES = ("right", "top", "left", "bottom")


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    side, row = int(rng.integers(4)), int(rng.integers(CELLS))
    columns = rng.permutation(np.arange(0, CELLS - difficulty))[:2]
    column = int(columns[int(twin)])
    scene = np.full((CELLS, CELLS), TILE["floor"], np.uint8)
    for _ in range(rng.integers(3, 7)):  # a few landmarks off the line
        r, c = rng.integers(CELLS, size=2)
        if r != row:
            scene[r, c] = TILE[("wall", "yellow", "blue")[rng.integers(3)]]

    def film(place):
        frames = np.repeat(scene[None], 17, 0)
        for f, frame in enumerate(frames):
            away = min(f, 16 - f) / 6 * (CELLS - place)  # outside for the frames 6 to 10
            c = place + int(np.ceil(away))
            if c < CELLS:
                frame[row, c] = TILE["ball"]
        return np.rot90(frames, side, axes=(1, 2))

    name = "place {}".format
    options = {name(c): film(c) for c in range(CELLS)}
    return (
        f"the ball leaves to the {SIDES[side]} and comes back",
        {name(column): film(column)},
        options,
        np.rot90(scene, side),
    )
