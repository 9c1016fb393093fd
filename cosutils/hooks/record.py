"""Record every step of a pipeline call, decode it later, store it, and continue from any step.

>>> with record(pipe) as run:
...     output = pipe(**call)
>>> run.x0[2].shape  # the estimate x0hat at step 2, (B, C, F, H, W)
torch.Size([1, 16, 5, 10, 10])
>>> run.decode(steps=[0, 2]).shape  # its pixels, (S, B, T, H, W, 3)
torch.Size([2, 1, 17, 80, 80, 3])

Chain-of-Steps (arXiv 2603.16870, Sec. 3.1) reads x0hat = x_s - sigma_s v(x_s, s) at every step s. The sigma
is the schedule's own (`scheduler.sigmas[s]`, never t / 1000), the product is taken in float32. Pipelines that are no
flow matching have their own formula, in `families`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import get_module_execution_device
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import __version__
from .._check import is_whole, whole
from .._files import read_json, sha256, write_all
from ..pipelines.arguments import is_finite, plain
from ..pipelines.check import experts, model_name, remembering
from ..pipelines.families import family_of
from ..pipelines.families.base import Flow
from ..pipelines.lora import active_lora
from ..pipelines.provenance import identity
from ._call import Hub, Tap, tapped

__all__ = ["Run", "Series", "record", "resume"]

KEPT = ("x", "v", "x0")
# facts about each video of a batch, arguments that are a schedule, and those that change no latent
PER_ROW = ("prompt", "negative_prompt", "seeds", "generators")
SCHEDULE = ("timesteps", "sigmas")
PASSING = ("num_inference_steps", "output_type", "return_dict", "generator", "callback_on_step_end_tensor_inputs")
# facts that resume does not compare: it compares the schedule itself and takes latents and random state from the run
UNCOMPARED = ("model", "preset", "device", "versions", "first", "timesteps", "sigmas", "seeds", "arguments.latents")
DECODED = 2**20  # latent values decoded at a time: one film of 81 frames and 480 x 480 pixels, or eight small ones


class Series(dict[int, Tensor]):
    """One recorded quantity: {step: (B, C, F, H, W)} on the CPU. Negative steps count from the last one."""

    def __init__(self, name: str, items: dict[int, Tensor] | None = None):
        super().__init__(items or {})
        self.name = name

    def __missing__(self, step: int) -> Tensor:
        if not self:
            raise KeyError(f"{self.name} was not kept in this run: record(pipe, keep=(..., {self.name!r}))")
        last = max(self)
        if is_whole(step) and step < 0 and last + 1 + step in self:
            return self[last + 1 + step]
        raise KeyError(f"no step {step!r}: this run has steps {min(self)}..{last}")

    def stack(self) -> Tensor:
        """Return all steps, noisiest first: (S, B, C, F, H, W)."""
        if not self:
            self.__missing__(0)
        return torch.stack([self[step] for step in sorted(self)])


@dataclass
class Run:
    """One recorded pipeline call; S steps, B videos, latents (B, C, F, H, W).

    x: x_s as the model saw it, float32, edits included. v: the model's velocity after guidance, in its own
    dtype. x0: x0hat = x_s - sigma_s v in float32. For a TI2V-5B pipeline, which overwrites latent frame 0 by
    the given image before every forward, frame 0 of x and x0 is that image, as the model sees it; v is left
    as returned. Where a pipeline keeps frame 0 from the solver (LTX, HunyuanVideo) v is 0 there. sigmas: (steps + 1,)
    float32, the last one 0. latents: the final state, float32. first: the
    step the call began at. edits: {step: names of what was injected before that step}. generators: {number: state of
    that random generator when the call began}, uint8. info: everything needed to tell this run from another.
    """

    x: Series = field(default_factory=lambda: Series("x"))
    v: Series = field(default_factory=lambda: Series("v"))
    x0: Series = field(default_factory=lambda: Series("x0"))
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))
    latents: Tensor | None = None
    first: int = 0
    edits: dict[int, list[str]] = field(default_factory=dict)
    generators: dict[int, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    pipe: DiffusionPipeline | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        """Number of steps of the schedule, also where the call began later."""
        return len(self.sigmas) - 1

    def decode(
        self,
        steps: Iterable[int] | None = None,
        frames: Iterable[int] | None = None,
        batch: int | None = None,
        pipe: DiffusionPipeline | None = None,
    ) -> Tensor:
        """Return the pixels of x0hat at `steps` (default: all): (S, B, T, H, W, 3), float32 in [0, 1].

        `frames` keeps only these pixel frames. `batch` videos (default: 8, of large ones fewer) are decoded at a
        time by the VAE of the recorded pipeline, or of `pipe` where the run was loaded. Raises KeyError for a step,
        IndexError for a frame and ValueError for a batch that does not exist.
        """
        pipe = pipe or self.pipe
        if pipe is None:
            raise ValueError("a loaded run needs the pipeline to decode with: run.decode(..., pipe=pipe)")
        if batch is not None and (not is_whole(batch) or batch < 1):
            raise ValueError(f"batch must be a positive number of videos, got {batch!r}")
        if steps is not None and not (steps := list(steps)):
            raise ValueError("no steps to decode: steps is empty, name at least one or leave it out for all")
        x0 = self.x0.stack() if steps is None else torch.stack([self.x0[step] for step in steps])
        batch = int(batch or max(1, min(8, DECODED // x0[0, 0].numel())))
        count = self.info["num_frames"]
        with torch.no_grad():
            pixels = [_pixels(pipe, part, count, frames) for part in x0.flatten(0, 1).split(batch)]
        if not all(map(is_finite, pixels)):
            raise ValueError("the decoded film holds NaN or infinity: look at the weights and the dtype of the VAE")
        return torch.cat(pixels).unflatten(0, x0.shape[:2])

    def rows(self, rows: Sequence[int]) -> Run:
        """The recording of some videos of the batch alone, in the given order; IndexError for one that is not there."""
        batch = len(next(iter((self.x or self.v or self.x0).values())))

        def pick(value: Any) -> Any:
            return [value[row] for row in rows] if isinstance(value, list) and len(value) == batch else value

        chosen = Run(sigmas=self.sigmas, first=self.first, edits=self.edits, pipe=self.pipe)
        for name in KEPT:
            series = getattr(self, name).items()
            setattr(chosen, name, Series(name, {step: value[list(rows)] for step, value in series}))
        chosen.latents = None if self.latents is None else self.latents[list(rows)]
        own = {name: pick(self.info[name]) for name in PER_ROW if name in self.info}
        given = {name: pick(value) for name, value in self.info.get("arguments", {}).items() if name not in SCHEDULE}
        chosen.info = self.info | own | ({"arguments": self.info["arguments"] | given} if given else {})
        chosen.generators = dict(enumerate(pick(list(self.generators.values()))))
        return chosen

    def save(self, folder: str | Path) -> Path:
        """Write run.safetensors and run.json into `folder` and return it: both, or on an error neither.

        Raises TypeError or ValueError for what JSON cannot hold in `info`, OSError where writing fails.
        """
        if self.latents is None:
            raise ValueError("only a finished run can be saved: this one has no final latents")
        folder = Path(folder).expanduser()
        for name, value in self.info.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"info[{name!r}] cannot be saved as JSON: {error}") from error
        tensors = {"sigmas": self.sigmas, "latents": self.latents.contiguous()}
        for series in (self.x, self.v, self.x0):
            tensors |= {f"{series.name}.{step}": value.contiguous() for step, value in series.items()}
        tensors |= {f"generators.{number}": state for number, state in self.generators.items()}
        data = folder / "run.safetensors"
        facts = {"first": self.first, "edits": self.edits, "info": self.info}

        def fill(path: Path) -> None:
            save_file(tensors, path)
            facts["sha256"] = sha256(path)

        def tell(path: Path) -> None:
            path.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")

        write_all({data: fill, folder / "run.json": tell})
        return folder

    @classmethod
    def load(cls, folder: str | Path, pipe: DiffusionPipeline | None = None) -> Run:
        """Read what `save` wrote; `pipe` is the pipeline to decode with.

        Raises FileNotFoundError where a file is missing and ValueError where one is damaged or the two do not belong
        together.
        """
        folder = Path(folder).expanduser()
        for name in ("run.json", "run.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}: this is not a folder written by Run.save")
        stored = read_json(folder / "run.json")
        if not isinstance(stored, dict) or not {"sha256", "edits", "first", "info"} <= stored.keys():
            raise ValueError(f"{folder}/run.json is damaged: it holds no sha256, edits, first and info")
        if sha256(folder / "run.safetensors") != stored["sha256"]:
            raise ValueError(f"{folder}/run.safetensors is truncated or altered: its sha256 is not run.json's")
        tensors = load_file(folder / "run.safetensors")
        run = cls(sigmas=tensors.pop("sigmas"), latents=tensors.pop("latents"), pipe=pipe)
        for key, value in tensors.items():
            name, step = key.split(".")
            getattr(run, name)[int(step)] = value
        run.edits = {int(step): names for step, names in stored["edits"].items()}
        run.first, run.info = stored["first"], stored["info"]
        return run


class _Recorder(Tap):
    def __init__(self, run: Run, keep: tuple[str, ...]):
        self.run, self.keep = run, keep

    def check(self, hub: Hub) -> None:
        if self.run.latents is not None:
            raise RuntimeError("this recording already holds a run: open a new `record` for each call")
        states = _random_states(hub)
        self.run.info = _provenance(hub) | {
            "generators": [f"{at.type} {plain(state[None])[0]}" for at, state in states]
        }
        self.run.generators = {number: state for number, (_, state) in enumerate(states)}

    def start(self, hub: Hub) -> None:
        for series in (self.run.x, self.run.v, self.run.x0):
            series.clear()
        self.run.sigmas, self.run.first = hub.sigmas, hub.first
        timesteps = hub.scheduler.timesteps if hub.timesteps is None else hub.timesteps
        schedule = {"sigmas": hub.sigmas.tolist(), "timesteps": [float(t) for t in timesteps], "first": hub.first}
        self.run.info |= schedule

    def step(self, hub: Hub, step: int, x: Tensor, v: Tensor, x0: Tensor) -> None:
        for name, value in zip(KEPT, (x, v, x0), strict=True):
            if name in self.keep:
                getattr(self.run, name)[step] = value.detach().to("cpu", copy=True)

    def finish(self, hub: Hub, latents: Tensor) -> None:
        self.run.latents = latents.detach().to("cpu", torch.float32, copy=True)
        self.run.edits = {step: list(names) for step, names in hub.edits.items()}


@contextmanager
def record(pipe: DiffusionPipeline, keep: Iterable[str] = KEPT) -> Iterator[Run]:
    """Record the one call of `pipe` made inside the block; yields its `Run`. Observing changes no bit of the
    call.

    `keep` names what is stored, out of x, v and x0, on the CPU: at most 10 bytes (12 in float32) per latent
    value, video and step. `decode` needs x0, `resume` needs x and, from step 1 on, x0 or v (with a multistep
    solver v).
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    unknown = [name for name in keep if name not in KEPT]
    if unknown:
        raise ValueError(f"cannot keep {unknown[0]!r}: choose from {', '.join(KEPT)}")
    run = Run(pipe=pipe)
    with tapped(pipe, _Recorder(run, keep)):
        yield run


