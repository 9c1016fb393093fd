"""Puzzles in VBVR-Bench's layout, one picture and prompt of your own, and films in the layout its evaluator reads.

>>> puzzles = read(benchmark, tasks=["O-60"], limit=1, pixels=80, frames=17)  # no film is decoded yet
>>> for puzzle in missing(puzzles, "answers"):  # finished work is skipped
...     output = pipe(**puzzle.inputs, **cos.settings(pipe), generator=cos.seeded(1), output_type="np")
...     path = save_answer(output.frames[0], puzzle, "answers")

Layout of the puzzles (EvalKit at 275472f): ``<folder>/<split>/<task>/<00000>/`` with first_frame.png,
final_frame.png, ground_truth.mp4 and prompt.txt; of the answers: ``<folder>/<split>/<task>/<00000>.mp4``. The splits
are In-Domain_50 and Out-of-Domain_50. The evaluator passes over other names and missing files without failing, so
here they are errors. VBVR-Pro-Bench-Video has the same layout, with a metadata.json for each puzzle.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._check import whole
from .._files import read_text
from ..films import check_film, check_picture, probe, read_comment, read_film, read_picture, write_film
from ..pipelines.check import experts

__all__ = [
    "FILES", "SPLITS", "Puzzle", "answer_path", "check_answers", "custom", "frames_up", "geometry", "missing", "read",
    "save_answer", "side_up", "squared",
]  # fmt: skip

SPLITS = ("In-Domain_50", "Out-of-Domain_50")
FILES = ("first_frame.png", "final_frame.png", "ground_truth.mp4", "prompt.txt")
EXTRA = ("metadata.json",)  # the public generators and VBVR-Pro-Bench have it, VBVR-Bench does not
CROPPED = 0.05  # difference of two aspect ratios from which on the evaluator crops instead of resizing


def frames_up(frames: int, stride: int = 4) -> int:
    """The least stride k + 1 (k >= 0) that is not below `frames`: 22 -> 25, 40 -> 41, 96 -> 97, as the authors do.

    stride: frames per latent frame. Diffusers rounds down instead. Raises ValueError for less than one frame.
    """
    frames, stride = whole(frames, "frames", 1), whole(stride, "stride", 1)
    return -(-(frames - 1) // stride) * stride + 1


def side_up(pixels: int, multiple: int = 16) -> int:
    """The least multiple of `multiple` that is not below `pixels`, as the authors do: 1000 -> 1008."""
    pixels, multiple = whole(pixels, "pixels", 1), whole(multiple, "multiple", 1)
    return -(-pixels // multiple) * multiple


def geometry(pipe: Any) -> dict[str, int]:
    """`multiple` (pixels per token side) and `stride` (frames per latent frame) of a Wan pipeline, for `read`."""
    patch = next(iter(experts(pipe).values())).config.patch_size
    return dict(multiple=pipe.vae_scale_factor_spatial * patch[-1], stride=pipe.vae_scale_factor_temporal)


def squared(image: Image.Image, pixels: int) -> Image.Image:
    """`image` as RGB of (pixels, pixels): padded to a square in the median colour of its border, then resized.

    Nothing is cut off: a puzzle whose rim is missing is another puzzle.
    """
    image = read_picture(image)
    side = max(image.size)
    if image.size != (side, side):
        values = np.asarray(image)
        rim = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        canvas = Image.new("RGB", (side, side), tuple(int(value) for value in np.median(rim, axis=0)))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    return image if side == pixels else image.resize((pixels, pixels), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Puzzle:
    """One puzzle; pictures are read when asked for.

    task: its full name, such as O-39_maze_data-generator. split: of `SPLITS`; None for a custom one. number: of
    the sample within its task. folder: where its files lie (None for a custom one). pixels: side of the square
    videos to make. frames: how many, one of 1, stride + 1, 2 stride + 1, ... first: the given picture. skipped: names
    of the samples that `read` was told to leave out.
    """

    prompt: str
    task: str
    split: str | None
    number: int
    pixels: int
    frames: int
    folder: Path | None = None
    first: Path | Image.Image = field(repr=False, default=Path())
    skipped: tuple[str, ...] = field(repr=False, default=())

    @property
    def name(self) -> str:
        """<split>/<task>/<00000>, also where its files and its answer lie."""
        return "/".join(filter(None, (self.split, self.task, f"{self.number:05d}")))

    @cached_property
    def image(self) -> Image.Image:
        """The given first frame, RGB (pixels, pixels)."""
        return squared(read_picture(self.first), self.pixels)

    @cached_property
    def digest(self) -> str:
        """What tells this puzzle from others of its name: of prompt, picture, size and frames, 16 digits."""
        first = read_picture(self.first)
        facts = f"{self.prompt}\0{first.size} {self.pixels} {self.frames} ".encode()
        return hashlib.sha256(facts + first.tobytes()).hexdigest()[:16]

    @property
    def final(self) -> Image.Image:
        """The expected last frame, RGB (pixels, pixels). Raises ValueError for a custom puzzle."""
        return squared(read_picture(self._own("final_frame.png")), self.pixels)

    @property
    def truth(self) -> Path:
        """The ground-truth video file, of its own size and length. Raises ValueError for a custom puzzle."""
        return self._own("ground_truth.mp4")

    @cached_property
    def video(self) -> np.ndarray:
        """Ground-truth film (T, pixels, pixels, 3), float32 in [0, 1]; T is its own length, not `frames`."""
        return read_film(self.truth, self.pixels).astype(np.float32) / 255

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for a stock image-to-video pipeline."""
        return dict(
            image=self.image,
            prompt=self.prompt,
            height=self.pixels,
            width=self.pixels,
            num_frames=self.frames,
        )

    def _own(self, name: str) -> Path:
        if self.folder is None:
            raise ValueError(f"the custom puzzle {self.task!r} has no {name}: it is a picture and a prompt only")
        return self.folder / name


