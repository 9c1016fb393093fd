"""Private: the one seam through which `record`, `inject` and the model hooks watch a pipeline call.

While a context is open, the classes of the pipeline and of its scheduler are swapped for dynamic subclasses
(isinstance, deepcopy and bit-identity hold), which report to one `Hub` shared by all contexts open on that
pipeline. The contexts are `Tap`s; they nest in any order, and the last one to close restores both classes.

Steps are absolute: step i counts from 0 at the noisiest, also in a run resumed in the middle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

__all__ = [
    "Hub",
    "Tap",
    "check_pipeline",
    "experts",
    "is_multistep",
    "reset_multistep",
    "tapped",
]


class Tap:
    """What one open context does during a pipeline call; subclasses override what they need.

    `hooks` says that the tap hooks the transformers, which a whole-model `torch.compile` would hide; such a tap
    looks at blocks, not at estimates: where all taps do, `step` gets None for x and x0.
    """

    hooks = False

    def start(self, hub: Hub) -> None:
        """The schedule is set: `hub.steps`, `first`, `sigmas`, `arguments` are known; may raise."""

    def edit(self, hub: Hub, step: int, x: Tensor) -> tuple[Tensor, str] | None:
        """Return what replaces x_s (B, C, F, H, W) before the model sees it, and its name; or None."""

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor, x0: Tensor | None) -> None:
        """Step `step` was taken: x_s and x0hat in float32 as the model sees them, v as it returned it."""

    def finish(self, hub: Hub, latents: Tensor) -> None:
        """The call returned; `latents` (B, C, F, H, W) is its final state before decoding."""


class Hub:
    """The state of one pipeline's open contexts and, during a call, of that call.

    steps, first: number of steps of the schedule and the step at which this call begins (0 unless resumed).
    sigmas: (steps + 1,) float32 on the CPU. arguments: the call's arguments, defaults included; None outside
    a call. x0: the latest estimate x0hat (B, C, F, H, W) float32 of this run, None before the first step.
    edits: {step: [name, ...]} of what the taps replaced. known: (condition, mask) where the pipeline
    re-composites the first latent frame before every forward (TI2V-5B), else None.
    """

    def __init__(self, pipe: WanImageToVideoPipeline):
        self.pipe, self.scheduler = pipe, pipe.scheduler
        self.taps: list[Tap] = []
        self.restart: Callable[[Hub], int] | None = None
        self.arguments: dict[str, Any] | None = None
        self.begin({})
        self.arguments = None

    def __deepcopy__(self, memo: dict) -> Hub:
        return self  # a pipeline that copies its scheduler keeps reporting here

    def begin(self, arguments: dict[str, Any]) -> None:
        """Forget the previous call."""
        self.arguments = arguments
        self.steps = self.first = 0
        self.sigmas = torch.empty(0)
        self.x0: Tensor | None = None
        self.edits: dict[int, list[str]] = {}
        self.known: tuple[Tensor, Tensor] | None = None
        self.latents: Tensor | None = None
        self.timesteps: Tensor | None = None

    def start(self, scheduler: Any) -> None:
        """Called when the schedule is set: go to the step a resumed run begins at, then tell the taps."""
        self.sigmas = scheduler.sigmas.detach().float().cpu()
        self.steps = len(self.sigmas) - 1
        if self.restart is not None:
            self.first = self.restart(self)
            self.timesteps = scheduler.timesteps
            scheduler.timesteps = scheduler.timesteps[self.first :]
        for tap in self.taps:
            tap.start(self)

    def edited(self, scheduler: Any, step: int, x: Tensor) -> Tensor:
        """Return x_s after every tap's edit, in the dtype of `x`; an edit resets a multistep solver."""
        replaced = x
        for tap in self.taps:
            edit = tap.edit(self, step, replaced)
            if edit is not None:
                replaced = edit[0].to(x)
                self.edits.setdefault(step, []).append(edit[1])
        if step in self.edits:
            reset_multistep(scheduler)
        return replaced

    def seen(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, F, H, W), its known first frame put back where the pipeline does (TI2V-5B)."""
        if self.known is None:
            return x
        condition, mask = self.known
        return (1 - mask) * condition + mask * x

    def took(self, step: int, x: Tensor, v: Tensor) -> None:
        """Tell the taps about a finished step; x0hat = x_s - sigma_s v, sigma from the schedule."""
        if all(tap.hooks for tap in self.taps):
            x = None
        else:
            x = x.float()
            self.x0 = self.seen(x - self.sigmas[step].to(x) * v.float())
            x = self.seen(x)
        for tap in self.taps:
            tap.step(self, step, x, v, self.x0)


class _TappedScheduler:
    """Mixin of the swapped scheduler class: reports to `_cos_hub` during a pipeline call."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        if self._cos_hub.arguments is not None:
            self.set_begin_index(0)  # integer timesteps may collide, the index must not be searched for
            self._cos_hub.start(self)

    def replay(self, step: int, v: Tensor, x: Tensor) -> None:
        """Take a recorded step again, unseen by the taps, to rebuild the solver's memory."""
        device = self.timesteps.device
        super().step(v.to(device), self.timesteps[step], x.to(device))

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        hub = self._cos_hub
        if hub.arguments is None:
            return super().step(model_output, timestep, sample, *args, **kwargs)
        if hub.timesteps is not None:  # solvers count on the full list
            self.timesteps, hub.timesteps = hub.timesteps, None
        result = super().step(model_output, timestep, sample, *args, **kwargs)
        step = self.step_index - 1
        hub.took(step, sample, model_output)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        hub.latents = latents
        if step + 1 == hub.steps:
            return result
        latents = hub.edited(self, step + 1, latents)
        if isinstance(result, tuple):
            return (latents, *result[1:])
        result.prev_sample = latents
        return result


