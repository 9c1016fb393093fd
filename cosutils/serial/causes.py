"""What the steps depend on, on the serial puzzles: see `cosutils.measures.causes`, which asks the same on the ten
tasks.

    python -m cosutils.serial.causes ladder-trail-1-plain-x1-s0 ladder-trail-1-memory-x1-s0

writes `data/serial/causes/<run>.json`, on validation puzzles; with --report on the sealed ones
(`causes-report`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ..measures.causes import LEVELS, Posed, dependence, recovery, verifier
from . import puzzles as world
from .evaluate import facts_of, write
from .model import SHIFT, condition, embed, encode, hasten
from .sampling import noise_for, shares
from .train import load_run

__all__ = ["mistaken", "posed"]


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


def posed(codec, puzzles: world.Puzzles, film: str) -> Posed:
    """Puzzles of the testbed as a transformer is asked them; the wrong films are those of `mistaken`."""
    truth = encode(codec, puzzles.film(film))
    films, wrong = mistaken(puzzles, film)
    return Posed(
        truth=truth,
        wrong=encode(codec, films),
        mistake=wrong,
        given=condition(codec, truth),
        words=embed(),
        noise=lambda seed: noise_for(puzzles, seed),
        leaders=lambda x0: shares(codec, puzzles, x0).argmax(1).numpy(),
        is_right=lambda leads: leads == puzzles.answer,
        shift=SHIFT,
    )


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
            call = hasten(transformer), posed(codec, sample, args.film), given.steps
            facts["dependence"] += [dict(length=length) | row for row in dependence(*call)]
            facts["recovery"] += [dict(length=length) | row for row in recovery(*call)]
            facts["verifier"] += [dict(length=length) | verifier(*call, sigma) for sigma in LEVELS]
        write(out / f"{name}.json", facts)


if __name__ == "__main__":
    main()
