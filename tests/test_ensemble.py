"""Ensembles on tiny real Wan pipelines: identities, groups, the continuation, its cost, composition."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from test_capture import untouched

import tiny
from cosutils.hooks.capture import capture
from cosutils.hooks.ensemble import ensemble, merge, merge_then_single
from cosutils.hooks.inject import inject, noise_at_step
from cosutils.hooks.record import record, resume
from cosutils.hooks.reductions import raw
from cosutils.hooks.swap import swap

P, Q = "the red ball moves", "the blue maze goal"


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("a14b")


def rows_run(pipe, **call) -> tuple[object, int]:
    """Result of `merge_then_single` and the number of videos its forwards saw, summed over both experts."""
    seen = []

    def count(module, arguments, named) -> None:
        seen.append(len(named["hidden_states"]))

    models = (pipe.transformer, pipe.transformer_2)
    hooks = [model.register_forward_pre_hook(count, with_kwargs=True) for model in models]
    try:
        return merge_then_single(pipe, **call), sum(seen)
    finally:
        for hook in hooks:
            hook.remove()


@tiny.every(kind=tiny.KINDS, dtype=tiny.DTYPES, mode=("token", "pooled"))
def test_one_seed_is_a_plain_run(kind, dtype, mode):
    pipe = tiny.build(kind, "unipc", dtype)
    plain = pipe(**tiny.call(kind=kind)).frames
    with ensemble(pipe, layers=range(tiny.LAYERS), steps=range(5), mode=mode):
        assert torch.equal(pipe(**tiny.call(kind=kind)).frames, plain)
    pair = pipe(**tiny.call([P, Q], seed=[0, 1], kind=kind)).frames
    with ensemble(pipe, layers=[1], steps=[0], mode=mode, size=1):
        assert torch.equal(pipe(**tiny.call([P, Q], seed=[0, 1], kind=kind)).frames, pair)
    untouched(pipe)


@pytest.mark.slow
@tiny.every(kind=tiny.KINDS, mode=["token", "pooled"])
def test_identical_noise_changes_nothing(kind, mode):
    pipe = tiny.build(kind)
    noise = torch.randn(1, tiny.CHANNELS, 3, 2, 4, generator=torch.Generator().manual_seed(4)).expand(3, -1, -1, -1, -1)
    call = tiny.call([P] * 3, seed=[0, 1, 2], latents=noise, kind=kind)
    plain = pipe(**call).frames
    with ensemble(pipe, layers=[1, 2], steps=[0, 1], mode=mode):
        merged = pipe(**call).frames
    assert torch.allclose(plain, merged, atol=1e-5)


def test_merging_does_what_the_formula_says(pipe):
    states = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    token, pooled = merge(states, 3), merge(states, 3, "pooled")
    assert torch.allclose(token[1], states[:3].mean(0)) and torch.allclose(token[5], states[3:].mean(0))
    assert torch.allclose(pooled[4].mean(0), states[3:].mean((0, 1)), atol=1e-6)
    centred = states - states.mean(1, keepdim=True)
    assert torch.allclose(pooled - pooled.mean(1, keepdim=True), centred, atol=1e-6)
    call = tiny.call([P] * 3, seed=[0, 1, 2])
    with capture(pipe, 2, 0, raw) as merged, ensemble(pipe, layers=2, steps=0):
        pipe(**call)
    with capture(pipe, 2, 0, raw) as own:
        pipe(**tiny.call([P] * 3, seed=[0, 1, 2]))
    key = ("transformer", 0, 2)
    assert torch.allclose(merged[key], own[key].mean(0, keepdim=True).expand(3, -1, -1), atol=1e-6)


@pytest.mark.parametrize("branch, merged", [("both", (True, True)), ("cond", (True, False))])
def test_branches_are_merged_as_asked(pipe, branch, merged):
    with capture(pipe, 1, 0, raw) as cond, capture(pipe, 1, 0, raw, "uncond") as uncond:
        with ensemble(pipe, layers=1, steps=0, branch=branch):
            pipe(**tiny.call([P] * 2, seed=[0, 1]))
    key = ("transformer", 0, 1)
    assert tuple(torch.equal(c[key][0], c[key][1]) for c in (cond, uncond)) == merged


def test_groups_of_one_batch_equal_separate_ensembles(pipe):
    with ensemble(pipe, layers=[1, 2], steps=[0], size=2):
        both = pipe(**tiny.call([P, P, Q, Q], seed=[0, 1, 2, 3])).frames
    for part, prompt, seed in ((both[:2], P, [0, 1]), (both[2:], Q, [2, 3])):
        with ensemble(pipe, layers=[1, 2], steps=[0]):
            assert torch.allclose(pipe(**tiny.call([prompt] * 2, seed=seed)).frames, part, atol=1e-5)


@tiny.every(kind=tiny.KINDS, solver=tiny.SOLVERS, dtype=tiny.DTYPES)
def test_a_single_continuation_is_that_row_of_the_ensemble(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    with record(pipe) as run, ensemble(pipe, layers=[1, 2], steps=[0, 1]):
        pipe(**tiny.call([P] * 3, seed=[0, 1, 2], kind=kind))
    output, single = merge_then_single(
        pipe, layers=[1, 2], steps=[0, 1], keep=2, **tiny.call([P] * 3, seed=[0, 1, 2], kind=kind)
    )
    close = 1e-5 if dtype is torch.float32 else 5e-2  # rows of a batch round differently in bf16
    assert torch.allclose(output.frames.float(), run.latents[2:], atol=close)
    assert torch.allclose(single.x0.stack(), run.x0.stack()[:, 2:], atol=close)
    assert torch.allclose(single.x0[-1], single.latents, atol=close) and sorted(single.x) == list(range(5))
    assert single.info["ensemble"]["size"] == 3 and single.info["ensemble"]["seeds"] == [0, 1, 2]
    again = resume(pipe, single, 3, **tiny.call([P], seed=[2], kind=kind)).frames
    assert torch.allclose(again.float(), output.frames.float(), atol=close)
    untouched(pipe)


@pytest.mark.slow
def test_the_cost_beyond_the_merged_steps_is_one_run(pipe):
    (_, run), seen = rows_run(pipe, layers=1, steps=[0], **tiny.call([P] * 3, seed=[0, 1, 2]))
    branches, steps, merged = 2, 5, 1
    assert seen == branches * (3 * merged + 1 * (steps - merged))
    (output, run), seen = rows_run(
        pipe, layers=1, steps=[0, 1], size=2, keep=1, **tiny.call([P, P, Q, Q], seed=[0, 1, 2, 3])
    )
    assert seen == branches * (4 * 2 + 2 * 3)
    assert len(output.frames) == 2 and run.info["prompt"] == [P, Q]


def test_contexts_compose_in_any_order(pipe):
    with capture(pipe, 2, 0, raw) as donor:
        pipe(**tiny.call(Q, seed=7))
    results = []
    for turn in (1, -1):
        with ExitStack() as stack:
            contexts = [
                ("run", record(pipe)),
                ("noise", inject(pipe, noise_at_step(2))),
                ("maps", capture(pipe, 2, 0, raw)),
                ("ensemble", ensemble(pipe, layers=1, steps=0)),
                ("swap", swap(pipe, 2, donor, steps=0)),
            ][::turn]
            opened = {name: stack.enter_context(context) for name, context in contexts}
            pipe(**tiny.call([P] * 2, seed=[0, 1]))
        assert list(opened["run"].edits) == [2]
        results.append((opened["run"].latents, opened["maps"]["transformer", 0, 2]))
        untouched(pipe)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][1], donor["transformer", 0, 2].expand(2, -1, -1))


def test_all_is_undone_after_an_exception(pipe):
    def fail(pipe, step, t, tensors):
        raise ArithmeticError("no")

    plain = pipe(**tiny.call()).frames
    with pytest.raises(ArithmeticError):
        merge_then_single(pipe, layers=1, steps=0, **tiny.call([P] * 2, seed=[0, 1], callback_on_step_end=fail))
    untouched(pipe)
    assert torch.equal(pipe(**tiny.call()).frames, plain)


@pytest.mark.parametrize(
    "arguments, call, message",
    [
        ({"layers": 4}, {}, r"no block 4: WanTransformer3DModel has 4 blocks \(0\.\.3\)"),
        ({"steps": [5]}, {}, r"no step 5: this run has 5 steps \(0\.\.4\)"),
        ({"steps": None}, {}, "name the layers and steps"),
        ({"mode": "mean"}, {}, "unknown mode 'mean': allowed are"),
        ({"branch": "all"}, {}, "no branch 'all'"),
        ({"layers": []}, {}, "no layer chosen"),
        ({"size": 0}, {}, "size must be 1 or more, got 0"),
        ({"size": 2}, {}, "a batch of 3 videos does not divide into groups of 2"),
        ({}, {"prompt": [P, P, Q]}, "row 2 has another prompt than its group of 3 seeds"),
        ({}, {"negative_prompt": [P, Q, P]}, "row 1 has another negative_prompt than its group of 3 seeds"),
        ({}, {"num_videos_per_prompt": 2, "generator": None}, "not num_videos_per_prompt"),
        ({}, {"generator": tiny.call(seed=[0, 1, 0])["generator"]}, "seed 0 is given twice in a group of 3"),
    ],
)
def test_bad_ensembles_are_refused(pipe, arguments, call, message):
    arguments = {"layers": 1, "steps": 0} | arguments
    with pytest.raises(ValueError, match=message), ensemble(pipe, **arguments):
        pipe(**tiny.call([P] * 3, seed=[0, 1, 2]) | call)
    untouched(pipe)


def test_embeddings_of_two_prompts_are_not_merged(pipe):
    two, _ = pipe.encode_prompt([P, Q], do_classifier_free_guidance=False, max_sequence_length=8)
    call = tiny.call([P] * 2, seed=[0, 1]) | {"prompt": None, "prompt_embeds": two}
    with pytest.raises(ValueError, match="row 1 has another prompt_embeds than its group of 2 seeds"):
        with ensemble(pipe, layers=1, steps=0):
            pipe(**call)


def test_one_seed_may_serve_two_groups_and_numpy_counts(pipe):
    with ensemble(pipe, layers=np.array([1]), steps=np.int64(0), size=np.int64(2)):
        both = pipe(**tiny.call([P, P, Q, Q], seed=[0, 1, 0, 1])).frames
    with ensemble(pipe, layers=1, steps=0):
        assert torch.allclose(pipe(**tiny.call([P, P], seed=[0, 1])).frames, both[:2], atol=1e-5)


def test_bad_continuations_are_refused(pipe):
    call = tiny.call([P] * 2, seed=[0, 1])
    with pytest.raises(ValueError, match=r"no seed 2 to keep: a group has 2 seeds \(0\.\.1\)"):
        merge_then_single(pipe, layers=1, steps=0, keep=2, **call)
    with pytest.raises(ValueError, match="step 4 is the last of this run"):
        merge_then_single(pipe, layers=1, steps=[4], **call)
    for missing in ("layers", "steps"):
        with pytest.raises(ValueError, match="needs chosen layers and steps"):
            merge_then_single(pipe, **dict(layers=1, steps=0) | {missing: None}, **call)
    with pytest.raises(ValueError, match="the list of prompts is empty"):
        merge_then_single(pipe, layers=1, steps=0, **call | {"prompt": []})
    with pytest.raises(TypeError, match="keep must be an integer, got 0.5"):
        merge_then_single(pipe, layers=1, steps=0, keep=0.5, **call)
    untouched(pipe)
