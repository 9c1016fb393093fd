"""Muon for processors without units for bfloat16: torch's own optimizer, its iteration in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonal"]


def orthogonal(
    update: Tensor,
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    steps: int = 5,
    eps: float = 1e-7,
) -> Tensor:
    """An approximation of U V^T of `update` = U S V^T, (n, m), in its own precision.

    The quintic Newton-Schulz iteration of Jordan et al. 2024, "Muon: an optimizer for hidden layers": singular values
    come out near 1, most between 0.7 and 1.2.
    """
    a, b, c = coefficients
    tall = update.size(0) > update.size(1)
    x = update.T if tall else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which rounds every update to bfloat16, without that.

    A processor without units for bfloat16 needs many times as long for torch's own step (`benchmarks.run` measures it).
    adjust_lr_fn: "match_rms_adamw" alone. State and arguments are torch's, so that the states of both can be exchanged.
    """

    def __init__(self, params: Any, **settings: Any):
        super().__init__(params, adjust_lr_fn="match_rms_adamw", **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the gradients; a matrix without one stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
            self._init_group(group, *found)
            for matrix, gradient, momentum in zip(*found, strict=True):
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)
        return loss
