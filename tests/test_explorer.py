"""The explorer's pictures: every tile in its place, data that a page can read without a server."""
from __future__ import annotations

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

import cosutils as cos
from cosutils import chain

TOOLS = pathlib.Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture(scope="module")
def explorer():
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("make_explorer")
    finally:
        sys.path.remove(str(TOOLS))


def test_rows_of_the_sheet_are_steps_and_columns_are_frames(explorer):
    films = np.zeros((3, 2, 4, 6, 3))
    films += np.arange(6).reshape(3, 2, 1, 1, 1) / 10
    films[2, 1] = 1.7
    pixels = np.asarray(explorer.sheet(films))
    assert pixels.shape == (12, 12, 3)
    assert pixels[9, 1, 0] == round(0.4 * 255) and pixels[9, 7, 0] == 255 and pixels[5, 7, 0] == round(0.3 * 255)


def test_pictures_and_data_belong_together(explorer, tmp_path):
    explorer.make(tmp_path, names=["maze"], seeds=range(2, 3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.js", "maze-2.jpg"]
    text = (tmp_path / "data.js").read_text()
    data = json.loads(text.removeprefix("window.cosExplorer = ").removesuffix(";\n"))
    (run,) = data["tasks"][0]["runs"]
    pipe = cos.load("cos-mini")
    trace = chain.trace(pipe, cos.tasks.maze.sample(2), 2, keep_films=True)
    steps = len(trace.sigmas)
    assert [len(run[key]) for key in ("evidence", "sigmas", "scores", "solved")] == [steps] * 4
    assert set(run["answers"]) <= set(run["names"]) and len(run["evidence"][0]) == len(run["names"])
    with Image.open(tmp_path / "maze-2.jpg") as picture:
        assert picture.size == (data["frames"] * data["width"], steps * data["height"])
        tile = np.asarray(picture.crop((16 * 80, 7 * 80, 17 * 80, 8 * 80)), float) / 255
    assert np.abs(tile - np.clip(trace.films[7, 16], 0, 1)).mean() < 0.02
