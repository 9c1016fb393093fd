"""Loading from folders: the right settings, intact weights, clear refusals."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tiny
import torch

from cosutils.loading import load, seeded, settings, use_preset
from cosutils.mini import tasks
from cosutils.mini.codec import PatchCodec
from cosutils.mini.model import build_pipeline, build_transformer
from cosutils.record import record
from cosutils.schedule import ExactEulerScheduler


def write_sums(folder):
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    digests = {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """A small untrained stand-in for data/cos-mini, in the published format."""
    codec = PatchCodec.fit(np.stack([tasks.maze.sample(seed).ids for seed in range(3)]), z_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = build_pipeline(codec, build_transformer(4, layers=2, width=32, heads=2))
    folder = tmp_path / "data" / "cos-mini"
    pipe.save_pretrained(folder)
    write_sums(folder)
    monkeypatch.setenv("COSUTILS_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture(scope="module")
def two_experts(tmp_path_factory):
    return tiny.saved("a14b", tmp_path_factory.mktemp("models") / "a14b")


def test_the_embedded_model_runs_with_its_settings(embedded):
    pipe = load("cos-mini")
    assert settings(pipe) == {"num_inference_steps": 20, "guidance_scale": 1.0}
    sample = tasks.maze.sample(seed=7)
    with record(pipe) as run:
        video = pipe(**sample.inputs, **settings(pipe), generator=seeded(0), output_type="np").frames
    assert video.shape[1:] == sample.video.shape and run.steps == 20
    assert run.info["preset"] == "mini" and run.info["model"] == "cos-mini" and run.info["seeds"] == [0]
    np.testing.assert_array_equal(run.decode([-1])[0].numpy(), video)


def test_loading_the_embedded_model_is_quiet(embedded, capfd):
    load("cos-mini")
    assert capfd.readouterr() == ("", "")


def test_truncated_weights_are_refused(embedded):
    weights = next(embedded.glob("transformer/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="transformer.*is truncated or altered"):
        load("cos-mini")


def test_an_altered_configuration_is_refused(embedded):
    config = embedded / "vae" / "config.json"
    config.write_text(config.read_text().replace("4", "5"))
    with pytest.raises(ValueError, match="vae/config.json is truncated or altered"):
        load("cos-mini")


def test_missing_and_surplus_files_are_refused(embedded):
    (embedded / "transformer" / "other.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="other.safetensors is not listed in SHA256SUMS"):
        load("cos-mini")
    (embedded / "transformer" / "other.safetensors").unlink()
    (embedded / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match="model_index.json is missing"):
        load("cos-mini")


def test_a_missing_embedded_model_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("COSUTILS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no cos-mini in .* \(found: none\).*COSUTILS_DATA"):
        load("cos-mini")


@pytest.mark.parametrize("name", ["paper", "distill4"])
def test_presets_set_scheduler_boundary_and_dtype(two_experts, name):
    pipe = load(two_experts, preset=name)
    assert isinstance(pipe.scheduler, ExactEulerScheduler) and pipe.scheduler.shift == 5.0
    assert pipe.config.boundary_ratio == {"paper": 0.875, "distill4": 0.9}[name]
    assert pipe.transformer.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert pipe.vae.dtype == torch.float32
    assert pipe.transformer.scale_shift_table.dtype == torch.float32  # kept by from_pretrained
    pipe.set_progress_bar_config(disable=True)
    with record(pipe) as run:
        pipe(**tiny.call() | settings(pipe))
    assert run.info["boundary"] == pipe.config.boundary_ratio
    assert run.info["dtype"]["transformer_2"] == "bfloat16"
    assert run.info["guidance_scale_2"] == {"paper": 5.0, "distill4": 1.0}[name]


def test_other_presets_keep_or_replace_the_shipped_scheduler(two_experts):
    shipped = load(two_experts)
    assert shipped.scheduler.config.flow_shift == 3.0 and settings(shipped)["num_inference_steps"] == 50
    official = load(two_experts, preset="wan_official", dtype=torch.float32)
    assert official.scheduler.config.flow_shift == 5.0 and official.transformer.dtype == torch.float32
    assert settings(official) == {"num_inference_steps": 40, "guidance_scale": 3.5, "guidance_scale_2": 3.5}


def test_use_preset_on_a_pipeline_built_by_hand():
    pipe = tiny.build("wan21")
    with pytest.raises(ValueError, match="no preset: make it with load, or call use_preset"):
        settings(pipe)
    assert settings(use_preset(pipe, "paper")) == {"num_inference_steps": 50, "guidance_scale": 5.0}
    with record(pipe), pytest.raises(RuntimeError, match="a context such as record is open"):
        use_preset(pipe, "mini")


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ("cos-maxi", {}, ValueError, "unknown model 'cos-maxi': choose 'cos-mini', an existing folder"),
        ("/no/such/folder", {}, ValueError, "unknown model '/no/such/folder'"),
        ("cos-mini", {"preset": "fast"}, ValueError, "unknown preset 'fast': choose from mini, paper"),
        ("cos-mini", {"dtype": "float32"}, TypeError, "dtype must be a floating torch.dtype"),
        ("cos-mini", {"dtype": torch.int8}, TypeError, "dtype must be a floating torch.dtype"),
    ],
)
def test_unknown_names_are_refused(model, arguments, error, message):
    with pytest.raises(error, match=message):
        load(model, **arguments)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model_index.json in"):
        load(tmp_path)


def test_seeds():
    first, second = seeded([3, np.int64(4)])
    assert (first.initial_seed(), second.initial_seed()) == (3, 4)
    assert seeded(3).device.type == "cpu"
    assert torch.equal(torch.randn(2, generator=seeded(3)), torch.randn(2, generator=first))
    for bad in ("3", 1.0, True, None, [0, "1"]):
        with pytest.raises(TypeError, match="a seed must be an integer or a list of integers, not"):
            seeded(bad)
    with pytest.raises(ValueError, match="no seeds given"):
        seeded([])
