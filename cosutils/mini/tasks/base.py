"""What all tasks share: a `Sample`, its exact score, and the soft evidence for every possible answer."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from types import ModuleType

import numpy as np
from PIL import Image
from scipy.optimize import nnls

from ..._check import whole
from .. import world

__all__ = ["MAX_LENGTH", "Sample", "Score", "agreement", "get", "modules", "sample"]

MAX_LENGTH = 16  # tokens of a prompt that the embedded model reads, its end token included
PARTS = ("STREAM", "WORDS", "DIFFICULTIES", "DIFFICULTY", "build")  # what the file of a task holds
SMALL = (world.FRAMES, world.SIZE, world.SIZE, 3)  # a film as it is read


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
    """One puzzle. films: every *right* answer -> its film (17, 10, 10); possible: every *possible* answer -> a film
    that ends in it; blank: the last frame without any answer (10, 10). The first of `films` is drawn as ground truth.

    pixels, frames: size of the pictures and films it is posed and answered with, 80 p and 16 m + 1. A film of that size
    is brought back to 17 frames of 80 pixels before it is read (`world.reduced`); films already there are read as well.
    """

    task: str
    seed: int
    difficulty: int
    prompt: str
    films: dict[str, np.ndarray] = field(repr=False)
    possible: dict[str, np.ndarray] = field(repr=False)
    blank: np.ndarray = field(repr=False)
    is_twin: bool = False
    pixels: int = world.SIZE
    frames: int = world.FRAMES

    def __post_init__(self) -> None:
        world.check_size(self.pixels, self.frames)
        size = (world.FRAMES, world.CELLS, world.CELLS)
        for name, film in (*self.films.items(), *self.possible.items()):
            if film.shape != size:
                raise ValueError(f"the film of {name!r} has shape {size}, got {film.shape}")

    @property
    def answer(self) -> str:
        return next(iter(self.films))

    @cached_property
    def options(self) -> dict[str, np.ndarray]:
        """Every possible answer -> the last frame of its film (10, 10)."""
        return {name: film[-1] for name, film in self.possible.items()}

    @property
    def ids(self) -> np.ndarray:
        """Ground truth as tile numbers (17, 10, 10)."""
        return self.films[self.answer]

    @cached_property
    def video(self) -> np.ndarray:
        """Ground-truth film (frames, pixels, pixels, 3) float32 in [0, 1]."""
        return world.enlarged(world.draw(self.ids), self.pixels, self.frames)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of its films, (frames, pixels, pixels, 3)."""
        return self.frames, self.pixels, self.pixels, 3

    @property
    def image(self) -> Image.Image:
        picture = Image.fromarray(np.uint8(np.rint(world.draw(self.ids[0]) * 255)))
        return picture.resize((self.pixels, self.pixels), Image.Resampling.NEAREST)

    @property
    def inputs(self) -> dict:
        """Keyword arguments for a stock image-to-video pipeline.

        At the embedded model's own size (80 pixels, 17 frames) they hold `max_sequence_length=16` too, the prompt
        length that it was trained with. At all others the pipeline's own default stands: 512, which Wan2.1 with its
        image encoder insists on (its attention takes the last 512 tokens for text).
        """
        size = dict(height=self.pixels, width=self.pixels, num_frames=self.frames)
        if (self.pixels, self.frames) == (world.SIZE, world.FRAMES):
            size["max_sequence_length"] = MAX_LENGTH
        return dict(image=self.image, prompt=self.prompt, **size)

    def score(self, video: np.ndarray) -> Score:
        """Score a film (frames, pixels, pixels, 3) in [0, 1], or one `world.reduced`, against the nearest right answer.

        The nearest is the one whose last frame agrees best. ValueError for another shape and for values that are not
        finite or not in [0, 1].
        """
        video = np.asarray(video)
        if video.shape not in (self.shape, SMALL):
            raise ValueError(f"a {self.task} film has shape {self.shape}, got {video.shape}")
        world.check_values(video)
        seen, first = world.read(world.reduced(video)), self.ids[0]
        best = max((agreement(seen, film, first) for film in self.films.values()), key=lambda a: a[-1])
        answer, motion = float(best[-1]), float(best[1:-1].mean())
        return Score(answer * motion, answer == 1 and motion >= 0.8, dict(answer=answer, motion=motion))

    def candidates(self, video: np.ndarray) -> dict[str, float]:
        """Share in [0, 1] of every possible answer in the last frame of a decoded clean-latent estimate.

        video: (pixels, pixels, 3), or (T, pixels, pixels, 3) of any number of frames, in [0, 1]; ValueError for others.

        The codec is linear, so an ideal estimate is the mean of the possible films weighted by their posterior
        probability; non-negative least squares on (picture - unanswered picture) recovers these weights. They need
        not sum to one: what is missing is "no answer yet" or a picture that is no answer at all.
        """
        last = np.asarray(video)
        last = last[-1] if last.ndim == 4 and len(last) else last
        if last.shape not in (self.shape[1:], SMALL[1:]):
            raise ValueError(f"the last frame of a {self.task} film has shape {self.shape[1:]}, got {last.shape}")
        world.check_values(last)
        last = world.shrunk(last).astype(np.float64)
        where, basis, blank = self._basis
        weights, _ = nnls(basis, last.reshape(-1)[where] - blank)
        return dict(zip(self.options, (float(min(w, 1.0)) for w in weights), strict=True))

    @cached_property
    def _basis(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        blank = world.draw(self.blank).reshape(-1).astype(np.float64)
        deltas = world.draw(np.stack(list(self.options.values()))).reshape(len(self.options), -1) - blank
        where = np.flatnonzero(abs(deltas).max(0) > 0)
        return where, np.ascontiguousarray(deltas[:, where].T), blank[where]

    def twin(self) -> Sample:
        """The same scene with another answer (other prompt, or one other object): see the task's docstring."""
        return sample(self.task, self.seed, self.difficulty, not self.is_twin, self.pixels, self.frames)


def agreement(seen: np.ndarray, film: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Per frame: cells that are right, over cells that changed in either film (1 where nothing changed)."""
    touched = (seen != first) | (film != first)
    right = touched & (seen == film)
    count = touched.sum((1, 2))
    return np.where(count == 0, 1.0, right.sum((1, 2)) / np.maximum(count, 1))


@cache
def modules() -> dict[str, ModuleType]:
    """Every task beside this file, name -> module, in the order of their streams; each gets its ``sample(seed, ...)``.

    ImportError for a file that is no whole task, and for two of one stream.
    """
    names = {file.name for file in pkgutil.iter_modules(sys.modules[__package__].__path__)} - {"base"}
    found = {name: importlib.import_module(f".{name}", __package__) for name in sorted(names)}
    owners: dict[int, str] = {}
    for name, module in found.items():
        if missing := [part for part in PARTS if not hasattr(module, part)]:
            raise ImportError(f"the task {name} ({module.__file__}) does not define {', '.join(missing)}")
        if (other := owners.setdefault(module.STREAM, name)) != name:
            raise ImportError(f"the tasks {other} and {name} have the same STREAM {module.STREAM}")
        vars(module)["sample"] = partial(sample, name)
    return {owners[stream]: found[owners[stream]] for stream in sorted(owners)}


def get(name: str) -> ModuleType:
    """The module of a task by name."""
    if name not in modules():
        raise ValueError(f"unknown task {name!r}; tasks are {', '.join(modules())}")
    return modules()[name]


def sample(
    name: str, seed: int, difficulty: int | None = None, twin: bool = False, pixels: int = world.SIZE,
    frames: int = world.FRAMES,
) -> Sample:  # fmt: skip
    """Puzzle `seed` of a task, the same on every machine and at every size. difficulty: None for the task's default.

    pixels, frames: of its pictures and films, a multiple of 80 and 16 m + 1; the paper's model takes 480 and 81.
    """
    task = get(name)
    seed = whole(seed, "a seed", least=0)
    difficulty = task.DIFFICULTY if difficulty is None else whole(difficulty, "a difficulty")
    if difficulty not in task.DIFFICULTIES:
        raise ValueError(f"{name} has difficulties {list(task.DIFFICULTIES)}, got {difficulty!r}")
    world.check_size(pixels, frames)
    rng = np.random.default_rng([task.STREAM, seed])
    prompt, films, possible, blank = task.build(rng, difficulty, twin)
    return Sample(name, seed, difficulty, prompt, films, possible, blank, twin, pixels, frames)
