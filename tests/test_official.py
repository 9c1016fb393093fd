"""The adapter's side of the contract with VBVR-EvalKit and VBVR-Pro-Bench: layout, names, call, and what it refuses.

`checkout` makes a stand-in of either: it takes the kit's arguments, walks the kit's folders (those of the answers, for
VBVR-Pro-Bench those of the truth), passes over what the kit passes over and writes the kit's result file. But its score
is the share of the last frame that looks like final_frame.png, its register knows six tasks, and its OpenCV, which
reads everything but AV1, is imageio. Everything else is real: puzzles, answers, videos, processes. The last tests run
the real kit where VBVR_EVALKIT names a checkout of it.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_films import ffmpeg, overwrite, shorten, square

import cosutils as cos
from cosutils import vbvr
from cosutils.films import write_film
from cosutils.pipelines.loading import data_folder
from cosutils.vbvr import check, official

SAMPLES = data_folder() / "vbvr-samples"
TRUTH = SAMPLES / "ground-truth"
SPLITS = ("In-Domain_50", "Out-of-Domain_50")
ROLES = ["model", *official.REFERENCES]

CV2 = """
__version__ = {opencv!r}
CAP_PROP_POS_FRAMES, CAP_PROP_FRAME_COUNT = 1, 7

class VideoCapture:
    def __init__(self, path):
        import imageio_ffmpeg
        is_read = next(imageio_ffmpeg.read_frames(path))["codec"] != "av1"
        self.count, self.place = imageio_ffmpeg.count_frames_and_secs(path)[0] if is_read else 0, 0
    def get(self, what):
        return float(self.count)
    def set(self, what, place):
        self.place = place
    def read(self):
        return 0 <= self.place < self.count, None
"""

REGISTER = """
MOVED = {pro!r}
TASK_EVALUATOR_MAP = dict.fromkeys((
    "G-21_multiple_occlusions_vertical_data-generator", "O-85_2d_object_rotation_data-generator",
    "G-31_directed_graph_navigation_data-generator", "O-34_dot_to_dot_task_data-generator",
    "O-59_symbol_insert_data-generator", "O-60_symbol_substitute_data-generator"))

def get_split(task):
    return "Out_of_Domain" if task[:4] in ("O-59", "O-60", "O-85") else "In_Domain"

def get_task_category(task):
    moved = "Abstraction" if MOVED else "Transformation"
    return {{"G-31": "Spatiality", "O-34": "Knowledge"}}.get(task[:4], moved)
"""

EVALUATOR = """
class BaseEvaluator:
    TASK_WEIGHTS = {"identification": 0.6, "fidelity": 0.3, "layout": 0.1}

    def evaluate(self, info, score):
        if not info["video_path"].split("/")[-2].startswith("O-60"):
            self._last_task_details = {"identification": score, "fidelity": 1.0, "cells": 3, "layout": None}
        return {"details": {"task_specific_details": getattr(self, "_last_task_details", None)}}
"""

SCRIPT = """
import argparse, json, os, re, sys
import imageio_ffmpeg
from PIL import Image, ImageChops

parser = argparse.ArgumentParser()
for name in ("--models_base", "--gt_base", "--output_dir", "--device"):
    parser.add_argument(name, required=True)
args = parser.parse_args()
scorer = __import__({package!r} + ".evaluators.base_evaluator", fromlist="*").BaseEvaluator()
mode, pro = {mode!r}, {pro!r}
if mode == "crash":
    sys.exit("out of order")
