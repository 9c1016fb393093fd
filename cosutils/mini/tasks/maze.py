"""Maze (Fig. 1): walk from the green disc to the red goal and leave a blue trail.

Difficulty: the least number of moves on the path. Options: the walk to every dead end. Twin: the goal elsewhere."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE, timeline

STREAM = 0
WORDS = "walk through the maze to the red goal"
DIFFICULTIES, DIFFICULTY = (4, 6, 8, 10, 12), 6
ROOMS = 4


def carve(rng: np.random.Generator) -> np.ndarray:
    """A perfect maze (a tree) of 4 x 4 rooms by depth-first search; (10, 10) bool, True = wall."""
    walls = np.ones((CELLS, CELLS), bool)
    stack = [tuple(rng.integers(ROOMS, size=2))]
    walls[2 * stack[0][0] + 1, 2 * stack[0][1] + 1] = False
    while stack:
        r, c = stack[-1]
        near = [(r + a, c + b) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        near = [(a, b) for a, b in near if 0 <= a < ROOMS and 0 <= b < ROOMS and walls[2 * a + 1, 2 * b + 1]]
        if not near:
            stack.pop()
            continue
        a, b = near[rng.integers(len(near))]
        walls[2 * a + 1, 2 * b + 1] = walls[r + a + 1, c + b + 1] = False
        stack.append((a, b))
    return walls


def walks(walls: np.ndarray, start: tuple[int, int]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The shortest walk from `start` to every open cell, by breadth-first search."""
    found = {start: [start]}
    queue = [start]
    for r, c in queue:
        for cell in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if not walls[cell] and cell not in found:
                found[cell] = found[r, c] + [cell]
                queue.append(cell)
    return found


def film(scene: np.ndarray, path: list[tuple[int, int]], trail: int = TILE["blue"]) -> np.ndarray:
    """The disc walks along `path` over `scene` (10, 10) and leaves a trail -> (17, 10, 10)."""
    frames = []
    for k in timeline(len(path)):
        frame = scene.copy()
        for cell in path[:k]:
            frame[cell] = trail
        frame[path[k]] = TILE["ball_on_red"] if scene[path[k]] == TILE["red"] else TILE["ball"]
        frames.append(frame)
    return np.stack(frames)


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    while True:
        walls = carve(rng)
        rooms = [(2 * r + 1, 2 * c + 1) for r in range(ROOMS) for c in range(ROOMS)]
        start = rooms[rng.integers(len(rooms))]
        walk = walks(walls, start)
        far = [room for room in rooms if len(walk[room]) > difficulty]
        if len(far) >= 2:
            break
    goal = [far[i] for i in rng.permutation(len(far))[:2]][int(twin)]
    scene = np.where(walls, TILE["wall"], TILE["floor"]).astype(np.uint8)
    scene[goal] = TILE["red"]
    inner = {cell for path in walk.values() for cell in path[:-1]}
    ends = [goal] + [room for room in rooms if room not in inner and room != goal]  # the goal and all dead ends
    options = {f"to {r},{c}": film(scene, walk[r, c]) for r, c in ends}
    films = {f"to {goal[0]},{goal[1]}": film(scene, walk[goal])}
    return "walk through the maze to the red goal", films, options, film(scene, [start])[0]
