"""Loading from folders: the right settings, intact weights, clear refusals."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.hooks import HookRegistry
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

import tiny
from cosutils.hooks.capture import capture
from cosutils.hooks.record import record
from cosutils.mini import tasks
from cosutils.mini.codec import PatchCodec
from cosutils.mini.model import build_pipeline, build_transformer
from cosutils.pipelines.loading import _place, load, seeded, settings, use_preset
from cosutils.pipelines.lora import active_lora, add_lora
from cosutils.pipelines.schedule import ExactEulerScheduler, flow_sigmas
from cosutils.pipelines.text import remember_prompts


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


def test_a_model_of_ones_own_training_is_loaded_from_its_folder(embedded, tmp_path):
    own = embedded.rename(tmp_path / "own")
    sample = tasks.maze.sample(seed=7)
    pipe = load(own)
    assert settings(pipe)["num_inference_steps"] == 20
    film = pipe(**sample.inputs, **settings(pipe), generator=seeded(0), output_type="np").frames[0]
    assert film.shape == sample.video.shape
    (own / "vae" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="vae/config.json is truncated or altered"):
        load(own)
    (own / "SHA256SUMS").unlink()
    (own / "model_index.json").write_text("{")
    with pytest.raises(OSError, match="could not load"):
        load(own)


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
    with pytest.raises(RuntimeError, match="a context such as record is open"), record(pipe):
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


def save_lora(file, model, layout="diffusers", rank=2, alpha=None, seed=0):
    """Write random low-rank weights for the query and feed-forward layers of `model`; return {layer: B A}.

    layout: the names of diffusers, of the original Wan code ("wan") or of DiffSynth-Studio. alpha: the
    network alpha stored in the file, so that the change of a weight is alpha / rank B A.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, change = {}, {}
    for name in [name for name, _ in model.named_modules() if name.endswith(("to_q", "net.2"))]:
        rows, columns = model.get_submodule(name).weight.shape
        down = torch.randn(rank, columns, generator=generator) / 5
        up = torch.randn(rows, rank, generator=generator) / 5
        change[name] = (alpha or rank) / rank * up @ down
        theirs = name.replace("attn1.to_", "self_attn.").replace("attn2.to_", "cross_attn.")
        theirs = theirs.replace("ffn.net.2", "ffn.2")
        layer, a, b = {
            "diffusers": (f"transformer.{name}", "lora_A", "lora_B"),
            "wan": (f"diffusion_model.{theirs}", "lora_down", "lora_up"),
            "diffsynth": (theirs, "lora_A.default", "lora_B.default"),
        }[layout]
        weights |= {f"{layer}.{a}.weight": down, f"{layer}.{b}.weight": up}
        if alpha is not None:
            weights[f"{layer}.alpha"] = torch.tensor(float(alpha))
    save_file(weights, file)
    return change


