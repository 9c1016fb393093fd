"""Training, scoring and releasing a small model of one block, in this process and for real."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

from cosutils._files import new_folder, read_log, restore_folder, sha256
from cosutils.measures import chain
from cosutils.mini import model as embedded
from cosutils.mini import split, tasks, world
from cosutils.mini.codec import PatchCodec
from cosutils.mini.controls import control
from cosutils.mini.memory import RememberingWan
from cosutils.mini.model import SHIFT, build_pipeline, build_transformer
from cosutils.pipelines.loading import load
from cosutils.pipelines.schedule import flow_sigmas
from cosutils.training import evaluate, release, train
from cosutils.training.train import Plan, Puzzles


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A model of two blocks to begin with."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parent") / "start"
    codec = train.fit_codec(20)
    build_pipeline(codec, build_transformer(codec.config.z_dim, layers=2)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(train, "VALIDATED", 2)


@pytest.fixture(scope="module")
def run(parent, tmp_path_factory):
    """A finished run of 192 films, with a port that another program holds and a user's own settings in sight."""
    out = tmp_path_factory.mktemp("runs") / "one"
    plan = Plan(out, {"shelf": 1.0}, samples=192, batch=16, layers=1, every=96, precision="float32", init=parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "VALIDATED", 2)
        patch.setenv("MASTER_PORT", "1")
        before = dict(os.environ)
        train.train(plan)
        assert dict(os.environ) == before and not torch.distributed.is_initialized()
    return plan


@pytest.fixture
def copied(run, tmp_path):
    """The same run in a folder of its own."""
    shutil.copytree(run.out, tmp_path / "run")
    return dataclasses.replace(run, out=tmp_path / "run")


