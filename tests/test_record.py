"""Recording changes nothing, is right, and can be stored, decoded and continued from."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
)

import tiny
import tiny_families as families
from cosutils.hooks._call import Tap, tapped
from cosutils.hooks.capture import capture
from cosutils.hooks.inject import inject, noise_at_step
from cosutils.hooks.record import Run, record, resume
from cosutils.measures.planning import average
from cosutils.pipelines.check import check_pipeline
from cosutils.pipelines.schedule import ExactEulerScheduler

every_pipeline = tiny.every(kind=tiny.KINDS, solver=tiny.SOLVERS, dtype=tiny.DTYPES)


def recorded(pipe, **changes):
    with record(pipe) as run:
        pipe(**tiny.call(**changes))
    return run


@every_pipeline
def test_observing_changes_no_bit(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    plain = pipe(**tiny.call(kind=kind)).frames
    with record(pipe) as run:
        watched = pipe(**tiny.call(kind=kind)).frames
    assert torch.equal(watched, plain)
    assert torch.equal(run.latents, plain.float())
    assert torch.equal(pipe(**tiny.call(kind=kind)).frames, plain)


@every_pipeline
def test_two_routes_to_v_agree_bitwise(kind, solver, dtype):
    """The scheduler tap against the pipeline's own local variable, shown to its step callback."""
    pipe = tiny.build(kind, solver, dtype)
    pipe._callback_tensor_inputs = [*pipe._callback_tensor_inputs, "noise_pred"]
    oracle = []

    def look(pipe, step, timestep, tensors):
        oracle.append(tensors["noise_pred"].clone())
        return {}

    with record(pipe) as run:
        pipe(**tiny.call(kind=kind), callback_on_step_end=look, callback_on_step_end_tensor_inputs=["noise_pred"])
    assert list(run.v) == [0, 1, 2, 3, 4]
    assert all(torch.equal(run.v[step], v) and run.v[step].dtype == v.dtype for step, v in enumerate(oracle))


@every_pipeline
def test_the_recorded_quantities_obey_their_definitions(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    run = recorded(pipe, kind=kind)
    given = 1 if kind == "ti2v5b" else 0
    for step in range(5):
        x0 = run.x[step] - run.sigmas[step] * run.v[step].float()
        assert torch.equal(run.x0[step][:, :, given:], x0[:, :, given:])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # the solvers take sigma v in the model's dtype
    torch.testing.assert_close(run.x0[-1], run.latents, atol=tolerance, rtol=0)
    assert torch.equal(run.sigmas, pipe.scheduler.sigmas)


def test_the_given_frame_of_ti2v_is_the_image():
    """What the scheduler holds in frame 0 is meaningless; the recording holds what the model saw."""
    pipe = tiny.build("ti2v5b")
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    run = recorded(pipe)
    for step in range(5):
        assert torch.equal(run.x[step], seen[2 * step])
        assert torch.equal(run.x0[step][:, :, 0], run.latents[:, :, 0])


@every_pipeline
def test_resume_equals_the_uninterrupted_run(kind, solver, dtype):
    pipe = tiny.build(kind, solver, dtype)
    plain = pipe(**tiny.call(kind=kind)).frames
    run = recorded(pipe, kind=kind)
    for step in (0, 2, 4, -1):
        with record(pipe) as rest:
            assert torch.equal(resume(pipe, run, step, **tiny.call(kind=kind)).frames, plain)
        assert list(rest.x) == list(range(step % 5, 5)) and rest.first == step % 5 and rest.steps == 5
        assert all(torch.equal(rest.x[i], run.x[i]) and torch.equal(rest.v[i], run.v[i]) for i in rest.x)


@tiny.every(solver=tiny.SOLVERS)
def test_resume_of_a_disturbed_run(solver):
    pipe = tiny.build("a14b", solver)
    with inject(pipe, noise_at_step(2)), record(pipe) as run:
        pipe(**tiny.call())
    for step in (1, 2, 3):
        with inject(pipe, noise_at_step(2)) if step < 3 else record(pipe):
            assert torch.equal(resume(pipe, run, step, **tiny.call()).frames, run.latents)


@pytest.mark.slow
def test_resume_of_a_stored_run_on_rounded_timesteps(tmp_path):
    pipe = tiny.build("a14b")
    pipe.scheduler = ExactEulerScheduler(shift=12.0, timestep_dtype="bfloat16")  # neighbours share a timestep
    run = recorded(pipe, steps=40)
    assert len(set(run.info["timesteps"])) < 40
    again = Run.load(run.save(tmp_path), pipe)
    assert torch.equal(resume(pipe, again, 1, **tiny.call(steps=40)).frames, run.latents)


@pytest.mark.slow
def test_unipc_survives_colliding_integer_timesteps():
    """Stock UniPC begins at the second of two equal timesteps and runs off the end; a recording does not."""
    pipe = tiny.build("wan21")
    pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=100.0, solver_order=2
    )
    run = recorded(pipe, steps=40, kind="wan21")
    timesteps = run.info["timesteps"]
    assert timesteps[0] == timesteps[1] and list(run.x) == list(range(40))


