"""Loading from folders: the right settings, intact weights, clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.hooks import HookRegistry
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
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
from cosutils.pipelines.provenance import fingerprint, identity
from cosutils.pipelines.schedule import ExactEulerScheduler, flow_sigmas
from cosutils.pipelines.text import prompt_memory, remember_prompts


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


@pytest.mark.filterwarnings("ignore:preset 'paper' has boundary=0.875 and guidance_2=5.0 without effect on one expert")
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
    for many in (np.arange(3), torch.arange(3), range(3), (np.uint8(0), 1, np.array(2))):
        assert [one.initial_seed() for one in seeded(many)] == [0, 1, 2]
    assert seeded(2**64 - 1).initial_seed() == 2**64 - 1
    for bad in ("3", 1.0, True, None, [0, "1"], np.array([0.5]), {3}):
        with pytest.raises(TypeError, match="a seed must be an integer or a list of integers, not"):
            seeded(bad)
    for bad in (-1, np.int64(-1), 2**64, [0, -1]):
        with pytest.raises(ValueError, match=r"a seed must be 0 to 2\*\*64 - 1, got"):
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


def latents(pipe, kind="a14b", **changes):
    """The final latents of three steps, in both experts."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(**tiny.call(steps=3, kind=kind) | changes).frames


@tiny.every(alpha=[None, 0.5], layout=["diffusers", "wan", "diffsynth"])
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_surplus_layers_of_a_lora_are_named_and_the_others_loaded(two_experts, tmp_path):
    """Wan2.2's four-step files carry the image layers of Wan2.1."""
    pipe = load(two_experts, "paper", torch.float32)
    change = save_lora(tmp_path / "a.safetensors", pipe.transformer, "wan")
    weights = load_file(tmp_path / "a.safetensors")
    surplus = {key.replace("cross_attn.q", f"cross_attn.{name}_img"): value.clone() for key, value in weights.items()
               if "cross_attn.q" in key for name in "kv"}  # fmt: skip
    norm = {"diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.ones(24)}
    save_file(weights | surplus | norm, tmp_path / "a.safetensors")
    named = r"a.safetensors holds layers that have no place \(9 of 20: .*norm_k_img.diff, .*add_k_proj, .*add_v_proj\) "
    named += "in transformer and transformer_2 of this model: the others are loaded"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        add_lora(pipe, tmp_path / "a.safetensors")
    assert [re.search(named, str(one.message)) is not None for one in said] == [True]
    adapted = latents(pipe)
    assert active_lora(pipe) == {"transformer": {"0_a": 1.0}, "transformer_2": {"0_a": 1.0}}
    plain = load(two_experts, "paper", torch.float32)
    for model in (plain.transformer, plain.transformer_2):
        for name, delta in change.items():
            model.get_submodule(name).weight.data += delta
    torch.testing.assert_close(adapted, latents(plain), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_refused_lora_leaves_nothing_behind(two_experts, tmp_path):
    pipe = load(two_experts, "paper", torch.float32)
    save_lora(tmp_path / "good.safetensors", pipe.transformer)
    weights = load_file(tmp_path / "good.safetensors")
    first = next(iter(weights))
    save_file(weights | {first: weights[first].repeat(1, 2)}, tmp_path / "wide.safetensors")
    save_file(weights | {first: weights[first] * float("nan")}, tmp_path / "nan.safetensors")
    save_file({key: value for key, value in weights.items() if key != first}, tmp_path / "half.safetensors")
    save_file({"vae.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "vae.safetensors")
    save_file(
        weights, tmp_path / "header.safetensors", {"lora_adapter_metadata": json.dumps({"transformer.r": "many"})}
    )
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-9])
    names, plain = [name for name, _ in pipe.transformer.named_modules()], latents(pipe)
    damaged = ("wide", "nan", "half", "vae", "header", "cut")
    for file in damaged:
        low = tmp_path / f"{file}.safetensors"
        with pytest.raises(ValueError, match=f"{file}.safetensors does not fit transformer_2 of this model: "):
            add_lora(pipe, {"transformer": tmp_path / "good.safetensors", "transformer_2": low})
        assert active_lora(pipe) == {} and [name for name, _ in pipe.transformer.named_modules()] == names
        assert torch.equal(latents(pipe), plain)
    add_lora(pipe, [(tmp_path / "good.safetensors", np.float32(0.5))])
    adapted = latents(pipe)
    for file in damaged:
        with pytest.raises(ValueError, match=f"{file}.safetensors does not fit transformer of this model: "):
            add_lora(pipe, tmp_path / f"{file}.safetensors")
        assert active_lora(pipe)["transformer"] == {"0_good": 0.5}
        assert torch.equal(latents(pipe), adapted)
    add_lora(pipe, tmp_path / "good.safetensors")
    assert active_lora(pipe)["transformer_2"] == {"0_good": 0.5, "1_good": 1.0}


def test_what_is_no_lora_is_refused(two_experts, tmp_path):
    pipe = tiny.build("a14b")
    file = tmp_path / "a.safetensors"
    for name in "abcd":
        save_lora(tmp_path / f"{name}.safetensors", pipe.transformer)
    (tmp_path / "e.bin").write_bytes(b"x")
    refusals = [
        (tmp_path, ValueError, "holds 4 .safetensors files .*name one of them"),
        (tmp_path / "none.safetensors", FileNotFoundError, "no LoRA file"),
        (tmp_path / "e.bin", ValueError, "is no .safetensors file"),
        ({"transformer_3": file}, ValueError, "transformer_3.*this model has transformer, transformer_2"),
        ([(file, float("nan"))], ValueError, "the alpha of a lora must be finite, got nan"),
        ([(file, "1")], TypeError, "the alpha of a lora must be a number, got '1'"),
        ([(file, 1, 2)], TypeError, "a lora must be a path, a hub id, or a"),
        (3, TypeError, "lora must be a path, a hub id or a list of them, not int"),
    ]
    for lora, error, message in refusals:
        with pytest.raises(error, match=message):
            add_lora(pipe, lora)


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_each_prompt_is_encoded_once(kind, tmp_path):
    pipe = load(tiny.saved(kind, tmp_path / kind), dtype=torch.bfloat16)
    plain = WanImageToVideoPipeline(**pipe.components, **given(pipe))
    folder = tmp_path / kind / "text_encoder"
    plain.register_modules(text_encoder=UMT5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16))
    first = latents(pipe, kind)
    assert prompt_memory(pipe) == {"encoded": 2, "remembered": 0}  # the prompt and the empty one of guidance
    assert torch.equal(latents(pipe, kind), first) and prompt_memory(pipe) == {"encoded": 2, "remembered": 2}
    assert torch.equal(latents(plain, kind), first) and prompt_memory(plain) is None
    again = latents(pipe, kind, prompt="the blue ball moves")
    assert prompt_memory(pipe) == {"encoded": 3, "remembered": 3} and not torch.equal(again, first)
    assert torch.equal(latents(plain, kind, prompt="the blue ball moves"), again)
    forgetful = load(tmp_path / kind, dtype=torch.bfloat16, remember=False)
    assert torch.equal(latents(forgetful, kind), latents(forgetful, kind)) and prompt_memory(forgetful) is None


def doubled(tensor):
    tensor.data *= 2


TOUCHED = {
    "hook": lambda encoder: encoder.register_forward_hook(lambda *call: zero(call[-1])),
    "pre_hook": lambda encoder: encoder.get_submodule(DEEP).register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
    "global_hook": lambda _: torch.nn.modules.module.register_module_forward_hook(
        lambda part, _, out: out * 2 if isinstance(part, torch.nn.Linear) else None
    ),
    "forward": lambda encoder: setattr(encoder.get_submodule(DEEP), "forward", lambda x: 0 * x),
    "in_place": lambda encoder: torch.nn.init.ones_(encoder.get_submodule(DEEP).weight),
    "uncounted": lambda encoder: doubled(encoder.get_submodule(DEEP).weight),
    "one_word": lambda encoder: doubled(encoder.get_input_embeddings().weight.data[4]),
    "load_state_dict": lambda encoder: encoder.load_state_dict(tiny.text_encoder().state_dict()),
    "parameter": lambda encoder: setattr(encoder.get_submodule(DEEP), "weight", torch.nn.Parameter(torch.ones(16, 16))),
    "dtype": lambda encoder: encoder.to(torch.float64),
    "adapter": lambda encoder: inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["q"], init_lora_weights=False), encoder
    ),
    "layer": lambda encoder: encoder.encoder.block.__setitem__(0, tiny.text_encoder().encoder.block[0]),
    "settings": lambda encoder: setattr(encoder.encoder.block[0].layer[0].layer_norm, "variance_epsilon", 1.0),
}
DEEP = "encoder.block.0.layer.0.SelfAttention.q"


