"""Muon in float32 against torch's own, which rounds to bfloat16."""

from __future__ import annotations

import pytest
import torch

from cosutils.mini.muon import Muon, orthogonal

SHAPES = [(24, 24), (96, 24), (24, 96)]


def weights(seed: int, shape: tuple[int, int]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_keeps_its_directions_and_loses_its_lengths(shape):
    update = weights(0, shape).detach()
    u, _, vt = torch.linalg.svd(update, full_matrices=False)
    inner = u.T @ orthogonal(update) @ vt.T  # diagonal where the directions are those of the update
    lengths = inner.diagonal()
    assert (inner - lengths.diag()).abs().max() < 1e-4
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    assert torch.allclose(orthogonal(update.T), orthogonal(update).T, atol=1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
def test_it_walks_as_torchs_own_does_but_for_the_rounding(nesterov):
    mine, theirs = ([weights(k, shape) for k, shape in enumerate(SHAPES)] for _ in range(2))
    settings = dict(lr=0.02, weight_decay=0.1, nesterov=nesterov)
    pair = Muon(mine, **settings), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    started = [p.detach().clone() for p in mine]
    for step in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(100 + step))
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, start in zip(mine, theirs, started, strict=True):
        assert (a - b).norm() < 0.02 * (a - start).norm()  # bfloat16 holds 8 bits
        assert not torch.equal(a, b)
    other = torch.optim.Muon([weights(9, shape) for shape in SHAPES], lr=1.0)
    other.load_state_dict(pair[0].state_dict())
    assert torch.equal(
        other.state[other.param_groups[0]["params"][0]]["momentum_buffer"], pair[0].state[mine[0]]["momentum_buffer"]
    )


def test_a_matrix_without_a_gradient_stays_and_a_closure_is_called():
    still, moved = weights(0, (8, 8)), weights(1, (8, 8))
    before = still.detach().clone()
    optimizer = Muon([still, moved], lr=0.1)

    def loss() -> float:
        found = moved.square().sum()
        found.backward()
        return float(found.detach())

    first = optimizer.step(loss)
    optimizer.zero_grad()
    assert optimizer.step(loss) < first
    assert torch.equal(still, before)
