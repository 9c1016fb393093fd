"""Injected noise arrives, stays under every solver, and is refused where it makes no sense."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import tiny
from cosutils.hooks.inject import (
    Edit,
    from_noise,
    inject,
    inject_each,
    noise_at,
    noise_at_frame,
    noise_at_step,
    renoise,
)
from cosutils.hooks.record import record, resume
from cosutils.pipelines.arguments import function_name


def run_with(pipe, *edits, **changes):
    with record(pipe) as run, inject(pipe, *edits):
        pipe(**tiny.call(**changes))
    return run


def plain(pipe, **changes):
    with record(pipe) as run:
        pipe(**tiny.call(**changes))
    return run


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@tiny.every(step=[0, 3], solver=tiny.SOLVERS)
def test_noise_at_step_is_what_the_model_sees(solver, step):
    pipe = tiny.build("a14b", solver)
    clean, noisy = plain(pipe), run_with(pipe, noise_at_step(step, seed=4))
    x = noisy.x[step]
    assert abs(x.std().item() - 1) < 0.25 and relative(x, clean.x[step]) > 0.5
    for earlier in range(step):
        assert torch.equal(noisy.x[earlier], clean.x[earlier])
    assert noisy.edits == {step: ["noise, seed 4"]}


@tiny.every(kind=["a14b", "ti2v5b"], solver=tiny.SOLVERS, dtype=tiny.DTYPES)
def test_a_run_from_the_noise_on_equals_the_full_one(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    for step in (0, 1, 3):
        edit = noise_at_step(step, seed=4)
        full = run_with(pipe, edit)
        with record(pipe) as late:
            output = from_noise(pipe, edit, **tiny.call())
        assert sorted(late.x) == list(range(step, 5)) and late.edits == full.edits
        assert all(torch.equal(late.x0[at], full.x0[at]) for at in late.x0)
        assert torch.equal(late.latents, full.latents) and torch.equal(output.frames.float(), late.latents)


@pytest.mark.parametrize("edit", [renoise(1), noise_at(1, 1), noise_at_frame(1)], ids=str)
def test_only_noise_at_a_step_makes_the_steps_before_it_needless(edit):
    with pytest.raises(ValueError, match="only noise_at_step replaces all"):
        from_noise(tiny.build("a14b"), edit, **tiny.call())


def test_a_run_cannot_begin_beyond_its_end():
    with pytest.raises(ValueError, match="no step 5 in this call: it has steps 0..4"):
        from_noise(tiny.build("a14b"), noise_at_step(5), **tiny.call())


def test_unipc_does_not_undo_the_noise():
    """Euler keeps the whole disturbance; UniPC must too, though its corrector would rebuild x from the
    past.
    """
    change = {}
    for solver in tiny.SOLVERS:
        pipe = tiny.build("a14b", solver)
        clean, noisy = plain(pipe, steps=10), run_with(pipe, noise_at_step(4), steps=10)
        change[solver] = relative(noisy.latents, clean.latents)
    assert change["euler"] > 0.5
    assert change["unipc"] > 0.8 * change["euler"]


@pytest.mark.slow
def test_the_corrector_would_undo_noise_written_by_a_callback():
    """Why the solver's memory is reset: the same edit without a reset all but disappears under UniPC."""
    pipe = tiny.build("a14b", "unipc")
    clean = plain(pipe, steps=10).latents
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def overwrite(pipe, step, timestep, tensors):
        return {"latents": noise} if step == 3 else {}

    naive = pipe(**tiny.call(steps=10), callback_on_step_end=overwrite).frames
    assert relative(naive, clean) < 0.3


