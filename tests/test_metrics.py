"""Metrics against closed forms, other formulas and their own invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cosutils import metrics


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_energy_is_the_norm_of_each_token_in_grid_order():
    states = rows(2 * 24, 8).reshape(2, 24, 8)
    maps = metrics.energy(states, (2, 3, 4))
    assert maps.shape == (2, 2, 3, 4) and maps.dtype == torch.float32
    assert torch.allclose(maps[1, 1, 2, 3], states[1, 23].norm())
    assert torch.equal(maps.flatten(1), metrics.energy(states))


def test_energy_of_bf16_is_accumulated_in_float32():
    states = rows(64, 5120).bfloat16()[None]
    exact = states.double().norm(dim=-1)
    assert ((metrics.energy(states).double() - exact).abs() / exact).max() < 1e-6


def test_energy_refuses_a_wrong_grid():
    with pytest.raises(ValueError, match=r"grid \(2, 2, 2\) does not hold 24 tokens"):
        metrics.energy(rows(24, 8)[None], (2, 2, 2))


def test_cka_equals_the_gram_matrix_form():
    x, y = rows(40, 6).double(), (rows(40, 6) + rows(40, 6, 1)).double()[:, :4]
    centre = torch.eye(40, dtype=torch.float64) - 1 / 40
    k, q = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * q).sum() / (k.norm() * q.norm())
    assert metrics.linear_cka(x, y) == pytest.approx(float(expected), abs=1e-12)


def test_cka_ignores_rotation_scale_and_shift():
    x = rows(50, 8)
    turn, _ = torch.linalg.qr(rows(8, 8, 3))
    assert metrics.linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1, abs=1e-6)
    assert metrics.linear_cka(rows(5000, 4), rows(5000, 4, 9)) < 0.01


def test_cka_takes_token_batches():
    x, y = rows(48, 5).reshape(2, 24, 5), rows(48, 5, 1).reshape(2, 24, 5)
    assert metrics.linear_cka(x, y) == metrics.linear_cka(x.reshape(48, 5), y.reshape(48, 5))


@pytest.mark.parametrize(
    "x, y, message",
    [
        (rows(3, 2), rows(4, 2), "rows must agree"),
        (rows(1, 2), rows(1, 2), "at least 2 rows"),
        (torch.ones(5, 2), rows(5, 2), "all equal"),
        (torch.full((5, 2), math.nan), rows(5, 2), "not finite"),
    ],
)
def test_cka_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        metrics.linear_cka(x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 7, 11, 1000])
def test_cka_of_features_that_differ_by_rounding_alone_is_undefined(count, dtype):
    constant = rows(1, 5, 8).to(dtype).expand(count, 5)
    almost = constant.clone()
    almost[0] = almost[0] * (1 + torch.finfo(dtype).eps)
    for bad in (constant, almost, constant / 3):
        with pytest.raises(ValueError, match="all equal, rounding aside"):
            metrics.linear_cka(bad, rows(count, 4))
        with pytest.raises(ValueError, match="all equal, rounding aside"):
            metrics.linear_cka(rows(count, 4), bad)


@pytest.mark.parametrize("size", [1e-120, 1e-3, 1.0, 1e120])
def test_cka_does_not_depend_on_the_size_of_features(size):
    x, y = rows(30, 4).double(), rows(30, 4, 1).double()
    assert metrics.linear_cka(size * x, y) == pytest.approx(metrics.linear_cka(x, y), abs=1e-9)
    assert metrics.linear_cka(x + 1e6, x) == pytest.approx(1, abs=1e-6)  # far from zero, but they vary


def test_effective_number_counts_equal_candidates():
    assert metrics.effective_number([1, 1, 1, 1]) == pytest.approx(4)
    assert metrics.effective_number({"left": 0.3, "right": 0.3, "up": 0.0}) == pytest.approx(2)
    assert metrics.effective_number([0, 7, 0]) == pytest.approx(1)
    assert metrics.effective_number([0, 0, 0]) == 0
    many = metrics.effective_number(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert many.shape == (2,) and many[0] == pytest.approx(2)
    assert many[1] == pytest.approx(1 / (0.9**2 + 0.1**2))


def test_effective_number_does_not_depend_on_the_scale_of_evidence():
    evidence = np.random.default_rng(0).random((6, 5))
    assert np.allclose(metrics.effective_number(evidence), metrics.effective_number(1e-3 * evidence))


@pytest.mark.parametrize("bad", [[-0.1, 1], [math.nan, 1], [], 3.0])
def test_evidence_is_checked(bad):
    with pytest.raises(ValueError, match="evidence"):
        metrics.effective_number(bad)


def test_the_leader_has_most_evidence_and_nothing_shown_has_none():
    assert metrics.leader([0.1, 0.7, 0.2]) == 1 and metrics.leader({"a": 0.0, "b": 0.3}) == 1
    assert metrics.leader([0.4, 0.4]) == 0 and metrics.leader([0.0, 0.0]) == -1
    many = metrics.leader(np.array([[[0, 1e-9], [0, 0]], [[3, 1], [1, 3]]]))
    assert many.tolist() == [[1, -1], [0, 1]]


def test_a_candidate_is_not_committed_to_while_nothing_is_shown():
    assert metrics.commitment_step([[0, 0], [0, 0], [1, 0]]) == 2
    assert metrics.commitment_step([[1, 0], [0, 0], [0, 0]]) == 1


@pytest.mark.parametrize(
    "leaders, expected",
    [([0, 0, 0], 0), ([1, 0, 0], 1), ([0, 1, 0, 1, 1], 3), ([2, 1, 0], 2), ([0, 1, 1, 0], 3), ([1], 0)],
)
def test_commitment_is_the_start_of_the_last_unbroken_lead(leaders, expected):
    assert metrics.commitment_step(np.eye(3)[leaders]) == expected


def test_commitment_of_mappings_and_of_many_runs():
    run = [{"a": 0.6, "b": 0.4}, {"b": 0.9, "a": 0.1}, {"a": 0.2, "b": 0.8}]
    assert metrics.commitment_step(run) == 1
    both = np.stack([np.eye(2)[[0, 1, 1]], np.eye(2)[[1, 1, 1]]])
    assert metrics.commitment_step(both).tolist() == [1, 0]
    with pytest.raises(ValueError, match="same candidates"):
        metrics.commitment_step([{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="steps, candidates"):
        metrics.commitment_step([0.1, 0.9])


def test_bootstrap_covers_the_mean_about_as_often_as_promised():
    draws = np.random.default_rng(1).normal(2.0, 1.0, (200, 40))
    intervals = [metrics.bootstrap_interval(d, level=0.9, resamples=499, seed=i) for i, d in enumerate(draws)]
    covered = np.mean([i.low <= 2.0 <= i.high for i in intervals])
    assert 0.82 <= covered <= 0.96


def test_bootstrap_is_seeded_and_brackets_the_estimate():
    values = np.random.default_rng(2).random(30)
    first, second = metrics.bootstrap_interval(values, seed=4), metrics.bootstrap_interval(values, seed=4)
    assert first == second and first.low < first.estimate < first.high
    assert first.estimate == pytest.approx(values.mean())
    assert metrics.bootstrap_interval(values, np.median).estimate == pytest.approx(np.median(values))


def test_intervals_are_those_of_95_percent_unless_told_otherwise():
    values = np.random.default_rng(5).normal(size=1000)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(len(values))  # a mean of so many is normal
    found = metrics.bootstrap_interval(values)
    assert found.high - found.estimate == pytest.approx(half, rel=0.05)
    assert found.estimate - found.low == pytest.approx(half, rel=0.05)
    paired = metrics.paired_interval(values, np.zeros(1000))
    assert paired == found
    low, high = metrics.rate_interval(500, 1000)[1:]
    assert high - low == pytest.approx(2 * 1.959964 * math.sqrt(0.25 / 1000), rel=0.01)


def test_bootstrap_of_equal_values_is_a_point():
    assert metrics.bootstrap_interval([0.5] * 8) == (0.5, 0.5, 0.5)


def test_paired_interval_is_tighter_than_the_spread_of_samples():
    base = np.random.default_rng(3).normal(0, 5, 60)
    better = base + 0.5 + np.random.default_rng(4).normal(0, 0.1, 60)
    gain = metrics.paired_interval(better, base)
    assert 0.4 < gain.low < gain.estimate < gain.high < 0.6
    with pytest.raises(ValueError, match="equal length"):
        metrics.paired_interval([1, 2], [1])


def test_shares_of_all_or_nothing_are_rates_and_others_a_mean():
    assert metrics.share_interval([1.0, 1.0, 1.0]) == metrics.rate_interval(3, 3)
    assert metrics.share_interval([1.0, 0.5, 0.0]) == metrics.bootstrap_interval([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"shares lie in \[0, 1\], got 1.5"):
        metrics.share_interval([0.5, 1.5])
    with pytest.raises(ValueError, match="got nan"):
        metrics.share_interval([0.5, float("nan")])


def test_rate_interval_is_wilsons():
    k, n, z = 8, 10, 1.959963984540054
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    rate = metrics.rate_interval(k, n)
    assert rate == pytest.approx((0.8, centre - half, centre + half))
    assert metrics.rate_interval(5, 5).high == pytest.approx(1) and metrics.rate_interval(5, 5).low > 0.5


def test_over_trainings_is_students():
    found = metrics.over_trainings([1.0, 2.0, 6.0])
    half = 4.302652729911275 * math.sqrt(7) / math.sqrt(3)  # the 97.5 % point of t with two degrees of freedom
    assert found == pytest.approx(dict(value=3.0, n=3, low=3 - half, high=3 + half))
    assert metrics.over_trainings([0.5]) == dict(value=0.5, n=1)


def test_intervals_refuse_bad_input():
    with pytest.raises(ValueError, match="got 3 of 2"):
        metrics.rate_interval(3, 2)
    with pytest.raises(ValueError, match="whole numbers.* got 2.9 of 3.9"):
        metrics.rate_interval(2.9, 3.9)
    assert metrics.rate_interval(2.0, 3.0) == metrics.rate_interval(2, 3)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        metrics.rate_interval(1, 2, level=95)
    with pytest.raises(ValueError, match=r"at least 2 values in one axis, all finite, got shape \(1,\) with 1 finite"):
        metrics.bootstrap_interval([1.0])
    with pytest.raises(ValueError, match=r"got shape \(2,\) with 1 finite"):
        metrics.bootstrap_interval([1.0, math.nan])
    for values, shown in (([], r"\[\]"), ([1.0, math.inf], r"\[1.0, inf\]")):
        with pytest.raises(ValueError, match=f"one finite value for each training, got {shown}"):
            metrics.over_trainings(values)
