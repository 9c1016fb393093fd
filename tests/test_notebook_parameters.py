"""Every notebook runs with other parameters than its own, and wrong ones end in one clear sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import papermill
import pytest

from cosutils.report.results import read_numbers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))

# {notebook: other and small parameters}: every notebook has its row
TINY = {
    "01_setup": dict(tasks=["shelf", "maze"], puzzles=2, steps=2, first_seed=5),
    "02_chain_of_steps": dict(tasks=["tictactoe"], masked_tasks=["tictactoe"], puzzles=2, steps=3, first_seed=5),
    "03_noise": dict(
        tasks=["find_shape"], puzzles=2, steps=3, noised=[0, 2], frames=[1], cell_puzzles=2, cell_steps=[1],
        example_step=1,
    ),
    "04_information_flow": dict(tasks=["find_shape"], puzzles=2, steps=6, noised=[0, 1, 5], renoised=[1]),
    "05_working_memory": dict(
        tasks=["occlusion"], puzzles=2, carried_puzzles=2, swap_puzzles=2, steps=3, moments=[0, 2]
    ),
    "06_self_correction": dict(tasks=["find_shape"], puzzles=2, steps=3, first_seed=5),
    "07_perception_before_action": dict(tasks=["maze"], puzzles=2, steps=3, first_seed=5),
    "08_layers": dict(tasks=["find_shape"], puzzles=2, fit_puzzles=4, untrained=2, steps=2, probed=[0, 1]),
    "09_latent_swapping": dict(
        tasks=["find_shape"], puzzles=2, choice_puzzles=1, steps=2, map_steps=[0, 1], handed=[1], first_seed=5
    ),
    "10_frames_and_distillation": dict(
        tasks=["find_shape"], puzzles=2, size=2, answer_seeds=2, frame_counts=[5, 17], frame_steps=2,
        step_counts=[1, 2], steps=3,
    ),
    "11_ensemble": dict(
        tasks=["find_shape"], difficulty={}, puzzles=2, validation_puzzles=2, size=2, steps=3, merged_steps=[1],
        windows=2,
    ),
    "12_serial": dict(lengths=[3], puzzles=4, step_counts=[1, 2]),
    "13_calibration": dict(task="rotation", seed=5, steps=3),
    "14_evidence": dict(full="../data/results"),
    "15_your_turn": dict(tasks=["shelf"], puzzles=2, steps=3, first_seed=5),
    "16_benchmark": dict(
        tasks=["O-60"], steps=3, shown_steps=[0, 2], shown_layers=[1], channels=2, scale=dict(pixels=160, frames=9)
    ),
    "17_paper_scale": dict(sides=[512], gpus=[1, 4]),
    "18_conclusion": dict(data="../data/"),
}  # fmt: skip
READERS = {"14_evidence", "18_conclusion"}  # read the numbers of all others and record none of their own
# {what is wrong: (notebook, parameters, the sentence)}
WRONG = {
    "model": (
        "15_your_turn",
        dict(model="cos-maxi"),
        "ValueError: unknown model 'cos-maxi': choose 'cos-mini', an existing ",
    ),
    "task": (
        "01_setup",
        dict(tasks=["mase", "maze"]),
        "ValueError: unknown task 'mase'; tasks are maze, two_routes, ",
    ),
    "steps": ("01_setup", dict(steps=0), "ValueError: num_inference_steps must be 1 or more, got 0"),
    "name": (
        "17_paper_scale",
        dict(side=[1024]),
        "ValueError: unknown parameter 'side': did you mean 'sides'? This page has ",
    ),
    "puzzles": (
        "15_your_turn",
        dict(puzzles=1),
        "ValueError: an interval needs at least 2 values in one axis, all finite, got ",
    ),
}


def run_all(folder: Path, jobs: dict[Any, tuple[str, dict]]) -> dict[Any, tuple[str, Path]]:
    """Run notebooks with other parameters: {key: (name, parameters)} -> {key: (error or "", folder of its numbers)}."""
    rows, found = [], {}
    for number, (key, (name, parameters)) in enumerate(jobs.items()):
        place = folder / str(number)
        (place / "notebooks").mkdir(parents=True)
        (place / "data").symlink_to(ROOT / "data", target_is_directory=True)
        rows.append([str(ROOT / "notebooks" / f"{name}.ipynb"), str(place / "notebooks"), parameters])
        found[key] = place / "runs"
    command = [sys.executable, str(ROOT / "tests" / "forked.py"), "notebooks", json.dumps(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(found, zip(json.loads(done.stdout.splitlines()[-1]), found.values(), strict=True), strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run of the two tables by name."""
    jobs = {name: (name, TINY[name]) for name in NOTEBOOKS if name in TINY}
    jobs |= {what: (name, TINY[name] | bad) for what, (name, bad, _) in WRONG.items()}
    return run_all(tmp_path_factory.mktemp("runs"), jobs)


def test_every_notebook_has_a_row():
    assert set(TINY) == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_row_changes_parameters_that_exist(name):
    known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert set(TINY[name]) | (set() if name in READERS else {"results"}) <= set(known)
    assert any(repr(value) != known[key]["default"] for key, value in TINY[name].items())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_with_other_parameters_and_records_numbers(name, runs):
    error, results = runs[name]
    assert error == ""
    assert name in READERS or read_numbers(results / f"{name}.json")


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_parameter_ends_in_one_sentence(what, runs):
    assert runs[what][0].startswith(WRONG[what][2])
