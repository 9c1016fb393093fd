"""Recording, noise and block states on other pipelines than Wan: LTX, CogVideoX and HunyuanVideo image-to-video."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import tiny
import tiny_families as families
from cosutils.hooks._call import Tap, tapped
from cosutils.hooks.capture import capture
from cosutils.hooks.ensemble import ensemble
from cosutils.hooks.inject import (
    from_noise,
    inject,
    inject_each,
    noise_at,
    noise_at_frame,
    noise_at_step,
    renoise,
)
from cosutils.hooks.record import Run, record, resume
from cosutils.hooks.reductions import energy, raw
from cosutils.hooks.swap import swap
from cosutils.measures.planning import average
from cosutils.pipelines.check import experts
from cosutils.pipelines.families import FAMILIES, family_of
from cosutils.pipelines.loading import use_preset

STEPS = 4
HELD = ("ltx", "hunyuan_replace")  # latent frame 0 is the given image
RESUMABLE = tuple(kind for kind in families.KINDS if kind != "cogvideox_dpm")
SIZE = {kind: (3, 8, 16) if kind == "ltx" else (3, 2, 4) for kind in families.KINDS} | {"cogvideox15": (4, 2, 4)}
PATCH = dict.fromkeys(families.KINDS, (1, 1, 1)) | {
    "cogvideox_ddim": (1, 2, 2),
    "cogvideox_dpm": (1, 2, 2),
    "cogvideox15": (2, 2, 2),
}
GRID = {kind: tuple(n // p for n, p in zip(SIZE[kind], PATCH[kind], strict=True)) for kind in families.KINDS}
every_kind = tiny.every(kind=families.KINDS)
PIPES = {}


def pipeline(kind):
    """One pipeline of each kind for the whole file: no test may leave a trace on it."""
    if kind not in PIPES:
        PIPES[kind] = families.build(kind)
    return PIPES[kind]


def recorded(kind, *edits, pipe=None, **changes):
    pipe = pipe or pipeline(kind)
    with record(pipe) as run:
        if edits:
            with inject(pipe, *edits):
                pipe(**families.call(kind, **changes))
        else:
            pipe(**families.call(kind, **changes))
    return run


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def blocks(model):
    return [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]


def state(kind, packed, channels=families.CHANNELS):
    """What the transformer takes or gives, as latents (B, C, F, H, W)."""
    if kind == "ltx":
        return packed.transpose(1, 2).unflatten(2, SIZE[kind])
    if kind.startswith("cogvideox"):
        return packed[:, :, :channels].transpose(1, 2)
    return packed[:, :channels]


@contextmanager
def calls_of(module):
    """Arguments by name and output of every forward of `module` inside, in order."""
    calls = []

    def hook(module, arguments, named, output):
        calls.append((dict(named), output))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@tiny.every(kind=families.KINDS, dtype=tiny.DTYPES)
def test_observing_changes_no_bit(kind, dtype):
    pipe = pipeline(kind) if dtype == torch.float32 else families.build(kind, dtype)
    plain = pipe(**families.call(kind)).frames
    with record(pipe) as run, capture(pipe), capture(pipe, branch="uncond", reduce=raw):
        watched = pipe(**families.call(kind)).frames
    assert torch.equal(watched, plain)
    assert run.latents.shape == (1, families.CHANNELS, *SIZE[kind]) and run.steps == STEPS
    shown = run.latents[:, :, 1:] if kind == "hunyuan_concat" else run.latents
    assert torch.equal(shown.to(plain.dtype), state(kind, plain))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(run.x0[-1], run.latents, atol=tolerance, rtol=0)


@every_kind
def test_the_recorded_quantities_are_the_models_own(kind):
    """The transformer's inputs and outputs, guided by hand and turned into an estimate by other means."""
    pipe = pipeline(kind)
    with calls_of(pipe.transformer) as calls:
        run = recorded(kind)
    scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    for step in range(STEPS):
        if kind.startswith("hunyuan"):
            (now, cond), (_, uncond) = calls[2 * step : 2 * step + 2]
            cond, uncond = state(kind, cond[0]), state(kind, uncond[0])
        else:
            now, both = calls[step]
            uncond, cond = state(kind, both[0]).chunk(2)
        v, x = uncond + 3 * (cond - uncond), state(kind, now["hidden_states"])[-1:]
        if kind in HELD:
            v[:, :, 0] = 0
        torch.testing.assert_close(run.v[step], v, atol=1e-5, rtol=0)
        assert torch.equal(run.x[step], x)
        if kind.startswith("cogvideox"):
            scheduler.set_timesteps(STEPS)
            estimate = scheduler.step(v, int(now["timestep"][0]), x).pred_original_sample
        else:
            estimate = x - now["timestep"].max() / 1000 * v
        torch.testing.assert_close(run.x0[step], estimate, atol=1e-5, rtol=0)


