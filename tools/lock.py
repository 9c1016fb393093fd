"""Write constraints.txt: resolve pyproject.toml's ranges in a fresh environment and freeze what came out."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = """\
# The lock: every package that `make book` and `make test` install, as one set that passed both.
# Refresh with `make lock`; torch is pinned without a build tag, so a CPU or a CUDA build fits.
"""
UNLOCKED = {"pip", "wheel", "cosutils"}


def pins(freeze: str) -> list[str]:
    """The `name==version` lines of a `pip freeze`, local build tags (`+cpu`) and our own package removed."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s+;]+)", freeze, re.M)
    return sorted((f"{name}=={version}" for name, version in found if name not in UNLOCKED), key=str.lower)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = pathlib.Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "setuptools>=77"], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--no-build-isolation", "-e", ".[dev,browser]"],
            check=True,
            cwd=ROOT,
        )
        freeze = subprocess.run(
            [python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True
        ).stdout
    target = ROOT / "constraints.txt"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(HEAD + "\n".join(pins(freeze)) + "\n")
    os.replace(temporary, target)


if __name__ == "__main__":
    main()
