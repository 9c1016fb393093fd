"""One thread per worker and no network, set before anything imports torch or the hub client.

Notebooks, those of nbval too, run in kernels forked from one process that has imported the libraries.
"""
from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from kernels import forked  # noqa: E402  the environment first

KERNELS = ExitStack()


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
        KERNELS.enter_context(forked())


def pytest_unconfigure():
    KERNELS.close()