@tiny.every(kind=HELD)
def test_the_given_frame_is_held(kind):
    run = recorded(kind)
    for step in range(STEPS):
        assert torch.equal(run.x[step][:, :, 0], run.latents[:, :, 0])
        assert torch.equal(run.x0[step][:, :, 0], run.latents[:, :, 0])


@every_kind
def test_noise_at_a_step_is_what_the_model_sees(kind):
    clean = recorded(kind)
    with calls_of(pipeline(kind).transformer) as calls:
        begin, later = recorded(kind, noise_at_step(0, seed=4)), recorded(kind, noise_at_step(2, seed=4))
    seen = [state(kind, named["hidden_states"])[-1:] for named, _ in calls]
    forwards = 2 if kind.startswith("hunyuan") else 1
    assert torch.equal(begin.x[0], seen[0]) and torch.equal(later.x[2], seen[forwards * (STEPS + 2)])
    assert torch.equal(later.x[1], clean.x[1]) and later.edits == {2: ["noise, seed 4"]}
    held = int(kind in HELD)
    for run, step in ((begin, 0), (later, 2)):
        new = run.x[step][:, :, held:]
        assert abs(new.std().item() - 1) < 0.25 and abs(new.mean().item()) < 0.25
        assert torch.equal(run.x[step][:, :, :held], clean.x[step][:, :, :held])
        assert relative(run.latents, clean.latents) > 0.3 or kind == "cogvideox_dpm"  # see below
        assert torch.equal(run.latents[:, :, :held], clean.latents[:, :, :held])


@every_kind
def test_noise_at_a_frame_touches_one_frame(kind):
    clean, noisy = recorded(kind), recorded(kind, noise_at_frame(1))
    others = [frame for frame in range(SIZE[kind][0]) if frame != 1]
    assert torch.equal(noisy.x[0][:, :, others], clean.x[0][:, :, others])
    assert relative(noisy.x[0][:, :, 1], clean.x[0][:, :, 1]) > 0.5
    assert sorted(noisy.edits) == [0, 1, 2, 3]
    last = SIZE[kind][0] - 1
    if kind in HELD:
        with pytest.raises(ValueError, match=rf"cannot edit latent frame 0: choose 1\.\.{last} \(0 is the given"):
            recorded(kind, noise_at_frame(0))
    else:
        assert relative(recorded(kind, noise_at(0, frame=0)).x[0][:, :, 0], clean.x[0][:, :, 0]) > 0.5
    with pytest.raises(ValueError, match=r"no step 4 in this call: it has steps 0\.\.3"):
        recorded(kind, noise_at_step(4))


@every_kind
def test_renoise_keeps_the_estimate_at_the_right_level(kind):
    kept, replaced = recorded(kind, renoise(2, seed=3)), recorded(kind, noise_at_step(2, seed=3))
    scheduler, sigma, held = pipeline(kind).scheduler, kept.sigmas[2], int(kind in HELD)
    signal = 1 - sigma
    if kind.startswith("cogvideox"):
        signal = scheduler.alphas_cumprod[scheduler.timesteps[2]].sqrt().float()
        assert torch.isclose(signal**2 + sigma**2, torch.tensor(1.0))
    noise = (kept.x[2] - signal * kept.x0[1])[:, :, held:]
    torch.testing.assert_close(noise, sigma * replaced.x[2][:, :, held:])


def test_latents_of_the_caller_stay_as_they_are():
    """LTX draws its noise before it knows its steps, and takes the caller's latents without a copy."""
    pipe, run = pipeline("ltx"), recorded("ltx")
    mine = pipe._pack_latents(run.x[0])
    before = mine.clone()
    assert torch.equal(recorded("ltx", latents=mine).latents, run.latents)
    noisy = recorded("ltx", noise_at_step(0), latents=mine)
    assert torch.equal(mine, before) and relative(noisy.latents, run.latents) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ltx", "hunyuan_replace", "hunyuan_concat"])
