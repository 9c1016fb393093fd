"""The schedules are the authors', to 1e-6, also inside the stock pipeline."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

import tiny
from cosutils.hooks.record import record
from cosutils.pipelines.loading import settings, use_preset
from cosutils.pipelines.schedule import PRESETS, ExactEulerScheduler, flow_sigmas, preset, scheduler


def authors_sigmas(steps, shift):
    """The released sampler's lines: linspace(1, 0, N + 1)[:-1], shifted once."""
    sigmas = torch.linspace(1.0, 0.0, steps + 1)[:-1]
    return shift * sigmas / (1 + (shift - 1) * sigmas)


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_sigmas_are_the_authors(steps, shift):
    ours = ExactEulerScheduler(shift=shift)
    ours.set_timesteps(steps)
    for sigmas in (flow_sigmas(steps, shift), ours.sigmas):
        assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0
        np.testing.assert_allclose(sigmas[:-1], authors_sigmas(steps, shift), atol=1e-6)
    np.testing.assert_allclose(ours.timesteps, 1000 * authors_sigmas(steps, shift), atol=1e-3)


def test_numbers_of_numpy_are_numbers():
    ours = ExactEulerScheduler(shift=np.float32(5))
    ours.set_timesteps(np.int64(4))
    assert torch.equal(ours.sigmas, flow_sigmas(np.int32(4), 5.0))


def test_the_numbers_of_the_four_step_models():
    np.testing.assert_allclose(flow_sigmas(4, 5.0), [1, 0.9375, 0.833333, 0.625, 0], atol=1e-6)


def test_diffusers_own_schedule_is_shifted_twice():
    """Why there is a scheduler of ours; fails when diffusers is fixed."""
    stock = FlowMatchEulerDiscreteScheduler(shift=5.0)
    stock.set_timesteps(50)
    assert stock.sigmas[-2] == pytest.approx(0.0244, abs=1e-3)
    assert flow_sigmas(50, 5.0)[-2] == pytest.approx(0.0926, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("timestep_dtype", ["float32", "bfloat16"])
def test_the_stock_pipeline_runs_on_it(timestep_dtype):
    pipe = tiny.build("a14b")
    pipe.scheduler = ExactEulerScheduler(shift=5.0, timestep_dtype=timestep_dtype)
    plain = pipe(**tiny.call(steps=50)).frames
    told = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs["timestep"][0].item()), with_kwargs=True
    )
    with record(pipe) as run:
        assert torch.equal(pipe(**tiny.call(steps=50)).frames, plain)
    np.testing.assert_allclose(run.sigmas[:-1], authors_sigmas(50, 5.0), atol=1e-6)
    exact = 1000 * authors_sigmas(50, 5.0)[:21]
    expected = exact.bfloat16().float() if timestep_dtype == "bfloat16" else exact
    np.testing.assert_allclose(told[::2], expected, atol=1e-3)  # 21 high-noise steps, as in the paper


@pytest.mark.parametrize(("name", "high"), [("paper", 21), ("distill4", 2)])
def test_number_of_high_noise_steps(name, high):
    row = preset(name)
    assert int((flow_sigmas(row.steps, row.shift)[:-1] >= row.boundary).sum()) == high


def shipped(pipe):
    """What a preset may change."""
    pipe.scheduler.set_timesteps(7)
    return type(pipe.scheduler), dict(pipe.scheduler.config), pipe.scheduler.sigmas.tolist(), pipe.config.boundary_ratio


@pytest.mark.parametrize("solver", tiny.SOLVERS)
@pytest.mark.parametrize("boundary", [None, 0.8])
@pytest.mark.filterwarnings("ignore:preset 'hf_default' leaves two experts without a boundary")
def test_presets_leave_nothing_behind(solver, boundary):
    pipe = tiny.build("a14b", solver)
    pipe.register_to_config(boundary_ratio=boundary)
    before = shipped(pipe)
    for name in ("paper", "wan_official", "distill4", "hf_default", "paper"):
        assert use_preset(pipe, name).config.boundary_ratio == (PRESETS[name].boundary or boundary)
    pipe.scheduler.set_shift(9.0)
    assert shipped(use_preset(pipe, "hf_default")) == before
    pipe.scheduler = ExactEulerScheduler(shift=7.0)
    with pytest.warns(UserWarning, match="preset 'hf_default' replaces the ExactEulerScheduler set on this pipeline"):
        use_preset(pipe, "hf_default")
    assert shipped(pipe) == before


def test_a_preset_that_cannot_take_effect_says_so():
    two = tiny.build("a14b")
    two.register_to_config(boundary_ratio=None)
    with pytest.warns(UserWarning, match="'hf_default' leaves two experts without a boundary: only the first will run"):
        use_preset(two, "hf_default")
    one = tiny.build("ti2v5b")
    with pytest.warns(UserWarning, match="preset 'wan_official' has boundary=0.9 and guidance_2=3.5 without effect"):
        use_preset(one, "wan_official")
    assert one.config.boundary_ratio is None and "guidance_scale_2" not in settings(one)
    foreign = tiny.build("a14b")
    foreign.scheduler = DDIMScheduler()
    use_preset(foreign, "paper")  # as long as the shipped one is not asked for
    with pytest.raises(ValueError, match="DDIMScheduler is not a flow-matching"):
        use_preset(foreign, "hf_default")
    assert isinstance(foreign.scheduler, ExactEulerScheduler) and foreign._cos_preset.name == "paper"


def test_presets_are_a_frozen_table():
    assert list(PRESETS) == ["mini", "paper", "wan_official", "hf_default", "distill4", "vbvr_pro"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["paper"].steps = 3
    assert scheduler(PRESETS["hf_default"]) is None
    assert scheduler(PRESETS["wan_official"]).config.flow_shift == 5.0
    with pytest.raises(ValueError, match="unknown preset 'fast': choose from mini, paper, wan_official, hf"):
        preset("fast")


@pytest.mark.parametrize(
    ("steps", "shift", "error", "message"),
    [
        (0, 3.0, ValueError, "steps must be 1 or more, got 0"),
        (2.5, 3.0, TypeError, "steps must be an integer, got 2.5"),
        (4, float("inf"), ValueError, "shift must be positive and finite, got inf"),
        (4, 0.0, ValueError, r"shift must be positive and finite, got 0\.0"),
    ],
)
def test_bad_schedules_are_refused(steps, shift, error, message):
    with pytest.raises(error, match=message):
        flow_sigmas(steps, shift)
    with pytest.raises(error, match=message):
        ExactEulerScheduler(shift=shift).set_timesteps(steps)


def test_bad_timestep_dtype_is_refused():
    with pytest.raises(ValueError, match="timestep_dtype must be 'float32' or 'bfloat16', got 'float16'"):
        ExactEulerScheduler(timestep_dtype="float16")
