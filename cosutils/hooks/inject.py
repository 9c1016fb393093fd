"""Disturb a running chain: the paper's two perturbations (Sec. 3.2, Fig. 3), the controls they lack, and your own.

>>> with inject(pipe, noise_at_step(2)):
...     output = pipe(**call)
>>> def steer(x, step, sigma, x0):
...     return x + 0.1 * (1 - sigma) * torch.ones_like(x)
>>> with inject(pipe, steer, steps=range(2)):
...     output = pipe(**call)

An edit at step i replaces x_i before the model sees it (i = 0: the initial latents). Under a multistep solver
every edit also clears the solver's memory: otherwise UniPC's corrector rebuilds x_i from the step before and
undoes most of the noise. `record` sees the edited x_i and lists the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .._check import whole, wholes
from ..pipelines.arguments import function_name
from ..pipelines.check import remembering
from ..pipelines.families import only_wan
from ._call import Hub, Tap, tapped
from .record import Run, resume

__all__ = [
    "Edit",
    "from_noise",
    "inject",
    "inject_each",
    "noise_at",
    "noise_at_frame",
    "noise_at_step",
    "renoise",
]


@dataclass(frozen=True)
class Edit:
    """One disturbance: at `step` (None: every step), of latent frame `frame` (None: all), noise from `seed`.

    keep_estimate False: x = noise, drawn from N(0, I). True: x = sigma noise + (1 - sigma) x0hat.
    All videos of a batch get the same noise, the one each would get alone; steps get different noise.
    Raises TypeError for a step, frame or seed that is not an integer, ValueError for a negative one.
    """

    step: int | None
    frame: int | None
    seed: int = 0
    keep_estimate: bool = False

    def __post_init__(self) -> None:
        for name in ("step", "frame", "seed"):
            value = getattr(self, name)
            if value is not None or name == "seed":
                object.__setattr__(self, name, whole(value, name, least=0))

    def __str__(self) -> str:
        what = "renoise" if self.keep_estimate else "noise"
        return what + ("" if self.frame is None else f" at frame {self.frame}") + f", seed {self.seed}"


def noise_at_step(step: int, seed: int = 0) -> Edit:
    """Noise at Step (Sec. 3.2): replace x_s of all frames by N(0, I) at one step."""
    return Edit(step, None, seed)


def noise_at_frame(frame: int, seed: int = 0) -> Edit:
    """Noise at Frame (Sec. 3.2): replace one latent frame by fresh N(0, I) at every step."""
    return Edit(None, frame, seed)


def noise_at(step: int, frame: int, seed: int = 0) -> Edit:
    """Control: replace one latent frame by N(0, I) at one step."""
    return Edit(step, frame, seed)


def renoise(step: int, seed: int = 0) -> Edit:
    """Control: keep the estimate, renew the noise. x_s = sigma_s n + (1 - sigma_s) x0hat of the step before.

    The noise level stays the one the schedule expects. At step 0, where there is no estimate and sigma is 1,
    this is noise alone.
    """
    return Edit(step, None, seed, keep_estimate=True)


Function = Callable[[Tensor, int, float, Tensor | None], Tensor | None]


class _Injector(Tap):
    """edits: of x_s, each at its own steps; functions act at `steps`, None is all. idle: functions that edited nothing
    yet, by name. missed: steps that were asked for and that no call came to yet.
    """

    def __init__(self, edits: tuple[Edit | Function, ...], steps: tuple[int, ...] | None = None):
        self.edits, self.steps = edits, steps
        self.names = [str(edit) if isinstance(edit, Edit) else function_name(edit) for edit in edits]
        self.idle = {name for name, edit in zip(self.names, edits, strict=True) if not isinstance(edit, Edit)}
        self.missed = {edit.step for edit in edits if isinstance(edit, Edit) and edit.step is not None} | {
            *(steps or ())
        }

    def start(self, hub: Hub) -> None:
        frames, given = hub.size[0], hub.family.given(hub.pipe)
        known = [edit for edit in self.edits if isinstance(edit, Edit)]
        for step in (*(self.steps or ()), *(edit.step for edit in known if edit.step is not None)):
            if not hub.first <= step < hub.steps:
                raise ValueError(f"no step {step} in this call: it has steps {hub.first}..{hub.steps - 1}")
        for edit in known:
            if edit.frame is not None and not given <= edit.frame < frames:
                why = " (0 is the given image, put back before every forward)" if given else ""
                raise ValueError(f"cannot edit latent frame {edit.frame}: choose {given}..{frames - 1}{why}")

    def edit(self, hub: Hub, step: int, x: Tensor) -> tuple[Tensor, str] | None:
        self.missed.discard(step)
        done: list[str] = []
        for edit, name in zip(self.edits, self.names, strict=True):
            if isinstance(edit, Edit):
                new = _apply(edit, hub, step, x) if edit.step in (None, step) else None
            else:
                new = None if self.steps is not None and step not in self.steps else _ask(edit, name, hub, step, x)
            if new is not None:
                x, done = new, [*done, name]
        self.idle.difference_update(done)
        return (x, "; ".join(done)) if done else None


class _Start(_Injector):
    """Of a call that begins at its edit."""

    def check(self, hub: Hub) -> None:
        hub.family.solver.check_resumable(hub.scheduler, hub.arguments)


def _apply(edit: Edit, hub: Hub, step: int, x: Tensor) -> Tensor:
    """Return x (B, C, F, H, W) after `edit`."""
    state = np.random.SeedSequence([edit.seed, step]).generate_state(1)  # unlike any initial noise
    generator = torch.Generator().manual_seed(int(state[0]))
    new = torch.randn(1, *x.shape[1:], generator=generator).to(x.device).expand(x.shape)
    if edit.keep_estimate and hub.x0 is not None:
        sigma = hub.sigmas[step]
        new = sigma.to(new) * new + hub.family.solver.signal(sigma).to(new) * hub.x0
    if edit.frame is None:
        return new
    x = x.clone()
    x[:, :, edit.frame] = new[:, :, edit.frame].to(x.dtype)
    return x


def _ask(function: Function, name: str, hub: Hub, step: int, x: Tensor) -> Tensor | None:
    """What a function makes of x (B, C, F, H, W); it gets copies."""
    x0 = None if hub.x0 is None else hub.x0.clone()
    new = function(x.to(torch.float32, copy=True), step, float(hub.sigmas[step]), x0)
    if new is not None and (not isinstance(new, Tensor) or new.shape != x.shape):
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise TypeError(f"{name} must return a tensor {tuple(x.shape)} or None, not {got}")
    return new


@contextmanager
def inject(
    pipe: DiffusionPipeline, *edits: Edit | Function, steps: Iterable[int] | int | None = None
) -> Iterator[tuple[Edit | Function, ...]]:
    """Apply `edits`, in this order, to every call of `pipe` inside the block.

    An edit is one of `noise_at_step`, `noise_at_frame`, `noise_at` and `renoise`, or a function of one's own that is
    called as `function(x, step, sigma, x0)` before the model sees x_s, at `steps` (None is all): x (B, C, F, H, W)
    float32, a copy; the absolute step; the noise level sigma in [0, 1]; the estimate x0hat of the step before, float32,
    a copy too, None where there is none. It returns the new x_s of the same shape, or None to leave it. Frames that the
    pipeline sets itself, such as frame 0 of TI2V-5B, keep what it sets.

    Raises TypeError for something else than edits and ValueError for a state that is not finite; a step or frame that
    the call does not have raises ValueError when the call has set its schedule, before the first forward. RuntimeError
    at the end where `pipe` was not called, a function edited nothing, or no call came to a step that was asked for.
    """
    if not edits:
        raise TypeError(
            "inject needs at least one edit: noise_at_step, noise_at_frame, noise_at, renoise or a function"
        )
    for edit in edits:
        if not isinstance(edit, Edit) and (isinstance(edit, type) or not callable(edit)):
            raise TypeError(f"inject takes edits such as noise_at_step(12) or functions, not {edit!r}")
    if steps is not None and all(isinstance(edit, Edit) for edit in edits):
        raise TypeError("steps belongs to functions: an edit such as noise_at_step(12) has its own")
    injector = _Injector(edits, None if steps is None else wholes(steps, "step"))
    with tapped(pipe, injector):
        yield edits
    if injector.idle:
        raise RuntimeError(f"inject edited nothing: {', '.join(sorted(injector.idle))} returned None at every step")
    if injector.missed:
        raise RuntimeError(f"inject did not act at steps {sorted(injector.missed)}: the call ended before them")


def from_noise(pipe: DiffusionPipeline, edit: Edit, **arguments: Any) -> Any:
    """The call under `edit`, a `noise_at_step`, computed from that step on.

    Noise in the place of all of x_s leaves nothing of the steps before, so the output equals the full call's under
    `inject`. Raises ValueError for an edit that keeps a frame or the estimate, for a solver that draws noise and for a
    model that sees its last estimate (`cosutils.mini.memory`): there the steps before leave something.
    """
    only_wan(pipe, "from_noise")
    if remembering(pipe):
        raise ValueError("the model sees its last estimate, so that noise at a step does not replace all: use inject")
    if edit.step is None or edit.frame is not None or edit.keep_estimate:
        raise ValueError(f"only noise_at_step replaces all that the steps before computed, not {edit!r}")

    first: int = edit.step

    def begin(hub: Hub) -> int:
        if first >= hub.steps:
            return 0  # the injector says which steps there are
        hub.family.solver.begin(hub.scheduler, first)
        return first

    with tapped(pipe, _Start((edit,))) as hub:
        hub.restart = begin
        try:
            return pipe(**arguments)
        finally:
            hub.restart = None


def inject_each(
    pipe: DiffusionPipeline, run: Run, edits: Iterable[Edit], **arguments: Any
) -> Iterator[tuple[Edit, Any]]:
    """Yield (edit, output) for every edit of the recorded `run`, computing only the steps from the edit on.

    `arguments` are those of the recorded call. The outputs equal those of full calls under `inject`.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise TypeError(f"inject_each takes edits such as noise_at_step(12), not {edit!r}")
        with inject(pipe, edit):
            output = resume(pipe, run, edit.step or 0, **arguments)
        yield edit, output
