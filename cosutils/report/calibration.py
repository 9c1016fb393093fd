"""Every measure that reads films or estimates, on models of known mechanism: what can it tell apart?

    python -m cosutils.report.calibration --puzzles 40

writes `data/results/calibration.json`: numbers "model/task/measure" of the four mechanisms of `mini.known`, and of page
2's measures on the embedded models. The rule by which they are judged stands in `data/claims.yaml` and is older than
the record. `table` sets them beside the claims.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from diffusers import WanImageToVideoPipeline

from .._check import whole
from .._files import read_json
from ..measures import behaviour, chain, perturb
from ..mini import known, tasks
from ..mini.known import MECHANISMS
from ..mini.tasks import Sample
from ..pipelines.loading import data_folder, load
from .claims import CLAIMS, calibrate, load_claims, separates
from .evidence import record_of
from .progress import progress
from .results import mean_of, rate_gap, rate_of, read_numbers, record_numbers

__all__ = ["CURVES", "NETS", "curve", "mistaken", "run", "table", "told"]

NETS = {"cos-mini": "full", "cos-mini-shallow": "shallow"}  # embedded model -> folder of its stored runs
CURVES = ("alive", "decision", "cells")  # read at every step, see `chain.measures`
CURVE_TASKS = ("maze", "rotation")
PAGES = {
    "memory": ("reappear", "occlusion"),
    "chain": ("maze", "rotation", "tictactoe", "two_routes", "shelf", "find_shape", "size_pattern"),
    "correction": ("maze", "two_routes", "rotation", "bounce"),
    "perception": ("shelf", "find_shape", "maze", "rotation"),
    "depth": ("tictactoe", "two_routes"),
    "noise": ("maze", "tictactoe"),
}
Numbers = dict[str, dict[str, Any]]


def _mean(values: np.ndarray) -> dict[str, Any] | None:
    """`mean_of` the finite values; None for fewer than two."""
    kept = np.asarray(values, float)[np.isfinite(values)]
    return mean_of(kept) if len(kept) >= 2 else None


def _traced(pipe: WanImageToVideoPipeline, samples: Sequence[Sample], pages: Sequence[str], steps: int) -> Numbers:
    """What pages 2, 6 and 7 read in traces of `steps` steps, measure -> number."""
    films = bool({"correction", "perception"} & set(pages))
    traces, onsets, lags = [], [], []
    for sample in samples:
        found = chain.trace(pipe, sample, sample.seed, keep_films=films, num_inference_steps=steps)
        lags.append(behaviour.frame_lag(behaviour.switches(found)) * 20 / steps if films else np.nan)
        ends_right = films and found.scores[-1].parts["answer"] == 1
        onsets.append(behaviour.onsets(found) if ends_right else None)
        traces.append(replace(found, films=None))
    numbers: dict[str, Any] = {}
    if "chain" in pages:
        numbers |= {name: _mean(values) for name, values in chain.measures(traces).items()}
    if "depth" in pages:  # the film of a run of one step is the first estimate of a run of many
        numbers |= {f"shallow_{name}": numbers[name] for name in ("decision_first", "decision_gain")}
    if "correction" in pages:
        leads = np.stack([behaviour.right(one) for one in traces])
        corrected, spoiled = ~leads[:, 0] & leads[:, -1], leads[:, 0] & ~leads[:, -1]
        numbers |= dict(corrected=rate_of(corrected), spoiled=rate_of(spoiled), net=rate_gap(corrected, spoiled))
        wrong_first, right_first = behaviour.confident_turns(traces)
        numbers["cases"] = dict(value=len(wrong_first), n=len(traces))
        if len(wrong_first) and len(right_first):
            numbers["confident_corrected"] = rate_of(wrong_first)
            numbers["confident_net"] = rate_gap(wrong_first, right_first, same=False)
        numbers["correction_lag"] = _mean(np.array(lags)[corrected])
    if "perception" in pages:
        gaps = np.array([one.gap for one in onsets if one is not None]) * 20 / steps
        tie = 0.5 * 20 / steps
        numbers["ended_right"] = rate_of([one is not None for one in onsets])
        numbers["onset_gap"] = _mean(gaps)
        if len(gaps):
            numbers |= dict(perception_first=rate_of(gaps > tie), ordered=rate_of(abs(gaps) > tie))
    if samples[0].task in CURVE_TASKS and "chain" in pages:
        cells = np.array([[score.parts["answer"] for score in one.scores] for one in traces])
        for name, rows in zip(CURVES, (chain.alive(traces), chain.decision(traces), cells), strict=True):
            numbers |= {f"{name}@{step:02d}": _mean(row) for step, row in enumerate(rows.T)}
    return numbers


def _memory(pipe: WanImageToVideoPipeline, samples: Sequence[Sample], steps: int) -> Numbers:
    """Page 5: is the hidden thing kept at the worst step?"""
    leads = [behaviour.right(chain.trace(pipe, one, one.seed, num_inference_steps=steps)) for one in samples]
    name = dict(reappear="start_kept", occlusion="hidden_kept")[samples[0].task]
    return {name: rate_of(behaviour.worst(np.stack(leads))[1])}


def _noise(pipe: WanImageToVideoPipeline, samples: Sequence[Sample], steps: int) -> Numbers:
    """Page 3: noise at steps and in frames, renoise, restart."""
    todo = [perturb.edits([2, 4, 6, 8], range(1, 5), seed=sample.seed) for sample in samples]
    runs = [perturb.disturb(pipe, sample, edits, sample.seed, num_inference_steps=steps)
            for sample, edits in zip(samples, todo, strict=True)]  # fmt: skip
    values = perturb.measures(runs) | dict(plain=np.array([one.plain for one in runs]))
    values["restart_damage"] = np.array([one.plain - np.mean([*one.restarts.values()]) for one in runs])
    return {name: mean_of(rows) for name, rows in values.items()}


def run(model: str, task: str, puzzles: int) -> Numbers:
    """Numbers "model/task/measure" of the first `puzzles` puzzles of a task; model: of `MECHANISMS` or an embedded one.

    Traces have 20 steps, runs of pages 3 and 5 have 10. An embedded model is read on page 2's measures alone: of the
    others its runs of N = 200 are stored. {} where none of these pages has the task.
    """
    puzzles = whole(puzzles, "the number of puzzles", least=2)
    is_known = model in MECHANISMS
    pages = [page for page, chosen in PAGES.items() if task in chosen and (is_known or page == "chain")]
    if not pages:
        return {}
    samples = [tasks.sample(task, k) for k in range(puzzles)]
    pipe = known.pipeline(model, samples) if is_known else load(model)
    found: dict[str, Any] = {}
    if {"chain", "correction", "perception"} & set(pages):
        found |= _traced(pipe, samples, pages, 20)
    if "memory" in pages:
        found |= _memory(pipe, samples, 10)
    if "noise" in pages:
        found |= _noise(pipe, samples, 10)
    return {f"{model}/{task}/{name}": number for name, number in found.items() if number is not None}


# ---------------------------------------------------------------- read back
def curve(numbers: Mapping[str, Mapping[str, Any]], model: str, task: str, name: str) -> np.ndarray:
    """One of `CURVES` along the steps, (S, 3): value, low, high."""
    start = f"{model}/{task}/{name}@"
    rows = [[one["value"], one["low"], one["high"]] for key, one in sorted(numbers.items()) if key.startswith(start)]
    if not rows:
        raise ValueError(f"no curve {name!r} of {model} on {task} was recorded")
    return np.array(rows)


def _section(key: str, folder: str | os.PathLike[str]) -> Numbers:
    """The stored numbers of a claim's page in a folder of records; {} where there is none."""
    path = record_of(folder, key.partition(".")[0])
    return read_numbers(path) if path else {}


