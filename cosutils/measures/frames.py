"""Which frames does a frame's answer need? Self-attention blocked between them (beside Sec. 3.1).

    >>> from cosutils.measures.frames import looking
    >>> with looking(pipe, "apart"):
    ...     film = pipe(**puzzle.inputs, **cos.settings(pipe), output_type="np").frames[0]

If a model reasoned from frame to frame, the answer of the last frame would come from the frames before it. A film whose
frames cannot see each other and which is right all the same refutes that. A film that is wrong then refutes less: the
model never saw such masks in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor, nn

from ..mini.tasks import Sample, Score
from ..pipelines.check import experts
from ..pipelines.families import family_of, only_wan
from ..pipelines.loading import seeded, settings
from .chain import leading

__all__ = ["RULES", "looking", "under_rules", "visible"]

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


@contextmanager
def looking(pipe: WanImageToVideoPipeline, rule: str) -> Iterator[None]:
    """Let the tokens of a latent frame attend to those of the `visible` frames alone, in all blocks and steps."""
    only_wan(pipe, "looking")
    visible(1, rule)
    mask: Tensor | None = None

    def begin(model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal mask
        states = named["hidden_states"] if "hidden_states" in named else arguments[0]
        sizes = [n // p for n, p in zip(states.shape[2:], model.config.patch_size, strict=True)]
        tokens = sizes[1] * sizes[2]
        seen = visible(sizes[0], rule).to(states.device)
        mask = seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)

    def attend(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states, text, _, *rest = arguments
        return states, text, mask, *rest

    with ExitStack() as stack:
        family = family_of(pipe)
        for model in experts(pipe).values():
            stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for block in family.layers(model):
                attention = block.get_submodule(family.parts["self_attention"])
                stack.callback(attention.register_forward_pre_hook(attend).remove)
        yield


def under_rules(
    pipe: WanImageToVideoPipeline, sample: Sample, seed: int = 0, **call: Any
) -> dict[str, tuple[Score, bool]]:  # fmt: skip
    """Score of the final film and whether a right answer leads in it, under "all" (nothing blocked) and each rule."""
    call = sample.inputs | settings(pipe) | call | dict(output_type="np")
    found = {}
    for rule in ("all", *RULES):
        with nullcontext() if rule == "all" else looking(pipe, rule):
            film = pipe(**call, generator=seeded(seed)).frames[0]
        found[rule] = sample.score(film), leading(sample, film) in sample.films
    return found
