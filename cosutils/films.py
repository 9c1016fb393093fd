"""Pictures and video files: read whole or not at all, and films written as the evaluators of VBVR-Bench like them.

Pictures are what a viewer shows, films are their video stream. ffmpeg (the one that imageio brings) does the work; what
it complains about is an error, for a film that lost its end would still get a score.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

from ._files import write

__all__ = ["check_film", "check_picture", "probe", "read_comment", "read_film", "read_picture", "write_film"]


# ---------------------------------------------------------------- pictures
def read_picture(source: str | Path | Image.Image) -> Image.Image:
    """A picture as any viewer shows it, RGB: a file, or one that Pillow has opened.

    Turned as its EXIF says, 16-bit grey divided by 257, what is transparent laid over white, of an animation the
    first frame. Raises FileNotFoundError where there is no file, ValueError where it is damaged, truncated, no picture
    or of floating-point numbers.
    """
    if isinstance(source, Image.Image):
        return _shown(source, "the given picture")
    check_picture(source)
    path = Path(source).expanduser()
    try:
        with Image.open(path) as image:
            image.load()
            return _shown(image, str(path))
    except ValueError as error:
        raise error if str(path) in str(error) else _unreadable(path, error) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise _unreadable(path, error) from error


def check_picture(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture file, its checksums verified where the format has them (PNG) but nothing decoded.

    Raises FileNotFoundError and ValueError as `read_picture` does.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    try:
        with Image.open(path) as image:
            size = image.size
            image.verify()
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    return size


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a readable picture, or damaged: {error or type(error).__name__}")


def _shown(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(f"{name} holds floating-point numbers: save it with 8 or 16 bits for each colour")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name} holds numbers of more than 16 bits: save it with 8 or 16 bits for each colour")
        return Image.fromarray(np.uint8(np.rint(values / 257))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


# ---------------------------------------------------------------- films
def probe(path: str | Path) -> tuple[tuple[int, int], int]:
    """((width, height), frames) of the video stream of a file, as it is stored and without decoding it.

    Raises FileNotFoundError where there is no file, ValueError where it is truncated, damaged or no video.
    """
    return _listed(path, "-c", "copy")


def check_film(path: str | Path) -> tuple[tuple[int, int], int]:
    """`probe` of a video file that is decoded to its end: ((width, height), frames) as they are shown."""
    return _listed(path, "-fps_mode", "passthrough")


def read_film(path: str | Path, pixels: int | None = None) -> np.ndarray:
    """All frames of a video file, whatever their times: (T, H, W, 3) uint8, its own size or (pixels, pixels).

    Raises FileNotFoundError where there is no file, ValueError where it is truncated, damaged or no video.
    """
    resize = [] if pixels is None else ["-vf", f"scale={pixels}:{pixels}:flags=bicubic"]
    form = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
    raw = _made_of(path, *resize, *form)
    width, height = (int(side) for side in raw.split(b"\n", 2)[1].split())  # a ppm begins "P6\n<w> <h>\n255\n"
    head = len(b"P6\n%d %d\n255\n" % (width, height))
    frames = np.frombuffer(raw, np.uint8).reshape(-1, head + height * width * 3)
    return np.ascontiguousarray(frames[:, head:]).reshape(-1, height, width, 3)


def read_comment(path: str | Path) -> str:
    """The comment that `write_film` put into a video file, "" where it has none or cannot be read."""
    said = _ffmpeg("-i", f"file:{Path(path).expanduser()}", "-f", "ffmetadata", "-").stdout.decode(errors="replace")
    return next((line.partition("=")[2] for line in said.splitlines() if line.startswith("comment=")), "")


def write_film(frames: np.ndarray, path: str | Path, fps: float = 16, quality: int = 12, comment: str = "") -> Path:
    """Write frames (T, H, H, 3), float in [0, 1] or uint8, as the evaluators like it, and return `path`.

    H.264, yuv420p, a key frame every 8 (they seek for every frame), square (they crop where the sides differ much).
    fps: above 0. quality: x264's crf, 0 is lossless. comment: one line, kept in the file. The file appears whole or
    not at all. Raises ValueError for frames that are not square, of odd side, out of [0, 1] or not finite, OSError
    where the file cannot be written.
    """
    frames, path = np.asarray(frames), Path(path).expanduser()
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"a film is (T, H, H, 3) with T >= 1, not {frames.shape}")
    side = frames.shape[1]
    if frames.shape[2] != side or side % 2:
        raise ValueError(f"a film for the evaluator is square with even sides, not {frames.shape[2]}x{side}")
    if not 0 < fps < np.inf:
        raise ValueError(f"fps must be above 0 and finite, got {fps!r}")
    if frames.dtype != np.uint8:
        if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > 1:
            raise ValueError("frames must be finite and in [0, 1] (or uint8)")
        frames = np.round(frames * 255).astype(np.uint8)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{side}x{side}", "-r", str(fps), "-i", "-"]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(quality), "-g", "8", "-threads", "1"]
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", "-f", "mp4"]
    exact += ["-metadata", f"comment={comment}"]

    def fill(part: Path) -> None:
        run = _ffmpeg("-y", *source, *codec, *exact, f"file:{part}", input=frames.tobytes())
        if run.returncode:
            raise OSError(_last(run.stderr))

    write(path, fill)
    return path


# ---------------------------------------------------------------- ffmpeg
def _ffmpeg(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "error", *arguments]
    return subprocess.run(command, capture_output=True, **options)


def _made_of(path: str | Path, *arguments: str) -> bytes:
    """What ffmpeg makes of the video stream of a file (cover pictures are none); ValueError at its first complaint."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no video {path}")
    if (there := path.stat().st_size) < (promised := _promised(path)):
        raise ValueError(f"{path} is truncated: {there} bytes of the {promised} that its header promises")
    run = _ffmpeg("-i", f"file:{path}", "-map", "0:V:0", *arguments, "-")
    if run.returncode or run.stderr or not run.stdout:
        what = "damaged" if run.stdout else "not a readable video"
        raise ValueError(f"{path} is {what}: {_last(run.stderr)}")
    return run.stdout


def _listed(path: str | Path, *arguments: str) -> tuple[tuple[int, int], int]:
    """((width, height), frames) from ffmpeg's list of them: "#dimensions 0: 64x64", then a line for each frame."""
    lines = _made_of(path, *arguments, "-f", "framecrc").decode().splitlines()
    frames = sum(not line.startswith("#") for line in lines)
    if not frames:
        raise ValueError(f"{path} is not a readable video: it holds no frame")
    shape = next(line for line in lines if line.startswith("#dimensions")).split()[-1]
    width, height = (int(side) for side in shape.split("x"))
    return (width, height), frames


def _promised(path: Path) -> int:
    """The least size in bytes of an MP4 or AVI file by its own account; 0 for what has none.

    ffmpeg takes a file that was cut off between two frames for a shorter film.
    """
    end = 0
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little")
        while len(head) >= 8 and (end or head[4:8] == b"ftyp") and head[4:8].isalnum():
            size = int.from_bytes(head[:4])
            size = int.from_bytes(head[8:16]) if size == 1 else size
            if size < 8:  # 0: up to the end of the file
                break
            file.seek(end := end + size)
            head = file.read(16)
    return end


def _last(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg said nothing"
