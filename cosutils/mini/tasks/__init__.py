"""Ten small tasks, one for each example of the paper. ``tasks.maze.sample(seed)`` or ``tasks.sample("maze", seed)``."""

from . import (
    bounce,
    find_shape,
    maze,
    occlusion,
    reappear,
    rotation,
    shelf,
    size_pattern,
    tictactoe,
    two_routes,
)
from .base import NAMES, Sample, Score, agreement, get, sample

__all__ = ["NAMES", "Sample", "Score", "agreement", "get", "sample", *NAMES]
