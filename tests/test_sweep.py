"""A sweep: one run is done once and named by what decides it, a grid of them survives being stopped at any moment."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import cosutils as cos
from cosutils import vbvr
from cosutils._files import write_json
from cosutils.scale import cluster
from cosutils.scale.conditions import effort
from cosutils.scale.spec import MEASURES, complete, identity, key, run_one
from cosutils.scale.sweep import answers, estimate, main, read, summary, sweep
from tiny import build, image

PUZZLE = {"model": "cos-mini", "preset": "mini", "task": "maze", "seed": 3, "steps": 2}
GRID = {"model": "cos-mini", "preset": "mini", "task": ["maze", "reappear"], "seed": "0..2", "steps": 6,
        "condition": ["plain", "noise_at_step 1..2", "renoise 2"], "measures": ["score", "commitment"],
        "keep": "latents"}  # fmt: skip


def written(folder: Path, grid: dict = GRID, **more) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"grid": grid, "out": str(folder / "out"), **more}, sort_keys=False))
    return path


def files(out: Path) -> dict[str, bytes]:
    """All that a sweep leaves, but for the timings."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("timings/")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The plan of GRID, and what it leaves when every run is done in order in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plan = read(written(folder))
    for spec in plan["specs"]:
        run_one(spec, plan["out"])
    return plan["specs"], plan["out"], summary(plan["specs"], plan["out"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny two-expert pipeline as a folder in diffusers format."""
    folder = tmp_path_factory.mktemp("model")
    build("a14b").save_pretrained(folder)
    return folder


@pytest.fixture
def sample(tmp_path):
    """A sample in the benchmark's layout: 32 x 32 pixels, a true film of 6 frames."""
    folder = tmp_path / "In-Domain_50" / "O-39_maze_data-generator" / "00000"
    folder.mkdir(parents=True)
    image(0, 32, 32).save(folder / "first_frame.png")
    image(1, 32, 32).save(folder / "final_frame.png")
    (folder / "prompt.txt").write_text("the red ball moves\n")
    imageio.mimwrite(folder / "ground_truth.mp4", [np.asarray(image(k, 32, 32)) for k in range(6)], fps=16)
    return folder


def test_a_run_is_the_call_it_describes(tmp_path):
    spec = PUZZLE | {
        "condition": "noise_at_step 1",
        "noise_seed": 5,
        "keep": "latents",
        "measures": ["score", "answer"],
    }
    path = run_one(spec, tmp_path)
    puzzle, pipe = cos.tasks.maze.sample(3), cos.load("cos-mini")
    with cos.inject(pipe, cos.noise_at_step(1, seed=8)), cos.record(pipe) as run:
        call = puzzle.inputs | cos.settings(pipe) | {"num_inference_steps": 2}
        film = pipe(**call, generator=cos.seeded(8), output_type="np").frames[0]
    stored = json.loads(path.read_text())
    score = puzzle.score(film)
    assert stored["values"] == {"answer": score.parts["answer"], "score": score.total}
    assert torch.equal(load_file(path.with_suffix(".safetensors"))["latents"], run.latents)
    assert stored["run"]["seeds"] == [8] and stored["spec"]["steps"] == 2


def test_a_run_with_noise_begins_at_the_noise_and_ends_as_the_full_one(tmp_path):
    spec = PUZZLE | {"steps": 4, "condition": "noise_at_step 3", "keep": "latents", "measures": ["score"]}
    short, full = (run_one(spec | {"measures": names}, tmp_path) for names in (["score"], ["score", "commitment"]))
    one, other = (json.loads(path.read_text()) for path in (short, full))
    assert (one["run"]["first"], other["run"]["first"]) == (3, 0)
    assert one["values"]["score"] == other["values"]["score"]
    latents = [load_file(path.with_suffix(".safetensors"))["latents"] for path in (short, full)]
    assert torch.equal(*latents)


def test_ensembles_are_the_calls_they_describe(tmp_path):
    puzzle, pipe = cos.tasks.maze.sample(3), cos.load("cos-mini")
    call = puzzle.inputs | cos.settings(pipe) | {"num_inference_steps": 3, "output_type": "np"}
    call |= {"prompt": [puzzle.prompt] * 2, "generator": cos.seeded([8, 9])}
    where = {"layers": [2, 4, 5], "steps": [0]}
    with cos.ensemble(pipe, **where):
        films = pipe(**call).frames
    single, _ = cos.merge_then_single(pipe, **where, **call | {"generator": cos.seeded([8, 9])})
    wanted = {"ensemble": films, "merge_then_single": single.frames}
    for name, films in wanted.items():
        spec = PUZZLE | {"steps": 3, "noise_seed": 5, "condition": f"{name} 2 layers 2,4-5 steps 0"}
        spec |= {"measures": ["answer", "last_frame_error", "commitment"], "keep": "latents"}
        path = run_one(spec, tmp_path)
        values = json.loads(path.read_text())["values"]
        assert values["answer"] == pytest.approx(np.mean([puzzle.score(film).parts["answer"] for film in films]))
        assert values["last_frame_error"] == pytest.approx(
            np.mean([np.abs(film[-1] - puzzle.video[-1]).mean() for film in films])
        )
        assert 0 <= values["commitment"] <= 3
        assert len(load_file(path.with_suffix(".safetensors"))["latents"]) == len(films)


def test_the_effort_counts_the_steps_that_are_computed():
    counted = {"plain": 10, "noise_at_step 4": 6, "noise_at_frame 4": 10, "renoise 4": 10,
               "ensemble 3 layers 1 steps 0": 30, "merge_then_single 3 layers 1 steps 0,3": 3 * 4 + 6}  # fmt: skip
    assert {name: effort(complete(PUZZLE | {"steps": 10, "condition": name})) for name in counted} == counted
    assert effort(complete(PUZZLE | {"steps": 10, "condition": "noise_at_step 4", "measures": "commitment"})) == 10


def test_a_puzzle_is_drawn_at_the_size_of_the_spec(model, tmp_path):
    spec = {"model": str(model), "preset": "paper", "task": "maze", "seed": 3, "steps": 1, "keep": "latents"}
    path = run_one(spec | {"size": 160, "frames": 33}, tmp_path)
    assert load_file(path.with_suffix(".safetensors"))["latents"].shape == (1, 4, 9, 20, 20)
    assert key(spec | {"size": 80, "frames": 17}) == key(spec) != key(spec | {"size": 160})
    assert "size" not in complete(spec | {"size": 80})


def test_low_rank_weights_are_loaded_and_named_by_their_content(model, tmp_path):
    pytest.importorskip("peft", reason="low-rank weights need the extra [lora]")
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for number, file in enumerate(files):
        parts = {"lora_A": torch.full((2, 24), 1.0), "lora_B": torch.full((24, 2), 1.0 + number)}
        save_file({f"transformer.blocks.0.attn1.to_q.{part}.weight": w for part, w in parts.items()}, file)
    grid = {"model": str(model), "preset": "paper", "task": "maze", "seed": 3, "steps": 1, "keep": "latents",
            "lora": [None, str(files[0]), str(files[1]), [[str(files[0]), 0.0]]]}  # fmt: skip
    specs = read(written(tmp_path, grid))["specs"]
    assert [spec.get("lora") for spec in specs] == grid["lora"] and "lora" not in specs[0]
    none, a, b, zero = (
        load_file(run_one(spec, tmp_path / "out").with_suffix(".safetensors"))["latents"] for spec in specs
    )
    assert torch.equal(none, zero) and not torch.equal(none, a) and not torch.equal(a, b)
    first = key(specs[1])
    shutil.copy(files[1], files[0])
    assert key(specs[1]) != first
    assert len(summary(specs, tmp_path / "out").splitlines()) == 1 + 2  # the runs with that file are no longer there


def test_finished_work_is_skipped(tmp_path):
    path = run_one(PUZZLE, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert run_one(PUZZLE | {"noise_seed": 0}, tmp_path) == path
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_sample_folder_runs_on_a_model_folder_with_two_experts(model, sample, tmp_path):
    spec = {
        "model": str(model),
        "preset": "paper",
        "sample": str(sample),
        "size": 32,
        "steps": 2,
        "keep": "latents",
    }
    path = run_one(spec, tmp_path / "out")
    stored = json.loads(path.read_text())
    assert (stored["spec"]["size"], stored["spec"]["frames"]) == (
        32,
        9,
    )  # 6 true frames, rounded up to 4k + 1
    assert 0 < stored["values"]["last_frame_error"] < 1
    assert set(stored["run"]["dtype"]) == {"transformer", "transformer_2"} and stored["run"]["boundary"] == 0.875
    assert load_file(path.with_suffix(".safetensors"))["latents"].shape == (1, 4, 3, 4, 4)


def test_a_measure_against_the_true_last_frame(sample):
    (truth,) = vbvr.read(sample.parents[2], pixels=32)
    film = np.zeros((9, 32, 32, 3))
    film[-1] = truth.video[-1]
    assert MEASURES["last_frame_error"](truth, film, None) == 0
    assert MEASURES["last_frame_error"](truth, 1 - film, None) == pytest.approx(np.abs(1 - 2 * film[-1]).mean())


def test_videos_are_laid_out_for_the_official_evaluator(model, sample, tmp_path):
    grid = {"model": str(model), "preset": "paper", "sample": str(sample), "size": 32, "frames": 5, "steps": 2,
            "condition": ["plain", "noise_at_step 1"], "keep": "video"}  # fmt: skip
    plan = read(written(tmp_path, grid))
    assert answers(plan["specs"][:1], plan["out"]) == {"plain": plan["out"] / "answers/plain"}
    for spec in plan["specs"]:
        run_one(spec, plan["out"])
    folders = answers(plan["specs"], plan["out"])
    puzzles = vbvr.read(sample.parents[2], pixels=32)
    for folder in folders.values():
        vbvr.check_answers(puzzles, folder)
    one, other = (vbvr.answer_path(puzzles[0], folder).read_bytes() for folder in folders.values())
    assert list(folders) == ["plain", "noise_at_step 1"] and one != other
    assert list(answers(read(written(tmp_path, grid | {"noise_seed": [0, 1]}))["specs"], plan["out"])) == [
        "noise_seed 0, plain", "noise_seed 0, noise_at_step 1", "noise_seed 1, plain", "noise_seed 1, noise_at_step 1"
    ]  # fmt: skip


def test_different_specs_never_share_an_output(model, sample):
    puzzle = [PUZZLE, *({**PUZZLE, **change} for change in (
        {"model": "cos-mini-student"}, {"preset": "distill4"}, {"task": "bounce"}, {"seed": 4}, {"noise_seed": 1},
        {"steps": 3}, {"condition": "noise_at_step 1"}, {"condition": "noise_at_frame 1"}, {"condition": "renoise 1"},
        {"condition": "noise_at_step 0"}, {"condition": "ensemble 2 layers 1 steps 0"}, {"size": 160}, {"measures": ["score"]}, {"keep": "latents"}, {"keep": "video"}, {"device": "cuda"},
        {"device": "cuda", "offload": "model"}, {"device": "cuda", "offload": "group"},
    ))]  # fmt: skip
    folder = {"model": str(model), "preset": "paper", "sample": str(sample), "size": 32}
    other = sample.parent / "00001"
    shutil.copytree(sample, other)
    folders = [folder, folder | {"size": 16}, folder | {"frames": 5}, folder | {"sample": str(other)}]
    keys = [key(spec) for spec in puzzle + folders]
    assert len(set(keys)) == len(keys)
    assert key(complete(PUZZLE)) == key(PUZZLE) == keys[0]


def test_changed_weights_and_changed_samples_change_the_name(model, sample):
    spec = {"model": str(model), "preset": "paper", "sample": str(sample)}
    first = key(spec)
    (sample / "prompt.txt").write_text("the blue ball moves")
    second = key(spec)
    copy = sample.parents[2] / "copy"
    shutil.copytree(model, copy)
    third = identity(spec | {"model": str(copy)})["weights"]
    weights = next(copy.glob("transformer_2/*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert first != second
    assert third == identity(spec)["weights"] != identity(spec | {"model": str(copy)})["weights"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"stepz": 3},
            "unknown field 'stepz' in a spec; allowed are model, preset, device, offload, lora, task",
        ),
        ({"model": None}, "needs model as text"),
        ({"model": "cos-huge"}, "no model 'cos-huge' on this machine: choose cos-mini"),
        ({"preset": "fast"}, "unknown preset 'fast': choose from mini, paper"),
        ({"task": "chess"}, "unknown task 'chess'; tasks are maze"),
        ({"sample": "x"}, "either task and seed"),
        ({"frames": 5}, "multiple of 80 pixels a side and 16 m + 1 frames"),
        ({"size": 100}, "got pixels=100 and frames=17"),
        ({"size": "big"}, "size must be a whole number of at least 0, got 'big'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": True}, "seed must be a whole number"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"condition": "noise"}, "unknown condition 'noise'; allowed are plain, 'noise_at_step K'"),
        ({"condition": "plain 3"}, "unknown condition 'plain 3'"),
        ({"condition": "renoise -1"}, "unknown condition 'renoise -1'"),
        ({"condition": "noise_at_step 2"}, "a run of 2 steps has steps 0..1"),
        ({"condition": "ensemble 3"}, "'ensemble K layers L steps S'"),
        ({"condition": "ensemble 0 layers 1 steps 0"}, "an ensemble has 1 seed or more"),
        ({"condition": "ensemble 3 layers 3-1 steps 0"}, "rising ranges such as 0,4-6, got '3-1'"),
        ({"condition": "ensemble 3 layers 1 steps 0,2"}, "step 2 does not exist in a run of 2 steps (0..1)"),
        ({"condition": "merge_then_single 3 layers 1 steps 1"}, "step 1 leaves no step for a single seed"),
        ({"measures": ["speed"]}, "unknown measure 'speed' for a puzzle; allowed are score, solved"),
        ({"measures": []}, "measures is a name or a list of names"),
        ({"keep": "all"}, "keep is 'latents', 'video' or left out"),
        ({"device": "tpu"}, "device is 'cpu' or 'cuda'"),
        ({"offload": "model"}, "offload is 'model' or 'group' with device 'cuda', or left out, got 'model'"),
        ({"offload": "disk", "device": "cuda"}, "offload is 'model' or 'group'"),
        ({"lora": 3}, "lora is a file, a hub id or a list of [file or hub id, alpha] pairs, got 3"),
    ],
)
def test_a_bad_spec_ends_in_one_sentence(change, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        run_one(PUZZLE | change, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"measures": ["score"]},
            "unknown measure 'score' for a sample folder; allowed are last_frame_error",
        ),
        ({"size": 40}, "must be a multiple of 16, got 40"),
        ({"frames": 8}, "frames must be 4 k + 1, got 8"),
        ({"seed": 1}, "seed belongs to a spec with task"),
        ({"sample": "nowhere"}, "sample must be a folder <split>/<task>/<00000>"),
        ({"sample": "nowhere/In-Domain_50/O-39_maze_data-generator/00000"}, "no folder nowhere"),
        ({"sample": 3}, "sample must be a folder"),
    ],
)
def test_a_bad_sample_spec_ends_in_one_sentence(change, words, sample):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        complete({"model": "cos-mini", "preset": "mini", "sample": str(sample)} | change)


