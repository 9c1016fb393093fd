"""Compute what the explorer page shows: the clean estimate of every step and frame, for some puzzles of every task.

    python tools/make_explorer.py _build/stage/book/_static/explorer

The folder gets one picture per run (`<model>-<task>-<seed>.jpg`: rows are denoising steps, columns are frames, one
tile of 80 x 80 px each; the 8 x 8 blocks of a JPEG are the cells of the world) and `data.js`, which the page's script
reads without a server. Every model gets the same puzzles and the same noise. `tools/build_book.py` calls it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

import cosutils as cos
from cosutils.measures import chain

MODELS = {"cos-mini": "ten blocks", "cos-mini-shallow": "three blocks"}
SEEDS = range(4)
# what is shown -> task and difficulty
TASKS = {name: (name, None) for name in cos.tasks.NAMES} | {"two_right_routes": ("two_routes", 0)}


def sheet(films: np.ndarray) -> Image.Image:
    """Films of one run (S, T, H, W, 3) in [0, 1] as one picture: rows are steps, columns are frames."""
    steps, frames, height, width, _ = films.shape
    pixels = np.rint(np.clip(films, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels.transpose(0, 2, 1, 3, 4).reshape(steps * height, frames * width, 3))


def facts(trace: chain.Trace, picture: str) -> dict:
    """What the page says about one run, JSON-ready; numbers rounded to what a curve can show."""
    return {
        "seed": trace.sample.seed,
        "prompt": trace.sample.prompt,
        "sheet": picture,
        "answers": list(trace.sample.films),
        "names": trace.names,
        "cells": [np.flatnonzero(last != trace.sample.blank).tolist() for last in trace.sample.options.values()],
        "evidence": np.round(trace.evidence, 3).tolist(),
        "sigmas": np.round(trace.sigmas, 3).tolist(),
        "scores": [round(score.total, 3) for score in trace.scores],
        "solved": [bool(score.solved) for score in trace.scores],
    }


def make(
    folder: pathlib.Path,
    models: Mapping[str, str] = MODELS,
    names: Sequence[str] = tuple(TASKS),
    seeds: range = SEEDS,
) -> float:
    """Fill `folder` with the runs of the first held-out puzzles of every entry of `TASKS`; returns the seconds it took.

    models: name as for `cos.load`, and what the reader is told of it.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    shown, tile = [], None
    for model, title in models.items():
        pipe = cos.load(model)
        pipe.set_progress_bar_config(disable=True)
        tasks = []
        for name in names:
            runs = []
            for seed in seeds:
                sample = cos.tasks.sample(TASKS[name][0], seed, TASKS[name][1])
                trace = chain.trace(pipe, sample, seed, keep_films=True)
                picture = f"{model}-{name}-{seed}.jpg"
                sheet(trace.films).save(folder / picture, quality=80, subsampling=0, optimize=True)
                runs.append(facts(trace, picture))
                tile = trace.films.shape[1:4]
            tasks.append({"name": name, "runs": runs})
        shown.append({"name": model, "title": title, "tasks": tasks})
    data = {"frames": tile[0], "height": tile[1], "width": tile[2], "models": shown}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    (folder / "data.js").write_text(f"window.cosExplorer = {text};\n", encoding="utf-8")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    print(f"{folder}: {make(folder):.1f} s")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
