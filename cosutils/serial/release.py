"""Ship finished runs: float16 weights, arguments and learning curve, with checksums.

    python -m cosutils.serial.release --runs runs/serial --out data/serial
    python -m cosutils.serial.evaluate --runs data/serial/models --out data/serial

What is measured is what ships: `evaluate` on the shipped folders gives the records beside them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from .._files import new_folder, sha256, write_text

__all__ = ["checksums", "release"]


def release(run: Path, folder: Path) -> None:
    """Write `folder` from a finished run; it appears when it is complete. FileNotFoundError for an unfinished
    one.
    """
    if not (run / "weights.safetensors").is_file():
        raise FileNotFoundError(f"{run} holds no weights.safetensors: let `python -m cosutils.serial.train` finish it")
    weights = load_file(run / "weights.safetensors")
    with new_folder(folder) as part:
        save_file({name: value.half().contiguous() for name, value in weights.items()}, part / "weights.safetensors")
        (part / "weights.safetensors").chmod(0o644)
        for name in ("arguments.json", "log.jsonl"):
            shutil.copyfile(run / name, part / name)


def checksums(out: Path) -> None:
    """Write `out/SHA256SUMS` of all shipped weights."""
    files = sorted((out / "models").glob("*/*.safetensors"))
    sums = [f"{sha256(path)}  {path.relative_to(out).as_posix()}\n" for path in files]
    write_text(out / "SHA256SUMS", "".join(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("data/serial"))
    args = parser.parse_args()
    for weights in sorted(args.runs.glob("*/weights.safetensors")):
        target = args.out / "models" / weights.parent.name
        print(f"{target}: {'kept' if target.is_dir() else 'shipped'}", flush=True)
        if not target.is_dir():
            release(weights.parent, target)
    checksums(args.out)


if __name__ == "__main__":
    main()
