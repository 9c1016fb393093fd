"""What all tasks share: a `Sample`, its exact score, and the soft evidence for every possible answer."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from scipy.optimize import nnls

from .. import world

__all__ = ["NAMES", "Sample", "Score", "agreement", "get", "sample"]

NAMES = (
    "maze", "two_routes", "tictactoe", "shelf", "find_shape",
    "size_pattern", "rotation", "reappear", "occlusion", "bounce",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Exact, rule-based score of one film.

    total: answer * motion in [0, 1]; solved: the last frame is exactly right and motion >= 0.8.
    parts: ``answer``, agreement of the last frame with the nearest right answer, over the cells that either of
    them changed since the first frame; ``motion``, the mean of the same agreement over the frames between.
    """

    total: float
    solved: bool
    parts: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One puzzle. films: every *right* answer -> its film (17, 10, 10); options: every *possible* answer -> its
    last frame (10, 10); blank: the last frame without any answer. The first of `films` is drawn as ground truth."""

    task: str
    seed: int
    difficulty: int
    prompt: str
    films: dict[str, np.ndarray] = field(repr=False)
    options: dict[str, np.ndarray] = field(repr=False)
    blank: np.ndarray = field(repr=False)
    is_twin: bool = False

    @property
    def answer(self) -> str:
        return next(iter(self.films))

    @property
    def ids(self) -> np.ndarray:
        """Ground truth as tile numbers (17, 10, 10)."""
        return self.films[self.answer]

    @cached_property
    def video(self) -> np.ndarray:
        """Ground-truth film (17, 80, 80, 3) float32 in [0, 1]."""
        return world.draw(self.ids)

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(np.uint8(np.rint(self.video[0] * 255)))

    @property
    def inputs(self) -> dict:
        """Keyword arguments for a stock image-to-video pipeline."""
        return dict(image=self.image, prompt=self.prompt, height=world.SIZE, width=world.SIZE,
                    num_frames=world.FRAMES, max_sequence_length=16)  # fmt: skip

    def score(self, video: np.ndarray) -> Score:
        """Score a film (17, 80, 80, 3) in [0, 1] against the nearest right answer."""
        video = np.asarray(video)
        if video.shape != self.video.shape:
            raise ValueError(f"a {self.task} film has shape {self.video.shape}, got {video.shape}")
        seen, first = world.read(video), self.ids[0]
        best = max((agreement(seen, film, first) for film in self.films.values()), key=lambda a: a[-1])
        answer, motion = float(best[-1]), float(best[1:-1].mean())
        return Score(answer * motion, answer == 1 and motion >= 0.8, dict(answer=answer, motion=motion))

    def candidates(self, video: np.ndarray) -> dict[str, float]:
        """Share of every possible answer in the last frame of a decoded clean-latent estimate (..., 80, 80, 3).

        The codec is linear, so an ideal estimate is the mean of the possible films weighted by their posterior
        probability; non-negative least squares on (picture - unanswered picture) recovers these weights. They need
        not sum to one: what is missing is "no answer yet" or a picture that is no answer at all.
        """
        last = np.asarray(video, dtype=np.float64)
        last = last[-1] if last.ndim == 4 else last
        if last.shape != self.video.shape[1:]:
            raise ValueError(f"the last frame of a {self.task} film has shape {self.video.shape[1:]}, got {last.shape}")
        where, basis, blank = self._basis
        weights, _ = nnls(basis, last.reshape(-1)[where] - blank)
        return dict(zip(self.options, (float(min(w, 1.0)) for w in weights)))

    @cached_property
    def _basis(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        blank = world.draw(self.blank).reshape(-1).astype(np.float64)
        deltas = world.draw(np.stack(list(self.options.values()))).reshape(len(self.options), -1) - blank
        where = np.flatnonzero(abs(deltas).max(0) > 0)
        return where, np.ascontiguousarray(deltas[:, where].T), blank[where]

    def twin(self) -> Sample:
        """The same scene with another answer (other prompt, or one other object): see the task's docstring."""
        return sample(self.task, self.seed, self.difficulty, twin=not self.is_twin)


def agreement(seen: np.ndarray, film: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Per frame: cells that are right, over cells that changed in either film (1 where nothing changed)."""
    touched = (seen != first) | (film != first)
    right = touched & (seen == film)
    count = touched.sum((1, 2))
    return np.where(count == 0, 1.0, right.sum((1, 2)) / np.maximum(count, 1))


def get(name: str):
    """The module of a task by name."""
    if name not in NAMES:
        raise ValueError(f"unknown task {name!r}; tasks are {', '.join(NAMES)}")
    return importlib.import_module(f".{name}", __package__)


def sample(name: str, seed: int, difficulty: int | None = None, twin: bool = False) -> Sample:
    """Puzzle `seed` of a task, the same on every machine. difficulty: None for the task's default."""
    task = get(name)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"a seed is an integer >= 0, got {seed!r}")
    difficulty = task.DIFFICULTY if difficulty is None else difficulty
    if difficulty not in task.DIFFICULTIES:
        raise ValueError(f"{name} has difficulties {list(task.DIFFICULTIES)}, got {difficulty!r}")
    rng = np.random.default_rng([NAMES.index(name), int(seed)])
    prompt, films, options, blank = task.build(rng, difficulty, twin)
    return Sample(name, int(seed), difficulty, prompt, films, options, blank, twin)
