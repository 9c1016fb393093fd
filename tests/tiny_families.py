"""Tiny real image-to-video pipelines of other families than Wan, built offline from seeded random weights.

- ``"ltx"``: packed latents, frame 0 held; ``"ltx_timed"`` has a VAE that is told a decoding timestep,
- ``"cogvideox_ddim"``, ``"cogvideox_dpm"``: its two schedulers; ``"cogvideox15"``: patches of two frames, padded,
- ``"hunyuan_replace"``, ``"hunyuan_concat"``: the two ways of giving the image, frame 0 held or denoised.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
)
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tiny import WORDS, image, tokenizer

__all__ = ["KINDS", "LAYERS", "NEGATIVE", "build", "call"]

KINDS = ("ltx", "cogvideox_ddim", "cogvideox_dpm", "cogvideox15", "hunyuan_replace", "hunyuan_concat")
LAYERS = 3
CHANNELS = 4
NEGATIVE = "the blue maze"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
TEMPLATE = {  # 9 tokens before the prompt, the fourth of which becomes the image's four
    "template": "<|start_header_id|> a <|end_header_id|> <image> the <|eot_id|> "
    "<|start_header_id|> to <|end_header_id|> {} <|eot_id|> <|start_header_id|> up <|end_header_id|> down",
    "crop_start": 9,
    "image_emb_len": 4,
    "image_emb_start": 3,
    "image_emb_end": 7,
}


def t5() -> T5EncoderModel:
    """A one-layer T5 encoder of width 16."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(WORDS) + 3,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
        )
    )


def ltx(timed: bool) -> LTXImageToVideoPipeline:
    """Latents of 4 px and 4 frames, one to a token."""
    three = (False,) * 3
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, *three),
        upsample_residual=(False, *three),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=timed,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    vae.latents_std.copy_(torch.tensor([1.0, 1.5, 0.5, 2.0]))
    transformer = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=LAYERS,
        caption_channels=16,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return LTXImageToVideoPipeline(scheduler, vae, t5(), tokenizer(), transformer)


def cogvideox(kind: str) -> CogVideoXImageToVideoPipeline:
    """Latents of 8 px and 4 frames, 2 x 2 (and in version 1.5 two frames) to a token."""
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=0.7,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=8,
        ofs_embed_dim=8 if kind == "cogvideox15" else None,
        text_embed_dim=16,
        num_layers=LAYERS,
        sample_width=4,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        patch_size_t=2 if kind == "cogvideox15" else None,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    solver = CogVideoXDPMScheduler if kind == "cogvideox_dpm" else CogVideoXDDIMScheduler
    scheduler = solver(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
    )
    return CogVideoXImageToVideoPipeline(tokenizer(), t5(), vae, transformer, scheduler)


def llava() -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """A language model that sees the image as four tokens, and its tokenizer."""
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": [AddedToken(word, special=True) for word in HEADERS]})
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    number = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=number, pad_token_id=0)
    return LlavaForConditionalGeneration(config), words


def hunyuan(condition: str) -> HunyuanVideoImageToVideoPipeline:
    """Latents of 8 px and 4 frames, one to a token; two dual-stream blocks and one single-stream block."""
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS if condition == "token_replace" else 2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=LAYERS - 1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=condition == "token_replace",
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=condition,
    )
    text = CLIPTextConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    size = {"height": 16, "width": 16}
    return HunyuanVideoImageToVideoPipeline(
        *llava(),
        transformer,
        vae,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        CLIPTextModel(text),
        tokenizer(),
        CLIPImageProcessorPil(size=size, crop_size=size),
    )


def build(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> DiffusionPipeline:
    """Return a tiny pipeline of `kind` in `KINDS` (or "ltx_timed"), progress bar off; the VAE has `dtype` too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind.startswith("ltx"):
            pipe = ltx(kind == "ltx_timed")
        elif kind.startswith("cogvideox"):
            pipe = cogvideox(kind)
        else:
            pipe = hunyuan({"hunyuan_replace": "token_replace", "hunyuan_concat": "latent_concat"}[kind])
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part.eval(), dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(
    kind: str,
    prompt: str | list[str] = "the red ball moves",
    steps: int = 4,
    seed: int | list[int] = 0,
    **changes,
) -> dict:
    """Keyword arguments of one short call: 9 frames, CFG on, latents returned. Prompts in a list need as many seeds."""
    height, width = (32, 64) if kind.startswith("ltx") else (16, 32)
    one = image(height=height, width=width)
    many = isinstance(seed, list)
    seeds = [torch.Generator().manual_seed(number) for number in (seed if many else [seed])]
    arguments = {
        "image": [one] * len(seeds) if many else one,
        "prompt": prompt,
        "negative_prompt": [NEGATIVE] * len(seeds) if many else NEGATIVE,
        "height": height,
        "width": width,
        "num_frames": 9,
        "num_inference_steps": steps,
        "generator": seeds if many else seeds[0],
        "output_type": "latent",
    }
    if kind.startswith("hunyuan"):
        arguments |= {"true_cfg_scale": 3.0, "prompt_template": TEMPLATE, "max_sequence_length": 24}
    else:
        arguments |= {"guidance_scale": 3.0, "max_sequence_length": 16}
    return arguments | changes
