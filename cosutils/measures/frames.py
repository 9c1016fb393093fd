"""Which frames does a frame's answer need? Self-attention blocked between latent frames (beside Sec. 3.1).

>>> with between_frames(pipe, "earlier", steps=range(2)):  # no frame sees a later one
...     film = pipe(**call).frames

If a model reasoned from frame to frame, the answer of the last frame would come from the frames before it. A film whose
frames cannot see each other and which is right all the same refutes that. A film that is wrong then refutes less: the
model never saw such masks in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline
from torch import Tensor, nn

from ..hooks._blocks import check_part, check_steps
from ..hooks._call import Hub, Tap, tapped
from ..hooks._shards import refuse_shards
from ..mini.tasks import Sample, Score
from ..pipelines.check import experts
from ..pipelines.families import only_wan
from ..pipelines.loading import seeded, settings
from .chain import leading

__all__ = ["RULES", "between_frames", "under_rules", "visible"]

RULES = ("earlier", "later", "apart")


def visible(frames: int, rule: str) -> Tensor:
    """May latent frame i look at frame j? (frames, frames) bool. All see themselves and frame 0, the given picture.

    rule: "earlier" frames are seen too, "later" ones are, or none ("apart"). Frame 0 sees itself alone, or it would
    hand on what it saw. ValueError for another rule.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}: allowed are {', '.join(map(repr, RULES))}")
    place = torch.arange(frames)
    seen = place[:, None] == place
    if rule != "apart":
        seen |= place[:, None] > place if rule == "earlier" else place[:, None] < place
    seen[:, 0], seen[0] = True, place == 0
    return seen


class _Clock(Tap):
    """Knows the step a call is at, and which tokens may see which: `mask` (N, N), True where they may."""

    hooks = True

    def __init__(self, rule: str, steps: frozenset[int] | None) -> None:
        self.rule, self.steps = rule, steps
        self.at, self.reached = 0, set[int]()

    def start(self, hub: Hub) -> None:
        refuse_shards(hub.pipe, "between_frames")
        for step in sorted(self.steps or ()):
            if not 0 <= step < hub.steps:
                raise ValueError(f"no step {step} in this call: it has steps 0..{hub.steps - 1}")
        frames, rows, columns = (n // p for n, p in zip(hub.size, hub.family.patch(hub.pipe), strict=True))
        tokens = rows * columns
        self.mask = visible(frames, self.rule).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        self.at = hub.first

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor | None, x0: Tensor | None) -> None:
        self.at = step + 1

    def mask_for(self, states: Tensor) -> Tensor | None:
        """None at steps that stay as they are."""
        if self.steps is not None and self.at not in self.steps:
            return None
        self.reached.add(self.at)
        self.mask = self.mask.to(states.device)
        return self.mask


@contextmanager
def between_frames(pipe: DiffusionPipeline, rule: str, steps: Iterable[int] | int | None = None) -> Iterator[None]:
    """Narrow self-attention in all blocks and both branches of the calls inside, at `steps` (None is all).

    rule: which other frames a latent frame sees, see `visible`: "earlier" ones, "later" ones or none ("apart"), always
    beside itself and the given frame. Everything but attention, the prompt and the condition's channels with the
    picture, is left. A mask of N x N tokens keeps the fastest kernels from being used. ValueError for another rule, a
    step that the call has not, and compiled blocks; TypeError for other pipelines than Wan's; RuntimeError at the end
    for chosen steps that no call reached.
    """
    only_wan(pipe, "between_frames")
    visible(1, rule)
    check_part(pipe, "self_attention", ())
    clock = _Clock(rule, check_steps(steps))

    def narrow(attention: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states, given, mask, *rest = arguments  # as WanTransformerBlock passes them
        return (states, given, clock.mask_for(states) if mask is None else mask, *rest), named

    with ExitStack() as stack:
        stack.enter_context(tapped(pipe, clock))
        for model in experts(pipe).values():
            for block in model.blocks:
                stack.callback(block.attn1.register_forward_pre_hook(narrow, with_kwargs=True).remove)
        yield
    missed = sorted((clock.steps or set()) - clock.reached)
    if missed or not clock.reached:
        raise RuntimeError(f"between_frames did not act: no call reached {f'steps {missed}' if missed else 'a step'}")


def under_rules(
    pipe: WanImageToVideoPipeline, sample: Sample, seed: int = 0, **call: Any
) -> dict[str, tuple[Score, bool]]:
    """Score of the final film and whether a right answer leads in it, under "all" (nothing blocked) and each rule."""
    call = sample.inputs | settings(pipe) | call | dict(output_type="np")
    found = {}
    for rule in ("all", *RULES):
        with nullcontext() if rule == "all" else between_frames(pipe, rule):
            film = pipe(**call, generator=seeded(seed)).frames[0]
        found[rule] = sample.score(film), leading(sample, film) in sample.films
    return found
