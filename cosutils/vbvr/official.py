"""Score answers with the evaluator of VBVR-Bench or VBVR-Pro-Bench, from a checkout of it that you have.

    git clone https://github.com/Video-Reason/VBVR-EvalKit && git -C VBVR-EvalKit checkout 275472f
    export VBVR_EVALKIT=VBVR-EvalKit                   # or a checkout of VBVR-Pro-Bench; none is part of this package
    export VBVR_EVALKIT_PYTHON=kit-env/bin/python      # optional: an environment with opencv-python-headless < 5, tqdm

    report = score(puzzles, "answers", "runs/official")
    print(report.table())

A kit runs as its authors run it, with the entry point whose score is `task_specific` (the other one of VBVR-Bench gives
a mix of five dimensions under which a frozen picture earns .82). What it lets pass is an error here: a video that is
missing or that its OpenCV cannot read, a task that it does not know or looks for in the other split, a ground truth
that earns nothing. A sample on which a scorer fails counts as 0 there; here it is named, and the mean is given with and
without it. And no score is reported alone: the scorers have floors, so the ground truth, the frozen first frame, a jump
to the last frame and noise are scored beside the model, on the same puzzles and at the size of its films.

What a score is made of is kept too. A scorer adds up parts, such as "identification" and "fidelity" of a marked shape;
the kit drops them, here they are read while it runs, and `Report.halves` tells deciding from drawing by their names.

The numbers of the two benchmarks are not comparable: every report, file and name of a number says which one it is of.
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
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._files import read_json, sha256, writable_folder, write_json, write_text
from ..films import check_film, read_film, read_picture, write_film
from ..report.progress import progress
from ..report.results import interval_text, mean_of
from .puzzles import FILES, Puzzle, answer_path, check_answers, squared

__all__ = [
    "BENCHES",
    "CHECKOUT",
    "DRAWN",
    "MOVED",
    "PYTHON",
    "REFERENCES",
    "Bench",
    "Kit",
    "Report",
    "find_kit",
    "score",
]

CHECKOUT = "VBVR_EVALKIT"  # environment variable: the folder of the checkout
PYTHON = "VBVR_EVALKIT_PYTHON"  # environment variable: the Python that runs it, default this one
EASYOCR = "VBVR_EASYOCR_MODELS"  # environment variable of VBVR-Pro-Bench: the folder of EasyOCR's weights
CELL = 8  # pixels a side of a cell of noise: what one latent of a Wan VAE covers
TRUTH, SIZED, FROZEN, JUMP, NOISE = REFERENCES = (
    "ground truth", "ground truth at the model's size", "frozen first frame", "jump to the last frame", "noise",
)  # fmt: skip
DRAWN = re.compile(  # in the names of parts that ask how well it is drawn, not what or where
    "fidelity|preserv|invarian|precision|appearance|quality|style|smooth|visual|consisten|standardiz|specification|clarity"
)
_OPENCV = {"cv2": "opencv-python-headless>=4.13,<5", "PIL": "Pillow", "tqdm": "tqdm"}
_MORE = {"scipy": "scipy", "skimage": "scikit-image", "norfair": "norfair", "easyocr": "easyocr", "ddddocr": "ddddocr"}


@dataclass(frozen=True)
class Bench:
    """A benchmark. prefix: of its numbers. script: its entry point. packages: names that its scorers had. needs:
    {module: package on PyPI}. metadata: whether every puzzle has a metadata.json, with the symbolic truth. frames: the
    most that it reads of a film, evenly chosen."""

    name: str
    prefix: str
    script: str
    packages: tuple[str, ...]
    needs: dict[str, str]
    metadata: bool
    frames: int


BENCHES = (
    Bench("VBVR-Bench", "vbvr", "run_evaluation.py", ("vbvr_bench",), _OPENCV, False, 100),
    Bench("VBVR-Pro-Bench", "vbvr_pro", "run_evaluation_video.py", ("vbvr_pro_bench", "vbvr_bench"),
          _OPENCV | _MORE | {"imageio_ffmpeg": "imageio-ffmpeg"}, True, 200),
)  # fmt: skip
_FACULTIES = {name[0]: name for name in ("Abstraction", "Knowledge", "Perception", "Spatiality", "Transformation")}
MOVED = {  # number of a task: its faculty in VBVR-Bench and in VBVR-Pro-Bench, where they differ
    task: (_FACULTIES[letters[0]], _FACULTIES[letters[1]])
    for moves in (
        "G-5 PT", "G-8 TS", "G-21 TK", "G-29 AK", "G-39 PT", "G-41 AK", "G-43 PK", "G-217 KP", "G-240 TP", "O-2 PK",
        "O-5 TA", "O-16 PK", "O-21 AS", "O-22 TA", "O-31 PA", "O-37 AP", "O-43 AP", "O-44 TA", "O-49 AS", "O-58 TA",
        "O-59 TA", "O-60 TA", "O-61 TA",
    )
    for task, letters in [moves.split()]
}  # fmt: skip


@dataclass(frozen=True)
class Kit:
    """A checkout that can run. root: its folder. python: what runs it. opencv: the version it meets there. digest: of
    all its Python files, so that a changed scorer is noticed. commit: what git calls it, "unknown" outside of git.
    tasks: {full name: (split, faculty)} of those that it scores."""

    bench: Bench
    root: Path
    python: str
    opencv: str
    digest: str
    commit: str
    tasks: dict[str, tuple[str, str]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.bench.name} at commit {self.commit} (digest {self.digest}), OpenCV {self.opencv}"


@dataclass(frozen=True)
class Report:
    """`task_specific` in [0, 1] of every puzzle: {role: {puzzle name: score}}, the roles being the model (under its
    name) and `REFERENCES`. failures: {role: {puzzle name: reason}} of samples that the kit counts as 0 because its
    scorer failed. skipped: names of samples that `vbvr.read` was told to leave out. parts: {role: {puzzle name: {part:
    (its value in [0, 1], its weight)}}}, of those scorers that tell them."""

    scores: dict[str, dict[str, float]]
    kit: Kit
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    parts: dict[str, dict[str, dict[str, tuple[float, float]]]] = field(default_factory=dict)

    def halves(self, role: str) -> dict[str, tuple[float, float]]:
        """{puzzle name: (deciding, drawing)}: weighted means of the parts that ask what and where, and of those that
        ask how well it is drawn (`DRAWN` in their names), of the puzzles whose scorer has both.
        """
        found = {}
        for name, parts in self.parts.get(role, {}).items():
            halves = [[pair for part, pair in parts.items() if bool(DRAWN.search(part)) == drawn] for drawn in (0, 1)]
            if all(sum(weight for _, weight in half) > 0 for half in halves):
                means = [sum(value * weight for value, weight in half) / sum(w for _, w in half) for half in halves]
                found[name] = (means[0], means[1])
        return found

    @property
    def failed(self) -> list[str]:
        """Names of the puzzles on which the scorer failed in any role."""
        return sorted({name for reasons in self.failures.values() for name in reasons})

    def numbers(self, prefix: str | None = None, by: str = "split") -> dict[str, dict[str, float | int]]:
        """Means with 95 % intervals (none for one puzzle) as `results.record_numbers` takes them.

        "<prefix>/task_specific <role>", failures counted as 0 as the kit does, and the same with "without the failed
        samples" at its end where there are any (of no role, so that all are of the same puzzles); and for each split
        or faculty where the puzzles are of several. prefix: default the benchmark's own, "vbvr" or "vbvr_pro". by:
        "split" or "faculty", as this kit has them (23 tasks are in another one in the other kit: `MOVED`).
        """
        if by not in ("split", "faculty"):
            raise ValueError(f"numbers are by 'split' or 'faculty', got {by!r}")
        prefix = self.kit.bench.prefix if prefix is None else prefix
        found = {}
        for role, values in self.scores.items():
            sound = {name: value for name, value in values.items() if name not in self.failed}
            for ending, chosen in [("", values)] + ([("without the failed samples", sound)] if self.failed else []):
                for group, members in _grouped(chosen, by, self.kit).items():
                    words = " ".join(filter(None, (f"{prefix}/task_specific", role, group, ending)))
                    found[words] = mean_of(members) if len(members) > 1 else {"value": members[0], "n": 1}
        return found

    def table(self, by: str = "split") -> str:
        """The numbers as text, one line each, below what was measured and with what, above what failed or was left
        out."""
        lines = [f"{self.kit}", "task_specific, mean [95 % interval]"]
        if self.failed:
            lines[1] += "; failures = 0: a sample on which the scorer failed counts as 0, as in the kit"
        for name, entry in self.numbers("", by).items():
            name = name.removeprefix("/task_specific ")
            if self.failed and not name.endswith("without the failed samples"):
                name += ", official (failures = 0)"
            lines.append(f"{name:<60} {interval_text(entry, 3):<20}  {entry['n']} puzzles")
        for name in self.failed:
            reasons = {role: why[name] for role, why in self.failures.items() if name in why}
            for reason in dict.fromkeys(reasons.values()):
                roles = ", ".join(role for role, why in reasons.items() if why == reason)
                lines.append(f"failed: {name} ({roles}): {reason}{_advice(reason)}")
        lines += [f"left out: {name}" for name in self.skipped]
        return "\n".join(lines)


def _grouped(values: dict[str, float], by: str, kit: Kit) -> dict[str, list[float]]:
    """{"": all values, and, where there are several, each split or faculty: its own}."""
    place = 0 if by == "split" else 1
    groups = {name: kit.tasks[name.split("/")[1]][place] for name in values}
    several = sorted(set(groups.values())) if len(set(groups.values())) > 1 else []
    found = {"": list(values.values())}
    found |= {group: [value for name, value in values.items() if groups[name] == group] for group in several}
    return {group: members for group, members in found.items() if members}


def _advice(reason: str) -> str:
    known = "safe_distance" in reason  # an import that 275472f lacks
    return " (commit f008281, branch image_preview, has the import, and other rules for some tasks)" if known else ""


# ---------------------------------------------------------------- the kit
_ASK = """
import importlib.util, json, sys
root, packages, needs = json.loads(sys.argv[1])
sys.path.insert(0, root)
told = {"missing": [name for name in needs if importlib.util.find_spec(name) is None]}
if "cv2" not in told["missing"]:
    try:
        import cv2
        told["opencv"] = cv2.__version__
    except ImportError as error:
        told["missing"].append("cv2")
        told["reason"] = str(error)
