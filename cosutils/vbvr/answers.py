"""Answer puzzles of the benchmark and keep what the authors' tools show of each run; finished work is skipped.

    place = study("runs/benchmark", model="cos-mini", noise_seed=1, steps=20)
    for puzzle in vbvr.read(folder, limit=2, **vbvr.geometry(pipe)):
        look = answer(pipe, puzzle, place, seed=1, steps=[0, 10, 19], layers=[0, 5, 9], num_inference_steps=20)
    official.score(puzzles, place / "answers", place / "official")

A study leaves, for each puzzle <split>/<task>/<00000>,

    <place>/study.json                        the facts that all its runs share
    <place>/answers/<puzzle>.mp4              as the official evaluator reads it; the last file of a run
    <place>/looks/<puzzle>/run.json           prompt, schedule (sigmas, timesteps), seed, dtypes, versions
    <place>/looks/<puzzle>/step_007.mp4       the clean estimate at that step: the film, had the model stopped there
    <place>/looks/<puzzle>/views.safetensors  block states at the chosen steps and layers, see `Look.states`

Many conditions, processes or machines: `cosutils.scale.sweep`, which keeps answers and numbers but no pictures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, tensor

from .._files import write_json
from ..films import read_film, write_film
from ..hooks.capture import Capture
from ..hooks.record import record
from ..pipelines.loading import seeded, settings
from .puzzles import Puzzle, answer_path
from .views import views

__all__ = ["Look", "answer", "look_at", "study"]

VIEWS = "views.safetensors"


@dataclass(frozen=True)
class Look:
    """What was kept of one answered puzzle: its `folder` and the `film`'s file. Everything is read when asked for.

    S steps and L layers were looked at; tokens lie on a grid (f, h, w).
    """

    folder: Path
    film: Path

    @property
    def info(self) -> dict[str, Any]:
        """Prompt, sizes, schedule, seeds, versions: that of `record`."""
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @property
    def sigmas(self) -> list[float]:
        """Noise level of every step of the run, in [0, 1], noisiest first; without the final 0."""
        return self.info["sigmas"][:-1]

    @property
    def states(self) -> dict[str, Tensor]:
        """ "energy" (S, L, f, h, w), "change" (S, L, f - 1), "variance" (S, L, D), "channels" (S, L, K, f, h, w) and
        "components" (S, L, 3, f, h, w), see `views`; "steps" (S,) and "layers" (L,) say which."""
        return load_file(self.folder / VIEWS)

    @property
    def steps(self) -> list[int]:
        with safe_open(self.folder / VIEWS, "pt") as file:
            return file.get_tensor("steps").tolist()

    @property
    def layers(self) -> list[int]:
        with safe_open(self.folder / VIEWS, "pt") as file:
            return file.get_tensor("layers").tolist()

    def answer(self) -> np.ndarray:
        """The film that was saved: (T, H, H, 3) uint8."""
        return read_film(self.film)

    def step_films(self, frames: Sequence[int] | None = None) -> np.ndarray:
        """Clean estimates at `steps`: (S, T, H, H, 3) uint8; frames: only these."""
        films = (read_film(self.folder / _step_name(step)) for step in self.steps)
        return np.stack([film if frames is None else film[list(frames)] for film in films])


def study(root: str | Path, **facts: Any) -> Path:
    """Folder of `root` for runs that share `facts` (JSON values), made where it is missing, with study.json in it.

    Its name is a digest of them: other facts, another folder, so that finished work is never that of other settings.
    Give all that decides the films: model, preset, seed, steps, sizes, what was looked at. Weights that are retrained
    under the same name are a fact of their own (`spec.weights`).
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    place = Path(root) / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not (place / "study.json").is_file():
        write_json(place / "study.json", facts)
    return place


def answer(
    pipe: WanImageToVideoPipeline,
    puzzle: Puzzle,
    place: str | Path,
    seed: int = 1,
    steps: Iterable[int] | None = None,
    layers: Iterable[int] | None = None,
    count: int = 6,
    fps: float = 16,
    **call: Any,
) -> Look:
    """Run `pipe` on `puzzle` unless its answer lies in `place`, and return what was kept.

    steps, layers: which to look at (None is all; an empty list of layers keeps films only). count: of the channels to
    keep. call: overrides of the preset's settings. A run that is stopped leaves no answer and is done again. One step
    is decoded at a time. Raises ValueError for steps and layers that are not there.
    """
    film, folder = _places(puzzle, place)
    if film.is_file():
        return look_at(puzzle, place)
    layers = layers if layers is None else list(layers)
    steps = steps if steps is None else list(steps)
    call = puzzle.inputs | settings(pipe) | call | dict(output_type="np", generator=seeded(seed))
    seeing: AbstractContextManager[dict[str, Capture]] = nullcontext({})
    if layers != []:
        seeing = views(pipe, steps, layers, count)
    with record(pipe, keep=("x0",)) as run, seeing as seen:
        frames = pipe(**call).frames[0]
    chosen = sorted(run.x0) if steps is None else sorted(set(steps))
    folder.mkdir(parents=True, exist_ok=True)
    for step in chosen:
        write_film(run.decode([step])[0, 0].numpy(), folder / _step_name(step), fps)
    states = {name: captured.stack()[:, :, 0].contiguous() for name, captured in seen.items()}
    states["steps"] = tensor(chosen)
    states["layers"] = tensor(seen["energy"].layers if seen else [])
    part = folder / f".views.{os.getpid()}.tmp"
    save_file(states, part)
    os.replace(part, folder / VIEWS)
    write_json(folder / "run.json", run.info)
    write_film(frames, film, fps)
    return look_at(puzzle, place)


def look_at(puzzle: Puzzle, place: str | Path) -> Look:
    """What `answer` kept of `puzzle` in `place`. Raises FileNotFoundError where it was not answered there."""
    film, folder = _places(puzzle, place)
    for path in (film, folder / "run.json", folder / VIEWS):
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: {puzzle.name} was not answered there, or its files were removed")
    return Look(folder, film)


def _places(puzzle: Puzzle, place: str | Path) -> tuple[Path, Path]:
    """File of the answer and folder of the rest. A custom puzzle, which the evaluator does not know, keeps both there,
    under a digest of its picture and prompt."""
    looks = Path(place) / "looks"
    if puzzle.split is not None:
        return answer_path(puzzle, Path(place) / "answers"), looks / puzzle.name
    content = hashlib.sha256(puzzle.prompt.encode() + puzzle.image.tobytes()).hexdigest()[:8]
    folder = looks / f"{puzzle.task}-{content}"
    return folder / "answer.mp4", folder


def _step_name(step: int) -> str:
    return f"step_{step:03d}.mp4"
