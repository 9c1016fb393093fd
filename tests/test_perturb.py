"""Score tables and dissimilarity maps of disturbed runs, on a tiny untrained pipeline and on made films."""

import numpy as np
import pytest
import torch

import cosutils as cos
import tiny
from cosutils.measures import perturb
from cosutils.measures.perturb import Propagation, Runs, edits, parts, pixel_frames
from cosutils.mini import tasks
from cosutils.mini.model import build_pipeline, build_transformer
from cosutils.pipelines.loading import use_preset


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = build_pipeline(tiny.codec(), build_transformer(layers=2, width=32))
    pipe.set_progress_bar_config(disable=True)
    return use_preset(pipe, "mini")


@pytest.fixture(scope="module")
def maze():
    return tasks.maze.sample(1)


def made(falls, steps=4, frames=3):
    return Runs(tasks.maze.sample(0), steps, frames, 1.0, falls, {})


def test_latent_frames_share_out_the_pixel_frames(pipe):
    found = [list(pixel_frames(k)) for k in range(5)]
    assert found[0] == [0] and found[1] == [1, 2, 3, 4] and np.concatenate(found).tolist() == list(range(17))
    assert [*pixel_frames(2, stride=2)] == [3, 4]


def test_noise_in_a_latent_frame_changes_its_own_pixels_and_no_others(pipe, maze):
    latents = pipe.vae.encode_ids(torch.from_numpy(maze.ids[None]))
    run = cos.Run(pipe=pipe, info={"num_frames": len(maze.ids)})
    run.x0[0], run.x0[1] = latents, latents.clone()
    run.x0[1][:, :, 2] += 1
    before, after = run.decode()[:, 0].numpy()
    changed = np.flatnonzero(abs(before - after).max((1, 2, 3)) > 1e-4)
    assert changed.tolist() == list(pixel_frames(2))


def test_parts_of_a_right_film_are_all_one_and_noise_in_some_frames_hurts_only_those(maze):
    assert parts(maze, maze.video) == dict.fromkeys(("whole", "answer", "motion", "background", "others"), 1)
    film = maze.video.copy()
    film[pixel_frames(2)] = np.random.default_rng(0).random(film[pixel_frames(2)].shape)
    found = parts(maze, film, pixel_frames(2))
    assert found["answer"] == found["motion"] == found["others"] == 1
    assert found["own"] < 0.3 and found["whole"] == maze.score(film).total < 1
    assert parts(maze, film)["motion"] < 1  # not kept apart, they count


def test_a_noised_last_frame_leaves_the_motion_alone(maze):
    film = maze.video.copy()
    film[pixel_frames(4)] = 0.5
    found = parts(maze, film, pixel_frames(4))
    assert "answer" not in found and found["others"] == found["motion"] == 1 and found["whole"] == 0
    assert "own" not in parts(maze, film, pixel_frames(0))
    with pytest.raises(ValueError, match=r"all of the scored frames 1\.\.16 are disturbed"):
        parts(maze, film, range(17))


def test_the_score_of_all_frames_is_the_samples_own():
    sample, other = tasks.tictactoe.sample(3), tasks.tictactoe.sample(4)
    film = 0.6 * sample.video + 0.4 * other.video
    found = parts(sample, film)
    assert found["whole"] == found["others"] == sample.score(film).total
    assert found["answer"] == sample.score(film).parts["answer"]


def test_edits_name_every_disturbance_once():
    found = edits([0, 2], [1], cells=[(2, 1)], renoised_frames=[1], seed=5)
    assert found == [
        cos.noise_at_step(0, 5), cos.noise_at_step(2, 5), cos.renoise(2, 5), cos.noise_at_frame(1, 5),
        cos.noise_at(2, 1, 5), cos.Edit(None, 1, 5, keep_estimate=True),
    ]  # fmt: skip


def test_disturb_scores_what_full_calls_under_inject_give(pipe, maze):
    todo = edits([0, 2], [0, 1, 4], cells=[(2, 1)])
    runs = perturb.disturb(pipe, maze, todo, seed=3, num_inference_steps=4)
    assert (runs.steps, runs.frames, set(runs.falls)) == (4, 5, set(todo))
    call = maze.inputs | cos.settings(pipe) | dict(num_inference_steps=4, output_type="np")
    plain = pipe(**call, generator=cos.seeded(3)).frames[0]
    assert runs.plain == maze.score(plain).total
    for edit in (cos.noise_at_step(2), cos.noise_at_frame(1)):
        with cos.inject(pipe, edit):
            film = pipe(**call, generator=cos.seeded(3)).frames[0]
        assert runs.falls[edit]["whole"] == maze.score(plain).total - maze.score(film).total
    assert {"own", "answer"} <= set(runs.falls[cos.noise_at(2, 1)])
    assert "answer" not in runs.falls[cos.noise_at_frame(4)] and "own" not in runs.falls[cos.noise_at_frame(0)]


def test_a_restart_is_a_plain_run_of_the_steps_that_are_left(pipe, maze):
    runs = perturb.disturb(pipe, maze, edits([0, 3], []), seed=3, num_inference_steps=4)
    call = maze.inputs | cos.settings(pipe) | dict(num_inference_steps=1, output_type="np")
    film = pipe(**call, generator=cos.seeded(3)).frames[0]
    assert runs.restarts == {3: maze.score(film).total}


