"""Occlusion (Fig. 4b): a large block slides over a small object, which must be there again afterwards.

Difficulty: the side of the block in cells. Options: every kind of small object. Twin: another small object."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE

STREAM = 8
WORDS = "block slides across small object"
DIFFICULTIES, DIFFICULTY = (2, 3, 4), 3
KINDS = ("ball", "red_diamond", "blue_triangle", "red_ring")


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    kind = KINDS[(rng.integers(4) + int(twin) * rng.integers(1, 4)) % 4]
    side = difficulty
    row = int(rng.integers(0, CELLS - side + 1))
    spot = (row + int(rng.integers(side)), int(rng.integers(side, CELLS - side)))
    turns = int(rng.integers(4))
    colour = TILE[("purple", "yellow")[rng.integers(2)]]

    def film(kind):
        frames = np.full((17, CELLS, CELLS), TILE["floor"], np.uint8)
        frames[(slice(None), *spot)] = TILE[kind]
        for f, frame in enumerate(frames):
            c = round(f / 16 * (CELLS - side))
            frame[row : row + side, c : c + side] = colour
        return np.rot90(frames, turns, axes=(1, 2))

    options = {k: film(k) for k in KINDS}
    return "the block slides across the small object", {kind: film(kind)}, options, film("floor")[-1]
