"""One experiment as a frozen `Spec`, and its run: finished once, named by the content of all that decides its result.

>>> spec = Spec(model="cos-mini-two", preset="mini", task="maze", seed=7, steps=4, condition="noise_at_step 2")
>>> run_one(spec, "runs/x").name == f"{key(spec)}.json"
True

A run leaves

    out/runs/<key>.json               spec, identity, values of the measures, provenance of the run
    out/runs/<key>.safetensors        the final latents, for keep "latents"
    out/runs/<key>.mp4                the film, for keep "video" and keep "steps ..."
    out/runs/<key>.step_007.mp4       the clean estimate at that step, for keep "steps 7"
    out/timings/<key>.json            its seconds, without loading the model
    out/running/<key>.json            host, process and time of start, as long as it goes on

Many of them at once: `cosutils.scale.sweep`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import imageio_ffmpeg
import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from .. import vbvr
from .._check import whole
from .._files import sha256, writable_folder, write, write_json
from ..films import write_film
from ..metrics import commitment_step
from ..mini import tasks, world
from ..pipelines.loading import OFFLOADS, data_folder, load, settings
from ..pipelines.lora import lora_files
from ..pipelines.schedule import preset as named_preset
from .conditions import Exchanged, Merge, Treatment, Truth, films, numbers, steps_computed, treatment

__all__ = ["FIELDS", "MEASURES", "Spec", "check_place", "identity", "key", "run_one", "weights"]

SAMPLE_FILES = (".png", ".txt", ".mp4")
STRIDE = 4  # frames per latent frame of a Wan VAE
SEEDS = 2**63  # torch's generators take no more
State = tuple[tuple[Path, str, int, int, int], ...]  # of files: path, name, size, times of change and of move
MEASURES: dict[str, Callable[[Any, np.ndarray, Any], float | np.ndarray]] = {
    # name -> f(sample, film (T, H, W, 3) in [0, 1], last frames of the clean estimates (S, H, W, 3) for "commitment");
    # all but the last need a puzzle, see `tasks.Sample`
    "score": lambda sample, film, ends: sample.score(film).total,
    "solved": lambda sample, film, ends: sample.score(film).solved,
    "answer": lambda sample, film, ends: sample.score(film).parts["answer"],
    "motion": lambda sample, film, ends: sample.score(film).parts["motion"],
    "commitment": lambda sample, film, ends: commitment_step([sample.candidates(end) for end in ends]),
    # mean absolute difference of the last frame from the true one, in [0, 1]
    "last_frame_error": lambda sample, film, ends: np.abs(film[-1] - sample.video[-1]).mean(),
}

OWN: Any = None  # a default that depends on other fields, which `Spec` puts in


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One experiment, checked, with every default filled in.

    model, preset, offload, lora: as `load` takes them; ~ is expanded in paths.
    task and seed: a puzzle, drawn at size pixels, default 80, and frames, default 17, see `tasks.sample`.
    sample: in their place a folder <split>/<task>/<00000> in the benchmark's layout, see `vbvr`; size is 480 by
    default, frames are those of the true film, rounded up to 4k + 1.
    noise_seed: the initial noise is drawn from noise_seed + seed, and so is the noise of the condition.
    steps: default the preset's. condition: see `conditions`. measures: names in MEASURES, default score and solved of a
    puzzle, last_frame_error of a sample. keep: None, "latents", "video", or "steps 0,4-6" for the video and those of
    the clean estimates at these steps. device: "cpu", or "cuda" for one GPU.
    Raises ValueError, TypeError, or FileNotFoundError for a missing sample, in one sentence.
    """

    model: str
    preset: str
    device: str = "cpu"
    offload: str | None = None
    lora: Any = None
    task: str | None = None
    seed: int | None = None
    sample: str | None = None
    size: int = OWN
    frames: int = OWN
    noise_seed: int = 0
    steps: int = OWN
    condition: str = "plain"
    measures: tuple[str, ...] = OWN
    keep: str | None = None

    def __post_init__(self) -> None:
        put = {name: _expanded(getattr(self, name)) for name in ("model", "sample", "lora")}
        for name, value in (("model", put["model"]), ("preset", self.preset)):
            if not isinstance(value, str) or not value:
                raise ValueError(f"a spec needs {name} as text, got {value!r}")
        if (self.task is None) == (self.sample is None):
            raise ValueError("a spec needs either task and seed (a puzzle) or sample (a folder), and not both")
        if self.task is not None:
            tasks.get(str(self.task))
            put["seed"] = whole(self.seed, "seed", least=0)
            put["size"] = world.SIZE if self.size is None else whole(self.size, "size")
            put["frames"] = world.FRAMES if self.frames is None else whole(self.frames, "frames")
            world.check_size(put["size"], put["frames"])
        else:
            if self.seed is not None:
                raise ValueError("seed belongs to a spec with task")
            put["size"] = 480 if self.size is None else whole(self.size, "size", least=1)
            frames = None if self.frames is None else whole(self.frames, "frames", least=1)
            put["frames"] = _sample(put["sample"], put["size"], frames).frames
        put["noise_seed"] = whole(self.noise_seed, "noise_seed", least=0)
        steps = named_preset(self.preset).steps if self.steps is None else self.steps
        put["steps"] = whole(steps, "steps", least=1)
        put["measures"] = self._measures()
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is 'cpu' or 'cuda', got {self.device!r}")
        if self.offload not in (None, *OFFLOADS) or (self.offload and self.device == "cpu"):
            allowed = " or ".join(map(repr, OFFLOADS))
            raise ValueError(f"offload is {allowed} with device 'cuda', or left out, got {self.offload!r}")
        if not isinstance(put["lora"], (str, list, dict, type(None))):
            raise ValueError(f"lora is a file, a hub id or a list of [file or hub id, alpha] pairs, got {self.lora!r}")
        for name, value in put.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.condition, str):
            raise TypeError(f"condition must be text, got {self.condition!r}")
        members = self.treatment.size if isinstance(self.treatment, Merge) else 1
        if self.first_seed + members > SEEDS:
            raise ValueError(f"noise_seed + seed must be below 2**63, got {self.first_seed}")
        if self.keep not in (None, "latents", "video") and not self.kept_steps:
            raise ValueError(f"keep is 'latents', 'video', 'steps 0,4-6' or left out, got {self.keep!r}")
        if self.kept_steps and max(self.kept_steps) >= self.steps:
            raise ValueError(f"keep {self.keep!r}: a run of {self.steps} steps has steps 0..{self.steps - 1}")
        what = self.treatment
        if isinstance(what, Truth) and (
            min(self.kept_steps, default=what.step) < what.step or "commitment" in self.measures
        ):
            raise ValueError(
                f"condition {self.condition!r} begins at step {what.step}: no estimate of a step before is there"
            )
        if isinstance(what, Exchanged) and what.what == "twin's prompt":
            puzzle = self.puzzle
            if not isinstance(puzzle, tasks.Sample) or puzzle.twin().prompt == puzzle.prompt:
                raise ValueError(
                    f"condition {self.condition!r} needs a puzzle whose twin has another prompt, such as find_shape"
                )

    def _measures(self) -> tuple[str, ...]:
        """The names, sorted; ValueError for one that is unknown or there twice."""
        usual = ("last_frame_error",) if self.task is None else ("score", "solved")
        given = usual if self.measures is None else self.measures
        given = (given,) if isinstance(given, str) else given
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(name, str) for name in given):
            raise ValueError(f"measures is a name or a list of names, got {given!r}")
        usable = ("last_frame_error",) if self.task is None else tuple(MEASURES)
        for name in given:
            if name not in usable:
                kind = "sample folder" if self.task is None else "puzzle"
                raise ValueError(f"unknown measure {name!r} for a {kind}; allowed are {', '.join(usable)}")
            if list(given).count(name) > 1:
                raise ValueError(f"measures lists {name!r} twice")
        return tuple(sorted(given))

    @classmethod
    def of(cls, given: Mapping[str, Any] | Spec) -> Spec:
        """`given`, or the spec with these fields; ValueError for an unknown field."""
        if isinstance(given, Spec):
            return given
        for name in given:
            if name not in FIELDS:
                raise ValueError(f"unknown field {name!r} in a spec; allowed are {', '.join(FIELDS)}")
        return cls(**{"model": None, "preset": None, **given})

    def facts(self) -> dict[str, Any]:
        """The fields that are not None, as JSON values, in the order of FIELDS."""
        found = asdict(self) | {"measures": list(self.measures)}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def first_seed(self) -> int:
        return self.noise_seed + (self.seed or 0)

    @property
    def treatment(self) -> Treatment | None:
        """What the condition does; None for a plain run."""
        return treatment(self.condition, self.steps, (self.frames - 1) // STRIDE + 1, self.first_seed)

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Steps whose clean estimates are kept as films."""
        word, _, text = str(self.keep).partition(" ")
        return numbers(text) if word == "steps" else ()

    @property
    def has_film(self) -> bool:
        return self.keep == "video" or bool(self.kept_steps)

    @property
    def estimates(self) -> bool:
        """Whether the clean estimates of all steps are needed."""
        return "commitment" in self.measures or bool(self.kept_steps)

    @property
    def effort(self) -> int:
        """Steps of one film that the run computes, see `conditions.steps_computed`."""
        return steps_computed(self.treatment, self.steps, self.estimates)

    @property
    def puzzle(self) -> tasks.Sample | vbvr.Puzzle:
        """The puzzle, or the benchmark's sample."""
        if self.task is None or self.seed is None:
            return _sample(self.sample, self.size, self.frames)
        return tasks.sample(self.task, self.seed, pixels=self.size, frames=self.frames)


FIELDS = tuple(field.name for field in fields(Spec))


def identity(spec: Mapping[str, Any] | Spec) -> dict[str, Any]:
    """Everything that decides the result of `spec`, as JSON values: content, never where it lies.

    The spec without its paths, the row of its preset, digests of the model's weights, of the puzzle or sample and of
    the low-rank weights, versions of the packages. A model folder is hashed whole, once per process and state of its
    files (about 1 s per GB); of a hub id the commit that was downloaded is taken. Raises ValueError, also for weights
    that are not on this machine.
    """
    spec = Spec.of(spec)
    if spec.sample is None:
        puzzle = cast(tasks.Sample, spec.puzzle)
        content = hashlib.sha256(puzzle.prompt.encode() + puzzle.ids.tobytes()).hexdigest()[:16]
    else:
        content = _digest(_state(Path(spec.sample), SAMPLE_FILES))
    return {
        "spec": {name: value for name, value in spec.facts().items() if name not in ("model", "sample", "lora")},
        "preset": asdict(named_preset(spec.preset)),
        "weights": weights(spec.model),
        "content": content,
        "lora": _lora_content(spec.lora),
        "versions": {name: version(name) for name in ("cosutils", "torch", "diffusers", "transformers")},
    }


def key(spec: Mapping[str, Any] | Spec) -> str:
    """Name of the output of `spec`: 32 hexadecimal digits of the sha256 of its `identity`."""
    return _name(identity(spec))


def run_one(spec: Mapping[str, Any] | Spec, out: str | Path) -> Path:
    """Do one run unless it is finished, and return its file `out`/runs/<key>.json.

    Needs no engine: any number of processes may call it with the same `out`, and be killed at any moment. Files appear
    whole (temporary name, then renamed), the JSON last. One model is in memory at a time, loaded once. Raises
    ValueError for a bad spec, OSError for an `out` that cannot be written, and what the run itself raises.
    """
    spec, out = Spec.of(spec), Path(out).expanduser()
    facts = identity(spec)
    path = out / "runs" / f"{_name(facts)}.json"
    if path.is_file():
        return path
    check_place(out, spec.has_film)
    with _marked(out / "running" / path.name):
        pipe = _pipeline(spec, facts)
        start = time.perf_counter()
        sample = spec.puzzle
        call = settings(pipe) | {"num_inference_steps": spec.steps} | sample.inputs
        made, run = films(pipe, spec.treatment, spec.first_seed, call, spec.estimates, sample)
        measured = "commitment" in spec.measures
        ends = run.decode(frames=[-1])[:, :, 0].unbind(1) if measured else [None] * len(made)
        values = {
            name: float(np.mean([MEASURES[name](sample, film, end) for film, end in zip(made, ends, strict=True)]))
            for name in spec.measures
        }
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"{bad[0]} of this run is {values[bad[0]]}, not a number: its film is not finite")
        seconds = time.perf_counter() - start
        if spec.keep == "latents":
            write(path.with_suffix(".safetensors"), lambda part: save_file({"latents": run.latents}, part))
        for step in spec.kept_steps:
            write_film(run.decode([step])[0, 0].numpy(), path.with_suffix(f".step_{step:03d}.mp4"))
        if spec.has_film:
            write_film(made[0], path.with_suffix(".mp4"))
        write_json(out / "timings" / path.name, {"seconds": seconds, "steps": spec.effort})
        write_json(path, {"spec": spec.facts(), "identity": facts, "values": values, "run": run.info})
    return path


