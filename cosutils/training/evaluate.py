"""Scores of the embedded model on held-out puzzles, beside the controls.

    python -m cosutils.training.evaluate cos-mini --puzzles 200 --steps 1 4 20

writes `data/results/<model>-scores.json` and prints the table of the README. Seeds are split once and for all: reported
scores and notebooks use seeds below 100,000, choices made while building the model use the next 100,000, training
starts at 1,000,000,000.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..metrics import bootstrap_interval, rate_interval
from ..mini import tasks, text
from ..mini.controls import CONTROLS, control
from ..mini.model import condition, generate
from ..pipelines import loading
from ..report.results import interval_text, record_numbers

__all__ = ["REPORT", "TRAIN", "VALIDATION", "measure", "scores", "side_by_side", "table"]

REPORT, VALIDATION, TRAIN = range(100_000), range(100_000, 200_000), range(1_000_000_000, 2**62)


@torch.no_grad()
def scores(pipe, samples: list[tasks.Sample], steps: int, seed: int = 0, guidance: float = 1.0,
           batch: int = 32) -> list[tasks.Score]:  # fmt: skip
    """Score of one film per sample. The noise of sample k depends on (seed, sample seed) alone, not on the batch."""
    codec, device = pipe.vae, pipe.transformer.device
    std = torch.tensor(codec.config.latents_std)[:, None, None, None]
    blank = text.embed(pipe.tokenizer, pipe.text_encoder, [""]).to(device)
    result = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        latents = codec.encode_ids(torch.from_numpy(np.stack([s.ids for s in part])))
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + s.seed) for s in part]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        embeds = text.embed(pipe.tokenizer, pipe.text_encoder, [s.prompt for s in part])
        noise, given, embeds = noise.to(device), condition(codec, latents).to(device), embeds.to(device)
        final = generate(pipe.transformer, noise, given, embeds, steps, blank, guidance)
        films = codec.decode(final.cpu().float() * std).sample
        films = ((films + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()
        result += [s.score(film) for s, film in zip(part, films)]
    return result


def _numbers(prefix: str, rows: list[tasks.Score]) -> dict[str, dict]:
    mean = bootstrap_interval([row.total for row in rows])
    solved = rate_interval(sum(row.solved for row in rows), len(rows))
    both = {f"{prefix}/score": mean, f"{prefix}/solved": solved}
    return {k: dict(value=v.estimate, low=v.low, high=v.high, n=len(rows)) for k, v in both.items()}


def measure(task: str, model: str, puzzles: int, steps: tuple[int, ...], seeds: range = REPORT) -> dict[str, dict]:
    """Scores of one task: the first `puzzles` of `seeds` at every number of steps, the truth and the controls."""
    torch.set_num_threads(1)
    pipe = loading.load(model)
    samples = [tasks.sample(task, seed) for seed in seeds[:puzzles]]
    numbers = _numbers(f"{task}/truth", [s.score(s.video) for s in samples])
    for name in CONTROLS:
        numbers |= _numbers(f"{task}/{name}", [s.score(control(name, s)) for s in samples])
    for count in steps:
        numbers |= _numbers(f"{task}/{count} steps", scores(pipe, samples, count))
    return numbers


def table(numbers: dict[str, dict], steps: tuple[int, ...]) -> str:
    """The README's table in markdown: mean score of truth and controls, score and solve rate of the model."""
    full = max(steps)

    def cell(key: str) -> str:
        return interval_text(numbers[key])

    lines = [["task", "truth", *CONTROLS, f"score, {full} steps", *(f"solved, {_steps(k)}" for k in steps)]]
    for task in tasks.NAMES:
        plain = [f"{numbers[f'{task}/{name}/score']['value']:.2f}" for name in ("truth", *CONTROLS)]
        model = [cell(f"{task}/{full} steps/score"), *(cell(f"{task}/{k} steps/solved") for k in steps)]
        lines.append([task, *plain, *model])
    return _markdown(lines)


def side_by_side(models: dict[str, tuple[dict[str, dict], tuple[int, ...]]]) -> str:
    """Solve rates of several models in markdown; models: label -> (recorded numbers, numbers of steps shown)."""
    columns = [(label, numbers, k) for label, (numbers, steps) in models.items() for k in steps]
    lines = [["task", *(f"{label}, {_steps(k)}" for label, _, k in columns)]]
    for task in tasks.NAMES:
        cells = (numbers[f"{task}/{k} steps/solved"] for _, numbers, k in columns)
        lines.append([task, *map(interval_text, cells)])
    return _markdown(lines)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"


def _markdown(lines: list[list[str]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cos-mini")
    parser.add_argument("--puzzles", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    work = partial(measure, model=args.model, puzzles=args.puzzles, steps=tuple(args.steps))
    with ProcessPoolExecutor(args.workers) as pool:
        numbers = {k: v for part in pool.map(work, tasks.NAMES) for k, v in part.items()}
    provenance = dict(model=args.model, seeds=[REPORT.start, REPORT.start + args.puzzles - 1], steps=args.steps,
                      command=f"python -m cosutils.training.evaluate {args.model} --puzzles {args.puzzles} --steps "
                              + " ".join(map(str, args.steps)))  # fmt: skip
    record_numbers(args.out, f"{args.model}-scores", numbers, provenance)
    print(table(numbers, tuple(args.steps)))


if __name__ == "__main__":
    main()