def zero(output):
    output.last_hidden_state = 0 * output.last_hidden_state
    return output


@torch.no_grad()
@pytest.mark.parametrize("touch", TOUCHED)
def test_the_memory_does_not_answer_for_a_touched_encoder(touch):
    encoder = tiny.text_encoder()
    remember_prompts(encoder)
    ids, mask = torch.tensor([[4, 5, 6, 0]]), torch.tensor([[1, 1, 1, 0]])
    before = encoder(ids, mask).last_hidden_state
    handle = TOUCHED[touch](encoder)
    try:
        after = encoder(ids, mask).last_hidden_state
        assert not torch.equal(after, before)
        assert torch.equal(after, UMT5EncoderModel.__call__(encoder, ids, mask).last_hidden_state)
        assert torch.equal(after, encoder(ids, mask).last_hidden_state)
    finally:
        if hasattr(handle, "remove"):
            handle.remove()


@torch.no_grad()
def test_the_memory_answers_as_the_encoder_would():
    """Also for batches, masks, lengths, and after an answer was changed in place."""
    encoder, plain = tiny.text_encoder(), tiny.text_encoder()
    plain.load_state_dict(encoder.state_dict())
    remember_prompts(encoder)
    one, two = torch.tensor([[4, 5, 6, 0]]), torch.tensor([[4, 5, 6, 0], [7, 8, 0, 0]])
    calls = [(one, one.gt(0).long()), (two, two.gt(0).long()), (two.flip(0), two.flip(0).gt(0).long())]
    calls += [(one, torch.ones_like(one)), (one[:, :3], torch.ones(1, 3, dtype=torch.long))]
    for _ in range(2):
        for ids, mask in calls:
            answer = encoder(ids, mask).last_hidden_state
            assert torch.equal(answer, plain(ids, mask).last_hidden_state)
            answer.zero_()
    assert vars(encoder)["_cos_counts"] == {"encoded": 5, "remembered": 5}
    with torch.enable_grad():
        assert encoder(*calls[0]).last_hidden_state.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(*calls[0]).last_hidden_state, plain(*calls[0]).last_hidden_state)


