"""Score answers with VBVR-Bench's own evaluator, from a checkout of VBVR-EvalKit that you have.

    export VBVR_EVALKIT=/path/to/VBVR-EvalKit          # git clone; nothing of it is part of this package
    export VBVR_EVALKIT_PYTHON=/path/to/bin/python     # optional: an environment with opencv-python-headless < 5, tqdm

    report = score(puzzles, "answers", "runs/official")
    print(report.table())

The kit runs as its authors run it: `run_evaluation.py`, whose score is `task_specific` (`evaluate.py` gives a mix of
five dimensions under which a frozen picture earns .82). Three things it lets pass are errors here: a scorer that
fails (it counts as 0), a video that is missing (it does not count), a task that it does not know (the same). And no
score is reported alone: its scorers have floors, so the ground truth, the frozen first frame and noise are scored
beside the model, on the same puzzles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..report.results import interval_text, mean_of
from .puzzles import FILES, Puzzle, answer_path, check_answers, save_answer

__all__ = ["CHECKOUT", "PYTHON", "Kit", "Report", "find_kit", "score"]

CHECKOUT = "VBVR_EVALKIT"  # environment variable: the folder of the checkout
PYTHON = "VBVR_EVALKIT_PYTHON"  # environment variable: the Python that runs it, default this one
NOISE = 128  # pixels a side; the evaluator enlarges them, so a cell of noise is what one latent of a Wan VAE covers
REFERENCES = ("ground truth", "frozen first frame", "noise")


@dataclass(frozen=True)
class Kit:
    """A checkout that can run. script: its run_evaluation.py. python: what runs it. opencv: the version it meets
    there. digest: of all its Python files, so that a changed scorer is noticed."""

    script: Path
    python: str
    opencv: str
    digest: str


@dataclass(frozen=True)
class Report:
    """`task_specific` in [0, 1] of every puzzle: {role: {puzzle name: score}}, the roles being
    the model (under its name) and `REFERENCES`."""

    scores: dict[str, dict[str, float]]
    kit: Kit

    def numbers(self, prefix: str = "vbvr") -> dict[str, dict[str, float | int]]:
        """Means with 95 % intervals (none for one puzzle) as `results.record_numbers` takes them:
        "<prefix>/task_specific <role>", and per split where the puzzles are of both."""
        found = {}
        for role, values in self.scores.items():
            splits = sorted({name.split("/")[0] for name in values})
            for split in ["", *splits] if len(splits) > 1 else [""]:
                chosen = [value for name, value in values.items() if name.startswith(split)]
                entry = mean_of(chosen) if len(chosen) > 1 else {"value": chosen[0], "n": 1}
                found[f"{prefix}/task_specific {role} {split}".rstrip()] = entry
        return found

    def table(self) -> str:
        """The numbers as text, one line each, below what was measured and with what."""
        lines = [f"task_specific, mean [95 % interval]; OpenCV {self.kit.opencv}, kit {self.kit.digest}"]
        for name, entry in self.numbers("").items():
            name = name.removeprefix("/task_specific ")
            lines.append(f"{name:<40} {interval_text(entry, 3):<20}  {entry['n']} puzzles")
        return "\n".join(lines)


def find_kit(checkout: str | Path | None = None, python: str | Path | None = None) -> Kit:
    """The kit at `checkout` (default: the environment variable VBVR_EVALKIT), seen to run under `python` (default:
    VBVR_EVALKIT_PYTHON, else this one).

    Raises RuntimeError where the variable is unset, OpenCV is missing there or of version 5 or later (six scorers
    would fail and count as 0), FileNotFoundError where the folder is no checkout.
    """
    given = checkout or os.environ.get(CHECKOUT)
    if not given:
        raise RuntimeError(f"set {CHECKOUT} to a checkout of VBVR-EvalKit to score with the official evaluator")
    root = Path(given).resolve()
    script = root / "run_evaluation.py"
    if not script.is_file():
        raise FileNotFoundError(f"no run_evaluation.py in {root}: {CHECKOUT} must be a checkout of VBVR-EvalKit")
    python = str(python or os.environ.get(PYTHON) or sys.executable)
    run = subprocess.run([python, "-c", "import cv2; print(cv2.__version__)"], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(
            f"{python} cannot import OpenCV: give it 'opencv-python-headless>=4.13,<5', tqdm and Pillow, or set "
            f"{PYTHON} to a Python that has them"
        )
    opencv = run.stdout.split()[-1]
    if not opencv.split(".")[0].isdigit() or int(opencv.split(".")[0]) >= 5:
        raise RuntimeError(f"OpenCV {opencv} breaks scorers of VBVR-EvalKit without a word: install a version below 5")
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return Kit(script, python, opencv, digest.hexdigest()[:16])


def score(
    puzzles: Sequence[Puzzle],
    answers: str | Path,
    work: str | Path,
    name: str = "model",
    kit: Kit | None = None,
) -> Report:
    """Score the `answers` to `puzzles`, and the references beside them, and return the report.

    answers: folder that `vbvr.save_answer` wrote to. work: folder for the kit's own accounts, one per `name` of a model
    or condition, and references.json, which saves scoring the references again while puzzles, kit and OpenCV are the
    same. kit: default `find_kit()`. Costs 2.4 CPU seconds per 1024 x 1024 video and role [measured on 13];
    noise keeps some scorers busy for a minute and more.
    Raises FileNotFoundError for a missing answer, ValueError for a damaged or cropped one, RuntimeError where the kit
    fails as a whole, on any sample, leaves one out or reports anything but `task_specific`.
    """
    if not puzzles:
        raise ValueError("no puzzles to score")
    if not re.fullmatch(r"\w[\w.-]*", name) or name in (role.replace(" ", "-") for role in REFERENCES):
        raise ValueError(f"a name is of letters, digits, '_', '.' and '-' and not that of a reference, got {name!r}")
    kit, work = kit or find_kit(), Path(work).resolve()
    check_answers(puzzles, answers)
    scores = _evaluated(
        kit, puzzles, work, name, lambda puzzle, folder: _copied(answer_path(puzzle, answers), puzzle, folder)
    )
    return Report({name: scores} | _references(kit, puzzles, work), kit)


def _evaluated(
    kit: Kit, puzzles: Sequence[Puzzle], work: Path, role: str, make: Callable[[Puzzle, Path], object]
) -> dict[str, float]:
    """Have `make` put every puzzle's video into an empty folder in the evaluator's layout, and score that folder.

    The kit leaves <role>_vbvr_results.json in `work`: its own detailed account.
    """
    roots = {puzzle.truth.resolve().parents[3] for puzzle in puzzles}
    if len(roots) > 1:
        raise ValueError(f"the puzzles lie below {len(roots)} folders: score those of one benchmark folder at a time")
    work.mkdir(parents=True, exist_ok=True)
    stem = role.replace(" ", "-")
    account = work / f"{stem}_vbvr_results.json"
    account.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as staged:
        for puzzle in puzzles:
            make(puzzle, Path(staged) / stem)
        command = [
            kit.python,
            str(kit.script),
            "--model_path",
            str(Path(staged) / stem),
            "--gt_base",
            str(roots.pop()),
        ]
        command += ["--output_dir", str(work), "--device", "cpu"]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if run.returncode or not account.is_file():
        last = (run.stderr or run.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"the official evaluator failed on {role} (exit code {run.returncode}): {last[0]}")
    return _read_account(json.loads(account.read_text(encoding="utf-8")), puzzles, role)


def _read_account(account: dict, puzzles: Sequence[Puzzle], role: str) -> dict[str, float]:
    """{puzzle name: task_specific} from the kit's results, or RuntimeError where a sample failed or is not there."""
    scores = {}
    for sample in account["samples"]:
        name = f"{sample['folder']}/{sample['task_name']}/{Path(sample['video_file']).stem}"
        if sample["error"] is not None:
            raise RuntimeError(f"the official scorer failed on {role} {name} (it counts as 0 there): {sample['error']}")
        if sample["dimensions"] != {"task_specific": sample["score"]} or not 0 <= sample["score"] <= 1:
            raise RuntimeError(
                f"the official evaluator reports the score {sample['score']} out of {sample['dimensions']} for {role} "
                f"{name}, not task_specific in [0, 1] alone: this adapter does not know that evaluator"
            )
        scores[name] = sample["score"]
    if absent := sorted({puzzle.name for puzzle in puzzles} - set(scores)):
        raise RuntimeError(f"the official evaluator passed over {len(absent)} videos of {role}, first {absent[0]}")
    return {puzzle.name: scores[puzzle.name] for puzzle in puzzles}