def test_unipc_does_not_undo_the_noise(kind):
    pipe, change = families.build(kind), []
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    for scheduler in (FlowMatchEulerDiscreteScheduler(shift=3.0), unipc):
        pipe.scheduler = scheduler
        clean = recorded(kind, pipe=pipe, steps=8)
        noisy = recorded(kind, noise_at_step(4), pipe=pipe, steps=8)
        change.append(relative(noisy.latents, clean.latents))
    assert change[1] > 0.8 * change[0] > 0.2


def test_dpm_keeps_late_noise_and_forgets_early_noise_by_itself():
    """It puts fresh noise in the place of the old at every step, so that only DDIM is a test of robustness."""
    late, early = [], []
    for kind in ("cogvideox_ddim", "cogvideox_dpm"):
        clean = recorded(kind).latents
        late.append(relative(recorded(kind, noise_at_step(3)).latents, clean))
        early.append(relative(recorded(kind, noise_at_step(0)).latents, clean))
    assert late[1] == pytest.approx(late[0], rel=0.2) and late[1] > 1
    assert early[0] > 1 and early[1] < 0.1


def test_the_memory_of_dpm_does_not_reach_across_an_edit():
    """The edited step is of first order, and the random numbers of all later steps are those of the plain run."""
    kind, pipe, states = "cogvideox_dpm", pipeline("cogvideox_dpm"), []

    def look(pipe, step, timestep, tensors):
        states.append(arguments["generator"].get_state())
        return {}

    ends = []
    for edits in ((), (noise_at(2, frame=1),)):
        arguments = families.call(kind, callback_on_step_end=look, steps=5)
        with record(pipe) as run, inject(pipe, *edits) if edits else record(pipe):
            pipe(**arguments)
        ends.append(arguments["generator"].get_state())
    assert torch.equal(*ends)
    scheduler, generator = CogVideoXDPMScheduler.from_config(pipe.scheduler.config), torch.Generator()
    scheduler.set_timesteps(5)
    generator.set_state(states[5 + 1])
    timesteps, x, v = scheduler.timesteps, run.x[2].transpose(1, 2), run.v[2].transpose(1, 2)
    torch.randn(x.shape, generator=generator)  # a multistep step draws twice and uses the second
    expected, _ = scheduler.step(v, None, timesteps[2], timesteps[1], x, generator=generator)
    torch.testing.assert_close(run.x[3], expected.transpose(1, 2), atol=1e-5, rtol=0)


@every_kind
def test_block_states_have_the_pipelines_grid_and_branch(kind):
    pipe = pipeline(kind)
    with calls_of(blocks(pipe.transformer)[-1]) as calls:
        with capture(pipe) as maps, capture(pipe, reduce=raw, branch="uncond", layers=2) as states:
            pipe(**families.call(kind))
    seen = [output if kind == "ltx" else output[0] for _, output in calls]
    assert maps.grid == GRID[kind] and maps.layers == list(range(families.LAYERS)) and maps.steps == list(range(STEPS))
    for step in range(STEPS):
        if kind.startswith("hunyuan"):
            cond, uncond = seen[2 * step : 2 * step + 2]
        else:
            uncond, cond = seen[step].chunk(2)
        assert torch.equal(maps["transformer", step, 2], energy(cond, GRID[kind]))
        assert torch.equal(states["transformer", step, 2], uncond)
    assert maps.stack().shape == (STEPS, families.LAYERS, 1, *GRID[kind])


@every_kind
def test_the_positive_branch_knows_nothing_of_the_negative_prompt(kind):
    pipe, found = pipeline(kind), {}
    for negative in (families.NEGATIVE, "left right up"):
        with capture(pipe, steps=0) as cond, capture(pipe, steps=0, branch="uncond") as uncond:
            pipe(**families.call(kind, negative_prompt=negative))
        found[negative] = cond.stack(), uncond.stack()
    (cond, uncond), (other_cond, other_uncond) = found.values()
    torch.testing.assert_close(cond, other_cond, atol=1e-6, rtol=0)
    assert relative(other_uncond, uncond) > 1e-4


