"""Numbers read from recordings: token energy, linear CKA, candidates alive, commitment, intervals.

Every function is pure. Evidence is an array (..., K) of non-negative weights, one for each of the K possible
answers (or a mapping answer -> weight, or a sequence of mappings, one for each step).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

__all__ = [
    "Interval",
    "bootstrap_interval",
    "commitment_step",
    "effective_number",
    "energy",
    "leader",
    "linear_cka",
    "over_trainings",
    "paired_interval",
    "rate_interval",
    "share_interval",
]


class Interval(NamedTuple):
    """An estimate with the two ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    def stored(self) -> dict[str, float]:
        """The interval as the records of `data` hold it: value, low and high, to four digits."""
        return dict(value=round(self.estimate, 4), low=round(self.low, 4), high=round(self.high, 4))


def energy(states: torch.Tensor, grid: tuple[int, int, int] | None = None) -> torch.Tensor:
    """Token energy (paper Sec. 5.1, Fig. 6a): the L2 norm of every token over its D channels, in float32.

    states: tokens (B, N, D), any float dtype, N = f*h*w in f-major order; grid: (f, h, w).
    Returns (B, f, h, w), or (B, N) without a grid. ValueError if the grid does not hold N tokens.
    """
    norms = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    if grid is None:
        return norms
    if norms.shape[-1] != grid[0] * grid[1] * grid[2]:
        raise ValueError(f"grid {tuple(grid)} does not hold {norms.shape[-1]} tokens")
    return norms.view(*norms.shape[:-1], *grid)


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA in [0, 1], 1 = equal up to rotation and scale (Kornblith et al. 2019, arXiv 1905.00414).

    ||Yc'Xc||_F^2 / (||Xc'Xc||_F ||Yc'Yc||_F) from D x D moments of the centred rows; no N x N matrix is
    formed. x: (..., D1), y: (..., D2), leading axes are rows and must agree. The paper's dissimilarity
    (Fig. 3c) is 1 - CKA.
    ValueError if the rows disagree, are fewer than two, are not finite, or differ by no more than rounding does: CKA
    of constant features is undefined.
    """
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"rows must agree, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = (t.detach().reshape(-1, t.shape[-1]).to(torch.float64) for t in (x, y))
    if len(a) < 2:
        raise ValueError(f"linear_cka needs at least 2 rows, got {len(a)}")
    for features, dtype in ((a, x.dtype), (b, y.dtype)):
        if not features.isfinite().all():
            raise ValueError("linear_cka is undefined for rows that are not finite")
        rounding = 8 * torch.finfo(dtype if dtype.is_floating_point else torch.float64).eps
        if not ((features - features.mean(0)).norm(dim=0) > rounding * features.norm(dim=0)).any():
            raise ValueError("linear_cka is undefined for rows that are all equal, rounding aside")
    a, b = a - a.mean(0), b - b.mean(0)
    a, b = a / a.norm(), b / b.norm()
    scale = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)
    return float((torch.linalg.matrix_norm(b.T @ a) ** 2 / scale).clamp(0, 1))


def _evidence(evidence: object) -> np.ndarray:
    """Evidence as a float64 array (..., K); ValueError unless finite, non-negative and K >= 1."""
    if isinstance(evidence, Mapping):
        evidence = list(evidence.values())
    elif isinstance(evidence, Sequence) and evidence and all(isinstance(e, Mapping) for e in evidence):
        keys = list(evidence[0])
        if any(set(e) != set(keys) for e in evidence):
            raise ValueError("every step must name the same candidates")
        evidence = [[e[k] for k in keys] for e in evidence]
    array = np.asarray(evidence, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"evidence needs at least one candidate on its last axis, got shape {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError("evidence must be finite and not negative")
    return array


def effective_number(evidence: object) -> float | np.ndarray:
    """Effective number of candidates alive: the inverse Simpson index 1 / sum(p^2) of the evidence shares p, in [1, K].

    This is the Hill number of order 2 (Hill 1973, Ecology 54:427; Jost 2006, Oikos 113:363): m equally supported
    candidates count m. Unlike the exponential of the entropy (order 1) it hardly counts the shares of about one
    percent that read-out noise leaves on every candidate. evidence: (..., K). Returns (...), a float for a single
    vector; 0 where there is no evidence for anything.
    """
    weights = _evidence(evidence)
    squares = (weights**2).sum(-1)
    alive = np.divide(weights.sum(-1) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
    return float(alive) if alive.ndim == 0 else alive


def leader(evidence: object) -> int | np.ndarray:
    """Index of the candidate with the most evidence, the first of tied ones; -1 where there is evidence for none.

    evidence: (..., K). Returns (...) integers in -1..K-1, an int for a single vector.
    """
    weights = _evidence(evidence)
    first = np.where(weights.max(-1) > 0, weights.argmax(-1), -1)
    return int(first) if first.ndim == 0 else first


def commitment_step(evidence: object) -> int | np.ndarray:
    """First step from which the leading candidate (`leader`) is the final one and never changes again.

    evidence: (..., S, K) over S steps, or S mappings. Returns (...) integers in 0..S-1, an int for one run.
    ValueError if there is no step axis.
    """
    weights = _evidence(evidence)
    if weights.ndim < 2 or weights.shape[-2] == 0:
        raise ValueError(f"commitment_step needs evidence (..., steps, candidates), got {weights.shape}")
    leaders = np.asarray(leader(weights))
    settled = np.flip(np.logical_and.accumulate(np.flip(leaders == leaders[..., -1:], -1), -1), -1)
    first = settled.argmax(-1)
    return int(first) if first.ndim == 0 else first


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}")


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of `statistic` over independent values (scipy.stats.bootstrap, BCa).

    values: (n,), n >= 2, finite. statistic takes (sample, axis=) as numpy reductions do. Where BCa is
    undefined (all values equal, or the statistic hardly moves) the percentile interval is given instead. Same
    seed, same answer.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) < 2 or not np.isfinite(data).all():
        finite = int(np.isfinite(data).sum())
        raise ValueError(
            f"an interval needs at least 2 values in one axis, all finite, got shape {data.shape} with {finite} finite"
        )
    _check_level(level)

    def run(method: str) -> tuple[float, float]:
        result = stats.bootstrap(
            (data,), statistic, confidence_level=level, n_resamples=resamples, method=method, rng=seed
        )
        low, high = sorted(map(float, result.confidence_interval))  # rounding can swap ends that are equal
        return low, high

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # answered by the percentile interval
        low, high = run("BCa")
        if not (np.isfinite(low) and np.isfinite(high)):
            low, high = run("percentile")
    return Interval(float(statistic(data)), low, high)


def paired_interval(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, **settings: Any) -> Interval:
    """Bootstrap interval of the mean of a - b over pairs (same sample and seed under two treatments).

    a, b: (n,), n >= 2. settings are those of `bootstrap_interval`. ValueError if the lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs must have equal length, got shapes {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, **settings)