def read(
    folder: str | Path,
    splits: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    pixels: int = 480,
    frames: int | None = None,
    multiple: int = 16,
    stride: int = 4,
    skip: Collection[str] = (),
) -> list[Puzzle]:
    """Read VBVR-Bench's layout below `folder`: puzzles sorted by split, task and number.

    splits: default those that are there. tasks: full names, or their numbers such as "O-39"; default all. limit:
    puzzles per task at most. pixels: side of the videos, a multiple of `multiple`. frames: of the videos (default:
    the ground truth's, rounded up), stride k + 1. `geometry(pipe)` gives multiple and stride. skip: names
    (<split>/<task>/<00000>) of samples to leave out, whatever is wrong with them; `official.score` names them.
    Raises FileNotFoundError for what is missing (split, task, file) and ValueError for unexpected names, a task in both
    splits, an empty prompt, pictures that are unreadable or not square, and videos that are truncated or of another
    size. Only `official.score` looks at every frame of the ground truth.
    """
    root = Path(folder).expanduser()
    _check_geometry(pixels, multiple, frames, stride)
    if limit is not None:
        limit = whole(limit, "limit", 1)
    puzzles, unseen, unskipped = [], set(tasks or ()), {skip} if isinstance(skip, str) else set(skip)
    skipped = tuple(sorted(unskipped))
    for split in _splits(root, splits):
        for place in _entries(root / split, r"\w[\w-]*_data-generator", "a task such as O-39_maze_data-generator"):
            names = {place.name, place.name.split("_")[0]}
            if tasks is not None and not names & set(tasks):
                continue
            unseen -= names
            if twice := [other for other in SPLITS if other != split and (root / other / place.name).is_dir()]:
                raise ValueError(
                    f"the task {place.name} lies in {split} and in {twice[0]} of {root}: the evaluator takes the truth "
                    f"of {SPLITS[0]} for both; remove the one that is wrong"
                )
            samples = _entries(place, r"\d{5}", "a sample of five digits such as 00000")
            if not samples:
                raise FileNotFoundError(f"no samples in {place}: expected folders 00000, 00001, ...")
            chosen = [sample for sample in samples if f"{split}/{place.name}/{sample.name}" not in skipped]
            unskipped -= {f"{split}/{place.name}/{sample.name}" for sample in samples}
            for sample in chosen[:limit]:
                prompt, count = _checked(sample)
                puzzles.append(
                    Puzzle(prompt, place.name, split, int(sample.name), pixels,
                           frames or frames_up(count, stride), sample, sample / "first_frame.png", skipped)
                )  # fmt: skip
    if unseen:
        raise FileNotFoundError(f"no task {', '.join(sorted(unseen))} in {root}")
    if unskipped:
        raise FileNotFoundError(
            f"no sample {min(unskipped)} to skip among those chosen in {root}: name it <split>/<task>/<00000>"
        )
    if not puzzles:
        raise FileNotFoundError(f"no puzzles in {root}")
    return puzzles


