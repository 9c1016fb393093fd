"""What the records say, by the rules of `data/serial/rules.yaml`: means and intervals over training seeds,
verdicts, the index.

    python -m cosutils.serial.verdict --records data/serial/validation

prints the table of `data/serial/README.md` and writes `<records>/summary.json`. With `--records data/serial/report`
and `--students data/serial/students/report` it prints what students lose against their teachers instead.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from .._files import read_json, write_json
from ..measures.causes import usable
from ..metrics import over_trainings
from .evaluate import cos_index, d50, horizon
from .train import Arguments

__all__ = [
    "END",
    "alive",
    "best",
    "by_depth",
    "cells",
    "compressed",
    "decided",
    "flips",
    "groups",
    "groups_of",
    "judge",
    "load_records",
    "measured",
    "mended",
    "serial_gains",
    "summary",
    "told",
    "usual",
    "verified",
]

END, LEAST, ROOM, GAIN, SURE = 32, 3, 0.5, 0.2, 0.1  # steps, seeds, one pass at most, gain at least, lower end above
HALF, FULL = 0.5, 0.8  # share of the gain that a control stays below, and its first pass above which it has none
LOST, KEPT = 1.0, 0.5  # lengths that a student loses at least, and what is surely lost or surely not
KEY = ("task", "film", "depth", "variant", "scale", "samples")
STAIRCASE = "levels, staircase"  # those models with rows that are denoised one after the other
DEPTHS, INDEX_STEPS = 3, (1, 2, 4, 8)  # depths at least; steps of its slope


def load_records(folder: Path) -> list[dict]:
    """Every record of a split, by name. FileNotFoundError where there is none."""
    found = [read_json(path) for path in sorted(folder.glob("*-s*.json"))]
    if not found:
        raise FileNotFoundError(f"no records in {folder}: run `python -m cosutils.serial.evaluate` first")
    return found


def _key(args: dict, depth: int | str) -> tuple:
    """Key in `groups` of a record's arguments."""
    return args["task"], args["film"], str(depth), args["variant"], args["scale"], args["samples"]


def groups(records: list[dict]) -> dict[tuple, list[dict]]:
    """Records that differ in the training seed alone, one entry for each depth of a looped model: key (task,
    film, depth, variant, scale, samples), depth in blocks gone through."""
    found = defaultdict(list)
    for one in records:
        args = one["arguments"]
        if args.get("teacher"):
            raise ValueError(f"a record is of a student of {args['teacher']}: read it with `compressed`")
        for loops in sorted({row.get("loops", 1) for row in one["curves"]}):
            rows = [row for row in one["curves"] if row.get("loops", 1) == loops]
            tied = f"{args['layers']}x{loops}" if args["loops"] else str(args["layers"])
            found[_key(args, tied)].append(one | {"curves": rows})
    return dict(found)


def _by_steps(one: dict, sampler: str, number: Callable[[dict], float]) -> dict[int, dict[int, float]]:
    """steps -> length -> a number of the row."""
    found: dict[int, dict[int, float]] = defaultdict(dict)
    for row in one["curves"]:
        if row["sampler"] == sampler:
            found[row["steps"]][row["length"]] = number(row)
    return dict(found)


def _decisions(one: dict, sampler: str) -> dict[int, dict[int, float]]:
    return _by_steps(one, sampler, lambda row: row["decision"]["value"])


def judge(records: list[dict], sampler: str = "uniform") -> dict:
    """One group of training seeds: curves by length, reach by steps, and the verdict on "steps add serial
    computation".
    """
    null = records[0]["chance"]
    seeds = [_decisions(one, sampler) for one in records]
    beside = [_decisions(one, "parallel") for one in records]
    lengths = sorted(seeds[0][1])
    rows: list[dict[str, Any]] = []
    good = bad = 0
    for length in lengths:
        first = np.array([one[1][length] for one in seeds])
        end = np.array([one[END][length] for one in seeds])
        side = np.array([next(iter(one.values()))[length] for one in beside])
        gain = over_trainings(end - first)
        means = {name: over_trainings(values) for name, values in dict(first=first, end=end, parallel=side).items()}
        row = dict(length=length, **means, gain=gain, room=bool(first.mean() <= ROOM))
        rows.append(row)
        if row["room"] and "low" in gain:
            good += gain["value"] >= GAIN and gain["low"] > SURE and (end - side).mean() >= SURE
            bad += gain["high"] < SURE
    room = sum(row["room"] for row in rows)
    if room < 2:
        verdict = "no room"
    elif len(records) < LEAST:
        verdict = "undecided"
    else:
        verdict = "supported" if good >= 2 else "not supported" if bad == room else "undecided"
    reach = {
        str(steps): dict(
            d50=over_trainings([d50(lengths, [one[steps][k] for k in lengths], null) for one in seeds]),
            horizon=over_trainings([horizon([one[steps][k] for k in lengths], null) for one in seeds]),
        )
        for steps in sorted(seeds[0])
    }
    return dict(seeds=len(records), lengths=rows, reach=reach, verdict=verdict)