def test_what_the_tokenizer_loses_is_said(embedded, two_experts):
    pipe = load("cos-mini")
    call = tasks.maze.sample(seed=7).inputs | settings(pipe) | {"num_inference_steps": 1, "output_type": "latent"}
    with pytest.warns(UserWarning, match="of the prompt 'Zebra walk !' the tokenizer does not know 'Zebra', '!'$"):
        pipe(**call | {"prompt": "Zebra walk !"})
    with pytest.warns(UserWarning, match="of the prompt 'walk .*walk ...' the tokenizer cuts its 21 tokens to 16"):
        pipe(**call | {"prompt": "walk " * 20})
    pipe = load(two_experts)
    with pytest.warns(UserWarning, match="of the prompt 'the purple ball' the tokenizer does not know 'purple'"):
        latents(pipe, prompt=["the purple ball"])
    assert [len(ids) for ids in pipe.tokenizer(["a ball", "the red maze"]).input_ids] == [2, 3]


def given(pipe):
    """The settings a pipeline was made with."""
    return {name: pipe.config[name] for name in ("boundary_ratio", "expand_timesteps")}


@pytest.mark.slow
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


@torch.no_grad()
def test_the_encoder_forgets_the_oldest_prompt(monkeypatch):
    encoder = tiny.text_encoder()
    monkeypatch.setattr("cosutils.pipelines.text.REMEMBERED", 2)
    remember_prompts(encoder)
    mask = torch.ones(1, 3, dtype=torch.long)
    for number in (1, 2, 1, 3, 1, 2):  # 3 displaces 2
        encoder(torch.full((1, 3), number), mask)
    assert vars(encoder)["_cos_counts"] == {"encoded": 4, "remembered": 2}
    assert encoder(torch.full((1, 3), 1), mask, output_hidden_states=True).hidden_states is not None