def resume(pipe: DiffusionPipeline, run: Run, step: int, **arguments: Any) -> Any:
    """Call `pipe` from the recorded x_s of `run` at `step` on; returns what the call returns.

    `arguments` are those of the recorded call; random numbers come from generators in the recorded state, whether
    `generator` is given or not. The result
    equals the uninterrupted run's; contexts around the call see absolute step numbers, and an edit that the recorded
    x_s holds already does not act again. A multistep solver's memory is rebuilt by replaying its recorded steps,
    which costs no forward of the model; a model that sees its last estimate (`cosutils.mini.memory`) gets the recorded
    one. Raises KeyError for a step that was not recorded and ValueError for a solver that draws noise, for such a model
    under guidance, whose branches have estimates of their own, and for whatever differs from the recorded call: an
    argument, a component, the schedule.
    """
    if "latents" in arguments:
        raise TypeError("resume takes its latents from the run: leave `latents` out")
    step = whole(step, "step")
    x = run.x[step]
    step = step if step >= 0 else run.steps + step
    arguments.setdefault("num_inference_steps", run.steps)
    given, seeds = arguments.get("generator"), run.info.get("seeds")
    if given is not None and seeds is not None and _seeds(given) != seeds:
        raise ValueError(f"generator has the seeds {_seeds(given)} but the recorded run has {seeds}")
    arguments["generator"] = _restored(run) if run.generators else given
    resumed = _Resumed(run, step)
    with tapped(pipe, resumed) as hub:
        hub.restart, hub.state = resumed.restart, x
        try:
            return pipe(**arguments)
        finally:
            hub.restart = hub.state = None


