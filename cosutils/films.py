"""Video files: read whole or not at all, and written as the evaluator of VBVR-Bench likes them.

ffmpeg (the one that imageio brings) does the work; what it complains about is an error, for a film that lost its end
would still get a score.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

__all__ = ["check_film", "probe", "read_film", "write_film"]


def _ffmpeg(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *arguments]
    return subprocess.run(command, capture_output=True, **options)


def probe(path: str | Path) -> tuple[tuple[int, int], int]:
    """((width, height), frames) of a video file without decoding it; ValueError where it is damaged or truncated."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no video {path}")
    run = _ffmpeg("-i", str(path), "-map", "0:v:0", "-c", "copy", "-f", "null", "-")
    told = run.stderr.decode(errors="replace")
    size = re.search(r"Video: .*?, (\d+)x(\d+)", told)
    rate = re.search(r"Video: .*?([\d.]+) fps", told)
    time = re.search(r"Duration: (\d+):(\d+):([\d.]+)", told)
    counts = re.findall(r"frame= *(\d+)", told)
    if run.returncode or not (size and rate and time and counts):
        raise ValueError(f"{path} is not a readable video: {_last(told)}")
    count, (hours, minutes, seconds) = int(counts[-1]), (float(part) for part in time.groups())
    expected = (hours * 3600 + minutes * 60 + seconds) * float(rate[1])
    if not count or abs(count - expected) > 1.5:
        raise ValueError(f"{path} is truncated: {count} frames of the {expected:.0f} that its header promises")
    return (int(size[1]), int(size[2])), count


def _decoded(path: Path, *arguments: str) -> bytes:
    """What ffmpeg writes for a wholly decoded file; ValueError at its first complaint."""
    run = _ffmpeg("-v", "error", "-i", str(path), *arguments, "-")
    if run.returncode or run.stderr:
        raise ValueError(f"{path} is damaged: {_last(run.stderr.decode(errors='replace'))}")
    return run.stdout


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg said nothing"


def check_film(path: str | Path) -> tuple[tuple[int, int], int]:
    """`probe` of a video file that was decoded to its end: ((width, height), frames), or ValueError."""
    found = probe(path)
    _decoded(Path(path), "-f", "null")
    return found


def read_film(path: str | Path, pixels: int | None = None) -> np.ndarray:
    """All frames of a video file: (T, H, W, 3) uint8, its own size or resized to (pixels, pixels).

    Raises FileNotFoundError where there is no file, ValueError where it is truncated or damaged.
    """
    path = Path(path)
    (width, height), count = probe(path)
    resize = [] if pixels is None else ["-vf", f"scale={pixels}:{pixels}:flags=bicubic"]
    width, height = (width, height) if pixels is None else (pixels, pixels)
    raw = _decoded(path, *resize, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24")
    film = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    if len(film) != count:
        raise ValueError(f"{path} is damaged: {len(film)} of {count} frames could be decoded")
    return film


def write_film(frames: np.ndarray, path: str | Path, fps: float = 16, quality: int = 12) -> Path:
    """Write frames (T, H, H, 3), float in [0, 1] or uint8, as the evaluator likes it, and return `path`.

    H.264, yuv420p, a key frame every 8 (the evaluator seeks for every frame), square (it crops where the sides
    differ). quality: x264's crf, 0 is lossless. The file appears whole or not at all. Raises ValueError for frames
    that are not square, of odd side, out of [0, 1] or not finite.
    """
    frames, path = np.asarray(frames), Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"a film is (T, H, H, 3) with T >= 1, not {frames.shape}")
    side = frames.shape[1]
    if frames.shape[2] != side or side % 2:
        raise ValueError(f"a film for the evaluator is square with even sides, not {frames.shape[2]}x{side}")
    if frames.dtype != np.uint8:
        if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > 1:
            raise ValueError("frames must be finite and in [0, 1] (or uint8)")
        frames = np.round(frames * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.mp4")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{side}x{side}", "-r", str(fps), "-i", "-"]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(quality), "-g", "8", "-threads", "1"]
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart"]
    run = _ffmpeg("-v", "error", "-y", *source, *codec, *exact, str(part), input=frames.tobytes())
    if run.returncode:
        part.unlink(missing_ok=True)
        raise RuntimeError(f"ffmpeg could not write {path}: {_last(run.stderr.decode(errors='replace'))}")
    os.replace(part, path)
    return path
