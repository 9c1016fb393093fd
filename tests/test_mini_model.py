"""Codec, text side and the small Wan transformer inside the stock pipeline."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline

from cosutils.mini import tasks, text, world
from cosutils.mini.codec import PatchCodec
from cosutils.mini.export import export
from cosutils.mini.model import SHIFT, build_pipeline, build_transformer, condition, generate, teach
from cosutils.pipelines.loading import load, use_preset
from cosutils.training.evaluate import scores
from cosutils.training.release import release
from cosutils.training.train import Puzzles, fit_codec, inherit


@pytest.fixture(scope="module")
def codec():
    return fit_codec()


@pytest.fixture(scope="module")
def pipe(codec):
    torch.manual_seed(0)
    pipe = build_pipeline(codec, build_transformer(codec.config.z_dim, layers=2, width=32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_codec_is_orthonormal_and_reads_back_every_tile(codec):
    assert torch.allclose(codec.basis @ codec.basis.T, torch.eye(codec.config.z_dim), atol=1e-5)
    films = np.stack([tasks.sample(name, seed).ids for name in tasks.NAMES for seed in range(10)])
    video = torch.from_numpy(world.draw(films)).permute(0, 4, 1, 2, 3) * 2 - 1
    decoded = codec.decode(codec.encode(video).latent_dist.mode()).sample
    assert (decoded - video).pow(2).mean().sqrt() < 0.03
    assert np.array_equal(world.read(((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()), films)


def test_codec_is_linear(codec):
    a, b = torch.randn(2, 1, codec.config.z_dim, 5, 10, 10).unbind(0)
    mixed = codec.decode(0.3 * a + 0.7 * b).sample
    assert torch.allclose(mixed, 0.3 * codec.decode(a).sample + 0.7 * codec.decode(b).sample, atol=1e-3)


def test_look_up_equals_encoding_the_drawn_film(codec):
    puzzle = tasks.sample("bounce", 3)
    video = torch.from_numpy(puzzle.video).permute(3, 0, 1, 2)[None] * 2 - 1
    drawn = codec.encode(video).latent_dist.mode() / torch.tensor(codec.config.latents_std).view(1, -1, 1, 1, 1)
    assert torch.allclose(drawn, codec.encode_ids(torch.from_numpy(puzzle.ids)[None]), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 16, 80, 80), (1, 3, 17, 81, 80)])
def test_codec_refuses_wrong_sizes(codec, shape):
    with pytest.raises(ValueError, match=r"4k \+ 1 frames and sides that are multiples of 8"):
        codec.encode(torch.zeros(shape))


def test_every_word_of_every_prompt_is_known():
    tokenizer = text.build_tokenizer()
    for name in tasks.NAMES:
        for seed in range(50):
            ids = tokenizer(tasks.sample(name, seed).prompt).input_ids
            assert tokenizer.unk_token_id not in ids and len(ids) <= text.MAX_LENGTH


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_batched_sampling_equals_the_stock_pipeline(pipe, guidance):
    puzzle = tasks.sample("find_shape", 2)
    latents = pipe.vae.encode_ids(torch.from_numpy(puzzle.ids)[None])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    embeds = text.embed(pipe.tokenizer, pipe.text_encoder, [puzzle.prompt, ""])
    ours = generate(pipe.transformer, noise, condition(pipe.vae, latents), embeds[:1], 4, embeds[1:], guidance)

    use_preset(pipe, "mini")
    assert pipe.scheduler.config.shift == SHIFT
    theirs = pipe(**puzzle.inputs, num_inference_steps=4, guidance_scale=guidance, latents=noise, output_type="latent")
    assert torch.allclose(ours, theirs.frames, atol=1e-4)


def test_the_student_learns_the_velocity_that_takes_the_teacher_across_a_step(pipe):
    latents = pipe.vae.encode_ids(torch.from_numpy(tasks.sample("shelf", 2).ids)[None])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    embeds, given = text.embed(pipe.tokenizer, pipe.text_encoder, ["walk"]), condition(pipe.vae, latents)
    x, s, target = teach(pipe.transformer, latents, noise, given, embeds, torch.tensor([0]), steps=1, inner=5)
    assert s == 1 and torch.equal(x, noise)
    sigmas, walked = torch.linspace(1, 0, 6), noise
    for here, there in zip(sigmas[:-1], sigmas[1:]):
        entry = torch.cat([walked, given], 1)
        walked = walked + (there - here) * pipe.transformer(entry, here[None] * 1000, embeds, return_dict=False)[0]
    assert torch.allclose(x - s * target, walked, atol=1e-4)


def test_scores_do_not_depend_on_the_batch(pipe):
    samples = [tasks.sample("shelf", seed) for seed in range(3)]
    together = [s.total for s in scores(pipe, samples, steps=2, batch=3)]
    assert np.allclose(together, [s.total for s in scores(pipe, samples, steps=2, batch=1)], atol=1e-6)


def test_pipeline_survives_saving(pipe, tmp_path):
    pipe = build_pipeline(pipe.vae, pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = WanImageToVideoPipeline.from_pretrained(tmp_path, vae=PatchCodec.from_pretrained(tmp_path / "vae"))
    again.set_progress_bar_config(disable=True)
    inputs = tasks.sample("maze", 0).inputs | dict(num_inference_steps=2, guidance_scale=1.0, output_type="np")
    a, b = (p(**inputs, generator=torch.Generator().manual_seed(0)).frames for p in (pipe, again))
    assert np.allclose(a, b, atol=1e-4)


def test_training_puzzles_are_a_pure_function_of_their_number():
    weights = dict(maze=1.0, shelf=1.0)
    one = next(iter(Puzzles(weights, 8, rank=0, ranks=1, start=0)))
    halves = [next(iter(Puzzles(weights, 4, rank=r, ranks=2, start=0))) for r in (0, 1)]
    assert torch.equal(one[0][0::2], halves[0][0]) and torch.equal(one[0][1::2], halves[1][0])
    assert one[1][0::2] == halves[0][1]


def test_training_resumes_and_the_loss_falls(tmp_path):
    command = [sys.executable, "-m", "cosutils.training.train", "--out", str(tmp_path), "--tasks", "shelf", "--layers", "1",
               "--batch", "16", "--every", "320"]  # fmt: skip
    for samples in ("320", "960"):
        subprocess.run([*command, "--samples", samples], check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["seen"] for row in rows] == [320, 640, 960]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert PatchCodec.from_pretrained(tmp_path / "model" / "vae").config.z_dim == 16


def test_a_shallower_model_inherits_blocks_at_even_distances():
    parent, child = build_transformer(layers=4, width=32), build_transformer(layers=2, width=32)
    inherit(child, parent)
    for mine, theirs in ((0, 1), (1, 3)):
        for a, b in zip(child.blocks[mine].parameters(), parent.blocks[theirs].parameters(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(child.patch_embedding.weight, parent.patch_embedding.weight)
    with pytest.raises(ValueError, match="4 blocks cannot begin with the 2 blocks"):
        inherit(parent, child)


def test_export_writes_the_official_layout(tmp_path):
    folder = export([tasks.sample("maze", 7)], tmp_path)[0]
    assert folder == tmp_path / "In-Domain_50" / "cos_mini_maze_data-generator" / "00000"
    names = ["final_frame.png", "first_frame.png", "ground_truth.mp4", "prompt.txt"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert (folder / "prompt.txt").read_text().strip() == tasks.sample("maze", 7).prompt


def test_a_release_loads_and_an_altered_one_is_refused(pipe, tmp_path, monkeypatch):
    build_pipeline(pipe.vae, pipe.transformer).save_pretrained(tmp_path / "run" / "model")
    row = dict(loss=1.0, one_step=dict(maze=[0.1, 0.0]), ten_steps=dict(maze=[0.2, 0.1]))
    rows = [dict(seen=seen, **row) for seen in (1, 2)]
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "cos-mini"
    release(tmp_path / "run", folder)
    monkeypatch.setenv("COSUTILS_DATA", str(tmp_path))
    loaded = load("cos-mini")
    half = pipe.transformer.patch_embedding.weight.half().float()
    assert torch.equal(loaded.transformer.patch_embedding.weight, half)
    assert not any(str(tmp_path) in p.read_text() for p in folder.rglob("*.json"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors"):
        load("cos-mini")
    with pytest.raises(FileNotFoundError, match="no trained model in"):
        release(tmp_path, folder)
    assert (folder / "README.md").exists()  # what was there is not lost