class _Resumed(Tap):
    def __init__(self, run: Run, step: int):
        self.run, self.at = run, step

    def check(self, hub: Hub) -> None:
        hub.family.solver.check_resumable(hub.scheduler, hub.arguments)
        _compare(_provenance(hub), self.run.info)

    def restart(self, hub: Hub) -> int:
        """Bring the solver to the step; returns it."""
        run, step, scheduler, solver = self.run, self.at, hub.scheduler, hub.family.solver
        if not torch.equal(hub.sigmas, run.sigmas):
            raise ValueError(
                f"the call's schedule ({hub.steps} steps) is not the recorded run's ({run.steps} steps): "
                "use the same scheduler and num_inference_steps"
            )
        if solver.is_multistep(scheduler):
            if run.first > 0:
                raise ValueError(
                    f"the solver's memory cannot be rebuilt: the run was itself resumed at step {run.first}, "
                    "resume from the full run"
                )
            for earlier in range(step):
                if earlier in run.edits:
                    solver.forget(scheduler)
                scheduler.replay(earlier, run.v[earlier], run.x[earlier])
        else:
            solver.begin(scheduler, step)
        if step in run.edits:  # x_s holds them, and its solver had forgotten the past
            hub.edits[step] = list(run.edits[step])
        if step > 0:
            hub.x0 = (run.x0 or _estimates(run, solver))[step - 1].to(scheduler.timesteps.device)
        for model in remembering(hub.pipe):
            if len(hub.family.passes(hub.arguments)) > 1:
                raise ValueError("a model with a memory cannot be resumed under guidance: each branch has its own")
            model.forget()
            if step > 0:
                model.remember(hub.x0, float(run.sigmas[step - 1]), branch="cond")
        return step


