"""The embedded world: short films on a grid of 10 x 10 cells, every cell one of a few 8 x 8 px tiles.

A film is stored as tile numbers ``ids`` (17, 10, 10) uint8 and drawn by table look-up, so that ground truth is
exact, rendering costs nothing and a decoded frame can be read back cell by cell (`read`). For larger models the same
film is drawn larger and longer (`enlarged`) and brought back before it is read (`reduced`).
"""

from __future__ import annotations

import numpy as np

from .._check import is_whole

__all__ = [
    "CELL",
    "CELLS",
    "FRAMES",
    "SIZE",
    "TILE",
    "TILES",
    "check_size",
    "check_values",
    "draw",
    "enlarged",
    "paced",
    "read",
    "reduced",
    "retimed",
    "shown",
    "shrunk",
    "timeline",
]  # fmt: skip

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


def _tile(ground: str, shape: str = "", colour: str = "") -> np.ndarray:
    tile = np.tile(np.array(COLOURS[ground], np.float32), (CELL, CELL, 1))
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
    if not np.issubdtype(ids.dtype, np.integer) or (ids.size and not 0 <= ids.min() <= ids.max() < len(TILES)):
        raise ValueError(f"tile numbers are integers from 0 to {len(TILES) - 1}, got {_range(ids)}")
    pictures = np.moveaxis(TILES[ids], -3, -4)  # (..., 10, 8, 10, 8, 3)
    return pictures.reshape(*ids.shape[:-2], SIZE, SIZE, 3)


def _range(values: np.ndarray) -> str:
    known = values[np.isfinite(values)] if np.issubdtype(values.dtype, np.number) else values[:0]
    return f"{values.dtype}" + (f" from {known.min():g} to {known.max():g}" if known.size else "")


def check_values(pictures: np.ndarray) -> None:
    """ValueError unless all values are finite and in [0, 1]; a thousandth beyond is taken for rounding."""
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"pictures hold floats in [0, 1], got {_range(pictures)}: divide 8-bit values by 255")
    if not np.isfinite(pictures).all():
        bad = int((~np.isfinite(pictures)).sum())
        raise ValueError(f"pictures hold finite values, got {bad} of {pictures.size} that are not")
    if pictures.size and not -1e-3 <= pictures.min() <= pictures.max() <= 1 + 1e-3:
        raise ValueError(f"pictures hold values in [0, 1], got {_range(pictures)}")


def check_size(pixels: int, frames: int) -> None:
    """ValueError unless a film of `frames` frames, 16 m + 1, of `pixels` x `pixels` pixels, 80 p, can be drawn."""
    if (
        not (is_whole(pixels) and is_whole(frames))
        or pixels < SIZE
        or pixels % SIZE
        or frames < FRAMES
        or (frames - 1) % (FRAMES - 1)
    ):
        raise ValueError(
            f"a film has a multiple of {SIZE} pixels a side and 16 m + 1 frames (17, 33, 49, 65, 81, ...), "
            f"got pixels={pixels!r} and frames={frames!r}"
        )


def shown(frames: int) -> np.ndarray:
    """Which of the 17 frames each frame of a film of `frames` = 16 m + 1 shows, (frames,): ceil(t / m).

    Frame 0 is shown once, each later one m times; the last of these is the one that is read back.
    """
    check_size(SIZE, frames)
    times = (frames - 1) // (FRAMES - 1)
    return (np.arange(frames) + times - 1) // times


def enlarged(film: np.ndarray, pixels: int, frames: int) -> np.ndarray:
    """A film (17, 80, 80, 3) at another size, (frames, pixels, pixels, 3): pixels and frames repeated (`shown`)."""
    check_size(pixels, frames)
    if (pixels, frames) == (SIZE, FRAMES):
        return film
    return film[shown(frames)].repeat(pixels // SIZE, -3).repeat(pixels // SIZE, -2)


def shrunk(pictures: np.ndarray) -> np.ndarray:
    """Pictures (..., 80 p, 80 p, 3) to (..., 80, 80, 3): the mean of every p x p pixels. p = 1: as they are."""
    pictures = np.asarray(pictures)
    height, width = pictures.shape[-3:-1] if pictures.ndim >= 3 else (0, 0)
    if not height or height % SIZE or width != height or pictures.shape[-1] != 3:
        raise ValueError(f"pictures must end in (80 p, 80 p, 3), got shape {pictures.shape}")
    if height == SIZE:
        return pictures
    p = height // SIZE
    return pictures.reshape(*pictures.shape[:-3], SIZE, p, SIZE, p, 3).mean((-4, -2))


def reduced(films: np.ndarray) -> np.ndarray:
    """Films (..., 16 m + 1, 80 p, 80 p, 3) back to (..., 17, 80, 80, 3): every m-th frame, `shrunk`."""
    films = np.asarray(films)
    if films.ndim < 4:
        raise ValueError(f"films have shape (..., 16 m + 1, 80 p, 80 p, 3), got {films.shape}")
    check_size(films.shape[-2], films.shape[-4])
    return shrunk(films[..., :: (films.shape[-4] - 1) // (FRAMES - 1), :, :, :])


def read(pictures: np.ndarray) -> np.ndarray:
    """Pictures (..., 80 p, 80 p, 3) in [0, 1] -> the nearest tile (least squares) of every cell (..., 10, 10) uint8.

    ValueError for another shape and for values that are not finite or not in [0, 1].
    """
    pictures = np.asarray(pictures)
    cells = _cells(pictures).reshape(-1, CELL * CELL * 3)
    tiles = TILES.reshape(len(TILES), -1)
    distance = (tiles**2).sum(1) - 2 * cells @ tiles.T  # |cell|^2 is the same for every tile
    return distance.argmin(1).astype(np.uint8).reshape(*np.shape(pictures)[:-3], CELLS, CELLS)


def _cells(pictures: np.ndarray) -> np.ndarray:
    pictures = shrunk(pictures)
    check_values(pictures)
    pictures = pictures.astype(np.float32, copy=False)
    return np.moveaxis(pictures.reshape(*pictures.shape[:-3], CELLS, CELL, CELLS, CELL, 3), -4, -3)


def timeline(states: int) -> np.ndarray:
    """Which of `states` successive states each of the 17 frames shows: first at frame 0, last at frame 16."""
    return np.rint(np.arange(FRAMES) / (FRAMES - 1) * (states - 1)).astype(int)


def paced(states: int) -> np.ndarray:
    """The same at constant speed: one state a frame, then at rest in the last one. ValueError beyond 17 states."""
    if states > FRAMES:
        raise ValueError(f"{states} states do not fit into {FRAMES} frames")
    return np.minimum(np.arange(FRAMES), states - 1)


def retimed(frames: int) -> np.ndarray:
    """Which of the 17 frames each frame of the same film shows when it is told in `frames`, 4 k + 1 and at most 17.

    It begins and ends alike and goes faster in between. ValueError for another number.
    """
    if not is_whole(frames) or not 5 <= frames <= FRAMES or frames % 4 != 1:
        raise ValueError(f"a film is told in 5, 9, 13 or {FRAMES} frames, got {frames!r}")
    return np.rint(np.linspace(0, FRAMES - 1, frames)).astype(int)