def _reach(one: dict, steps: int, sampler: str = "uniform") -> float:
    """The horizon of a record after as many steps."""
    return horizon(list(_decisions(one, sampler)[steps].values()), one["chance"])


def index(
    found: dict[tuple, list[dict]], task: str, film: str, variant: str, scale: float, samples: int,
    sampler: str = "uniform",
) -> list[dict]:  # fmt: skip
    """CoS index of every untied depth of one variant, `at` that many blocks, the shallowest first, over the seeds that
    all depths share; [] below the three depths and three shared seeds that `rules.yaml` asks for.
    """
    depths = {int(key[2]): rows for key, rows in found.items()
              if key[:2] == (task, film) and key[3:] == (variant, scale, samples) and key[2].isdigit()}  # fmt: skip
    by_seed = {depth: {one["arguments"]["seed"]: one for one in rows} for depth, rows in sorted(depths.items())}
    shared = sorted(set.intersection(*(set(rows) for rows in by_seed.values()))) if by_seed else []
    if len(by_seed) < DEPTHS or len(shared) < LEAST:
        return []
    first = [{depth: _reach(rows[seed], 1, sampler) for depth, rows in by_seed.items()} for seed in shared]

    def value(at: int, seed: int, by_depth: dict[int, float]) -> float:
        return cos_index(by_depth, {steps: _reach(by_seed[at][seed], steps, sampler) for steps in INDEX_STEPS})

    return [
        over_trainings([value(at, seed, row) for seed, row in zip(shared, first, strict=True)])
        | {"depths": [*by_seed], "at": at}
        for at in by_seed
    ]


def summary(records: list[dict]) -> dict:
    """Every group judged, and the index of every variant that has depths and seeds enough."""
    found = groups(records)
    rows = []
    for key, ones in found.items():
        group = dict(zip(KEY, key, strict=True))
        rows.append(group | judge(ones))
        if group["variant"] == "levels":
            rows.append(group | {"variant": STAIRCASE} | judge(ones, "staircase"))
    kinds = sorted({key[:2] + key[3:] for key in found})
    named = KEY[:2] + KEY[3:]
    indices = []
    for kind in kinds:
        what: dict[str, Any] = dict(zip(named, kind, strict=True))
        read = {what["variant"]: "uniform"} | ({STAIRCASE: "staircase"} if what["variant"] == "levels" else {})
        for variant, sampler in read.items():
            indices += [what | {"variant": variant} | one for one in index(found, sampler=sampler, **what)]
    return dict(groups=rows, cos_index=indices)


def compressed(students: Path, teachers: Path) -> list[dict]:
    """What students lose against their teachers, one row for each kind of student; both folders hold records of
    one split.

    first, same, long: reach of the teachers after one step, after as many as the student has, and after `END`; student:
    reach of the students; lost: long minus student; won: student minus same. All are means over the teachers, with
    Student's interval. The verdict on what is lost is *no room* where the steps of the teachers add nothing, and
    *undecided* where that is. ValueError for records that do not belong together, FileNotFoundError for a teacher
    without one.
    """
    kinds: dict[tuple, dict[str, tuple[dict, dict]]] = defaultdict(dict)
    for one in load_records(students):
        args = one["arguments"]
        if not args.get("teacher"):
            raise ValueError(f"{students} holds a record of seed {args['seed']} that is of no student")
        name = Path(args["teacher"]).name
        if not (teachers / f"{name}.json").is_file():
            raise FileNotFoundError(f"no record of the teacher {name} in {teachers}: run `cosutils.serial.evaluate`")
        teacher = read_json(teachers / f"{name}.json")
        for what in ("split", "weights"):
            mine = one["teacher"] if what == "weights" else one[what]
            if mine != teacher[what]:
                raise ValueError(f"{name} in {teachers} has other {what} than its student in {students} was given")
        kind = kinds[tuple(args[k] for k in ("task", "film", "layers", "variant", "scale", "samples", "steps"))]
        if name in kind:
            raise ValueError(f"{students} holds two students of {name} that differ in their seed alone")
        kind[name] = one, teacher
    rows = []
    for (task, film, layers, variant, _, _, steps), pairs in sorted(kinds.items()):
        long, same, first = (np.array([_reach(t, k) for _, t in pairs.values()]) for k in (END, steps, 1))
        student = np.array([_reach(s, steps) for s, _ in pairs.values()])
        told = dict(first=first, same=same, long=long, student=student, lost=long - student, won=student - same)
        values = {name: over_trainings(row) for name, row in told.items()}
        lost, before = values["lost"], judge([t for _, t in pairs.values()])["verdict"]
        verdict = "no room" if before in ("no room", "not supported") else "undecided"
        if before == "supported":
            verdict = "not supported" if lost["high"] < KEPT else verdict
            verdict = "supported" if lost["value"] >= LOST and lost["low"] > KEPT else verdict
        rows.append(dict(task=task, film=film, layers=layers, variant=variant, steps=steps, verdict=verdict, **values))
    return rows