class _TappedPipeline:
    """Mixin of the swapped pipeline class: checks the inputs, edits the initial latents, closes the run."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        latents, *rest = super().prepare_latents(*args, **kwargs)
        hub = self._cos_hub
        if hub.arguments is not None:
            hub.known = tuple(rest) if len(rest) == 2 else None
            latents = hub.edited(self.scheduler, hub.first, latents)
        return (latents, *rest)


@cache
def _tapped_class(mixin: type, cls: type) -> type:
    members: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    if mixin is _TappedPipeline:
        signature = inspect.signature(cls.__call__)

        @wraps(cls.__call__)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            hub = self._cos_hub
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            check_pipeline(self, hooks=any(tap.hooks for tap in hub.taps))
            _check_call(self, bound.arguments)
            hub.begin(bound.arguments)
            try:
                output = cls.__call__(self, *args, **kwargs)
                if hub.latents is None:
                    raise RuntimeError(
                        "the scheduler took no step inside this context: set pipe.scheduler before opening it"
                    )
                for tap in hub.taps:
                    tap.finish(hub, hub.seen(hub.latents))
                return output
            finally:
                if hub.timesteps is not None:
                    self.scheduler.timesteps = hub.timesteps
                hub.begin({})
                hub.arguments = None

        members["__call__"] = call
    return type(cls.__name__, (mixin, cls), members)


@contextmanager
def tapped(pipe: WanImageToVideoPipeline, tap: Tap) -> Iterator[Hub]:
    """Let `tap` follow every call of `pipe` inside the block; both classes are restored on the way out.

    Raises TypeError or ValueError for a pipeline this does not work on (see `check_pipeline`) and
    RuntimeError where the scheduler was exchanged while another context is open.
    """
    check_pipeline(pipe, hooks=tap.hooks)
    hub = pipe.__dict__.get("_cos_hub")
    if hub is None:
        hub = Hub(pipe)
        for host, mixin in ((pipe, _TappedPipeline), (pipe.scheduler, _TappedScheduler)):
            host.__dict__["_cos_hub"] = hub
            host.__class__ = _tapped_class(mixin, host.__class__)
    elif pipe.scheduler is not hub.scheduler:
        raise RuntimeError("pipe.scheduler was exchanged while a context is open: exchange it outside")
    hub.taps.append(tap)
    try:
        yield hub
    finally:
        hub.taps.remove(tap)
        if not hub.taps:
            for host in (pipe, hub.scheduler):
                del host.__dict__["_cos_hub"]
                host.__class__ = host.__class__.__mro__[2]


def experts(pipe: WanImageToVideoPipeline) -> dict[str, torch.nn.Module]:
    """Return the transformers of `pipe` by component name, noisiest first."""
    named = {name: getattr(pipe, name, None) for name in ("transformer", "transformer_2")}
    return {name: model for name, model in named.items() if model is not None}


def is_multistep(scheduler: Any) -> bool:
    """Say whether `scheduler` remembers earlier model outputs (UniPC, DPM-Solver), as Euler does not."""
    return hasattr(scheduler, "model_outputs")


def reset_multistep(scheduler: Any) -> None:
    """Make a multistep solver forget the past, so that its corrector cannot undo an edit of x_s."""
    if is_multistep(scheduler):
        scheduler.model_outputs = [None] * scheduler.config.solver_order
        scheduler.lower_order_nums = 0
        scheduler.last_sample = None


def check_pipeline(pipe: Any, hooks: bool = False) -> None:
    """Raise TypeError or ValueError, in one sentence, for a pipeline whose recordings would be wrong.

    `hooks`: transformers will be hooked, so a whole-model `torch.compile` is refused too.
    """
    if not isinstance(pipe, WanImageToVideoPipeline):
        raise TypeError(f"pipe must be a WanImageToVideoPipeline, not {type(pipe).__name__}")
    scheduler = pipe.scheduler
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or (
        scheduler.config.get("prediction_type") == "flow_prediction"
        and scheduler.config.get("use_flow_sigmas")
    )
    if not flow or scheduler.order != 1:
        raise ValueError(
            f"{type(scheduler).__name__} is not a flow-matching scheduler with one model call per step: "
            "use FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with flow_prediction and "
            "use_flow_sigmas"
        )
    for name, model in experts(pipe).items():
        compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
        if hooks and compiled:
            raise ValueError(
                f"pipe.{name} is compiled as a whole, which hides hooks: use compile_repeated_blocks()"
            )
        if getattr(model, "is_cache_enabled", False):
            raise ValueError(
                f"pipe.{name} has a feature cache enabled, which skips blocks: call its disable_cache()"
            )


def _check_call(pipe: WanImageToVideoPipeline, arguments: dict[str, Any]) -> None:
    frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
    stride = pipe.vae_scale_factor_temporal
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1 or (frames - 1) % stride:
        allowed = f"1, {stride + 1}, {2 * stride + 1}, ..."
        raise ValueError(f"num_frames must be {stride}k + 1 ({allowed}), got {frames!r}")
    patch = next(iter(experts(pipe).values())).config.patch_size
    for name, size, side in (("height", height, patch[1]), ("width", width, patch[2])):
        multiple = pipe.vae_scale_factor_spatial * side
        if size % multiple:
            raise ValueError(f"{name} must be a multiple of {multiple} px for this model, got {size}")
    images = arguments["image"]
    for picture in images if isinstance(images, list) else [images]:
        if isinstance(picture, Image.Image) and picture.size != (width, height):
            raise ValueError(
                f"the image is {picture.height}x{picture.width} px but the call asks for {height}x{width} px "
                "(height x width): resize the image or change height and width"
            )
    generators = arguments["generator"]
    for generator in generators if isinstance(generators, list) else [generators]:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or a list of them (see cosutils.seeded), "
                f"not {type(generator).__name__}"
            )