def test_the_background_is_what_no_answer_touches(maze):
    walked = maze.video.copy()
    walked[-1] = cos.mini.world.draw(list(maze.options.values())[-1])
    assert parts(maze, walked)["background"] == 1  # a wrong answer is not a spoiled picture
    walked[1:] = np.random.default_rng(0).random(walked[1:].shape)
    assert parts(maze, walked)["background"] < 0.3


def test_tables_and_measures_of_made_falls():
    def whole(value):
        return {"whole": value, "others": value}

    falls = {
        cos.noise_at_step(0): whole(0.9), cos.noise_at_step(1): whole(0.2), cos.noise_at_step(3): whole(0.4),
        cos.renoise(1): whole(0.0), cos.renoise(3): whole(0.1),
        cos.noise_at_frame(0): whole(0.9), cos.noise_at_frame(1): {"whole": 0.5, "others": 0.1, "own": 0.8},
        cos.noise_at_frame(2): {"whole": 0.7, "others": 0.3, "own": 0.8},
        cos.Edit(None, 1, 0, True): whole(0.05), cos.noise_at(3, 1): {"whole": 0.3, "others": 0.2, "own": 0.6},
    }  # fmt: skip
    runs = [made(falls), made(falls)]
    assert {k: v.tolist() for k, v in perturb.by_step(runs).items()} == {
        0: [0.9] * 2,
        1: [0.2] * 2,
        3: [0.4] * 2,
    }
    assert list(perturb.by_step(runs, renoised=True)) == [1, 3]
    assert [v[0] for v in perturb.by_frame(runs).values()] == [0.9, 0.1, 0.3]
    assert np.isnan(perturb.by_frame(runs, "own")[0]).all()
    assert perturb.by_frame(runs, "whole", renoised=True)[1].tolist() == [0.05] * 2
    cells = perturb.by_cell(runs, "own")
    assert cells.shape == (2, 4, 3) and cells[0, 3, 1] == 0.6 and np.isfinite(cells).sum() == 2
    found = {name: values[0] for name, values in perturb.measures(runs).items()}
    assert found == pytest.approx(dict(
        step_damage=0.3, frame_damage=0.2, step_minus_frame=0.1, cell_gap=0.3 / 3 - 0.2 / 4, renoise_damage=0.05
    ))  # fmt: skip


def test_dissimilarity_is_none_for_rotated_tokens_and_much_for_shuffled_ones():
    tokens = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert perturb.dissimilarity(tokens, 3 * tokens @ turn) == pytest.approx(0, abs=1e-5)
    assert (perturb.dissimilarity(tokens, tokens.flip(1)) > 0.9).all()


def test_propagation_compares_with_the_plain_run_from_the_disturbed_step_on(pipe, maze):
    found = perturb.propagation(pipe, maze, [0, 2], [2], layers=[1], seed=3, num_inference_steps=4)
    assert set(found.noise) == set(found.renoise) == {"layer 1", "estimate"}
    assert found.plain["layer 1"].shape == (4, 125, 32) and found.plain["estimate"].shape == (4, 500, 16)
    swept = np.isfinite(found.noise["estimate"])
    assert swept.tolist() == [[True] * 4, [False] * 4, [False, False, True, True], [False] * 4]
    assert np.isfinite(found.renoise["layer 1"]).sum() == 2
    call = maze.inputs | cos.settings(pipe) | dict(num_inference_steps=4, output_type="latent")
    with cos.inject(pipe, cos.noise_at_step(2, 3)), cos.record(pipe) as run:
        pipe(**call, generator=cos.seeded(3))
    rows = run.x0[3][0].flatten(1).T
    assert found.noise["estimate"][2, 3] == pytest.approx(1 - cos.linear_cka(found.plain["estimate"][3], rows))
    assert len(found.trace.evidence) == 4
    middle = perturb.propagation(pipe, maze, [3], num_inference_steps=4)
    assert set(middle.noise) == {"layer 1", "estimate"}


def test_a_peak_is_picked_on_the_other_runs():
    ends = np.array([[0.0, np.nan, 0.9, 0.1], [0.0, np.nan, 0.1, 0.8], [0.0, np.nan, 0.2, 0.7]])
    assert perturb.peaks(ends).tolist() == [3, 2, 2]
    with pytest.raises(ValueError, match=r"at least 2 runs \(runs, steps\), got \(1, 4\)"):
        perturb.peaks(ends[:1])


def test_unrelated_compares_each_puzzle_with_the_next(pipe):
    flows = [perturb.propagation(pipe, tasks.maze.sample(k), [1], num_inference_steps=2) for k in range(3)]
    found = perturb.unrelated(flows, "estimate")
    assert found.shape == (3, 2) and (found > 0).all()
    assert found[2] == pytest.approx(perturb.dissimilarity(flows[2].plain["estimate"], flows[0].plain["estimate"]))
    with pytest.raises(ValueError, match="at least 2 puzzles, got 1"):
        perturb.unrelated(flows[:1], "estimate")
    assert isinstance(flows[0], Propagation)
