"""Codec, text side and the small Wan transformer inside the stock pipeline."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline

from cosutils.films import read_film
from cosutils.mini import tasks, text, world
from cosutils.mini.codec import PatchCodec
from cosutils.mini.export import export
from cosutils.mini.model import SHIFT, build_pipeline, build_transformer, condition, generate, teach
from cosutils.pipelines.loading import use_preset
from cosutils.training.train import fit_codec


@pytest.fixture(scope="module")
def codec():
    return fit_codec(30)


@pytest.fixture(scope="module")
def pipe(codec):
    torch.manual_seed(0)
    pipe = build_pipeline(codec, build_transformer(codec.config.z_dim, layers=2, width=32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_codec_is_orthonormal_and_reads_back_every_tile(codec):
    assert torch.allclose(codec.basis @ codec.basis.T, torch.eye(codec.config.z_dim), atol=1e-5)
    films = np.stack([tasks.sample(name, seed).ids for name in tasks.NAMES for seed in range(3)])
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


@pytest.mark.slow
def test_every_word_of_every_prompt_is_known():
    tokenizer = text.build_tokenizer()
    for name in tasks.NAMES:
        for seed in range(50):
            ids = tokenizer(tasks.sample(name, seed).prompt).input_ids
            assert tokenizer.unk_token_id not in ids and len(ids) <= text.MAX_LENGTH


def test_batched_sampling_equals_the_stock_pipeline(pipe):
    puzzle = tasks.sample("find_shape", 2)
    latents = pipe.vae.encode_ids(torch.from_numpy(puzzle.ids)[None])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    embeds = text.embed(pipe.tokenizer, pipe.text_encoder, [puzzle.prompt])
    ours = generate(pipe.transformer, noise, condition(pipe.vae, latents), embeds, 4)

    use_preset(pipe, "mini")
    assert pipe.scheduler.config.shift == SHIFT
    theirs = pipe(**puzzle.inputs, num_inference_steps=4, guidance_scale=1.0, latents=noise, output_type="latent")
    assert torch.allclose(ours, theirs.frames, atol=1e-4)


def test_the_student_learns_the_velocity_that_takes_the_teacher_across_a_step(pipe):
    latents = pipe.vae.encode_ids(torch.from_numpy(tasks.sample("shelf", 2).ids)[None])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    embeds, given = text.embed(pipe.tokenizer, pipe.text_encoder, ["walk"]), condition(pipe.vae, latents)
    x, s, target = teach(pipe.transformer, latents, noise, given, embeds, torch.tensor([0]), steps=1, inner=5)
    assert s == 1 and torch.equal(x, noise)
    sigmas, walked = torch.linspace(1, 0, 6), noise
    for here, there in itertools.pairwise(sigmas):
        entry = torch.cat([walked, given], 1)
        walked = walked + (there - here) * pipe.transformer(entry, here[None] * 1000, embeds, return_dict=False)[0]
    assert torch.allclose(x - s * target, walked, atol=1e-4)


def test_pipeline_survives_saving(pipe, tmp_path):
    pipe = build_pipeline(pipe.vae, pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = WanImageToVideoPipeline.from_pretrained(tmp_path, vae=PatchCodec.from_pretrained(tmp_path / "vae"))
    again.set_progress_bar_config(disable=True)
    inputs = tasks.sample("maze", 0).inputs | dict(num_inference_steps=2, guidance_scale=1.0, output_type="np")
    a, b = (p(**inputs, generator=torch.Generator().manual_seed(0)).frames for p in (pipe, again))
    assert np.allclose(a, b, atol=1e-4)


def test_export_writes_the_official_layout(tmp_path):
    folder = export([tasks.sample("maze", 7)], tmp_path)[0]
    assert folder == tmp_path / "In-Domain_50" / "cos_mini_maze_data-generator" / "00000"
    names = ["final_frame.png", "first_frame.png", "ground_truth.mp4", "prompt.txt"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert (folder / "prompt.txt").read_text().strip() == tasks.sample("maze", 7).prompt


def test_export_draws_at_any_size_and_refuses_what_cannot_be(tmp_path):
    puzzle = tasks.sample("shelf", 7, pixels=160)
    folder = export([puzzle], tmp_path, pixels=240)[0]
    film = read_film(folder / "ground_truth.mp4")
    assert film.shape == (17, 240, 240, 3) and puzzle.score(world.shrunk(film / 255)).solved
    assert [p.name for p in folder.parent.iterdir()] == ["00000"]
    for changes, message in (
        (dict(pixels=250), "a multiple of 80 pixels"),
        (dict(pixels=0), "a multiple of 80 pixels"),
        (dict(fps=0), "fps must be 1 or more"),
        (dict(split="train"), "the split is In-Domain_50 or"),
        (dict(samples=[]), "no puzzles to export"),
    ):
        with pytest.raises(ValueError, match=message):
            export(**dict(samples=[puzzle], folder=tmp_path) | changes)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("walk the line", "does not know 'line' in the prompt 'walk the line'"),
        ("the " * 16, "at most 16 tokens, got 17 in"),
    ],
)
def test_prompts_that_would_be_cut_or_not_understood_are_refused(pipe, prompt, message):
    with pytest.raises(ValueError, match=message):
        text.embed(pipe.tokenizer, pipe.text_encoder, ["walk", prompt])


def test_a_further_word_changes_no_other(monkeypatch, pipe):
    before, states = len(text.WORDS) + 3, [pipe.text_encoder.state_dict()]
    for word in ("zebra", "yak"):  # of one further task, and of another
        monkeypatch.setattr(text, "WORDS", (*text.WORDS, word))
        states.append(text.build_text_encoder().state_dict())
        for name, weight in states[-2].items():
            assert torch.equal(states[-1][name][: len(weight)], weight)
    assert states[-1]["shared.weight"].shape[0] == before + 2 == len(text.build_tokenizer())


@pytest.mark.parametrize("frames", [5, 9, 13, 17])
def test_a_film_is_told_again_in_fewer_frames(frames):
    told = world.retimed(frames)
    assert told[0] == 0 and told[-1] == 16 and len(told) == frames and (np.diff(told) > 0).all()
    assert np.ptp(np.diff(told)) <= 1  # at an even pace


@pytest.mark.parametrize("frames", [1, 4, 21, 9.0])
def test_other_lengths_are_refused(frames):
    with pytest.raises(ValueError, match=f"told in 5, 9, 13 or 17 frames, got {frames}"):
        world.retimed(frames)