class Poke(Tap):
    """Changes one latent pixel before step 0."""

    def __init__(self, place):
        self.place = place

    def edit(self, hub, step, x):
        if step > 0:
            return None
        x = x.clone()
        x[:, :, *self.place] += 1.0
        return x, "poke"


@every_kind
def test_the_map_shows_a_change_where_it_is(kind):
    """Inputs of block 0 are embedded patches that have not met yet."""
    pipe, place = pipeline(kind), (2, 1, 3)
    with capture(pipe, layers=0, steps=0, inputs=True) as before:
        pipe(**families.call(kind))
    with capture(pipe, layers=0, steps=0, inputs=True) as after, tapped(pipe, Poke(place)):
        pipe(**families.call(kind))
    change = (after.inputs["transformer", 0, 0] - before.inputs["transformer", 0, 0])[0].abs() > 1e-6
    assert change.nonzero().tolist() == [[n // p for n, p in zip(place, PATCH[kind], strict=True)]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*families.KINDS, "ltx_timed"])
def test_decode_gives_the_pipelines_own_pixels(kind, tmp_path):
    pipe = families.build(kind) if kind == "ltx_timed" else pipeline(kind)
    with record(pipe) as run:
        film = pipe(**families.call(kind, output_type="np")).frames
    frames = 5 if kind == "hunyuan_concat" else 9
    pixels = run.decode([0, -1])
    assert pixels.shape[:3] == (2, 1, frames) and pixels.shape[-1] == 3
    np.testing.assert_allclose(pixels[1], film, atol=1e-4)
    again = Run.load(run.save(tmp_path), pipe)
    assert torch.equal(again.decode([0, -1]), pixels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESUMABLE)
def test_resume_and_sweeps_equal_full_runs(kind):
    pipe, run = pipeline(kind), recorded(kind)
    for step in (0, 2):
        with record(pipe) as rest:
            resume(pipe, run, step, **families.call(kind))
        assert torch.equal(rest.latents, run.latents) and list(rest.x) == list(range(step, STEPS))
        assert torch.equal(rest.x[step], run.x[step])
    for edit in (noise_at_step(2), renoise(1), noise_at(3, frame=1)):
        with record(pipe) as swept:
            list(inject_each(pipe, run, [edit], **families.call(kind)))
        assert torch.equal(swept.latents, recorded(kind, edit).latents), edit


# HunyuanVideo's pipeline rounds the timestep as its latents are, which a call begins with in float32
@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in RESUMABLE if not kind.startswith("hunyuan")])
def test_a_sweep_in_bfloat16_equals_full_runs(kind):
    """What is put in at the step a call begins with is rounded as the states of a whole call are."""
    pipe = families.build(kind, torch.bfloat16)
    run = recorded(kind, pipe=pipe)
    for edit in (noise_at_step(2), renoise(1)):
        with record(pipe) as swept:
            list(inject_each(pipe, run, [edit], **families.call(kind)))
        assert torch.equal(swept.latents, recorded(kind, edit, pipe=pipe).latents), edit


def test_a_run_that_draws_noise_at_every_step_is_not_resumed():
    run = recorded("cogvideox_dpm")
    with pytest.raises(ValueError, match="CogVideoXDPMScheduler draws noise at every step"):
        resume(pipeline("cogvideox_dpm"), run, 2, **families.call("cogvideox_dpm"))