def check_place(out: Path, with_films: bool) -> None:
    """OSError unless results can be written below `out`; RuntimeError where films are to be kept without an ffmpeg."""
    for folder in ("runs", "timings", "failed", "running"):
        writable_folder(out / folder)
    if with_films:
        try:
            subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-version"], capture_output=True, check=True)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"films cannot be kept, there is no ffmpeg that runs: {error}") from error


@contextmanager
def _marked(path: Path) -> Iterator[None]:
    """A file at `path`, as long as the run goes on, that tells who does it and since when (seconds of Unix time)."""
    write_json(path, {"host": os.uname().nodename, "pid": os.getpid(), "since": time.time()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _name(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _expanded(value: Any) -> Any:
    """Text with the home folder in the place of ~ and Python's numbers, in any nesting of lists and dicts."""
    if isinstance(value, (str, os.PathLike)):
        return os.path.expanduser(os.fspath(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _expanded(one) for name, one in value.items()}
    return [_expanded(one) for one in value] if isinstance(value, (list, tuple)) else value


def _lora_content(lora: Any) -> Any:
    """`lora` with digests of the files in the place of their names."""
    if isinstance(lora, str):
        return [_digest((_state_of(path, ""),)) for path in lora_files(lora)]
    if isinstance(lora, Mapping):
        return {name: _lora_content(one) for name, one in lora.items()}
    return [_lora_content(one) for one in lora] if isinstance(lora, list) else lora


def _sample(folder: str | None, pixels: int, frames: int | None) -> vbvr.Puzzle:
    """The puzzle at <root>/<split>/<task>/<00000>; its whole task is checked, once per process and state."""
    if not isinstance(folder, str) or len(Path(folder).parts) < 3:
        raise ValueError(f"sample must be a folder <split>/<task>/<00000> in the benchmark's layout, got {folder!r}")
    path = Path(folder)
    state = _state(path.parent, SAMPLE_FILES) if path.is_dir() else ()
    for puzzle in _task(path.parents[2], *path.parts[-3:-1], pixels, frames, state):
        if puzzle.folder == path:
            return puzzle
    raise FileNotFoundError(f"no sample {path}")


@lru_cache(maxsize=256)
def _task(root: Path, split: str, task: str, pixels: int, frames: int | None, state: State) -> list[vbvr.Puzzle]:
    return vbvr.read(root, [split], [task], pixels=pixels, frames=frames)


def _folder(model: str) -> Path | None:
    """Where a model lies that is no hub id; an embedded one is named without its folder."""
    folders = (data_folder() / model, Path(model))
    return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)


def weights(model: str) -> str:
    """What tells the weights of `model` from others, see `identity`. ValueError where they are not on this machine."""
    if folder := _folder(model):
        return _digest(_state(folder, (".safetensors", ".json", ".txt", ".model")))
    try:
        return Path(snapshot_download(model, local_files_only=True)).name
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"no model {model!r} on this machine: choose cos-mini, a folder in diffusers format, or a hub id that was "
            f"downloaded with `hf download {model}`"
        ) from error


def _state(folder: Path, endings: tuple[str, ...]) -> State:
    """What tells one state of the files in `folder` from another: the same state needs no second hashing."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    return tuple(_state_of(path, path.relative_to(folder).as_posix()) for path in files)


def _state_of(path: Path, name: str) -> tuple[Path, str, int, int, int]:
    status = path.stat()
    return path, name, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=4096)
def _digest(state: State) -> str:
    lines = (f"{name} {sha256(path)}\n" for path, name, *_ in state)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


_loaded: dict[str, WanImageToVideoPipeline] = {}  # the one model of this process


def _pipeline(spec: Spec, facts: Mapping[str, Any]) -> WanImageToVideoPipeline:
    """The model of `spec`, whose identity is `facts`; another one leaves memory before it is loaded."""
    device = spec.device
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("device 'cuda' needs a GPU, and torch finds none on this machine")
        device = f"cuda:{torch.cuda.current_device()}"  # with its number: offloading takes GPU 0 where there is none
    wanted = json.dumps([spec.model, spec.preset, device, spec.offload, facts["weights"], spec.lora, facts["lora"]])
    if wanted not in _loaded:
        _loaded.clear()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        commit = None if _folder(spec.model) else facts["weights"]  # the one that the key names, not what is newest
        pipe = load(spec.model, spec.preset, device=device, offload=spec.offload, lora=spec.lora, revision=commit)
        pipe.set_progress_bar_config(disable=True)
        _loaded[wanted] = pipe
    return _loaded[wanted]
