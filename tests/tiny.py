"""Tiny real Wan image-to-video pipelines, built offline from seeded random weights.

Three kinds, the ones `cosutils` works on:

- ``"wan21"``: one transformer and a CLIP image encoder (Wan2.1 I2V),
- ``"a14b"``: two experts and a boundary ratio (Wan2.2 I2V-A14B),
- ``"ti2v5b"``: one transformer with expanded timesteps, first frame by re-compositing (Wan2.2 TI2V-5B).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from cosutils.mini import tasks
from cosutils.mini.codec import PatchCodec

__all__ = ["CHANNELS", "DTYPES", "KINDS", "LAYERS", "SOLVERS", "TOKENS", "build", "call", "every", "image", "saved"]

KINDS = ("wan21", "a14b", "ti2v5b")
SOLVERS = ("euler", "unipc")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYERS = 4  # blocks per transformer
CHANNELS = 4  # latent channels
TOKENS = {"wan21": 512, "a14b": 16, "ti2v5b": 16}  # of a prompt; Wan2.1's attention takes 512 for granted
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "ball",
    "maze",
    "robot",
    "moves",
    "to",
    "goal",
    "left",
    "right",
    "up",
    "down",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """A whitespace tokenizer over `WORDS`; every other word is one unknown token."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def text_encoder() -> UMT5EncoderModel:
    """A one-layer UMT5 encoder of width 16."""
    config = UMT5Config(
        vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return UMT5EncoderModel(config).eval()


def transformer(kind: str, dtype: torch.dtype) -> WanTransformer3DModel:
    """A `LAYERS`-block Wan transformer of width 24; the modules `from_pretrained` keeps in float32 stay
    so.
    """
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS if kind == "ti2v5b" else 2 * CHANNELS + 4,
        out_channels=CHANNELS,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=LAYERS,
        image_dim=16 if kind == "wan21" else None,
        added_kv_proj_dim=24 if kind == "wan21" else None,
        rope_max_seq_len=32,
    ).eval()
    torch.nn.Module.to(model, dtype)
    for name, module in model.named_modules():
        if name.split(".")[-1] in WanTransformer3DModel._keep_in_fp32_modules:
            module.float()
    model.scale_shift_table.data = model.scale_shift_table.data.float()
    for block in model.blocks:
        block.scale_shift_table.data = block.scale_shift_table.data.float()
    return model


def vae() -> AutoencoderKLWan:
    """A Wan VAE of width 4: 8 px to one latent pixel, 4k+1 frames to k+1 latent frames."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.5, 0.5, 2.0],
    ).eval()


def codec() -> PatchCodec:
    """The embedded codec, fitted to one puzzle of each task: it reads back what is drawn."""
    return PatchCodec.fit(np.stack([tasks.sample(name, 0).ids for name in tasks.NAMES]))


def scheduler(solver: str) -> FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler:
    """The stock scheduler of the given name with flow shift 3."""
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    )


def build(
    kind: str = "a14b", solver: str = "euler", dtype: torch.dtype = torch.float32, seed: int = 0
) -> WanImageToVideoPipeline:
    """Return a tiny pipeline of `kind` in `KINDS` with the stock `solver` in `SOLVERS`, progress bar off.

    `dtype` is the dtype of text encoder and transformers; the VAE stays in float32, as in Wan's own recipe.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = {}
        if kind == "wan21":
            config = CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                projection_dim=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
            )
            size = {"height": 16, "width": 16}
            clip = {
                "image_encoder": CLIPVisionModel(config).eval().to(dtype),
                "image_processor": CLIPImageProcessorPil(size=size, crop_size=size),
            }
        pipe = WanImageToVideoPipeline(
            tokenizer=tokenizer(),
            text_encoder=text_encoder().to(dtype),
            vae=vae(),
            scheduler=scheduler(solver),
            transformer=transformer(kind, dtype),
            transformer_2=transformer(kind, dtype) if kind == "a14b" else None,
            boundary_ratio=0.875 if kind == "a14b" else None,
            expand_timesteps=kind == "ti2v5b",
            **clip,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def saved(kind: str, folder: str | Path) -> Path:
    """Write the tiny pipeline of `kind` into `folder` in diffusers format, for `load`, and return the folder.

    It stands in for a model of the hub: float32 weights, and the solver that Wan's own folders ship.
    """
    folder = Path(folder)
    build(kind, "unipc").save_pretrained(folder)
    return folder


def image(seed: int = 0, height: int = 16, width: int = 32) -> Image.Image:
    """A random RGB picture of `height` x `width` pixels."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def call(
    prompt: str | list[str] = "the red ball moves",
    steps: int = 5,
    seed: int | list[int] = 0,
    kind: str = "a14b",
    **changes: object,
) -> dict:
    """Keyword arguments of a short call of `kind`: 9 frames of 16x32 px (3 x 2 x 4 latents), CFG on, latents returned.

    A list of prompts needs a list of seeds of the same length. `changes` override any argument.
    """
    if isinstance(seed, list):
        generator = [torch.Generator().manual_seed(s) for s in seed]
    else:
        generator = torch.Generator().manual_seed(seed)
    arguments = {
        "image": image(),
        "prompt": prompt,
        "height": 16,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
        "max_sequence_length": TOKENS[kind],
        "generator": generator,
        "output_type": "latent",
    }
    return arguments | changes


def every(**axes: Iterable[object] | Mapping[str, object]) -> pytest.MarkDecorator:
    """Parametrize a test by all combinations of the axes {argument: values or {text: value}}.

    `make quick` runs every third value of one axis, and of several axes a diagonal, in which each value occurs; the
    others are marked slow.
    """
    named = [axis if isinstance(axis, Mapping) else {str(value): value for value in axis} for axis in axes.values()]
    longest = max(map(len, named))
    quick = {tuple(k % len(axis) for axis in named) for k in range(0, longest, 3 if len(named) == 1 else 1)}
    rows = [
        pytest.param(
            *(value for _, (_, value) in row),
            id="-".join(text for _, (text, _) in row),
            marks=[] if tuple(place for place, _ in row) in quick else [pytest.mark.slow],
        )
        for row in product(*(list(enumerate(axis.items())) for axis in named))
    ]
    return pytest.mark.parametrize(list(axes), rows)


def embedded():
    """An untrained model of two blocks in the pipeline of the embedded ones, with the preset of these."""
    from cosutils.mini.model import build_pipeline, build_transformer
    from cosutils.pipelines.loading import use_preset

    torch.manual_seed(0)
    transformer = build_transformer(layers=2, width=32)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    pipe = build_pipeline(codec(), transformer)
    pipe.set_progress_bar_config(disable=True)
    return use_preset(pipe, "mini")
