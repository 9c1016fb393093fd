"""Take away what latent frames tell each other: attention within a frame alone, or in one direction of time.

>>> with between_frames(pipe, "forward", steps=range(2)):  # no frame sees a later one
...     film = pipe(**call).frames

Chain-of-Steps says that all frames are worked out at once (paper, Sec. 3.1). If so, an answer that is worked out must
suffer where they cannot exchange it; if it does not, the frames had no need of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..hooks._blocks import check_steps
from ..hooks._call import Hub, Tap, tapped
from ..hooks._shards import refuse_shards
from ..pipelines.check import experts
from ..pipelines.families import only_wan

__all__ = ["DIRECTIONS", "between_frames"]

DIRECTIONS = ("apart", "forward", "backward")


class _Clock(Tap):
    """Knows the step a call is at, and which tokens may see which: `mask` (N, N), True where they may."""

    hooks = True

    def __init__(self, direction: str, steps: frozenset[int] | None) -> None:
        self.direction, self.steps = direction, steps
        self.at, self.reached = 0, False

    def start(self, hub: Hub) -> None:
        refuse_shards(hub.pipe, "between_frames")
        for step in sorted(self.steps or ()):
            if not 0 <= step < hub.steps:
                raise ValueError(f"no step {step} in this call: it has steps 0..{hub.steps - 1}")
        frames, rows, columns = (n // p for n, p in zip(hub.size, hub.family.patch(hub.pipe), strict=True))
        frame = torch.arange(frames).repeat_interleave(rows * columns)  # of each token
        query, key = frame[:, None], frame[None]
        self.mask = {"apart": query == key, "forward": query >= key, "backward": query <= key}[self.direction]
        self.at = hub.first

    def step(self, hub: Hub, step: int, x: Tensor | None, v: Tensor | None, x0: Tensor | None) -> None:
        self.at = step + 1

    def mask_for(self, states: Tensor) -> Tensor | None:
        """None at steps that stay as they are."""
        if self.steps is not None and self.at not in self.steps:
            return None
        self.reached = True
        self.mask = self.mask.to(states.device)
        return self.mask


@contextmanager
def between_frames(pipe: DiffusionPipeline, direction: str, steps: Iterable[int] | int | None = None) -> Iterator[None]:
    """Narrow self-attention in all blocks and both branches of the calls inside, at `steps` (None is all).

    direction: "apart", tokens see those of their own latent frame alone; "forward", also those of earlier frames, so
    that nothing a later frame holds reaches an earlier one; "backward", of later frames. Everything but attention,
    the prompt and the condition's channels with the picture, is left. A mask of N x N tokens keeps the fastest kernels
    from being used. ValueError for another direction or a step that the call has not; TypeError for other pipelines
    than Wan's; RuntimeError at the end where no chosen step was reached.
    """
    only_wan(pipe, "between_frames")
    if direction not in DIRECTIONS:
        raise ValueError(f"no direction {direction!r}: allowed are {', '.join(map(repr, DIRECTIONS))}")
    clock = _Clock(direction, check_steps(steps))

    def narrow(attention: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states, given, mask, *rest = arguments  # as WanTransformerBlock passes them
        return (states, given, clock.mask_for(states) if mask is None else mask, *rest), named

    with ExitStack() as stack:
        stack.enter_context(tapped(pipe, clock))
        for model in experts(pipe).values():
            for block in model.blocks:
                stack.callback(block.attn1.register_forward_pre_hook(narrow, with_kwargs=True).remove)
        yield
    if not clock.reached:
        raise RuntimeError("between_frames changed nothing: no chosen step was reached")