def test_a_range_within_an_ensemble_is_one_condition(tmp_path):
    grid = GRID | {"condition": ["ensemble 3 layers 2-4 steps 0-1", "merge_then_single 2 layers 2-4 steps 0..2"]}
    assert {spec["condition"] for spec in read(written(tmp_path, grid))["specs"]} == {
        "ensemble 3 layers 2-4 steps 0-1", *(f"merge_then_single 2 layers 2-4 steps {step}" for step in range(3))
    }  # fmt: skip


def test_a_grid_is_the_product_of_its_values(tmp_path, sample):
    specs = read(written(tmp_path))["specs"]
    assert len(specs) == 2 * 3 * 4
    assert {spec["condition"] for spec in specs} == {
        "plain",
        "noise_at_step 1",
        "noise_at_step 2",
        "renoise 2",
    }
    assert specs[0] == complete({**{name: GRID[name] for name in ("model", "preset", "steps", "measures", "keep")},
                                 "task": "maze", "seed": 0, "condition": "plain"})  # fmt: skip
    twice = read(written(tmp_path, GRID | {"seed": [0, "0..1"], "condition": "plain"}))["specs"]
    assert [(spec["task"], spec["seed"]) for spec in twice] == [(t, s) for t in ("maze", "reappear") for s in (0, 1)]
    shutil.copytree(sample, sample.parent / "00001")
    pattern = {"model": "cos-mini", "preset": "mini", "sample": f"{sample.parents[1]}/*/*"}
    assert [Path(s["sample"]).name for s in read(written(tmp_path, pattern))["specs"]] == ["00000", "00001"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: [", "is not YAML"),
        ("- 3", "needs a grid of spec fields"),
        ("grid: {}", "needs a grid of spec fields"),
        ("grid: {model: x}\nworkers: 3", "unknown field 'workers'"),
        ("grid: {model: x}\nseconds_per_run: soon", "seconds_per_run must be a positive number, got 'soon'"),
        (
            "grid: {model: cos-mini, preset: mini, task: maze, seed: 5..2}",
            "the range '5..2' of seed runs backwards",
        ),
        ("grid: {model: cos-mini, preset: mini, task: maze, seed: []}", "seed has an empty list"),
        ("grid: {model: cos-mini, preset: mini, sample: none/*}", "no folder of the pattern 'none/*'"),
    ],
)
def test_a_bad_file_ends_in_one_sentence(tmp_path, capsys, text, words):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert main([str(path)]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


def test_a_dry_run_counts_and_estimates(tmp_path, capsys, undisturbed):
    assert main([str(written(tmp_path, seconds_per_run=90)), "--dry-run", "--workers", "4"]) == 0
    assert capsys.readouterr().out == (
        "24 runs, 0 finished, 24 to do\nabout 0.6 CPU hours, 0.15 hours on 4 workers (90 s per plain run, stated)\n"
    )
    assert not (tmp_path / "out").exists()
    specs, out, _ = undisturbed
    assert estimate(specs, tmp_path) == (
        "24 runs, 0 finished, 24 to do\nhours unknown: state seconds_per_run in the file, or measure a few runs with --limit 3"
    )
    assert estimate([spec | {"device": "cuda"} for spec in specs], tmp_path, 3600).endswith(
        "about 24 GPU hours, 24 hours on 1 worker (3600 s per plain run, stated)"
    )
    timed = [json.loads(path.read_text())["seconds"] for path in (out / "timings").iterdir()]
    longer = [complete(spec | {"steps": 12}) for spec in specs]
    text = estimate(specs + longer, out)
    assert text.startswith("48 runs, 24 finished, 24 to do") and "measured over 24 runs" in text
    assert float(re.search("about (.*) CPU", text)[1]) == pytest.approx(2 * sum(timed) / 3600, rel=1e-2)


def test_the_summary_counts_puzzles_and_names_what_differs(tmp_path):
    specs = [complete(PUZZLE | {"seed": seed, "noise_seed": noise, "condition": condition, "measures": ["score"]})
             for seed in range(3) for noise in range(2) for condition in ("plain", "renoise 1")]  # fmt: skip
    with pytest.raises(ValueError, match="no run of this sweep is finished"):
        summary(specs, tmp_path)
    for spec in specs[:-1]:  # the last one is not finished
        value = spec["seed"] + 10 * spec["noise_seed"] + 100 * (spec["condition"] == "plain")
        write_json(tmp_path / "runs" / f"{key(spec)}.json", {"values": {"score": value}})
    table = summary(specs, tmp_path)
    stored = json.loads((tmp_path / "summary.json").read_text())
    numbers = stored["numbers"]
    assert set(numbers) == {"plain/score", "renoise 1/score"}
    assert numbers["plain/score"]["value"] == pytest.approx(106) and numbers["plain/score"]["n"] == 3
    assert numbers["plain/score"]["low"] >= 105  # over the three means 105, 106, 107: noise seeds are no cases
    assert numbers["renoise 1/score"]["value"] == pytest.approx((5 + 6 + 2) / 3)
    assert {k: stored["provenance"][k] for k in ("runs", "finished")} == {"runs": 12, "finished": 11}
    assert re.search(r"^plain +106\.000 \[105\.\d+, 107\.\d+\] +3$", table, re.M)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children; this system has no fork")
def test_a_process_killed_at_random_moments_leaves_the_same_files(tmp_path, undisturbed):
    specs, reference, table = undisturbed
    rng, out = random.Random(0), tmp_path / "out"
    for _ in range(12):
        pid = os.fork()
        if not pid:
            for spec in specs:
                run_one(spec, out)
            os._exit(0)
        time.sleep(rng.uniform(0, 0.6))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for path in out.glob("runs/[!.]*.json"):
            assert path.read_bytes() == (reference / "runs" / path.name).read_bytes()
    for spec in specs:
        run_one(spec, out)
    left = out / "runs" / f".{key(specs[0])}.elsewhere-1.tmp"
    left.write_bytes(b"half")
    assert sweep(specs, out) == {} and summary(specs, out) == table
    assert files(out) == files(reference)


@pytest.mark.skipif(os.name != "posix", reason="kills process groups; this system has none")
def test_a_sweep_killed_at_random_moments_gives_the_same_summary(tmp_path, undisturbed):
    specs, reference, table = undisturbed
    rng, out = random.Random(1), tmp_path / "out"
    command = [sys.executable, "-m", "cosutils.scale.sweep", str(written(tmp_path)), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("runs/[!.]*.json")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.4))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list(out.glob("runs/[!.]*.json"))) < len(specs)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.rstrip().endswith(table.rstrip())
    assert files(out) == files(reference)


