"""Robot navigation (Fig. 2a): two open routes lead to the goal, the prompt asks for the short or the long one.

Difficulty: how many cells one route is longer than the other (0: both are right answers). Twin: the other prompt."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE
from .maze import film

STREAM = 1
WORDS = "short long route"
DIFFICULTIES, DIFFICULTY = (0, 2, 4, 6), 2


def _route(left: int, right: int, a: int, b: int, turn: int) -> list[tuple[int, int]]:
    def span(i, j):
        return range(i, j + 1) if i <= j else range(i, j - 1, -1)

    cells = [(r, left) for r in span(a, turn)] + [(turn, c) for c in span(left, right)]
    cells += [(r, right) for r in span(turn, b)]
    return list(dict.fromkeys(cells))


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    while True:
        left, right = int(rng.integers(0, 3)), int(rng.integers(6, CELLS))
        up, down = int(rng.integers(0, 3)), int(rng.integers(7, CELLS))
        a, b = map(int, rng.integers(up + 1, down, size=2))
        routes = {"upper": _route(left, right, a, b, up), "lower": _route(left, right, a, b, down)}
        gap = abs(len(routes["upper"]) - len(routes["lower"]))
        if (gap == 0) if difficulty == 0 else (gap >= difficulty):
            break
    mirror, transpose, want_short = rng.integers(2), rng.integers(2), bool(rng.integers(2)) != twin
    routes = {name: [(r, CELLS - 1 - c) if mirror else (r, c) for r, c in path] for name, path in routes.items()}
    routes = {name: [(c, r) if transpose else (r, c) for r, c in path] for name, path in routes.items()}
    scene = np.full((CELLS, CELLS), TILE["wall"], np.uint8)
    for cell in routes["upper"] + routes["lower"]:
        scene[cell] = TILE["floor"]
    scene[routes["upper"][-1]] = TILE["red"]
    films = {name: film(scene, path) for name, path in routes.items()}
    short = min(routes, key=lambda name: len(routes[name]))
    right_names = list(films) if difficulty == 0 else [n for n in films if (n == short) == want_short]
    prompt = f"walk the {'short' if want_short else 'long'} route to the red goal"
    return prompt, {n: films[n] for n in right_names}, films, films[short][0]