@tiny.every(solver=tiny.SOLVERS)
def test_noise_at_frame_touches_one_frame_at_every_step(solver):
    pipe = tiny.build("wan21", solver)
    clean, noisy = plain(pipe, kind="wan21"), run_with(pipe, noise_at_frame(1), kind="wan21")
    assert torch.equal(noisy.x[0][:, :, [0, 2]], clean.x[0][:, :, [0, 2]])
    frames = [noisy.x[step][:, :, 1] for step in range(5)]
    assert all(not torch.equal(frames[i], frames[j]) for i in range(5) for j in range(i))
    assert all(abs(frame.std().item() - 1) < 0.4 for frame in frames)
    assert sorted(noisy.edits) == [0, 1, 2, 3, 4]


def test_noise_at_one_step_and_frame():
    pipe = tiny.build("a14b")
    clean, noisy = plain(pipe), run_with(pipe, noise_at(2, frame=1))
    assert torch.equal(noisy.x[2][:, :, [0, 2]], clean.x[2][:, :, [0, 2]])
    assert relative(noisy.x[2][:, :, 1], clean.x[2][:, :, 1]) > 0.5


@tiny.every(solver=tiny.SOLVERS)
def test_renoise_keeps_the_estimate_at_the_right_sigma(solver):
    """Taking x0hat off the edited x leaves sigma times the noise that `noise_at_step` injects."""
    pipe = tiny.build("a14b", solver)
    kept, replaced = run_with(pipe, renoise(2, seed=3)), run_with(pipe, noise_at_step(2, seed=3))
    sigma = kept.sigmas[2]
    torch.testing.assert_close(kept.x[2] - (1 - sigma) * kept.x0[1], sigma * replaced.x[2])


def test_renoise_at_step_zero_is_noise():
    pipe = tiny.build("a14b")
    assert torch.equal(run_with(pipe, renoise(0)).x[0], run_with(pipe, noise_at_step(0)).x[0])


def test_injected_noise_is_not_the_initial_noise_of_the_same_seed():
    pipe = tiny.build("a14b")
    assert relative(run_with(pipe, noise_at_step(0, seed=0)).x[0], plain(pipe, seed=0).x[0]) > 0.5


def test_contexts_nest_in_any_order_and_edits_compose():
    pipe = tiny.build("a14b")
    with inject(pipe, noise_at(1, frame=2)), record(pipe) as inside, inject(pipe, noise_at_step(3)):
        pipe(**tiny.call())
    outside = run_with(pipe, noise_at(1, frame=2), noise_at_step(3))
    assert torch.equal(inside.latents, outside.latents) and sorted(inside.edits) == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("solver", tiny.SOLVERS)
def test_a_batch_is_disturbed_like_its_members(solver):
    pipe = tiny.build("a14b", solver)
    both = run_with(pipe, noise_at_step(2), prompt=["a ball", "the maze"], seed=[1, 2]).latents
    for row, (prompt, seed) in enumerate([("a ball", 1), ("the maze", 2)]):
        alone = run_with(pipe, noise_at_step(2), prompt=[prompt], seed=[seed]).latents
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


@tiny.every(solver=tiny.SOLVERS, kind=tiny.KINDS, dtype=tiny.DTYPES)
def test_a_sweep_from_recorded_steps_equals_full_runs(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    run = plain(pipe, kind=kind)
    edits = [noise_at_step(0), noise_at_step(3), renoise(2), noise_at(4, frame=1), noise_at_frame(2)]
    for edit, output in inject_each(pipe, run, edits, **tiny.call(kind=kind)):
        assert torch.equal(output.frames.float(), run_with(pipe, edit, kind=kind).latents), edit


def test_a_sweep_of_a_run_without_estimates_makes_them_anew():
    pipe = tiny.build("a14b")
    with record(pipe, keep=("x", "v")) as run:
        pipe(**tiny.call())
    ((_, output),) = inject_each(pipe, run, [renoise(2)], **tiny.call())
    assert torch.equal(output.frames, run_with(pipe, renoise(2)).latents)


@pytest.mark.slow
def test_a_sweep_shares_prefixes():
    """Noise at each of N steps costs (N + 1) / 2 runs instead of N."""
    pipe = tiny.build("wan21")
    run, forwards = plain(pipe, kind="wan21"), []
    pipe.transformer.register_forward_hook(lambda *_: forwards.append(1))
    list(inject_each(pipe, run, map(noise_at_step, range(5)), **tiny.call(kind="wan21")))
    assert len(forwards) == 2 * (5 + 4 + 3 + 2 + 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (noise_at_step(5), r"no step 5 in this call: it has steps 0\.\.4"),
        (renoise(99), r"no step 99 in this call: it has steps 0\.\.4"),
        (noise_at_frame(3), r"cannot edit latent frame 3: choose 0\.\.2"),
    ],
)
def test_unknown_step_or_frame_is_refused_before_the_first_forward(edit, message):
    pipe = tiny.build("a14b")
    before = type(pipe), type(pipe.scheduler)
    pipe.transformer.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message), inject(pipe, edit):
        pipe(**tiny.call())
    assert (type(pipe), type(pipe.scheduler)) == before


