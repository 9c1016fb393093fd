"""The adapter's side of the contract with VBVR-EvalKit: layout, names, call, and what it refuses.

`STAND_IN` replaces the scorer itself, and OpenCV's version number that goes with it: it takes the kit's arguments,
walks the kit's folders, passes over what the kit passes over and writes the kit's result file, but its score is the
share of the last frame that looks like final_frame.png. Everything else is real: puzzles, answers, videos,
processes. The last tests run the real kit where VBVR_EVALKIT names a checkout of it.
"""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from cosutils import vbvr
from cosutils.pipelines.loading import data_folder
from cosutils.vbvr import official

SAMPLES = data_folder() / "vbvr-samples"
TRUTH = SAMPLES / "ground-truth"

STAND_IN = """
import argparse, json, os, re, sys
import imageio.v3 as iio, numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
for name in ("--model_path", "--gt_base", "--output_dir", "--device"):
    parser.add_argument(name, required=True)
args = parser.parse_args()
mode = {mode!r}
if mode == "crash":
    sys.exit("out of order")
calls = os.path.join(os.path.dirname(os.path.abspath(__file__)), "calls.jsonl")
samples = []
for folder in ("In-Domain_50", "Out-of-Domain_50"):
    root = os.path.join(args.model_path, folder)
    for task in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        if mode == "skip" and task.startswith("O-59"):
            continue  # the kit prints a warning for a task without a scorer
        for file in sorted(os.listdir(os.path.join(root, task))):
            if not re.fullmatch(r"\\d{{5}}\\.mp4", file):
                continue
            truth = os.path.join(args.gt_base, folder, task, file[:5])
            film = iio.imread(os.path.join(root, task, file))
            given = film[-1], iio.imread(os.path.join(truth, "final_frame.png"))
            last, final = (np.float32(Image.fromarray(one).resize((32, 32), Image.BOX)) for one in given)
            score = float(1 - (abs(last - final) > 24).mean())
            score = float("nan") if mode == "nan" else score
            mix = {{"task_specific": score}} | ({{"visual_quality": 1.0}} if mode == "mix" else {{}})
            error = "bad matrix" if mode == "error" and task.startswith("O-60") else None
            samples.append(dict(folder=folder, task_name=task, video_file=file, score=score, dimensions=mix,
                                error=error, frames=len(film)))
name = os.path.basename(args.model_path.rstrip("/"))
with open(calls, "a") as log:
    log.write(json.dumps(dict(name=name, device=args.device, samples=samples)) + "\\n")
with open(os.path.join(args.output_dir, name + "_vbvr_results.json"), "w") as out:
    json.dump(dict(samples=samples), out)
"""


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Makes a stand-in checkout of a mode and with an OpenCV version, and names it in the environment."""

    def make(mode="good", opencv="4.13.0"):
        root = tmp_path / "kit"
        (root / "cv2").mkdir(parents=True)
        (root / "cv2" / "__init__.py").write_text(f"__version__ = {opencv!r}\n")
        (root / "run_evaluation.py").write_text(STAND_IN.format(mode=mode))
        monkeypatch.setenv("PYTHONPATH", str(root))
        monkeypatch.setenv(official.CHECKOUT, str(root))
        monkeypatch.delenv(official.PYTHON, raising=False)
        return root

    return make


@pytest.fixture(scope="module")
def puzzles():
    return vbvr.read(TRUTH, splits=["Out-of-Domain_50"], limit=1, pixels=64, frames=5)


@pytest.fixture(scope="module")
def answers(puzzles, tmp_path_factory):
    """The ground truth as a perfect model at 64 px would give it."""
    folder = tmp_path_factory.mktemp("answers")
    for puzzle in puzzles:
        vbvr.save_answer(puzzle.video, puzzle, folder)
    return folder


def calls(root):
    return [json.loads(line) for line in (root / "calls.jsonl").read_text().splitlines()]


def test_model_truth_and_floors_are_scored_in_the_kits_layout(kit, puzzles, answers, tmp_path):
    root, work = kit(), tmp_path / "work"
    report = official.score(puzzles, answers, work)
    assert list(report.scores) == ["model", "ground truth", "frozen first frame", "noise"]
    assert all(list(scores) == [puzzle.name for puzzle in puzzles] for scores in report.scores.values())
    means = {role: np.mean(list(scores.values())) for role, scores in report.scores.items()}
    assert means["ground truth"] > 0.97 and means["model"] > 0.97
    assert means["ground truth"] > means["frozen first frame"] > means["noise"]
    for puzzle in puzzles:
        given, final = (np.float32(one.resize((32, 32), Image.BOX)) for one in (puzzle.image, puzzle.final))
        held = report.scores["frozen first frame"][puzzle.name]
        assert held == pytest.approx(1 - (abs(given - final) > 24).mean(), abs=0.02) and held < 1
    seen = {call["name"]: call for call in calls(root)}
    assert list(seen) == ["model", "ground-truth", "frozen-first-frame", "noise"]
    assert {call["device"] for call in seen.values()} == {"cpu"}
    lengths = {name: [sample["frames"] for sample in call["samples"]] for name, call in seen.items()}
    assert lengths == {
        "model": [24, 22],
        "ground-truth": [24, 22],
        "frozen-first-frame": [5, 5],
        "noise": [5, 5],
    }
    left = sorted(entry.name for entry in work.iterdir())
    assert left == sorted([f"{name}_vbvr_results.json" for name in seen] + ["references.json"])

    (first, second) = (entry for entry in report.table().splitlines()[1:3])
    assert first.startswith("model") and second.startswith("ground truth") and "2 puzzles" in first
    numbers = report.numbers()
    assert list(numbers) == [f"vbvr/task_specific {role}" for role in report.scores]
    assert numbers["vbvr/task_specific noise"]["n"] == 2


def test_references_are_kept_until_something_changes(kit, puzzles, answers, tmp_path):
    root, work = kit(), tmp_path / "work"
    before = official.score(puzzles[1:], answers, work)
    again = official.score(puzzles[1:], answers, work, "noise-at-step-3")
    assert again.scores["noise-at-step-3"] == before.scores["model"] and again.scores["noise"] == before.scores["noise"]
    assert [call["name"] for call in calls(root)][4:] == ["noise-at-step-3"]
    official.score(puzzles[:1], answers, work)
    assert [call["name"] for call in calls(root)][5:] == [
        "model",
        "ground-truth",
        "frozen-first-frame",
        "noise",
    ]
    with open(root / "run_evaluation.py", "a") as script:
        script.write("# another scorer\n")
    official.score(puzzles[:1], answers, work)
    assert len(calls(root)) == 13


def test_splits_are_reported_apart(kit, tmp_path):
    kit()
    both = [vbvr.read(TRUTH, tasks=[task], limit=1, pixels=64, frames=5)[0] for task in ("G-31", "O-60")]
    for puzzle in both:
        vbvr.save_answer(np.asarray(puzzle.image)[None], puzzle, tmp_path / "answers")
    report = official.score(both, tmp_path / "answers", tmp_path / "work")
    numbers = report.numbers("test")
    assert [entry["n"] for name, entry in numbers.items() if " model" in name] == [2, 1, 1]
    alone = numbers["test/task_specific noise Out-of-Domain_50"]
    assert alone == {"value": report.scores["noise"][both[1].name], "n": 1}  # one value has no interval
    assert "noise Out-of-Domain_50" in report.table()


@pytest.mark.parametrize(
    "mode, words",
    [
        ("error", "scorer failed on model .*O-60.*/00000 .*bad matrix"),
        ("skip", "passed over 1 videos of model, first Out-of-Domain_50/O-59"),
        ("mix", "does not know that evaluator"),
        ("nan", "does not know that evaluator"),
        ("crash", r"failed on model \(exit code 1\): out of order"),
    ],
)
def test_what_the_kit_lets_pass_is_an_error(kit, puzzles, answers, tmp_path, mode, words):
    kit(mode)
    with pytest.raises(RuntimeError, match=words):
        official.score(puzzles, answers, tmp_path / "work")
    assert not (tmp_path / "work" / "references.json").exists()


def test_missing_and_damaged_answers_are_errors(kit, puzzles, answers, tmp_path):
    kit()
    mine = tmp_path / "mine"
    shutil.copytree(answers, mine)
    path = vbvr.answer_path(puzzles[1], mine)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="00000.mp4 is not a readable video"):
        official.score(puzzles, mine, tmp_path / "work")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 answers are missing"):
        official.score(puzzles, mine, tmp_path / "work")


@pytest.mark.parametrize("name", ["noise", "ground-truth", "a/b", "", "../up"])
def test_a_name_is_a_file_name_of_its_own(kit, puzzles, answers, tmp_path, name):
    kit()
    with pytest.raises(ValueError, match="a name is of letters"):
        official.score(puzzles, answers, tmp_path / "work", name)
    with pytest.raises(ValueError, match="no puzzles to score"):
        official.score([], answers, tmp_path / "work")


def test_opencv_5_and_none_at_all_are_refused(kit):
    kit(opencv="5.0.0-pre")
    with pytest.raises(RuntimeError, match="OpenCV 5.0.0-pre breaks scorers"):
        official.find_kit()


def test_a_python_without_opencv_is_refused(kit):
    root = kit()
    (root / "cv2" / "__init__.py").write_text("raise ImportError('none here')\n")
    with pytest.raises(RuntimeError, match="cannot import OpenCV: give it 'opencv-python-headless>=4.13,<5'"):
        official.find_kit()


def test_the_checkout_must_be_named_and_be_one(monkeypatch, tmp_path):
    monkeypatch.delenv(official.CHECKOUT, raising=False)
    with pytest.raises(RuntimeError, match="set VBVR_EVALKIT to a checkout"):
        official.find_kit()
    with pytest.raises(FileNotFoundError, match="no run_evaluation.py"):
        official.find_kit(tmp_path)


def test_the_adapter_brings_no_opencv_into_this_process(kit, puzzles, answers, tmp_path):
    kit()
    official.score(puzzles[:1], answers, tmp_path / "work")
    assert "cv2" not in sys.modules and "vbvr_bench" not in sys.modules


@pytest.mark.skipif(official.CHECKOUT not in os.environ, reason="VBVR_EVALKIT names no checkout of VBVR-EvalKit")
def test_the_real_kit_gives_the_known_scores_of_the_real_pair(tmp_path):
    puzzles = vbvr.read(TRUTH, tasks=["G-31"])
    report = official.score(puzzles, SAMPLES / "model-output", tmp_path)
    found = {role: round(next(iter(scores.values())), 3) for role, scores in report.scores.items()}
    assert found["model"] == 0.992 and found["ground truth"] == 0.995
    assert found["frozen first frame"] == pytest.approx(0.65, abs=0.01)
    assert found["noise"] < found["frozen first frame"]
