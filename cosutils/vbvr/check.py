"""Verify an installation of an official kit: puzzles and answers of our own, whose scores are known.

    python -m cosutils.vbvr.check                       # the kit that VBVR_EVALKIT names; 0 where all scores agree

The check set is four puzzles of the embedded world (two of occlusion, two of rotation) under the names of official
tasks that ask for something alike, with the answers of `cos-mini`. Nothing of the benchmarks is in it, and its scores
say nothing about any model: they tell whether checkout, OpenCV and videos work together as where they were measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .._files import read_json, write_json
from ..mini import tasks, world
from ..mini.export import export
from ..pipelines.loading import data_folder, load, seeded, settings
from .official import Report, find_kit, score
from .puzzles import Puzzle, read, save_answer

__all__ = ["compare", "main", "make", "measured", "puzzles"]

MODEL = "cos-mini"
TASKS = {  # of the embedded world: the official task under whose name it is scored
    "occlusion": "In-Domain_50/G-21_multiple_occlusions_vertical_data-generator",
    "rotation": "Out-of-Domain_50/O-85_2d_object_rotation_data-generator",
}
SEEDS = (1, 2)
TOLERANCE = 0.02  # what another encoder may change in the score of a reference


def make(folder: str | Path) -> None:
    """Write the check set into an empty folder: truth/ and answers/, in the official layout. Runs `cos-mini`."""
    folder = Path(folder).expanduser()
    with tempfile.TemporaryDirectory() as drawn:
        for task, name in TASKS.items():
            samples = [tasks.sample(task, seed) for seed in SEEDS]
            for sample, place in zip(samples, export(samples, drawn), strict=True):
                facts = {"generator": "cosutils.mini", "task": task, "seed": sample.seed, "answer": sample.answer}
                write_json(place / "metadata.json", facts)
                shutil.copytree(place, folder / "truth" / name / place.name)
    pipe = load(MODEL)
    for puzzle in puzzles(folder):
        film = pipe(**settings(pipe) | puzzle.inputs, generator=seeded(1), output_type="np").frames[0]
        save_answer(film, puzzle, folder / "answers")


def puzzles(folder: str | Path) -> list[Puzzle]:
    """The puzzles of the check set in `folder`, at the size of `cos-mini`."""
    return read(Path(folder).expanduser() / "truth", pixels=world.SIZE, frames=world.FRAMES)


def measured(folder: str | Path, work: str | Path) -> Report:
    """Scores of the check set in `folder` by the kit that the environment names, kept in `work`: `official.score`."""
    return score(puzzles(folder), Path(folder).expanduser() / "answers", work, MODEL, find_kit())


def compare(report: Report, known: dict) -> list[str]:
    """Every score of `report` that differs by more than `TOLERANCE` from the `known` ones, every failure, and what is
    measured on one side alone, one line each."""
    lines = [
        f"failed: {role} {name}: {why}" for role, reasons in report.failures.items() for name, why in reasons.items()
    ]
    before, now = (
        {(role, name): score for role, values in scores.items() for name, score in values.items()}
        for scores in (known, report.scores)
    )
    for place in sorted(before.keys() | now.keys()):
        was, found = before.get(place), now.get(place)
        if was is None or found is None or abs(was - found) > TOLERANCE:
            lines.append(f"{' '.join(place)}: known {was}, here {found}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every score is the known one, 1 where one differs or failed, 2 where none are known of this kit."""
    parser = argparse.ArgumentParser(prog="python -m cosutils.vbvr.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=data_folder() / "check-set", help="the check set")
    parser.add_argument("--work", type=Path, help="keep the scores here, and do not score twice what is there")
    parser.add_argument("--make", action="store_true", help="write the check set into --folder instead")
    given = parser.parse_args(arguments)
    if given.make:
        make(given.folder)
        return 0
    with tempfile.TemporaryDirectory() as passing:
        report = measured(given.folder, given.work or passing)
    print(report.table())
    known = read_json(given.folder / "known.json").get(report.kit.bench.name)
    if known is None:
        print(f"not compared: no scores of the check set are known for {report.kit.bench.name}")
        return 2
    differences = compare(report, known["task_specific"])
    print(
        "\n".join(differences)
        or f"all scores are the known ones, of commit {known['commit']}, OpenCV {known['opencv']}"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