calls = os.path.join(os.path.dirname(os.path.abspath(__file__)), "calls.jsonl")
os.makedirs(args.output_dir, exist_ok=True)
for name in sorted(os.listdir(args.models_base)):
    samples = []
    for folder in ("In-Domain_50", "Out-of-Domain_50"):
        model = os.path.join(args.models_base, name, folder)
        root = os.path.join(args.gt_base, folder) if pro else model
        for task in sorted(os.listdir(root)) if os.path.isdir(root) else ():
            if mode == "skip" and task.startswith("O-59"):
                print("Warning: No evaluator for task", task)
                continue
            for entry in sorted(os.listdir(os.path.join(root, task))):
                if not re.fullmatch(r"\\d{{5}}" + ("" if pro else r"\\.mp4"), entry):
                    continue
                file, truth = entry[:5] + ".mp4", os.path.join(args.gt_base, folder, task, entry[:5])
                prompt = open(os.path.join(truth, "prompt.txt")).read()
                error, path = None, os.path.join(model, task, file)
                if not os.path.exists(path):
                    samples.append(dict(folder=folder, task_name=task, video_file=file, video_path=None, score=0.0,
                                        dimensions={{}}, error="no prediction"))
                    continue
                film = imageio_ffmpeg.read_frames(path)
                side, film = next(film)["size"], list(film)
                given = Image.frombytes("RGB", side, film[-1]), Image.open(os.path.join(truth, "final_frame.png"))
                wrong = ImageChops.difference(*(one.resize((32, 32), Image.BOX) for one in given)).histogram()
                score = 1 - sum(wrong[channel * 256 + value] for channel in range(3) for value in range(25, 256)) / 3072
                score = {{"nan": float("nan"), "zero": 0.0, "inverse": 1 - score}}.get(mode, score)
                scorer.evaluate(dict(video_path=path), score=score)
                mix = {{"task_specific": score}} | ({{"visual_quality": 1.0}} if mode == "mix" else {{}})
                if mode == "fail all" or mode == "error" and task.startswith("O-60") and name == "model":
                    error, mix = "name 'safe_distance' is not defined", {{}}
                    score = 0.0
                samples.append(dict(folder=folder, task_name=task, video_file=file, score=score, dimensions=mix,
                                    error=error, frames=len(film), side=side[0], prompt=prompt))
    with open(calls, "a") as log:
        log.write(json.dumps(dict(name=name, device=args.device, samples=samples)) + "\\n")
    if mode == "other":
        samples = [sample | dict(video_file="00007.mp4") for sample in samples]
        print("done")
    if not samples:
        print("No videos found in", name)
        continue
    with open(os.path.join(args.output_dir, name + "_vbvr_results.json"), "w") as out:
        json.dump(dict(samples=samples), out)
