"""What a spec does to a run: exchanged conditions, the truth's head start, frames that cannot see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import cosutils as cos
import tiny
from cosutils.measures.frames import between_frames
from cosutils.scale.conditions import Exchanged, Narrowed, Truth, films, steps_computed, treatment
from cosutils.scale.spec import Spec

PUZZLE = {"model": "cos-mini-two", "preset": "mini", "task": "find_shape", "seed": 3, "steps": 4}


@pytest.fixture(scope="module")
def pipe():
    return cos.load("cos-mini-two")


@pytest.fixture(scope="module")
def sample():
    return cos.tasks.find_shape.sample(3)


def run(pipe, sample, condition):
    """Film and recording of a run of 4 steps, estimates kept."""
    call = cos.settings(pipe) | sample.inputs | {"num_inference_steps": 4}
    (film,), found = films(pipe, treatment(condition, 4, 5, 0), 0, call, True, sample)
    return film, found


def first_estimate(pipe, x):
    """x0hat of the first of two steps from these latents, under whatever is open."""
    with cos.record(pipe) as found:
        pipe(**tiny.call(steps=2), latents=x)
    return found.x0[0]


@tiny.every(kind=["a14b", "wan21"])
@pytest.mark.parametrize(
    ("rule", "unmoved"), [("apart", [0, 1]), ("earlier", [0, 1]), ("later", [0])], ids=lambda one: str(one)
)
def test_what_changes_in_the_last_frame_reaches_only_the_frames_that_see_it(kind, rule, unmoved):
    pipe = tiny.build(kind)
    with cos.record(pipe) as plain:
        pipe(**tiny.call(steps=2))
    moved = plain.x[0].clone()
    moved[:, :, 2] += 1  # of three latent frames
    with between_frames(pipe, rule):
        one, other = first_estimate(pipe, plain.x[0]), first_estimate(pipe, moved)
    changed = [bool((one - other)[:, :, frame].abs().max() > 1e-5) for frame in range(3)]
    assert [frame for frame in range(3) if not changed[frame]] == unmoved
    assert not torch.equal(one, plain.x0[0])
    assert torch.equal(first_estimate(pipe, plain.x[0]), plain.x0[0])  # nothing is left behind


def test_frames_are_narrowed_at_their_steps_alone():
    pipe = tiny.build("a14b")
    with cos.record(pipe) as plain:
        pipe(**tiny.call())
    with between_frames(pipe, "apart", steps=[2]), cos.record(pipe) as found:
        pipe(**tiny.call())
    same = [torch.equal(found.v[step], plain.v[step]) for step in range(4)]
    assert same == [True, True, False, False] and torch.equal(found.x[2], plain.x[2])


def test_narrowing_that_cannot_be_is_refused():
    pipe = tiny.build("a14b")
    with pytest.raises(ValueError, match="no rule 'sideways': allowed are 'earlier', 'later', 'apart'"):
        with between_frames(pipe, "sideways"):
            pass
    with pytest.raises(ValueError, match="no step 9 in this call: it has steps 0..4"):
        with between_frames(pipe, "apart", steps=9):
            pipe(**tiny.call())


@pytest.mark.parametrize(
    ("condition", "before", "after"),
    [
        pytest.param("prompt_until 2", {}, {"prompt": ""}, marks=pytest.mark.slow),
        pytest.param("prompt_from 2", {"prompt": ""}, {}, marks=pytest.mark.slow),
        ("prompt_switch 2", {"prompt": "twin"}, {}),
        ("picture_until 2", {}, {"image": "grey"}),
    ],
)
@pytest.mark.filterwarnings("ignore:the tokenizer")
def test_a_condition_is_exchanged_on_the_way(pipe, sample, condition, before, after):
    other = {"": "", "twin": sample.twin().prompt, "grey": Image.new("RGB", sample.image.size, (128, 128, 128))}
    film, found = run(pipe, sample, condition)
    call = cos.settings(pipe) | sample.inputs | {"num_inference_steps": 4, "output_type": "latent"}
    with cos.record(pipe) as whole:
        pipe(**call | {name: other[value] for name, value in before.items()}, generator=cos.seeded(0))
    assert sorted(found.x0) == [0, 1, 2, 3]
    assert all(torch.equal(found.x0[step], whole.x0[step]) for step in (0, 1))
    # the third step by hand: the network on the state of step 2, with all else as a whole run of the other side has it
    given, calls = call | {name: other[value] for name, value in after.items()}, []
    hook = pipe.transformer.register_forward_pre_hook(lambda module, _, named: calls.append(named), with_kwargs=True)
    pipe(**given, generator=cos.seeded(0))
    hook.remove()
    named, x = calls[2], whole.x[2]
    with torch.no_grad():
        channels = torch.cat([x, named["hidden_states"][:, x.shape[1] :]], 1)
        v = pipe.transformer(**named | {"hidden_states": channels})[0]
    assert torch.allclose(found.x0[2], x - whole.sigmas[2] * v, atol=1e-5)
    assert film.shape == sample.video.shape


def test_the_truth_under_noise_is_where_the_run_begins(pipe, sample):
    film, found = run(pipe, sample, "truth 3")
    assert sorted(found.x0) == [3] and steps_computed(Truth(3, 0), 4, True) == 1
    assert sample.score(film).solved
    own, _ = run(pipe, sample, "noise_at_step 3")
    assert not sample.score(own).solved
    far, _ = run(pipe, sample, "truth 0")  # sigma is 1: nothing of the truth is left
    plain, _ = run(pipe, sample, "plain")
    assert np.abs(far - sample.video).mean() > np.abs(film - sample.video).mean()
    assert np.abs(far - plain).mean() < 1e-5  # the same noise as a plain run's


def test_a_solver_with_a_memory_cannot_begin_in_the_truth():
    with pytest.raises(ValueError, match="'truth 2' needs a preset with Euler"):
        films(tiny.build("a14b", "unipc"), Truth(2, 0), 0, tiny.call(), False)


def test_conditions_are_read():
    assert treatment("frames_earlier steps 0-2", 4, 5, 0) == Narrowed("earlier", (0, 1, 2))
    assert treatment("prompt_from 3", 4, 5, 0) == Exchanged("no prompt", 3, before=True)
    assert treatment("truth 0", 4, 5, 7) == Truth(0, 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"condition": "prompt_until 0"}, "an exchange at step 0 leaves nothing of the one side, choose 1 or more"),
        ({"condition": "prompt_until 4"}, "a run of 4 steps has steps 0..3"),
        ({"condition": "frames_apart steps 2-4"}, "step 4 does not exist in a run of 4 steps (0..3)"),
        ({"condition": "frames_sideways steps 2"}, "'frames_later steps S'"),
        ({"condition": "truth 2", "measures": ["commitment"]}, "begins at step 2: no estimate of a step before is"),
        ({"condition": "truth 2", "keep": "steps 1,3"}, "begins at step 2: no estimate of a step before is there"),
        ({"condition": "prompt_switch 2", "task": "reappear"}, "needs a puzzle whose twin has another prompt"),
    ],
)
def test_conditions_that_cannot_be_are_refused_before_anything_is_loaded(change, said):
    with pytest.raises(ValueError) as refused:
        Spec.of(PUZZLE | change)
    assert said in str(refused.value)
