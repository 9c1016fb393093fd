"""Identities that must hold bit by bit on any device, on pipelines that run in a second.

>>> names = [name for name, held in checks(shipped("cos-mini-two", torch.device("cuda"), torch.bfloat16)) if not held]
>>> names  # those that do not hold
[]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor

import cosutils as cos

__all__ = ["Subject", "attempt", "checks", "distance", "shipped"]

STEPS, AT = 6, 2  # of a run; the step that is looked at or edited
IDENTITIES: list[Callable[[Subject, Tensor], bool]] = []


@dataclass(frozen=True)
class Subject:
    """A pipeline, and the arguments of a call of `STEPS` steps with these seeds, whose output is latents."""

    pipe: WanImageToVideoPipeline
    arguments: Callable[..., dict[str, Any]]

    def run(self, *seeds: int) -> Tensor:
        """Final latents (B, C, F, H, W) of a run."""
        return self.pipe(**self.arguments(*seeds or (0,))).frames


def shipped(model: str, device: torch.device, dtype: torch.dtype, offload: str | None = None) -> Subject:
    """An embedded model with one of its puzzles."""
    pipe = cos.load(model, dtype=dtype, device=device, offload=offload)
    puzzle = cos.tasks.maze.sample(seed=0)

    def arguments(*seeds: int) -> dict[str, Any]:
        given = cos.settings(pipe) | puzzle.inputs | {"num_inference_steps": STEPS, "output_type": "latent"}
        return given | {"prompt": [puzzle.prompt] * len(seeds), "generator": cos.seeded(list(seeds))}

    return Subject(pipe, arguments)


def distance(first: Tensor, second: Tensor) -> float:
    """Norm of the difference of two tensors relative to that of the second, both taken to the CPU in float32."""
    first, second = first.cpu().float(), second.cpu().float()
    return float((first - second).norm() / second.norm())


def identity(check: Callable[[Subject, Tensor], bool]) -> Callable[[Subject, Tensor], bool]:
    """Add `check` to those that are tried."""
    IDENTITIES.append(check)
    return check


def checks(subject: Subject) -> Iterator[tuple[str, bool | str]]:
    """Yield the name of each identity and whether it holds, or the error that kept it from being tried."""
    plain = subject.run()
    for check in IDENTITIES:
        yield check.__name__, attempt(check, subject, plain)


def attempt(check: Callable[..., bool], *arguments: Any) -> bool | str:
    """What `check` finds, or its error as text: one that breaks must not keep the others from being tried."""
    try:
        return check(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@identity
def repeat(subject: Subject, plain: Tensor) -> bool:
    run = subject.run
    return torch.equal(plain, run())


@identity
def observing(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.record(pipe), cos.capture(pipe), cos.capture(pipe, reduce=cos.projection(4)):
        return torch.equal(plain, run())


@identity
def recorded(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.record(pipe) as held:
        run()
    formula = [held.x[s] - held.sigmas[s] * held.v[s].float() for s in range(STEPS)]
    estimates = all(torch.allclose(held.x0[s], formula[s], rtol=1e-5, atol=1e-5) for s in range(STEPS))
    last = held.latents.equal(plain.cpu().float())
    return estimates and last and bool(held.decode([0, -1]).isfinite().all())


@identity
def resumed(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.record(pipe) as held:
        run()
    with tempfile.TemporaryDirectory() as folder:
        held = cos.Run.load(held.save(Path(folder)), pipe)
    arguments = subject.arguments(0)
    return all(torch.equal(plain, cos.resume(pipe, held, s, **arguments).frames) for s in range(STEPS))


@identity
def unchanged_by_injecting_itself(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.inject(pipe, lambda x, step, sigma, x0: x, steps=0):
        return torch.equal(plain, run())


@identity
def noise_begins_at_its_step(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    edit = cos.noise_at_step(AT)
    with cos.record(pipe) as before:
        run()
    with cos.inject(pipe, edit), cos.record(pipe) as after:
        noised = run()
    same = all(torch.equal(before.x[s], after.x[s]) for s in range(AT))
    shared = [output.frames for _, output in cos.inject_each(pipe, before, [edit], **subject.arguments(0))]
    return same and not torch.equal(before.x[AT], after.x[AT]) and torch.equal(noised, shared[0])


@identity
def energy_is_the_norm_of_the_state(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.capture(pipe, steps=AT) as energy, cos.capture(pipe, steps=AT, reduce=cos.raw) as raw:
        run()
    norms = {key: torch.linalg.vector_norm(raw[key].float(), dim=-1).view_as(energy[key]) for key in energy}
    return all(torch.allclose(energy[key], norms[key], rtol=1e-4) for key in energy)


@identity
def own_state_swapped_in(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.capture(pipe, layers=0, steps=AT, reduce=cos.raw, inputs=True) as own:
        run()
    found = []
    for mode in ("state", "delta"):
        with cos.swap(pipe, 0, own, mode):
            found.append(run())
    return torch.equal(plain, found[0]) and distance(found[1], plain) < 0.02  # a delta is added again, and rounded


@identity
def whole_state_swapped_is_the_same_at_all_layers(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.capture(pipe, steps=0, reduce=cos.raw) as other:
        run(1)
    found = []
    for layer in (other.layers[0], other.layers[-1]):
        with cos.swap(pipe, layer, other):
            found.append(run())
    return torch.equal(*found) and not torch.equal(found[0], plain)


@identity
def ensemble_of_one_seed_is_a_plain_run(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.ensemble(pipe, range(2), range(STEPS)):
        return torch.equal(plain, run())


@identity
def ensemble_merges(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    alone = run(0, 1)
    with cos.ensemble(pipe, range(2), range(STEPS)):
        return not torch.equal(alone, run(0, 1))


@identity
def merge_then_single(subject: Subject, plain: Tensor) -> bool:
    pipe = subject.pipe
    first = cos.merge_then_single(pipe, layers=0, steps=0, **subject.arguments(0, 1))[0].frames
    again = cos.merge_then_single(pipe, layers=0, steps=0, **subject.arguments(0, 1))[0].frames
    return torch.equal(first, again) and len(first) == 1


@identity
def unchanged_by_editing_nothing(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.edit(pipe, None, None, lambda states, place: states.clone(), branch="both"):
        return torch.equal(plain, run())


@identity
def edit_acts(subject: Subject, plain: Tensor) -> bool:
    pipe, run = subject.pipe, subject.run
    with cos.edit(pipe, 0, AT, lambda states, place: torch.zeros_like(states), part="self_attention"):
        return not torch.equal(plain, run())
