"""The public names exist, and functions are not hidden by the modules of the same name."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import cosutils as cos


@pytest.mark.parametrize("name", cos.__all__)
def test_every_public_name_exists(name):
    assert getattr(cos, name) is not None


@pytest.mark.parametrize("name", ["attention", "capture", "edit", "ensemble", "inject", "record", "swap"])
def test_functions_are_not_hidden_by_their_modules(name):
    importlib.import_module(f"cosutils.hooks.{name}")
    assert callable(getattr(cos, name))


@pytest.mark.slow
def test_importing_is_quiet_and_brings_no_plotting():
    code = "import sys, cosutils; sys.exit(bool({'matplotlib', 'seaborn', 'IPython'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_name_is_explained():
    with pytest.raises(AttributeError, match="cosutils has no 'recrod': choose from PRESETS, "):
        _ = cos.recrod
