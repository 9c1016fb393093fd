"""Write puzzles in VBVR-Bench's layout, so that tools made for the official benchmark read ours."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np

from .._check import whole
from .._files import new_folder, writable_folder
from ..films import write_film
from .tasks import Sample
from .world import FRAMES, check_size, draw, enlarged

__all__ = ["export"]


def export(
    samples: list[Sample], folder: Path | str, split: str = "In-Domain_50", fps: int = 16, pixels: int = 480
) -> list[Path]:
    """Write ``<folder>/<split>/cos_mini_<task>_data-generator/<00000>/`` for every sample and return these folders.

    Each holds first_frame.png, final_frame.png, ground_truth.mp4 (short groups of pictures, every puzzle pixel
    enlarged to squares) and prompt.txt. Samples of a task are numbered in the order given. A folder appears when it
    is complete. pixels: a multiple of 80.
    """
    if split not in ("In-Domain_50", "Out-of-Domain_50"):
        raise ValueError(f"the split is In-Domain_50 or Out-of-Domain_50, got {split!r}")
    if not samples:
        raise ValueError("there are no puzzles to export")
    check_size(pixels, FRAMES)
    whole(fps, "fps", least=1)
    home = writable_folder(folder)
    counts: dict[str, int] = {}
    written = []
    for sample in samples:
        number = counts.get(sample.task, 0)
        counts[sample.task] = number + 1
        name = f"cos_mini_{sample.task}_data-generator"
        final = home / split / name / f"{number:05d}"
        film = np.rint(enlarged(draw(sample.ids), pixels, sample.frames) * 255).astype(np.uint8)
        with new_folder(final) as part:
            iio.imwrite(part / "first_frame.png", film[0])
            iio.imwrite(part / "final_frame.png", film[-1])
            write_film(film, part / "ground_truth.mp4", fps)
            (part / "prompt.txt").write_text(sample.prompt + "\n", encoding="utf-8")
        written.append(final)
    return written
