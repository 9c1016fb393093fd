"""One experiment: checked before anything is computed, done once, and named by the content of what decides it."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cosutils as cos
from cosutils import films, vbvr
from cosutils.scale import spec as spec_module
from cosutils.scale.spec import FIELDS, MEASURES, Spec, identity, key, run_one
from cosutils.scale.status import status
from cosutils.scale.study import labels, read
from cosutils.scale.sweep import main, summary
from tiny import build, image

PUZZLE = {"model": "cos-mini", "preset": "mini", "task": "maze", "seed": 3, "steps": 2}
# one other value of every field, beside PUZZLE; "sample" is asked about below
OTHER = {
    "model": {"model": "cos-mini-student"}, "preset": {"preset": "distill4"}, "device": {"device": "cuda"},
    "offload": {"device": "cuda", "offload": "model"}, "lora": {"lora": "a.safetensors"}, "task": {"task": "bounce"},
    "seed": {"seed": 4}, "size": {"size": 160}, "frames": {"frames": 33}, "noise_seed": {"noise_seed": 1},
    "steps": {"steps": 3}, "condition": {"condition": "renoise 1"}, "measures": {"measures": ["score"]},
    "keep": {"keep": "latents"},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny two-expert pipeline as a folder in diffusers format."""
    folder = tmp_path_factory.mktemp("model")
    build("a14b").save_pretrained(folder)
    return folder


def sample_in(folder: Path) -> Path:
    """A sample in the benchmark's layout: 32 x 32 pixels, a true film of 6 frames."""
    folder = folder / "In-Domain_50" / "O-39_maze_data-generator" / "00000"
    folder.mkdir(parents=True)
    image(0, 32, 32).save(folder / "first_frame.png")
    image(1, 32, 32).save(folder / "final_frame.png")
    (folder / "prompt.txt").write_text("the red ball moves\n")
    imageio.mimwrite(folder / "ground_truth.mp4", [np.asarray(image(k, 32, 32)) for k in range(6)], fps=16)
    return folder


@pytest.fixture
def sample(tmp_path):
    return sample_in(tmp_path)


def test_a_run_is_the_call_it_describes(tmp_path):
    spec = PUZZLE | {"condition": "noise_at_step 1", "noise_seed": 5, "keep": "latents"}
    path = run_one(spec | {"measures": ["score", "answer"]}, tmp_path)
    puzzle, pipe = cos.tasks.maze.sample(3), cos.load("cos-mini")
    with cos.inject(pipe, cos.noise_at_step(1, seed=8)), cos.record(pipe) as run:
        call = puzzle.inputs | cos.settings(pipe) | {"num_inference_steps": 2}
        film = pipe(**call, generator=cos.seeded(8), output_type="np").frames[0]
    stored = json.loads(path.read_text())
    score = puzzle.score(film)
    assert stored["values"] == {"answer": score.parts["answer"], "score": score.total}
    assert torch.equal(load_file(path.with_suffix(".safetensors"))["latents"], run.latents)
    assert stored["run"]["seeds"] == [8] and stored["spec"]["steps"] == 2
    assert not list((tmp_path / "running").iterdir())


def test_a_run_with_noise_begins_at_the_noise_and_ends_as_the_full_one(tmp_path):
    spec = PUZZLE | {"steps": 4, "condition": "noise_at_step 3", "keep": "latents", "measures": ["score"]}
    short, full = (run_one(spec | {"measures": names}, tmp_path) for names in (["score"], ["score", "commitment"]))
    one, other = (json.loads(path.read_text()) for path in (short, full))
    assert (one["run"]["first"], other["run"]["first"]) == (3, 0)
    assert one["values"]["score"] == other["values"]["score"]
    latents = [load_file(path.with_suffix(".safetensors"))["latents"] for path in (short, full)]
    assert torch.equal(*latents)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_estimates_of_chosen_steps_are_kept_as_films(tmp_path):
    spec = Spec.of(PUZZLE | {"steps": 3, "condition": "noise_at_step 2", "keep": "steps 0,2"})
    path = run_one(spec, tmp_path)
    found = {file.name.split(".", 1)[1] for file in path.parent.glob("*.mp4")}
    assert found == {"step_000.mp4", "step_002.mp4", "mp4"}
    pipe, puzzle = cos.load("cos-mini"), spec.puzzle
    with cos.inject(pipe, cos.noise_at_step(2, seed=3)), cos.record(pipe, keep="x0") as run:
        pipe(**puzzle.inputs, **cos.settings(pipe) | {"num_inference_steps": 3}, generator=cos.seeded(3))
    kept = films.read_film(path.with_suffix(".step_000.mp4")) / 255
    assert np.abs(kept - run.decode([0])[0, 0].numpy()).mean() < 0.02 < np.abs(kept - puzzle.video).mean()