def best(row: dict) -> dict | None:
    """The length of a judged group at which the steps gain most among those that leave room, None where none does."""
    return max((one for one in row["lengths"] if one["room"]), key=lambda one: one["gain"]["value"], default=None)


def cells(judged: dict) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of a `summary`, a row for each group: reach after 1, 4 and 32 steps, d50 (the length
    where half is decided), the largest gain, what the mean of 8 first estimates decides there, and the verdict.
    """
    head = ["task, film", "blocks", "variant", "scale", "films", "seeds", "reach: 1 step", "4", str(END)]
    head += ["d50: 1 step", f"d50: {END}", "largest gain with room", "mean of 8", "verdict"]
    rows = []
    for row in judged["groups"]:
        reach = [f"{row['reach'][steps]['horizon']['value']:.2f}" for steps in ("1", "4", str(END))]
        most = best(row)
        half = [f"{row['reach'][steps]['d50']['value']:.1f}" for steps in ("1", str(END))]
        gain, eight = "none has room", ""
        if most:
            eight = f"{most['parallel']['value']:.2f}"
            gain = f"{most['first']['value']:.2f} to {most['end']['value']:.2f} at {most['length']}"
        run = f"{row['task']}, {row['film']}", row["depth"], row["variant"], f"{row['scale']:g}", f"{row['samples']:,}"
        rows.append([*map(str, run), str(row["seeds"]), *reach, *half, gain, eight, row["verdict"]])
    return head, rows


def usual(task: str, film: str, depth: int | str, variant: str) -> tuple:
    """Key in `groups` of the runs with the usual scale of the latents and number of films."""
    return task, film, str(depth), variant, Arguments.scale, Arguments.samples


def decided(records: list[dict]) -> dict[int, dict[int, dict[str, float | int]]]:
    """length -> steps -> decision accuracy, its mean over training seeds with Student's interval."""
    return _over_seeds([_decisions(one, "uniform") for one in records])


def alive(records: list[dict]) -> dict[int, dict[int, dict[str, float | int]]]:
    """length -> steps -> candidates alive at the last of them, its mean over training seeds with Student's interval."""
    return _over_seeds([_by_steps(one, "uniform", lambda row: row["alive"][-1]) for one in records])


def _over_seeds(seeds: list[dict[int, dict[int, float]]]) -> dict[int, dict[int, dict[str, float | int]]]:
    return {
        length: {steps: over_trainings([one[steps][length] for one in seeds]) for steps in sorted(seeds[0])}
        for length in sorted(seeds[0][1])
    }


def groups_of(judged: dict) -> dict[tuple, dict]:
    """The groups of a `summary` by their key, as `groups` and `usual` name it."""
    return {tuple(row[name] for name in KEY): row for row in judged["groups"]}


def by_depth(judged: dict, task: str, film: str, variant: str) -> dict[int, dict]:
    """Number of blocks -> the usual group of a `summary` with as many."""
    found = groups_of(judged)
    depths = sorted(int(key[2]) for key in found if key[2].isdigit() and key == usual(task, film, int(key[2]), variant))
    return {depth: found[usual(task, film, depth, variant)] for depth in depths}


def serial_gains(judged: dict) -> list[dict]:
    """Is the gain of steps serial? One row for each supported group of the ladder lottery that has a control.

    The control is the group of `ladder_most` that is alike otherwise, at the length at which the steps gain most. Keys:
    depth, variant, length, gain (of the ladder), first and control (one pass of the control and its gain), and
    verdict: "supported" where the control gains less than `HALF` of the ladder's mean gain, or its one pass lies above
    `FULL`; else "not supported".
    """
    found, rows = groups_of(judged), []
    for key, row in found.items():
        control, most = found.get(("ladder_most", *key[1:])), best(row)
        if key[0] != "ladder" or row["verdict"] != "supported" or most is None:
            continue
        if control is None or control["seeds"] < LEAST:
            continue
        for same in (one for one in control["lengths"] if one["length"] == most["length"]):
            serial = same["gain"]["value"] < HALF * most["gain"]["value"] or same["first"]["value"] > FULL
            facts = dict(depth=row["depth"], variant=row["variant"], length=most["length"], gain=most["gain"])
            facts |= dict(first=same["first"], control=same["gain"])
            rows.append(facts | dict(verdict="supported" if serial else "not supported"))
    return rows