def rate_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Wilson interval of a success rate (Wilson 1927; scipy.stats.binomtest), within [0, 1].

    successes: 0..trials, trials >= 1, whole numbers; ValueError otherwise.
    """
    if trials < 1 or not 0 <= successes <= trials or successes % 1 or trials % 1:
        raise ValueError(f"need whole numbers, 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    successes, trials = int(successes), int(trials)
    _check_level(level)
    low, high = stats.binomtest(successes, trials).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / trials, float(low), float(high))


def share_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean of shares (n,) in [0, 1] with its 95 % interval: `rate_interval` where all are 0 or 1, which does not claim
    certainty where all agree, and `bootstrap_interval` where some lie between. ValueError for what is no share.
    """
    data = np.asarray(values, dtype=np.float64)
    if not ((data >= 0) & (data <= 1)).all():
        raise ValueError(f"shares lie in [0, 1], got {float(data[~((data >= 0) & (data <= 1))][0])}")
    if np.isin(data, (0, 1)).all():
        return rate_interval(int(data.sum()), len(data))
    return bootstrap_interval(data)


def over_trainings(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> dict[str, float | int]:
    """Mean of one value for each training seed, with Student's interval (Student 1908); a single training has none.

    values: (n,), n >= 1, finite; ValueError otherwise. Keys: value, n, and from two trainings on low and high.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise ValueError(f"need one finite value for each training, got {data.tolist()}")
    _check_level(level)
    found: dict[str, float | int] = dict(value=float(data.mean()), n=len(data))
    if len(data) > 1:
        half = stats.t.ppf((1 + level) / 2, len(data) - 1) * data.std(ddof=1) / len(data) ** 0.5
        found |= dict(low=float(data.mean() - half), high=float(data.mean() + half))
    return found
