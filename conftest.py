"""Notebooks run in kernels that start in no time."""

from __future__ import annotations

import kernels
import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(item.path.suffix == ".ipynb" for item in session.items):
        session.config.add_cleanup(kernels.warm())