def test_failures_are_listed_the_others_finish_and_a_second_start_retries(tmp_path, capsys):
    grid = {"model": "cos-mini", "preset": "mini", "task": "maze", "seed": "0..1", "steps": 2,
            "condition": ["plain", "noise_at_frame 7"]}  # fmt: skip
    path, out = written(tmp_path, grid), tmp_path / "out"
    assert main([str(path)]) == 1
    printed = capsys.readouterr().out
    failed = sorted(out.glob("failed/*.json"))
    assert len(failed) == 2 and len(list(out.glob("runs/*.json"))) == 2
    for record in failed:
        assert f"failed: {record}: ValueError: cannot edit latent frame 7: choose 0..4" in printed
        assert json.loads(record.read_text())["spec"]["condition"] == "noise_at_frame 7"
    specs = read(path)["specs"][:1]
    shutil.rmtree(out)
    out.mkdir()
    (out / "timings").write_text("a file where a folder should be")
    assert list(sweep(specs, out, retries=0)) == [key(specs[0])]
    (out / "timings").unlink()
    assert sweep(specs, out, retries=0) == {}
    assert not list(out.glob("failed/*")) and len(list(out.glob("runs/*.json"))) == 1


def work(item: str) -> None:
    """What the workers of the next test do: fail, die, or die the first time only."""
    if item == "raises":
        raise KeyError("no such thing")
    if item == "dies" or (item.startswith("/") and not os.path.exists(item)):
        if item != "dies":
            Path(item).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_replaced(tmp_path):
    items = ["fine", "raises", "dies", str(tmp_path / "mark"), "fine too"]
    errors = dict(cluster.on_processes(work, items, workers=2, retries=1))
    assert set(errors) == set(items)
    assert errors["fine"] is errors["fine too"] is errors[str(tmp_path / "mark")] is None
    assert errors["raises"].startswith("KeyError: 'no such thing'\n") and "Traceback" in errors["raises"]
    assert errors["dies"] == "the worker process died (exit code -9)"


def test_unknown_engines_and_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown engine 'slurm'; engines are local, ray"):
        sweep([PUZZLE], tmp_path, engine="slurm")
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        sweep([PUZZLE], tmp_path, workers=0)


def test_a_missing_ray_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([str(written(tmp_path)), "--engine", "ray"]) == 2
    assert "pip install 'cosutils[cluster]'" in capsys.readouterr().err


def test_ray_gives_the_same_files(tmp_path, undisturbed):
    ray = pytest.importorskip("ray", reason="Ray is an optional engine: pip install -e '.[cluster]'")
    specs, reference, table = undisturbed
    try:
        assert sweep(specs, tmp_path, workers=2, engine="ray") == {}
    finally:
        ray.shutdown()
    assert summary(specs, tmp_path) == table
    assert files(tmp_path) == files(reference)