def _spread(values: Sequence[float]) -> str:
    """Mean over tasks of a measure, "0.31", with the least and the largest of several, "0.31 (0.10 to 0.52)"."""
    if not values:
        return "–"
    mean, low, high = np.mean(values), min(values), max(values)
    return f"{mean:z.2f}" if high - low < 0.005 else f"{mean:z.2f} ({low:z.2f} to {high:z.2f})"


def table(
    numbers: Mapping[str, Mapping[str, Any]],
    claims: str | os.PathLike[str] = CLAIMS,
    results: str | os.PathLike[str] | None = None,
) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Head and groups of rows, one group for each claim, as `figures.show_table` takes them.

    A row is a measure: whether it is diagnostic ("yes", "no", or why it cannot be told), its mean over the calibrated
    tasks under each mechanism, and under each of `NETS` (from `numbers` or from their stored runs in folder `results`).
    A group's title says what the claim's ranges as a whole mistake.
    """
    groups: dict[str, list[list[str]]] = {}
    for key, claim in load_claims(claims).items():
        rules = claim["known"]
        own = {net: pathlib.Path(results) / folder for net, folder in NETS.items()} if results else {}
        stored = {net: _section(key, own[net]) if own else {} for net in NETS}
        names = {task for name in numbers for task in [name.split("/")[1]] if name.split("/")[0] in MECHANISMS}
        judged = [task for task in tasks.NAMES if task in names and calibrate(claim, task, numbers)]
        title = f"{claim['claim']} ({claim['paper']})"
        if isinstance(rules, str):
            groups[f"{title} Not applicable: {rules}"] = [[name, *["–"] * 5, *_nets(stored, {}, name, ())]
                                                          for name in claim["measures"]]  # fmt: skip
            continue
        rows = []
        for measure in claim["measures"]:
            told = [separates(rules, task, measure, numbers) for task in judged]
            known_values = [
                [numbers[at]["value"] for task in judged if (at := f"{name}/{task}/{measure}") in numbers]
                for name in MECHANISMS
            ]
            word = "one kind only"
            if any(one is not None for one in told):
                said = [one for one in told if one is not None]
                word = f"{'yes' if 2 * sum(said) > len(said) else 'no'} ({sum(said)} of {len(said)})"
            rows.append([measure, word, *map(_spread, known_values), *_nets(stored, numbers, measure, judged)])
        groups[f"{title} {mistaken(claim, judged, numbers)}"] = rows
    return ["measure", "diagnostic", *MECHANISMS, *NETS], groups


def _nets(
    stored: Mapping[str, Numbers], numbers: Mapping[str, Mapping[str, Any]], measure: str, judged: Sequence[str]
) -> list[str]:
    """The measure of each net: mean over the judged tasks, or over all that are stored where none is judged."""
    texts = []
    for net, own in stored.items():
        names = judged or [name.partition("/")[0] for name in own if name.endswith(f"/{measure}")]
        found = [own.get(f"{task}/{measure}") or numbers.get(f"{net}/{task}/{measure}") for task in names]
        texts.append(_spread([one["value"] for one in found if one]))
    return texts


def mistaken(claim: Mapping[str, Any], judged: Sequence[str], numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence: on how many of the tasks the ranges of a claim mistake none of the mechanisms, and which they do."""
    tests = [test for task in judged if (test := calibrate(claim, task, numbers))]
    if not tests:
        return "Not calibrated."
    sound = sum(test.diagnostic for test in tests)
    wrong = sorted({f"wrongly supported for {name}" for test in tests for name in test.fooled}
                   | {f"wrongly refused for {name}" for test in tests for name in test.missed})  # fmt: skip
    return f"Ranges sound on {sound} of {len(tests)} tasks{': ' * bool(wrong)}{', '.join(wrong)}."