def test_the_given_frame_of_ti2v_cannot_be_disturbed():
    pipe = tiny.build("ti2v5b")
    with pytest.raises(ValueError, match=r"cannot edit latent frame 0: choose 1\.\.2 \(0 is the given image"):
        run_with(pipe, noise_at_frame(0))


def test_a_step_before_the_resumed_one_is_refused():
    pipe = tiny.build("a14b")
    run = plain(pipe)
    with pytest.raises(ValueError, match=r"no step 1 in this call: it has steps 2\.\.4"):
        with inject(pipe, noise_at_step(1)):
            resume(pipe, run, 2, **tiny.call())


@tiny.every(kind=["a14b", "ti2v5b"], solver=tiny.SOLVERS)
def test_a_function_edits_what_the_model_sees(kind, solver):
    pipe, told = tiny.build(kind, solver), []
    noise = torch.randn(1, 4, 3, 2, 4, generator=torch.Generator().manual_seed(9))

    def steer(x, step, sigma, x0):
        told.append((step, sigma, x0, x.clone()))
        return (x.mul_(0.5) + noise) if step != 3 else None  # what it does to its copy in place reaches nobody

    clean = plain(pipe)
    with record(pipe) as run, inject(pipe, steer, steps=[2, np.int64(3)]) as edits:
        pipe(**tiny.call())
    given = kind == "ti2v5b"
    assert edits == (steer,) and [step for step, *_ in told] == [2, 3]
    assert torch.equal(run.x[1], clean.x[1]) and torch.equal(told[0][2], clean.x0[1])
    assert told[0][1] == run.sigmas[2] and torch.equal(told[0][3][:, :, given:], clean.x[2][:, :, given:])
    assert torch.equal(run.x[2][:, :, given:], (clean.x[2] * 0.5 + noise)[:, :, given:])
    assert torch.equal(run.x[2][:, :, :given], clean.x[2][:, :, :given])
    assert list(run.edits) == [2] and run.edits[2][0].startswith(f"{steer.__qualname__} ")
    assert relative(run.latents, clean.latents) > 0.1  # a multistep solver does not undo it


def times(scale):
    return lambda x, step, sigma, x0: x * scale


def steer(function):
    return lambda x, *_: function(x)


def test_functions_that_hold_other_functions_do_not_pass_for_each_other():
    pipe = tiny.build("a14b")
    with record(pipe) as run, inject(pipe, steer(torch.zeros_like), steps=2):
        pipe(**tiny.call())
    with inject(pipe, steer(torch.ones_like), steps=2):
        again = resume(pipe, run, 2, **tiny.call()).frames
        assert torch.equal(again, pipe(**tiny.call()).frames) and not torch.equal(again, run.latents)


def test_a_name_follows_what_a_function_holds_and_ends_where_it_calls_itself():
    def outer(scale):
        return lambda x, *_: (lambda y: y * scale)(x)

    def again(x, *_):
        return again(x) if x is None else x

    named = [function_name(one) for one in (outer(2), outer(2), outer(3), partial(outer(2)), partial(outer(3)))]
    assert named[0] == named[1] and len(set(named)) == 4
    assert function_name(again) == function_name(again)

    def both(one, other):
        return lambda x, *_: one(x) + other(x)

    summed = torch.square
    for _ in range(40):
        summed = both(summed, summed)
    assert function_name(summed) != function_name(
        both(summed, torch.square)
    )  # each is looked into once, not 2**40 times


