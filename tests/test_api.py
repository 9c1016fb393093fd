"""The public names exist, and functions are not hidden by the modules of the same name."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.utils import Reporter

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


def docstrings(module):
    """Name -> docstring of a module and of every public function and class in it, with its public methods."""
    found = {module.__name__: module.__doc__}
    for name in getattr(module, "__all__", ()):
        one = getattr(module, name)
        inside = vars(one) if inspect.isclass(one) else {}
        parts = {f"{name}.{part}": value for part, value in inside.items() if part[0] != "_"}
        for part, value in ({name: one} | parts).items():
            value = getattr(value, "fget", value)
            if getattr(value, "__module__", "").startswith("cosutils"):
                found[part] = getattr(value, "__doc__", None)
    return {name: text for name, text in found.items() if text}


PAGES = re.findall(r"automodule:: (\S+)", (Path(__file__).parents[1] / "book" / "api.md").read_text())


@pytest.mark.parametrize("name", PAGES)
def test_no_docstring_of_the_book_is_broken_markup(name):
    """The build of the book ends at the first one: an asterisk before a word opens an emphasis."""
    for part, text in docstrings(importlib.import_module(name)).items():
        tree = publish_doctree(
            inspect.cleandoc(text), settings_overrides=dict(report_level=Reporter.SEVERE_LEVEL, halt_level=5)
        )
        told = [one.astext() for one in tree.findall() if one.tagname == "problematic"]
        assert not [one for one in told if not one.startswith((":", "`"))], f"{part}: {told}"
