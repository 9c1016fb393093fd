"""Size pattern (Fig. 2e): three squares follow a pattern, draw the fourth (large, medium, small, ?).

All possible answers lie in the same place, one inside the other: the paper's superposition. Difficulty: the number of
pattern kinds (falling or rising; also alternating; also mirrored). Twin: another pattern of the same kind, with another
answer."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE

STREAM = 5
WORDS = "continue pattern by rows columns"
DIFFICULTIES, DIFFICULTY = (1, 2, 3), 3
PATTERNS = {
    "step": [(4, 3, 2, 1), (1, 2, 3, 4)],
    "alternate": [(a, b, a, b) for a in range(1, 5) for b in range(1, 5) if a != b],
    "mirror": [(a, b, b, a) for a in range(1, 5) for b in range(1, 5) if a != b],
}


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    kind = list(PATTERNS)[rng.integers(difficulty)]
    choices = PATTERNS[kind]
    sizes, *rest = (choices[i] for i in rng.permutation(len(choices)))
    if twin:
        sizes = next(other for other in rest if other[3] != sizes[3])
    colour = TILE[("purple", "yellow", "blue", "red")[rng.integers(4)]]
    down = bool(rng.integers(2))  # read by rows or by columns
    corners = [(0, 0), (5, 0), (0, 5), (5, 5)] if down else [(0, 0), (0, 5), (5, 0), (5, 5)]

    low, right = rng.integers(2, size=2)  # the corner of each field that the squares sit in

    def square(frame, corner, size):
        r, c = corner[0] + low * (4 - size), corner[1] + right * (4 - size)
        frame[r : r + size, c : c + size] = colour

    scene = np.full((CELLS, CELLS), TILE["floor"], np.uint8)
    scene[4::5], scene[:, 4::5] = TILE["wall"], TILE["wall"]
    for corner, size in zip(corners[:3], sizes[:3], strict=True):
        square(scene, corner, size)

    def film(size):
        frames = np.repeat(scene[None], 17, 0)
        for f, frame in enumerate(frames):
            square(frame, corners[3], min(size, f // 4))
        return frames

    name = "size {}".format
    prompt = f"continue the pattern by {'columns' if down else 'rows'}"
    return prompt, {name(sizes[3]): film(sizes[3])}, {name(s): film(s) for s in range(1, 5)}, scene
