"""Swap on tiny real Wan pipelines: no-ops, the layer invariance, token masks, rows of one batch, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_capture import GRID, untouched

import tiny
from cosutils.hooks.capture import capture
from cosutils.hooks.reductions import energy, raw, region
from cosutils.hooks.swap import swap

WORDS = ["the red ball moves", "the blue maze goal"]
KEY = ("transformer", 0, 2)


def states_of(pipe, branch="cond", **call):
    """Raw states of a run, inputs included, and its final latents."""
    with capture(pipe, reduce=raw, inputs=True, branch=branch) as states:
        latents = pipe(**tiny.call(**call)).frames
    return states, latents


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("a14b")


@tiny.every(kind=tiny.KINDS, dtype=tiny.DTYPES, mode=("state", "delta"))
def test_a_swap_with_oneself_is_a_no_op(kind, dtype, mode):
    pipe = tiny.build(kind, "unipc", dtype)
    states, plain = states_of(pipe, kind=kind)
    with swap(pipe, layer=2, donor=states, mode=mode):
        assert torch.equal(pipe(**tiny.call(kind=kind)).frames, plain)
    both = pipe(**tiny.call(WORDS, seed=[0, 1], kind=kind)).frames
    with swap(pipe, layer=1, donor={0: 0, 1: 1}, mode=mode, branch="both"):
        assert torch.equal(pipe(**tiny.call(WORDS, seed=[0, 1], kind=kind)).frames, both)
    untouched(pipe)


@pytest.mark.slow
@tiny.every(change={"seed": {"seed": 1}, "first frame": {"image": tiny.image(3)}})
def test_whole_states_of_the_same_prompt_give_the_same_answer_at_every_layer(change):
    pipe = tiny.build("a14b")
    donor, _ = states_of(pipe, **change)
    outputs = []
    for layer in range(tiny.LAYERS):
        with swap(pipe, layer, donor, steps=0):
            outputs.append(pipe(**tiny.call()).frames)
    assert all(torch.allclose(output, outputs[0], atol=1e-5) for output in outputs)
    assert not torch.allclose(outputs[0], pipe(**tiny.call()).frames, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mode, call", [("delta", {"seed": 1}), ("state", {"prompt": WORDS[1]})])
def test_updates_and_other_prompts_depend_on_the_layer(pipe, mode, call):
    donor, _ = states_of(pipe, **call)
    outputs = []
    for layer in (0, 3):
        with swap(pipe, layer, donor, mode=mode, steps=0):
            outputs.append(pipe(**tiny.call()).frames)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def test_state_and_delta_write_what_they_say(pipe):
    donor, _ = states_of(pipe, prompt=WORDS[1], seed=1)
    own, _ = states_of(pipe)
    expected = {
        "state": donor[KEY],
        "delta": own.inputs[KEY] + (donor[KEY] - donor.inputs[KEY]),
    }
    for mode, state in expected.items():
        with capture(pipe, layers=2, steps=0, reduce=raw) as after, swap(pipe, 2, donor, mode=mode, steps=0):
            pipe(**tiny.call())
        assert torch.allclose(after[KEY], state, atol=1e-5)
    assert not torch.allclose(expected["state"], expected["delta"], atol=1e-3)


@tiny.every(form=["flat", "grid", "region", "numbers"])
def test_a_token_mask_keeps_the_rest(pipe, form):
    donor, _ = states_of(pipe, seed=1)
    own, _ = states_of(pipe)
    box = region(frames=[1], columns=[0])
    mask = {"flat": box(GRID), "grid": box(GRID).reshape(GRID), "region": box, "numbers": [2]}[form]
    with swap(pipe, 2, donor, tokens=mask, steps=0), capture(pipe, layers=2, steps=0, reduce=raw) as after:
        pipe(**tiny.call())
    inside = box(GRID)
    assert inside.sum() == 1
    assert torch.equal(after[KEY][:, inside], donor[KEY][:, inside])
    assert torch.equal(after[KEY][:, ~inside], own[KEY][:, ~inside])


def test_rows_of_one_batch_do_what_a_captured_donor_does(pipe):
    donor, _ = states_of(pipe, prompt=WORDS[0], seed=0)
    with swap(pipe, 2, donor, steps=[0, 1]):
        captured = pipe(**tiny.call(WORDS[1], seed=1)).frames
    with swap(pipe, 2, {1: 0}, steps=[0, 1]):
        rows = pipe(**tiny.call(WORDS, seed=[0, 1])).frames
    assert torch.allclose(rows[1:], captured, atol=1e-5)
    assert torch.allclose(rows[:1], pipe(**tiny.call(WORDS[0], seed=0)).frames, atol=1e-5)


def test_one_donor_serves_a_batch_and_the_other_branch_is_left_alone(pipe):
    donor, _ = states_of(pipe, branch="uncond", seed=5)
    call = tiny.call(WORDS, seed=[0, 1])
    with capture(pipe, 3, 0, raw) as before:
        pipe(**call)
    with capture(pipe, 2, 0, raw, "uncond") as swapped, capture(pipe, 3, 0, raw) as after:
        with swap(pipe, 2, donor, steps=0, branch="uncond"):
            pipe(**tiny.call(WORDS, seed=[0, 1]))
    assert torch.equal(swapped[KEY], donor[KEY].expand(2, -1, -1))
    assert torch.equal(before["transformer", 0, 3], after["transformer", 0, 3])


@pytest.mark.slow
def test_swap_works_on_compiled_blocks():
    pipe = tiny.build("a14b")
    donor, _ = states_of(pipe, seed=1)
    with swap(pipe, 2, donor, mode="delta"):
        eager = pipe(**tiny.call()).frames
    for model in (pipe.transformer, pipe.transformer_2):
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
    plain = pipe(**tiny.call()).frames
    with swap(pipe, 2, donor, mode="delta"):
        compiled = pipe(**tiny.call()).frames
    assert torch.allclose(eager, compiled, atol=1e-5) and not torch.allclose(eager, plain, atol=1e-3)


def test_several_layers_are_swapped_at_once_and_numpy_counts(pipe):
    donor, _ = states_of(pipe, prompt=WORDS[1], seed=1)
    with swap(pipe, np.array([1, 2]), donor, tokens=np.array([0, 3]), steps=np.int64(0)):
        both = pipe(**tiny.call()).frames
    with swap(pipe, 1, donor, tokens=[0, 3], steps=0), swap(pipe, 2, donor, tokens=[0, 3], steps=0):
        assert torch.equal(both, pipe(**tiny.call()).frames)
    with swap(pipe, 2, {np.int64(0): np.int64(0)}):
        pipe(**tiny.call())


@tiny.every(part=["self_attention", "cross_attention", "cross_attention_heads", "feed_forward"])
def test_a_part_of_a_block_is_swapped_alone(pipe, part):
    with capture(pipe, 2, 0, raw, part=part) as donor:
        pipe(**tiny.call(WORDS[1], seed=1))
    with capture(pipe, 2, 0, raw, part=part) as after, capture(pipe, 1, 0, raw) as before:
        with swap(pipe, 2, donor, part=part):
            swapped = pipe(**tiny.call()).frames
    own, plain = states_of(pipe)
    assert torch.equal(after[KEY], donor[KEY]) and torch.equal(before[KEY[0], 0, 1], own[KEY[0], 0, 1])
    assert not torch.equal(swapped, plain)


def test_a_donor_of_another_model_or_of_other_weights_is_refused(pipe):
    donor, _ = states_of(pipe)
    same = tiny.build("a14b")
    with swap(same, 2, donor):
        assert torch.equal(same(**tiny.call()).frames, pipe(**tiny.call()).frames)
    same.transformer_2.blocks[3].ffn.net[2].weight.data += 0.1
    for other, message in (
        (same, r"its transformer_2 is WanTransformer3DModel \w{12} float32, here WanTransformer3DModel \w{12} float32"),
        (tiny.build("a14b", seed=1), "its transformer is"),
        (tiny.build("a14b", dtype=torch.bfloat16), "float32, here WanTransformer3DModel .* bfloat16"),
        (tiny.build("wan21"), "captured on another model"),
    ):
        with pytest.raises(ValueError, match=message), swap(other, 2, donor):
            raise AssertionError("opened")


@pytest.mark.parametrize("store", ["_outputs", "_inputs"])
def test_a_donor_that_is_not_finite_is_refused_before_the_run(pipe, store):
    donor, _ = states_of(pipe)
    getattr(donor, store)[KEY][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="states at layer 2, step 0 are not finite"):
        with swap(pipe, 2, donor, mode="delta"):
            raise AssertionError("opened")


def test_all_is_undone_after_an_exception(pipe):
    plain = pipe(**tiny.call()).frames
    with pytest.raises(ValueError, match="no row 4: the batch has 1 rows"), swap(pipe, 2, {4: 0}):
        pipe(**tiny.call())
    untouched(pipe)
    assert torch.equal(pipe(**tiny.call()).frames, plain)


def test_what_cannot_be_swapped_is_refused(pipe):
    states, _ = states_of(pipe)
    with capture(pipe) as maps:
        pipe(**tiny.call())
    with capture(pipe, layers=2, steps=[0, 1], reduce=raw) as few:
        pipe(**tiny.call())
    with capture(pipe, reduce=raw) as wide:
        pipe(**tiny.call(height=32, image=tiny.image(height=32)))
    assert maps.reduce is energy
    refusals = [
        ({"layer": 9, "donor": states}, ValueError, r"no block 9: WanTransformer3DModel has 4"),
        ({"layer": 1.0, "donor": states}, TypeError, "layers must be integers"),
        ({"layer": None, "donor": states}, ValueError, "name the layer"),
        ({"layer": 2, "donor": states, "mode": "add"}, ValueError, "unknown mode 'add': allowed are"),
        ({"layer": 2, "donor": states, "branch": "uncond"}, ValueError, "the donor holds branch 'cond'"),
        ({"layer": 2, "donor": states, "branch": "both"}, ValueError, "holds one branch"),
        (
            {"layer": 2, "donor": states, "steps": 7},
            ValueError,
            r"the donor holds no step 7; it has steps \[0, 1, 2, 3, 4\]",
        ),
        ({"layer": 2, "donor": few, "steps": [1, 2]}, ValueError, r"no step 2; it has steps \[0, 1\]"),
        ({"layer": 3, "donor": few}, ValueError, r"the donor holds no layer 3; it has layers \[2\]"),
        ({"layer": 2, "donor": few, "mode": "delta"}, ValueError, "needs the donor's block inputs"),
        ({"layer": 2, "donor": maps}, ValueError, "captured with reduce=raw"),
        ({"layer": 2, "donor": wide}, ValueError, "do not fit the recipient's"),
        ({"layer": 2, "donor": {}}, ValueError, "donor rows are empty"),
        ({"layer": 2, "donor": {0: -1}}, ValueError, "a donor row must be 0 or more"),
        ({"layer": 2, "donor": {0: 0.5}}, TypeError, "a donor row must be an integer"),
        ({"layer": 2, "donor": states, "part": "ffn"}, ValueError, "the donor holds part 'block', not"),
        ({"layer": 2, "donor": states, "part": "ffn", "mode": "delta"}, ValueError, "use mode='state'"),
        ({"layer": 2, "donor": 0}, TypeError, "donor must be a Capture or"),
        ({"layer": 2, "donor": states, "tokens": torch.ones(5) > 0}, ValueError, "a mask of tokens must fit"),
        ({"layer": 2, "donor": states, "tokens": torch.ones(6)}, TypeError, "must be numbers, a boolean mask or"),
        ({"layer": 2, "donor": states, "tokens": torch.zeros(6) > 0}, ValueError, "no token is chosen"),
        ({"layer": 2, "donor": {0: 0}, "tokens": region(frames=[])}, ValueError, "no token is chosen"),
        ({"layer": 2, "donor": states, "tokens": [6]}, ValueError, r"must lie in 0\.\.5"),
    ]
    for arguments, error, message in refusals:
        with pytest.raises(error, match=message), swap(pipe, **arguments):
            pipe(**tiny.call())
        untouched(pipe)
