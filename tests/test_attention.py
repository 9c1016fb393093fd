"""Attention weights on tiny real Wan pipelines: they make the model's own output, choices are parts of the whole."""

from __future__ import annotations

import pytest
import torch
from test_capture import GRID, untouched

import tiny
from cosutils import attention, capture, raw, region
from cosutils.hooks.attention import _weights

ALL = range(6)
KEY = ("transformer", 0, 2)
NEGATIVE = "blue goal"


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("a14b")


def made_of(module, weights, values):
    """What an attention module gives out where its heads weigh `values` (B, N, D) by `weights` (B, H, Q, K)."""
    heads = module.to_v(values).unflatten(2, (module.heads, -1)).float()
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, heads).flatten(2)
    return module.to_out[0](mixed.to(values.dtype))


@tiny.every(kind=tiny.KINDS, dtype=tiny.DTYPES)
def test_the_values_weighed_by_the_weights_are_what_the_attention_gives_out(kind, dtype):
    """The model's own attention is fused and knows no weights; Wan2.1 adds that to the image to its cross-attention."""
    pipe, text = tiny.build(kind, dtype=dtype), []
    plain = pipe(**tiny.call(steps=2, kind=kind)).frames
    look = pipe.transformer.blocks[2].attn2.register_forward_pre_hook(lambda module, given: text.append(given[1]))
    with (
        attention(pipe, of=ALL) as own,
        attention(pipe, of=ALL, part="cross_attention") as cross,
        capture(pipe, 2, 0, raw, inputs=True, part="self_attention") as self_states,
        capture(pipe, 2, 0, raw, part="cross_attention") as cross_states,
    ):
        watched = pipe(**tiny.call(steps=2, kind=kind)).frames
    look.remove()
    assert torch.equal(plain, watched)
    close = {"atol": 1e-5} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    block = pipe.transformer.blocks[2]
    with torch.no_grad():
        assert torch.allclose(made_of(block.attn1, own[KEY], self_states.inputs[KEY]), self_states[KEY], **close)
        if kind != "wan21":
            assert torch.allclose(made_of(block.attn2, cross[KEY], text[0]), cross_states[KEY], **close)
    for weights, keys in ((own, 6), (cross, tiny.TOKENS[kind])):
        assert weights.layers == list(range(tiny.LAYERS)) and weights.steps == [0, 1]
        assert weights[KEY].shape == (1, 2, 6, keys) and weights[KEY].dtype == torch.float32
        assert torch.allclose(weights[KEY].sum(-1), torch.ones(()), atol=1e-5) and weights[KEY].std() > 0
    untouched(pipe)
    for attn in (block.attn1, block.attn2):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in (attn, attn.norm_q, attn.norm_k))


def test_chosen_queries_keys_heads_and_branches_are_parts_of_the_whole(pipe):
    box = region(frames=[1])
    with (
        attention(pipe, of=ALL) as every,
        attention(pipe, of=box, to=[5, 0], layers=2, steps=0, heads=1) as some,
        attention(pipe, of=box(GRID), layers=2, steps=0, reduce=lambda weights, grid: weights.mean(1)) as mean,
        attention(pipe, of=ALL, branch="uncond", layers=2, steps=0) as uncond,
    ):
        pipe(**tiny.call())
    assert torch.allclose(some[KEY], every[KEY][:, 1:, [2, 3]][..., [5, 0]], atol=1e-6) and list(some) == [KEY]
    assert torch.allclose(mean[KEY], every[KEY][:, :, [2, 3]].mean(1), atol=1e-6)
    assert not torch.allclose(uncond[KEY], every[KEY])


def test_weights_do_not_depend_on_how_many_queries_are_taken_at_once(monkeypatch):
    query, key = torch.randn(2, 2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    whole = _weights(query, key, torch.tensor([4, 1]))
    assert whole.shape == (2, 3, 5, 2)
    monkeypatch.setattr("cosutils.hooks.attention.AT_ONCE", 60)
    assert torch.allclose(_weights(query, key, torch.tensor([4, 1])), whole, atol=1e-7)


def test_words_of_the_prompt_are_found_where_the_tokenizer_puts_them(pipe):
    call = tiny.call(["the red ball moves to the red maze", "a red goal up left the red robot"], seed=[0, 1])
    with (
        attention(pipe, of=[0], part="cross_attention", layers=2, steps=0) as every,
        attention(pipe, of=[0], to="Red", part="cross_attention", layers=2, steps=0) as red,
        attention(pipe, of=[0], to="red", part="cross_attention", layers=2, steps=0, branch="uncond") as negative,
        attention(pipe, of=[0], part="cross_attention", layers=2, steps=0, branch="uncond") as every_negative,
    ):
        pipe(**call, negative_prompt="blue red")
    assert torch.allclose(red[KEY], every[KEY][..., [1, 6]], atol=1e-6)
    assert torch.allclose(negative[KEY], every_negative[KEY][..., [1]], atol=1e-6)
    with attention(pipe, of=[0], to="ball moves", part="cross_attention", layers=2, steps=0) as phrase:
        pipe(**tiny.call("the red ball moves"))
    assert phrase[KEY].shape[-1] == 2


@pytest.mark.parametrize(
    "arguments, call, error, message",
    [
        ({"of": []}, {}, ValueError, "no token is chosen"),
        ({"of": [6]}, {}, ValueError, r"must lie in 0\.\.5"),
        ({"to": [6]}, {}, ValueError, r"must lie in 0\.\.5"),
        ({"to": "red"}, {}, ValueError, "names words of the prompt, which part='cross_attention' looks at"),
        ({"to": [16], "part": "cross_attention"}, {}, ValueError, r"must lie in 0\.\.15"),
        ({"to": "blue", "part": "cross_attention"}, {}, ValueError, "'blue' must be among the first 16 tokens"),
        ({"to": "re", "part": "cross_attention"}, {}, ValueError, "'re' must be among"),
        (
            {"to": "moves", "part": "cross_attention"},
            {"max_sequence_length": 2},
            ValueError,
            "among the first 2 tokens",
        ),
        ({"heads": 2}, {}, ValueError, r"heads must lie in 0\.\.1, got \[2\]"),
        ({"part": "feed_forward"}, {}, ValueError, "no weights of part 'feed_forward'"),
        ({"branch": "both"}, {}, ValueError, "no branch 'both'"),
        ({"layers": 4}, {}, ValueError, "no block 4"),
        ({"reduce": 1}, {}, TypeError, "reduce must be a function"),
    ],
)
def test_what_is_not_there_is_refused(pipe, arguments, call, error, message):
    with pytest.raises(error, match=message), attention(pipe, **{"of": [0]} | arguments):
        pipe(**tiny.call(**call))
    untouched(pipe)


def test_an_attention_of_another_processor_is_refused():
    pipe = tiny.build("wan21")
    pipe.transformer.blocks[1].attn1.processor = lambda *arguments: arguments[1]
    with pytest.raises(ValueError, match="block 1 runs function, not WanAttnProcessor"), attention(pipe, of=[0]):
        pass