def told(depths: dict[int, dict]) -> str:
    """What the steps of one kind of model do, in words: depths as `by_depth` gives them, the supported ones first."""
    words = {"undecided": "it is undecided", "no room": "there is no room to tell", "not supported": "they do not"}
    by_verdict = defaultdict(list)
    for blocks, row in sorted(depths.items(), key=lambda one: one[1]["verdict"] != "supported"):
        by_verdict[row["verdict"]].append(str(blocks))
    parts = []
    for word, some in by_verdict.items():
        count = " and ".join(filter(None, [", ".join(some[:-1]), some[-1]]))
        count = f"with {count} block{'s' * (some != ['1'])}"
        parts.append(f"{count} {words.get(word, 'they solve puzzles that one pass cannot')}")
    return "; ".join(parts)


def _causes(folder: Path, key: tuple, measure: str, length: int) -> list[list[dict]]:
    """Rows of one of the measures of `cosutils.serial.causes` at a length, of each seed in `folder`; key: of a model,
    see `usual`. FileNotFoundError where it measured none.
    """
    found = []
    for one in load_records(folder):
        if _key(one["arguments"], one["arguments"]["layers"]) == key:
            found.append([row for row in one[measure] if row["length"] == length])
    if not any(found):
        told = ", ".join(map(str, key))
        raise FileNotFoundError(
            f"no {measure} of {told} at {length} in {folder}: run `python -m cosutils.serial.causes`"
        )
    return found


def measured(folder: Path, length: int) -> int:
    """The length nearest to the given one among those that `cosutils.serial.causes` measured."""
    lengths = {row["length"] for one in load_records(folder) for row in one["recovery"]}
    return min(sorted(lengths), key=lambda one: abs(one - length))


def mended(folder: Path, key: tuple, length: int) -> list[tuple[float, dict[str, float | int]]]:
    """(noise level of a mistake, decision accuracy at the end of the run), mean over the seeds in `folder` with
    Student's interval. key: of a model, see `usual`. FileNotFoundError where `cosutils.serial.causes` measured none.
    """
    rows = defaultdict(list)
    for row in chain.from_iterable(_causes(folder, key, "recovery", length)):
        rows[row["sigma"]].append(row["right"])
    return [(sigma, over_trainings(values)) for sigma, values in rows.items()]


def verified(folder: Path, key: tuple, length: int) -> tuple[str, dict[float, dict[str, float | int] | None]]:
    """What the rule says of the verifier, and noise level -> area under the curve, mean over the seeds in `folder` with
    Student's interval, None where all films of a seed are right or all wrong. Otherwise as `mended`.
    """
    found = _causes(folder, key, "verifier", length)
    rows = defaultdict(list)
    for row in chain.from_iterable(found):
        rows[row["sigma"]].append(row["auroc"])
    areas = {sigma: None if None in values else over_trainings(values) for sigma, values in rows.items()}
    return usable(float(np.mean([seed[0]["right"] for seed in found])), [*areas.values()]), areas


def flips(folder: Path, key: tuple, length: int) -> dict[str, list[tuple[float, float]]]:
    """What was exchanged -> (noise level, how often the leader changed then), mean over the seeds in `folder`.
    Otherwise as `mended`.
    """
    rows: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in chain.from_iterable(_causes(folder, key, "dependence", length)):
        for state, value in row.items():
            if isinstance(value, dict):
                rows[state][row["sigma"]].append(value["flips"])
    return {state: [(sigma, float(np.mean(values))) for sigma, values in line.items()] for state, line in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("data/serial/validation"))
    parser.add_argument("--students", type=Path, help="records of students of those in --records")
    given = parser.parse_args()
    folder = given.records
    if given.students:
        names = ["task", "layers", "variant", "steps", "first", "same", "long", "student", "won", "lost", "low", "high"]
        rows = []
        for row in compressed(given.students, folder):
            flat = row | {name: row[name]["value"] for name in names[4:10]}
            flat |= {end: row["lost"].get(end, "") for end in ("low", "high")}
            rows.append([*(flat[name] for name in names), row["verdict"]])
        print(tabulate(rows, [*names, "verdict"], tablefmt="github", floatfmt=".2f"))
        return
    judged = summary(load_records(folder))
    write_json(folder / "summary.json", judged)
    head, rows = cells(judged)
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