def custom(
    image: str | Path | Image.Image,
    prompt: str,
    name: str = "custom",
    pixels: int = 480,
    frames: int = 81,
    multiple: int = 16,
    stride: int = 4,
) -> Puzzle:
    """One picture and prompt of your own as a puzzle. The picture is made square (`squared`), nothing is cut off.

    Raises FileNotFoundError or ValueError for a picture that cannot be read, ValueError for an empty prompt, a name
    that cannot be a folder's, a side that is no multiple of `multiple` and frames that are not stride k + 1.
    """
    _check_geometry(pixels, multiple, frames, stride)
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"the name of a custom puzzle must do as that of a folder, got {name!r}")
    return Puzzle(prompt.strip(), name, None, 0, pixels, frames, None, read_picture(image))


# ---------------------------------------------------------------- checks
def _check_geometry(pixels: int, multiple: int, frames: int | None, stride: int) -> None:
    if pixels != side_up(pixels, multiple):
        fit = side_up(pixels, multiple)
        raise ValueError(f"pixels must be a multiple of {multiple}, got {pixels}; the next is {fit}")
    if frames is not None and frames != frames_up(frames, stride):
        raise ValueError(f"frames must be {stride} k + 1, got {frames}; the next is {frames_up(frames, stride)}")


def _splits(root: Path, wanted: Sequence[str] | None) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    there = sorted(place.name for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
    for name in there:
        if name not in SPLITS and "domain" in name.lower():
            raise ValueError(f"unexpected folder {name!r} in {root}: the splits are {' and '.join(SPLITS)}")
    if unknown := [name for name in wanted or () if name not in SPLITS]:
        raise ValueError(f"unknown split {unknown[0]!r}: the splits are {' and '.join(SPLITS)}")
    found = [name for name in SPLITS if name in there]
    absent = [name for name in wanted or () if name not in found] or ([] if found else list(SPLITS))
    if absent:
        raise FileNotFoundError(f"no {' or '.join(absent)} in {root}; its folders are {', '.join(there) or 'none'}")
    return [name for name in found if wanted is None or name in wanted]


def _entries(place: Path, pattern: str, expected: str) -> list[Path]:
    """Folders in `place`, sorted; anything else, or a name that does not fit, is an error. Hidden files are passed."""
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.is_dir() or not re.fullmatch(pattern, entry.name):
            raise ValueError(f"unexpected {entry.name!r} in {place}: expected {expected}")
    return entries


def _checked(sample: Path) -> tuple[str, int]:
    """Prompt and number of ground-truth frames of one sample folder, all its files looked at."""
    there = {entry.name for entry in sample.iterdir() if not entry.name.startswith(".")}
    if "frame_1.png" in there and "ground_truth.mp4" not in there:
        raise ValueError(
            f"{sample} is of VBVR-Pro-Bench's image setting (frame_1.png and so on, no ground_truth.mp4): films answer "
            f"the video setting, VBVR-Pro-Bench-Video"
        )
    if absent := [name for name in FILES if name not in there]:
        raise FileNotFoundError(f"no {' and no '.join(absent)} in {sample}")
    if unexpected := sorted(there - {*FILES, *EXTRA}):
        raise ValueError(f"unexpected {unexpected[0]!r} in {sample}: expected {', '.join(FILES)}")
    prompt = read_text(sample / "prompt.txt").strip()
    if not prompt:
        raise ValueError(f"{sample / 'prompt.txt'} is empty")
    size, count = probe(sample / "ground_truth.mp4")
    sizes = {name: check_picture(sample / name) for name in FILES[:2]} | {"ground_truth.mp4": size}
    width, height = sizes["first_frame.png"]
    if width != height or len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {w}x{h}" for name, (w, h) in sizes.items())
        raise ValueError(
            f"{sample}: pictures and video must be square and of one size, but {listed}; `skip` leaves a sample out"
        )
    return prompt, count


# ---------------------------------------------------------------- answers
def answer_path(puzzle: Puzzle, folder: str | Path) -> Path:
    """Where the evaluator looks for the answer: <folder>/<split>/<task>/<00000>.mp4. ValueError for a custom one."""
    if puzzle.split is None:
        raise ValueError(f"the custom puzzle {puzzle.task!r} has no place in the benchmark: use films.write_film")
    return Path(folder).expanduser() / f"{puzzle.name}.mp4"


def save_answer(video: np.ndarray, puzzle: Puzzle, folder: str | Path, fps: float = 16) -> Path:
    """Write a model's film (T, H, H, 3), float in [0, 1] or uint8, to where the evaluator reads it: `answer_path`.

    The file says which puzzle it answers, see `Puzzle.digest`.
    """
    return write_film(video, answer_path(puzzle, folder), fps, comment=_label(puzzle))


def missing(puzzles: Sequence[Puzzle], folder: str | Path) -> list[Puzzle]:
    """The puzzles that have no answer in `folder` yet, so that an interrupted study goes on where it stopped.

    Raises ValueError where a file there answers another puzzle of the same name.
    """
    return [puzzle for puzzle in puzzles if not is_answered(puzzle, answer_path(puzzle, folder))]


def is_answered(puzzle: Puzzle, path: Path) -> bool:
    """Whether there is a film at `path`. ValueError where `save_answer` made it for another puzzle, by its content."""
    if not path.is_file():
        return False
    said = read_comment(path)
    if said.startswith(_LABEL) and said != _label(puzzle):
        raise ValueError(
            f"{path} answers another puzzle of that name (another prompt, picture, size or number of frames): take "
            f"another folder, or remove it"
        )
    return True


_LABEL = "cosutils puzzle "


def _label(puzzle: Puzzle) -> str:
    return _LABEL + puzzle.digest


def check_answers(puzzles: Sequence[Puzzle], folder: str | Path) -> dict[str, tuple[int, int]]:
    """Raise unless every puzzle has a whole answer of its own in `folder` (the evaluator passes over missing ones).

    Returns {puzzle name: (side, frames)}, the side being the longer one. FileNotFoundError lists what is missing,
    ValueError names the first file that is damaged, of another puzzle, or that the evaluator would crop.
    """
    if absent := missing(puzzles, folder):
        names = ", ".join(puzzle.name for puzzle in absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise FileNotFoundError(f"{len(absent)} of {len(puzzles)} answers are missing in {folder}: {names}")
    found = {}
    for puzzle in puzzles:
        path = answer_path(puzzle, folder)
        (width, height), frames = check_film(path)
        if abs(width - height) / max(width, height) >= CROPPED:
            raise ValueError(f"{path} is {width}x{height}: the evaluator would crop it to a square; make it square")
        found[puzzle.name] = max(width, height), frames
    return found
