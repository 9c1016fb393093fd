"""Capture on tiny real Wan pipelines: nothing changes, keys and reductions are right, all is undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, WanImageToVideoPipeline

import tiny
from cosutils.hooks.capture import capture
from cosutils.hooks.reductions import energy, projection, raw, region, tokens

STEPS, GRID = 5, (3, 1, 2)


def untouched(pipe) -> None:
    """Assert that no trace of a context is left on the pipeline."""
    assert type(pipe) is WanImageToVideoPipeline
    assert not any(key.startswith("_cos") for key in vars(pipe)) and not getattr(pipe, "_interrupt", False)
    for model in filter(None, (pipe.transformer, pipe.transformer_2)):
        assert "cache_context" not in vars(model)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("a14b")


@tiny.every(kind=tiny.KINDS, solver=tiny.SOLVERS, dtype=tiny.DTYPES)
def test_capturing_changes_nothing(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    plain = pipe(**tiny.call(kind=kind)).frames
    with capture(pipe) as maps, capture(pipe, reduce=raw, branch="uncond", inputs=True) as states:
        watched = pipe(**tiny.call(kind=kind)).frames
    assert torch.equal(plain, watched)
    assert maps.steps == states.steps == list(range(STEPS)) and maps.layers == list(range(tiny.LAYERS))
    assert maps.grid == GRID and all(value.dtype == torch.float32 for value in maps.values())
    assert all(value.dtype == dtype for value in states.values())
    untouched(pipe)


def test_keys_name_the_expert_that_ran(pipe):
    with capture(pipe, layers=1) as maps:
        pipe(**tiny.call())
    ran = {step: expert for expert, step, _ in maps}
    pipe.scheduler.set_timesteps(STEPS)
    expected = ["transformer" if t >= 875 else "transformer_2" for t in pipe.scheduler.timesteps]
    assert [ran[step] for step in range(STEPS)] == expected
    assert len(set(expected)) == 2
    assert len(maps) == STEPS


def test_states_are_the_blocks_own_outputs_and_inputs(pipe):
    seen = []
    block = pipe.transformer.blocks[2]
    hook = block.register_forward_hook(lambda m, a, out: seen.append((a[0].clone(), out.clone())))
    with capture(pipe, layers=[1, 2], steps=0, reduce=raw, inputs=True) as cond:
        with capture(pipe, layers=2, steps=0, reduce=raw, branch="uncond") as uncond:
            pipe(**tiny.call())
    hook.remove()
    key = ("transformer", 0, 2)
    assert torch.equal(cond.inputs[key], seen[0][0]) and torch.equal(cond[key], seen[0][1])
    assert torch.equal(uncond[key], seen[1][1]) and not torch.equal(cond[key], uncond[key])
    assert torch.equal(cond.inputs[key], cond["transformer", 0, 1])


def test_energy_is_reduced_from_the_raw_states(pipe):
    with capture(pipe) as maps, capture(pipe, reduce=raw) as states:
        pipe(**tiny.call())
    assert set(maps) == set(states)
    assert all(torch.equal(maps[key], energy(states[key], GRID)) for key in states)
    assert maps.stack().shape == (STEPS, tiny.LAYERS, 1, *GRID)
    assert torch.equal(maps.stack()[3, 1], maps["transformer_2", 3, 1])


def test_token_subsets_and_regions_select_in_f_major_order(pipe):
    corner = region(frames=[1, 2], columns=[1])
    assert corner(GRID).nonzero()[:, 0].tolist() == [3, 5]
    with (
        capture(pipe, layers=0, reduce=raw) as states,
        capture(pipe, layers=0, reduce=tokens([4, 0])) as some,
        capture(pipe, layers=0, reduce=tokens(corner)) as box,
    ):
        pipe(**tiny.call())
    for key, state in states.items():
        assert torch.equal(some[key], state[:, [4, 0]]) and torch.equal(box[key], state[:, [3, 5]])


@pytest.mark.parametrize(
    "reduce", [raw, lambda states, grid: states[:, 1:], tokens([1, 0]), energy], ids=["raw", "view", "tokens", "energy"]
)
def test_records_are_copies(pipe, reduce):
    """What the next block does to its input in place is not seen, nor what a reader does to a record."""
    with capture(pipe, 1, 0, reduce, inputs=True) as own:
        pipe(**tiny.call())
    with capture(pipe, 1, 0, reduce, inputs=True) as disturbed:  # hooks that are set later act later
        hooks = [
            pipe.transformer.blocks[1].register_forward_hook(lambda module, given, out: [given[0].add_(1.0), None][1]),
            pipe.transformer.blocks[2].register_forward_pre_hook(lambda module, given: [given[0].add_(1.0), None][1]),
        ]
        pipe(**tiny.call())
    for hook in hooks:
        hook.remove()
    key = ("transformer", 0, 1)
    assert torch.equal(own[key], disturbed[key]) and torch.equal(own.inputs[key], disturbed.inputs[key])


def test_bytes_are_no_mask_and_no_numbers(pipe):
    mask = torch.tensor([0, 0, 0, 1, 0, 1, 0, 0], dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"a boolean mask or a region, got torch.uint8 \(8,\)"):
        with capture(pipe, 0, 0, tokens(mask)):
            pipe(**tiny.call())


def test_numpy_numbers_choose_layers_steps_and_tokens(pipe):
    with capture(pipe, np.arange(2), np.int64(1), tokens(np.array([4, 0]))) as some:
        pipe(**tiny.call())
    with capture(pipe, [0, 1], 1, tokens([4, 0])) as same:
        pipe(**tiny.call())
    assert some.layers == [0, 1] and torch.equal(some.stack(), same.stack())


def test_projection_is_seeded_linear_and_keeps_norms_on_average():
    states = torch.randn(1, 300, 64, generator=torch.Generator().manual_seed(0))
    reduced = projection(32, seed=1)(states, (1, 1, 300))
    assert reduced.shape == (1, 300, 32)
    assert torch.equal(reduced, projection(32, seed=1)(states, (1, 1, 300)))
    assert not torch.equal(reduced, projection(32, seed=2)(states, (1, 1, 300)))
    assert (reduced.square().sum() / states.square().sum()).item() == pytest.approx(1, abs=0.2)


def test_batches_equal_single_runs(pipe):
    words = ["the red ball moves", "the blue ball moves left"]
    with capture(pipe) as both:
        pipe(**tiny.call(words, seed=[0, 1]))
    for row, word in enumerate(words):
        with capture(pipe) as single:
            pipe(**tiny.call(word, seed=row))
        assert torch.allclose(both.stack()[:, :, row], single.stack()[:, :, 0], atol=1e-5)


def test_energies_of_inputs_and_outputs_are_those_of_the_raw_states(pipe):
    with capture(pipe, inputs=True) as maps, capture(pipe, reduce=raw, inputs=True) as states:
        pipe(**tiny.call())
    for key in states:
        assert torch.equal(maps[key], energy(states[key], GRID))
        assert torch.equal(maps.inputs[key], energy(states.inputs[key], GRID))


def test_blocks_called_outside_a_run_are_not_captured(pipe):
    block, given = pipe.transformer.blocks[0], []
    handle = block.register_forward_pre_hook(lambda module, arguments: given.append(arguments))
    with capture(pipe) as maps:
        pipe(**tiny.call())
        before = len(maps)
        with torch.no_grad():
            block(*given[0])
    handle.remove()
    assert len(maps) == before


def test_finished_steps_can_be_read_during_the_run(pipe):
    lengths = []

    def look(pipe, step, t, tensors):
        lengths.append((len(maps), maps.steps[-1], tuple(maps["transformer", 0, 0].shape)))
        return tensors

    with capture(pipe, layers=[0, 3]) as maps:
        pipe(**tiny.call(callback_on_step_end=look))
    assert lengths == [(2 * (step + 1), step, (1, *GRID)) for step in range(STEPS)]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_records():
    pipe = tiny.build("a14b")
    with capture(pipe, reduce=raw) as eager:
        plain = pipe(**tiny.call()).frames
    for model in (pipe.transformer, pipe.transformer_2):
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    unwatched = pipe(**tiny.call()).frames
    with capture(pipe, reduce=raw) as compiled:
        watched = pipe(**tiny.call()).frames
    assert torch.equal(unwatched, watched) and torch.allclose(plain, watched, atol=1e-5)
    assert set(eager) == set(compiled)
    assert all(torch.allclose(eager[key], compiled[key], atol=1e-5) for key in eager)


def test_compiling_inside_a_context_is_refused():
    pipe = tiny.build("wan21")
    with pytest.raises(ValueError, match="compile them before opening it"), capture(pipe):
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        pipe(**tiny.call(kind="wan21"))


def test_a_failed_call_leaves_nothing_for_the_next(pipe):
    def fail_once(module, arguments):
        hook.remove()
        raise ArithmeticError("no")

    with capture(pipe) as maps:
        hook = pipe.transformer.blocks[2].register_forward_pre_hook(fail_once)
        with pytest.raises(ArithmeticError):
            pipe(**tiny.call())
        pipe(**tiny.call())
    with capture(pipe) as clean:
        pipe(**tiny.call())
    assert torch.equal(maps.stack(), clean.stack())


def test_all_is_undone_after_an_exception_in_the_run(pipe):
    def fail(states, grid):
        raise ArithmeticError("no")

    plain = pipe(**tiny.call()).frames
    with pytest.raises(ArithmeticError), capture(pipe, reduce=fail):
        pipe(**tiny.call())
    untouched(pipe)
    assert torch.equal(pipe(**tiny.call()).frames, plain)


def test_contexts_may_close_in_any_order(pipe):
    first, second = capture(pipe, layers=0), capture(pipe, layers=1)
    a = first.__enter__()
    b = second.__enter__()
    pipe(**tiny.call())
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert a.layers == [0] and b.layers == [1] and len(a) == len(b) == STEPS
    untouched(pipe)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"layers": [0, 4]}, ValueError, r"no block 4: WanTransformer3DModel has 4 blocks \(0\.\.3\)"),
        ({"layers": -1}, ValueError, r"no block -1"),
        ({"layers": []}, ValueError, "layers must not be empty"),
        ({"layers": [1.0]}, TypeError, "a layer must be an integer, got 1.0"),
        ({"steps": [-1]}, ValueError, "no step -1: steps count from 0"),
        ({"steps": [2, 5]}, ValueError, r"no step 5: this run has 5 steps \(0\.\.4\)"),
        ({"branch": "positive"}, ValueError, "no branch 'positive': allowed are 'cond' and 'uncond'"),
        ({"reduce": "energy"}, TypeError, "reduce must be a function"),
        ({"reduce": tokens([6])}, ValueError, r"token indices must lie in 0\.\.5"),
        ({"reduce": tokens([])}, ValueError, "no token is chosen"),
        ({"reduce": tokens(region(frames=[]))}, ValueError, "no token is chosen"),
        ({"reduce": tokens([0.5])}, TypeError, "tokens must be numbers"),
        ({"reduce": lambda states, grid: None}, TypeError, "must return a tensor, got NoneType"),
        ({"part": "mlp"}, ValueError, "no part 'mlp' in a WanImageToVideoPipeline: allowed are .*'feed_forward'"),
        ({"reduce": tokens(region(frames=[3]))}, ValueError, r"no frame 3: the token grid \(3, 1, 2\) has 0"),
    ],
)
def test_unknown_places_are_refused(pipe, arguments, error, message):
    with pytest.raises(error, match=message), capture(pipe, **arguments):
        pipe(**tiny.call())
    untouched(pipe)


def test_a_missing_branch_is_refused(pipe):
    with pytest.raises(ValueError, match="guidance_scale <= 1 a run has only the branch 'cond'"):
        with capture(pipe, branch="uncond"):
            pipe(**tiny.call(guidance_scale=1.0))


def test_a_second_run_is_refused(pipe):
    with pytest.raises(ValueError, match="open a new capture for every run"), capture(pipe):
        pipe(**tiny.call())
        pipe(**tiny.call())
    untouched(pipe)


def test_a_context_without_a_run_is_refused(pipe):
    with pytest.raises(RuntimeError, match="a context never acted"), capture(pipe):
        pass


def test_an_enabled_feature_cache_is_refused():
    pipe = tiny.build("wan21")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="feature cache"), capture(pipe):
        pass
    pipe.transformer.disable_cache()
    with pytest.raises(ValueError, match="feature cache"), capture(pipe):
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        pipe(**tiny.call(kind="wan21"))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_whole_model_compile_is_refused(in_place):
    pipe = tiny.build("wan21")
    if in_place:
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(ValueError, match="compiled as a whole"), capture(pipe):
        pipe(**tiny.call(kind="wan21"))


@pytest.mark.parametrize(
    "context", [lambda pipe: capture(pipe, reduce=tokens([6])), lambda pipe: capture(pipe, branch="uncond")]
)
def test_what_does_not_fit_a_call_is_refused_before_the_prompt_is_encoded(context):
    pipe, encoded = tiny.build("wan21"), []
    pipe.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    with pytest.raises(ValueError), context(pipe):
        pipe(**tiny.call(guidance_scale=1.0, kind="wan21"))
    assert not encoded