@pytest.mark.slow
def test_functions_and_edits_compose_and_tell_what_they_hold():
    pipe, names = tiny.build("a14b"), []
    for scale in (2.0, 3.0):
        with record(pipe) as run, inject(pipe, times(scale), noise_at(1, frame=2), steps=1):
            pipe(**tiny.call())
        names.append(run.edits[1])
        first, _, second = run.edits[1][0].partition("; ")
        assert "<lambda>" in first and second == "noise at frame 2, seed 0"
    assert names[0] != names[1]
    torch.testing.assert_close(run.x[1][:, :, :2], 3 * plain(pipe).x[1][:, :, :2])
    assert torch.equal(run.x[1][:, :, 2], run_with(pipe, noise_at(1, frame=2)).x[1][:, :, 2])


@pytest.mark.parametrize(
    ("function", "steps", "error", "message"),
    [
        (
            lambda x, *_: x[:, :, :1],
            None,
            TypeError,
            r"<lambda> \w+ must return a tensor \(1, 4, 3, 2, 4\) or None, not",
        ),
        (lambda x, *_: 3, None, TypeError, "must return a tensor .* or None, not int"),
        (lambda x, *_: x / 0, 2, ValueError, "<lambda> .* gives a state with NaN or infinity at step 2"),
        (lambda x, *_: x, [5], ValueError, r"no step 5 in this call: it has steps 0\.\.4"),
        (lambda x, *_: x, [1.5], TypeError, "a step must be an integer, got 1.5"),
        (lambda x, *_: x, [], ValueError, "no step chosen"),
        (noise_at_step(1), 1, TypeError, "steps belongs to functions"),
    ],
)
def test_bad_functions_are_refused(function, steps, error, message):
    pipe = tiny.build("a14b")
    with pytest.raises(error, match=message), inject(pipe, function, steps=steps):
        pipe(**tiny.call())


@pytest.mark.parametrize("edits, steps", [((noise_at_step(3),), None), ((lambda x, *_: x,), [0, 3])])
def test_a_step_that_no_call_came_to_is_an_error(edits, steps):
    pipe = tiny.build("a14b")

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    with pytest.raises(RuntimeError, match=r"inject did not act at steps \[3\]: the call ended before them"):
        with inject(pipe, *edits, steps=steps):
            pipe(**tiny.call(), callback_on_step_end=stop)


def test_a_function_cannot_change_the_estimate_that_it_is_shown():
    pipe = tiny.build("a14b")

    def careless(x, step, sigma, x0):
        if x0 is not None:
            x0.zero_()
        return x

    edit = renoise(2)
    assert torch.equal(run_with(pipe, careless, edit).latents, run_with(pipe, edit).latents)


def test_a_run_of_a_solver_that_draws_noise_cannot_begin_late():
    pipe = tiny.build("a14b")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    with pytest.raises(ValueError, match="draws noise at every step"):
        from_noise(pipe, noise_at_step(2), **tiny.call())


def test_bad_edits_are_refused():
    pipe = tiny.build("a14b")
    with pytest.raises(TypeError, match="step must be an integer, got '3'"):
        noise_at_step("3")
    with pytest.raises(TypeError, match="seed must be an integer, got 0.5"):
        noise_at_step(3, seed=0.5)
    with pytest.raises(ValueError, match="frame must be 0 or more, got -1"):
        noise_at_frame(-1)
    with pytest.raises(TypeError, match="at least one edit"), inject(pipe):
        pass
    with pytest.raises(TypeError, match="inject takes edits"), inject(pipe, 3):
        pass
    assert Edit(1, None) == noise_at_step(1)
