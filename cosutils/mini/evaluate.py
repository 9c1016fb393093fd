"""Scores of the embedded model on held-out puzzles.

Seeds are split once and for all: reported scores and notebooks use seeds below 100,000, choices made while building
the model use the next 100,000, training starts at 1,000,000,000.
"""

from __future__ import annotations

import numpy as np
import torch

from . import tasks, text
from .model import condition, generate

__all__ = ["REPORT", "TRAIN", "VALIDATION", "scores"]

REPORT, VALIDATION, TRAIN = range(0, 100_000), range(100_000, 200_000), range(1_000_000_000, 2**62)


@torch.no_grad()
def scores(pipe, samples: list[tasks.Sample], steps: int, seed: int = 0, guidance: float = 1.0,
           batch: int = 32) -> list[tasks.Score]:  # fmt: skip
    """Score of one film per sample. The noise of sample k depends on (seed, sample seed) alone, not on the batch."""
    codec, device = pipe.vae, pipe.transformer.device
    std = torch.tensor(codec.config.latents_std)[:, None, None, None]
    blank = text.embed(pipe.tokenizer, pipe.text_encoder, [""]).to(device)
    result = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        latents = codec.encode_ids(torch.from_numpy(np.stack([s.ids for s in part])))
        noise = torch.stack([
            torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed * 1_000_003 + s.seed)) for s in part
        ])  # fmt: skip
        embeds = text.embed(pipe.tokenizer, pipe.text_encoder, [s.prompt for s in part])
        given = condition(codec, latents)
        final = generate(pipe.transformer, noise.to(device), given.to(device), embeds.to(device), steps, blank, guidance)
        films = codec.decode(final.cpu().float() * std).sample
        films = ((films + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()
        result += [s.score(film) for s, film in zip(part, films)]
    return result