@tiny.every(kind=tiny.KINDS)
def test_a_batch_equals_its_members(kind):
    pipe = tiny.build(kind)
    both = recorded(pipe, prompt=["a ball", "the maze"], seed=[1, 2], kind=kind)
    for row, (prompt, seed) in enumerate([("a ball", 1), ("the maze", 2)]):
        alone = recorded(pipe, prompt=[prompt], seed=[seed], kind=kind)
        torch.testing.assert_close(both.x0.stack()[:, row], alone.x0.stack()[:, 0], atol=1e-5, rtol=0)
    assert both.info["seeds"] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_decode_gives_the_pipelines_own_pixels(kind):
    pipe = tiny.build(kind)
    arguments = tiny.call(prompt=["a ball", "the maze"], seed=[1, 2], output_type="np", kind=kind)
    with record(pipe) as run:
        video = pipe(**arguments).frames
    pixels = run.decode(steps=[0, 4], batch=3)
    assert pixels.shape == (2, 2, 9, 16, 32, 3) and pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels[1], video, atol=1e-5)
    assert torch.equal(run.decode(steps=[0, 4], frames=[0, -1], batch=3), pixels[:, :, [0, -1]])
    torch.testing.assert_close(run.decode(batch=1)[[0, 4]], pixels, atol=1e-5, rtol=0)


def test_save_and_load(tmp_path):
    pipe = tiny.build("a14b", "unipc", torch.bfloat16)
    with inject(pipe, noise_at_step(3)), record(pipe) as run:
        pipe(**tiny.call())
    folder = run.save(tmp_path / "a" / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "run.safetensors"]
    again = Run.load(folder)
    for name in ("x", "v", "x0"):
        ours, theirs = getattr(run, name), getattr(again, name)
        assert sorted(theirs) == sorted(ours) and all(torch.equal(ours[i], theirs[i]) for i in ours)
    assert again.v[0].dtype == torch.bfloat16 and torch.equal(again.latents, run.latents)
    assert (again.edits, again.info, again.first) == (run.edits, json.loads(json.dumps(run.info)), 0)
    with pytest.raises(ValueError, match=r"a loaded run needs the pipeline"):
        again.decode([0])
    assert torch.equal(again.decode([0], pipe=pipe), run.decode([0]))
    assert torch.equal(resume(pipe, again, 4, **tiny.call()).frames, run.latents)


def test_altered_and_missing_files_are_refused(tmp_path):
    folder = recorded(tiny.build("wan21"), kind="wan21").save(tmp_path)
    path = folder / "run.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="run.safetensors is truncated or altered"):
        Run.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no run.safetensors in"):
        Run.load(folder)


def test_both_files_are_written_or_neither(tmp_path, monkeypatch):
    run = recorded(tiny.build("wan21"), kind="wan21")
    (tmp_path / "run.safetensors").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="could not write .*run.safetensors, nothing was changed there"):
        run.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    folder, other = run.save(tmp_path / "good"), recorded(tiny.build("wan21"), seed=5, kind="wan21")
    other.info["note"] = np.float32(1)
    with pytest.raises(TypeError, match=r"info\['note'\] cannot be saved as JSON: Object of type float32"):
        other.save(folder)
    other.info["note"] = float("nan")
    with pytest.raises(ValueError, match=r"info\['note'\] cannot be saved as JSON"):
        other.save(folder)
    del other.info["note"]

    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="could not write .*run.json, nothing was changed there: .*No space left"):
        other.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "run.safetensors"]
    assert torch.equal(Run.load(folder).latents, run.latents)