# ---------------------------------------------------------------- references
def _references(kit: Kit, puzzles: Sequence[Puzzle], work: Path) -> dict[str, dict[str, float]]:
    """Scores of `REFERENCES`, read from references.json where it fits."""
    key = hashlib.sha256(f"{kit.digest} {kit.opencv} {NOISE}".encode())
    for puzzle in puzzles:
        key.update(f"{puzzle.name} {puzzle.pixels} {puzzle.frames}".encode())
        for name in FILES:
            key.update((puzzle.truth.parent / name).read_bytes())
    path = work / "references.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key.hexdigest():
            return stored["scores"]
    makers = dict(zip(REFERENCES, (_truth, _frozen, _noise), strict=True))
    scores = {role: _evaluated(kit, puzzles, work, role, make) for role, make in makers.items()}
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps({"key": key.hexdigest(), "scores": scores}, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return scores


def _copied(source: Path, puzzle: Puzzle, folder: Path) -> None:
    target = answer_path(puzzle, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _truth(puzzle: Puzzle, folder: Path) -> None:
    _copied(puzzle.truth, puzzle, folder)


def _frozen(puzzle: Puzzle, folder: Path) -> None:
    """The given picture and nothing else, as long as the model's films."""
    save_answer(np.asarray(puzzle.image)[None].repeat(puzzle.frames, 0), puzzle, folder)


def _noise(puzzle: Puzzle, folder: Path) -> None:
    """Uniform noise, new in every frame, as long as the model's films; the same for a puzzle every time."""
    seed = int.from_bytes(hashlib.sha256(puzzle.name.encode()).digest()[:8])
    film = np.random.default_rng(seed).integers(0, 256, (puzzle.frames, NOISE, NOISE, 3), np.uint8)
    save_answer(film, puzzle, folder)
