"""Self-conditioning: a Wan transformer whose steps can hand on what they worked out (Chen et al., "Analog bits",
arXiv 2208.04202).
"""

from __future__ import annotations

import functools
from contextlib import contextmanager

import torch
from diffusers import ModelMixin, WanTransformer3DModel  # noqa: F401  diffusers looks for its base class here
from torch import Tensor, nn

__all__ = ["RememberingWan"]


class RememberingWan(WanTransformer3DModel):
    """A Wan transformer that sees its last estimate x0hat = x - sigma v as further input channels
    (self-conditioning).

    `in_channels` stays what the pipeline passes; `out_channels` more are taken from memory, zero where there
    is none. The memory lives as long as a run: it is forgotten when the noise level does not fall (a new run
    begins), when the size of the batch changes, in training, and by `forget`. A run that begins below the
    level at which another one was broken off must call `forget` first; `cosutils.hooks.record.resume` puts the
    recorded memory in its place. The two forwards of classifier-free guidance have a memory each.
    """

    @functools.wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        old = self.patch_embedding
        channels = self.config.in_channels + self.config.out_channels
        self.patch_embedding = nn.Conv3d(channels, old.out_channels, old.kernel_size, old.stride)
        self._branch = None
        self.forget()

    def forget(self) -> None:
        """Drop the memory."""
        self._memory: dict[str | None, tuple[Tensor, Tensor]] = {}

    def remember(self, estimate: Tensor, sigma: float, branch: str | None = None) -> None:
        """Put an estimate (B, out_channels, F, H, W) in the place of the one made at noise level `sigma`.

        branch: of guidance, "cond" or "uncond", as the pipeline names it; None for a transformer that is called alone.
        """
        self._memory[branch] = (estimate, estimate.new_full((len(estimate),), sigma * 1000))

    @contextmanager
    def cache_context(self, name: str, **kwargs):
        """Diffusers' name for the branch of guidance that is computed, "cond" or "uncond"."""
        with super().cache_context(name, **kwargs):
            self._branch = name
            try:
                yield
            finally:
                self._branch = None

    def _recall(self, x: Tensor, level: Tensor) -> Tensor:
        kept, last = self._memory.get(self._branch, (None, None))
        if kept is None or self.training or kept.shape != x.shape or not bool((level < last).all()):
            return torch.zeros_like(x)
        return kept.to(x)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor,
                encoder_hidden_states_image: Tensor | None = None, return_dict: bool = True,
                attention_kwargs: dict | None = None, memory: Tensor | None = None):  # fmt: skip
        """As the stock class; memory: the last estimate (B, out_channels, F, H, W), default the one kept."""
        x = hidden_states[:, : self.config.out_channels]
        level = timestep.amax(tuple(range(1, timestep.ndim))) if timestep.ndim > 1 else timestep
        given = self._recall(x, level) if memory is None else memory
        out = super().forward(torch.cat([hidden_states, given], 1), timestep, encoder_hidden_states,
                              encoder_hidden_states_image, return_dict, attention_kwargs)  # fmt: skip
        if memory is None and not self.training:
            sigma = (level / 1000).float().view(-1, 1, 1, 1, 1)
            self._memory[self._branch] = ((x.float() - sigma * out[0].float()).detach(), level.detach().clone())
        return out
