"""Regenerate every stored number: the notebooks with N >= 200 puzzles per condition, scores, horizons and the testbed.

    python tools/full_results.py [--workers 2] [--only full/03_noise scores/cos-mini ...] [--again]

The jobs are the notebooks that the files of `PRESETS` in `notebooks/params` name, run in a copy below `_build`, and the
commands of `COMMANDS`; --only takes notebooks of other presets too, such as vbvr_wan22/01_setup. A notebook's numbers
go to `data/results/<preset>/<notebook>.json`, whole or not at all, and where a job fails, its stored numbers stay as
they were. The run may be stopped at any time: `_build/full/done.json` holds the digest of what each finished job was
made from (code, notebook, parameters, weights), and a job whose digest is there is not run again, unless --again is
given. The time left is estimated from how long each job took the last time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any

from build_book import ROOT, preset_parameters, run_notebook
from tqdm import tqdm

TRAININGS = (
    *(f"{kind}_seed{seed}" for kind in ("longer", "memory") for seed in (1, 2)),
    *(f"scratch_seed{seed}" for seed in (1, 2, 3)),
)
PRESETS = ("full", "shallow", "longer", "memory", *TRAININGS)
PLAIN = ("cos-mini", "cos-mini-shallow", "cos-mini-two", "cos-mini-longer", "cos-mini-memory")
MODELS = dict.fromkeys(PLAIN, "1 4 20") | {"cos-mini-student": "4"}  # numbers of steps that are scored
STUDENTS = "data/serial/students"
AGAIN = (
    *("--models", "cos-mini-shallow", "cos-mini-rollout", "--tasks", "occlusion"),
    *("--puzzles", "400", "--first", "53700", "--out", "data/results/drift-again.json"),
)
COMMANDS: dict[str, list[list[str]]] = {  # name of a job -> modules and their arguments, one after the other
    **{
        f"scores/{model}": [
            ["cosutils.training.evaluate", model, "--puzzles", "200", "--steps", *steps.split(), "--sealed"]
        ]
        for model, steps in MODELS.items()
    },
    "horizon": [["cosutils.measures.horizon"]],
    "drift": [["cosutils.measures.drift"], ["cosutils.measures.drift", *AGAIN]],
    "causes": [["cosutils.measures.causes", "--again"]],
    "calibration": [["cosutils.report.calibration", "--again"]],
    **{
        f"serial/{split}": [
            ["cosutils.serial.evaluate", "--again", *options],
            ["cosutils.serial.verdict", "--records", f"data/serial/{split}"],
        ]
        for split, options in {"validation": [], "report": ["--report"]}.items()
    },
    "serial/causes": [["cosutils.serial.causes"], ["cosutils.serial.causes", "--report"]],
    "serial/ensemble": [["cosutils.serial.ensemble"]],
    "serial/students": [
        ["cosutils.serial.evaluate", "--again", "--runs", f"{STUDENTS}/models", "--out", STUDENTS, *options]
        for options in ([], ["--report"])
    ],
}
UNKNOWN = 600.0  # seconds, for a job that was never timed


@dataclass(frozen=True)
class Job:
    """name: preset/notebook, or a key of `COMMANDS`; digest: of all it is made from; seconds: what it took last time;
    run: does it, and returns "" or what went wrong.
    """

    name: str
    digest: str
    seconds: float
    run: Callable[[], str]


def digest_of(root: pathlib.Path, *parts: Any) -> str:
    """sha256 of the package's code, the shipped weights' checksums and `parts`, texts or what JSON holds."""
    found = hashlib.sha256()
    for path in (*sorted(root.glob("cosutils/**/*.py")), *sorted(root.glob("data/**/SHA256SUMS"))):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    for part in parts:
        found.update(json.dumps(part, sort_keys=True).encode())
    return found.hexdigest()


def code_of(notebook: pathlib.Path) -> list[str]:
    """The sources of a notebook's code cells: its outputs do not change what it computes."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def store(runs: pathlib.Path, target: pathlib.Path, name: str, seconds: float, command: str) -> None:
    """Copy a notebook's numbers, with the command and the time they took, whole or not at all."""
    numbers = json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))
    numbers["provenance"] |= {"command": command, "seconds": seconds}
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f".{name}.tmp"
    temporary.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, target / f"{name}.json")


