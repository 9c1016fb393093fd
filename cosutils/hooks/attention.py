"""Which tokens the attention of a block looks at: softmax weights of chosen queries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean
from torch import Tensor, nn

from .._check import wholes
from ..pipelines.check import experts
from ..pipelines.families import family_of, only_wan
from ._blocks import BRANCHES, Place, check_layers, check_steps, watch
from ._call import Hub
from ._shards import refuse_shards
from .capture import Capture
from .reductions import Grid, Reduction, Tokens, chooser, raw

__all__ = ["attention"]

PARTS = ("self_attention", "cross_attention")
AT_ONCE = 2**26  # weights in memory before the keys are chosen, 256 MB


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (B, N, H, d) turned by their position, as `WanAttnProcessor` turns them."""
    a, b = states.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(states)


def _weights(query: Tensor, key: Tensor, chosen: Tensor | None) -> Tensor:
    """Softmax over all keys (B, K, H, d) of queries (B, Q, H, d), of which the `chosen` stay: (B, H, Q, k) float32."""
    key = key.float().permute(0, 2, 3, 1)
    some = max(1, AT_ONCE // (key.shape[0] * key.shape[1] * key.shape[3]))
    parts = []
    for part in query.split(some, 1):
        scores = part.float().transpose(1, 2) @ key * query.shape[-1] ** -0.5
        parts.append(scores.softmax(-1) if chosen is None else scores.softmax(-1)[..., chosen])
    return torch.cat(parts, 2)


def _tokens_of(words: str, tokenizer: Any, prompts: str | list[str] | None, limit: int) -> Tensor:
    """Numbers of the text tokens that spell `words` wherever a prompt has them; ValueError unless all agree."""
    if prompts is None:
        raise ValueError(f"the call gives no prompt to find {words!r} in: give numbers of text tokens")
    found = set()
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        text = prompt_clean(prompt)
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][:limit]
        places = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)]
        found.add(tuple(i for i, (a, b) in enumerate(spans) for start, end in places if a < end and b > start))
    if len(found) > 1 or () in found:
        raise ValueError(f"{words!r} must be among the first {limit} tokens of every prompt, at the same places")
    return torch.tensor(found.pop())


@contextmanager
def attention(
    pipe: Any,
    of: Tokens,
    to: Tokens | str | None = None,
    part: str = "self_attention",
    layers: Iterable[int] | int | None = None,
    steps: Iterable[int] | int | None = None,
    branch: str = "cond",
    *,
    heads: Iterable[int] | int | None = None,
    reduce: Reduction | Callable[[Tensor, Grid], Tensor] = raw,
) -> Iterator[Capture]:
    """Capture the attention weights of chosen query tokens in a Wan model, without changing the run (`torch.equal`).

    Weights (B, H, Q, K) in float32 are the exact softmax over all keys, from the queries and keys that the model itself
    normalises and rotates; nothing is computed for other queries. Keys are (expert, step, layer).

    of: the Q queries: token numbers, a boolean mask, or a `region`. to: the K keys to keep, the same for
    "self_attention"; numbers of text tokens or words of the prompt for "cross_attention"; None is all.
    heads: which (None is all). branch: "cond" or "uncond", whose prompt is the negative one.
    reduce: any function of (weights, grid), run on the device, for example `lambda weights, grid: weights.mean(1)`.
    The attention to the image of Wan2.1 has a softmax of its own and is not part of these weights.
    ValueError or TypeError as `capture` raises it, and for tokens, heads or words that are not there.

    >>> with cos.attention(pipe, of=cos.region(frames=[2]), to="ball", part="cross_attention") as maps:
    ...     _ = pipe(**call)
    >>> heat = maps["transformer", 0, 2].mean(1)  # over heads: (B, Q, K)
    """
    only_wan(pipe, "attention")
    if part not in PARTS:
        raise ValueError(f"no weights of part {part!r}: allowed are {PARTS}")
    if isinstance(to, str) and part != "cross_attention":
        raise ValueError(f"to={to!r} names words of the prompt, which part='cross_attention' looks at, not {part!r}")
    if branch not in BRANCHES:
        raise ValueError(f"no branch {branch!r}: allowed are 'cond' and 'uncond'")
    layers, steps = check_layers(pipe, layers), check_steps(steps)
    family, weights = family_of(pipe), Capture(branch, f"{part}_weights", Reduction.of(reduce), inputs=False)
    modules = {
        (name, layer): family.layers(model)[layer].get_submodule(family.parts[part])
        for name, model in experts(pipe).items()
        for layer in layers
    }
    some_heads = None if heads is None else wholes(heads, "head")
    for (_, layer), module in modules.items():
        if not isinstance(module.processor, WanAttnProcessor):
            kind = type(module.processor).__name__
            raise ValueError(
                f"the attention of block {layer} runs {kind}, not WanAttnProcessor: its weights are unknown"
            )
        if some_heads is not None and not 0 <= some_heads[0] <= some_heads[-1] < module.heads:
            raise ValueError(f"heads must lie in 0..{module.heads - 1}, got {list(some_heads)}")
    queries = chooser(of)
    keys = to if to is None or isinstance(to, str) else chooser(to)
    kept: Tensor | None = None  # the keys of this call
    given: dict[str, Any] = {}  # of the attention that runs now: queries and keys (B, N, H * d), and their rotation

    def begin(hub: Hub, grid: Grid) -> None:
        nonlocal kept
        refuse_shards(hub.pipe, "attention")
        weights.begin(hub, grid)
        queries(grid)
        call = hub.arguments
        length = call["max_sequence_length"] if call["prompt_embeds"] is None else call["prompt_embeds"].shape[1]
        if isinstance(keys, str):
            prompts = call["prompt"] if branch == "cond" else call["negative_prompt"] or ""
            kept = _tokens_of(keys, pipe.tokenizer, prompts, length)
        elif keys is not None:
            kept = keys(grid if part == "self_attention" else (1, 1, length))

    def visit(place: Place, _: Tensor, states: Tensor) -> None:
        rows = queries(place.grid).to(states.device)
        count = modules[place.expert, place.layer].heads
        query, key = given["query"][:, rows].unflatten(2, (count, -1)), given["key"].unflatten(2, (count, -1))
        if given["rotation"] is not None:
            query = _rotated(query, *(part[:, rows] for part in given["rotation"]))
            key = _rotated(key, *given["rotation"])
        if some_heads is not None:
            query, key = query[:, :, some_heads], key[:, :, some_heads]
        weights.see(place, states, _weights(query, key, kept))

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            given[name] = output

        return hook

    def rotation(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        given["rotation"] = arguments[3]

    with watch(pipe, layers, steps, (branch,), visit, part=part, begin=begin, step_end=weights.flush):
        with ExitStack() as stack:
            for module in modules.values():
                stack.callback(module.register_forward_pre_hook(rotation).remove)
                stack.callback(module.norm_q.register_forward_hook(keep("query")).remove)
                stack.callback(module.norm_k.register_forward_hook(keep("key")).remove)
                stack.callback(module.register_forward_hook(lambda *_: given.clear()).remove)
            yield weights
    weights.settle()
