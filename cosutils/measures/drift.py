"""Where the last steps spoil a film, and whether it is the model's own states that they fail in.

    python -m cosutils.measures.drift

writes `data/results/drift.json`. One of `levels` is a model, a task and a noise level of a run of twenty steps. It
holds the clean estimate of the model in two states of this level: in its *own*, which its run has reached, and in a
*true* one, which is the truth of the puzzle mixed with the run's noise. Both are read with `chain.apart`. One of `runs`
has the films of four and of twenty steps; `late`, twenty steps minus four; `more`, twenty steps minus those of the
first of the models; both puzzle by puzzle. `harm` looks at the puzzles whose own estimate is exact at the last noise
level that four steps visit: how many more of them are exact at the last level in true states than in own ones. (In a
puzzle that the run decides wrongly a true state shows the answer, and says nothing of drift.) The puzzles are sealed
ones. On occlusion the run of 200 puzzles and validation disagreed, so it was made once more, on the next 400:

    python -m cosutils.measures.drift --models cos-mini-shallow cos-mini-rollout --tasks occlusion --puzzles 400 \\
        --first 53700 --out data/results/drift-again.json

The rules, older than the run, for films in which every cell is right (`solved`). A model *drifts* on a task where the
interval of `late` lies below 0; otherwise it *holds* where it lies above -.05; otherwise it is *undecided*, as where an
interval has no width. Its *own states* do the harm where it drifts and the interval of `harm` lies above 0. One of
`CURES` *cures* the drift of the first model on a task on which that one drifts, if it holds there and the interval of
`more` lies above 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline

from .._files import write_json
from ..metrics import Interval, paired_interval, share_interval
from ..mini import split, tasks, text
from ..mini.memory import RememberingWan
from ..mini.model import condition, decode, noise_of, steps_of
from ..pipelines.loading import load
from .chain import apart

__all__ = [
    "CURES", "FEW", "LEVELS", "MODELS", "STEPS", "TASKS", "cured", "estimates", "judge", "level_rows", "read",
    "run_row",
]  # fmt: skip

CURES = ("cos-mini-longer", "cos-mini-rollout")  # both were trained on from the first of the models
MODELS = ("cos-mini-shallow", *CURES)
TASKS = ("occlusion", "reappear", "maze", "two_routes")
STEPS, FEW = 20, 4
LEVELS = (0, 5, 10, 13, 15, 16, 17, 18, 19)
"""The steps of a run of `STEPS` at whose levels estimates are read; the last four lie below all levels of `FEW`."""
KEPT = LEVELS.index(15)  # the last level that `FEW` steps visit
SEEDS = range(split.SEALED.start + 3500, split.SEALED.stop)  # those before were used by other measures
READ = ("decided", "cells", "solved")


@torch.no_grad()
def estimates(
    pipe: WanImageToVideoPipeline, puzzles: Sequence[tasks.Sample], steps: int, levels: Iterable[int] | None = None
) -> dict[int, tuple[float, np.ndarray, np.ndarray]]:
    """Films (n, 17, 80, 80, 3) that the model estimates at some steps of a run: step -> sigma, own, true.

    own: in the state that the run has reached; true: in (1 - sigma) x0 + sigma x1, with the noise x1 that the run began
    with. levels: the steps, default all. ValueError for a model with a memory, which has no estimate to look back at in
    a true state.
    """
    if isinstance(pipe.transformer, RememberingWan):
        raise ValueError("a model with a memory cannot be asked in a true state: it has no last estimate there")
    codec, network, chosen = pipe.vae, pipe.transformer, set(range(steps) if levels is None else levels)
    x0 = codec.encode_ids(torch.from_numpy(np.stack([puzzle.ids for puzzle in puzzles])))
    x1 = noise_of([puzzle.seed for puzzle in puzzles], x0.shape[1:])
    words = text.embed(pipe.tokenizer, pipe.text_encoder, [puzzle.prompt for puzzle in puzzles])
    given, found = condition(codec, x0), {}
    for step, (sigma, _, own) in enumerate(steps_of(network, x1, given, words, steps)):
        if step in chosen:
            state, level = torch.lerp(x0, x1, sigma), x0.new_full((len(x0),), sigma * 1000)
            v = network(torch.cat([state, given], 1), level, words, return_dict=False)[0]
            found[step] = sigma, decode(codec, own), decode(codec, state - sigma * v)
    return found


def read(pipe: WanImageToVideoPipeline, puzzles: Sequence[tasks.Sample], batch: int = 25) -> dict[str, np.ndarray]:
    """`READ` of every puzzle: own and true (n, levels, 3), few (n, 3) of a run of `FEW` steps; sigmas (levels,)."""
    parts: dict[str, list[Any]] = dict(own=[], true=[], few=[])
    for start in range(0, len(puzzles), batch):
        part = puzzles[start : start + batch]
        many, few = estimates(pipe, part, STEPS, LEVELS), estimates(pipe, part, FEW, [FEW - 1])[FEW - 1][1]
        for k, puzzle in enumerate(part):
            for name, place in (("own", 1), ("true", 2)):
                parts[name].append([_values(puzzle, many[step][place][k]) for step in LEVELS])
            parts["few"].append(_values(puzzle, few[k]))
        sigmas = [many[step][0] for step in LEVELS]
    return {name: np.array(rows) for name, rows in parts.items()} | dict(sigmas=np.array(sigmas))


def _values(puzzle: tasks.Sample, film: np.ndarray) -> list[float]:
    found = apart(puzzle, film)
    return [found[name] for name in READ]


def judge(late: Interval) -> str:
    """What the rules above say of what the further steps add; nothing firm of an interval without width."""
    if late.low == late.high:
        return "undecided"
    return "drifts" if late.high < 0 else "holds" if late.low > -0.05 else "undecided"


def level_rows(model: str, task: str, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """`levels` of one model and task, from what `read` gives."""
    rows = []
    for level, sigma in enumerate(found["sigmas"]):
        row: dict[str, Any] = dict(model=model, task=task, sigma=round(float(sigma), 4), n=len(found["own"]))
        for k, part in enumerate(READ):
            own, true = found["own"][:, level, k], found["true"][:, level, k]
            row[part] = dict(own=share_interval(own).stored(), true=share_interval(true).stored())
            row[part]["true - own"] = paired_interval(true, own).stored()
        rows.append(row)
    return rows


def run_row(model: str, task: str, found: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> dict[str, Any]:
    """`runs` of one model and task; first: what `read` gives of the first of the models. Without `harm` where fewer
    than two puzzles are exact at the last level of `FEW` steps.
    """
    row: dict[str, Any] = dict(model=model, task=task, n=len(found["own"]))
    own, true = (found[state][:, :, READ.index("solved")] for state in ("own", "true"))
    kept = own[:, KEPT] == 1
    if kept.sum() >= 2:
        row["harm"] = paired_interval(true[kept, -1], own[kept, -1]).stored() | dict(n=int(kept.sum()))
    for k, part in enumerate(READ):
        few, many = found["few"][:, k], found["own"][:, -1, k]
        late = paired_interval(many, few)
        row[part] = dict(few=share_interval(few).stored(), many=share_interval(many).stored(), late=late.stored())
        row[part]["more"] = paired_interval(many, first["own"][:, -1, k]).stored()
        if part == "solved":
            row["verdict"] = judge(late)
    row["own_states"] = row["verdict"] == "drifts" and row.get("harm", {"low": 0})["low"] > 0
    return row


def cured(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Model, task and whether the training of the model cures the drift of the first, wherever that one drifts."""
    first = {row["task"] for row in runs if row["model"] == runs[0]["model"] and row["verdict"] == "drifts"}
    return [
        dict(model=row["model"], task=row["task"],
             cured=row["verdict"] == "holds" and row["solved"]["more"]["low"] > 0)
        for row in runs if row["task"] in first and row["model"] in CURES
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="the first is the one that the others are to cure")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--puzzles", type=int, default=200)
    parser.add_argument("--first", type=int, default=SEEDS.start, help="sealed seed to begin at")
    parser.add_argument("--out", type=Path, default=Path("data/results/drift.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    levels, runs, first = [], [], dict[str, dict[str, np.ndarray]]()
    for model in args.models:
        pipe = load(model)
        for task in args.tasks:
            found = read(pipe, split.draw(task, range(args.first, SEEDS.stop), args.puzzles))
            levels += level_rows(model, task, found)
            runs.append(run_row(model, task, found, first.setdefault(task, found)))
            print(runs[-1], flush=True)
    options = f"--models {' '.join(args.models)} --tasks {' '.join(args.tasks)} --puzzles {args.puzzles}"
    seeds = [args.first, args.first + args.puzzles - 1]
    command = f"python -m cosutils.measures.drift {options} --first {args.first} --out {args.out}"
    facts = dict(command=command, seeds=seeds)
    write_json(args.out, facts | dict(runs=runs, cured=cured(runs), levels=levels))


if __name__ == "__main__":
    main()
