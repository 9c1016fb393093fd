"""What an answer owes to the state: exchange it, put a mistake into it, solve again from the answer.

    python -m cosutils.measures.causes

writes `data/results/causes.json`: the ten tasks under three blocks with and without a memory, three trainings of each,
and two of the tasks under models of known mechanism; `cosutils.serial.causes` asks the same on the serial puzzles.
Where picture and prompt determine the answer, an exact denoiser says the same at every x_s; only what x0hat owes to the
state (and to a memory) can be a chain. The mistake that is put in is the film of a wrong answer behind the given first
frame.

The rules, as in `data/serial/rules.yaml` and older than what they judge here; of the verifier's the lower end was
added after the testbed's sealed reading, before any area of the ten tasks was read. A mistake put in at a noise level
is *mended* where the right answer then leads in the end at most .05 less often than without it, mean over trainings.
A memory *helps* to mend where the interval of the difference (with minus without, mean over the noise levels,
Student's over trainings) lies above 0, and *hurts* where it lies below. The verifier has *room* where the right
answer leads in a share between .2 and .8, and is *usable* where at one of its noise levels the mean area under the
curve is .70 or more, with the lower end of Student's interval over trainings above .50, which is blind. The puzzles
come from sealed seeds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor

from .._check import whole
from .._files import read_json, sha256, write_json
from ..metrics import leader, over_trainings
from ..mini import known, split, tasks, text
from ..mini.memory import RememberingWan
from ..mini.model import SHIFT, condition, decode, noise_of, steps_of
from ..pipelines.loading import data_folder, load
from ..pipelines.schedule import flow_sigmas
from .horizon import KINDS, trainings
from .probes import auc

__all__ = ["Posed", "dependence", "posed", "recovery", "sum_up", "usable", "verifier"]

FRESH = 7919  # noise seeds of what is exchanged: never those of a run
STEPS, LEVELS, DRAWS = 10, (0.9, 0.7, 0.5), 4
MENDED, USABLE, BLIND, ROOM = 0.05, 0.7, 0.5, (0.2, 0.8)
KNOWN_TASKS = ("maze", "rotation")  # on which the mechanisms are tried


@dataclass(frozen=True)
class Posed:
    """n puzzles as a transformer is asked them, and how its estimates are read.

    truth, wrong: latents (n, C, F, H, W) of the right films, and of films with the same first frame that end in the
    wrong answer `mistake` (n,). given: `condition`; words: embedding of the prompts (n or 1, L, D). noise: noise
    seed -> x_1. leaders: x0hat -> the number of the answer that leads, (n,). is_right: such numbers -> (n,) bool.
    shift: of the noise levels.
    """

    truth: Tensor
    wrong: Tensor
    mistake: np.ndarray
    given: Tensor
    words: Tensor
    noise: Callable[[int], Tensor]
    leaders: Callable[[Tensor], np.ndarray]
    is_right: Callable[[np.ndarray], np.ndarray]
    shift: float

    def noised(self, x0: Tensor, sigma: float, seed: int) -> Tensor:
        """x0 at a noise level, with noise that no run has."""
        return torch.lerp(x0, self.noise(FRESH + seed), sigma)

    def run(self, transformer, steps: int, seed: int = 0) -> list[tuple[float, Tensor, Tensor]]:
        """sigma, x_s and x0hat of every step of a run from noise."""
        return list(steps_of(transformer, self.noise(seed), self.given, self.words, steps, shift=self.shift))

    def estimate(self, transformer, x: Tensor, sigma: float, memory: Tensor | None = None) -> Tensor:
        """x0hat of one forward at x; memory: what a transformer that sees its last estimate sees, default nothing."""
        remembers = isinstance(transformer, RememberingWan)
        more = {"memory": torch.zeros_like(x) if memory is None else memory} if remembers else {}
        level, words = x.new_full((len(x),), sigma * 1000), self.words.expand(len(x), -1, -1)
        v = transformer(torch.cat([x, self.given], 1), level, words, return_dict=False, **more)[0]
        return x - sigma * v.float()


def _share(rows: np.ndarray) -> float:
    return round(float(rows.mean()), 4)


@torch.no_grad()
def dependence(transformer, asked: Posed, steps: int) -> list[dict[str, Any]]:
    """What x0hat owes to the state: at each step of a run, one forward with x_s exchanged, everything else as
    it was.

    own: the run's last x0hat under fresh noise; truth: the true film under that noise; other: the last x0hat
    of a run from other noise; noise: no film at all, sigma n. With a memory also "memory": x_s kept, the
    memory taken from that other run; and "none": x_s kept, memory empty. One row a step with sigma and, for
    each exchange, `flips` (share of puzzles whose leader changes), `right` (decision accuracy then) and
    `moved` (root mean square change of x0hat). The first step has no estimate yet: its rows begin at the
    second.
    """
    runs = [asked.run(transformer, steps, seed) for seed in (0, 1)]
    rows = []
    for step in range(1, steps):
        sigma, x, x0 = runs[0][step]
        own, other = runs[0][step - 1][2], runs[1][step - 1][2]
        films = dict(own=own, truth=asked.truth, other=other, noise=torch.zeros_like(own))
        states = {name: asked.noised(x0_of, sigma, step) for name, x0_of in films.items()}
        changed = {name: asked.estimate(transformer, state, sigma, own) for name, state in states.items()}
        if isinstance(transformer, RememberingWan):
            for name, memory in dict(memory=other, none=None).items():
                changed[name] = asked.estimate(transformer, x, sigma, memory)
        leads = asked.leaders(x0)
        row: dict[str, Any] = dict(step=step, sigma=round(sigma, 4), right=_share(asked.is_right(leads)))
        for name, estimated in changed.items():
            now = asked.leaders(estimated)
            row[name] = dict(flips=_share(now != leads), right=_share(asked.is_right(now)),
                             moved=round(float((estimated - x0).square().mean().sqrt()), 4))  # fmt: skip
        rows.append(row)
    return rows


@torch.no_grad()
def recovery(transformer, asked: Posed, steps: int) -> list[dict[str, float]]:
    """Is a mistake mended, by the time it is put in? Before each step but the first x_s is exchanged for the wrong
    films under fresh noise (a memory then holds the mistake too) and the run goes on to its end.

    One row a step with sigma, `right` (decision accuracy at the end) and `kept` (the wrong answer that was put in leads
    at the end).
    """
    rows, sigmas = [], flow_sigmas(steps, asked.shift).tolist()
    for at in range(1, steps):
        state = asked.noised(asked.wrong, sigmas[at], at)
        *_, (_, _, last) = steps_of(
            transformer, state, asked.given, asked.words, steps, at, memory=asked.wrong, shift=asked.shift
        )
        leads = asked.leaders(last)
        rows.append(dict(step=at, sigma=round(sigmas[at], 4), right=_share(asked.is_right(leads)),
                         kept=_share(leads == asked.mistake)))  # fmt: skip
    return rows


@torch.no_grad()
def verifier(transformer, asked: Posed, steps: int, sigma: float = 0.8, draws: int = DRAWS) -> dict[str, Any]:
    """Do right answers return when they are noised to `sigma` and solved again? A verifier that needs no
    labels.

    The score of a film is minus its mean squared change over `draws` returns (one estimate each, an empty
    memory). Returns sigma and draws, the decision accuracy of the films (`right`), how often the leader
    returns when it was right and when it was wrong (`returns_right`, `returns_wrong`) and the area under the
    curve of right against wrong (`auroc`); None where all films are one of the two.
    """
    *_, (_, _, last) = asked.run(transformer, steps)
    leads = asked.leaders(last)
    right = asked.is_right(leads)
    change, same = torch.zeros(len(last)), np.zeros(len(last))
    for draw in range(draws):
        back = asked.estimate(transformer, asked.noised(last, sigma, draw), sigma)
        change += (back - last).square().mean((1, 2, 3, 4)) / draws
        same += (asked.leaders(back) == leads) / draws
    found = dict(
        right=right.mean(),
        returns_right=same[right].mean() if right.any() else np.nan,
        returns_wrong=same[~right].mean() if not right.all() else np.nan,
        auroc=auc(-change.numpy(), right),
    )
    return dict(sigma=sigma, draws=draws) | {k: None if np.isnan(v) else round(float(v), 4) for k, v in found.items()}


# ---------------------------------------------------------------- the ten tasks
def _mistake(sample: tasks.Sample) -> str | None:
    """A possible answer that is wrong, the first one after the right answer; None where all are right."""
    names = [*sample.options]
    after = names.index(sample.answer) + 1
    return next((name for name in names[after:] + names[:after] if name not in sample.films), None)


def _samples(task: str, number: int) -> list[tasks.Sample]:
    """The first puzzles of the sealed seeds that have a wrong answer."""
    number = whole(number, "the number of puzzles", least=1)
    found = (tasks.sample(task, seed) for seed in split.SEALED)
    return list(itertools.islice((one for one in found if _mistake(one)), number))


def posed(pipe: WanImageToVideoPipeline, samples: Sequence[tasks.Sample]) -> Posed:
    """Puzzles of the ten tasks as the transformer of an embedded pipeline is asked them.

    ValueError for a puzzle all of whose possible answers are right: no mistake can be made there.
    """
    names = [name for name in map(_mistake, samples) if name]
    if len(names) < len(samples):
        one = next(one for one in samples if not _mistake(one))
        raise ValueError(f"every possible answer of {one.task} {one.seed} is right: leave it out")
    codec = pipe.vae
    truth = codec.encode_ids(torch.from_numpy(np.stack([one.ids for one in samples])))
    wrong = codec.encode_ids(
        torch.from_numpy(np.stack([one.possible[name] for one, name in zip(samples, names, strict=True)]))
    )
    wrong[:, :, 0] = truth[:, :, 0]  # of reappear and occlusion it would be the picture of another puzzle
    return Posed(
        truth=truth,
        wrong=wrong,
        mistake=np.array([[*one.options].index(name) for one, name in zip(samples, names, strict=True)]),
        given=condition(codec, truth),
        words=text.embed(pipe.tokenizer, pipe.text_encoder, [one.prompt for one in samples]),
        noise=lambda seed: noise_of([one.seed for one in samples], truth.shape[1:], seed),
        leaders=lambda x0: np.array(
            [leader([*s.candidates(film).values()]) for s, film in zip(samples, decode(codec, x0), strict=True)]
        ),
        is_right=lambda leads: np.array(
            [k >= 0 and [*one.options][k] in one.films for one, k in zip(samples, leads, strict=True)]
        ),
        shift=SHIFT,
    )


def usable(right: float, areas: Sequence[dict[str, float | int] | None]) -> str:
    """What the rule above says of a verifier, "usable", "not usable" or "no room".

    right: share of films in which the right answer leads; areas: under the curve at each noise level, as
    `over_trainings` gives them, None where there is none.
    """
    if not ROOM[0] <= round(right, 4) <= ROOM[1]:
        return "no room"
    told = [area for area in areas if area and round(area["value"], 4) >= USABLE]
    return "usable" if any(area.get("low", 0) > BLIND for area in told) else "not usable"


def _told(ones: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One task, several trainings: see `sum_up`."""
    right = np.array([one["verifier"][0]["right"] for one in ones])
    after = np.array([[row["right"] for row in one["recovery"]] for one in ones]).mean(0)
    sigmas = [row["sigma"] for row in ones[0]["recovery"]]
    lost = (right.mean() - after).round(4)
    each = [[one["verifier"][k]["auroc"] for one in ones] for k in range(len(LEVELS))]
    areas = [None if None in area else over_trainings(area) for area in each]
    return dict(
        right=over_trainings(right),
        after=[[sigma, round(float(value), 4)] for sigma, value in zip(sigmas, after, strict=True)],
        mended=[sigma for sigma, less in zip(sigmas, lost, strict=True) if less <= MENDED],
        auroc=areas,
        verifier=usable(right.mean(), areas),
    )