if not told["missing"] and told["opencv"].split(".")[0] in "1234":
    package = next(name for name in packages if importlib.util.find_spec(name))
    kit = importlib.import_module(package + ".evaluators")
    told["tasks"] = {task: (kit.get_split(task), kit.get_task_category(task)) for task in kit.TASK_EVALUATOR_MAP}
print()
print(json.dumps(told))
"""
_SPLITS = {"In_Domain": "In-Domain_50", "Out_of_Domain": "Out-of-Domain_50"}  # how the kits call the folders


def find_kit(checkout: str | Path | None = None, python: str | Path | None = None) -> Kit:
    """The kit at `checkout` (default: the environment variable VBVR_EVALKIT), seen to run under `python` (default:
    VBVR_EVALKIT_PYTHON, else this one). Relative paths are from the working folder, "~" is your own.

    Raises RuntimeError where the variable is unset, a package that the kit needs is missing there, OpenCV is of version
    5 or later (six scorers would fail and count as 0), its scorers cannot be imported or EasyOCR would download
    weights; FileNotFoundError where the folder is no checkout or there is no such Python.
    """
    given = checkout or os.environ.get(CHECKOUT)
    if not given:
        raise RuntimeError(f"set {CHECKOUT} to a checkout of VBVR-EvalKit to score with the official evaluator")
    root = Path(given).expanduser().absolute()
    bench = next((bench for bench in BENCHES if (root / bench.script).is_file()), None)
    if bench is None:
        scripts = " and no ".join(bench.script for bench in BENCHES)
        raise FileNotFoundError(
            f"no {scripts} in {root}: {CHECKOUT} must be a checkout of VBVR-EvalKit or of VBVR-Pro-Bench"
        )
    wanted = os.path.expanduser(python or os.environ.get(PYTHON) or sys.executable)
    if not (found := shutil.which(wanted)):
        raise FileNotFoundError(f"no Python {wanted!r} that can be run: {PYTHON} must be the path of one")
    python = os.path.abspath(found)
    told = _told(_run([python, "-c", _ASK, json.dumps([str(root), bench.packages, list(bench.needs)])]), python)
    if missing := told["missing"]:
        names = " ".join(repr(bench.needs[name]) for name in missing)
        what = "OpenCV" if "cv2" in missing else missing[0]
        reason = f" ({told['reason']})" if "reason" in told else ""
        raise RuntimeError(
            f"{python} cannot import {what}{reason}: give it {names} for {bench.name}, or set {PYTHON} to a Python "
            f"that has them"
        )
    if "tasks" not in told:
        raise RuntimeError(
            f"OpenCV {told['opencv']} breaks scorers of {bench.name} without a word: install a version below 5"
        )
    weights = Path(os.environ.get(EASYOCR) or "~/.EasyOCR").expanduser()
    if "easyocr" in bench.needs and not weights.is_dir():
        raise RuntimeError(
            f"no weights of EasyOCR in {weights}: it would download them while it scores; set {EASYOCR} to a folder "
            f"that has them, or let it fetch them once"
        )
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    tasks = {task: (_SPLITS[split], faculty) for task, (split, faculty) in told["tasks"].items()}
    return Kit(bench, root, python, told["opencv"], digest.hexdigest()[:16], _commit(root), tasks)


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A finished process that reads and writes UTF-8, whatever the locale."""
    environment = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment, **options)


