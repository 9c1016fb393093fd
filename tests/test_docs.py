"""The examples in the docstrings run, on a small trained model, and every public module has its place in the book."""

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
from cosutils.pipelines.loading import data_folder

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = sorted(
    name
    for name in modules(PACKAGE)
    if name and not re.search(r"(^|\.)_", name) and hasattr(importlib.import_module(f"cosutils.{name}"), "__all__")
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name: str) -> list[doctest.DocTest]:
    return [found for found in FINDER.find(importlib.import_module(f"cosutils.{name}")) if found.examples]


EXAMPLES = [
    pytest.param(name, marks=[] if name.startswith(("hooks.", "pipelines.")) else pytest.mark.slow)
    for name in PUBLIC
    if examples(name)
]


@pytest.fixture(scope="module")
def names():
    """What every example may use: a pipeline of three blocks, a puzzle, the arguments of a call of four steps, a
    direction in the space of its states, the data, and a folder of the benchmark."""
    pipe = cos.load("cos-mini-shallow")
    puzzle = cos.tasks.shelf.sample(seed=7)
    call = puzzle.inputs | cos.settings(pipe) | dict(num_inference_steps=4, output_type="latent")
    data = data_folder()
    more = dict(direction=torch.ones(128), data=data, benchmark=data / "vbvr-samples" / "ground-truth")
    return dict(cos=cos, np=np, torch=torch, pipe=pipe, puzzle=puzzle, call=call) | more


@pytest.mark.filterwarnings("ignore:of the prompt:UserWarning")  # the embedded one lacks the benchmark's words
@pytest.mark.parametrize("name", EXAMPLES)
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


def test_every_public_name_is_in_the_reference():
    """A name that a private module defines stands there by itself."""
    listed = set(re.findall(r"auto(?:class|function):: cosutils\.(\w+)", (ROOT / "book" / "api.md").read_text()))
    homes = {name: getattr(getattr(cos, name), "__module__", "") for name in cos.__all__}
    assert listed == {name for name, home in homes.items() if re.search(r"\._", home)}
