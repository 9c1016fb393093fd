"""Private: the one seam through which `record`, `inject` and the model hooks watch a pipeline call.

While a context is open, the classes of the pipeline and of its scheduler are swapped for dynamic subclasses
(isinstance, deepcopy and bit-identity hold), which report to one `Hub` shared by all contexts open on that
pipeline. The contexts are `Tap`s; they nest in any order, and the last one to close restores both classes.

Steps are absolute: step i counts from 0 at the noisiest, also in a run resumed in the middle. What differs from
one kind of pipeline to another is in `families`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from ..pipelines.check import check_pipeline
from ..pipelines.families import Family, family_of

__all__ = ["Hub", "Tap", "tapped"]


class Tap:
    """What one open context does during a pipeline call; subclasses override what they need.

    `hooks` says that the tap hooks the transformers, which a whole-model `torch.compile` would hide; such a tap
    looks at blocks, not at states: where all taps do, `step` gets None for x, v and x0.
    """

    hooks = False

    def start(self, hub: Hub) -> None:
        """The schedule is set: `hub.steps`, `first`, `sigmas`, `arguments` are known; may raise."""

    def edit(self, hub: Hub, step: int, x: Tensor) -> tuple[Tensor, str] | None:
        """Return what replaces x_s (B, C, F, H, W) before the model sees it, and its name; or None."""

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor | None, x0: Tensor | None) -> None:
        """Step `step` was taken: x_s and x0hat in float32 as the model sees them, v as it returned it."""

    def finish(self, hub: Hub, latents: Tensor) -> None:
        """The call returned; `latents` (B, C, F, H, W) is its final state before decoding."""


class Hub:
    """The state of one pipeline's open contexts and, during a call, of that call.

    steps, first: number of steps of the schedule and the step at which this call begins (0 unless resumed).
    sigmas: (steps + 1,) float32 on the CPU. arguments: the call's arguments, defaults included; None outside
    a call. x0: the latest estimate x0hat (B, C, F, H, W) float32 of this run, None before the first step.
    edits: {step: [name, ...]} of what the taps replaced. family: what is known of this kind of pipeline.
    size: latent frames, rows and columns of the call. known: what the family keeps of a frame that the pipeline
    sets itself, else None. restart: returns the step to begin at; state: x (B, C, F, H, W) to begin with there.
    """

    def __init__(self, pipe: DiffusionPipeline):
        self.pipe, self.scheduler, self.family = pipe, pipe.scheduler, family_of(pipe)
        self.taps: list[Tap] = []
        self.restart: Callable[[Hub], int] | None = None
        self.state: Tensor | None = None
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
        self.size = self.family.size(self.pipe, arguments) if arguments else (0, 0, 0)
        self.known: Any = None
        self.drawn: Tensor | None = None
        self.latents: Tensor | None = None
        self.timesteps: Tensor | None = None

    def start(self, scheduler: Any) -> None:
        """Called when the schedule is set: go to the step a resumed run begins at, then tell the taps."""
        self.sigmas = self.family.solver.sigmas(scheduler)
        self.steps = len(self.sigmas) - 1
        if self.restart is not None:
            self.first = self.restart(self)
            self.timesteps = scheduler.timesteps
            scheduler.timesteps = scheduler.timesteps[self.first :]
        for tap in self.taps:
            tap.start(self)
        if self.drawn is not None:
            self.drawn.copy_(self.opened(self.drawn))
            self.drawn = None

    def prepared(self, latents: Tensor, rest: list[Tensor]) -> Tensor:
        """Called with what the pipeline begins its loop with; returns what it shall begin with."""
        self.known = self.family.known(self, self.family.unpack(self, latents), rest)
        if self.steps > 0:
            return self.opened(latents)
        self.drawn = latents.clone()  # no schedule yet: `start` will write the edits into this tensor
        return self.drawn

    def opened(self, latents: Tensor) -> Tensor:
        """Return the first state, in the form of `prepare_latents`, after a restart and every tap's edit."""
        x = self.family.unpack(self, latents)
        replaced = self.edited(self.scheduler, self.first, x if self.state is None else self.state.to(x))
        if replaced is x:
            return latents
        return self.family.pack(self, self.family.whole(self, self.family.part(self, replaced))).to(latents)

    def edited(self, scheduler: Any, step: int, x: Tensor) -> Tensor:
        """Return x_s after every tap's edit, in the dtype of `x`; an edit resets a multistep solver."""
        replaced = x
        for tap in self.taps:
            edit = tap.edit(self, step, replaced)
            if edit is not None:
                replaced = edit[0].to(x)
                self.edits.setdefault(step, []).append(edit[1])
        if step in self.edits:
            self.family.solver.forget(scheduler)
        return replaced

    @property
    def looks_at_blocks(self) -> bool:
        """Whether every tap does, so that none needs states of the scheduler or edits them."""
        return all(tap.hooks for tap in self.taps)

    def took(self, step: int, x: Tensor, v: Tensor) -> None:
        """Tell the taps about a finished step from x with the velocity v, both as the solver was given them."""
        if self.looks_at_blocks:
            x = v = None
        else:
            x, v = self.family.whole(self, x).float(), self.family.velocity(self, v)
            self.x0 = self.family.seen(self, self.family.solver.estimate(x, v, self.sigmas[step]))
            x = self.family.seen(self, x)
        for tap in self.taps:
            tap.step(self, step, x, v, self.x0)