def _told(run: subprocess.CompletedProcess[str], python: str) -> dict:
    """The JSON in the last line that a process wrote."""
    try:
        return json.loads(run.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"{python} could not run the evaluator's scorers: {_last_words(run)}") from None


def _last_words(run: subprocess.CompletedProcess[str]) -> str:
    """What a process said at its end: the last line of an error, else the last two lines."""
    lines = [line.strip() for line in (run.stderr if run.returncode else run.stdout).splitlines() if line.strip()]
    return "; ".join(lines[-1 if run.returncode else -2 :]) or "it said nothing"


def _commit(root: Path) -> str:
    """First 12 digits of the commit of a checkout, with "+ changes" where tracked files were altered."""
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    if not (root / ".git").exists() or not shutil.which("git"):
        return "unknown"
    head, changes = (_run([*git, *words]) for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"]))
    return "unknown" if head.returncode else head.stdout[:12] + (" + changes" if changes.stdout.strip() else "")


# ---------------------------------------------------------------- scores
def score(
    puzzles: Sequence[Puzzle],
    answers: str | Path,
    work: str | Path,
    name: str = "model",
    kit: Kit | None = None,
) -> Report:
    """Score the `answers` to `puzzles`, and the references beside them, and return the report.

    answers: folder that `vbvr.save_answer` wrote to. work: folder for <name>.json, the report, and scores/, one file
    for each score, found again by all that decides it (film, puzzle, kit, OpenCV), so that a run that was stopped goes
    on where it was, and references are scored once. name: of a model or condition. kit: default `find_kit()`. Costs
    about 3 CPU seconds per 1024 x 1024 video and role [measured on 13]; noise keeps some scorers busy for a minute and
    more.
    Raises FileNotFoundError for a missing answer; OSError where `work` cannot be written; ValueError for an answer or a
    truth that is damaged, or that the kit's OpenCV cannot read or would crop, and for puzzles that this kit does not
    score; RuntimeError where the kit fails as a whole, passes over a sample, reports anything but `task_specific`, or
    gives the truth nothing.
    """
    if not puzzles:
        raise ValueError("no puzzles to score")
    if not re.fullmatch(r"\w[\w.-]*", name) or name in map(_slug, REFERENCES):
        raise ValueError(f"a name is of letters, digits, '_', '.' and '-' and not that of a reference, got {name!r}")
    kit, work = kit or find_kit(), writable_folder(work).absolute()
    _check_puzzles(puzzles, kit)
    sizes = check_answers(puzzles, answers)
    films = [answer_path(puzzle, answers).absolute() for puzzle in puzzles]
    if long := [length for _, length in sizes.values() if length > kit.bench.frames]:
        most = f"{kit.bench.name} reads {kit.bench.frames} of them, evenly chosen"
        warnings.warn(f"{len(long)} answers have more frames, up to {max(long)}: {most}", stacklevel=2)
    _check_readable([*films, *(puzzle.truth.absolute() for puzzle in puzzles)], kit)
    scores: dict[str, dict[str, float]] = {role: {} for role in (name, *REFERENCES)}
    failures: dict[str, dict[str, str]] = {}
    parts: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for puzzle, film in progress(list(zip(puzzles, films, strict=True)), f"scores of {kit.bench.name}"):
        for role, sample in _scored(puzzle, film, sizes[puzzle.name], name, kit, work / "scores").items():
            scores[role][puzzle.name] = sample["score"]
            if sample["error"] is not None:
                failures.setdefault(role, {})[puzzle.name] = sample["error"]
            if sample["parts"]:
                parts.setdefault(role, {})[puzzle.name] = {part: tuple(pair) for part, pair in sample["parts"].items()}
    skipped = tuple(sorted({skipped for puzzle in puzzles for skipped in puzzle.skipped}))
    report = Report(scores, kit, failures, skipped, parts)
    _check_truth(report)
    write_json(
        work / f"{name}.json",
        {"bench": kit.bench.name, "commit": kit.commit, "digest": kit.digest, "opencv": kit.opencv,
         "left out": list(skipped), "failures": failures, "task_specific": scores, "parts": parts},
    )  # fmt: skip
    return report


def _slug(role: str) -> str:
    return re.sub(r"\W+", "-", role)


def _check_puzzles(puzzles: Sequence[Puzzle], kit: Kit) -> None:
    """Raise unless every puzzle is one that the kit scores, and its files are whole."""
    names = Counter(puzzle.name for puzzle in puzzles)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two puzzles are named {twice[0]}: score those of one benchmark folder at a time")
    for puzzle in puzzles:
        if puzzle.task not in kit.tasks:
            raise ValueError(f"no scorer for the task {puzzle.task!r} in {kit}: it would pass over {puzzle.name}")
        if puzzle.split != kit.tasks[puzzle.task][0]:
            right = kit.tasks[puzzle.task][0]
            raise ValueError(f"{puzzle.name} lies in the wrong split: {kit.bench.name} has its task in {right}")
        check_film(puzzle.truth)
        for picture in FILES[:2]:
            read_picture(puzzle.truth.with_name(picture))
        if kit.bench.metadata:
            if not (facts := puzzle.truth.with_name("metadata.json")).is_file():
                raise FileNotFoundError(f"no {facts}: {kit.bench.name} needs it, its scorers read the truth there")
            read_json(facts)


_READ = """
import json, sys
import cv2
told = {}
for path in json.load(sys.stdin):
    film = cv2.VideoCapture(path)
    count = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
    ends = []
    for place in (0, count - 1):
        film.set(cv2.CAP_PROP_POS_FRAMES, place)
        ends.append(bool(film.read()[0]))
    told[path] = count if all(ends) else 0
print()
print(json.dumps(told))
"""


def _check_readable(films: Sequence[Path], kit: Kit) -> None:
    """Raise unless the kit's own reader finds first and last frame of every film: it takes others for empty."""
    run = _run([kit.python, "-c", _READ], input=json.dumps([str(path) for path in films]))
    for path, count in _told(run, kit.python).items():
        if count < 1:
            raise ValueError(
                f"{path}: OpenCV {kit.opencv} of {kit.python} cannot read it (it has no decoder for every codec, such "
                f"as AV1), and the kit would score 0: write it anew with films.write_film(films.read_film(path), path)"
            )


def _files(puzzle: Puzzle) -> list[Path]:
    """All files of a puzzle that a kit reads."""
    return [path for file in (*FILES, "metadata.json") if (path := puzzle.truth.with_name(file)).is_file()]


def _scored(puzzle: Puzzle, film: Path, size: tuple[int, int], name: str, kit: Kit, store: Path) -> dict[str, dict]:
    """{role: the kit's account of that sample} for the model's `film` of `size` (side, frames) and all references.

    What is in `store` is taken from there, the rest is scored in one process; failures are not stored.
    """
    facts = " ".join(sha256(path) for path in _files(puzzle))
    given = f"parts {kit.bench.name} {kit.digest} {kit.opencv} {puzzle.name} {facts}"
    made = {role: f"{role} {size} {CELL}" for role in REFERENCES} | {TRUTH: TRUTH, name: sha256(film)}
    places = {
        role: store / f"{hashlib.sha256(f'{given} {made[role]}'.encode()).hexdigest()[:32]}.json"
        for role in (name, *REFERENCES)
    }
    pending = [role for role, place in places.items() if not place.is_file()]
    fresh = _evaluated(puzzle, film, size, pending, kit) if pending else {}
    for role, sample in fresh.items():
        if sample["error"] is None:
            write_json(places[role], {"bench": kit.bench.name, "commit": kit.commit, "role": role, **sample})
    return {role: fresh[role] if role in fresh else read_json(place) for role, place in places.items()}


_WATCH = """
import importlib, importlib.util, json, numbers, runpy, sys
root, packages, told, script, *arguments = sys.argv[1:]
sys.path.insert(0, root)
package = next(name for name in json.loads(packages) if importlib.util.find_spec(name))
base = importlib.import_module(package + ".evaluators.base_evaluator").BaseEvaluator
evaluate = base.evaluate

def watched(self, info, **options):
    self.__dict__.pop("_last_task_details", None)  # of the film before
    result = evaluate(self, info, **options)
    details, weights = result.get("details", {}).get("task_specific_details") or {}, getattr(self, "TASK_WEIGHTS", {})
    parts = {name: (float(details[name]), float(weight)) for name, weight in weights.items()
             if isinstance(details.get(name), numbers.Real)}
    with open(told, "a") as lines:
        print(json.dumps([str(info["video_path"]), parts]), file=lines)
    return result

base.evaluate = watched
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def _evaluated(puzzle: Puzzle, film: Path, size: tuple[int, int], roles: Sequence[str], kit: Kit) -> dict[str, dict]:
    """Have the kit score the films of `roles`: {role: its account of the sample}.

    It sees a folder of links in a place of our own, with this puzzle alone: links of a cache, odd names in paths and
    the encoding of the prompt mean nothing to it, and a kit that asks for answers to all puzzles there finds them.
    """
    with tempfile.TemporaryDirectory(prefix="vbvr-") as staged:
        models, truth, out = (Path(staged, part) for part in ("models", "truth", "out"))
        (truth / puzzle.name).mkdir(parents=True)
        write_text(truth / puzzle.name / "prompt.txt", puzzle.prompt)
        for path in _files(puzzle):
            if path.name != "prompt.txt":
                (truth / puzzle.name / path.name).symlink_to(path.absolute())
        for role in roles:
            _make(role, puzzle, film, size, models / _slug(role) / f"{puzzle.name}.mp4")
        told = Path(staged, "parts.jsonl")
        command = [
            kit.python,
            "-c",
            _WATCH,
            kit.root,
            json.dumps(kit.bench.packages),
            told,
            kit.root / kit.bench.script,
        ]
        command += ["--models_base", models, "--gt_base", truth, "--output_dir", out, "--device", "cpu"]
        run = _run([str(word) for word in command], cwd=kit.root)
        lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
        parts = {Path(film).relative_to(models).parts[0]: found for film, found in map(json.loads, lines)}
        found = {}
        for role in roles:
            account = out / f"{_slug(role)}_vbvr_results.json"
            if run.returncode or not account.is_file():
                raise RuntimeError(
                    f"the evaluator of {kit.bench.name} failed on {role} {puzzle.name} (exit code {run.returncode}): "
                    f"{_last_words(run)}"
                )
            sample = _read_account(json.loads(account.read_text(encoding="utf-8")), puzzle, role, kit, run)
            found[role] = sample | {"parts": parts.get(_slug(role), {})}
    return found


def _make(role: str, puzzle: Puzzle, film: Path, size: tuple[int, int], path: Path) -> None:
    """Put the film of `role` to `path`: that of the model, or a reference of the same size and as many frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side, frames = size[0] + size[0] % 2, size[1]  # H.264 wants even sides

    def still(number: int, count: int) -> np.ndarray:
        picture = squared(read_picture(puzzle.truth.with_name(FILES[number])), side)
        return np.asarray(picture)[None].repeat(count, 0)

    if role == SIZED:
        write_film(read_film(puzzle.truth, side), path)
    elif role == FROZEN:
        write_film(still(0, frames), path)
    elif role == JUMP:
        write_film(np.concatenate([still(0, max(1, frames // 2)), still(1, frames - frames // 2)]), path)
    elif role == NOISE:  # uniform, new in every frame, the same for a puzzle every time
        seed = int.from_bytes(hashlib.sha256(puzzle.name.encode()).digest()[:8])
        cells = np.random.default_rng(seed).integers(0, 256, (frames, *[-(-side // CELL)] * 2, 3), np.uint8)
        write_film(cells.repeat(CELL, 1).repeat(CELL, 2)[:, :side, :side], path)
    else:
        path.symlink_to(puzzle.truth.absolute() if role == TRUTH else film)


def _read_account(account: dict, puzzle: Puzzle, role: str, kit: Kit, run: subprocess.CompletedProcess[str]) -> dict:
    """The one sample of the kit's results, its score 0 where it has an error; RuntimeError where it is not there or no
    `task_specific` in [0, 1] alone."""
    samples = [
        sample for sample in account["samples"]
        if (sample["folder"], sample["task_name"], Path(sample["video_file"]).stem) == tuple(puzzle.name.split("/"))
    ]  # fmt: skip
    if not samples:
        raise RuntimeError(f"the evaluator of {kit.bench.name} passed over {role} {puzzle.name}: {_last_words(run)}")
    (sample,) = samples
    if sample["error"] is not None:
        return sample | {"score": 0.0}
    if sample["dimensions"] != {"task_specific": sample["score"]} or not 0 <= sample["score"] <= 1:
        raise RuntimeError(
            f"the evaluator of {kit.bench.name} reports the score {sample['score']} out of {sample['dimensions']} for "
            f"{role} {puzzle.name}, not task_specific in [0, 1] alone: this adapter does not know that evaluator"
        )
    return sample


def _check_truth(report: Report) -> None:
    """Raise where the truth earns nothing, or less than doing nothing or noise on all puzzles: the scorers did not see
    it. A single truth of score 0 is a failure."""
    sound = [name for name in report.scores[TRUTH] if name not in report.failed]
    if not sound:
        role, reasons = next(iter(report.failures.items()))
        name, reason = next(iter(reasons.items()))
        raise RuntimeError(f"the scorers of {report.kit} failed on every puzzle, first {role} {name}: {reason}")
    truth = report.scores[TRUTH]
    if zeros := [name for name in sound if truth[name] == 0]:
        if len(zeros) == len(sound):
            raise RuntimeError(f"the truth scores 0 on every puzzle, first {zeros[0]}: {report.kit} does not see it")
        report.failures.setdefault(TRUTH, {}).update(dict.fromkeys(zeros, "the ground truth itself scores 0"))
    for floor in (FROZEN, NOISE):
        if all(truth[name] < report.scores[floor][name] for name in sound):
            raise RuntimeError(
                f"the truth scores below the {floor} on every puzzle, first {sound[0]}: {report.kit} does not see it, "
                f"or these are other puzzles"
            )
