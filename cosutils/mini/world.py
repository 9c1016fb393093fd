"""The embedded world: short films on a grid of 10 x 10 cells, every cell one of a few 8 x 8 px tiles.

A film is stored as tile numbers ``ids`` (T, 10, 10) uint8 and drawn by table look-up, so that ground truth is
exact, rendering costs nothing and a decoded frame can be read back cell by cell (`read`).
"""

from __future__ import annotations

import numpy as np

__all__ = ["CELLS", "CELL", "FRAMES", "SIZE", "TILES", "TILE", "draw", "paced", "read", "timeline"]

CELLS, CELL, FRAMES = 10, 8, 17  # cells a side, pixels a cell, frames a film (4k + 1)
SIZE = CELLS * CELL  # 80 px, a multiple of 16 as Wan's pipelines demand

COLOURS = {
    "floor": (0.96, 0.96, 0.94),
    "wall": (0.12, 0.12, 0.16),
    "blue": (0.35, 0.65, 0.95),
    "red": (0.90, 0.15, 0.15),
    "purple": (0.55, 0.30, 0.75),
    "yellow": (0.98, 0.80, 0.20),
    "green": (0.10, 0.70, 0.25),
}
_y, _x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
SHAPES = {
    "disc": _y**2 + _x**2 <= 3.3**2,
    "diamond": abs(_y) + abs(_x) <= 4.0,
    "triangle": (abs(_x) <= (_y + 3.5) / 2 + 0.5) & (abs(_y) < 3.6),
    "ring": (np.maximum(abs(_y), abs(_x)) < 3.6) & (np.maximum(abs(_y), abs(_x)) > 1.6),
}


def _tile(ground: str, shape: str | None = None, colour: str | None = None) -> np.ndarray:
    tile = np.tile(np.float32(COLOURS[ground]), (CELL, CELL, 1))
    if shape:
        tile[SHAPES[shape]] = COLOURS[colour]
    return tile


_TILES = {name: _tile(name) for name in ("floor", "wall", "blue", "red", "purple", "yellow")}
_TILES["ball"] = _tile("floor", "disc", "green")  # the agent, or the ball
_TILES["ball_on_red"] = _tile("red", "disc", "green")
for _shape in ("diamond", "triangle", "ring"):
    for _colour in ("red", "blue"):
        _TILES[f"{_colour}_{_shape}"] = _tile("floor", _shape, _colour)

TILES = np.rint(np.stack(list(_TILES.values())) * 255).astype(np.float32) / 255  # (tiles, 8, 8, 3), exact in 8 bit
TILE = {name: i for i, name in enumerate(_TILES)}  # name -> tile number


def draw(ids: np.ndarray) -> np.ndarray:
    """Tile numbers (..., 10, 10) -> pictures (..., 80, 80, 3) float32 in [0, 1]."""
    ids = np.asarray(ids)
    if ids.shape[-2:] != (CELLS, CELLS):
        raise ValueError(f"tile numbers must end in ({CELLS}, {CELLS}), got shape {ids.shape}")
    pictures = np.moveaxis(TILES[ids], -3, -4)  # (..., 10, 8, 10, 8, 3)
    return pictures.reshape(*ids.shape[:-2], SIZE, SIZE, 3)


def read(pictures: np.ndarray) -> np.ndarray:
    """Pictures (..., 80, 80, 3) in [0, 1] -> the nearest tile (least squares) of every cell (..., 10, 10) uint8."""
    cells = _cells(pictures).reshape(-1, CELL * CELL * 3)
    tiles = TILES.reshape(len(TILES), -1)
    distance = (tiles**2).sum(1) - 2 * cells @ tiles.T  # |cell|^2 is the same for every tile
    return distance.argmin(1).astype(np.uint8).reshape(*np.shape(pictures)[:-3], CELLS, CELLS)


def _cells(pictures: np.ndarray) -> np.ndarray:
    pictures = np.asarray(pictures, dtype=np.float32)
    if pictures.shape[-3:] != (SIZE, SIZE, 3):
        raise ValueError(f"pictures must end in ({SIZE}, {SIZE}, 3), got shape {pictures.shape}")
    return np.moveaxis(pictures.reshape(*pictures.shape[:-3], CELLS, CELL, CELLS, CELL, 3), -4, -3)


def timeline(states: int) -> np.ndarray:
    """Which of `states` successive states each of the 17 frames shows: first at frame 0, last at frame 16."""
    return np.rint(np.arange(FRAMES) / (FRAMES - 1) * (states - 1)).astype(int)


def paced(states: int) -> np.ndarray:
    """The same at constant speed: one state a frame, then at rest in the last one. ValueError beyond 17 states."""
    if states > FRAMES:
        raise ValueError(f"{states} states do not fit into {FRAMES} frames")
    return np.minimum(np.arange(FRAMES), states - 1)
