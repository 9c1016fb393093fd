"""Diamond detection and grounding (Fig. 2d, 6): draw a purple frame around the one shape that the prompt names.

Difficulty: the number of shapes (3 to 6; all differ in form or colour). Twin: the prompt names another shape."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE

STREAM = 4
WORDS = "frame blue diamond triangle ring"
DIFFICULTIES, DIFFICULTY = (3, 4, 5, 6), 5
KINDS = [(colour, form) for colour in ("red", "blue") for form in ("diamond", "triangle", "ring")]
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    kinds = [KINDS[i] for i in rng.permutation(len(KINDS))[:difficulty]]
    shift = rng.integers(0, 2, size=2)
    places = [(1 + 3 * (i // 3) + shift[0], 1 + 3 * (i % 3) + shift[1]) for i in rng.permutation(9)[:difficulty]]
    scene = np.full((CELLS, CELLS), TILE["floor"], np.uint8)
    for (colour, form), place in zip(kinds, places, strict=True):
        scene[place] = TILE[f"{colour}_{form}"]

    def film(place):
        frames = np.repeat(scene[None], 17, 0)
        for f, frame in enumerate(frames):
            for a, b in AROUND[: f // 2]:
                frame[place[0] + a, place[1] + b] = TILE["purple"]
        return frames

    names = [f"{colour} {form}" for colour, form in kinds]
    target = int(twin)
    options = {name: film(place) for name, place in zip(names, places, strict=True)}
    return f"frame the {names[target]}", {names[target]: film(places[target])}, options, scene