def notebook_job(root: pathlib.Path, preset: str, name: str, parameters: dict[str, Any]) -> str:
    stage = root / "_build" / preset
    (stage / "notebooks").mkdir(parents=True, exist_ok=True)
    if not (stage / "data").exists():
        (stage / "data").symlink_to(root / "data", target_is_directory=True)
    folders = root / "notebooks", stage / "notebooks"
    record = run_notebook(*(folder / f"{name}.ipynb" for folder in folders), parameters, 0)
    if record["status"] != "ok":
        return record["error"]
    command = f"python tools/full_results.py --only {preset}/{name}"
    store(stage / "runs", root / "data" / "results" / preset, name, record["seconds"], command)
    return ""


def command_job(root: pathlib.Path, commands: list[list[str]]) -> str:
    for command in commands:
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip()
    return ""


def timed(run: Callable[[], str]) -> tuple[str, float]:
    """What went wrong in a job ("": nothing) and its seconds; one that raises must not cost the others their entry."""
    start = time.perf_counter()
    try:
        error = run()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return error, round(time.perf_counter() - start, 1)


def jobs(root: pathlib.Path, done: dict[str, dict[str, Any]], only: list[str] | None = None) -> list[Job]:
    """Everything there is to run, the longest first. done: name -> {digest, seconds} of earlier runs. only: names that
    may be of other presets.
    """
    found = []
    others = [name.split("/")[0] for name in only or () if "/" in name and name not in COMMANDS]
    for preset in dict.fromkeys([*PRESETS, *others]):
        for name, values in preset_parameters(root, preset).items():
            if values:
                stored = root / "data" / "results" / preset / f"{name}.json"
                last = json.loads(stored.read_text(encoding="utf-8"))["provenance"] if stored.is_file() else {}
                digest = digest_of(root, code_of(root / "notebooks" / f"{name}.ipynb"), values)
                run = partial(notebook_job, root, preset, name, values)
                found.append(Job(f"{preset}/{name}", digest, last.get("seconds", UNKNOWN), run))
    for name, commands in COMMANDS.items():
        seconds = done.get(name, {}).get("seconds", UNKNOWN)
        found.append(Job(name, digest_of(root, commands), seconds, partial(command_job, root, commands)))
    return sorted(found, key=lambda job: -job.seconds)


def run_all(root: pathlib.Path, workers: int, only: list[str] | None, again: bool) -> int:
    """Run what is left to do and return how many jobs failed; ValueError for a name in `only` that is no job."""
    ledger = root / "_build" / "full" / "done.json"
    done = json.loads(ledger.read_text(encoding="utf-8")) if ledger.is_file() else {}
    todo = jobs(root, done, only)
    if unknown := set(only or ()) - {job.name for job in todo}:
        raise ValueError(f"no job {min(unknown)!r}; there are: {', '.join(sorted(job.name for job in todo))}")
    todo = [job for job in todo if job.name in only] if only else todo
    left = [job for job in todo if again or done.get(job.name, {}).get("digest") != job.digest]
    print(f"{len(todo)} jobs, {len(todo) - len(left)} of them done before", flush=True)
    failed = 0
    shape = "{percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} left{postfix}"
    with (
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=sum(job.seconds for job in left), bar_format=shape) as bar,
    ):
        running = {pool.submit(timed, job.run): job for job in left}
        for future in as_completed(running):
            job, (error, seconds) = running[future], future.result()
            bar.update(job.seconds)
            bar.write(f"{job.name}: {'failed' if error else 'ok'} in {seconds:.0f} s" + f"\n{error}" * bool(error))
            failed += bool(error)
            if not error:
                done[job.name] = dict(digest=job.digest, seconds=seconds)
                ledger.parent.mkdir(parents=True, exist_ok=True)
                ledger.with_suffix(".tmp").write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
                os.replace(ledger.with_suffix(".tmp"), ledger)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs run at the same time")
    parser.add_argument("--only", nargs="+", help="names such as full/03_noise; default: all")
    parser.add_argument("--again", action="store_true", help="run what is done too")
    arguments = parser.parse_args()
    try:
        return int(run_all(ROOT, arguments.workers, arguments.only, arguments.again) > 0)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