class _TappedScheduler:
    """Mixin of the swapped scheduler class: reports to `_cos_hub` during a pipeline call."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        if self._cos_hub.arguments is not None:
            self._cos_hub.family.solver.begin(self, 0)  # integer timesteps may collide, it must not be searched for
            self._cos_hub.start(self)

    def replay(self, step: int, v: Tensor, x: Tensor) -> None:
        """Take a recorded step again, unseen by the taps, to rebuild the solver's memory."""
        device = self.timesteps.device
        super().step(v.to(device), self.timesteps[step], x.to(device))

    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        hub = self._cos_hub
        if hub.arguments is None:
            return super().step(model_output, *args, **kwargs)
        if hub.timesteps is not None:  # solvers count on the full list
            self.timesteps, hub.timesteps = hub.timesteps, None
        solver = hub.family.solver
        args = solver.undisturbed(self, hub.edits, model_output, args)
        result = super().step(model_output, *args, **kwargs)
        step = solver.taken(self, args)
        hub.took(step, solver.state(self, args), model_output)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        hub.latents = latents
        if step + 1 == hub.steps or hub.looks_at_blocks:
            return result
        x = hub.family.whole(hub, latents)
        replaced = hub.edited(self, step + 1, x)
        if replaced is not x:
            latents = hub.family.part(hub, replaced).to(latents)
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
            latents = hub.prepared(latents, rest)
        return (latents, *rest)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hub = self._cos_hub
        bound = inspect.signature(super().__call__).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = hub.family.complete(self, bound.arguments)
        check_pipeline(self, hooks=any(tap.hooks for tap in hub.taps))
        _check_call(self, hub.family, arguments)
        hub.begin(arguments)
        try:
            output = super().__call__(*args, **kwargs)
            if hub.latents is None:
                raise RuntimeError(
                    "the scheduler took no step inside this context: set pipe.scheduler before opening it"
                )
            for tap in hub.taps:
                tap.finish(hub, hub.family.seen(hub, hub.family.whole(hub, hub.latents)))
            return output
        finally:
            if hub.timesteps is not None:
                self.scheduler.timesteps = hub.timesteps
            hub.begin({})
            hub.arguments = None


def _signed(mixin: type, cls: type, name: str) -> Callable:
    """The mixin's method under the original's signature, which pipelines inspect before they call it."""
    method = getattr(mixin, name)

    @wraps(getattr(cls, name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return call


@cache
def _tapped_class(mixin: type, cls: type) -> type:
    members: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    names = ("__call__",) if mixin is _TappedPipeline else ("set_timesteps", "step")
    members |= {name: _signed(mixin, cls, name) for name in names}
    return type(cls.__name__, (mixin, cls), members)


@contextmanager
def tapped(pipe: DiffusionPipeline, tap: Tap) -> Iterator[Hub]:
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


def _check_call(pipe: DiffusionPipeline, family: Family, arguments: dict[str, Any]) -> None:
    frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
    (stride, pixels), patch = family.scales(pipe), family.patch(pipe)
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1 or (frames - 1) % stride:
        allowed = f"1, {stride + 1}, {2 * stride + 1}, ..."
        raise ValueError(f"num_frames must be {stride}k + 1 ({allowed}), got {frames!r}")
    for name, size, side in (("height", height, patch[1]), ("width", width, patch[2])):
        multiple = pixels * side
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