def test_a_home_folder_and_numbers_of_numpy_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pipe = tiny.build("a14b")
    whole = {"height": np.int64(16), "num_frames": np.int32(9), "num_inference_steps": np.int64(5)}
    with record(pipe) as run:
        pipe(**tiny.call(guidance_scale=np.float32(3)) | whole)
    assert run.save("~/runs/a & b [1]") == tmp_path / "runs" / "a & b [1]"
    again = Run.load("~/runs/a & b [1]", pipe)
    assert torch.equal(again.latents, recorded(pipe).latents) and again.info["guidance_scale"] == 3.0
    assert torch.equal(again.decode([np.int64(-1)], batch=np.int64(1)), run.decode([4]))
    assert torch.equal(resume(pipe, again, np.int64(-2), **tiny.call()).frames, run.latents)


@pytest.mark.parametrize("text", ["{", "[1]", '{"sha256": "0"}', '{"first": 0, "first": 1}'])
def test_a_damaged_description_is_named(tmp_path, text):
    folder = recorded(tiny.build("wan21"), steps=1, kind="wan21").save(tmp_path)
    (folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        Run.load(folder)


def test_provenance_is_complete():
    pipe = tiny.build("a14b", dtype=torch.bfloat16)
    info = recorded(pipe, seed=3).info
    assert info["boundary"] == 0.875 and info["seeds"] == [3] and info["prompt"] == "the red ball moves"
    assert info["sigmas"] == pipe.scheduler.sigmas.tolist() and len(info["timesteps"]) == 5
    assert info["dtype"] == {"transformer": "bfloat16", "transformer_2": "bfloat16"}
    assert {"python", "torch", "diffusers", "cosutils"} <= info["versions"].keys()


def used(seed=0):
    generator = torch.Generator().manual_seed(seed)
    torch.randn(3, generator=generator)
    return generator


def with_other_weights(pipe):
    pipe.transformer.blocks[3].ffn.net[2].weight.data[0, 0] += 0.5


OTHERWISE = {  # what changes the film: arguments, and what is done to the pipeline before
    "prompt": ({"prompt": "the blue maze"}, None),
    "guidance": ({"guidance_scale": 4.0}, None),
    "second guidance": ({"guidance_scale_2": 2.0}, None),
    "image": ({"image": tiny.image(1)}, None),
    "last image": ({"last_image": tiny.image(1)}, None),
    "generator": ({"generator": used()}, None),
    "latents": ({"latents": torch.zeros(1, 4, 3, 2, 4)}, None),
    "embeddings": ({"prompt": None, "prompt_embeds": torch.ones(1, 16, 16)}, None),
    "tokens": ({"max_sequence_length": 8}, None),
    "lora scale": ({"attention_kwargs": {"scale": 0.5}}, None),
    "weights": ({}, with_other_weights),
    "scheduler": ({}, lambda pipe: setattr(pipe, "scheduler", tiny.scheduler("unipc"))),
    "solver's order": ({}, lambda pipe: pipe.scheduler.register_to_config(solver_order=1)),
    "boundary": ({}, lambda pipe: pipe.register_to_config(boundary_ratio=0.5)),
}


@tiny.every(name=list(OTHERWISE))
def test_provenance_tells_runs_apart_and_resume_refuses_the_other(name):
    pipe = tiny.build("a14b", "unipc" if "order" in name else "euler")
    run, (changes, prepare) = recorded(pipe), OTHERWISE[name]
    if prepare is not None:
        prepare(pipe)
    assert recorded(pipe, **changes).info != run.info
    if name in ("generator", "latents"):  # resume takes them from the run
        return
    before = [type(pipe), sorted(vars(pipe))]
    with pytest.raises(ValueError, match="^[a-z_0-9.]+ is .* but the recorded run has "):
        resume(pipe, run, 2, **tiny.call(**changes))
    assert [type(pipe), sorted(vars(pipe))] == before


def test_equal_runs_have_equal_provenance():
    one, other = (recorded(tiny.build("a14b")) for _ in range(2))
    assert one.info == other.info and one.info["generators"] == other.info["generators"]
    assert torch.equal(one.latents, other.latents)


def test_resume_takes_the_random_state_from_the_run():
    """CogVideoX draws what it is told of the image from the generator, which the recorded call has used up."""
    pipe, generator = families.build("cogvideox_ddim"), torch.Generator().manual_seed(0)
    with record(pipe) as run:
        pipe(**families.call("cogvideox_ddim", generator=generator))
    with record(pipe) as rest:
        resume(pipe, run, 2, **families.call("cogvideox_ddim", generator=generator))
    assert torch.equal(rest.latents, run.latents)
    with pytest.raises(ValueError, match=r"generator has the seeds \[1\] but the recorded run has \[0\]"):
        resume(pipe, run, 2, **families.call("cogvideox_ddim", seed=1))


def test_a_part_of_a_batch_is_resumed_with_its_own_facts():
    pipe, call = tiny.build("wan21"), {"prompt": ["a ball", "the maze"], "seed": [1, 2]}
    both = recorded(pipe, **call, kind="wan21")
    one = both.rows([1])
    assert one.info["seeds"] == [2] and one.info["prompt"] == ["the maze"] and one.latents.shape[0] == 1
    output = resume(pipe, one, 2, **tiny.call(["the maze"], seed=[2], kind="wan21")).frames
    torch.testing.assert_close(output, both.latents[1:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="prompt is .'a ball'. but the recorded run has .'the maze'."):
        resume(pipe, one, 2, **tiny.call(["a ball"], seed=[2], kind="wan21"))


@tiny.every(edit=["average", "function"])
def test_resume_within_the_same_context_does_not_act_twice(edit):
    pipe = tiny.build("a14b")
    call = {"prompt": ["a ball", "a ball" if edit == "average" else "the maze"], "seed": [1, 2]}
    acts = average(pipe, "x0", [1, 2]) if edit == "average" else inject(pipe, lambda x, *_: x * 1.1, steps=[2, 3])
    with acts:
        run = recorded(pipe, **call)
        with record(pipe) as rest:
            output = resume(pipe, run, 2, **tiny.call(**call)).frames
    assert torch.equal(output, run.latents) and torch.equal(rest.x[2], run.x[2])
    assert rest.edits == {step: names for step, names in run.edits.items() if step >= 2}


@pytest.mark.parametrize(
    ("kind", "changes", "scheduler"),
    [
        ("a14b", {}, FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)),
        ("cogvideox_ddim", {"eta": 0.5}, None),
    ],
)
def test_solvers_that_draw_noise_are_recorded_but_not_resumed(kind, changes, scheduler):
    builder = tiny if kind in tiny.KINDS else families
    arguments = tiny.call if kind in tiny.KINDS else lambda **changes: families.call(kind, **changes)
    pipe = builder.build(kind)
    pipe.scheduler = scheduler or pipe.scheduler
    with record(pipe) as run:
        pipe(**arguments(**changes))
    with pytest.raises(ValueError, match="draws noise at every step, so that no run can be resumed"):
        resume(pipe, run, 2, **arguments(**changes))


def test_everything_is_undone_after_an_exception():
    pipe = tiny.build("a14b", "unipc")
    plain = pipe(**tiny.call()).frames
    before = (type(pipe), type(pipe.scheduler), set(pipe.__dict__), set(pipe.scheduler.__dict__))
    fail = pipe.transformer_2.register_forward_hook(lambda *_: 1 / 0)
    run = recorded(tiny.build("a14b", "unipc"))
    for call in (lambda: pipe(**tiny.call()), lambda: resume(pipe, run, 1, **tiny.call())):
        with pytest.raises(ZeroDivisionError), record(pipe), inject(pipe, noise_at_step(1)):
            call()
        assert (type(pipe), type(pipe.scheduler), set(pipe.__dict__), set(pipe.scheduler.__dict__)) == before
    fail.remove()
    assert torch.equal(pipe(**tiny.call()).frames, plain)
    assert len(pipe.scheduler.timesteps) == 5


def test_isinstance_and_deepcopy_hold_inside():
    pipe = tiny.build("a14b", "unipc")
    with record(pipe) as run:
        assert isinstance(pipe, WanImageToVideoPipeline)
        assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
        assert type(pipe).__name__ == "WanImageToVideoPipeline"
        twin = copy.deepcopy(pipe.scheduler)
        pipe(**tiny.call())
    assert run.latents is not None
    twin.set_timesteps(5)
    assert torch.equal(twin.sigmas, run.sigmas)


def test_keep_chooses_what_is_stored():
    pipe = tiny.build("a14b")
    with record(pipe, keep="x0") as run:
        pipe(**tiny.call())
    assert len(run.x0) == 5 and not run.x and not run.v
    with pytest.raises(KeyError, match="x was not kept in this run"):
        resume(pipe, run, 1, **tiny.call())
    with pytest.raises(ValueError, match="cannot keep 'noise': choose from x, v, x0"):
        with record(pipe, keep=["noise"]):
            pass


def test_unknown_steps_frames_and_batches_are_refused():
    pipe = tiny.build("a14b")
    run = recorded(pipe)
    with pytest.raises(KeyError, match=r"no step 40: this run has steps 0\.\.4"):
        run.decode([40])
    with pytest.raises(KeyError, match=r"no step -6: this run has steps 0\.\.4"):
        run.x[-6]
    with pytest.raises(IndexError, match=r"no frame 9: the decoded video has frames 0\.\.8"):
        run.decode([0], frames=[9])
    with pytest.raises(ValueError, match="batch must be a positive number of videos, got 0"):
        run.decode([0], batch=0)
    with pytest.raises(ValueError, match="no steps to decode: steps is empty"):
        run.decode([])
    pipe.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="the decoded film holds NaN or infinity"):
        run.decode([0])
    with pytest.raises(TypeError, match="step must be an integer, got 1.5"):
        resume(pipe, run, 1.5, **tiny.call())