def digests(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- a run, and going on with it
@pytest.mark.slow
def test_a_run_writes_what_it_promises(run):
    rows = read_log(run.out / "log.jsonl")
    assert [row["seen"] for row in rows] == [96, 192] and rows[1]["loss"] < rows[0]["loss"]
    assert {row["precision"] for row in rows} == {"float32"} and {row["processes"] for row in rows} == {1}
    assert sorted(path.name for path in run.out.iterdir()) == ["checkpoint.pt", "log.jsonl", "model"]
    state = train.read_state(run.out / "checkpoint.pt")
    assert state["seen"] == 192 and state["arguments"] == run.arguments()
    assert state["arguments"]["init"].startswith("start (weights ") and state["arguments"]["weights"] == "shelf=1"
    assert PatchCodec.from_pretrained(run.out / "model" / "vae").config.z_dim == 16


@pytest.mark.slow
@pytest.mark.parametrize("samples", [192, 200, 100])
def test_a_run_goes_on_to_more_samples_and_ends_at_fewer(copied, samples):
    before = digests(copied.out)
    train.train(dataclasses.replace(copied, samples=samples, every=1000, precision="auto"))
    seen = train.read_state(copied.out / "checkpoint.pt")["seen"]
    assert seen == max(192, -(-samples // 16) * 16)
    assert [row["seen"] for row in read_log(copied.out / "log.jsonl")] == sorted({96, 192, seen})
    assert (digests(copied.out) == before) == (samples <= 192)


@pytest.mark.slow
def test_a_checkpoint_older_than_an_argument_had_its_default(copied):
    path = copied.out / "checkpoint.pt"
    state = train.read_state(path)
    for name in ("perturb", "rollout", "lengths"):
        del state["arguments"][name]
    torch.save(state, path)
    assert train.resumed(copied)[0]["seen"] == 192
    with pytest.raises(ValueError, match="rollout 0 and cannot go on with 9"):
        train.resumed(dataclasses.replace(copied, rollout=9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("weights", {"shelf": 1.0, "maze": 2.0}, "weights 'shelf=1' and cannot go on with 'shelf=1, maze=2'"),
        ("batch", 8, "batch 16 and cannot go on with 8"),
        ("rate", 0.1, "rate 0.003 and cannot go on with 0.1"),
        ("layers", 2, "layers 1 and cannot go on with 2"),
        ("seed", 1, "seed 0 and cannot go on with 1"),
        ("cooldown", 0.5, "cooldown 0.3 and cannot go on with 0.5"),
        ("shift", 3.0, "shift 8.0 and cannot go on with 3.0"),
        ("split", "content", "split 'seed' and cannot go on with 'content'"),
        ("init", None, r"init 'start \(weights .*\)' and cannot go on with None"),
        ("teacher", "parent", r"teacher None and cannot go on with 'start \(weights .*\)'"),
    ],
)
def test_a_run_goes_on_with_its_own_arguments_only(run, parent, name, value, shown):
    before = digests(run.out)
    with pytest.raises(ValueError, match=f"has {shown}"):
        train.train(dataclasses.replace(run, **{name: parent if value == "parent" else value}))
    assert digests(run.out) == before


def test_every_argument_is_compared_or_said_to_be_free():
    assert {field.name for field in dataclasses.fields(Plan)} >= set(train.FREE)
    assert set(train.FREE) == {"out", "samples", "every", "device", "precision"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("checkpoint.pt", lambda data: data[: len(data) // 2], "checkpoint.pt is damaged"),
        ("checkpoint.pt", lambda data: b"", "checkpoint.pt is damaged"),
        ("checkpoint.pt", lambda data: b"no checkpoint at all", "checkpoint.pt is damaged"),
        ("log.jsonl", lambda data: data[:-40], "log.jsonl is damaged, line 2"),
        ("log.jsonl", lambda data: b"[]\n" + data, "log.jsonl is damaged, line 1"),
        ("log.jsonl", lambda data: b"\xff\xfe" + data, "log.jsonl is damaged, line 1"),
    ],
)
def test_damaged_files_of_a_run_are_named(copied, name, damage, message):
    (copied.out / name).write_bytes(damage((copied.out / name).read_bytes()))
    with pytest.raises(ValueError, match=message):
        train.train(copied)


@pytest.mark.slow
def test_checkpoints_of_other_versions_are_told(copied):
    state = train.read_state(copied.out / "checkpoint.pt")
    del state["arguments"]
    torch.save(state, copied.out / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt holds no arguments: another version made it"):
        train.train(copied)


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_replaced_its_model_goes_on(copied):
    """Between the two renamings neither the old model nor the new one has the name `model`."""
    (copied.out / "model").rename(copied.out / ".model.before")
    (copied.out / ".model.part").mkdir()
    (copied.out / f".checkpoint.{os.uname().nodename}-{2**22}.tmp.pt").touch()
    train.train(dataclasses.replace(copied, samples=208, every=16))
    assert [row["seen"] for row in read_log(copied.out / "log.jsonl")] == [96, 192, 208]
    assert sorted(path.name for path in copied.out.iterdir()) == ["checkpoint.pt", "log.jsonl", "model"]


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_checkpoint_trains_the_rest_again(copied, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(dataclasses.replace(copied, samples=208, every=16))
    assert len(read_log(copied.out / "log.jsonl")) == 3
    train.train(dataclasses.replace(copied, samples=208, every=16))
    assert [row["seen"] for row in read_log(copied.out / "log.jsonl")] == [96, 192, 208]


@pytest.mark.parametrize("when", ["filled", "moved aside", "whole"])
def test_a_folder_is_replaced_or_stays(tmp_path, monkeypatch, when):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    rename, calls = os.replace, []

    def broken(source, target):
        calls.append(source)
        if when == "moved aside" and len(calls) == 2:
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", broken)
    try:
        with new_folder(folder) as part:
            (part / "new").touch()
            if when == "filled":
                raise OSError("the disk is full")
    except OSError:
        assert when != "whole"
    assert [path.name for path in folder.iterdir()] == ["new" if when == "whole" else "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    restore_folder(folder)
    assert folder.is_dir()


# ---------------------------------------------------------------- numbers that are none
@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(copied, run):
    path = copied.out / "checkpoint.pt"
    state = train.read_state(path)
    state["model"]["proj_out.weight"][0, 0] = float("nan")
    torch.save(state, path)
    before = digests(copied.out)
    with pytest.raises(
        FloatingPointError, match="step 12, 192 films seen: the loss is nan .* nothing was saved since 192"
    ):
        train.train(dataclasses.replace(copied, samples=208, every=1))
    assert digests(copied.out) == before and not torch.distributed.is_initialized()


@pytest.mark.slow
def test_another_training_seed_sees_other_films_and_goes_on_with_them(run, tmp_path, monkeypatch):
    """Each seed has a range of training puzzles of its own, and a resumed run goes on where it stopped in it."""
    begun = []

    class Watched(Puzzles):
        def __init__(self, *given):
            super().__init__(*given)
            begun.append(self.start)

    monkeypatch.setattr(train, "Puzzles", Watched)
    plan = dataclasses.replace(run, out=tmp_path / "run", seed=2, samples=32, every=16)
    train.train(plan)
    train.train(dataclasses.replace(plan, samples=48))
    assert begun == [2 * train.APART, 2 * train.APART + 32]


def test_own_runs_go_on_by_eulers_steps_and_the_next_puzzle_follows():
    """Run by run: from its noise, by the given velocities, at the sampler's levels, with one puzzle to its end."""
    draws = torch.Generator().manual_seed(0)
    runs, levels, states = train.OwnRuns(3, 6, draws), [], []
    for batch in range(13):
        new = torch.full((3, 1, 1, 1, 1), float(batch)) + torch.arange(3).view(-1, 1, 1, 1, 1) / 10
        x, truth, given, words = runs.begin(new, new + 100, new + 200, torch.full((3, 4, 2), float(batch)))
        levels.append(runs.levels(runs.step).tolist())
        states.append(torch.stack([x.flatten(), truth.flatten(), given.flatten(), words[:, 0, 0]], 1))
        runs.advance(torch.ones_like(x))
    for run, level in enumerate(zip(*levels, strict=True)):
        starts = [k for k, sigma in enumerate(level) if sigma == 1]
        assert starts[0] == 0 and len(starts) >= 2
        for start, end in itertools.pairwise(starts):
            steps = end - start
            assert 4 <= steps <= 6
            expected = flow_sigmas(steps, SHIFT)[:-1]
            assert level[start:end] == pytest.approx(expected.tolist(), abs=1e-5)
            for k in range(start, end):
                x, truth, given, words = states[k][run].tolist()
                assert (truth, given) == pytest.approx((start + run / 10 + 100, start + run / 10 + 200), abs=1e-4)
                assert words == start and x == pytest.approx(start + run / 10 + level[k] - 1, abs=1e-4)
    assert len({tuple(level) for level in zip(*levels, strict=True)}) > 1, "runs of different lengths part"


@pytest.mark.slow
def test_half_of_the_samples_are_own_states_and_learn_the_truth(run, tmp_path, monkeypatch):
    """The velocity learned there leads from the state to the film of the run's own puzzle."""
    begun, learned, loss, begin = [], [], torch.nn.functional.mse_loss, train.OwnRuns.begin

    def watched(runs, *new):
        found = begin(runs, *new)
        begun.append((*[one.clone() for one in found], runs.levels(runs.step)))
        return found

    def passed(module, arguments, output):
        if isinstance(module, WanTransformer3DModel) and module.training:
            passes.append((*arguments, output[0].detach()))

    passes = []
    hook = torch.nn.modules.module.register_module_forward_hook(passed)
    monkeypatch.setattr(train.OwnRuns, "begin", watched)
    monkeypatch.setattr(torch.nn.functional, "mse_loss", lambda v, t: learned.append(t.clone()) or loss(v, t))
    train.train(dataclasses.replace(run, out=tmp_path / "run", samples=64, every=64, rollout=5))
    hook.remove()
    passes = passes[-4:]  # those before were timed to choose a precision
    assert len(begun) == len(passes) == 4
    for (x, _, given, words, s), (entry, level, texts, _) in zip(begun, passes, strict=True):
        assert torch.equal(entry[:8], torch.cat([x, given], 1)) and torch.equal(texts[:8], words)
        assert torch.allclose(level[:8], s * 1000) and not entry.requires_grad
    for now, then, one in zip(begun, begun[1:], passes, strict=False):
        on = then[4] < now[4]  # the runs that go on: a step of Euler's along the model's own velocity
        step = train.wide(then[4] - now[4]) * one[3][:8].float()
        assert on.any() and torch.allclose(then[0][on], (now[0] + step)[on], atol=1e-5)
    for (x, truth, _, _, s), target in zip(begun, learned, strict=True):
        assert len(x) == 8 and len(target) == 16
        assert torch.allclose(x - target[:8] * train.wide(s), truth, atol=1e-4)
    assert begun[0][4].eq(1).all() and (begun[1][4] < 1).all()
    assert torch.equal(begun[0][1], begun[1][1]), "a run keeps its puzzle"


@pytest.mark.slow
def test_a_gradient_that_is_no_number_ends_the_run_too(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(
        FloatingPointError, match="step 0, 0 films seen: the loss is [0-9.]+ and its gradient has norm inf"
    ):
        train.train(dataclasses.replace(run, out=tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


# ---------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(samples=0), "samples must be 1 or more, got 0"),
        (dict(batch=-1), "batch must be 1 or more, got -1"),
        (dict(layers=0), "layers must be 1 or more"),
        (dict(every=0), "every must be 1 or more"),
        (dict(samples=1.5), "samples must be an integer, got 1.5"),
        (dict(seed=-1), "seed must be 0 or more, got -1"),
        (dict(seed=2000), "seed must be below 1125, got 2000"),
        (dict(rate=float("nan")), "rate must be a positive number, got nan"),
        (dict(shift=0), "shift must be a positive number, got 0"),
        (dict(perturb=-0.1), "perturb must be a number from 0 on, got -0.1"),
        (dict(rollout=-1), "rollout must be 0 or more, got -1"),
        (dict(rollout=9, batch=1), "half of a batch are own states: it needs 2 or more, got batch=1"),
        (dict(rollout=3), "own runs have 4 steps or more, got rollout=3"),
        (dict(rollout=9, memory=True), "rollout goes without perturb, memory, teacher and several lengths"),
        (dict(rollout=9, perturb=0.1), "rollout goes without perturb, memory, teacher and several lengths"),
        (dict(rollout=9, lengths=(9, 17)), "rollout goes without perturb, memory, teacher and several lengths"),
        (dict(cooldown=1.5), "cooldown is a share of the samples, at most 1, got 1.5"),
        (dict(device="tpu"), "device is one of cpu, cuda, got 'tpu'"),
        (dict(precision="float16"), "precision is one of auto, float32, bfloat16, got 'float16'"),
        (dict(split="hash"), "split is one of seed, content, got 'hash'"),
        (dict(lengths=()), "no length to train on"),
        (dict(lengths=(17, 21)), "a film is told in 5, 9, 13 or 17 frames, got 21"),
        (dict(weights={}), "no task to train on"),
        (dict(weights={"mase": 1.0}), "unknown task 'mase'"),
        (dict(weights={"maze": -1.0}), "the weight of maze must be a positive number, got -1.0"),
        (dict(init="nowhere"), "nowhere is no pipeline folder"),
        (dict(teacher="nowhere"), "nowhere is no pipeline folder"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        Plan(**dict(out=tmp_path, weights={"maze": 1.0}) | changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into the folder .*file"):
        train.train(dataclasses.replace(run, out=tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write into the folder .*file"):
        release.release(run.out, tmp_path / "file" / "model")
    monkeypatch.setattr(sys, "argv", ["evaluate", "cos-mini", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "cannot write into the folder" in capsys.readouterr().err


def test_paths_may_begin_at_home(tmp_path, parent, monkeypatch):
    monkeypatch.setenv("HOME", str(parent.parent))
    plan = Plan("~/runs", {"maze": 1.0}, init=f"~/{parent.name}")
    assert plan.out == parent.parent / "runs" and plan.init == parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--tasks maze=two", "error: the weight of maze must be a number, got 'two'"),
        ("--tasks maze,maze", "error: the task maze is named twice in 'maze,maze'"),
        ("--tasks maze,", "error: unknown task ''"),
        ("--tasks shelf --samples -3", "error: samples must be 1 or more, got -3"),
        ("--tasks shelf --layers 3 --batch 16", "error: the run in .* has batch|layers"),
    ],
)
def test_the_command_refuses_in_one_sentence(run, monkeypatch, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(run.out), *given.split()])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, last), last


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    chosen = []
    cuda = SimpleNamespace(device_count=lambda: 2, set_device=chosen.append, is_available=lambda: True)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.own_device("cuda") == torch.device("cuda", 1) and chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 has no GPU of its own: this machine has 2"):
        train.own_device("cuda")
    assert train.own_device("cpu") == torch.device("cpu")


def test_the_faster_precision_is_chosen_and_both_are_told(capsys):
    model = build_transformer(layers=1, width=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with train.processes():
        pace = train.fastest(model, 4, torch.device("cpu"), "auto")
        fixed = train.fastest(model, 4, torch.device("cpu"), "bfloat16")
    told, other = capsys.readouterr().out.splitlines()
    speeds = {
        part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1])
        for part in told.split("; ")[0].removeprefix("films a second: ").split(", ")
    }
    best = told.rsplit("chosen: ", 1)[1]
    assert {name.split()[0] for name in speeds} == {"float32", "bfloat16"}
    assert speeds[best] == max(speeds.values()) and pace.precision == best.split()[0]
    assert fixed.precision == "bfloat16" and "float32" not in other
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    with pace(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == (pace.precision == "bfloat16")


# ---------------------------------------------------------------- what it trains on
def test_training_puzzles_are_a_pure_function_of_their_number():
    weights = dict(maze=1.0, shelf=1.0)
    one = next(iter(Puzzles(weights, 8, rank=0, ranks=1, start=0)))
    halves = [next(iter(Puzzles(weights, 4, rank=r, ranks=2, start=0))) for r in (0, 1)]
    assert torch.equal(one[0][0::2], halves[0][0]) and torch.equal(one[0][1::2], halves[1][0])
    assert one[1][0::2] == halves[0][1]


def test_training_by_content_leaves_out_what_is_kept():
    films, prompts = next(iter(Puzzles({"size_pattern": 1.0}, 150, 0, 1, 0, by_content=True)))
    plain, _ = next(iter(Puzzles({"size_pattern": 1.0}, 150, 0, 1, 0)))
    kept = {p.ids[0].tobytes() + p.prompt.encode() for p in split.draw("size_pattern", split.REPORT, 40, "report")}
    shown = [film[0].numpy().tobytes() for film in films]
    assert not kept & {first + prompt.encode() for first, prompt in zip(shown, prompts, strict=True) if prompt}
    same = [torch.equal(a, b) for a, b in zip(films, plain, strict=True)]
    assert 0.5 < np.mean(same) < 1


def test_films_are_told_in_the_lengths_wanted():
    """Each batch has one length, all lengths come up, and every film begins and ends as the whole one does."""
    whole, told = (iter(Puzzles({"maze": 1.0}, 4, 0, 1, 0, lengths=lengths)) for lengths in ((17,), (5, 9, 17)))
    seen = set()
    for _ in range(12):
        (long, words), (film, same) = next(whole), next(told)
        assert words == same and torch.equal(film[:, 0], long[:, 0]) and torch.equal(film[:, -1], long[:, -1])
        seen.add(film.shape[1])
    assert seen == {5, 9, 17}


@pytest.mark.slow
def test_a_model_is_trained_on_several_lengths(run, tmp_path):
    plan = dataclasses.replace(run, out=tmp_path / "run", lengths=(5, 17), samples=64, every=64)
    train.train(plan)
    assert train.read_state(plan.out / "checkpoint.pt")["arguments"]["lengths"] == "5, 17"


def test_a_shallower_model_inherits_blocks_at_even_distances():
    parent, child = build_transformer(layers=4, width=32), build_transformer(layers=2, width=32)
    train.inherit(child, parent)
    for mine, theirs in ((0, 1), (1, 3)):
        for a, b in zip(child.blocks[mine].parameters(), parent.blocks[theirs].parameters(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(child.patch_embedding.weight, parent.patch_embedding.weight)
    with pytest.raises(ValueError, match="4 blocks cannot begin with the 2 blocks"):
        train.inherit(parent, child)
    with pytest.raises(ValueError, match=r"this model's .* has shape \(.*64.*\), its parent's \(.*32.*\)"):
        train.inherit(build_transformer(layers=2, width=64), child)


@pytest.mark.slow
def test_a_teacher_of_another_codec_is_refused(run, tmp_path):
    codec = PatchCodec(8)
    build_pipeline(codec, build_transformer(8, layers=1, width=32)).save_pretrained(tmp_path / "teacher")
    plan = dataclasses.replace(run, out=tmp_path / "run", teacher=tmp_path / "teacher")
    with pytest.raises(ValueError, match="the teacher takes 20 channels, its student 36: give it as init too"):
        train.train(plan)


@pytest.mark.slow
def test_a_student_learns_from_its_teacher(run, parent, tmp_path):
    train.train(dataclasses.replace(run, out=tmp_path / "run", teacher=parent, samples=32, every=32))
    (row,) = read_log(tmp_path / "run" / "log.jsonl")
    assert row["seen"] == 32 and "four_steps" in row and "ten_steps" not in row


@pytest.mark.slow
def test_a_model_with_a_memory_learns_from_its_first_estimate_and_is_released(run, parent, tmp_path):
    plan = dataclasses.replace(run, out=tmp_path / "run", layers=2, samples=32, every=32, memory=True)
    train.train(plan)
    release.release(plan.out, tmp_path / "cos-mini-memory")
    again = load(tmp_path / "cos-mini-memory").transformer
    assert isinstance(again, RememberingWan)
    assert again.patch_embedding.weight[:, -again.config.out_channels :].abs().max() > 0  # zero when it began
    assert "sees its last estimate" in (tmp_path / "cos-mini-memory" / "README.md").read_text()


def test_the_first_estimate_is_that_of_a_pass_without_memory(parent):
    model = build_transformer(16, layers=2, memory=True).train()
    train.inherit(model, build_transformer(16, layers=2))
    entry, s, words = torch.randn(3, 36, 5, 10, 10), torch.tensor([0.9, 0.5, 0.3]), torch.randn(3, 16, 64)
    memory = train.first_estimate(model, entry, s, words, 2)
    with torch.no_grad():
        v = model(entry, s * 1000, words, return_dict=False)[0]
    torch.testing.assert_close(memory[1], entry[1, :16] - 0.5 * v[1])
    assert not memory[2].any()


@pytest.mark.slow
def test_training_begins_from_nothing(run, tmp_path, monkeypatch):
    """Without another model to begin with the codec is fitted, to training puzzles of the same split."""
    fitted = []
    monkeypatch.setattr(train, "fit_codec", lambda **how: fitted.append(how) or PatchCodec(8))
    train.train(dataclasses.replace(run, out=tmp_path / "run", init=None, samples=16, every=16, split="content"))
    assert fitted == [{"by_content": True}]
    assert PatchCodec.from_pretrained(tmp_path / "run" / "model" / "vae").config.z_dim == 8


@pytest.mark.slow
@pytest.mark.parametrize("within", ["seed", "content"])
def test_a_model_is_chosen_on_validation_puzzles(run, within):
    """Neither a report puzzle nor a training one, and by content none of their parts."""
    puzzles = train.validation(dataclasses.replace(run, split=within))
    assert len(puzzles) == 2 and all(p.seed in split.VALIDATION for p in puzzles)
    assert within == "seed" or {split.part(p) for p in puzzles} == {"validation"}


# ---------------------------------------------------------------- scores
@pytest.fixture(scope="module")
def pipe(parent):
    pipe = WanImageToVideoPipeline.from_pretrained(parent, vae=PatchCodec.from_pretrained(parent / "vae"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_scores_do_not_depend_on_the_batch(pipe):
    samples = [tasks.sample("shelf", seed) for seed in range(3)]
    together = [s.total for s in evaluate.scores(pipe, samples, steps=2, batch=3)]
    assert np.allclose(together, [s.total for s in evaluate.scores(pipe, samples, steps=2, batch=1)], atol=1e-6)


def test_every_puzzle_is_scored_from_noise_of_its_own(pipe, monkeypatch):
    """The noise follows from both seeds alone: another for each puzzle and run, the same for a twin."""
    used, generate = [], embedded.generate
    monkeypatch.setattr(embedded, "generate", lambda *args: used.append(args[1]) or generate(*args))
    samples = [tasks.sample("shelf", 0), tasks.sample("shelf", 1), tasks.sample("shelf", 1, twin=True)]
    for seed in (0, 1):
        evaluate.scores(pipe, samples, steps=1, seed=seed)
    for noise in used:
        assert torch.equal(noise[1], noise[2]) and not torch.equal(noise[0], noise[1])
        assert abs(torch.corrcoef(noise[:2].flatten(1))[0, 1]) < 0.1
    assert not torch.equal(used[0], used[1])


def test_a_model_whose_film_is_no_number_gets_no_score(pipe, parent):
    broken = build_pipeline(pipe.vae, build_transformer(layers=1, width=32))
    broken.transformer.proj_out.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match="the film of maze 4 is not finite: the model's weights are damaged"):
        evaluate.scores(broken, [tasks.sample("maze", 4)], steps=1)


@pytest.mark.parametrize("changes", [dict(steps=0), dict(steps=-1), dict(steps=1, batch=0)])
def test_sizes_of_no_score_are_refused(pipe, changes):
    with pytest.raises(ValueError, match="must be 1 or more"):
        evaluate.scores(pipe, [tasks.sample("maze", 4)], **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "seeds", "within"),
    [("", split.REPORT, None), ("--sealed", split.SEALED, None), ("--split content", split.REPORT, "report")],
)
def test_reported_scores_come_from_report_seeds(parent, tmp_path, monkeypatch, capsys, options, seeds, within):
    """The command's puzzles: by default report seeds below the sealed ones, never a validation or training seed."""
    asked = {}

    def films_of(pipe, samples, steps):
        asked.setdefault(samples[0].task, samples)
        return [sample.video for sample in samples]

    class Here:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        map = staticmethod(map)

    monkeypatch.setattr(evaluate, "films_of", films_of)
    monkeypatch.setattr(evaluate, "ProcessPoolExecutor", Here)
    argv = f"evaluate {parent} --puzzles 2 --steps 1 --out {tmp_path} {options}"
    monkeypatch.setattr(sys, "argv", argv.split())
    evaluate.main()
    assert set(asked) == set(tasks.NAMES)
    for samples in asked.values():
        assert all(sample.seed in seeds and sample.seed not in split.VALIDATION for sample in samples)
        assert within is None or {split.part(sample) for sample in samples} == {within}
    stored = json.loads((tmp_path / "start-scores.json").read_text())
    assert stored["provenance"]["seeds"][0] == seeds.start and options in stored["provenance"]["command"]
    numbers, guess = stored["numbers"], np.mean([len(s.films) / len(s.options) for s in asked["maze"]])
    assert numbers["maze/chance/decided"]["value"] == guess < numbers["maze/1 steps/decided"]["value"] == 1
    assert "| maze | 1.00 |" in capsys.readouterr().out


def test_a_film_is_read_for_what_it_decides_and_for_what_it_draws():
    """A jump to the right answer decides and does not move; a film that all answers share decides by a tie alone."""
    maze = tasks.sample("maze", 0)
    jump = chain.apart(maze, control("jump", maze))
    assert jump["decided"] == jump["cells"] == 1 and jump["motion"] < 0.8 and not jump["solved"]
    assert jump["score"] == jump["cells"] * jump["motion"]
    mixture = np.mean([world.draw(film) for film in maze.possible.values()], 0)
    mixed = chain.apart(maze, mixture.astype(np.float32))
    assert 0 < mixed["decided"] < 1 and not mixed["solved"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--puzzles 1", "--puzzles must be 2 or more, got 1"),
        ("--steps 0 4", "the number of steps must be 1 or more, got 0"),
        ("--workers 0", "--workers must be 1 or more, got 0"),
        ("--steps 1", "no-such-model"),
    ],
)
def test_the_score_command_refuses_in_one_sentence(parent, monkeypatch, capsys, given, message):
    model = "./no-such-model" if message == "no-such-model" else parent
    monkeypatch.setattr(sys, "argv", f"evaluate {model} {given}".split())
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_scores_of_another_model_are_not_overwritten(parent, tmp_path, monkeypatch, capsys):
    stored = tmp_path / f"{parent.name}-scores.json"
    stored.write_text('{"provenance": {"model": "somewhere/else"}}')
    monkeypatch.setattr(sys, "argv", f"evaluate {parent} --steps 1 --out {tmp_path}".split())
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "holds the scores of somewhere/else" in capsys.readouterr().err
    assert "numbers" not in json.loads(stored.read_text())


# ---------------------------------------------------------------- release
@pytest.mark.slow
def test_a_release_loads_and_an_altered_one_is_refused(run, tmp_path, monkeypatch):
    folder = tmp_path / "cos-mini"
    monkeypatch.setattr(release, "codec_error", functools.partial(release.codec_error, films=1))
    release.release(run.out, folder)
    monkeypatch.setenv("COSUTILS_DATA", str(tmp_path))
    loaded = load("cos-mini")
    trained = load(run.out / "model").transformer.patch_embedding.weight
    assert torch.equal(loaded.transformer.patch_embedding.weight, trained.half().float())
    assert not any(str(run.out) in p.read_text() for p in folder.rglob("*.json"))
    card = (folder / "README.md").read_text()
    for name, value in run.arguments().items():
        assert value is None or f"| {name} | {value} |" in card
    assert "192 films seen" in card and str(run.out.parent) not in card
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors"):
        load("cos-mini")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model", "no trained model in .*, it has no model/model_index.json"),
        ("checkpoint.pt", "no trained model in .*, it has no checkpoint.pt"),
        ("log.jsonl", "the run has no .*log.jsonl"),
    ],
)
def test_a_run_that_is_not_whole_is_not_released(copied, tmp_path, lost, message, monkeypatch, capsys):
    path = copied.out / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(sys, "argv", ["release", str(copied.out), str(tmp_path / "there")])
    with pytest.raises(SystemExit, match="2"):
        release.main()
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert list((tmp_path / "there").iterdir()) == []  # what was there is not lost


@pytest.mark.slow
def test_a_release_does_not_replace_its_run(copied):
    with pytest.raises(ValueError, match="cannot take the place of its run"):
        release.release(copied.out, copied.out / "model")