WORDS = {
    "guess": "guesses among the answers",
    "one_pass": "decides in one pass, then draws",
    "hop": "makes one hop a step: a chain of steps",
    "frames": "goes from frame to frame: a chain of frames",
}


def told() -> str:
    """What the stored record says, as an HTML box: what the mechanisms share, what parts them, which ranges fail."""
    path = data_folder() / "results" / "calibration.json"
    numbers, facts = read_numbers(path), read_json(path)["provenance"]

    def mean(model: str, measure: str, digits: int) -> str:
        values = [numbers[at]["value"] for task in tasks.NAMES if (at := f"{model}/{task}/{measure}") in numbers]
        return f"{np.mean(values):z.{digits}f}"

    def row(model: str, words: str) -> str:
        own = [task for task in tasks.NAMES if f"{model}/{task}/alive_first" in numbers]
        words += f" ({own[0].replace('_', ' ')} alone)" * (len(own) == 1)
        cells = [mean(model, f"alive_{end}", 1) for end in ("first", "last")] + [mean(model, "decision_gain", 2)]
        return f'<tr><th scope="row">{words}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'

    tried = [[test for task in tasks.NAMES if (test := calibrate(claim, task, numbers))]
             for claim in load_claims(data_folder() / "claims.yaml").values()]  # fmt: skip
    tried = [tests for tests in tried if tests]
    sound = sum(all(test.diagnostic for test in tests) for tests in tried)
    named = {name: WORDS[name] for name in MECHANISMS} | {net: f"<code>{net}</code>, trained" for net in NETS}
    rows = "".join(row(name, words) for name, words in named.items())
    return (
        '<div class="finding" role="note" aria-label="What we find"><p class="finding-said">'
        '<span class="finding-title">What we find</span> The picture that the paper takes for reasoning, several '
        "answers at first and one at the end, does not tell a chain from a guess. What the steps add to the share in "
        "which the right answer leads does: nothing where a model guesses or has decided in its first pass, much in "
        f"the two chains. Of {len(tried)} claims that the mechanisms can test, {sound} have ranges that give every "
        "mechanism its right verdict.</p>"
        '<div class="finding-scroll"><table class="finding-verdicts"><thead><tr><th scope="col">a model that</th>'
        '<th scope="col">answers alive, first step</th><th scope="col">last step</th>'
        f'<th scope="col">right answer leads: last minus first</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="finding-source">Means over the tasks that were tried, {facts["puzzles"]} puzzles of each, '
        f"{facts['steps']} steps.</p></div>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--puzzles", type=int, default=40, help="of each task, from seed 0 on")
    parser.add_argument("--models", nargs="+", default=[*MECHANISMS, *NETS], help="mechanisms and embedded models")
    parser.add_argument("--out", default=str(data_folder() / "results"), help="folder of calibration.json")
    parser.add_argument(
        "--again", action="store_true", help="also what is recorded already, which stays until it is measured"
    )
    args = parser.parse_args()
    target = pathlib.Path(args.out) / "calibration.json"
    numbers = read_numbers(target) if target.is_file() else {}
    facts = dict(puzzles=args.puzzles, steps=20)
    if numbers and any(read_json(target)["provenance"].get(name) != value for name, value in facts.items()):
        parser.error(f"{target} is of other puzzles or steps: move it away, also for --again")
    names = list(dict.fromkeys(task for chosen in PAGES.values() for task in chosen))
    todo = [(model, task) for task in names for model in args.models]
    for model, task in progress(todo, "tasks and models"):
        recorded = [name for name in numbers if name.startswith(f"{model}/{task}/")]
        if (args.again or not recorded) and (found := run(model, task, args.puzzles)):
            numbers = {name: number for name, number in numbers.items() if name not in recorded} | found
            record_numbers(args.out, "calibration", numbers, facts)


if __name__ == "__main__":
    main()
