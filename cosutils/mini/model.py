"""The embedded model: diffusers' own Wan classes at small size, put together as a stock image-to-video pipeline."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel

from .._check import whole
from ..pipelines.schedule import flow_sigmas
from . import text
from .codec import PatchCodec
from .memory import RememberingWan
from .muon import Muon
from .tasks.base import Sample

__all__ = [
    "SHIFT",
    "build_pipeline",
    "build_transformer",
    "condition",
    "decode",
    "films_of",
    "generate",
    "noise_of",
    "optimizers",
    "steps_of",
    "teach",
]

SHIFT = 5.0  # timestep shift of sampling, as in the paper


def build_transformer(
    z_dim: int = 16, layers: int = 10, width: int = 128, heads: int = 4, memory: bool = False
) -> WanTransformer3DModel:
    """A Wan transformer of 2.8 million parameters by default; 125 tokens for a film of 17 frames.

    memory: it sees its last estimate (`RememberingWan`).
    """
    return (RememberingWan if memory else WanTransformer3DModel)(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=width // heads, num_layers=layers,
        in_channels=2 * z_dim + 4, out_channels=z_dim, text_dim=64, freq_dim=64, ffn_dim=4 * width,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip


def build_pipeline(codec: PatchCodec, transformer: WanTransformer3DModel) -> WanImageToVideoPipeline:
    """The stock pipeline around codec and transformer, with the shipped tokenizer and text encoder."""
    return WanImageToVideoPipeline(
        tokenizer=text.build_tokenizer(), text_encoder=text.build_text_encoder(), vae=codec,
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )  # fmt: skip


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else; learning rates are the caller's."""
    inside = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(inside, lr=1.0, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def condition(codec: PatchCodec, latents: torch.Tensor) -> torch.Tensor:
    """Condition channels (B, 4 + C, F, H, W) as the pipeline makes them: a mask (1 on the first frame), then the
    latents of [first frame, grey, grey, ...]."""
    grey = (-codec.mean @ codec.basis.T) / torch.tensor(codec.config.latents_std).to(codec.basis)
    picture = grey.to(latents)[None, :, None, None, None].expand_as(latents).clone()
    picture[:, :, 0] = latents[:, :, 0]
    mask = latents.new_zeros(len(latents), 4, *latents.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, picture], 1)


@torch.no_grad()
def steps_of(
    transformer, x: torch.Tensor, given: torch.Tensor, embeds: torch.Tensor, steps: int, first: int = 0,
    memory: torch.Tensor | None = None, shift: float = SHIFT,
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Euler sampling of many *different* pictures in one batch, which the stock pipeline cannot take; yields sigma, x_s
    and x0hat = x_s - sigma v of every step.

    x: (B, C, F, H, W), noise, or the state of step `first`; given: `condition`; embeds: (B or 1, L, D). memory: what a
    transformer that sees its last estimate has estimated a step before `first`, default nothing. The last x0hat is the
    film, because the schedule ends at 0. A test holds it equal to the pipeline without guidance. [paper, Eq. 1]
    """
    sigmas = flow_sigmas(steps, shift).tolist()
    if not 0 <= whole(first, "the first step") < steps:
        raise ValueError(f"the first step must be one of 0 to {steps - 1}, got {first}")
    if memory is not None and not first:
        raise ValueError("a run that begins at step 0 has no estimate to remember: leave memory out")
    if isinstance(transformer, RememberingWan):
        transformer.forget()
        if memory is not None:
            transformer.remember(memory, sigmas[first - 1])
    for s, s_next in itertools.pairwise(sigmas[first:]):
        level, words = x.new_full((len(x),), s * 1000), embeds.expand(len(x), -1, -1)
        v = transformer(torch.cat([x, given], 1), level, words, return_dict=False)[0].float()
        yield s, x, x - s * v
        x = x + (s_next - s) * v


def generate(transformer, noise: torch.Tensor, given: torch.Tensor, embeds: torch.Tensor, steps: int) -> torch.Tensor:
    """Final latents of `steps_of`, (B, C, F, H, W)."""
    *_, (_, _, x0) = steps_of(transformer, noise, given, embeds, steps)
    return x0


def noise_of(seeds: Iterable[int], shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Starting noise (n, ...) of n films of a shape: a function of the noise seed and of each puzzle's seed alone."""
    streams = [torch.Generator().manual_seed((seed * 1_000_003 + int(one)) % 2**63) for one in seeds]
    return torch.stack([torch.randn(*shape, generator=stream) for stream in streams])


@torch.no_grad()
def decode(codec: PatchCodec, x0: torch.Tensor) -> np.ndarray:
    """Video (n, T, H, W, 3) in [0, 1] of normalised latents (n, C, F, H, W)."""
    scale = torch.tensor(codec.config.latents_std).view(1, -1, 1, 1, 1)
    video = (codec.decode(x0 * scale).sample + 1) / 2
    return video.clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()


@torch.no_grad()
def films_of(
    pipe: WanImageToVideoPipeline,
    samples: Sequence[Sample],
    steps: int,
    seed: int = 0,
    batch: int = 32,
) -> Iterator[np.ndarray]:
    """One film (17, 80, 80, 3) in [0, 1] for each puzzle, as `generate` draws it, many puzzles in one batch.

    The noise of sample k depends on (seed, sample seed) alone, not on the batch. ValueError for a model whose film is
    not finite.
    """
    steps, batch = whole(steps, "the number of steps", least=1), whole(batch, "batch", least=1)
    codec, device = pipe.vae, pipe.transformer.device
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        latents = codec.encode_ids(torch.from_numpy(np.stack([s.ids for s in part])))
        noise = noise_of([s.seed for s in part], latents.shape[1:], seed)
        embeds = text.embed(pipe.tokenizer, pipe.text_encoder, [s.prompt for s in part])
        noise, given, embeds = noise.to(device), condition(codec, latents).to(device), embeds.to(device)
        final = generate(pipe.transformer, noise, given, embeds, steps)
        if not torch.isfinite(final).all():
            broken = next(s for s, film in zip(part, final, strict=True) if not torch.isfinite(film).all())
            raise ValueError(f"the film of {broken.task} {broken.seed} is not finite: the model's weights are damaged")
        yield from decode(codec, final.cpu().float())


@torch.no_grad()
def teach(teacher, x0: torch.Tensor, x1: torch.Tensor, given: torch.Tensor, embeds: torch.Tensor, part: torch.Tensor,
          steps: int = 4, inner: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Distillation target of a student of `steps` steps: the teacher's mean velocity over one of the student's steps.

    part: which step each sample learns, (B,) in 0..steps-1. The teacher crosses the step in `inner` Euler steps from
    x_s = (1 - s) x0 + s x1. Returns x_s, s (B,) and the target (x_s' - x_s) / (s' - s), all like the inputs.
    """
    ends = flow_sigmas(steps, SHIFT).to(x0)
    start, stop = ends[part], ends[part + 1]
    shape = (-1, 1, 1, 1, 1)
    x = first = (1 - start).view(shape) * x0 + start.view(shape) * x1
    for k in range(inner):
        s = start + (stop - start) * k / inner
        x = x + ((stop - start) / inner).view(shape) * teacher(
            torch.cat([x, given], 1), s * 1000, embeds, return_dict=False)[0].float()  # fmt: skip
    return first, start, (x - first) / (stop - start).view(shape)
