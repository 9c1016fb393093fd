"""Private: the one seam through which `record`, `inject` and the model hooks watch a pipeline call.

While a context is open, the classes of the pipeline and of its scheduler are swapped for dynamic subclasses
(isinstance, deepcopy and bit-identity hold), which report to one `Hub` shared by all contexts open on that
pipeline. The contexts are `Tap`s; they nest in any order, and the last one to close restores both classes.
Pipelines may share a scheduler; one call of a pipeline runs at a time, in the thread that opened its contexts.

Steps are absolute: step i counts from 0 at the noisiest, also in a run resumed in the middle. What differs from
one kind of pipeline to another is in `families`.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from ..pipelines.arguments import checked, is_finite
from ..pipelines.check import check_pipeline, model_name
from ..pipelines.families import Call, family_of

__all__ = ["Hub", "Tap", "tapped"]

_swapping = threading.Lock()
_Mixin: Any = object  # stands for the class that a mixin is put before


class Tap:
    """What one open context does during a pipeline call; subclasses override what they need.

    `hooks` says that the tap hooks the transformers, which a whole-model `torch.compile` would hide; such a tap
    looks at blocks, not at states: where all taps do, `step` gets None for x, v and x0. `called`: whether any call of
    the pipeline has reached the context.
    """

    hooks = False
    called = False

    def check(self, hub: Hub) -> None:
        """The call's `hub.arguments` and `hub.size` are known and nothing is computed yet; may raise."""

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
    restart: returns the step to begin at; state: x (B, C, F, H, W) to begin with there.
    """

    def __init__(self, pipe: DiffusionPipeline):
        self.pipe, self.scheduler, self.family = pipe, pipe.scheduler, family_of(pipe)
        self.thread = threading.get_ident()
        self.taps: list[Tap] = []
        self.restart: Callable[[Hub], int] | None = None
        self.state: Tensor | None = None
        self.forget()

    def __deepcopy__(self, memo: dict[Any, Any]) -> Hub:
        return self  # a pipeline that copies its scheduler keeps reporting here

    def forget(self) -> None:
        """No call is running."""
        self.arguments: Any = None  # dict[str, Any] during a call
        self.steps = self.first = self.due = 0
        self.sigmas = torch.empty(0)
        self.x0: Tensor | None = None
        self.edits: dict[int, list[str]] = {}
        self.call = Call(self.pipe, (0, 0, 0))
        self.rest: list[Tensor] = []
        self.drawn: Tensor | None = None
        self.latents: Tensor | None = None
        self.timesteps: Tensor | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of the call."""
        return self.call.size

    def check_free(self) -> None:
        """RuntimeError where this pipeline is in use already."""
        if self.thread != threading.get_ident():
            raise RuntimeError("a context such as record is open on this pipeline in another thread: use it in one")
        if self.arguments is not None:
            raise RuntimeError(
                "this pipeline is in the middle of a call: open contexts and make calls outside its callbacks"
            )

    def begin(self, arguments: dict[str, Any]) -> None:
        """A call begins, nothing is computed yet: let the taps check it."""
        self.arguments = arguments
        self.call = Call(self.pipe, self.family.size(self.pipe, arguments))
        latents, videos = arguments["latents"], self.family.batch(arguments)
        if latents is not None and (
            latents.numel() % (videos * math.prod(self.size))
            or self.family.unpack(self.call, latents).shape[2:] != self.size
        ):
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} do not fit a call of {videos} videos with {self.size} "
                "latent frames, rows and columns"
            )
        for tap in self.taps:
            tap.check(self)

    def start(self, scheduler: Any) -> None:
        """Called when the schedule is set: go to the step a resumed run begins at, then tell the taps."""
        if self.steps > 0:
            raise RuntimeError("the scheduler was set anew within a call: another call uses it at the same time")
        self.sigmas = self.family.solver.sigmas(scheduler).clone()
        self.steps = len(self.sigmas) - 1
        if self.restart is not None:
            self.first = self.due = self.restart(self)
            self.timesteps = scheduler.timesteps
            scheduler.timesteps = scheduler.timesteps[self.first :]
        for tap in self.taps:
            tap.start(self)
        if self.drawn is not None:
            self.drawn.copy_(self.first_state(self.drawn))
            self.drawn = None

    def prepared(self, latents: Tensor, rest: list[Tensor]) -> Tensor:
        """Called with what the pipeline begins its loop with; returns what it shall begin with."""
        self.rest = rest
        self.know(self.family.unpack(self.call, latents))
        if self.steps > 0:
            return self.first_state(latents)
        self.drawn = latents.clone()  # no schedule yet: `start` will write the edits into this tensor
        return self.drawn

    def know(self, x: Tensor) -> None:
        """Take the frames that the pipeline sets itself from a state of its loop."""
        self.call = replace(self.call, known=self.family.known(self.call, x, self.rest))

    def first_state(self, latents: Tensor) -> Tensor:
        """Return the first state, in the form of `prepare_latents`, after a restart and every tap's edit."""
        x = self.family.unpack(self.call, latents)
        begun = x if self.state is None else self.state.to(x)
        if begun is not x:
            self.know(begun)
        replaced = self.edited(self.scheduler, self.first, begun)
        if replaced is x:
            return latents
        if replaced is not begun and self.first > 0 and not self.family.solver.is_multistep(self.scheduler):
            replaced = replaced.to(self.family.handed_on(self.pipe))  # as it would be in a whole run
        held = self.family.to_solver(self.call, replaced)
        return self.family.pack(self.call, self.family.from_solver(self.call, held)).to(latents)

    def edited(self, scheduler: Any, step: int, x: Tensor) -> Tensor:
        """Return x_s after every tap's edit, in the dtype of `x`; an edit resets a multistep solver.

        Edits that a resumed run's x_s holds already do not act again.
        """
        replaced, held = x, tuple(self.edits.get(step, ()))
        for tap in self.taps:
            edit = tap.edit(self, step, replaced)
            if edit is None or edit[1] in held:
                continue
            if edit[0].shape != x.shape or not is_finite(edit[0]):
                what = f"of shape {tuple(edit[0].shape)}" if edit[0].shape != x.shape else "with NaN or infinity"
                raise ValueError(f"{edit[1]} gives a state {what} at step {step}, where x is {tuple(x.shape)}")
            replaced = edit[0].to(x)
            self.edits.setdefault(step, []).append(edit[1])
        if step in self.edits:
            self.family.solver.forget(scheduler)
        return replaced

    @property
    def looks_at_blocks(self) -> bool:
        """Whether every tap does, so that none needs states of the scheduler or edits them."""
        return all(tap.hooks for tap in self.taps)

    def check_step(self, step: int, v: Tensor) -> None:
        """RuntimeError for a step of somebody else, ValueError for a velocity that is not finite."""
        if step != self.due:
            raise RuntimeError(f"the scheduler took step {step} where {self.due} was due: another call uses it too")
        self.due += 1
        if not is_finite(v):
            raise ValueError(f"the model's output v holds NaN or infinity at step {step}")

    def stepped(self, step: int, x: Tensor, v: Tensor) -> None:
        """Tell the taps about a finished step from x with the velocity v, both as the solver was given them."""
        if self.looks_at_blocks:
            x = v = None
        else:
            x, v = self.family.from_solver(self.call, x).float(), self.family.velocity(self.call, v)
            self.x0 = self.family.with_given(self.call, self.family.solver.estimate(x, v, self.sigmas[step]))
            x = self.family.with_given(self.call, x)
        for tap in self.taps:
            tap.step(self, step, x, v, self.x0)

    def following(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The pipeline's `callback_on_step_end`, told absolute steps, with the latents it returns seen here."""

        def call(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            returned = callback(pipe, self.first + step, timestep, tensors)
            if not isinstance(returned, dict):
                raise TypeError(f"callback_on_step_end must return a dict, such as {{}}, not {returned!r}")
            latents = returned.get("latents", tensors.get("latents"))
            if latents is not None:
                self.latents = self.family.unpack(self.call, latents)
                self.know(self.latents)
            return returned

        return call


class _TappedScheduler(_Mixin):
    """Mixin of the swapped scheduler class: reports to that of `_cos_hubs` whose pipeline is in a call."""

    def _cos_hub(self) -> Hub | None:
        here = threading.get_ident()
        hubs: list[Hub] = self._cos_hubs
        return next((hub for hub in hubs if hub.arguments is not None and hub.thread == here), None)

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        hub = self._cos_hub()
        if hub is not None:
            hub.family.solver.begin(self, 0)  # integer timesteps may collide, it must not be searched for
            hub.start(self)

    def replay(self, step: int, v: Tensor, x: Tensor) -> None:
        """Take a recorded step again, unseen by the taps, to rebuild the solver's memory."""
        device = self.timesteps.device
        super().step(v.to(device), self.timesteps[step], x.to(device))

    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        hub = self._cos_hub()
        if hub is None:
            return super().step(model_output, *args, **kwargs)
        if hub.timesteps is not None:  # solvers count on the full list
            self.timesteps, hub.timesteps = hub.timesteps, None
        solver = hub.family.solver
        args = solver.undisturbed(self, hub.edits, model_output, args)
        result = super().step(model_output, *args, **kwargs)
        step = solver.taken(self, args)
        hub.check_step(step, model_output)
        hub.stepped(step, solver.state(self, args), model_output)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        x = hub.latents = hub.family.from_solver(hub.call, latents)
        if step + 1 == hub.steps or hub.looks_at_blocks:
            return result
        replaced = hub.edited(self, step + 1, x)
        if replaced is not x:
            latents = hub.family.to_solver(hub.call, replaced).to(latents)
        if isinstance(result, tuple):
            return (latents, *result[1:])
        result.prev_sample = latents
        return result


class _TappedPipeline(_Mixin):
    """Mixin of the swapped pipeline class: checks the inputs, edits the initial latents, closes the run."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        latents, *rest = super().prepare_latents(*args, **kwargs)
        hub = self._cos_hub
        if hub.arguments is not None:
            latents = hub.prepared(latents, rest)
        return (latents, *rest)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hub = self._cos_hub
        hub.check_free()
        for tap in hub.taps:
            tap.called = True
        if self.scheduler is not hub.scheduler:
            raise RuntimeError("pipe.scheduler was exchanged while a context is open: exchange it outside")
        bound = inspect.signature(super().__call__).bind(*args, **kwargs)
        bound.apply_defaults()
        check_pipeline(self, hooks=any(tap.hooks for tap in hub.taps))
        arguments = checked(self, hub.family, hub.family.complete(self, dict(bound.arguments)))
        bound.arguments.update(arguments)
        callback = arguments["callback_on_step_end"]
        if callback is not None:
            bound.arguments["callback_on_step_end"] = hub.following(callback)
            if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
                bound.arguments["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
        try:
            hub.begin(arguments)
            output = super().__call__(*bound.args, **bound.kwargs)
            if hub.latents is None:
                raise RuntimeError("the scheduler took no step in this call")
            for tap in hub.taps:
                tap.finish(hub, hub.family.with_given(hub.call, hub.latents))
            return output
        finally:
            if hub.timesteps is not None:
                self.scheduler.timesteps = hub.timesteps
            hub.forget()


def _signed(mixin: type, cls: type, name: str) -> Callable[..., Any]:
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

    Raises TypeError or ValueError for a pipeline this does not work on (see `check_pipeline`) and RuntimeError where
    the pipeline is in use, where its scheduler was exchanged while another context is open, and at the end of a
    block without a call of `pipe`.
    """
    check_pipeline(pipe, hooks=tap.hooks)
    with _swapping:
        hub = pipe.__dict__.get("_cos_hub") or _attached(Hub(pipe))
        hub.check_free()
        if pipe.scheduler is not hub.scheduler:
            raise RuntimeError("pipe.scheduler was exchanged while a context is open: exchange it outside")
        hub.taps.append(tap)
    try:
        yield hub
    finally:
        with _swapping:
            hub.taps.remove(tap)
            if not hub.taps:
                _detach(hub)
    if not tap.called:
        model = model_name(pipe)
        raise RuntimeError(
            f"a context never acted: it was opened on a {type(pipe).__name__}{f' of {model}' if model else ''}, which "
            "was not called inside it"
        )


def _attached(hub: Hub) -> Hub:
    pipe, scheduler = hub.pipe, hub.scheduler
    hubs = scheduler.__dict__.setdefault("_cos_hubs", [])
    if not hubs:
        scheduler.__class__ = _tapped_class(_TappedScheduler, scheduler.__class__)
    hubs.append(hub)
    pipe.__dict__["_cos_hub"] = hub
    pipe.__class__ = _tapped_class(_TappedPipeline, pipe.__class__)
    return hub


def _detach(hub: Hub) -> None:
    pipe, scheduler = hub.pipe, hub.scheduler
    scheduler._cos_hubs.remove(hub)
    if not scheduler._cos_hubs:
        del scheduler.__dict__["_cos_hubs"]
        scheduler.__class__ = scheduler.__class__.__mro__[2]
    del pipe.__dict__["_cos_hub"]
    pipe.__class__ = pipe.__class__.__mro__[2]