def test_the_effort_counts_the_steps_that_are_computed():
    counted = {"plain": 10, "noise_at_step 4": 6, "noise_at_frame 4": 10, "renoise 4": 10,
               "ensemble 3 layers 1 steps 0": 30, "merge_then_single 3 layers 1 steps 0,3": 3 * 4 + 6}  # fmt: skip
    assert {name: Spec.of(PUZZLE | {"steps": 10, "condition": name}).effort for name in counted} == counted
    for looking in ({"measures": "commitment"}, {"keep": "steps 0"}):
        assert Spec.of(PUZZLE | {"steps": 10, "condition": "noise_at_step 4"} | looking).effort == 10


def test_a_puzzle_is_drawn_at_the_size_of_the_spec(tmp_path):
    spec = Spec.of(PUZZLE | {"size": 160, "frames": 33})
    assert spec.puzzle.shape == (33, 160, 160, 3)
    assert key(PUZZLE | {"size": 80, "frames": 17}) == key(PUZZLE) != key(spec)
    path = run_one(PUZZLE | {"steps": 1, "frames": 33, "keep": "latents"}, tmp_path)
    assert load_file(path.with_suffix(".safetensors"))["latents"].shape[2:] == (9, 10, 10)


@pytest.mark.slow
def test_low_rank_weights_are_loaded_and_named_by_their_content(model, sample, tmp_path):
    pytest.importorskip("peft", reason="low-rank weights need the extra [lora]")
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for number, file in enumerate(files):
        parts = {"lora_A": torch.full((2, 24), 1.0), "lora_B": torch.full((24, 2), 1.0 + number)}
        save_file({f"transformer.blocks.0.attn1.to_q.{part}.weight": w for part, w in parts.items()}, file)
    base = {"model": str(model), "preset": "paper", "sample": str(sample), "size": 32, "frames": 5, "steps": 1}
    loras = [None, str(files[0]), str(files[1]), [[str(files[0]), 0.0]]]
    specs = [Spec.of(base | {"keep": "latents", "lora": lora}) for lora in loras]
    none, a, b = (
        load_file(run_one(spec, tmp_path / "out").with_suffix(".safetensors"))["latents"] for spec in specs[:3]
    )
    assert not torch.equal(none, a) and not torch.equal(a, b)
    first = key(specs[1])
    moved = shutil.copy(files[0], tmp_path / "moved.safetensors")
    assert key(base | {"keep": "latents", "lora": moved}) == first
    assert key(base | {"keep": "latents", "lora": [[moved, np.float32(0)]]}) == key(specs[3])
    shutil.copy(files[1], files[0])
    assert key(specs[1]) != first