"""


def checkout(root, mode="good", opencv="4.13.0", pro=False):
    """A stand-in checkout, and beside it the modules that its Python must find (for PYTHONPATH)."""
    bench = official.BENCHES[pro]
    for module in ("cv2", *bench.needs):
        (root / "modules" / module).mkdir(parents=True, exist_ok=True)
        if module not in ("PIL", "tqdm", "scipy", "imageio_ffmpeg"):  # those are the real ones
            (root / "modules" / module / "__init__.py").write_text(CV2.format(opencv=opencv) if module == "cv2" else "")
        else:
            (root / "modules" / module).rmdir()
    (root / "kit" / bench.packages[0] / "evaluators").mkdir(parents=True)
    (root / "kit" / bench.packages[0] / "evaluators" / "__init__.py").write_text(REGISTER.format(pro=pro))
    (root / "kit" / bench.packages[0] / "evaluators" / "base_evaluator.py").write_text(EVALUATOR)
    (root / "kit" / bench.script).write_text(SCRIPT.format(mode=mode, pro=pro, package=bench.packages[0]))
    return root / "kit"


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Makes a stand-in checkout of a mode and with an OpenCV version, and names it in the environment."""

    def make(mode="good", opencv="4.13.0", pro=False):
        root = checkout(tmp_path / ("pro" if pro else "stand-in"), mode, opencv, pro)
        monkeypatch.setenv("PYTHONPATH", str(root.with_name("modules")))
        monkeypatch.setenv(official.CHECKOUT, str(root))
        monkeypatch.setenv(official.EASYOCR, str(root.with_name("modules")))
        monkeypatch.delenv(official.PYTHON, raising=False)
        return root

    return make


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A benchmark folder of two of the samples and of G-31, at 64 pixels."""
    root = tmp_path_factory.mktemp("bench")
    for puzzle in vbvr.read(TRUTH, tasks=["G-31", "O-59", "O-60"], limit=1, pixels=64):
        place = root / puzzle.name
        write_film(np.uint8(np.rint(puzzle.video * 255)), place / "ground_truth.mp4")
        for name, picture in (("first_frame", puzzle.image), ("final_frame", puzzle.final)):
            picture.save(place / f"{name}.png")
        (place / "prompt.txt").write_text(puzzle.prompt)
        (place / "metadata.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def puzzles(bench):
    return vbvr.read(bench, splits=["Out-of-Domain_50"], pixels=64, frames=5)


@pytest.fixture(scope="module")
def answers(puzzles, tmp_path_factory):
    """The ground truth as a perfect model at 64 px would give it."""
    folder = tmp_path_factory.mktemp("answers")
    for puzzle in puzzles:
        vbvr.save_answer(puzzle.video, puzzle, folder)
    return folder


def calls(root):
    return [json.loads(line) for line in (root / "calls.jsonl").read_text().splitlines()]


def slugs(roles=ROLES):
    return sorted(official._slug(role) for role in roles)


@pytest.mark.slow
def test_model_truth_and_floors_are_scored_in_the_kits_layout(kit, tmp_path):
    root, work, answers = kit(), tmp_path / "work", tmp_path / "answers"
    puzzles = vbvr.read(TRUTH, splits=["Out-of-Domain_50"], limit=1, pixels=64, frames=5)
    for puzzle in puzzles:
        vbvr.save_answer(puzzle.video, puzzle, answers)
    report = official.score(puzzles, answers, work)
    assert list(report.scores) == ROLES
    assert all(list(scores) == [puzzle.name for puzzle in puzzles] for scores in report.scores.values())
    means = {role: np.mean(list(scores.values())) for role, scores in report.scores.items()}
    assert all(means[role] > 0.97 for role in ROLES if role not in (official.FROZEN, official.NOISE))
    assert means[official.TRUTH] > means[official.FROZEN] > means[official.NOISE]
    for puzzle in puzzles:
        given, final = (np.float32(one.resize((32, 32), Image.BOX)) for one in (puzzle.image, puzzle.final))
        held = report.scores[official.FROZEN][puzzle.name]
        assert held == pytest.approx(1 - (abs(given - final) > 24).mean(), abs=0.02) and held < 1
    seen = calls(root)
    assert sorted(call["name"] for call in seen) == sorted(2 * slugs()) and {call["device"] for call in seen} == {"cpu"}
    made = {(call["name"], sample["side"], sample["frames"]) for call in seen for sample in call["samples"]}
    references = {(official._slug(role), 64, frames) for role in official.REFERENCES for frames in (24, 22)}
    truth = {(official._slug(official.TRUTH), side, frames) for side in (64, 1024) for frames in (24, 22)}
    assert made == {("model", 64, 24), ("model", 64, 22)} | references ^ truth

    stored = json.loads((work / "model.json").read_text())
    assert stored["task_specific"] == report.scores and stored["bench"] == "VBVR-Bench" and stored["failures"] == {}
    assert sorted(path.name for path in work.iterdir()) == ["model.json", "scores"]
    lines = report.table().splitlines()
    assert lines[0] == f"VBVR-Bench at commit unknown (digest {report.kit.digest}), OpenCV 4.13.0"
    assert lines[2].startswith("model ") and "2 puzzles" in lines[2] and len(lines) == 2 + len(ROLES)
    assert list(report.numbers()) == [f"vbvr/task_specific {role}" for role in ROLES]
    assert report.numbers()["vbvr/task_specific noise"]["n"] == 2


@pytest.mark.slow
def test_every_score_is_kept_until_something_that_decides_it_changes(kit, bench, puzzles, answers, tmp_path):
    root, work = kit(), tmp_path / "work"
    before = official.score(puzzles[1:], answers, work)
    again = official.score(puzzles[1:], answers, work, "noise-at-step-3", official.find_kit())
    assert again.scores["noise-at-step-3"] == before.scores["model"] and len(calls(root)) == 6  # the same film
    official.score(puzzles, answers, work)
    assert [call["name"] for call in calls(root)[6:]] == slugs()  # of the other puzzle alone

    mine, copied = tmp_path / "mine", tmp_path / "copied"
    shutil.copytree(answers, mine)
    write_film(square(64, 24), vbvr.answer_path(puzzles[0], mine))
    official.score(puzzles, mine, work)
    assert [call["name"] for call in calls(root)[12:]] == ["model"]  # the references are of the same size
    write_film(square(96, 24), vbvr.answer_path(puzzles[0], mine))
    official.score(puzzles, mine, work)
    assert [call["name"] for call in calls(root)[13:]] == slugs([role for role in ROLES if role != official.TRUTH])

    shutil.copytree(bench, copied)
    moved = vbvr.read(copied, splits=["Out-of-Domain_50"], limit=1, pixels=64, frames=5)
    official.score(moved, answers, work)
    assert len(calls(root)) == 18  # another place is no other puzzle
    (moved[0].folder / "metadata.json").write_text("{ }")
    official.score(moved, answers, work)
    assert len(calls(root)) == 24
    with open(root / "run_evaluation.py", "a") as script:
        script.write("# another scorer\n")
    official.score(puzzles[:1], answers, work)
    assert len(calls(root)) == 30


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_puzzle_where_it_was(kit, puzzles, answers, tmp_path):
    kit("skip")  # passes over the first puzzle, O-59
    with pytest.raises(RuntimeError, match="failed on model .*O-59"):
        official.score(puzzles[::-1], answers, tmp_path / "work")
    assert len(list((tmp_path / "work" / "scores").iterdir())) == 6


@pytest.mark.slow
def test_splits_and_faculties_are_reported_apart(kit, bench, tmp_path):
    kit()
    both = vbvr.read(bench, tasks=["G-31", "O-60"], pixels=64, frames=5)
    for puzzle in both:
        vbvr.save_answer(np.asarray(puzzle.image)[None], puzzle, tmp_path / "answers")
    report = official.score(both, tmp_path / "answers", tmp_path / "work")
    numbers = report.numbers("test")
    assert [entry["n"] for name, entry in numbers.items() if "fic model" in name] == [2, 1, 1] and len(numbers) == 18
    alone = numbers["test/task_specific noise Out-of-Domain_50"]
    assert alone == {"value": report.scores["noise"][both[1].name], "n": 1}  # one value has no interval
    assert "noise Out-of-Domain_50" in report.table()
    faculties = report.numbers(by="faculty")
    assert faculties["vbvr/task_specific noise Transformation"] == alone and "noise Spatiality" in report.table(
        "faculty"
    )
    with pytest.raises(ValueError, match="by 'split' or 'faculty', got 'task'"):
        report.numbers(by="task")


@pytest.mark.slow
def test_a_failed_sample_is_named_and_counted_both_ways(kit, puzzles, answers, tmp_path):
    root = kit("error")
    report = official.score(puzzles, answers, tmp_path / "work")
    bad = puzzles[1].name
    assert report.failures == {"model": {bad: "name 'safe_distance' is not defined"}} and report.failed == [bad]
    good = report.scores["model"][puzzles[0].name]
    numbers = report.numbers()
    assert numbers["vbvr/task_specific model"]["value"] == pytest.approx(good / 2)
    assert numbers["vbvr/task_specific model without the failed samples"] == {"value": good, "n": 1}
    assert numbers["vbvr/task_specific noise without the failed samples"]["n"] == 1  # all of the same puzzles
    lines = report.table().splitlines()
    assert "model, official (failures = 0)" in lines[2] and "model without the failed samples" in lines[3]
    assert lines[-1].startswith(f"failed: {bad} (model): name 'safe_distance' is not defined (commit f008281")
    assert json.loads((tmp_path / "work" / "model.json").read_text())["failures"] == report.failures
    before = len(calls(root))
    official.score(puzzles, answers, tmp_path / "work")
    assert [call["name"] for call in calls(root)[before:]] == ["model"]  # a failure is tried again


@pytest.mark.slow
def test_what_was_left_out_is_told(kit, bench, answers, tmp_path):
    kit()
    left = "Out-of-Domain_50/O-60_symbol_substitute_data-generator/00000"
    rest = vbvr.read(bench, splits=SPLITS[1:], pixels=64, frames=5, skip=[left])
    report = official.score(rest, answers, tmp_path / "work")
    assert report.skipped == (left,) and report.table().splitlines()[-1] == f"left out: {left}"
    assert json.loads((tmp_path / "work" / "model.json").read_text())["left out"] == [left]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, words",
    [
        ("fail all", "failed on every puzzle, first model .*O-59.*safe_distance"),
        (
            "skip",
            r"failed on model .*O-59.*/00000 \(exit code 0\): Warning: No evaluator for task O-59.*; No videos found",
        ),
        ("other", "passed over model .*O-59.*/00000: done"),
        ("mix", "does not know that evaluator"),
        ("nan", "does not know that evaluator"),
        ("zero", "the truth scores 0 on every puzzle, first Out-of-Domain_50/O-59.* VBVR-Bench at commit"),
        ("inverse", "the truth scores below the frozen first frame on every puzzle|the truth scores 0"),
        ("crash", r"failed on model .*O-59.*/00000 \(exit code 1\): out of order"),
    ],
)
def test_what_the_kit_lets_pass_is_an_error(kit, puzzles, answers, tmp_path, mode, words):
    kit(mode)
    with pytest.raises(RuntimeError, match=words):
        official.score(puzzles[:1], answers, tmp_path / "work")
    assert not (tmp_path / "work" / "model.json").exists()


@pytest.mark.slow
def test_missing_and_damaged_answers_are_errors(kit, puzzles, answers, tmp_path):
    kit()
    mine = tmp_path / "mine"
    shutil.copytree(answers, mine)
    path = vbvr.answer_path(puzzles[1], mine)
    whole = path.read_bytes()
    shorten(path, 0.4)
    with pytest.raises(ValueError, match="00000.mp4 is truncated"):
        official.score(puzzles, mine, tmp_path / "work")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 answers are missing"):
        official.score(puzzles, mine, tmp_path / "work")
    path.write_bytes(whole)
    plain = write_film(square(64), tmp_path / "film.mp4")
    ffmpeg("-i", plain, "-c:v", "libaom-av1", "-cpu-used", "8", path)
    with pytest.raises(ValueError, match=r"00000.mp4: OpenCV 4.13.0 of .* cannot read it .*write it anew with films"):
        official.score(puzzles, mine, tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ground_truth.mp4", "final_frame.png", "first_frame.png"])
def test_a_damaged_truth_is_an_error(kit, bench, answers, tmp_path, name):
    kit()
    shutil.copytree(bench / SPLITS[1], tmp_path / "bench" / SPLITS[1])
    mine = vbvr.read(tmp_path / "bench", pixels=64, frames=5)
    overwrite(mine[1].folder / name, 40)
    with pytest.raises(ValueError, match=f"{name} is (damaged|not a readable picture)"):
        official.score(mine, answers, tmp_path / "work")


def linked(bench, root, how):
    """The benchmark in `root` through links: of its files (as in a hub's cache), of a sample, of the whole."""
    if how == "root":
        root.symlink_to(bench, target_is_directory=True)
    for number, path in enumerate(bench.glob({"files": "Out*/*/00000/*", "samples": "Out*/*/00000"}.get(how, "none"))):
        place = root / path.relative_to(bench)
        place.parent.mkdir(parents=True, exist_ok=True)
        if how == "files":
            path = shutil.copyfile(path, root.with_name(f"blob{number}")).absolute()
        place.symlink_to(path)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("how", ["files", "samples", "root"])
def test_a_benchmark_of_links_is_scored_as_what_it_links_to(kit, bench, answers, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    kit()
    odd = Path("a [1] 50%d ä")
    odd.mkdir()
    shutil.copytree(answers, odd / "answers")
    mine = vbvr.read(linked(bench, odd / "linked", how), splits=SPLITS[1:], pixels=64, frames=5)
    report = official.score(mine, odd / "answers", odd / "work")
    assert min(report.scores[official.TRUTH].values()) > 0.97 and (tmp_path / odd / "work" / "model.json").is_file()


@pytest.mark.slow
def test_the_kit_reads_prompts_as_plain_text_and_reads_so_many_frames(kit, bench, tmp_path):
    root = kit()
    shutil.copytree(bench / SPLITS[0], tmp_path / "bench" / SPLITS[0])
    (prompt,) = (tmp_path / "bench").rglob("prompt.txt")
    prompt.write_text("Follow → the arrows.", encoding="utf-16")
    mine = vbvr.read(tmp_path / "bench", pixels=64, frames=5)
    vbvr.save_answer(square(64, 101), mine[0], tmp_path / "answers")
    with pytest.warns(UserWarning, match="1 answers have more frames, up to 101: VBVR-Bench reads 100 of them"):
        official.score(mine, tmp_path / "answers", tmp_path / "work")
    assert {sample["prompt"] for call in calls(root) for sample in call["samples"]} == {"Follow → the arrows."}


def test_puzzles_that_the_kit_does_not_score_are_refused_before_anything_is(kit, puzzles, answers, tmp_path):
    root = kit()
    shutil.copytree(puzzles[1].folder.parent, tmp_path / "wrong" / SPLITS[0] / puzzles[1].task)
    wrong = vbvr.read(tmp_path / "wrong", limit=1, pixels=64, frames=5)
    with pytest.raises(ValueError, match="lies in the wrong split: VBVR-Bench has its task in Out-of-Domain_50"):
        official.score(wrong, answers, tmp_path / "work")
    other = puzzles[1].folder.parents[1].name
    shutil.copytree(puzzles[1].folder, tmp_path / "new" / other / "X-1_new_data-generator" / "00000")
    new = vbvr.read(tmp_path / "new", pixels=64, frames=5)
    with pytest.raises(ValueError, match="no scorer for the task 'X-1_new_data-generator' in VBVR-Bench at commit"):
        official.score(new, answers, tmp_path / "work")
    with pytest.raises(ValueError, match="two puzzles are named Out-of-Domain_50/O-59"):
        official.score([*puzzles, puzzles[0]], answers, tmp_path / "work")
    assert not (root / "calls.jsonl").exists()


@pytest.mark.parametrize("name", ["noise", "ground-truth", "a/b", "", "../up"])
def test_a_name_is_a_file_name_of_its_own(kit, puzzles, answers, tmp_path, name):
    kit()
    with pytest.raises(ValueError, match="a name is of letters"):
        official.score(puzzles, answers, tmp_path / "work", name)
    with pytest.raises(ValueError, match="no puzzles to score"):
        official.score([], answers, tmp_path / "work")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into the folder .*file/work"):
        official.score(puzzles, answers, tmp_path / "file" / "work")


@pytest.mark.slow
# ---------------------------------------------------------------- VBVR-Pro-Bench
def test_the_newer_benchmark_is_scored_on_a_subset_and_says_what_it_is(kit, puzzles, answers, tmp_path):
    root = kit(pro=True)
    report = official.score(puzzles[:1], answers, tmp_path / "work")  # the kit asks for answers to all that it sees
    assert report.failures == {} and [len(call["samples"]) for call in calls(root)] == [1] * len(ROLES)
    assert report.table().startswith("VBVR-Pro-Bench at commit unknown")
    assert set(report.numbers()) == {f"vbvr_pro/task_specific {role}" for role in ROLES}
    assert json.loads((tmp_path / "work" / "model.json").read_text())["bench"] == "VBVR-Pro-Bench"
    assert report.kit.tasks[puzzles[0].task] == (SPLITS[1], "Abstraction")


@pytest.mark.slow
def test_scores_of_the_two_benchmarks_are_never_mixed(kit, puzzles, answers, tmp_path):
    old, new = (checkout(tmp_path / str(pro), pro=pro) for pro in (False, True))
    kit(pro=True)  # all modules
    for root in (old, new, old, new):
        official.score(puzzles[:1], answers, tmp_path / "work", kit=official.find_kit(root))
    assert len(calls(old)) == len(calls(new)) == len(ROLES)


def test_the_newer_benchmark_needs_its_metadata(kit, bench, answers, tmp_path):
    kit(pro=True)
    shutil.copytree(bench / SPLITS[1], tmp_path / "bench" / SPLITS[1])
    mine = vbvr.read(tmp_path / "bench", pixels=64, frames=5)
    (mine[1].folder / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="metadata.json: line 1"):
        official.score(mine, answers, tmp_path / "work")
    (mine[1].folder / "metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match="no .*metadata.json: VBVR-Pro-Bench needs it"):
        official.score(mine, answers, tmp_path / "work")


def test_the_newer_benchmark_names_the_packages_and_weights_that_it_lacks(kit, monkeypatch):
    root = kit(pro=True)
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.delenv(official.EASYOCR)
    with pytest.raises(RuntimeError, match="no weights of EasyOCR in .*set VBVR_EASYOCR_MODELS to a folder"):
        official.find_kit()
    for module in ("norfair", "easyocr"):
        shutil.rmtree(root.with_name("modules") / module)
    with pytest.raises(RuntimeError, match="cannot import norfair: give it 'norfair' 'easyocr' for VBVR-Pro-Bench"):
        official.find_kit()


def test_23_tasks_have_another_faculty_in_the_newer_benchmark():
    assert len(official.MOVED) == 23 and all(was != now for was, now in official.MOVED.values())
    assert official.MOVED["G-5"] == ("Perception", "Transformation") and official.MOVED["O-61"][1] == "Abstraction"


@pytest.mark.slow
# ---------------------------------------------------------------- the check set
def test_an_installation_is_verified_by_known_scores(kit, tmp_path, capsys):
    kit()
    mine, work = tmp_path / "check-set", ["--work", str(tmp_path / "work")]
    shutil.copytree(data_folder() / "check-set", mine, ignore=shutil.ignore_patterns("O-*", "Out*", "00001*"))
    assert check.main(["--folder", str(mine), *work]) == 1  # a stand-in is another scorer
    assert "ground truth In-Domain_50/G-21" in capsys.readouterr().out
    known = json.loads((mine / "known.json").read_text())
    scores = json.loads((tmp_path / "work" / "cos-mini.json").read_text())["task_specific"]
    known["VBVR-Bench"]["task_specific"] = scores
    (mine / "known.json").write_text(json.dumps(known))
    assert check.main(["--folder", str(mine), *work]) == 0 and "all scores are the known" in capsys.readouterr().out
    name = next(iter(scores["noise"]))
    scores["noise"][name] += 0.03
    (mine / "known.json").write_text(json.dumps(known))
    assert check.main(["--folder", str(mine), *work]) == 1
    assert re.search(f"^noise {name}: known .*, here ", capsys.readouterr().out, re.M)
    kit(pro=True)
    assert check.main(["--folder", str(mine), *work]) == 2 and "not compared" in capsys.readouterr().out


def test_the_check_set_is_ours_and_its_known_scores_are_of_all_that_is_scored():
    folder = data_folder() / "check-set"
    puzzles, known = check.puzzles(folder), json.loads((folder / "known.json").read_text())["VBVR-Bench"]
    assert list(known["task_specific"]) == ["cos-mini", *official.REFERENCES]
    for scores in known["task_specific"].values():
        assert list(scores) == [puzzle.name for puzzle in puzzles]
    facts = [json.loads((puzzle.folder / "metadata.json").read_text()) for puzzle in puzzles]
    for puzzle, fact in zip(puzzles, facts, strict=True):
        sample = cos.tasks.sample(fact["task"], fact["seed"])
        assert puzzle.prompt == sample.prompt and abs(puzzle.video - sample.video).mean() < 0.02
    vbvr.check_answers(puzzles, folder / "answers")


# ---------------------------------------------------------------- the checkout and its Python
def test_opencv_5_and_none_at_all_are_refused(kit):
    kit(opencv="5.0.0-pre")
    with pytest.raises(RuntimeError, match="OpenCV 5.0.0-pre breaks scorers"):
        official.find_kit()


def test_a_python_without_opencv_is_refused(kit):
    root = kit()
    (root.with_name("modules") / "cv2" / "__init__.py").write_text("raise ImportError('libGL.so.1 is missing')\n")
    with pytest.raises(
        RuntimeError, match=r"OpenCV \(libGL.so.1 is missing\): give it 'opencv-python-headless>=4.13,<5'"
    ):
        official.find_kit()


def test_scorers_that_cannot_be_imported_keep_their_reason(kit):
    root = kit()
    (root / "vbvr_bench" / "evaluators" / "__init__.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(
        RuntimeError, match="could not run the evaluator's scorers: ModuleNotFoundError.*nothing_of_that"
    ):
        official.find_kit()


def test_the_checkout_must_be_named_and_be_one(monkeypatch, tmp_path):
    monkeypatch.delenv(official.CHECKOUT, raising=False)
    with pytest.raises(RuntimeError, match="set VBVR_EVALKIT to a checkout"):
        official.find_kit()
    with pytest.raises(FileNotFoundError, match="no run_evaluation.py and no run_evaluation_video.py in"):
        official.find_kit(tmp_path)


def test_checkout_and_python_may_be_relative_and_a_missing_python_is_named(kit, monkeypatch):
    root = kit()
    monkeypatch.chdir(root.parent)
    (root.parent / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (root.parent / "python").chmod(0o755)
    monkeypatch.setenv(official.CHECKOUT, "kit")
    monkeypatch.setenv("HOME", str(root.parent))
    for given in ("./python", "~/python"):
        monkeypatch.setenv(official.PYTHON, given)
        found = official.find_kit()
        assert (found.root, found.python) == (root, str(root.parent / "python")) and len(found.tasks) == 6
    for given in ("./nowhere/python", "no-such-python", str(root)):
        with pytest.raises(FileNotFoundError, match="that can be run: VBVR_EVALKIT_PYTHON must be the path of one"):
            official.find_kit(python=given)


def test_the_commit_of_a_checkout_is_told(kit):
    root = kit()
    git = f"git -c safe.directory=* -c user.name=a -c user.email=a@b.c -C {root}"
    assert os.system(f"{git} init -q && {git} add . && {git} commit -qm one") == 0
    commit = official.find_kit().commit
    assert len(commit) == 12 and int(commit, 16) >= 0
    (root / "run_evaluation.py").write_text("print()\n")
    assert official.find_kit().commit == f"{commit} + changes"


@pytest.mark.slow
def test_the_parts_of_a_score_are_read_and_told_apart(kit, puzzles, answers, tmp_path):
    kit()
    report = official.score(puzzles, answers, tmp_path / "work")
    told, silent = (
        next(puzzle.name for puzzle in puzzles if puzzle.task.startswith(task)) for task in ("O-59", "O-60")
    )
    score = report.scores["model"][told]
    assert report.parts["model"] == {told: {"identification": (score, 0.6), "fidelity": (1.0, 0.3)}}  # none left over
    assert (
        report.halves("model") == {told: (pytest.approx(score), 1.0)} and report.halves(official.NOISE)[told][0] < score
    )
    again = official.score(puzzles, answers, tmp_path / "work")
    assert again.parts == report.parts and silent not in report.parts["model"]
    assert json.loads((tmp_path / "work" / "model.json").read_text())["parts"]["model"][told]["fidelity"] == [1.0, 0.3]


@pytest.mark.slow
def test_the_adapter_brings_no_opencv_into_this_process(kit, puzzles, answers, tmp_path):
    kit()
    official.score(puzzles[:1], answers, tmp_path / "work")
    assert "cv2" not in sys.modules and "vbvr_bench" not in sys.modules


@pytest.mark.skipif(official.CHECKOUT not in os.environ, reason="VBVR_EVALKIT names no checkout of VBVR-EvalKit")
def test_the_real_kit_gives_the_known_scores_of_the_real_pair(tmp_path):
    puzzles = vbvr.read(TRUTH, tasks=["G-31"])
    report = official.score(puzzles, SAMPLES / "model-output", tmp_path)
    found = {role: round(next(iter(scores.values())), 3) for role, scores in report.scores.items()}
    assert found["model"] == 0.992 and found[official.TRUTH] == 0.995
    assert found[official.FROZEN] == pytest.approx(0.65, abs=0.01)
    assert found[official.NOISE] < found[official.FROZEN]
    (parts,) = report.parts["model"].values()
    assert sum(value * weight for value, weight in parts.values()) == pytest.approx(found["model"], abs=0.001)


@pytest.mark.skipif(official.CHECKOUT not in os.environ, reason="VBVR_EVALKIT names no checkout of VBVR-EvalKit")
def test_the_real_kit_gives_the_known_scores_of_the_check_set(capsys):
    assert check.main([]) in (0, 2), capsys.readouterr().out  # 2: none are known of VBVR-Pro-Bench


@pytest.mark.skipif(official.CHECKOUT not in os.environ, reason="VBVR_EVALKIT names no checkout of VBVR-EvalKit")
def test_the_moved_tasks_and_their_faculties_are_those_of_the_real_kit():
    kit = official.find_kit()
    place = [bench.name for bench in official.BENCHES].index(kit.bench.name)
    faculties = {task.split("_")[0]: faculty for task, (_, faculty) in kit.tasks.items()}
    assert {task: faculties[task] for task in official.MOVED} == {t: f[place] for t, f in official.MOVED.items()}
    faculties |= {task: now for task, (_, now) in official.MOVED.items()}
    totals = dict(Perception=28, Abstraction=25, Knowledge=19, Spatiality=16, Transformation=12)
    assert {name: list(faculties.values()).count(name) for name in totals} == totals