def test_offload_needs_an_accelerator(two_experts):
    for offload in ("model", "group"):
        with pytest.raises(ValueError, match=f"offload='{offload}' needs an accelerator to compute on"):
            load(two_experts, offload=offload)
    with pytest.raises(ValueError, match="unknown offload 'disk': choose from None, 'model', 'group'"):
        load(two_experts, offload="disk")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_whole_model_is_offloaded_to_the_device_that_is_asked_for(monkeypatch):
    pipe = tiny.build("a14b")
    _place(pipe, torch.device("cuda:1"), "model")
    assert pipe._execution_device == torch.device("cuda:1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 2)
    _place(pipe, torch.device("cuda"), "model")
    assert pipe._execution_device == torch.device("cuda:2")


@pytest.mark.slow
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
        "from cosutils.pipelines.provenance import fingerprint, identity\n"
        "said, again = identity(pipe), identity(cos.load('tests/tiny-a14b', 'paper', revision='0' * 40))\n"
        "assert again['transformer'].items() <= said['transformer'].items() and again['text_encoder'] == "
        "{'class': 'UMT5EncoderModel', 'commit': '0' * 40, 'dtype': 'bfloat16'}, again\n"
        "pipe.vae.post_quant_conv.weight.data += 1; assert 'digest' in identity(pipe)['vae']\n"
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


@tiny.every(kind=["wan21", "ti2v5b"])
def test_the_papers_settings_serve_models_with_one_expert(kind, tmp_path):
    with pytest.warns(UserWarning, match="preset 'paper' has .* without effect on one expert"):
        pipe = load(tiny.saved(kind, tmp_path), "paper")
    assert pipe.config.boundary_ratio is None and "guidance_scale_2" not in settings(pipe)
    with record(pipe) as recorded:
        latents(pipe, kind, **settings(pipe) | {"num_inference_steps": 2})
    assert recorded.info["boundary"] is None and recorded.info["guidance_scale"] == 5.0
    assert torch.equal(recorded.sigmas, flow_sigmas(2, 5.0))
    assert recorded.latents.isfinite().all()


@pytest.mark.slow
def test_odd_names_and_the_home_folder(embedded, two_experts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = tmp_path / "a [b] *c* %d {e} ü 'f'"
    shutil.copytree(two_experts, odd / "model")
    shutil.copytree(embedded.parent, odd / "data")
    save_lora(odd / "l [0].safetensors", tiny.build("a14b").transformer)
    pipe = load(f"~/{odd.name}/model", lora=f"~/{odd.name}/l [0].safetensors")
    assert active_lora(pipe)["transformer"] == {"0_l [0]": 1.0} and latents(pipe).isfinite().all()
    monkeypatch.setenv("COSUTILS_DATA", f"~/{odd.name}/data")
    assert load("cos-mini").config.boundary_ratio is None
    assert load(f"~/{odd.name}/data/cos-mini")._cos_preset.name == "mini"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer_2", {"num_layers": 3}, r"hold blocks.3.attn1.norm_k.weight and 26 more, for which its config"),
        ("transformer", {"num_layers": 5}, r"lack blocks.4.attn1.norm_k.weight and 26 more, which its config"),
        ("text_encoder", {"num_layers": 0}, "hold "),
        ("vae", {"num_res_blocks": 0}, "hold "),
    ],
    ids=["deeper", "shallower", "text", "vae"],
)
def test_weights_that_are_not_the_configurations_are_refused(two_experts, tmp_path, part, changes, message):
    folder = shutil.copytree(two_experts, tmp_path / "model")
    config = json.loads((folder / part / "config.json").read_text())
    (folder / part / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=f"the weights in .*/{part} {message}"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_embedded_model_whose_weights_are_not_finite_is_refused(embedded, value):
    file = next(embedded.glob("transformer/*.safetensors"))
    weights = load_file(file)
    weights["proj_out.bias"][3] = value
    save_file(weights, file, {"format": "pt"})
    write_sums(embedded)
    with pytest.raises(
        ValueError, match="the weights of transformer are not finite: proj_out.bias holds NaN or infinity"
    ):
        load("cos-mini")


@pytest.mark.slow
def test_identity_follows_the_content(two_experts, tmp_path):
    pipe = load(two_experts, "paper", torch.float32)
    first = identity(pipe)
    assert first == identity(load(shutil.copytree(two_experts, tmp_path / "moved"), "paper", torch.float32))
    assert json.loads(json.dumps(first)) == first
    latents(pipe)
    assert identity(pipe) == first

    def changed(change):
        other = deepcopy(pipe)
        change(other)
        now = identity(other)
        return {name for name in first if now.get(name) != first[name]}

    changes = {
        "transformer": lambda p: doubled(p.transformer.proj_out.weight.data[0, :1]),
        "transformer_2": lambda p: p.transformer_2.register_to_config(eps=1e-3),
        "text_encoder": lambda p: p.text_encoder.to(torch.bfloat16),
        "vae": lambda p: torch.nn.init.ones_(p.vae.decoder.conv_in.bias),
        "tokenizer": lambda p: p.tokenizer.add_tokens(["purple"]),
        "scheduler": lambda p: use_preset(p, "hf_default"),
        "pipeline": lambda p: p.register_to_config(boundary_ratio=0.5),
    }
    for name, change in changes.items():
        assert name in changed(change) <= {name, "pipeline"}


@pytest.mark.parametrize("whole", [True, False])
def test_changes_of_large_weights_are_noticed_by_samples(whole, monkeypatch):
    monkeypatch.setattr("cosutils.pipelines.provenance.WHOLE", 2**26 * whole)
    layer = torch.nn.Linear(256, 256).requires_grad_(False)
    seen = [fingerprint(layer.named_parameters())]
    layer.weight[3, 4] += 1  # PyTorch counts it
    seen.append(fingerprint(layer.named_parameters()))
    for block in (slice(0, 13), slice(200, 213)):  # one twentieth, a head's columns or rows
        layer.weight.data[:, block] = 0
        seen.append(fingerprint(layer.named_parameters()))
        layer.weight.data[block] = 1
        seen.append(fingerprint(layer.named_parameters()))
    assert fingerprint(layer.named_parameters()) == seen[-1] and len(set(seen)) == 6


@pytest.mark.slow
def test_identity_tells_loras_their_scale_and_whether_they_are_fused(two_experts, tmp_path):
    plain = load(two_experts, "paper", torch.float32)
    for seed in (0, 1):
        save_lora(tmp_path / f"{seed}.safetensors", plain.transformer, seed=seed)

    def told(seed, scale):
        pipe = load(two_experts, "paper", torch.float32, lora=[(tmp_path / f"{seed}.safetensors", scale)])
        return pipe, identity(pipe)["transformer"]

    pipe, first = told(0, 0.5)
    assert first.pop("lora")["0_0"].items() >= {"scale": 0.5, "fused": False}.items()
    assert first == identity(plain)["transformer"]
    first = identity(pipe)["transformer"]
    assert told(0, 0.5)[1] == first and told(0, 0.6)[1] != first and told(1, 0.5)[1]["lora"] != first["lora"]
    pipe.fuse_lora(lora_scale=0.5, components=["transformer"])
    fused = identity(pipe)["transformer"]
    assert fused["lora"]["0_0"].items() >= {"scale": 0.25, "fused": True}.items()
    assert fused["digest"] != first["digest"]
    pipe.transformer.disable_lora()
    assert "lora" not in identity(pipe)["transformer"]
