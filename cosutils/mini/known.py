"""Models of known mechanism in the stock pipeline: what every measure must be able to tell apart.

    >>> samples = [cos.tasks.shelf.sample(seed) for seed in range(2)]
    >>> from cosutils.mini.known import pipeline
    >>> pipe = pipeline("hop", samples)
    >>> film = pipe(**samples[0].inputs, **cos.settings(pipe), generator=cos.seeded(0), output_type="np").frames[0]
    >>> samples[0].score(film).solved
    True

Nothing is trained. Each is told the films of all possible answers of some puzzles, finds a puzzle by the given
picture and the prompt, and answers with the velocity v = (x_s - x0hat) / s of a clean estimate x0hat that is made by
rule. So `record`, `inject` and all read-outs work on it as on a trained model. It has no blocks, so what reads or
exchanges their states cannot be taken.

Time is told as *progress*, the share of the steps that are done, from the noise level s: 0 at s = 1, (n - 1) / n at the
last of n steps (`progress`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from ..pipelines.loading import data_folder, use_preset
from . import text
from .codec import PatchCodec
from .model import SHIFT, build_pipeline
from .tasks import Sample

__all__ = ["MECHANISMS", "Known", "Puzzle", "pipeline", "progress"]

HOPS = (0.5, 0.6, 0.7, 0.8)  # progress from which each hop of the chain of steps may be made; the last is the answer
BOLD = (0.6, 0.7, 0.8, 1.0)  # share of the answer held after each hop; the others have the rest
FRAME = 0.2  # progress between two latent frames of the chain of frames
CLEAR, PART = 1.5, 0.25  # standard deviations of the noise, and share of the picture, by which a state must stand out
NEAR = 1e-3  # progress is rounded by so much at most


class Puzzle(NamedTuple):
    """Latents of a puzzle's films: possible (K, C, F, H, W), right (C, F, H, W) their mean over the right answers,
    still (C, F, H, W) of the given picture held. is_right: (K,) bool."""

    possible: Tensor
    right: Tensor
    still: Tensor
    is_right: Tensor

    @property
    def average(self) -> Tensor:
        return self.possible.mean(0)


def progress(s: float) -> float:
    """Share of the steps that are done at noise level s in (0, 1], in [0, 1): the shift of the schedule undone."""
    return 1 - s / (SHIFT - (SHIFT - 1) * s)


def _weights(x: Tensor, s: float, films: Tensor) -> Tensor:
    """Posterior probability of each of K films given x_s = (1 - s) x0 + s x1, x1 ~ N(0, I), and a uniform prior."""
    distance = (x - (1 - s) * films).square().flatten(1).sum(1)
    return torch.softmax(-distance / (2 * s**2), 0)


def guess(x: Tensor, s: float, puzzle: Puzzle) -> Tensor:
    """The exact posterior mean over all possible answers. It never looks at which of them is right."""
    return torch.tensordot(_weights(x, s, puzzle.possible), puzzle.possible, 1)


def one_pass(x: Tensor, s: float, puzzle: Puzzle) -> Tensor:
    """The right answer leads from the first step on and is only drawn sharper. It never looks at the state x_s.

    At first an average of all possible answers and the still picture, in which the right ones count one and a half.
    """
    films = torch.cat([puzzle.possible, puzzle.still[None]])
    weights = torch.cat([1 + 0.5 * puzzle.is_right, torch.ones(1)])
    u = progress(s)
    return (1 - u) * torch.tensordot(weights / weights.sum(), films, 1) + u * puzzle.right


def _held(x: Tensor, puzzle: Puzzle) -> Tensor:
    """The film of the answer that x_s holds most of, by least squares."""
    films = puzzle.possible.flatten(1)
    return puzzle.possible[int(torch.linalg.lstsq(films.T, x.flatten()[:, None]).solution.argmax())]


def hop(x: Tensor, s: float, puzzle: Puzzle) -> Tensor:
    """A chain along the steps: the answer held next is looked up from the one that is held, which is read in x_s.

    Half of the run is an average over all answers. Then the chain goes from one wrong answer to another, and by the
    last of `HOPS` to the right one. A hop is made only from the answer before it; from any other state, so with too few
    steps and after an erased one (but for luck: noise too is nearest to some answer), the chain is lost and what lies
    nearest is drawn (`guess`).
    """
    done = sum(progress(s) >= start - NEAR for start in HOPS)
    if not done:
        return puzzle.average
    wrong = torch.nonzero(~puzzle.is_right).flatten().tolist() or [0]
    route = [puzzle.possible[k] for k, _ in zip(itertools.cycle(wrong), HOPS[1:], strict=False)] + [puzzle.right]
    if done > 1 and not any(_held(x, puzzle).equal(film) for film in route[done - 2 : done]):
        return guess(x, s, puzzle)
    share = BOLD[done - 1]
    return share * route[done - 1] + (1 - share) * puzzle.average


def frames(x: Tensor, s: float, puzzle: Puzzle) -> Tensor:
    """A chain of frames: latent frame k shows the right film only once x_s shows it in frame k - 1.

    Not before progress k * `FRAME` either; until then it shows the average over all answers.
    """
    average, way = puzzle.average, puzzle.right - puzzle.average
    length = way.square().sum((0, 2, 3)).sqrt()  # (F,), 0 where all answers look alike
    lean = ((x - (1 - s) * average) * way).sum((0, 2, 3)) / torch.where(length > 0, length, 1)
    shown = (lean >= torch.clamp(PART * (1 - s) * length, min=CLEAR * s)) | (length < NEAR * length.max())
    ready = int(torch.cumprod(torch.cat([torch.ones(1), shown[1:].float()]), 0).sum())  # frame 0 is given
    count = min(ready, int((progress(s) + NEAR) / FRAME))
    drawn = (torch.arange(len(length)) <= count)[None, :, None, None]
    return torch.where(drawn, puzzle.right, average)


MECHANISMS: dict[str, Callable[[Tensor, float, Puzzle], Tensor]] = {
    "guess": guess, "one_pass": one_pass, "hop": hop, "frames": frames,
}  # fmt: skip


class Known(WanTransformer3DModel):
    """A Wan transformer without blocks whose clean estimate is made by one of `MECHANISMS`, see the module.

    mechanism: its name. codec: of the pipeline it is for. A puzzle must be given to `pose` before it is asked for.
    """

    def __init__(self, mechanism: str, codec: PatchCodec):
        if mechanism not in MECHANISMS:
            raise ValueError(f"unknown mechanism {mechanism!r}: choose from {', '.join(MECHANISMS)}")
        z_dim = codec.config.z_dim
        super().__init__(
            patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=2 * z_dim + 4,
            out_channels=z_dim, text_dim=64, freq_dim=2, ffn_dim=1, num_layers=0, rope_max_seq_len=32,
        )  # fmt: skip
        self.mechanism = mechanism
        self._encode = codec.encode_ids
        self._puzzles: dict[tuple[int, int], Puzzle] = {}  # (number of the picture, number of the prompt) -> puzzle
        self._pictures: list[Tensor] = []
        self._prompts: list[Tensor] = []

    def pose(self, sample: Sample, prompt: Tensor) -> None:
        """Tell the films of a puzzle; prompt: its embedding (16, 64)."""
        still = np.repeat(sample.ids[:1], len(sample.ids), 0)
        films = self._encode(torch.from_numpy(np.stack([*sample.possible.values(), still]).copy()))
        is_right = torch.tensor([name in sample.films for name in sample.possible])
        right = self._encode(torch.from_numpy(np.stack([*sample.films.values()]).copy()))
        key = _number(right[0, :, 0], self._pictures), _number(prompt, self._prompts)
        self._puzzles[key] = Puzzle(films[:-1], right.mean(0), films[-1], is_right)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *args: Any,
                return_dict: bool = True, **kwargs: Any) -> Any:  # fmt: skip
        """Velocity (B, C, F, H, W); ValueError for a puzzle that was not posed and for films of another length."""
        channels = self.config.out_channels
        x, picture = hidden_states[:, :channels].float(), hidden_states[:, channels + 4 :, 0].float()
        times = (timestep.float() / 1000).expand(len(x)).tolist()
        velocity = torch.empty_like(x)
        for row, s in enumerate(times):
            key = (
                _number(picture[row], self._pictures, known=True),
                _number(encoder_hidden_states[row].float(), self._prompts, known=True),
            )
            if key not in self._puzzles:
                raise ValueError("this picture and prompt are of no puzzle that was posed to the known mechanism")
            puzzle = self._puzzles[key]
            if x.shape[1:] != puzzle.right.shape:
                raise ValueError(
                    f"a known mechanism makes films of {puzzle.right.shape[1]} latent frames, not of {x.shape[2]}"
                )
            velocity[row] = (x[row] - MECHANISMS[self.mechanism](x[row], s, puzzle)) / s
        velocity = velocity.to(hidden_states.dtype)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)


def _number(value: Tensor, held: list[Tensor], known: bool = False) -> int:
    """Place of `value` among `held`, to which it is added where it is new; -1 instead where only `known` ones count."""
    for place, other in enumerate(held):
        if torch.allclose(value, other, atol=1e-2, rtol=0):
            return place
    if known:
        return -1
    held.append(value)
    return len(held) - 1


def pipeline(mechanism: str, samples: Sequence[Sample], model: str = "cos-mini") -> WanImageToVideoPipeline:
    """The stock pipeline of an embedded model, preset "mini", whose transformer is a mechanism that knows `samples`.

    It knows their twins too. Codec, text encoder, scheduler and condition are those of `model`. ValueError for an
    unknown mechanism.
    """
    codec = PatchCodec.from_pretrained(data_folder() / model / "vae").eval()
    transformer = Known(mechanism, codec)
    pipe = build_pipeline(codec, transformer)
    pipe.set_progress_bar_config(disable=True)
    posed = [*samples, *(sample.twin() for sample in samples)]
    embeds = text.embed(pipe.tokenizer, pipe.text_encoder, list(dict.fromkeys(one.prompt for one in posed)))
    prompts = dict(zip(dict.fromkeys(one.prompt for one in posed), embeds, strict=True))
    for sample in posed:
        transformer.pose(sample, prompts[sample.prompt])
    return use_preset(pipe, "mini")
