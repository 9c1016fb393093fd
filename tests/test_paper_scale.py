"""The presets of large models: every notebook runs with them, on tiny pipelines of the same kind read from a folder.

The stand-ins have the parts of the real models (two experts, image encoder, expanded timesteps, text encoder, deep VAE)
and random weights; what is replaced beside the model is the device, the size of the films and the length of lists.
"""

from __future__ import annotations

import inspect
import json

import papermill
import pytest
from test_notebook_parameters import NOTEBOOKS, ROOT, TINY, run_all

import cosutils as cos
from cosutils.mini import world
from cosutils.report.results import read_numbers
from tiny import saved

pytestmark = pytest.mark.slow

STAND_INS = {"vbvr_wan22": "a14b", "wan21_i2v_14b": "wan21", "wan22_ti2v_5b": "ti2v5b", "vbvr_pro_5b": "ti2v5b"}
SIZES = {
    "a14b": dict(pixels=80, frames=17),
    "wan21": dict(pixels=80, frames=33),
    "ti2v5b": dict(pixels=80, frames=17),
}
PAGES = [name for name in NOTEBOOKS if name[:2] <= "11"]
PARTS = {
    "wan21_i2v_14b": ["08_layers"],
    "wan22_ti2v_5b": ["03_noise"],
    "vbvr_pro_5b": ["01_setup"],
}  # the others run on these pages alone
# shorter than the rows of `TINY`, or lists that have to fit four blocks and short films
SMALL = {
    "01_setup": dict(tasks=["shelf"]),
    "03_noise": dict(steps=2, noised=[0, 1], example_step=1, example_puzzles=1, cell_steps=[1]),
    "04_information_flow": dict(steps=2, noised=[0, 1], renoised=[1], kept=dict(rows=20, width=4)),
    "05_working_memory": dict(steps=2, moments=[0, 1]),
    "08_layers": dict(fit_puzzles=2, untrained=0, width=4),
    "09_latent_swapping": dict(layers=[0, 2]),
    "10_frames_and_distillation": dict(frame_counts=[5, 17], steps=2, step_counts=[2], size=1, answer_puzzles=0),
    "11_ensemble": dict(size=2, steps=3, largest_batch=2),
    "16_benchmark": dict(limit=1, steps=2, shown_steps=[0, 1]),
}
CASES = [("vbvr_wan22", name) for name in PAGES] + [(preset, name) for preset, names in PARTS.items() for name in names]


@pytest.fixture(scope="module")
def presets():
    from build_book import preset_parameters

    return {preset: preset_parameters(ROOT, preset) for preset in STAND_INS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, presets):
    """Every case: {(preset, notebook): (error, folder of its numbers)}."""
    folder, jobs = tmp_path_factory.mktemp("paper-scale"), {}
    models = {kind: str(saved(kind, folder / kind)) for kind in STAND_INS.values()}
    for preset, name in CASES:
        kind, given = STAND_INS[preset], presets[preset][name]
        short = {
            key: value for key, value in (TINY[name] | SMALL.get(name, {})).items() if key not in ("model", "scale")
        }
        loading = given["loading"] | dict(device="cpu")
        jobs[preset, name] = name, given | short | dict(model=models[kind], scale=SIZES[kind], loading=loading)
    return run_all(folder, jobs)


@pytest.mark.parametrize(("preset", "name"), CASES)
def test_a_notebook_runs_with_the_preset_of_a_large_model(preset, name, runs):
    error, results = runs[preset, name]
    assert error == ""
    assert read_numbers(results / f"{name}.json")


@pytest.mark.parametrize("preset", STAND_INS)
def test_the_preset_names_every_page_and_only_what_is_there(preset, presets):
    assert {name for name, values in presets[preset].items() if values} >= set(PAGES)
    for name in PAGES:
        given = presets[preset][name]
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
        assert set(given) <= set(known)
        for key in ("loading", "student_loading"):
            assert set(given.get(key, {})) < set(inspect.signature(cos.load).parameters)
        assert given["loading"]["preset"] in cos.PRESETS
        world.check_size(**dict(frames=world.FRAMES) | given["scale"])  # page 13 may leave out the frames
        assert given["scale"]["pixels"] % 32 == 0  # of every Wan model: 16, and 32 where the VAE divides by 16


def test_numbers_tell_the_loading_and_the_size(runs):
    path = runs["wan21_i2v_14b", "08_layers"][1] / "08_layers.json"
    facts = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    assert facts["scale"] == SIZES["wan21"] and facts["loading"] == dict(preset="paper", device="cpu")
