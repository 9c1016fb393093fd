"""Serial puzzles on a board of 10 x 10 cells: exact truth, K candidates, and a control of the same length
without a chain.

A puzzle is a pure function of (task, length, seed), made for many seeds at once. The *hash* of the puzzle
decides which split it belongs to, so that no puzzle of one split occurs in another; the seed ranges are
disjoint as well.

- `ladder`: ladder lottery, five lines, a rung in each of eight rows; where does the way end that begins at the mark,
  `length` rungs above the end?
- `ladder_most`: control, the same boards: which of the four gaps holds most of the `length` rungs below the mark? (as
  many look-ups, in any order)
- `arrows`: row i points to one other row; where do `length` hops from the marked row end, at which of 4 ends?
- `arrows_most`: control: which of the four ends do most of `length` rows point at?

Every task has two films of three latent frames, the puzzle, the middle and the end. In "trail" the middle
shows the way in the upper half of the ladder (the first half of the hops) and the end all of it, so that the
frames could be the chain; in "answer" nothing but the answer cell of the end changes, so that only the steps
can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "CELLS",
    "COLOURS",
    "FILMS",
    "FRAMES",
    "SPLITS",
    "TASKS",
    "Puzzles",
    "distinct",
    "draw",
    "lengths",
    "make",
    "split_of",
    "take",
]

CELLS, FRAMES = 10, 9  # cells a side; pixel frames, 1 + 4 + 4: three latent frames
FILMS = ("trail", "answer")
LINES, ROWS, ENDS = 5, 8, 4
FLOOR, LINE, RUNG, START, TRAIL, END = range(6)
_hue = 2 * np.pi * np.array([0.8, 0.2, 0.4, 0.6, 0.0])
_plane = np.stack([np.cos(_hue), np.sin(_hue)], 1) @ np.array([(2, -1, -1), (0, 3**0.5, -(3**0.5))]) / 6**0.5
COLOURS = np.concatenate([np.zeros((1, 3)), 0.6 * _plane]).astype(np.float32) + np.float32(0.5)
"""RGB in [0, 1] of floor, line (or node), rung (or arrow), start, trail and end: (6, 3). Grey and five hues
of one plane, so that two numbers say a cell's colour."""
SPLITS = {  # seeds and shares of the hash, in sixteenths
    "report": (range(10**9), range(2)),
    "validation": (range(10**9, 2 * 10**9), range(2, 4)),
    "train": (range(10**10, 2**62), range(4, 16)),
}


@dataclass(frozen=True)
class Puzzles:
    """n puzzles. key (n,) uint64: equal for equal puzzles of a task; seed (n,); length (n,); first (n, 10,
    10): the given board in tile numbers; way (n, 2, 10, 10) bool: cells of the trail by the middle and by the
    end; options (n, K, 2): row and column of the candidates' answer cells; answer (n,): which one is
    right."""

    key: np.ndarray
    seed: np.ndarray
    length: np.ndarray
    first: np.ndarray
    way: np.ndarray
    options: np.ndarray
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows) -> Puzzles:
        return Puzzles(*(value[rows] for value in vars(self).values()))

    def film(self, name: str, answer: np.ndarray | None = None) -> np.ndarray:
        """The film "trail" or "answer" as tile numbers of its latent frames, (n, 3, 10, 10) uint8.

        answer: another candidate to draw as the end, (n,), for instance a mistake.
        """
        if name not in FILMS:
            raise ValueError(f"unknown film {name!r}: choose from {', '.join(FILMS)}")
        film = np.repeat(self.first[:, None], 3, 1)
        if name == "trail":
            film[:, 1:][self.way] = TRAIL
        row, column = self.options[np.arange(len(self)), self.answer if answer is None else answer].T
        film[np.arange(len(self)), 2, row, column] = END
        return film


