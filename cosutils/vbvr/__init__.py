"""The official benchmark: its puzzles, the answers to them, and its own scores."""

from .puzzles import *  # noqa: F403
from .puzzles import __all__  # noqa: F401
