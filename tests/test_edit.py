"""Edits of block states and of parts of blocks, on tiny real pipelines: place, effect, order, refusals, examples."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import pytest
import torch
from test_capture import GRID, STEPS, untouched

import tiny
import tiny_families as families
from cosutils import Place, capture, edit, raw, record, swap

PARTS = ("block", "self_attention", "cross_attention", "feed_forward", "self_attention_heads", "cross_attention_heads")
MODULES = {"self_attention": "attn1", "cross_attention": "attn2", "feed_forward": "ffn"}
KEY = ("transformer", 0, 2)


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("a14b")


@pytest.mark.parametrize("kind, dtype", [("wan21", torch.bfloat16), ("a14b", torch.float32), ("ti2v5b", torch.float32)])
def test_what_an_edit_leaves_changes_no_bit(kind, dtype):
    pipe = tiny.build(kind, "unipc", dtype)
    plain = pipe(**tiny.call(steps=3, kind=kind)).frames
    with ExitStack() as stack:
        for part in PARTS:
            stack.enter_context(edit(pipe, None, None, lambda states, place: states.clone(), "both", part))
        edited = pipe(**tiny.call(steps=3, kind=kind)).frames
    assert torch.equal(edited, plain)
    untouched(pipe)


@tiny.every(part=PARTS)
def test_an_edit_acts_at_its_layer_step_and_branch_alone(pipe, part):
    seen = []

    def double(states, place):
        seen.append(place)
        return 2 * states

    with capture(pipe, 2, 0, raw, part=part) as own, capture(pipe, 2, 0, raw, "uncond", part=part) as other:
        pipe(**tiny.call())
    with capture(pipe, 2, 0, raw, part=part) as cond, edit(pipe, 2, 0, double, part=part):
        with capture(pipe, 2, 0, raw, "uncond", part=part) as uncond:
            pipe(**tiny.call())
    assert torch.equal(cond[KEY], 2 * own[KEY]) and torch.equal(uncond[KEY], other[KEY])
    assert [place[:5] for place in seen] == [(*KEY, "cond", GRID)]


def test_places_name_expert_step_branch_and_noise_level(pipe):
    places = []
    with record(pipe) as run, edit(pipe, [1, 3], None, lambda x, place: places.append(place) or x, "both"):
        pipe(**tiny.call())
    expected = [
        Place("transformer" if t >= 875 else "transformer_2", step, layer, branch, GRID, float(run.sigmas[step]))
        for step, t in enumerate(run.info["timesteps"])
        for branch in ("cond", "uncond")
        for layer in (1, 3)
    ]
    assert places == expected and len({place.expert for place in places}) == 2 and len(places) == 4 * STEPS


@pytest.mark.parametrize("name", MODULES)
def test_parts_are_the_outputs_of_their_modules(pipe, name):
    seen = []
    module = getattr(pipe.transformer.blocks[2], MODULES[name])
    hook = module.register_forward_hook(lambda m, a, out: seen.append((a[0].clone(), out.clone())))
    with capture(pipe, 2, 0, raw, inputs=True, part=name) as states:
        pipe(**tiny.call())
    hook.remove()
    assert torch.equal(states.inputs[KEY], seen[0][0]) and torch.equal(states[KEY], seen[0][1])


def test_a_block_whose_parts_add_nothing_hands_its_input_on(pipe):
    nothing = [edit(pipe, 2, 0, lambda states, place: 0 * states, part=part) for part in MODULES]
    with capture(pipe, 2, 0, raw, inputs=True) as states, nothing[0], nothing[1], nothing[2]:
        pipe(**tiny.call())
    assert torch.equal(states[KEY], states.inputs[KEY])


@tiny.every(name=["self_attention", "cross_attention"])
def test_without_a_head_is_without_its_columns_of_the_output_projection(name):
    pipe = tiny.build("wan21")

    def without_head(states, place):
        assert states.shape == (1, 6, 2, 12)
        kept = states.clone()
        kept[:, :, 1] = 0
        return kept

    with edit(pipe, 2, None, without_head, "both", f"{name}_heads"):
        ablated = pipe(**tiny.call(kind="wan21")).frames
    plain = pipe(**tiny.call(kind="wan21")).frames
    getattr(pipe.transformer.blocks[2], MODULES[name]).to_out[0].weight.data[:, 12:] = 0
    assert torch.allclose(ablated, pipe(**tiny.call(kind="wan21")).frames, atol=1e-6) and not torch.allclose(
        ablated, plain
    )


def test_of_two_edits_the_inner_acts_first_and_captures_see_both(pipe):
    def add(states, place):
        return states + 1

    def double(states, place):
        return 2 * states

    with capture(pipe, 2, 0, raw) as own:
        pipe(**tiny.call())
    with edit(pipe, 2, 0, double), edit(pipe, 2, 0, add), capture(pipe, 2, 0, raw) as inside:
        pipe(**tiny.call())
    with capture(pipe, 2, 0, raw) as outside, edit(pipe, 2, 0, add), edit(pipe, 2, 0, double):
        pipe(**tiny.call())
    assert torch.equal(inside[KEY], 2 * (own[KEY] + 1)) and torch.equal(outside[KEY], 2 * own[KEY] + 1)
    with swap(pipe, 2, own), edit(pipe, 2, 0, add), capture(pipe, 2, 0, raw) as swapped:
        pipe(**tiny.call())
    assert torch.equal(swapped[KEY], own[KEY])


@pytest.mark.slow
def test_an_edit_acts_in_inference_mode_as_elsewhere(pipe):
    def halved(states, place):
        return states / 2

    films = []
    for mode in (torch.inference_mode(), nullcontext()):
        with mode, edit(pipe, 1, 0, halved):
            films.append(pipe(**tiny.call()).frames)
    assert torch.equal(*films)


def test_edits_work_on_compiled_blocks_and_their_parts_are_refused():
    pipe = tiny.build("a14b")

    def turned(states, place):
        return states.roll(1, -1)

    with edit(pipe, 2, None, turned):
        eager = pipe(**tiny.call()).frames
    for model in (pipe.transformer, pipe.transformer_2):
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
    plain = pipe(**tiny.call()).frames
    with edit(pipe, 2, None, turned):
        compiled = pipe(**tiny.call()).frames
    assert torch.allclose(eager, compiled, atol=1e-5) and not torch.allclose(eager, plain, atol=1e-3)
    with pytest.raises(ValueError, match="compiled, which hides part 'feed_forward'"):
        with edit(pipe, 2, None, turned, part="feed_forward"):
            pass


@pytest.mark.parametrize(
    "kind, part",
    [
        ("ltx", "block"),
        pytest.param("ltx", "cross_attention", marks=pytest.mark.slow),
        pytest.param("cogvideox_ddim", "block", marks=pytest.mark.slow),
        pytest.param("cogvideox_ddim", "self_attention", marks=pytest.mark.slow),
        pytest.param("hunyuan_replace", "block", marks=pytest.mark.slow),
        ("hunyuan_replace", "self_attention"),
    ],
)
def test_other_families_are_edited_in_one_branch_also_where_both_share_a_batch(kind, part):
    pipe, key = families.build(kind), ("transformer", 0, 1)

    def both(context):
        with capture(pipe, 1, 0, raw, part=part) as cond, capture(pipe, 1, 0, raw, "uncond", part=part) as uncond:
            with context:
                frames = pipe(**families.call(kind)).frames
        return cond[key], uncond[key], frames

    cond, uncond, plain = both(nullcontext())
    edited, other, film = both(edit(pipe, 1, 0, lambda states, place: 2 * states, part=part))
    assert torch.equal(edited, 2 * cond) and torch.equal(other, uncond) and not torch.equal(plain, film)
    edited, other, _ = both(edit(pipe, 1, 0, lambda states, place: 2 * states, "both", part))
    assert torch.equal(edited, 2 * cond) and torch.equal(other, 2 * uncond)


def test_parts_that_a_family_or_a_block_lacks_are_refused():
    with pytest.raises(ValueError, match=r"no part 'feed_forward' in a CogVideoX.*allowed are \('block', 'self_att"):
        with edit(families.build("cogvideox_ddim"), 0, 0, lambda *_: None, part="feed_forward"):
            pass
    pipe = families.build("hunyuan_replace")
    single = len(pipe.transformer.transformer_blocks)
    with pytest.raises(
        ValueError, match=rf"block {single} of HunyuanVideoTransformer3DModel has no part 'feed_forward'"
    ):
        with edit(pipe, None, 0, lambda *_: None, part="feed_forward"):
            pass


def in_place(states, place):
    states += 1


@pytest.mark.parametrize(
    "fn, error, message",
    [
        (lambda x, place: x[:, 1:], ValueError, r"layer 2, step 1 must return \(\(1, 6, 24\), .*, got \(\(1, 5, 24\)"),
        (lambda x, place: x.double(), ValueError, "layer 2, step 1 must return .*float32.*, got .*float64"),
        (lambda x, place: x / 0, ValueError, "layer 2, step 1 returned values that are not finite"),
        (lambda x, place: 0, TypeError, "layer 2, step 1 must return a tensor or None, got int"),
        (in_place, ValueError, "layer 2, step 1 changed the states in place"),
        (lambda x, place: None, RuntimeError, "fn returned None at every"),
        ("double", TypeError, "fn must be a function of"),
    ],
)
def test_edits_that_do_not_fit_name_their_place(pipe, fn, error, message):
    plain = pipe(**tiny.call(steps=2)).frames
    with pytest.raises(error, match=message), edit(pipe, 2, 1, fn):
        pipe(**tiny.call(steps=2))
    untouched(pipe)
    assert torch.equal(pipe(**tiny.call(steps=2)).frames, plain)


def test_unknown_places_and_contexts_without_a_call_are_refused(pipe):
    for arguments, message in (
        ({"layers": 4}, "no block 4"),
        ({"layers": []}, "no layer chosen"),
        ({"steps": 5}, "no step 5: this run has 5 steps"),
        ({"branch": "all"}, "no branch 'all'"),
        ({"part": "mlp"}, "no part 'mlp'"),
    ):
        with pytest.raises(ValueError, match=message):
            with edit(pipe, **{"layers": 1, "steps": 0, "fn": lambda x, place: x} | arguments):
                pipe(**tiny.call())
    with (
        pytest.raises(RuntimeError, match="never acted: it was opened on a WanImageToVideoPipeline"),
        edit(pipe, 1, None, lambda x, place: x),
    ):
        pass
