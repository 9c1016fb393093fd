"""Tic-tac-toe (Fig. 2b): the named player wins with one move.

Difficulty: how many marks each player has (3: fewer empty cells). Each player has exactly one winning cell, and
they differ, so that the opponent's cell is a strong distractor. Twin: the other player moves on the same board."""

from __future__ import annotations

import numpy as np

from ..world import CELLS, TILE

STREAM = 2
WORDS = "purple yellow move and win"
DIFFICULTIES, DIFFICULTY = (2, 3), 2
LINES = [*np.arange(9).reshape(3, 3), *np.arange(9).reshape(3, 3).T, np.array([0, 4, 8]), np.array([2, 4, 6])]
PLAYERS = ("purple", "yellow")


def wins(board: np.ndarray, player: int) -> list[int]:
    """Empty cells (0..8) that complete a line of `player`; board (9,) holds -1 empty, 0 or 1."""
    near = [line for line in LINES if (board[line] == player).sum() == 2]
    return [int(cell) for cell in np.flatnonzero(board < 0) if any(cell in line for line in near)]


def _paint(frame: np.ndarray, cell: int, tile: int, count: int = 4) -> None:
    r, c = 3 * (cell // 3), 3 * (cell % 3)
    for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))[:count]:
        frame[r + a, c + b] = tile


def build(rng: np.random.Generator, difficulty: int, twin: bool):
    while True:
        board = np.full(9, -1)
        places = rng.permutation(9)[: 2 * difficulty]
        board[places[:difficulty]], board[places[difficulty:]] = 0, 1
        won = any(len(set(board[line])) == 1 and board[line][0] >= 0 for line in LINES)
        moves = [wins(board, 0), wins(board, 1)]
        if not won and len(moves[0]) == len(moves[1]) == 1 and moves[0] != moves[1]:
            break
    player = int(rng.integers(2)) ^ int(twin)
    scene = np.full((CELLS, CELLS), TILE["floor"], np.uint8)
    r, c = rng.integers(0, 3, size=2)  # where the board of 8 x 8 cells lies
    window = (slice(r, r + 8), slice(c, c + 8))
    scene[window][[2, 5]] = scene[window][:, [2, 5]] = TILE["wall"]
    for cell in np.flatnonzero(board >= 0):
        _paint(scene[window], int(cell), TILE[PLAYERS[board[cell]]])

    def film(cell):
        frames = np.repeat(scene[None], 17, 0)
        for f, frame in enumerate(frames):
            _paint(frame[window], cell, TILE[PLAYERS[player]], count=min(4, f // 3))
        return frames

    name = "cell {}".format
    options = {name(c): film(c) for c in np.flatnonzero(board < 0)}
    answer = moves[player][0]
    return f"{PLAYERS[player]} to move and win", {name(answer): film(answer)}, options, scene
