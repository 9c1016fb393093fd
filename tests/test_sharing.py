"""Unused contexts, pipelines with common parts, calls within calls, threads, callbacks: each works or is refused."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.callbacks import PipelineCallback

import tiny
import tiny_families as families
from cosutils.hooks.capture import capture
from cosutils.hooks.ensemble import ensemble
from cosutils.hooks.inject import inject, noise_at, noise_at_step
from cosutils.hooks.record import record, resume
from cosutils.hooks.swap import swap

CONTEXTS = {
    "record": record,
    "inject": lambda pipe: inject(pipe, noise_at_step(1)),
    "a function": lambda pipe: inject(pipe, lambda x, step, sigma, x0: x),
    "capture": capture,
    "swap": lambda pipe: swap(pipe, 1, {0: 0}),
    "ensemble": lambda pipe: ensemble(pipe, layers=1, steps=0),
}


def traces(pipe):
    parts = [pipe.transformer, *pipe.transformer.blocks]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts]
    return type(pipe), type(pipe.scheduler), sorted(vars(pipe)), sorted(vars(pipe.scheduler)), hooks


@pytest.fixture(scope="module")
def pipe():
    """One pipeline for all: no test may leave a trace on it."""
    built = tiny.build("a14b")
    call(built)  # diffusers leaves attributes of its own
    return built


@pytest.fixture(autouse=True)
def untouched(pipe):
    before = traces(pipe)
    yield
    assert traces(pipe) == before


def call(pipe, kind="a14b", **changes):
    return pipe(**tiny.call(steps=3, kind=kind) | changes).frames


def sharing(pipe, *names):
    """A pipeline with some parts of `pipe` and the others its own."""
    own = tiny.build("a14b", seed=1)
    other = WanImageToVideoPipeline(
        **own.components | {name: pipe.components[name] for name in names}, boundary_ratio=0.5
    )
    other.set_progress_bar_config(disable=True)
    return other


@tiny.every(name=list(CONTEXTS))
def test_a_context_that_never_acted_says_where_it_was_opened(pipe, name):
    with pytest.raises(RuntimeError, match="never acted: it was opened on a WanImageToVideoPipeline, which was not"):
        with CONTEXTS[name](pipe):
            call(tiny.build("a14b"))  # another one


def test_a_context_names_the_model_and_lets_other_errors_pass(tmp_path):
    loaded = WanImageToVideoPipeline.from_pretrained(tiny.saved("wan21", tmp_path / "my model"))
    with pytest.raises(RuntimeError, match="opened on a WanImageToVideoPipeline of my model, which"), record(loaded):
        pass
    with pytest.raises(ZeroDivisionError), record(loaded):
        raise ZeroDivisionError


def test_a_function_that_edits_nothing_is_no_edit(pipe):
    def late(x, step, sigma, x0):
        return x * 2 if sigma < 0 else None

    with pytest.raises(RuntimeError, match="inject edited nothing: .*late .* returned None at every step"):
        with inject(pipe, late):
            call(pipe)


@tiny.every(
    names={
        "both": ("scheduler", "transformer"),
        "scheduler": ("scheduler",),
        "experts": ("transformer", "transformer_2"),
    }
)
def test_pipelines_with_common_parts_are_recorded_apart(pipe, names):
    other = sharing(pipe, *names)
    plain = call(pipe), call(other)
    before = traces(other)
    with record(pipe) as first, record(other) as second, capture(pipe) as maps:
        assert torch.equal(call(pipe), plain[0]) and torch.equal(call(other), plain[1])
    assert torch.equal(first.latents, plain[0]) and torch.equal(second.latents, plain[1])
    assert len(maps) == 3 * tiny.LAYERS and traces(other) == before
    closing = ExitStack()
    closing.enter_context(record(pipe))
    with record(other) as second, closing:
        call(pipe)
        closing.close()  # the first closes before the second
        call(other)
    assert torch.equal(second.latents, plain[1])


@pytest.mark.parametrize("whose", ["its own", "that of a pipeline with its scheduler"])
def test_a_call_within_a_callback_is_refused_and_the_outer_one_goes_on(pipe, whose):
    inner = pipe if whose == "its own" else sharing(pipe, "scheduler")
    plain, errors = call(pipe), []

    def again(_, step, timestep, tensors):
        with pytest.raises(RuntimeError, match="in the middle of a call" if inner is pipe else "set anew") as error:
            call(inner)
        errors.append(error)
        return {}

    if inner is pipe:
        with record(pipe) as run:
            assert torch.equal(call(pipe, callback_on_step_end=again), plain)
        assert torch.equal(run.latents, plain) and len(errors) == 3
    else:
        with pytest.raises(RuntimeError), record(pipe):  # the schedule is gone
            call(pipe, callback_on_step_end=again)
    assert torch.equal(call(pipe), plain)


def test_a_context_opened_within_a_call_is_refused(pipe):
    def open_one(*_):
        with record(pipe):
            pass

    with pytest.raises(RuntimeError, match="in the middle of a call"), record(pipe):
        call(pipe, callback_on_step_end=open_one)


@pytest.mark.parametrize("use", [call, lambda pipe: record(pipe).__enter__()], ids=["call", "context"])
def test_another_thread_is_refused(pipe, use):
    errors = []

    def work():
        try:
            use(pipe)
        except RuntimeError as error:
            errors.append(str(error))

    plain = call(pipe)
    with record(pipe) as run:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert torch.equal(call(pipe), plain)
    assert errors == ["a context such as record is open on this pipeline in another thread: use it in one"]
    assert torch.equal(run.latents, plain)


@pytest.mark.slow
def test_threads_with_a_pipeline_each_work_side_by_side():
    pipes = [tiny.build("wan21", seed=seed) for seed in (0, 1)]
    plain, runs = [call(pipe, kind="wan21") for pipe in pipes], {}

    def work(number):
        with record(pipes[number]) as runs[number]:
            call(pipes[number], kind="wan21")

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(runs[number].latents, plain[number]) for number in (0, 1))


def test_a_scheduler_that_somebody_else_steps_is_noticed(pipe):
    def meddle(pipe, step, timestep, tensors):
        pipe.scheduler._step_index += 1
        return {}

    with pytest.raises(RuntimeError, match="the scheduler took step 2 where 1 was due"), record(pipe):
        call(pipe, callback_on_step_end=meddle)


def build(kind):
    return (tiny if kind in tiny.KINDS else families).build(kind)


def arguments(kind, **changes):
    return tiny.call(**changes, kind=kind) if kind in tiny.KINDS else families.call(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "way"),
    [("a14b", "in place"), ("ltx", "in place"), ("a14b", "returned")]
    + [pytest.param(kind, "returned", marks=pytest.mark.slow) for kind in ("ti2v5b", *families.KINDS)],
)
def test_latents_edited_by_a_callback_are_recorded_as_returned(kind, way):
    def halve(pipe, step, timestep, tensors):
        steps.append(step)
        if way == "in place":
            tensors["latents"].mul_(0.5)
            return {}
        return {"latents": tensors["latents"] * 0.5}

    pipe, steps, seen = build(kind), [], []
    plain = pipe(**arguments(kind, steps=3), callback_on_step_end=halve).frames
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["hidden_states"].clone()), with_kwargs=True
    )
    with record(pipe) as run:
        output = pipe(**arguments(kind, steps=3), callback_on_step_end=halve).frames
    hook.remove()
    assert torch.equal(output, plain) and steps == [0, 1, 2] * 2
    shown = run.latents[:, :, 1:] if kind == "hunyuan_concat" else run.latents
    assert torch.equal(shown.flatten().sort()[0], output.float().flatten().sort()[0])
    if kind in ("a14b", "ti2v5b"):
        assert torch.equal(shown, output) and torch.equal(run.x[0], seen[0][:, : tiny.CHANNELS])
    if kind == "ltx":
        entry = seen[1][-1:].transpose(1, 2).unflatten(2, (3, 8, 16))
        assert torch.equal(run.x[1], entry)
    if kind != "cogvideox_dpm":
        with record(pipe) as rest:
            again = resume(pipe, run, 2, **arguments(kind, steps=3), callback_on_step_end=halve).frames
        assert torch.equal(again, output) and torch.equal(rest.x[2], run.x[2]) and steps[-1] == 2


def test_a_callback_object_chooses_its_tensors_and_a_wrong_one_is_named(pipe):
    class Half(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipe, step, timestep, tensors):
            return {"latents": tensors["latents"] * 0.5}

    plain = call(pipe, callback_on_step_end=Half(cutoff_step_ratio=None, cutoff_step_index=1))
    with record(pipe) as run:
        call(pipe, callback_on_step_end=Half(cutoff_step_ratio=None, cutoff_step_index=1))
    assert torch.equal(run.latents, plain)
    with pytest.raises(TypeError, match="callback_on_step_end must return a dict"), record(pipe):
        call(pipe, callback_on_step_end=lambda *_: None)


def test_records_are_copies(pipe):
    with record(pipe) as run:
        output = call(pipe)
    kept = {step: run.x[step].clone() for step in run.x}, run.sigmas.clone(), run.latents.clone()
    output.zero_()
    pipe.scheduler.sigmas.zero_()
    with inject(pipe, noise_at(1, 1)):
        call(pipe)
    assert all(torch.equal(run.x[step], kept[0][step]) for step in run.x)
    assert torch.equal(run.sigmas, kept[1]) and torch.equal(run.latents, kept[2])
