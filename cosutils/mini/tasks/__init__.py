"""Ten small tasks, one for each example of the paper. ``tasks.maze.sample(seed)`` or ``tasks.sample("maze", seed)``.

Every file beside `base.py` is a task and is found by itself. It holds

- ``STREAM``: the number of its random stream, which no other task has. Puzzles are a function of (stream, seed): never
  change it. Tasks are listed in the order of their streams, so a new task takes a larger number than all others;
- ``WORDS``: the words of its prompts, parted by spaces; those that an earlier task has need not be named again;
- ``DIFFICULTIES``, ``DIFFICULTY``: the numbers that `sample` takes, and the default;
- ``build(rng, difficulty, twin)``, which returns prompt, films, possible and blank as `Sample` describes them.
"""

from .base import MAX_LENGTH, Sample, Score, agreement, get, modules, sample

NAMES = tuple(modules())
WORDS = tuple(dict.fromkeys(word for module in modules().values() for word in module.WORDS.split()))

__all__ = ["MAX_LENGTH", "NAMES", "WORDS", "Sample", "Score", "agreement", "get", "sample", *NAMES]