def _compare(now: dict[str, Any], then: dict[str, Any], within: str = "") -> None:
    """ValueError for the first fact in which a call differs from the recorded one; facts only one has are left out."""
    for name, before in then.items():
        here, place = now.get(name), within + name
        if place in UNCOMPARED or (not within and name not in now) or (place == "callback" and before is None):
            continue
        if isinstance(here, dict) and isinstance(before, dict):
            _compare(here, dict.fromkeys(here) | before, f"{place}.")
        elif (here if isinstance(here, list) else [here]) != (before if isinstance(before, list) else [before]):
            raise ValueError(f"{place} is {here!r} but the recorded run has {before!r}")


def _estimates(run: Run, solver: Flow) -> Series:
    """x0hat of a run that kept only x and v."""
    return Series("x0", {step: solver.estimate(x, run.v[step], run.sigmas[step]) for step, x in run.x.items()})


def _pixels(pipe: DiffusionPipeline, latents: Tensor, count: int, frames: Iterable[int] | None) -> Tensor:
    """Decode latents (N, C, F, H, W) as the pipeline does a call of `count` frames: (N, T, H, W, 3) in [0, 1]."""
    latents = latents.to(get_module_execution_device(pipe.vae), pipe.vae.dtype)
    video = family_of(pipe).decode(pipe, latents, count)
    pixels = pipe.video_processor.postprocess_video(video, output_type="pt").permute(0, 1, 3, 4, 2)
    if frames is not None:
        chosen, count = list(frames), pixels.shape[1]
        for frame in chosen:
            if not -count <= frame < count:
                raise IndexError(f"no frame {frame}: the decoded video has frames 0..{count - 1}")
        pixels = pixels[:, chosen]
    return pixels.float().cpu()


