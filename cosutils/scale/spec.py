"""One experiment as a plain dict, and its run: finished once, named by everything that decides its result.

    spec = {"model": "cos-mini", "preset": "mini", "task": "maze", "seed": 7, "condition": "noise_at_step 2"}
    run_one(spec, "runs/x")

`complete` states the fields. A run leaves

    out/runs/<key>.json               spec, values of the measures, provenance of the run
    out/runs/<key>.safetensors        the final latents, for keep "latents"
    out/runs/<key>.mp4                the video, for keep "video"
    out/timings/<key>.json            its seconds, without loading the model

Many of them at once: `cosutils.scale.sweep`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from .. import vbvr
from .._files import write, write_json
from ..films import write_film
from ..metrics import commitment_step
from ..mini import tasks, world
from ..pipelines.loading import OFFLOADS, load, settings
from ..pipelines.lora import lora_files
from ..pipelines.schedule import preset as named_preset
from ..report.results import weights_digest
from .conditions import effort, films, treatment

__all__ = ["FIELDS", "MEASURES", "complete", "identity", "key", "run_one", "weights"]

FIELDS = ("model", "preset", "device", "offload", "lora", "task", "seed", "sample", "size", "frames")
FIELDS += ("noise_seed", "steps", "condition", "measures", "keep")
LOADED = ("model", "preset", "device", "offload", "lora")  # what decides which pipeline is in memory
SAMPLE_FILES = (".png", ".txt", ".mp4")
State = tuple[tuple[Path, str, int, int], ...]  # of files: path, name, size, time of change
MEASURES: dict[str, Callable[[Any, np.ndarray, np.ndarray | None], float]] = {
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


def complete(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with every default filled in, in the order of FIELDS; ValueError (FileNotFoundError for a
    missing sample) in one sentence for anything that is not allowed.

    model, preset, offload, lora: as `load` takes them, paths as text; offload and lora are left out where there is
    none. Either task and seed (a puzzle, drawn at size pixels, default 80, and frames, default 17, see
    `tasks.sample`), or sample (a folder <split>/<task>/<00000> in the benchmark's layout, see `vbvr`, with size,
    default 480, and frames, default the true film's, rounded up to 4k + 1).
    noise_seed: default 0; the initial noise is drawn from noise_seed + seed, and so is the noise of the condition.
    steps: default the preset's. condition: "plain" (default) or another of `conditions`, such as "noise_at_step 12".
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
    if "task" in spec:
        full["seed"] = _whole(spec, "seed", None)
        tasks.get(spec["task"])
        world.check_size(_whole(spec, "size", world.SIZE), _whole(spec, "frames", world.FRAMES))
        for name, usual in (("size", world.SIZE), ("frames", world.FRAMES)):
            if full.get(name) == usual:  # as where it is not given
                del full[name]
    elif "seed" in spec:
        raise ValueError("seed belongs to a spec with task")
    else:
        full["sample"], full["size"] = str(spec["sample"]), _whole(spec, "size", 480, least=1)
        full["frames"] = _sample(full["sample"], full["size"], spec.get("frames")).frames
    full["noise_seed"] = _whole(spec, "noise_seed", 0)
    full["steps"] = _whole(spec, "steps", named_preset(spec["preset"]).steps, least=1)
    full["condition"] = spec.get("condition", "plain")
    treatment(full)
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
    if spec.get("offload") not in (None, *OFFLOADS) or (spec.get("offload") and full["device"] == "cpu"):
        allowed = " or ".join(map(repr, OFFLOADS))
        raise ValueError(f"offload is {allowed} with device 'cuda', or left out, got {spec['offload']!r}")
    if not isinstance(spec.get("lora"), (str, list, dict, type(None))):
        raise ValueError(f"lora is a file, a hub id or a list of [file or hub id, alpha] pairs, got {spec['lora']!r}")
    for name in ("offload", "lora"):
        if full.get(name) is None:
            full.pop(name, None)
    return {name: full[name] for name in FIELDS if name in full}


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the result of `spec`, as JSON values.

    The completed spec, the row of its preset, digests of the model's weights and of the puzzle or sample, versions of
    the packages. A model folder is hashed whole, once per process and state of its files (about 1 s per GB); of a hub
    id the commit that was downloaded is taken. Of low-rank weights the content of the files counts too. Raises
    ValueError, also for weights that are not on this machine.
    """
    spec = complete(spec)
    if "task" in spec:
        puzzle = _puzzle(spec)
        content = hashlib.sha256(puzzle.prompt.encode() + puzzle.ids.tobytes()).hexdigest()[:16]
    else:
        content = _digest(_state(Path(spec["sample"]), SAMPLE_FILES))
    return {
        "spec": spec,
        "preset": asdict(named_preset(spec["preset"])),
        "weights": weights(spec["model"]),
        "content": content,
        **({"lora": [_hashed(path) for path in lora_files(spec["lora"])]} if "lora" in spec else {}),
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
    sample = _puzzle(spec)
    pipe = _pipeline(json.dumps([spec.get(name) for name in LOADED]), json.dumps([facts["weights"], facts.get("lora")]))
    start = time.perf_counter()
    made, run = films(pipe, spec, settings(pipe) | {"num_inference_steps": spec["steps"]} | sample.inputs)
    ends = run.decode(frames=[-1])[:, :, 0].unbind(1) if "commitment" in spec["measures"] else [None] * len(made)
    values = {
        name: float(np.mean([MEASURES[name](sample, film, end) for film, end in zip(made, ends, strict=True)]))
        for name in spec["measures"]
    }
    seconds = time.perf_counter() - start
    if spec["keep"] == "latents":
        write(path.with_suffix(".safetensors"), lambda part: save_file({"latents": run.latents}, part))
    elif spec["keep"] == "video":
        write_film(made[0], path.with_suffix(".mp4"))
    write_json(out / "timings" / path.name, {"seconds": seconds, "steps": effort(spec)})
    write_json(path, {**facts, "values": values, "run": run.info})
    return path


def _name(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _whole(spec: Mapping[str, Any], name: str, default: int | None, least: int = 0) -> int:
    value = spec.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def _puzzle(spec: Mapping[str, Any]) -> tasks.Sample | vbvr.Puzzle:
    """The puzzle or the benchmark's sample of a completed spec."""
    if "sample" in spec:
        return _sample(spec["sample"], spec["size"], spec["frames"])
    size, frames = spec.get("size", world.SIZE), spec.get("frames", world.FRAMES)
    return tasks.sample(spec["task"], spec["seed"], pixels=size, frames=frames)


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


def _hashed(path: Path) -> str:
    """Digest of one file's content, whatever its name."""
    status = path.stat()
    return _digest(((path, "", status.st_size, status.st_mtime_ns),))


@lru_cache(maxsize=4096)
def _digest(state: State) -> str:
    total = hashlib.sha256()
    for path, name, _, _ in state:
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@lru_cache(maxsize=1)
def _pipeline(loaded: str, weights: str) -> WanImageToVideoPipeline:
    """The model of this process. loaded: the values of LOADED; weights: tells changed ones from those in memory."""
    pipe = load(**dict(zip(LOADED, json.loads(loaded), strict=True)))
    pipe.set_progress_bar_config(disable=True)
    return pipe
