"""Views of block states, and answers kept with them: known states, tiny pipelines, real puzzles of the benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import cosutils as cos
from cosutils import vbvr
from cosutils.films import read_film
from cosutils.pipelines.loading import data_folder
from cosutils.vbvr import views
from cosutils.vbvr.answers import answer, look_at, study
from tiny import build, call

TRUTH = data_folder() / "vbvr-samples" / "ground-truth"
GRID = (3, 2, 4)
STEPS, LAYERS = [0, 2], [1, 3]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def observed():
    """A tiny two-expert run looked at and kept raw: (views by name, raw states, latents)."""
    pipe = build("a14b")
    with (
        cos.capture(pipe, LAYERS, STEPS, cos.raw) as states,
        views.views(pipe, STEPS, LAYERS, count=4) as seen,
    ):
        latents = pipe(**call(steps=3)).frames
    return seen, states, latents


# ---------------------------------------------------------------- change and temporal energy
def test_a_still_film_has_no_change_but_temporal_energy():
    still = normal(2, 1, 8, 5).expand(-1, 3, -1, -1).flatten(1, 2)
    assert torch.equal(views.change(still, GRID), torch.zeros(2, 2))
    assert (views.temporal_energy(cos.energy(still, GRID)) > 0).all()


def test_a_jump_is_seen_at_its_frame_with_its_size():
    jump = torch.zeros(1, 24, 5)
    jump[:, 16:] = 2.0  # from frame 2 on, in all 8 places and 5 channels
    assert views.change(jump, GRID).tolist() == [[0.0, 4.0]]
    assert_close(views.temporal_energy(cos.energy(jump, GRID)), torch.tensor([[0.0, 0.0, 160**0.5]]))


def test_temporal_energy_is_the_norm_of_a_whole_frame():
    states = normal(2, 24, 5)
    expected = torch.linalg.vector_norm(states.unflatten(1, (3, 8)), dim=(2, 3))
    assert_close(views.temporal_energy(cos.energy(states, GRID)), expected)


# ---------------------------------------------------------------- principal components
def rank_three():
    """Tokens (2, 24, 16) around a mean with three components of known scores, largest first, and these scores."""
    axes = torch.linalg.qr(normal(16, 3))[0]
    scores = normal(2, 24, 3, seed=1)
    scores = torch.linalg.qr(scores - scores.mean(1, keepdim=True))[0] * torch.tensor([5.0, 2.0, 1.0])
    peaks = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return scores @ axes.T + normal(16, seed=2), scores * peaks


def test_components_of_a_known_state_are_recovered_with_their_signs():
    states, scores = rank_three()
    found = views.components()(states, GRID)
    assert_close(found, scores.mT.unflatten(2, GRID), atol=1e-4, rtol=1e-4)
    assert_close(views.components()(-states, GRID), -found, atol=1e-4, rtol=1e-4)  # scores turn, axes do not
    assert_close(views.explained(found, views.channel_variance(states, GRID)), torch.ones(2))
    one = views.components(1)(states, GRID)
    assert_close(views.explained(one, views.channel_variance(states, GRID)), torch.full((2,), 25 / 30))


def test_components_agree_with_an_exact_decomposition():
    states = normal(1, 200, 40) * torch.linspace(3, 0.1, 40)
    centred = states - states.mean(1, keepdim=True)
    exact = torch.linalg.svd(centred)[1][0, :3]
    found = views.components()(states, (2, 10, 10)).flatten(2).norm(dim=2)[0]
    assert_close(found, exact, rtol=1e-3, atol=0)


def test_a_state_without_variance_has_dark_colours_and_is_wholly_explained():
    flat = torch.ones(1, 24, 5)
    scores = views.components()(flat, GRID)
    assert not scores.any() and not views.colours(scores).any()
    assert views.explained(scores, views.channel_variance(flat, GRID)).tolist() == [1.0]


def test_colours_fill_the_range_and_massive_tokens_do_not_squeeze_the_rest():
    scores = normal(2, 3, 5, 5, 5)
    scores[0, 0, 0, 0, 0] = 1e4
    plain, cut = views.colours(scores, cut=0), views.colours(scores)
    assert plain.shape == (2, 5, 5, 5, 3) and plain.min() == 0 and plain.max() == 1
    assert np.median(plain[0, ..., 0]) < 0.01 and 0.3 < np.median(cut[0, ..., 0]) < 0.7
    assert np.allclose(views.colours(3 * scores[1] + 7), cut[1], atol=1e-5)


# ---------------------------------------------------------------- channels
def test_channels_of_largest_variance_are_found_in_every_state():
    states = normal(2, 24, 6) * 0.1
    states[0, :, 4] += torch.arange(24.0)
    states[1, :, 2] += torch.arange(24.0)
    variance = views.channel_variance(states, GRID)
    assert views.largest(variance, 1).tolist() == [[4], [2]]
    top = views.channels(1)(states, GRID)
    assert torch.equal(top[0, 0].flatten(), states[0, :, 4]) and torch.equal(top[1, 0].flatten(), states[1, :, 2])
    named = views.channels([5, 0])(states, GRID)
    assert torch.equal(named, states[..., [5, 0]].mT.unflatten(2, GRID))
    assert views.largest(torch.ones(3), 2).tolist() == [0, 1]  # ties by number


# ---------------------------------------------------------------- on a pipeline
def test_reductions_in_a_run_are_those_of_its_raw_states(observed):
    seen, states, _ = observed
    exact = {"energy": cos.energy, "change": views.change, "variance": views.channel_variance}
    exact |= {"channels": views.channels(4), "components": views.components(3)}
    assert set(seen) == set(exact) and states.grid == (3, 1, 2)
    for name, reduce in exact.items():
        assert set(seen[name]) == set(states) and len(states) == len(STEPS) * len(LAYERS)
        for key, state in states.items():
            assert torch.equal(seen[name][key], reduce(state, states.grid)), (name, key)
    shown = views.largest(seen["variance"].stack(), 4)
    for key, state in states.items():
        row, column = STEPS.index(key[1]), LAYERS.index(key[2])
        maps = views.channels(shown[row, column, 0].tolist())(state, states.grid)
        assert torch.equal(maps, seen["channels"][key])  # the variance tells which channels were kept


def test_looking_changes_neither_the_run_nor_the_global_generator(observed):
    state = torch.get_rng_state()
    assert torch.equal(build("a14b")(**call(steps=3)).frames, observed[2])
    views.components()(normal(1, 24, 5), GRID)
    assert torch.equal(torch.get_rng_state(), state)


def test_lower_precision_states_are_reduced_in_float32():
    states = normal(1, 24, 16).bfloat16()
    for reduce in (views.change, views.channel_variance, views.channels(np.int64(2)), views.components()):
        found = reduce(states, GRID)
        assert found.dtype == torch.float32 and torch.equal(found, reduce(states.float(), GRID))


# ---------------------------------------------------------------- pictures
def test_heat_spreads_every_row_over_its_own_range():
    maps = torch.arange(8.0).reshape(2, 2, 2, 1) ** 2
    pictures = views.heat(maps)
    assert pictures.shape == (2, 2, 2, 1, 3)
    assert np.array_equal(pictures[0, 0, 0], pictures[1, 0, 0]) and np.array_equal(pictures[0, 1, 1], pictures[1, 1, 1])
    middle = views.heat(torch.tensor([-4.0, 0.0, 1.0]).reshape(1, 1, 3, 1), "gray", centred=True)[0, 0, :, 0, 0]
    assert middle[0] == 0 and middle[1] == pytest.approx(0.5, abs=0.01) and middle[2] == pytest.approx(0.625, abs=0.01)


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda: views.change(torch.zeros(1, 5, 2), GRID), "grid .3, 2, 4. does not hold 5 tokens"),
        (lambda: views.channels(7)(torch.zeros(1, 24, 6), GRID), "1..6, the number of channels, got 7"),
        (lambda: views.channels([0, 6])(torch.zeros(1, 24, 6), GRID), r"in 0..5 and not be none, got \[0, 6\]"),
        (lambda: views.channels([])(torch.zeros(1, 24, 6), GRID), r"in 0..5 and not be none, got \[\]"),
        (lambda: views.components(6)(torch.zeros(1, 24, 5), GRID), "1..5, the least of tokens and channels, got 6"),
        (lambda: views.colours(torch.zeros(2, 3, 2, 4)), "three components"),
        (lambda: views.colours(torch.zeros(3, 3, 2, 4), cut=0.5), r"share in \[0, 0.5\), got 0.5"),
        (lambda: views.heat(torch.zeros(3, 2, 4)), r"\(rows, columns, h, w\), not \(3, 2, 4\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_sentence(act, words):
    with pytest.raises(ValueError, match=words):
        act()


# ---------------------------------------------------------------- answers kept with their views
@pytest.fixture(scope="module")
def pipe():
    return cos.use_preset(build("a14b"), "hf_default")


@pytest.fixture
def puzzle(pipe):
    return vbvr.read(TRUTH, tasks=["O-59"], pixels=32, frames=5, **vbvr.geometry(pipe))[0]


def run(pipe, puzzle, place, **changes):
    given = dict(steps=STEPS, layers=LAYERS, count=4, num_inference_steps=3, guidance_scale=1.0, max_sequence_length=16)
    return answer(pipe, puzzle, place, **given | changes)


def test_an_answer_lies_in_the_official_layout_with_all_that_was_seen(pipe, puzzle, tmp_path):
    look = run(pipe, puzzle, tmp_path)
    assert look.film == tmp_path / "answers" / f"{puzzle.name}.mp4"
    vbvr.check_answers([puzzle], tmp_path / "answers")
    assert look.answer().shape == (5, 32, 32, 3) and look.step_films([0, -1]).shape == (2, 2, 32, 32, 3)
    assert sorted(path.name for path in look.folder.iterdir()) == [
        "run.json", "step_000.mp4", "step_002.mp4", "views.safetensors",
    ]  # fmt: skip
    assert (look.steps, look.layers) == (STEPS, LAYERS) and look.info["prompt"] == puzzle.prompt
    assert len(look.sigmas) == 3 == len(look.info["timesteps"]) and look.sigmas[0] == 1.0
    shapes = {name: tuple(state.shape) for name, state in look.states.items()}
    assert shapes == {
        "energy": (2, 2, 2, 2, 2), "change": (2, 2, 1), "variance": (2, 2, 24),
        "channels": (2, 2, 4, 2, 2, 2), "components": (2, 2, 3, 2, 2, 2), "steps": (2,), "layers": (2,),
    }  # fmt: skip


@pytest.mark.slow
def test_a_step_film_is_the_decoded_estimate_and_the_last_one_the_answer(pipe, puzzle, tmp_path):
    look = run(pipe, puzzle, tmp_path)
    with cos.record(pipe, keep="x0") as again:
        pipe(**puzzle.inputs, num_inference_steps=3, guidance_scale=1.0, max_sequence_length=16, output_type="latent",
             generator=cos.seeded(1))  # fmt: skip
    estimates = again.decode(STEPS)[:, 0].numpy()
    assert abs(look.step_films() / 255 - estimates).mean() < 0.05  # what H.264 makes of untrained noise
    assert np.array_equal(look.step_films()[-1], look.answer())


@pytest.mark.slow
def test_finished_work_is_skipped_and_unfinished_work_is_done_again(pipe, puzzle, tmp_path):
    look = run(pipe, puzzle, tmp_path)
    before = look.film.stat().st_mtime_ns
    same = run(None, puzzle, tmp_path)  # no pipeline is needed, so none ran
    assert same.film.stat().st_mtime_ns == before and torch.equal(same.states["energy"], look.states["energy"])
    look.film.unlink()  # as if stopped before the end
    with pytest.raises(FileNotFoundError, match="O-59.*/00000 was not answered there"):
        look_at(puzzle, tmp_path)
    assert run(pipe, puzzle, tmp_path).film.is_file()


@pytest.mark.slow
def test_a_custom_puzzle_is_kept_by_its_content(pipe, puzzle, tmp_path):
    sizes = dict(pixels=32, frames=5)
    first, second = (vbvr.custom(puzzle.image, prompt, "mine", **sizes) for prompt in ("Go left.", "Go right."))
    looks = [run(pipe, one, tmp_path, steps=[2], layers=[]) for one in (first, second, first)]
    assert looks[0].folder == looks[2].folder != looks[1].folder and looks[0].folder.name.startswith("mine-")
    assert sorted(path.name for path in looks[1].folder.iterdir()) == [
        "answer.mp4", "run.json", "step_002.mp4", "views.safetensors",
    ]  # fmt: skip
    assert set(looks[0].states) == {"steps", "layers"} and looks[0].layers == [] and looks[0].steps == [2]
    assert not (tmp_path / "answers").exists() and read_film(looks[1].film).shape == (5, 32, 32, 3)


def test_a_step_that_the_run_does_not_have_is_refused_before_anything_is_kept(pipe, puzzle, tmp_path):
    with pytest.raises(ValueError, match="no step 3: this run has 3 steps"):
        run(pipe, puzzle, tmp_path, steps=[0, 3])
    with pytest.raises(ValueError, match="no block 4"):
        run(pipe, puzzle, tmp_path, layers=[4])
    with pytest.raises(KeyError, match="no step 3"):
        run(pipe, puzzle, tmp_path, steps=[3], layers=[])
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into the folder .*file"):
        run(None, puzzle, tmp_path / "file")  # no pipeline is needed to see it


def test_the_answer_to_another_puzzle_of_that_name_is_no_answer(pipe, puzzle, tmp_path):
    run(pipe, puzzle, tmp_path, steps=[2], layers=[])
    other = replace(puzzle, prompt="Do something else.")
    with pytest.raises(ValueError, match="00000.mp4 answers another puzzle of that name"):
        run(pipe, other, tmp_path, steps=[2], layers=[])


def test_other_facts_make_another_folder(tmp_path):
    one, other, again = (study(tmp_path, model="m", steps=steps) for steps in (3, 4, 3))
    assert one == again != other and one.parent == tmp_path
    assert json.loads((one / "study.json").read_text()) == {"model": "m", "steps": 3}
    assert study(tmp_path, steps=3, model="m") == one  # the order of the facts does not count