def draw(films: np.ndarray) -> np.ndarray:
    """Tile numbers of latent frames (n, 3, 10, 10) -> video (n, 9, 80, 80, 3) float32 in [0, 1]."""
    return COLOURS[films[:, [0, 1, 1, 1, 1, 2, 2, 2, 2]].repeat(8, -1).repeat(8, -2)]


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: a bijection of uint64 whose output bits look independent."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _random(seeds: np.ndarray, columns: int, stream: int) -> np.ndarray:
    """Uniform numbers in [0, 1), (n, columns): a pure function of each seed and of `stream`."""
    base = _mix(_mix(seeds.astype(np.uint64)) ^ np.uint64(stream))
    return (_mix(base[:, None] ^ np.arange(1, columns + 1, dtype=np.uint64)) >> np.uint64(11)) / 2.0**53


def _packed(digits: np.ndarray, base: int) -> np.ndarray:
    """Rows of digits as one uint64 each."""
    return (digits.astype(np.uint64) * np.uint64(base) ** np.arange(digits.shape[1], dtype=np.uint64)).sum(
        1, dtype=np.uint64
    )


def _ladder(seeds: np.ndarray, length: int, most: bool) -> tuple[Puzzles, np.ndarray]:
    n, every, above = len(seeds), np.arange(len(seeds)), ROWS - length
    gap = (_random(seeds, ROWS, 1) * (LINES - 1)).astype(int)
    start = (_random(seeds, 1, 2)[:, 0] * LINES).astype(int)
    first = np.zeros((n, CELLS, CELLS), np.uint8)
    first[:, : ROWS + 1, 0 : 2 * LINES : 2] = LINE
    for row in range(ROWS):
        first[every, row + 1, 2 * gap[:, row] + 1] = RUNG
    first[every, above, 2 * start] = START
    way = np.zeros((n, 2, CELLS, CELLS), bool)
    valid, position = np.ones(n, bool), start.copy()
    if most:
        counts = np.stack([(gap[:, above:] == g).sum(1) for g in range(LINES - 1)], 1)
        answer, columns = counts.argmax(1), 2 * np.arange(LINES - 1) + 1
        valid = (counts == counts.max(1, keepdims=True)).sum(1) == 1
    for row in range(above, ROWS):
        if most:
            cells, shown = [2 * answer + 1], [gap[:, row] == answer]
        else:
            right, left = gap[:, row] == position, gap[:, row] == position - 1
            position = position + right - left
            cells, shown = [2 * position, 2 * gap[:, row] + 1], [np.ones(n, bool), right | left]
        for half in range(row // (ROWS // 2), 2):
            for column, there in zip(cells, shown, strict=True):
                way[every, half, row + 1, column] = there
    if not most:
        answer, columns = position, 2 * np.arange(LINES)
    options = np.stack([np.full(len(columns), CELLS - 1), columns], 1)
    options = np.broadcast_to(options, (n, *options.shape))
    key = _packed(np.concatenate([gap, start[:, None]], 1), LINES)
    return Puzzles(key, seeds, np.full(n, length), first, way, options, answer), valid


def _arrows(seeds: np.ndarray, length: int, most: bool) -> tuple[Puzzles, np.ndarray]:
    n, every, inner = len(seeds), np.arange(len(seeds)), CELLS - ENDS
    order = _random(seeds, CELLS, 1).argsort(1)  # the first `inner` rows point, the last four are ends
    ends = np.sort(order[:, inner:], 1)
    target = np.full((n, CELLS), -1)  # of every row
    way = np.zeros((n, 2, CELLS, CELLS), bool)
    pick = _random(seeds, CELLS, 2)
    start = order[:, 0]
    if most:  # `length` rows point at ends, the others at rows that are none
        for k in range(inner):
            to_end = ends[every, (pick[:, k] * ENDS).astype(int)]
            other = order[every, (k + 1 + (pick[:, k] * (inner - 1)).astype(int)) % inner]
            target[every, order[:, k]] = to_end if k < length else other
        counts = (target[:, None] == ends[:, :, None]).sum(2)
        answer = counts.argmax(1)
        valid = (counts == counts.max(1, keepdims=True)).sum(1) == 1
    else:  # order[0] -> order[1] -> ... -> an end; the rows beside the way point at it, at a later one or at an end
        for k in reversed(range(inner)):
            to_end = ends[every, (pick[:, k] * ENDS).astype(int)]
            if k < length - 1:
                target[every, order[:, k]] = order[:, k + 1]
            elif k == length - 1:
                target[every, order[:, k]] = to_end
            else:
                pool = np.r_[1:length, k + 1 : CELLS]
                target[every, order[:, k]] = order[every, pool[(pick[:, k] * len(pool)).astype(int)]]
        last = target[every, order[:, length - 1]]
        answer, valid = (ends == last[:, None]).argmax(1), np.ones(n, bool)
    first = np.zeros((n, CELLS, CELLS), np.uint8)
    first[:, np.arange(CELLS), np.arange(CELLS)] = LINE
    row, pointing = np.nonzero(target >= 0)
    first[row, pointing, target[row, pointing]] = RUNG
    for k in range(length):
        shown = target[every, order[:, k]] == ends[every, answer] if most else np.ones(n, bool)
        for half in range(2 * k // length if length > 1 else 1, 2):
            way[every, half, order[:, k], target[every, order[:, k]]] = shown
    key = _packed(target + 1, CELLS + 1)
    if not most:
        first[every, start, start] = START
        key = key * np.uint64(CELLS) + start.astype(np.uint64)
    options = np.stack([ends, ends], 2)
    return Puzzles(key, seeds, np.full(n, length), first, way, options, answer), valid


TASKS = {
    "ladder": (_ladder, False, range(1, ROWS + 1)),
    "ladder_most": (_ladder, True, range(3, ROWS + 1)),
    "arrows": (_arrows, False, range(1, CELLS - ENDS + 1)),
    "arrows_most": (_arrows, True, range(3, CELLS - ENDS + 1)),
}


def _task(name: str):
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


def lengths(task: str) -> range:
    """Lengths that exist of a task."""
    return _task(task)[2]


def make(task: str, length: int, seeds: np.ndarray) -> Puzzles:
    """One puzzle a seed, without those that have no single answer."""
    function, most, allowed = _task(task)
    if length not in allowed:
        raise ValueError(f"{task} has lengths {allowed.start} to {allowed.stop - 1}, got {length!r}")
    puzzles, valid = function(np.asarray(seeds), length, most)
    return puzzles[valid]


def split_of(puzzles: Puzzles) -> np.ndarray:
    """Share in sixteenths that the hash of each puzzle falls into, (n,) in 0..15: 0-1 report, 2-3 validation,
    4-15 train.
    """
    return (_mix(puzzles.key ^ np.uint64(0x5EED)) >> np.uint64(60)).astype(int)


def take(task: str, split: str, length: int, count: int, skip: int = 0) -> tuple[Puzzles, int]:
    """`count` puzzles of a split from its seeds, `skip` seeds left out, and the number of seeds used from the
    range's start.

    In "report" and "validation" no puzzle occurs twice; fewer come back where the split has fewer.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    seeds, shares = SPLITS[split]
    once, parts, have, used, empty = split != "train", [], 0, skip, 0
    seen = np.empty(0, np.uint64)
    while have < count and empty < 3:
        block = min(32_768, max(256, (count - have) * 32 // len(shares)))
        found = make(task, length, np.arange(seeds.start + used, seeds.start + used + block))
        share = split_of(found)
        found = found[(share >= shares.start) & (share < shares.stop)]
        if once:
            _, index = np.unique(found.key, return_index=True)
            index = np.sort(index[~np.isin(found.key[index], seen)])
            found = found[index]
            seen = np.concatenate([seen, found.key])
        found = found[: count - have]
        used = int(found.seed[-1]) - seeds.start + 1 if have + len(found) == count and len(found) else used + block
        empty = 0 if len(found) else empty + 1
        parts.append(found)
        have += len(found)
    return Puzzles(*(np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0]))), used


def distinct(task: str, length: int) -> int:
    """Number of distinct ways of a ladder task: puzzles that differ only in rungs above the mark are the same
    way.
    """
    if not task.startswith("ladder"):
        raise ValueError(f"only the ways of the ladder tasks are counted, got {task!r}")
    return LINES * (LINES - 1) ** length