def test_resume_refuses_what_does_not_fit():
    pipe = tiny.build("a14b", "unipc")
    run = recorded(pipe)
    with pytest.raises(ValueError, match=r"the call's schedule \(6 steps\) is not the recorded run's \(5"):
        resume(pipe, run, 2, **tiny.call(steps=6))
    with pytest.raises(ValueError, match="width is 16 but the recorded run has 32"):
        resume(pipe, run, 2, **tiny.call(width=16, image=tiny.image(width=16)))
    with pytest.raises(TypeError, match="resume takes its latents from the run"):
        resume(pipe, run, 2, **tiny.call(latents=run.x[2]))
    with record(pipe) as rest:
        resume(pipe, run, 2, **tiny.call())
    with pytest.raises(ValueError, match="the run was itself resumed at step 2"):
        resume(pipe, rest, 3, **tiny.call())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_frames": 10}, ValueError, r"num_frames must be 4k \+ 1 \(1, 5, 9, \.\.\.\), got 10"),
        ({"height": 24}, ValueError, "height must be a multiple of 16 px for this model, got 24"),
        ({"height": 32}, ValueError, "the image is 16x32 px but the call asks for 32x32 px"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or a list of them .* not int"),
        ({"generator": [3]}, TypeError, "generator must be a torch.Generator or a list of them .* not int"),
        ({"generator": [used(), used()]}, ValueError, "generator holds 2 generators but the call makes 1 videos"),
        ({"num_frames": "9"}, TypeError, "num_frames must be an integer, got '9'"),
        ({"height": 16.0}, TypeError, "height must be an integer, got 16.0"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be 1 or more, got 0"),
        ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps must be an integer, got 2.5"),
        ({"num_inference_steps": "20"}, TypeError, "num_inference_steps must be an integer, got '20'"),
        ({"num_inference_steps": 1001}, ValueError, "is 1001 but the scheduler has 1000 timesteps"),
        ({"num_videos_per_prompt": 0}, ValueError, "num_videos_per_prompt must be 1 or more, got 0"),
        ({"prompt": []}, ValueError, r"the call makes no video: prompt is \[\]"),
        ({"prompt": None, "prompt_embeds": torch.ones(0, 16, 16)}, ValueError, "the call makes no video"),
        ({"prompt": 5}, TypeError, "prompt must be a text or a list of texts, got 5"),
        ({"guidance_scale": "3"}, TypeError, "guidance_scale must be a number, got '3'"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale holds NaN or infinity"),
        ({"guidance_scale_2": np.float32("inf")}, ValueError, "guidance_scale_2 holds NaN or infinity"),
        ({"attention_kwargs": {"scale": float("nan")}}, ValueError, "attention_kwargs holds NaN or infinity"),
        ({"latents": torch.full((1, 4, 3, 2, 4), float("nan"))}, ValueError, "latents holds NaN or infinity"),
        ({"latents": torch.zeros(1, 4, 3, 4, 2)}, ValueError, r"latents of shape \(1, 4, 3, 4, 2\) do not fit a call"),
        ({"image": torch.full((1, 3, 16, 32), float("nan"))}, ValueError, "image holds NaN or infinity"),
        ({"image": torch.full((1, 3, 16, 32), 255.0)}, ValueError, r"the image has values outside \[-1, 1\]"),
        ({"image": torch.zeros(1, 3, 32, 16)}, ValueError, "the image is 32x16 px but the call asks for 16x32 px"),
        ({"image": tiny.image().convert("RGBA")}, ValueError, r"the image has the mode RGBA: pass image.convert"),
        ({"last_image": tiny.image().convert("L")}, ValueError, r"the last_image has the mode L: pass last_image"),
    ],
)
def test_bad_calls_are_refused_in_one_sentence(changes, error, message):
    pipe = tiny.build("a14b")
    for module in (pipe.text_encoder, pipe.transformer, pipe.vae):  # before expensive work
        module.register_forward_pre_hook(lambda *_: pytest.fail("a model ran"))
    with pytest.raises(error, match=message), record(pipe):
        pipe(**tiny.call(**changes))


@pytest.mark.parametrize("watching", [record, capture])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_velocity_that_is_not_finite_names_its_step(value, watching):
    pipe = tiny.build("a14b")
    forwards = []

    def spoil(module, arguments, output):
        forwards.append(1)
        if len(forwards) == 5:  # the first forward of step 2
            output[0][0, 0, 0, 0, 0] = float(value)

    pipe.transformer.register_forward_hook(spoil)
    pipe.transformer_2.register_forward_hook(spoil)
    with pytest.raises(ValueError, match="the model's output v holds NaN or infinity at step 2"), watching(pipe):
        pipe(**tiny.call())


def test_one_recording_holds_one_run():
    pipe = tiny.build("a14b")
    with record(pipe):
        pipe(**tiny.call())
        with pytest.raises(RuntimeError, match="already holds a run"):
            pipe(**tiny.call())


def test_an_unfinished_run_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="only a finished run can be saved"):
        Run().save(tmp_path)


