"""Object rotation (Fig. 2f): turn the shape clockwise about its dark cell by the named angle, one quarter turn
after the other.

Difficulty: the number of cells of the polyomino. Twin: the prompt names another angle."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE

STREAM = 6
WORDS = "turn shape 90 180 270 degrees"
DIFFICULTIES, DIFFICULTY = (4, 5, 6, 7, 8), 6
ANGLES = ("90", "180", "270")
BOX = 5


def _polyomino(rng: np.random.Generator, cells: int) -> np.ndarray:
    while True:
        shape = np.zeros((BOX, BOX), np.uint8)
        shape[BOX // 2, BOX // 2] = 1
        while shape.sum() < cells:
            grown = np.pad(shape, 1)
            edge = (grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]) & (1 - shape)
            options = np.argwhere(edge)
            shape[tuple(options[rng.integers(len(options))])] = 1
        if len({np.rot90(shape, k).tobytes() for k in range(4)}) == 4:
            return shape


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    shape = _polyomino(rng, difficulty)
    r, c = rng.integers(2, 4, size=2)  # near the middle of the picture
    colour = TILE[("purple", "yellow", "blue", "red")[rng.integers(4)]]

    def film(turns):
        frames = np.full((17, CELLS, CELLS), TILE["floor"], np.uint8)
        for f, frame in enumerate(frames):
            turned = np.rot90(shape, -min(turns, f // 4))
            frame[r : r + BOX, c : c + BOX][turned == 1] = colour
            frame[r + BOX // 2, c + BOX // 2] = TILE["wall"]  # the pivot: without it the answer would be ambiguous
        return frames

    pick = int((rng.integers(3) + int(twin) * rng.integers(1, 3)) % 3)
    films = [film(k + 1) for k in range(3)]
    options = {f"{angle} degrees": f for angle, f in zip(ANGLES, films, strict=True)}
    answer = f"{ANGLES[pick]} degrees"
    return f"turn the shape by {answer}", {answer: films[pick]}, options, films[pick][0]
