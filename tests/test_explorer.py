"""The explorer's pictures: every tile in its place, data that a page can read without a server."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from PIL import Image

import cosutils as cos
from cosutils.measures import chain


@pytest.fixture(scope="module")
def explorer():
    return importlib.import_module("make_explorer")


def test_rows_of_the_sheet_are_steps_and_columns_are_frames(explorer):
    films = np.zeros((3, 2, 4, 6, 3))
    films += np.arange(6).reshape(3, 2, 1, 1, 1) / 10
    films[2, 1] = 1.7
    pixels = np.asarray(explorer.sheet(films))
    assert pixels.shape == (12, 12, 3)
    assert pixels[9, 1, 0] == round(0.4 * 255) and pixels[9, 7, 0] == 255 and pixels[5, 7, 0] == round(0.3 * 255)


@pytest.mark.slow
def test_pictures_and_data_belong_together(explorer, tmp_path):
    explorer.make(tmp_path, names=["maze"], seeds=range(2, 3))
    pictures = [f"{model}-maze-2.jpg" for model in explorer.MODELS]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*sorted(pictures), "data.js"]
    text = (tmp_path / "data.js").read_text()
    data = json.loads(text.removeprefix("window.cosExplorer = ").removesuffix(";\n"))
    assert {model["name"]: model["title"] for model in data["models"]} == explorer.MODELS
    for model in data["models"]:
        (run,) = model["tasks"][0]["runs"]
        trace = chain.trace(cos.load(model["name"]), cos.tasks.maze.sample(2), 2, keep_films=True)
        steps = len(trace.sigmas)
        assert [len(run[key]) for key in ("evidence", "sigmas", "scores", "solved")] == [steps] * 4
        assert set(run["answers"]) <= set(run["names"]) and np.allclose(run["evidence"], trace.evidence, atol=1e-3)
        with Image.open(tmp_path / run["sheet"]) as picture:
            assert picture.size == (data["frames"] * data["width"], steps * data["height"])
            tile = np.asarray(picture.crop((16 * 80, 7 * 80, 17 * 80, 8 * 80)), float) / 255
        assert np.abs(tile - np.clip(trace.films[7, 16], 0, 1)).mean() < 0.02


def test_the_titles_count_the_blocks(explorer):
    blocks = {name: len(cos.load(name).transformer.blocks) for name in explorer.MODELS}
    assert {blocks[name]: title for name, title in explorer.MODELS.items()} == {
        10: "ten blocks",
        3: "three blocks",
    }


def test_a_model_that_is_not_there_ends_the_build(explorer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no cos-mini-none"):
        explorer.make(tmp_path, models={"cos-mini-none": "no blocks"}, names=["maze"], seeds=range(1))