def test_exchanging_the_scheduler_inside_is_refused():
    pipe = tiny.build("a14b")
    with record(pipe):
        pipe.scheduler = ExactEulerScheduler(shift=3.0)
        with pytest.raises(RuntimeError, match="pipe.scheduler was exchanged while a context is open"):
            pipe(**tiny.call())
        with pytest.raises(RuntimeError, match="pipe.scheduler was exchanged"), record(pipe):
            pass
    assert type(pipe) is WanImageToVideoPipeline and type(pipe.scheduler) is ExactEulerScheduler


def test_pipelines_that_would_be_recorded_wrongly_are_refused():
    with pytest.raises(TypeError, match="pipe must be a WanImageToVideoPipeline, LTX.* or Hunyuan.*, not Linear"):
        check_pipeline(torch.nn.Linear(1, 1))
    pipe = tiny.build("a14b")
    pipe.transformer_2.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="pipe.transformer_2 has a feature cache enabled"), record(pipe):
        pass
    pipe.transformer_2.disable_cache()
    with record(pipe):
        pipe.transformer.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(ValueError, match="pipe.transformer has a feature cache enabled"):
            pipe(**tiny.call())
    pipe = tiny.build("wan21")
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler is not a flow-matching scheduler"), record(pipe):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_whole_model_compile_is_refused_where_hooks_are_used(how):
    pipe = tiny.build("wan21")
    if how == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        pipe.transformer.compile(backend="eager")
    hooking = Tap()
    hooking.hooks = True
    with pytest.raises(ValueError, match="pipe.transformer is compiled as a whole, which hides hooks"):
        with tapped(pipe, hooking):
            pass
    pipe = tiny.build("wan21")
    pipe.transformer.compile_repeated_blocks(backend="eager")
    with tapped(pipe, hooking):
        pipe(**tiny.call(steps=1, kind="wan21"))
