"""What the steps depend on: exchange the state, inject a mistake, solve again from the answer.

Where picture and puzzle determine the answer, an exact denoiser says the same at every x_s; only what x0hat
owes to the state (and to a memory) can be a chain.

    python -m cosutils.serial.causes ladder-trail-1-plain-x1-s0 ladder-trail-1-memory-x1-s0

writes `data/serial/causes/<run>.json`, on validation puzzles; with --report on the sealed ones
(`causes-report`).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..measures.probes import auc
from ..mini.memory import RememberingWan
from ..pipelines.schedule import flow_sigmas
from . import puzzles as world
from .evaluate import facts_of, write
from .model import SHIFT, condition, embed, encode, hasten
from .sampling import noise_for, shares, steps_of
from .train import load_run

__all__ = ["dependence", "mistaken", "recovery", "verifier"]

FRESH = 7919  # noise seeds of what is exchanged: never those of a run


def _noised(x0: Tensor, sigma: float, puzzles: world.Puzzles, seed: int) -> Tensor:
    return torch.lerp(x0, noise_for(puzzles, FRESH + seed), sigma)


def dependence(
    transformer, codec, puzzles: world.Puzzles, film: str, embeds: Tensor, steps: int
) -> list[dict[str, float]]:
    """What x0hat owes to the state: at each step of a run, one forward with x_s exchanged, everything else as
    it was.

    own: the run's last x0hat under fresh noise; truth: the true film under that noise; other: the last x0hat
    of a run from other noise; noise: no film at all, sigma n. With a memory also "memory": x_s kept, the
    memory taken from that other run; and "none": x_s kept, memory empty. One row a step with sigma and, for
    each exchange, `flips` (share of puzzles whose leader changes), `right` (decision accuracy then) and
    `moved` (root mean square change of x0hat). The first step has no estimate yet: its rows begin at the
    second.
    """
    truth = encode(codec, puzzles.film(film))
    given = condition(codec, truth)
    runs = [list(steps_of(transformer, noise_for(puzzles, seed), given, embeds, steps)) for seed in (0, 1)]
    remembers, rows = isinstance(transformer, RememberingWan), []

    def estimate(x: Tensor, sigma: float, memory: Tensor) -> Tensor:
        more = {"memory": memory} if remembers else {}
        words = embeds.expand(len(x), -1, -1)
        with torch.no_grad():
            v = transformer(
                torch.cat([x, given], 1), x.new_full((len(x),), sigma * 1000), words, return_dict=False, **more
            )[0]
        return x - sigma * v.float()

    for step in range(1, steps):
        sigma, x, x0 = runs[0][step]
        own, other = runs[0][step - 1][2], runs[1][step - 1][2]
        films = dict(own=own, truth=truth, other=other, noise=torch.zeros_like(own))
        states = {name: _noised(x0_of, sigma, puzzles, step) for name, x0_of in films.items()}
        changed = {name: estimate(state, sigma, own) for name, state in states.items()}
        if remembers:
            changed |= dict(memory=estimate(x, sigma, other), none=estimate(x, sigma, torch.zeros_like(x)))
        leader = shares(codec, puzzles, x0).argmax(1)
        row = dict(step=step, sigma=round(sigma, 4), right=round(float((leader.numpy() == puzzles.answer).mean()), 4))
        for name, estimated in changed.items():
            now = shares(codec, puzzles, estimated).argmax(1)
            row[name] = dict(flips=round(float((now != leader).float().mean()), 4),
                             right=round(float((now.numpy() == puzzles.answer).mean()), 4),
                             moved=round(float((estimated - x0).square().mean().sqrt()), 4))  # fmt: skip
        rows.append(row)
    return rows


def mistaken(puzzles: world.Puzzles, film: str) -> tuple[np.ndarray, np.ndarray]:
    """Films that show another puzzle's way and a wrong end on each board, and which candidate that end is,
    (n,).
    """
    if len(puzzles) < 2:
        raise ValueError("a mistake is taken from another puzzle: give two puzzles or more")
    candidates = puzzles.options.shape[1]
    answer = np.roll(puzzles.answer, 1)
    answer = np.where(answer == puzzles.answer, (answer + 1) % candidates, answer)
    swapped = world.Puzzles(**vars(puzzles) | {"way": np.roll(puzzles.way, 1, 0)})
    return swapped.film(film, answer), answer


@torch.no_grad()
def recovery(
    transformer, codec, puzzles: world.Puzzles, film: str, embeds: Tensor, steps: int
) -> list[dict[str, float]]:
    """Is a mistake mended, by the time it is injected? Before each step but the first x_s is exchanged for
    `mistaken` films under fresh noise (a memory then holds the mistake too) and the run goes on to its end.

    One row a step with sigma, `right` (decision accuracy at the end) and `kept` (the injected answer leads at
    the end).
    """
    given = condition(codec, encode(codec, puzzles.film(film)))
    films, wrong = mistaken(puzzles, film)
    latents, rows = encode(codec, films), []
    sigmas = flow_sigmas(steps, SHIFT).tolist()

    def inject(at: int, step: int, sigma: float, x: Tensor, x0: Tensor | None) -> Tensor:
        if step != at:
            return x
        if isinstance(transformer, RememberingWan):
            transformer.remember(latents, sigmas[at - 1])
        return _noised(latents, sigma, puzzles, at)

    for at in range(1, steps):
        *_, (_, _, last) = steps_of(transformer, noise_for(puzzles), given, embeds, steps, partial(inject, at))
        leader = shares(codec, puzzles, last).argmax(1).numpy()
        rows.append(dict(step=at, sigma=round(sigmas[at], 4), right=round(float((leader == puzzles.answer).mean()), 4),
                         kept=round(float((leader == wrong).mean()), 4)))  # fmt: skip
    return rows


@torch.no_grad()
def verifier(transformer, codec, puzzles: world.Puzzles, film: str, embeds: Tensor, steps: int, sigma: float = 0.8,
             draws: int = 4) -> dict[str, float]:  # fmt: skip
    """Do right answers return when they are noised to `sigma` and solved again? A verifier that needs no
    labels.

    The score of a film is minus its mean squared change over `draws` returns (one estimate each, an empty
    memory). Returns sigma and draws, the decision accuracy of the films (`right`), how often the leader
    returns when it was right and when it was wrong (`returns_right`, `returns_wrong`) and the area under the
    curve of right against wrong (`auroc`), not a number where all films are one of the two.
    """
    given = condition(codec, encode(codec, puzzles.film(film)))
    *_, (_, _, last) = steps_of(transformer, noise_for(puzzles), given, embeds, steps)
    leader = shares(codec, puzzles, last).argmax(1)
    right = leader.numpy() == puzzles.answer
    change, same = torch.zeros(len(puzzles)), torch.zeros(len(puzzles))
    for draw in range(draws):
        if isinstance(transformer, RememberingWan):
            transformer.forget()
        x = _noised(last, sigma, puzzles, draw)
        words = embeds.expand(len(x), -1, -1)
        v = transformer(torch.cat([x, given], 1), x.new_full((len(x),), sigma * 1000), words, return_dict=False)[0]
        back = x - sigma * v.float()
        change += (back - last).square().mean((1, 2, 3, 4)) / draws
        same += (shares(codec, puzzles, back).argmax(1) == leader).float() / draws

    def mean(rows: np.ndarray) -> float:
        return float(same.numpy()[rows].mean()) if rows.any() else float("nan")

    returns = dict(returns_right=mean(right), returns_wrong=mean(~right))
    return dict(sigma=sigma, draws=draws, right=float(right.mean())) | returns | dict(auroc=auc(-change.numpy(), right))


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else round(value, 4) for name, value in numbers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="shipped runs, default those that have a record")
    parser.add_argument("--data", type=Path, default=Path("data/serial"))
    parser.add_argument("--report", action="store_true", help="the sealed puzzles instead of validation")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--each", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    split = "report" if given.report else "validation"
    out = given.data / ("causes-report" if given.report else "causes")
    names = given.names or sorted(path.stem for path in out.glob("*.json"))
    if not names:
        parser.error(f"no run is named, and none has a record in {out}")
    for name in names:
        args, codec, transformer = load_run(given.data / "models" / name)
        facts = facts_of(given.data / "models" / name, args, split) | dict(each=given.each, steps=given.steps)
        for kind in ("dependence", "recovery", "verifier"):
            facts[kind] = []
        for length in given.lengths:
            sample = world.take(args.task, split, length, given.each)[0]
            call = hasten(transformer), codec, sample, args.film, embed(), given.steps
            facts["dependence"] += [dict(length=length) | row for row in dependence(*call)]
            facts["recovery"] += [dict(length=length) | row for row in recovery(*call)]
            facts["verifier"] += [dict(length=length) | _finite(verifier(*call, sigma)) for sigma in (0.9, 0.7, 0.5)]
        write(out / f"{name}.json", facts)


if __name__ == "__main__":
    main()