def sum_up(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the rules above say, one row for each task: of each of `horizon.KINDS` the mean over trainings.

    right: leads in the end; after: the same at each noise level of a mistake, [sigma, value]; mended: the noise levels
    at which it is mended; auroc: of the verifier at each of `LEVELS`, None where a training's films are all right or
    all wrong. memory_helps: the difference in the mean of `after`, with its verdict. A training seed that is not in
    `rows` for both kinds is left out, and a task without any.
    """
    by_model = {(row["model"], row["task"]): row for row in rows}
    seeds = [model.removeprefix(KINDS["plain"]) for model in trainings("plain")]
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        found_by_seed = [[by_model.get((name + seed, task)) for name in KINDS.values()] for seed in seeds]
        pairs = [[one for one in pair if one] for pair in found_by_seed if all(pair)]
        each = {kind: [pair[k] for pair in pairs] for k, kind in enumerate(KINDS)}
        if not pairs:
            continue
        areas = {kind: np.array([np.mean([row["right"] for row in one["recovery"]]) for one in ones])
                 for kind, ones in each.items()}  # fmt: skip
        more = over_trainings(areas["memory"] - areas["plain"])
        word = "helps" if more.get("low", 0) > 0 else "hurts" if more.get("high", 0) < 0 else "not shown"
        word = word if "low" in more else "one training"
        told = {kind: _told(ones) for kind, ones in each.items()}
        found.append(dict(task=task) | told | dict(memory_helps=more | dict(verdict=word)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*known.MECHANISMS, *trainings("plain"), *trainings("memory")])
    parser.add_argument("--puzzles", type=int, default=40, help="of each task")
    parser.add_argument("--out", type=Path, default=Path("data/results/causes.json"))
    parser.add_argument("--again", action="store_true", help="also what is recorded, which stays until it is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = dict(command="python -m cosutils.measures.causes", puzzles=args.puzzles, steps=STEPS, levels=[*LEVELS],
                 draws=DRAWS, seeds=[split.SEALED.start, split.SEALED.stop])  # fmt: skip
    rows = read_json(args.out)["rows"] if args.out.is_file() else []
    if rows and any(read_json(args.out)[name] != value for name, value in facts.items()):
        parser.error(f"{args.out} is of other puzzles: move it away")
    for model in args.models:
        is_known = model in known.MECHANISMS
        weights = "" if is_known else sha256(data_folder() / model / "SHA256SUMS")
        for task in KNOWN_TASKS if is_known else tasks.NAMES:
            others = [row for row in rows if (row["model"], row["task"]) != (model, task)]
            same = [row for row in rows if row not in others and row["weights"] == weights]
            if same and not args.again:
                continue
            samples = _samples(task, args.puzzles)
            pipe = known.pipeline(model, samples) if is_known else load(model)
            asked = posed(pipe, samples)
            row = dict(model=model, task=task, n=len(samples), weights=weights)
            row |= dict(dependence=dependence(pipe.transformer, asked, STEPS),
                        recovery=recovery(pipe.transformer, asked, STEPS),
                        verifier=[verifier(pipe.transformer, asked, STEPS, sigma) for sigma in LEVELS])  # fmt: skip
            rows = [*others, row]
            print(model, task, [one["right"] for one in row["recovery"]], flush=True)
            write_json(args.out, facts | dict(rows=rows, tasks=sum_up(rows)))
    write_json(args.out, facts | dict(rows=rows, tasks=sum_up(rows)))


if __name__ == "__main__":
    main()
