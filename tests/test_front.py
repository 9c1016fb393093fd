"""The landing page and the README say what is stored, and their pictures are those of the shipped weights."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cosutils.report.results import interval_text, read_numbers
from cosutils.serial import verdict

ROOT = Path(__file__).resolve().parents[1]
FRONT = ROOT / "book" / "_static" / "front"
SUMMARY = ROOT / "data" / "serial" / "report" / "summary.json"


@pytest.fixture(scope="module")
def front():
    return importlib.import_module("make_front")


def judged(variant: str) -> dict:
    """The testbed's models of one block."""
    return verdict.groups_of(json.loads(SUMMARY.read_text()))[verdict.usual("ladder", "trail", 1, variant)]


def numbers(svg: str) -> np.ndarray:
    return np.array([float(text) for text in re.findall(r"-?\d+\.?\d*", re.sub(r'(id|href|url)[="(#]+\w+', "", svg))])


@pytest.mark.parametrize("name", ["deciding", "testbed"])
def test_the_figures_are_those_of_the_records(front, name):
    stored = (FRONT / f"{name}.svg").read_text()
    made = front.deciding(ROOT / "data" / "results") if name == "deciding" else front.testbed(SUMMARY.parent)
    label = re.compile(r'aria-label="([^"]+)"')
    assert label.search(stored)[1] == label.search(made)[1], "run tools/make_front.py"
    assert numbers(stored).shape == numbers(made).shape and np.allclose(numbers(stored), numbers(made), atol=0.05)
    assert "currentColor" in made and front.INK not in made


@pytest.mark.slow
def test_the_runs_are_those_of_the_shipped_weights(front):
    stored = json.loads((FRONT / "data.js").read_text().removeprefix("window.cosFront = ").removesuffix(";\n"))
    traces = front.runs()
    for (name, trace), run in zip(traces.items(), stored, strict=True):
        fresh = front.shares(name, trace)
        assert run["case"] == fresh["case"] and (FRONT / run["picture"]).is_file()
        assert np.allclose(run["right"], fresh["right"], atol=0.02) and np.allclose(
            run["wrong"], fresh["wrong"], atol=0.02
        )
    changes, spoils = ([np.array(run[kind]) for kind in ("right", "wrong")] for run in stored)
    crossing = int(np.argmax(changes[0] > changes[1]))
    assert crossing == 7 and (changes[0] > changes[1])[crossing:].all()
    assert spoils[0][0] > 0.5 and spoils[0][-1] < spoils[1][-1]


@pytest.mark.parametrize("page", ["book/index.md", "README.md"])
def test_the_first_sentences_hold_the_stored_numbers(page):
    text = (ROOT / page).read_text()
    stored = read_numbers(ROOT / "data" / "results" / "shallow" / "06_self_correction.json")
    assert interval_text(stored["two_routes/solved_net"]) in text and interval_text(stored["two_routes/net"]) in text
    for variant, rungs in (("memory", 3), ("plain", 2)):
        found = judged(variant)
        one = next(one for one in found["lengths"] if one["length"] == rungs)
        assert interval_text(one["gain"]) in text and found["verdict"] in text
        if variant == "memory":
            first, end = (f"{one[part]['value']:.2f}" for part in ("first", "end"))
            assert f"in {first} of the puzzles after one step and in {end} after 32" in " ".join(text.split())


def test_only_on_rotation_do_three_blocks_decide_more_than_they_spoil():
    """The landing page says so in words."""
    for folder, wanted in (("shallow", {"rotation"}), ("full", set())):
        stored = read_numbers(ROOT / "data" / "results" / folder / "06_self_correction.json")
        assert {
            name.split("/")[0] for name, found in stored.items() if name.endswith("/net") and found["low"] > 0
        } == wanted


def test_a_caption_in_words_follows_the_testbed(front):
    """Both begin alike (the intervals of one pass overlap at every length), with about four alive, and end with fewer
    than two; the plain one is wrong in half of the puzzles."""
    found = verdict.groups(verdict.load_records(SUMMARY.parent))
    for variant in ("plain", "memory"):
        alive = verdict.alive(found[verdict.usual("ladder", "trail", 1, variant)])[front.RUNGS]
        assert 3.75 < alive[1]["value"] < 4.25 and alive[verdict.END]["value"] < 2
    assert 0.4 < verdict.decided(found[verdict.usual("ladder", "trail", 1, "plain")])[front.RUNGS][32]["value"] < 0.6
    memory, plain = (judged(variant) for variant in ("memory", "plain"))
    for one, other in zip(memory["lengths"], plain["lengths"], strict=True):
        assert max(one["first"]["low"], other["first"]["low"]) < min(one["first"]["high"], other["first"]["high"])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book" / "_static" / "diagrams").glob("*.svg")), ids=lambda path: path.stem
)
def test_a_diagram_is_readable_said_in_words_and_used(path):
    text = path.read_text()
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', text)]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])
    assert min(sizes) >= 15 and width <= 560  # 9 pt at a column of 450 pixels
    assert "<title" in text and len(re.search(r"<desc[^>]*>([^<]+)", text)[1].split()) > 10
    assert sum(path.name in notebook.read_text() for notebook in (ROOT / "notebooks").glob("*.ipynb")) == 1
