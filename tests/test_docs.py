"""The examples in the docstrings run on the smallest trained model; every public module has its place in the book."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_house import PACKAGE, modules

import cosutils as cos

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = sorted(
    name
    for name in modules(PACKAGE)
    if name and not re.search(r"(^|\.)_", name) and hasattr(importlib.import_module(f"cosutils.{name}"), "__all__")
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name: str) -> list[doctest.DocTest]:
    return [found for found in FINDER.find(importlib.import_module(f"cosutils.{name}")) if found.examples]


@pytest.fixture(scope="module")
def names():
    """What every example may use: a pipeline of three blocks, a puzzle, the arguments of a call of four steps, and a
    direction in the space of its states."""
    pipe = cos.load("cos-mini-shallow")
    puzzle = cos.tasks.shelf.sample(seed=7)
    call = puzzle.inputs | cos.settings(pipe) | dict(num_inference_steps=4, output_type="latent")
    return dict(cos=cos, np=np, torch=torch, pipe=pipe, puzzle=puzzle, call=call, direction=torch.ones(128))


@pytest.mark.parametrize("name", [name for name in PUBLIC if examples(name)])
def test_the_examples_of_a_module_run(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for found in examples(name):
        found.globs |= names
        said: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=said.append)
        assert not said, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_no_example_stands_where_nobody_runs_it(name):
    """Indented code in a docstring begins with a prompt, or is a command line."""
    module = importlib.import_module(f"cosutils.{name}")
    for found in doctest.DocTestFinder(exclude_empty=False).find(module):
        for line in found.docstring.splitlines():
            assert not re.match(r"\s+(with .*:|(\w+ = )?(pipe|cos\.\w+|load|record|read|inject)\(.*)$", line), line


def test_every_public_module_is_in_the_reference():
    listed = re.findall(r"automodule:: cosutils\.([\w.]+)", (ROOT / "book" / "api.md").read_text())
    assert sorted(listed) == [name for name in PUBLIC if name not in ("vbvr", "mini.tasks")]  # they pass on names
