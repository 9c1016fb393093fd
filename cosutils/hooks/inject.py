"""Disturb a running chain: the paper's two perturbations (Sec. 3.2, Fig. 3) and the controls they lack.

    with inject(pipe, noise_at_step(12)):
        pipe(**arguments)

An edit at step i replaces x_i before the model sees it (i = 0: the initial latents). Under a multistep solver
every edit also clears the solver's memory: otherwise UniPC's corrector rebuilds x_i from the step before and
undoes most of the noise. `record` sees the edited x_i and lists the edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

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
            if value is None and name != "seed":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")

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


class _Injector(Tap):
    def __init__(self, edits: tuple[Edit, ...]):
        self.edits = edits

    def start(self, hub: Hub) -> None:
        frames, given = hub.size[0], hub.family.given(hub.pipe)
        for edit in self.edits:
            if edit.step is not None and not hub.first <= edit.step < hub.steps:
                steps = f"{hub.first}..{hub.steps - 1}"
                raise ValueError(f"no step {edit.step} in this call: it has steps {steps}")
            if edit.frame is not None and not given <= edit.frame < frames:
                why = " (0 is the given image, put back before every forward)" if given else ""
                raise ValueError(f"cannot edit latent frame {edit.frame}: choose {given}..{frames - 1}{why}")

    def edit(self, hub: Hub, step: int, x: Tensor) -> tuple[Tensor, str] | None:
        now = [edit for edit in self.edits if edit.step in (None, step)]
        for edit in now:
            x = _apply(edit, hub, step, x)
        return (x, "; ".join(map(str, now))) if now else None


class _Start(_Injector):
    """Puts the noise in as a full run does, whose Euler solver hands on states in the model's own dtype."""

    def edit(self, hub: Hub, step: int, x: Tensor) -> tuple[Tensor, str] | None:
        replaced = super().edit(hub, step, x)
        if replaced is None or step == 0 or hub.family.solver.is_multistep(hub.scheduler):
            return replaced
        model = hub.pipe.transformer or hub.pipe.transformer_2
        return replaced[0].to(model.dtype), replaced[1]


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


@contextmanager
def inject(pipe: DiffusionPipeline, *edits: Edit) -> Iterator[tuple[Edit, ...]]:
    """Apply `edits`, in this order, to every call of `pipe` inside the block.

    Raises TypeError for something else than edits; a step or frame that the call does not have raises
    ValueError when the call has set its schedule, before the first forward.
    """
    if not edits:
        raise TypeError("inject needs at least one edit: noise_at_step, noise_at_frame, noise_at or renoise")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise TypeError(f"inject takes edits such as noise_at_step(12), not {edit!r}")
    with tapped(pipe, _Injector(edits)):
        yield edits


def from_noise(pipe: DiffusionPipeline, edit: Edit, **arguments: Any) -> Any:
    """The call under `edit`, a `noise_at_step`, computed from that step on.

    Noise in the place of all of x_s leaves nothing of the steps before, so the output equals the full call's under
    `inject`. Raises ValueError for an edit that keeps a frame or the estimate.
    """
    only_wan(pipe, "from_noise")
    if edit.step is None or edit.frame is not None or edit.keep_estimate:
        raise ValueError(f"only noise_at_step replaces all that the steps before computed, not {edit!r}")

    def begin(hub: Hub) -> int:
        if edit.step >= hub.steps:
            return 0  # the injector says which steps there are
        hub.family.solver.begin(hub.scheduler, edit.step)
        return edit.step

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
        with inject(pipe, edit):
            output = resume(pipe, run, edit.step or 0, **arguments)
        yield edit, output
