"""What the instruments must know of one family of pipelines: a `Family`, and the kind of solver it runs, a `Flow`.

Outside these classes a state is (B, C, F, H, W) with all latent frames, as the model sees it. Inside a pipeline it
has two other forms: the loop's own, which `prepare_latents` returns (`unpack`, `pack`), and the solver's, which
`scheduler.step` is given (`from_solver`, `to_solver`) and which may lack the frames that hold the given image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

__all__ = ["Call", "Family", "Flow"]


@dataclass(frozen=True)
class Call:
    """One call of `pipe`. size: latent frames, rows and columns. known: what its family keeps of frames that the
    pipeline sets itself, None before they are there or where there are none.
    """

    pipe: Any
    size: tuple[int, int, int]
    known: Any = None


class Flow:
    """Flow matching: x_s = (1 - sigma) x0 + sigma n, v = n - x0; schedulers that count steps and know their sigmas."""

    def check(self, scheduler: Any) -> None:
        """ValueError for a scheduler whose steps would be read wrongly."""
        flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or (
            scheduler.config.get("prediction_type") == "flow_prediction" and scheduler.config.get("use_flow_sigmas")
        )
        if not flow or scheduler.order != 1:
            raise ValueError(
                f"{type(scheduler).__name__} is not a flow-matching scheduler with one model call per step: "
                "use FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with flow_prediction and "
                "use_flow_sigmas"
            )

    def sigmas(self, scheduler: Any) -> Tensor:
        """Noise level of every state of the schedule: (steps + 1,) float32 on the CPU."""
        return scheduler.sigmas.detach().float().cpu()

    def signal(self, sigma: Tensor) -> Tensor:
        """Weight of x0 in a state of noise level `sigma`."""
        return 1 - sigma

    def estimate(self, x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """The clean estimate x0hat of a state x (float32) with the model's output v; `sigma` is a scalar."""
        return x - sigma.to(x) * v.float()

    def begin(self, scheduler: Any, step: int) -> None:
        """Let `scheduler` begin at `step`."""
        scheduler.set_begin_index(step)

    def state(self, scheduler: Any, arguments: tuple[Any, ...]) -> Tensor:
        """x_s among the `arguments` that `scheduler.step` takes after the model's output."""
        return arguments[1]

    def taken(self, scheduler: Any, arguments: tuple[Any, ...]) -> int:
        """The step that `scheduler.step` has just taken."""
        return scheduler.step_index - 1

    def is_multistep(self, scheduler: Any) -> bool:
        """Whether `scheduler` remembers earlier model outputs (UniPC, DPM-Solver), as Euler does not."""
        return hasattr(scheduler, "model_outputs")

    def draws(self, scheduler: Any, arguments: dict[str, Any]) -> str | None:
        """What makes the steps of a call draw random numbers; None where they do not."""
        kind = str(scheduler.config.get("algorithm_type") or "")
        if scheduler.config.get("stochastic_sampling") or kind.startswith("sde"):
            return f"{type(scheduler).__name__} with {kind or 'stochastic_sampling'}"
        return None

    def check_resumable(self, scheduler: Any, arguments: dict[str, Any]) -> None:
        """ValueError for a call that cannot begin in the middle."""
        draws = self.draws(scheduler, arguments)
        if draws:
            raise ValueError(f"{draws} draws noise at every step, so that no run can be resumed: use another solver")

    def forget(self, scheduler: Any) -> None:
        """Make a multistep solver forget the past, so that its corrector cannot undo an edit of x_s."""
        if self.is_multistep(scheduler):
            scheduler.model_outputs = [None] * scheduler.config.solver_order
            scheduler.lower_order_nums = 0
            scheduler.last_sample = None

    def undisturbed(
        self, scheduler: Any, edits: dict[int, list[str]], v: Tensor, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """`arguments` of `scheduler.step`, with what remembers the time before an edit of x_s taken out."""
        return arguments


class Family:
    """One kind of image-to-video pipeline. The defaults: flow matching, states in one form throughout, no frame held
    by the pipeline, and one forward of the transformer for each branch of the guidance.

    pipeline: its class. blocks: the transformer's lists of blocks, in order. parts: {name: path in a block} of modules
    that return the video's tokens, alone or before those of the text, or are given them for a name that ends in _heads.
    solver: how its schedulers step.
    settings: arguments of the call to note beside prompt and size. unguided: when a call has no branch "uncond".
    """

    pipeline: type
    blocks: tuple[str, ...] = ("transformer_blocks",)
    parts: Mapping[str, str] = MappingProxyType({
        "self_attention": "attn1",
        "self_attention_heads": "attn1.to_out.0",
        "cross_attention": "attn2",
        "cross_attention_heads": "attn2.to_out.0",
    })  # fmt: skip
    solver = Flow()
    settings: tuple[str, ...] = ("guidance_scale",)
    unguided = "guidance_scale <= 1"

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of a transformer, first to last."""
        return [block for name in self.blocks for block in getattr(model, name)]

    def scales(self, pipe: Any) -> tuple[int, int]:
        """Pixel frames to one latent frame, pixels to one latent pixel."""
        return pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial

    def patch(self, pipe: Any) -> tuple[int, int, int]:
        """Latent frames, rows and columns to one token."""
        config = pipe.transformer.config
        return config.patch_size_t, config.patch_size, config.patch_size

    def complete(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call with the pipeline's own choice of those it allows to be None."""
        return arguments

    def batch(self, arguments: dict[str, Any]) -> int:
        """Number of videos that a call makes."""
        prompt = arguments["prompt"]
        given = arguments["prompt_embeds"] if prompt is None else [prompt] if isinstance(prompt, str) else prompt
        return (0 if given is None else len(given)) * arguments["num_videos_per_prompt"]

    def size(self, pipe: Any, arguments: dict[str, Any]) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a call; divided by `patch` the token grid."""
        stride, side = self.scales(pipe)
        height, width = arguments["height"], arguments["width"]
        return (arguments["num_frames"] - 1) // stride + 1, height // side, width // side

    def passes(self, arguments: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        """For each forward of the transformer in one step: the branches its batch holds, in equal parts."""
        return (("cond",), ("uncond",)) if arguments["guidance_scale"] > 1 else (("cond",),)

    def held(self, pipe: Any) -> int:
        """Latent frames of the given image that the solver never gets: they stay what they are."""
        return 0

    def given(self, pipe: Any) -> int:
        """Latent frames that the pipeline sets itself at every step: an edit of them would be lost."""
        return self.held(pipe)

    def known(self, call: Call, x: Tensor, rest: list[Tensor]) -> Any:
        """`Call.known` from a state of the loop and what else `prepare_latents` returned."""
        held = self.held(call.pipe)
        return x[:, :, :held].clone() if held else None

    def unpack(self, call: Call, latents: Tensor) -> Tensor:
        """The state (B, C, F, H, W) of the loop's latents."""
        return latents

    def pack(self, call: Call, x: Tensor) -> Tensor:
        """The inverse of `unpack`."""
        return x

    def from_solver(self, call: Call, part: Tensor, held: Tensor | None = None) -> Tensor:
        """The state (B, C, F, H, W) of what `scheduler.step` takes or returns; `held` stands for the held frames."""
        if not self.held(call.pipe):
            return part
        return torch.cat([call.known if held is None else held, part], 2)

    def to_solver(self, call: Call, x: Tensor) -> Tensor:
        """The inverse of `from_solver`."""
        return x[:, :, self.held(call.pipe) :]

    def velocity(self, call: Call, v: Tensor) -> Tensor:
        """The model's output (B, C, F, H, W) of what `scheduler.step` takes; held frames move with velocity 0."""
        return self.from_solver(call, v, None if call.known is None else torch.zeros_like(call.known).to(v))

    def handed_on(self, pipe: Any) -> torch.dtype:
        """The dtype in which the loop hands a state on from step to step, unless the solver is a multistep one."""
        dtype: torch.dtype = (pipe.transformer or pipe.transformer_2).dtype
        return dtype

    def with_given(self, call: Call, x: Tensor) -> Tensor:
        """A state with the frames put back that the pipeline sets before every forward."""
        return x

    def decode(self, pipe: Any, latents: Tensor, frames: int) -> Tensor:
        """The VAE's film (N, 3, T, H, W) of estimates (N, C, F, H, W), as the pipeline decodes a call of `frames`."""
        raise NotImplementedError
