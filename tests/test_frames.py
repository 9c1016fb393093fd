"""Self-attention blocked between latent frames, on a tiny untrained pipeline."""

import numpy as np
import pytest
import torch

import tiny
from cosutils.hooks.record import record, resume
from cosutils.measures.frames import RULES, between_frames, under_rules, visible
from cosutils.mini import tasks
from cosutils.pipelines.loading import settings

CALL = dict(num_inference_steps=1)


@pytest.fixture(scope="module")
def pipe():
    return tiny.embedded()


def estimate(pipe, latents):
    with record(pipe, keep=("v",)) as run:
        pipe(**tasks.maze.sample(0).inputs | settings(pipe) | CALL, latents=latents, output_type="latent")
    return run.v[0]


def test_frames_see_themselves_the_given_one_and_what_the_rule_allows():
    table = {
        "earlier": [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
        "later": [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1]],
        "apart": [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]],
    }
    assert {rule: visible(4, rule).int().tolist() for rule in RULES} == table
    with pytest.raises(ValueError, match="no rule 'all': allowed are 'earlier', 'later', 'apart'"):
        visible(4, "all")


@pytest.mark.parametrize("rule", RULES)
def test_noise_in_one_frame_reaches_the_frames_that_may_see_it_and_no_other(pipe, rule):
    latents = torch.randn(1, pipe.transformer.config.out_channels, 5, 10, 10, generator=torch.manual_seed(1))
    other = latents.clone()
    other[:, :, 2] += 1
    with between_frames(pipe, rule):
        gap = (estimate(pipe, latents) - estimate(pipe, other)).abs().amax((0, 1, 3, 4))
    assert (gap > 1e-6).tolist() == visible(5, rule)[:, 2].tolist()
    free = (estimate(pipe, latents) - estimate(pipe, other)).abs().amax((0, 1, 3, 4))
    assert (free > 1e-6).all()  # and afterwards all frames see each other again


def test_a_step_that_no_call_reaches_and_compiled_blocks_are_refused():
    pipe = tiny.build("a14b")
    with record(pipe) as run:
        pipe(**tiny.call())
    with pytest.raises(RuntimeError, match=r"between_frames did not act: no call reached steps \[0\]"):
        with between_frames(pipe, "apart", [0, 3]):
            resume(pipe, run, 2, **tiny.call())
    pipe.transformer.compile_repeated_blocks(backend="eager")
    with pytest.raises(ValueError, match="compiled, which hides part 'self_attention'"):
        with between_frames(pipe, "apart"):
            pytest.fail("the block was entered")


def test_every_rule_is_scored_beside_the_plain_film(pipe):
    sample = tasks.maze.sample(0)
    found = under_rules(pipe, sample, seed=3, **CALL)
    assert list(found) == ["all", *RULES]
    plain = pipe(**sample.inputs | settings(pipe) | CALL, generator=torch.Generator().manual_seed(3), output_type="np")
    assert found["all"][0] == sample.score(plain.frames[0])
    assert isinstance(found["apart"][1], (bool, np.bool_))