def _generators(generator: Any) -> list[torch.Generator | None]:
    return generator if isinstance(generator, list) else [generator]


def _seeds(generator: Any) -> list[int | None]:
    return [None if one is None else one.initial_seed() for one in _generators(generator)]


def _random_states(hub: Hub) -> list[tuple[torch.device, Tensor]]:
    """Device and state of every generator of the call, of the device's own where none was given."""
    states = []
    for one in _generators(hub.arguments["generator"]):
        device = hub.pipe._execution_device if one is None else one.device
        own = torch if device.type == "cpu" else torch.get_device_module(device)
        states.append((device, own.get_rng_state() if one is None else one.get_state()))
    return states


def _restored(run: Run) -> torch.Generator | list[torch.Generator]:
    """Generators in the state that the recorded run began with."""
    restored = []
    for number, state in run.generators.items():
        restored.append(torch.Generator(run.info["generators"][number].split()[0]))
        restored[-1].set_state(state)
    return restored if len(restored) > 1 else restored[0]


def _provenance(hub: Hub) -> dict[str, Any]:
    """What a call runs with, before its schedule is set, as plain JSON values."""
    pipe, call = hub.pipe, hub.arguments
    preset = getattr(pipe, "_cos_preset", None)
    top = ("prompt", "negative_prompt", "height", "width", "num_frames", *hub.family.settings)
    rest = {name: value for name, value in call.items() if name not in (*top, *PASSING) and value is not None}
    scale = (call["attention_kwargs"] or {}).get("scale", 1.0)
    callback = rest.pop("callback_on_step_end", None)
    components = identity(pipe)
    return {
        **{name: plain(call[name]) for name in top},
        "arguments": {name: plain(value) for name, value in rest.items()},
        "callback": callback and getattr(callback, "__qualname__", type(callback).__name__),
        "model": model_name(pipe),
        "preset": preset.name if preset else None,
        "lora": {
            expert: {
                name: alpha if _fused(components, expert, name) else alpha * scale for name, alpha in loras.items()
            }
            for expert, loras in active_lora(pipe).items()
        },
        "scheduler": type(hub.scheduler).__name__,
        "boundary": pipe.config.get("boundary_ratio"),
        "dtype": {name: str(model.dtype).removeprefix("torch.") for name, model in experts(pipe).items()},
        "components": components,
        "device": str(pipe._execution_device),
        "seeds": _seeds(call["generator"]),
        "versions": dict(_versions()),
    }


def _fused(components: dict[str, Any], expert: str, name: str) -> bool:
    return components[expert].get("lora", {}).get(name, {}).get("fused", False)


@cache
def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers")
    return {"python": platform.python_version(), "cosutils": __version__} | {name: version(name) for name in names}