def latents(pipe, **changes):
    """The final latents of three steps, in both experts."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(**tiny.call(steps=3) | changes).frames


@pytest.mark.parametrize("layout", ["diffusers", "wan", "diffsynth"])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_a_lora_equals_weights_merged_by_hand(two_experts, tmp_path, layout, alpha):
    pipe = load(two_experts, "paper", torch.float32)
    change = save_lora(tmp_path / "low.rank.safetensors", pipe.transformer, layout, alpha=alpha)
    adapted = load(two_experts, "paper", torch.float32, lora=[(tmp_path / "low.rank.safetensors", 0.7)])
    plain = latents(pipe)
    for model in (pipe.transformer, pipe.transformer_2):
        for name, delta in change.items():
            model.get_submodule(name).weight.data += 0.7 * delta
    merged = latents(pipe)
    with record(adapted) as recorded:
        changed = latents(adapted)
    torch.testing.assert_close(changed, merged, rtol=0, atol=1e-5)
    assert (merged - plain).abs().max() > 1e-3
    names = {"0_low_rank": 0.7}
    assert recorded.info["lora"] == {"transformer": names, "transformer_2": names}


def test_the_alpha_of_a_file_written_by_diffusers_is_read(two_experts, tmp_path):
    """Such a file keeps rank 2 and alpha 3 in its header, not among the weights."""
    trained = load(two_experts, "paper", torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for model in (trained.transformer, trained.transformer_2):
            config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"], init_lora_weights="gaussian")
            model.add_adapter(config, "trained")
    weights = get_peft_model_state_dict(trained.transformer, adapter_name="trained")
    weights = {key: torch.full_like(value, 0.1) for key, value in weights.items()}
    for model in (trained.transformer, trained.transformer_2):
        set_peft_model_state_dict(model, weights, "trained")
    facts = trained.transformer.peft_config["trained"].to_dict()
    trained.save_lora_weights(tmp_path, weights, transformer_lora_adapter_metadata=facts)
    adapted = load(two_experts, "paper", torch.float32, lora=tmp_path)
    assert adapted.transformer.blocks[0].attn1.to_q.scaling == {"0_pytorch_lora_weights": 1.5}
    assert torch.equal(latents(adapted), latents(trained))
    assert active_lora(adapted)["transformer"] == {"0_pytorch_lora_weights": 1.0}


def test_each_expert_gets_its_own_lora_and_several_add_up(two_experts, tmp_path):
    pipe = load(two_experts, "paper", torch.float32)
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("transformer", "transformer_2")}
    high = save_lora(files["transformer"], pipe.transformer, seed=1)
    low = save_lora(files["transformer_2"], pipe.transformer_2, seed=2)
    both = save_lora(tmp_path / "style.safetensors", pipe.transformer, rank=3, seed=3)
    lora = [files, [tmp_path / "style.safetensors", -0.5]]
    adapted = load(two_experts, "paper", torch.float32, lora=lora)
    for model, own in ((pipe.transformer, high), (pipe.transformer_2, low)):
        for name in own:
            model.get_submodule(name).weight.data += own[name] - 0.5 * both[name]
    torch.testing.assert_close(latents(adapted), latents(pipe), rtol=0, atol=1e-5)
    assert active_lora(adapted) == {
        "transformer": {"0_transformer": 1.0, "1_style": -0.5},
        "transformer_2": {"0_transformer_2": 1.0, "1_style": -0.5},
    }
    adapted.disable_lora()
    assert active_lora(adapted) == {}


def test_alpha_zero_is_the_plain_model_and_observing_changes_no_bit(two_experts, tmp_path):
    pipe = load(two_experts, "paper")
    save_lora(tmp_path / "a.safetensors", pipe.transformer)
    adapted = load(two_experts, "paper", lora=[(tmp_path / "a.safetensors", 0)])
    assert {part.dtype for name, part in adapted.transformer.named_parameters() if "lora_" in name} == {torch.bfloat16}
    plain = load(two_experts, "paper")
    assert torch.equal(latents(adapted), latents(plain))
    for model in (adapted.transformer, adapted.transformer_2):
        model.set_adapters("0_a", 1.0)
    unobserved = latents(adapted)
    with record(adapted) as recorded, capture(adapted) as maps:
        observed = latents(adapted)
    assert torch.equal(observed, unobserved) and not torch.equal(observed, latents(plain))
    assert recorded.info["lora"]["transformer_2"] == {"0_a": 1.0} and len(maps) == 3 * tiny.LAYERS
    with record(plain) as recorded:
        latents(plain)
    assert recorded.info["lora"] == {}


def test_loras_that_do_not_fit_are_refused(two_experts, tmp_path):
    pipe = tiny.build("a14b")
    file = tmp_path / "a.safetensors"
    save_lora(file, pipe.transformer)
    weights = load_file(file)
    other = {key.replace("blocks.3", "blocks.33"): value for key, value in weights.items()}
    save_file(other, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="b.safetensors does not fit transformer of this model: 9 of its 12 LoRA"):
        load(two_experts, lora=tmp_path / "b.safetensors")
    save_file({key: value.repeat(2, 2) for key, value in weights.items()}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="c.safetensors does not fit transformer of this model"):
        load(two_experts, lora=tmp_path / "c.safetensors")
    save_file({"vae.weight": torch.zeros(2)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="d.safetensors does not fit transformer of this model"):
        load(two_experts, lora=tmp_path / "d.safetensors")
    (tmp_path / "e.bin").write_bytes(b"x")
    refusals = [
        (tmp_path, ValueError, "holds 4 .safetensors files .*name one of them"),
        (tmp_path / "none.safetensors", FileNotFoundError, "no LoRA file"),
        (tmp_path / "e.bin", ValueError, "is no .safetensors file"),
        ({"transformer_3": file}, ValueError, "transformer_3.*this model has transformer, transformer_2"),
        ([(file, "1")], TypeError, "the alpha of a lora must be a number, got '1'"),
        ([(file, 1, 2)], TypeError, "a lora must be a path, a hub id, or a"),
        (3, TypeError, "lora must be a path, a hub id or a list of them, not int"),
    ]
    for lora, error, message in refusals:
        with pytest.raises(error, match=message):
            add_lora(pipe, lora)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_each_prompt_is_encoded_once(kind, tmp_path):
    pipe = load(tiny.saved(kind, tmp_path / kind), "paper")
    plain = WanImageToVideoPipeline(**pipe.components, **given(pipe))
    folder = tmp_path / kind / "text_encoder"
    plain.register_modules(text_encoder=UMT5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16))
    forwards = []
    pipe.text_encoder.encoder.register_forward_hook(lambda *_: forwards.append(1))
    first = latents(pipe)
    assert len(forwards) == 2  # the prompt and the empty one of guidance
    assert torch.equal(latents(pipe), first) and len(forwards) == 2
    assert torch.equal(latents(plain), first)
    again = latents(pipe, prompt="the blue ball moves")
    assert len(forwards) == 3 and not torch.equal(again, first)
    assert torch.equal(latents(plain, prompt="the blue ball moves"), again)
    pipe.text_encoder.float()
    latents(pipe)
    assert len(forwards) == 5  # another dtype, other numbers


def given(pipe):
    """The settings a pipeline was made with."""
    return {name: pipe.config[name] for name in ("boundary_ratio", "expand_timesteps")}


def test_the_waiting_encoder_stays_a_component_like_any_other(two_experts, tmp_path):
    pipe = load(two_experts)
    encoder = pipe.text_encoder
    assert type(encoder).__name__ == "UMT5EncoderModel" and isinstance(encoder, UMT5EncoderModel)
    pipe.save_pretrained(tmp_path / "copy")
    copy = load(tmp_path / "copy")
    assert torch.equal(latents(copy), latents(pipe))
    encoder.to("meta")  # stands in for a GPU: the weights wait on the CPU, the pipeline runs where it was moved to
    assert encoder.device.type == pipe.device.type == "meta"
    assert {part.device.type for part in encoder.parameters()} == {"cpu"}
    before = {name: part.clone() for name, part in encoder.named_parameters()}
    with pytest.raises((RuntimeError, NotImplementedError)):
        encoder(torch.ones(1, 4, dtype=torch.long, device="meta"), torch.ones(1, 4, device="meta"))
    assert all(torch.equal(part, before[name]) for name, part in encoder.named_parameters())
    assert encoder.to("cpu", torch.float64).dtype == torch.float64
    remember_prompts(moving := tiny.text_encoder(), parked=False)
    assert {part.device.type for part in moving.to("meta").parameters()} == {moving.device.type} == {"meta"}


def test_the_encoder_forgets_the_oldest_prompt(monkeypatch):
    encoder = tiny.text_encoder()
    monkeypatch.setattr("cosutils.pipelines.text.REMEMBERED", 2)
    remember_prompts(encoder)
    forwards = []
    encoder.encoder.register_forward_hook(lambda *_: forwards.append(1))
    mask = torch.ones(1, 3, dtype=torch.long)
    for number in (1, 2, 1, 3, 1, 2):  # 3 displaces 2
        encoder(torch.full((1, 3), number), mask)
    assert len(forwards) == 4
    assert encoder(torch.full((1, 3), 1), mask, output_hidden_states=True).hidden_states is not None


def test_offload_needs_an_accelerator(two_experts):
    for offload in ("model", "group"):
        with pytest.raises(ValueError, match=f"offload='{offload}' needs an accelerator to compute on"):
            load(two_experts, offload=offload)
    with pytest.raises(ValueError, match="unknown offload 'disk': choose from None, 'model', 'group'"):
        load(two_experts, offload="disk")


@pytest.mark.parametrize("offload", ["model", "group"])
@pytest.mark.parametrize("with_lora", [False, True])
def test_offloaded_models_are_observed_unchanged(two_experts, tmp_path, with_lora, offload):
    lora = None
    if with_lora:
        lora = tmp_path / "a.safetensors"
        save_lora(lora, tiny.build("a14b").transformer)
    pipe = load(two_experts, "paper", lora=lora)
    with record(pipe) as whole, capture(pipe) as maps:
        latents(pipe)
    _place(pipe, torch.device("cpu"), offload)  # from the CPU to the CPU: every hook of an accelerator's case
    streamed = "group_offloading" in getattr(pipe.transformer, "_diffusers_hook", HookRegistry(None)).hooks
    assert (hasattr(pipe.transformer, "_hf_hook"), streamed) == (offload == "model", offload == "group")
    with record(pipe) as moved, capture(pipe) as moved_maps:
        latents(pipe)
    assert torch.equal(moved.x0.stack(), whole.x0.stack())
    assert all(torch.equal(moved_maps[key], maps[key]) for key in maps)
    assert torch.equal(moved.decode(), whole.decode())


def test_a_hub_id_is_read_from_the_local_cache(two_experts, tmp_path):
    """Folder and LoRA of a hub id, as the hub's client lays its cache out, in a process that is offline."""
    hub = tmp_path / "hub"
    for repository, source in (("tests/tiny-a14b", two_experts), ("tests/tiny-lora", tmp_path / "lora")):
        if repository.endswith("lora"):
            source.mkdir()
            save_lora(source / "pytorch_lora_weights.safetensors", tiny.build("a14b").transformer)
        folder = hub / f"models--{repository.replace('/', '--')}"
        shutil.copytree(source, folder / "snapshots" / ("0" * 40))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
    script = (
        "import cosutils as cos; from cosutils.pipelines.lora import active_lora\n"
        "pipe = cos.load('tests/tiny-a14b', 'paper', lora='tests/tiny-lora')\n"
        "print(pipe.config.boundary_ratio, active_lora(pipe))\n"
        "for model, lora in (('tests/absent', None), ('tests/tiny-a14b', 'tests/absent/x.safetensors')):\n"
        "    try: cos.load(model, lora=lora)\n"
        "    except OSError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts, model, lora = done.stdout.splitlines()
    names = {"0_pytorch_lora_weights": 1.0}
    assert facts == f"0.875 { ({'transformer': names, 'transformer_2': names}) }"
    assert model.startswith("could not load tests/absent: ")
    assert lora.startswith("could not load the LoRA tests/absent/x.safetensors (x.safetensors): ")


@pytest.mark.parametrize("kind", ["wan21", "ti2v5b"])
def test_the_papers_settings_serve_models_with_one_expert(kind, tmp_path):
    pipe = load(tiny.saved(kind, tmp_path), "paper")
    assert pipe.config.boundary_ratio is None and "guidance_scale_2" not in settings(pipe)
    with record(pipe) as recorded:
        latents(pipe, **settings(pipe) | {"num_inference_steps": 2})
    assert recorded.info["boundary"] is None and recorded.info["guidance_scale"] == 5.0
    assert torch.equal(recorded.sigmas, flow_sigmas(2, 5.0))
    assert recorded.latents.isfinite().all()