@tiny.every(kind=["ltx", "cogvideox_ddim", "hunyuan_replace"])
def test_a_batch_equals_its_members(kind):
    pipe, prompts = pipeline(kind), ["the red ball moves", "the green robot moves"]
    changes = {"negative_prompt": None} if kind == "hunyuan_replace" else {}  # the pipeline takes it for one video only
    with record(pipe) as both, capture(pipe, reduce=raw, steps=0) as states:
        pipe(**families.call(kind, prompts, seed=[1, 2], **changes))
    for row, prompt in enumerate(prompts):
        with record(pipe) as alone, capture(pipe, reduce=raw, steps=0) as single:
            pipe(**families.call(kind, [prompt], seed=[row + 1], **changes))
        torch.testing.assert_close(both.x0.stack()[:, row], alone.x0.stack()[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(states.stack()[:, :, row], single.stack()[:, :, 0], atol=1e-4, rtol=0)


@every_kind
def test_all_is_undone_after_an_exception(kind):
    pipe = pipeline(kind)
    plain = pipe(**families.call(kind)).frames
    before = (
        type(pipe),
        type(pipe.scheduler),
        set(vars(pipe)),
        set(vars(pipe.scheduler)),
        set(vars(pipe.transformer)),
    )
    fail = blocks(pipe.transformer)[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), record(pipe), inject(pipe, noise_at_step(0)), capture(pipe):
        pipe(**families.call(kind))
    fail.remove()
    after = (
        type(pipe),
        type(pipe.scheduler),
        set(vars(pipe)),
        set(vars(pipe.scheduler)),
        set(vars(pipe.transformer)),
    )
    assert after == before
    parts = [pipe.transformer, *blocks(pipe.transformer)]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    assert torch.equal(pipe(**families.call(kind)).frames, plain)


def test_a_run_without_guidance_has_one_branch():
    for kind, unguided in (("ltx", {"guidance_scale": 1.0}), ("hunyuan_replace", {"negative_prompt": None})):
        pipe = pipeline(kind)
        with capture(pipe, reduce=raw) as states:
            pipe(**families.call(kind, **unguided))
        assert states["transformer", 0, 0].shape[:2] == (1, np.prod(GRID[kind]))
        with pytest.raises(ValueError, match="no branch 'uncond': with .* a run has only the branch 'cond'"):
            with capture(pipe, branch="uncond"):
                pipe(**families.call(kind, **unguided))


def test_what_does_not_work_is_refused_in_one_sentence():
    names = "WanImageToVideoPipeline, LTX.*, CogVideoX.* or HunyuanVideoImageToVideoPipeline, not Linear"
    with pytest.raises(TypeError, match=names):
        family_of(torch.nn.Linear(1, 1))
    pipe = pipeline("ltx")
    for context in (swap(pipe, 1, {1: 0}), ensemble(pipe, layers=1, steps=0), average(pipe, "x0", 1)):
        with (
            pytest.raises(TypeError, match="works on a WanImageToVideoPipeline only, not on a LTXImage"),
            context,
        ):
            pass
    with pytest.raises(TypeError, match="use_preset works on a WanImageToVideoPipeline only"):
        use_preset(pipe, "paper")
    with pytest.raises(TypeError, match="from_noise works on a WanImageToVideoPipeline only"):
        from_noise(pipe, noise_at_step(1), **families.call("ltx"))
    with pytest.raises(ValueError, match=r"no block 3: HunyuanVideoTransformer3DModel has 3 blocks \(0\.\.2\)"):
        with capture(pipeline("hunyuan_concat"), layers=3):
            pass
    with pytest.raises(ValueError, match="num_frames must be 4k \\+ 1"):
        recorded("ltx", num_frames=8)
    pipe = families.build("cogvideox_ddim")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with (
        pytest.raises(ValueError, match="FlowMatchEulerDisc.* is not a scheduler of CogVideoX"),
        record(pipe),
    ):
        pass
    pipe.scheduler = CogVideoXDDIMScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match="use CogVideoXDDIMScheduler or .* with v_prediction"), record(pipe):
        pass


def test_a_forward_of_ones_own_is_not_taken_for_the_pipelines():
    """Outside a call it is no state of a run; between steps it would shift the branches, and that is refused."""
    pipe = pipeline("hunyuan_concat")
    with capture(pipe) as maps, calls_of(pipe.transformer) as calls:
        pipe(**families.call("hunyuan_concat"))
        kept = calls[0][0]
        with torch.no_grad():
            pipe.transformer(**kept)
    assert len(maps) == STEPS * families.LAYERS

    def again(pipe, step, timestep, tensors):
        pipe.transformer(**kept)
        return {}

    with (
        pytest.raises(RuntimeError, match="the transformer ran more often than the pipeline does"),
        capture(pipe),
    ):
        pipe(**families.call("hunyuan_concat", callback_on_step_end=again))


def test_every_supported_pipeline_is_tested_here():
    tested = {type(pipeline(kind)) for kind in families.KINDS} | {type(tiny.build("wan21"))}
    assert tested == {family.pipeline for family in FAMILIES}
    assert list(experts(pipeline("ltx"))) == ["transformer"]
