"""One experiment as a plain dict, and its run: finished once, named by everything that decides its result.

    spec = {"model": "cos-mini", "preset": "mini", "task": "maze", "seed": 7, "condition": "noise_at_step 2"}
    run_one(spec, "runs/x")

`complete` states the fields. A run leaves

    out/runs/<key>.json               spec, values of the measures, provenance of the run
    out/runs/<key>.safetensors        the final latents, for keep "latents"
    out/runs/<key>.mp4                the video, for keep "video"
    out/timings/<key>.json            its seconds, without loading the model

Many of them at once: `cosutils.sweep`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save

from . import vbvr
from .films import write_film
from .inject import Edit, inject, noise_at_frame, noise_at_step, renoise
from .loading import load, seeded, settings
from .metrics import commitment_step
from .mini import tasks
from .record import Run, record
from .results import weights_digest
from .schedule import preset as named_preset

__all__ = ["CONDITIONS", "FIELDS", "MEASURES", "complete", "identity", "key", "run_one", "weights", "write_json"]

FIELDS = ("model", "preset", "device", "task", "seed", "sample", "size", "frames")
FIELDS += ("noise_seed", "steps", "condition", "measures", "keep")
SAMPLE_FILES = (".png", ".txt", ".mp4")
State = tuple[tuple[Path, str, int, int], ...]  # of files: path, name, size, time of change
CONDITIONS = {"plain": None, "noise_at_step": noise_at_step, "noise_at_frame": noise_at_frame, "renoise": renoise}


def _commitment(sample: tasks.Sample, film: np.ndarray, run: Run) -> int:
    films = run.decode()[:, 0].numpy()
    return commitment_step([sample.candidates(estimate) for estimate in films])


MEASURES: dict[str, Callable[[Any, np.ndarray, Run], float]] = {
    # name -> f(sample, film (T, H, W, 3) in [0, 1], run); all but the last need a puzzle, see `tasks.Sample`
    "score": lambda sample, film, run: sample.score(film).total,
    "solved": lambda sample, film, run: sample.score(film).solved,
    "answer": lambda sample, film, run: sample.score(film).parts["answer"],
    "motion": lambda sample, film, run: sample.score(film).parts["motion"],
    "commitment": _commitment,
    # mean absolute difference of the last frame from the true one, in [0, 1]
    "last_frame_error": lambda sample, film, run: np.abs(film[-1] - sample.video[-1]).mean(),
}


def complete(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with every default filled in, in the order of FIELDS; ValueError (FileNotFoundError for a
    missing sample) in one sentence for anything that is not allowed.

    model, preset: as `load` takes them. Either task and seed (a puzzle), or sample (a folder <split>/<task>/<00000> in
    the benchmark's layout, see `vbvr`, with size in pixels, default 480, and frames, default the true film's,
    rounded up to 4k + 1).
    noise_seed: default 0; the initial noise is drawn from noise_seed + seed, and so is the noise of the condition.
    steps: default the preset's. condition: "plain" (default) or "noise_at_step 12", "noise_at_frame 3", "renoise 12".
    measures: names in MEASURES, default score and solved of a puzzle, last_frame_error of a sample. keep: "latents",
    "video" or None (default). device: "cpu" (default) or "cuda".
    """
    for name in spec:
        if name not in FIELDS:
            raise ValueError(f"unknown field {name!r} in a spec; allowed are {', '.join(FIELDS)}")
    for name in ("model", "preset"):
        if not isinstance(spec.get(name), str):
            raise ValueError(f"a spec needs {name} as text, got {spec.get(name)!r}")
    full = dict(spec)
    if ("task" in spec) == ("sample" in spec):
        raise ValueError("a spec needs either task and seed (a puzzle) or sample (a folder), and not both")
    for name in ("size", "frames") if "task" in spec else ("seed",):
        if name in spec:
            raise ValueError(f"{name} belongs to a spec with {'sample' if 'task' in spec else 'task'}")
    if "task" in spec:
        full["seed"] = _whole(spec, "seed", None)
        tasks.get(spec["task"])
    else:
        full["sample"], full["size"] = str(spec["sample"]), _whole(spec, "size", 480, least=1)
        full["frames"] = _sample(full["sample"], full["size"], spec.get("frames")).frames
    full["noise_seed"] = _whole(spec, "noise_seed", 0)
    full["steps"] = _whole(spec, "steps", named_preset(spec["preset"]).steps, least=1)
    full["condition"] = spec.get("condition", "plain")
    _edit(full)
    given = spec.get("measures", ["score", "solved"] if "task" in spec else ["last_frame_error"])
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise ValueError(f"measures is a name or a list of names, got {given!r}")
    full["measures"] = sorted(set(given))
    usable = list(MEASURES) if "task" in spec else ["last_frame_error"]
    for name in full["measures"]:
        if name not in usable:
            kind = "puzzle" if "task" in spec else "sample folder"
            raise ValueError(f"unknown measure {name!r} for a {kind}; allowed are {', '.join(usable)}")
    full["keep"], full["device"] = spec.get("keep"), spec.get("device", "cpu")
    if full["keep"] not in (None, "latents", "video"):
        raise ValueError(f"keep is 'latents', 'video' or left out, got {full['keep']!r}")
    if full["device"] not in ("cpu", "cuda"):
        raise ValueError(f"device is 'cpu' or 'cuda', got {full['device']!r}")
    return {name: full[name] for name in FIELDS if name in full}


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the result of `spec`, as JSON values.

    The completed spec, the row of its preset, digests of the model's weights and of the puzzle or sample, versions of
    the packages. A model folder is hashed whole, once per process and state of its files (about 1 s per GB); of a hub
    id the commit that was downloaded is taken. Raises ValueError, also for weights that are not on this machine.
    """
    spec = complete(spec)
    if "task" in spec:
        puzzle = tasks.sample(spec["task"], spec["seed"])
        content = hashlib.sha256(puzzle.prompt.encode() + puzzle.ids.tobytes()).hexdigest()[:16]
    else:
        content = _digest(_state(Path(spec["sample"]), SAMPLE_FILES))
    return {
        "spec": spec,
        "preset": asdict(named_preset(spec["preset"])),
        "weights": weights(spec["model"]),
        "content": content,
        "versions": {name: version(name) for name in ("cosutils", "torch", "diffusers", "transformers")},
    }


def key(spec: Mapping[str, Any]) -> str:
    """Name of the output of `spec`: 32 hexadecimal digits of the sha256 of its `identity`."""
    return _name(identity(spec))


def run_one(spec: Mapping[str, Any], out: str | Path) -> Path:
    """Do one run unless it is finished, and return its file `out`/runs/<key>.json.

    Needs no engine: any number of processes may call it with the same `out`, and be killed at any moment. Files appear
    whole (temporary name, then renamed), the JSON last. The model is loaded once per process. Raises ValueError for a
    bad spec, and what the run itself raises.
    """
    facts = identity(spec)
    spec, out = facts["spec"], Path(out)
    path = out / "runs" / f"{_name(facts)}.json"
    if path.is_file():
        return path
    if "task" in spec:
        sample = tasks.sample(spec["task"], spec["seed"])
    else:
        sample = _sample(spec["sample"], spec["size"], spec["frames"])
    pipe = _pipeline(spec["model"], facts["weights"], spec["preset"], spec["device"])
    call = settings(pipe) | {"num_inference_steps": spec["steps"]} | sample.inputs
    edit, start = _edit(spec), time.perf_counter()
    with inject(pipe, edit) if edit else nullcontext():
        with record(pipe, keep=("x0",) if "commitment" in spec["measures"] else ()) as run:
            generator = seeded(spec["noise_seed"] + spec.get("seed", 0))
            film = pipe(**call, generator=generator, output_type="np").frames[0]
    values = {measure: float(MEASURES[measure](sample, film, run)) for measure in spec["measures"]}
    seconds = time.perf_counter() - start
    if spec["keep"] == "latents":
        _write(path.with_suffix(".safetensors"), save({"latents": run.latents}))
    elif spec["keep"] == "video":
        write_film(film, path.with_suffix(".mp4"))
    write_json(out / "timings" / path.name, {"seconds": seconds, "steps": spec["steps"]})
    write_json(path, {**facts, "values": values, "run": run.info})
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, whole or not at all, also where the process is killed."""
    _write(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _name(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _whole(spec: Mapping[str, Any], name: str, default: int | None, least: int = 0) -> int:
    value = spec.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def _edit(spec: Mapping[str, Any]) -> Edit | None:
    """The disturbance that the condition of a spec asks for."""
    name, _, number = str(spec["condition"]).partition(" ")
    if name not in CONDITIONS or (name == "plain") != (number == "") or not (number == "" or number.isdecimal()):
        forms = ", ".join(form if form == "plain" else f"'{form} K'" for form in CONDITIONS)
        raise ValueError(f"unknown condition {spec['condition']!r}; allowed are {forms} with a whole number K")
    if name == "plain":
        return None
    if name != "noise_at_frame" and int(number) >= spec["steps"]:
        steps = spec["steps"]
        raise ValueError(f"condition {spec['condition']!r}: a run of {steps} steps has steps 0..{steps - 1}")
    return CONDITIONS[name](int(number), spec["noise_seed"] + spec.get("seed", 0))


def _sample(folder: str | Path, pixels: int, frames: int | None) -> vbvr.Puzzle:
    """The puzzle at <root>/<split>/<task>/<00000>; its whole task is checked, once per process and state."""
    path = Path(folder)
    if len(path.parts) < 3:
        raise ValueError(f"sample must be a folder <split>/<task>/<00000> in the benchmark's layout, got {str(path)!r}")
    state = _state(path.parent, SAMPLE_FILES) if path.is_dir() else ()
    for puzzle in _task(path.parents[2], *path.parts[-3:-1], pixels, frames, state):
        if puzzle.folder == path:
            return puzzle
    raise FileNotFoundError(f"no sample {path}")


@lru_cache(maxsize=256)
def _task(root: Path, split: str, task: str, pixels: int, frames: int | None, state: State) -> list[vbvr.Puzzle]:
    return vbvr.read(root, [split], [task], pixels=pixels, frames=frames)


def weights(model: str) -> str:
    """What tells the weights of `model` from others, see `identity`. ValueError where they are not on this machine."""
    if digest := weights_digest(model):
        return digest
    if Path(model).is_dir():
        return _digest(_state(Path(model), (".safetensors", ".json", ".txt", ".model")))
    try:
        return Path(snapshot_download(model, local_files_only=True)).name
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"no model {model!r} on this machine: choose cos-mini, a folder in diffusers format, or a hub id that was "
            f"downloaded with `hf download {model}`"
        ) from error


def _state(folder: Path, endings: tuple[str, ...]) -> State:
    """Path, name, size and time of change of the files in `folder`: the same state needs no second hashing."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    return tuple((p, p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


@lru_cache(maxsize=4096)
def _digest(state: State) -> str:
    total = hashlib.sha256()
    for path, name, _, _ in state:
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@lru_cache(maxsize=1)
def _pipeline(model: str, weights: str, preset: str, device: str) -> WanImageToVideoPipeline:
    """The model of this process; `weights` tells a changed one from the one in memory."""
    pipe = load(model, preset, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.uname().nodename}-{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