def test_finished_work_is_skipped(tmp_path):
    path = run_one(PUZZLE, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert run_one(PUZZLE | {"noise_seed": 0}, tmp_path) == path
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_a_sample_folder_runs_on_a_model_folder_with_two_experts(model, sample, tmp_path):
    spec = {"model": model, "preset": "paper", "sample": sample, "size": 32, "steps": 2, "keep": "latents"}
    path = run_one(spec, tmp_path / "out")
    stored = json.loads(path.read_text())
    assert (stored["spec"]["size"], stored["spec"]["frames"]) == (32, 9)  # 6 true frames, rounded up to 4k + 1
    assert 0 < stored["values"]["last_frame_error"] < 1
    assert set(stored["run"]["dtype"]) == {"transformer", "transformer_2"} and stored["run"]["boundary"] == 0.875
    assert load_file(path.with_suffix(".safetensors"))["latents"].shape == (1, 4, 3, 4, 4)


def test_a_measure_against_the_true_last_frame(sample):
    (truth,) = vbvr.read(sample.parents[2], pixels=32)
    film = np.zeros((9, 32, 32, 3))
    film[-1] = truth.video[-1]
    assert MEASURES["last_frame_error"](truth, film, None) == 0
    assert MEASURES["last_frame_error"](truth, 1 - film, None) == pytest.approx(np.abs(1 - 2 * film[-1]).mean())


def test_a_value_that_is_no_number_ends_the_run_before_anything_is_stored(tmp_path, monkeypatch):
    monkeypatch.setitem(MEASURES, "score", lambda sample, film, ends: np.nan)
    with pytest.raises(ValueError, match="score of this run is nan, not a number"):
        run_one(PUZZLE | {"steps": 1, "keep": "latents"}, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_only_one_model_is_in_memory(model, sample, tmp_path, monkeypatch):
    seen = []

    def load(*arguments, **options):
        assert not any(reference() is not None for reference in seen), "the old model is still there"
        pipe = cos.load(*arguments, **options)
        seen.extend(weakref.ref(part) for part in (pipe, pipe.transformer, pipe.vae))
        return pipe

    monkeypatch.setattr(spec_module, "load", load)
    spec = {"model": model, "preset": "paper", "sample": sample, "size": 32, "frames": 5, "steps": 1}
    for change in ({}, {"preset": "hf_default"}, {"steps": 2, "condition": "ensemble 2 layers 1 steps 0"}):
        run_one(spec | change, tmp_path / "out")
    assert len(seen) == 3 * 3


@pytest.mark.slow
@pytest.mark.parametrize("offload", [None, "model", "group"])
def test_a_model_is_loaded_on_the_gpu_of_its_worker(offload, tmp_path, monkeypatch):
    """There is no GPU here: that torch has one, and that the worker took the third, is said by hand."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    asked = {}
    monkeypatch.setattr(spec_module, "load", lambda *names, **options: asked.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_one(PUZZLE | {"device": "cuda", "offload": offload}, tmp_path)
    assert (asked["device"], asked["offload"]) == ("cuda:2", offload)


def test_a_model_of_the_hub_is_loaded_at_the_commit_that_its_key_names(sample, tmp_path, monkeypatch):
    commit, asked = "0123456789abcdef0123456789abcdef01234567", {}
    monkeypatch.setattr(spec_module, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshots" / commit))
    monkeypatch.setattr(spec_module, "load", lambda *names, **options: asked.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_one(PUZZLE | {"model": "somebody/a-model"}, tmp_path)
    assert asked["revision"] == commit
    asked.clear()
    with pytest.raises(ZeroDivisionError):
        run_one(PUZZLE, tmp_path)
    assert asked["revision"] is None


def test_every_field_decides_the_name_and_tells_conditions_apart(model, sample, tmp_path):
    assert set(OTHER) == set(FIELDS) - {"sample"}
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"its content is all that counts")
    other = OTHER | {"lora": {"lora": str(file)}}
    specs = [Spec.of(PUZZLE | change) for change in ({}, *other.values())]
    keys = [key(spec) for spec in specs]
    assert len(set(keys)) == len(keys) and key(Spec.of(PUZZLE)) == keys[0]
    told = labels(specs)
    assert told[1 + list(other).index("seed")] == told[0] and len(set(told)) == len(told) - 1
    for name, change in other.items():  # alone, too
        one, two = labels([Spec.of(PUZZLE), Spec.of(PUZZLE | change)])
        assert (one == two) == (name == "seed"), name
    both = [Spec.of(PUZZLE | {"frames": frames, "steps": steps}) for frames in (17, 33) for steps in (2, 3)]
    assert labels(both)[0] == "frames 17, steps 2, plain" and len(set(labels(both))) == 4
    own = {"model": model, "preset": "paper", "sample": str(sample), "size": 32}
    assert len(set(labels([Spec.of(own), Spec.of(own | {"frames": 5})]))) == 2


def test_samples_of_several_lengths_are_one_condition(sample):
    other = sample.parent / "00001"
    shutil.copytree(sample, other)
    imageio.mimwrite(other / "ground_truth.mp4", [np.asarray(image(k, 32, 32)) for k in range(12)], fps=16)
    base = {"model": "cos-mini", "preset": "mini", "size": 32}
    specs = [Spec.of(base | {"sample": str(folder)}) for folder in (sample, other)]
    assert [spec.frames for spec in specs] == [9, 13] and labels(specs) == ["plain", "plain"]


def test_content_decides_the_name_and_the_place_does_not(model, sample, tmp_path):
    spec = {"model": str(model), "preset": "paper", "sample": str(sample), "size": 32}
    first = key(spec)
    there = tmp_path / "elsewhere"
    moved = {"model": str(there / "model"), "sample": str(there / Path(*sample.parts[-3:]))}
    shutil.copytree(model, moved["model"])
    shutil.copytree(sample, moved["sample"])
    assert key(spec | moved) == first
    weights = next(Path(moved["model"]).glob("transformer_2/*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identity(spec | moved)["weights"] != identity(spec)["weights"]
    (sample / "prompt.txt").write_text("the blue ball moves")
    assert key(spec) != first
    embedded = cos.pipelines.loading.data_folder() / "cos-mini"
    assert key(PUZZLE) == key(PUZZLE | {"model": str(embedded)})


@pytest.mark.slow
def test_the_home_folder_is_known_in_every_path(model, sample, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(model, tmp_path / "model")
    spec = {"model": "~/model", "preset": "paper", "sample": f"~/{Path(*sample.parts[-3:])}", "size": 32, "steps": 1}
    assert run_one(spec, "~/out").parents[1] == tmp_path / "out"
    assert Spec.of(PUZZLE | {"lora": [["~/a", 1.0]]}).lora == [[str(tmp_path / "a"), 1.0]]
    (tmp_path / "study.yaml").write_text("out: ~/there\ngrid: {model: cos-mini, preset: mini, task: maze, seed: 0}")
    assert read("~/study.yaml").out == tmp_path / "there"


def test_numbers_of_other_libraries_are_numbers():
    given = {name: kind(Spec.of(PUZZLE).facts()[name]) for name in ("seed", "size", "frames", "noise_seed", "steps")
             for kind in (np.int64, np.uint8, torch.tensor)}  # fmt: skip
    assert Spec.of(PUZZLE | given) == Spec.of(PUZZLE) and key(PUZZLE | given) == key(PUZZLE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stepz": 3}, "unknown field 'stepz' in a spec; allowed are model, preset, device, offload, lora, task"),
        ({"model": None}, "needs model as text"),
        ({"model": ""}, "needs model as text, got ''"),
        ({"model": "cos-huge"}, "no model 'cos-huge' on this machine: choose cos-mini"),
        ({"preset": "fast"}, "unknown preset 'fast': choose from mini, paper"),
        ({"task": "chess"}, "unknown task 'chess'; tasks are maze"),
        ({"task": ["maze"]}, "unknown task"),
        ({"sample": "x"}, "either task and seed"),
        ({"frames": 5}, "multiple of 80 pixels a side and 16 m + 1 frames"),
        ({"size": 100}, "got pixels=100 and frames=17"),
        ({"size": "big"}, "size must be an integer, got 'big'"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"noise_seed": 0.5}, "noise_seed must be an integer, got 0.5"),
        ({"noise_seed": 2**63}, "noise_seed + seed must be below 2**63"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"condition": 3}, "condition must be text, got 3"),
        ({"condition": "noise"}, "unknown condition 'noise'; allowed are plain, 'noise_at_step K'"),
        ({"condition": "plain 3"}, "unknown condition 'plain 3'"),
        ({"condition": "renoise -1"}, "unknown condition 'renoise -1'"),
        ({"condition": "noise_at_step 2"}, "a run of 2 steps has steps 0..1"),
        ({"condition": "noise_at_frame 5"}, "a run of 5 latent frames has latent frames 0..4"),
        ({"condition": "ensemble 3"}, "'ensemble K layers L steps S'"),
        ({"condition": "ensemble 0 layers 1 steps 0"}, "an ensemble has 1 seed or more"),
        ({"condition": "ensemble 3 layers 3-1 steps 0"}, "rising ranges such as 0,4-6, got '3-1'"),
        ({"condition": "ensemble 3 layers 1 steps 0,2"}, "step 2 does not exist in a run of 2 steps (0..1)"),
        ({"condition": "merge_then_single 3 layers 1 steps 1"}, "step 1 leaves no step for a single seed"),
        ({"measures": ["speed"]}, "unknown measure 'speed' for a puzzle; allowed are score, solved"),
        ({"measures": []}, "measures is a name or a list of names"),
        ({"measures": ["score", "score"]}, "measures lists 'score' twice"),
        ({"keep": "all"}, "keep is 'latents', 'video', 'steps 0,4-6' or left out"),
        ({"keep": "steps 2"}, "keep 'steps 2': a run of 2 steps has steps 0..1"),
        ({"keep": "steps x"}, "rising ranges such as 0,4-6, got 'x'"),
        ({"device": "tpu"}, "device is 'cpu' or 'cuda'"),
        ({"offload": "model"}, "offload is 'model' or 'group' with device 'cuda', or left out, got 'model'"),
        ({"offload": "disk", "device": "cuda"}, "offload is 'model' or 'group'"),
        ({"lora": 3}, "lora is a file, a hub id or a list of [file or hub id, alpha] pairs, got 3"),
    ],
)
def test_a_bad_spec_ends_in_one_sentence(change, words, tmp_path):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)) as error:
        run_one(PUZZLE | change, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measures": ["score"]}, "unknown measure 'score' for a sample folder; allowed are last_frame_error"),
        ({"size": 40}, "must be a multiple of 16, got 40"),
        ({"frames": 8}, "frames must be 4 k + 1, got 8"),
        ({"frames": 0}, "frames must be 1 or more, got 0"),
        ({"seed": 1}, "seed belongs to a spec with task"),
        ({"sample": "nowhere"}, "sample must be a folder <split>/<task>/<00000>"),
        ({"sample": "nowhere/In-Domain_50/O-39_maze_data-generator/00000"}, "no folder nowhere"),
        ({"sample": 3}, "sample must be a folder"),
    ],
)
def test_a_bad_sample_spec_ends_in_one_sentence(change, words, sample):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        Spec.of({"model": "cos-mini", "preset": "mini", "sample": str(sample)} | change)


@pytest.mark.parametrize("keep", ["latents", "video"])
def test_what_cannot_be_kept_is_refused_before_the_model_is_loaded(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(spec_module, "load", lambda *names, **options: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=re.escape(f"cannot write into the folder {tmp_path / 'file' / 'out' / 'runs'}")):
        run_one(PUZZLE | {"keep": keep}, tmp_path / "file" / "out")
    if keep == "video":
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
        with pytest.raises(RuntimeError, match="there is no ffmpeg that runs"):
            run_one(PUZZLE | {"keep": keep}, tmp_path / "out")
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({"out": str(tmp_path / "file" / "out"), "grid": PUZZLE | {"keep": keep}}))
    assert main([str(study)]) == 2


def test_a_damaged_result_is_named(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({"out": str(tmp_path / "out"), "grid": PUZZLE | {"steps": 1}}))
    study = read(file)
    path = run_one(study.specs[0], study.out)
    assert summary(study).startswith("  ")
    damages = [
        ("runs", '{"spec": {}, "val'),
        ("runs", "[]"),
        ("timings", ""),
        ("timings", '{"seconds": 0, "steps": 1}'),
    ]
    for folder, text in damages:
        damaged = study.out / folder / path.name
        whole = damaged.read_bytes()
        damaged.write_text(text)
        with pytest.raises(ValueError, match=f"damaged file, .*{damaged}"):
            (summary if folder == "runs" else status)(study)
        damaged.write_bytes(whole)
