"""Write puzzles in VBVR-Bench's layout, so that tools made for the official benchmark read ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from .tasks import Sample
from .world import SIZE

__all__ = ["export"]


def export(
    samples: list[Sample], folder: Path | str, split: str = "In-Domain_50", fps: int = 16, pixels: int = 480
) -> list[Path]:
    """Write ``<folder>/<split>/cos_mini_<task>_data-generator/<00000>/`` for every sample and return these folders.

    Each holds first_frame.png, final_frame.png, ground_truth.mp4 (short groups of pictures, every puzzle pixel
    enlarged to squares) and prompt.txt. Samples of a task are numbered in the order given. A folder appears when it
    is complete.
    """
    if split not in ("In-Domain_50", "Out-of-Domain_50"):
        raise ValueError(f"the split is In-Domain_50 or Out-of-Domain_50, got {split!r}")
    if pixels < SIZE:
        raise ValueError(f"pixels must be at least {SIZE}, got {pixels}")
    counts: dict[str, int] = {}
    written = []
    for sample in samples:
        number = counts.get(sample.task, 0)
        counts[sample.task] = number + 1
        final = Path(folder) / split / f"cos_mini_{sample.task}_data-generator" / f"{number:05d}"
        part = final.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        film = np.uint8(np.rint(sample.video * 255)).repeat(pixels // SIZE, 1).repeat(pixels // SIZE, 2)
        iio.imwrite(part / "first_frame.png", film[0])
        iio.imwrite(part / "final_frame.png", film[-1])
        short = dict(codec="libx264", ffmpeg_params=["-g", "8"], macro_block_size=1)
        iio.imwrite(part / "ground_truth.mp4", film, fps=fps, **short)
        (part / "prompt.txt").write_text(sample.prompt + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        written.append(final)
    return written
