"""Notebooks run in kernels that start in no time; what the tests import is never searched for garbage."""

from __future__ import annotations

import gc

import kernels
import pytest

gc.disable()  # imports leave next to none


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()
    if any(item.path.suffix == ".ipynb" for item in session.items):
        session.config.add_cleanup(kernels.warm())
