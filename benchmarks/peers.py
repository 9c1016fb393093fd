"""What looking and editing cost here and with other tools, on the same film of the same model, in one run.

    python -m benchmarks.peers                             # cos-mini, or random weights of its size
    python -m benchmarks.peers --repeats 9 --pairs 16 --out runs

Two tasks: the energy (B, N) of every block at every step, and one edit that adds a direction at the output of the
middle block at every step. Each is done by four hands:

ours      `cos.capture`, `cos.edit`
nnsight   one trace around the pipeline's call, with the norms taken inside it (where nnsight is installed)
hook      a plain forward hook, with nothing that knows steps, branches or experts
host      a plain forward hook that copies each state to the host in float32 and works there

baukit is not on PyPI and left out. All must give the same energies and the same film, or the run ends. A number is
the time of the film with the task / of the plain film next to it in time, decoding included: the median of `--pairs`
turns in a process of its own, then the median over `--repeats` processes with a bootstrap interval. On one thread the
clock is processor time. The exit status is 1 if ours costs more than 2 %, or more than nnsight or the host copies do.
Writes <out>/peers.json whole or not at all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cosutils as cos
from benchmarks.run import build, call, seconds
from cosutils.metrics import bootstrap_interval
from cosutils.report.results import interval_text, record_numbers

TASKS = ("capture", "edit")
BAR = 1.02
Hand = Callable[[], Any]


class Film(nn.Module):
    """A pipeline's call as the forward of a module, which nnsight can trace."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.transformer, self.call = pipe.transformer, [pipe]

    def forward(self, **arguments: Any) -> Any:
        return self.call[0](**arguments)


def norm(states: Tensor) -> Tensor:
    """Energy (B, N) of tokens (B, N, D)."""
    return torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)


def hands(pipe: Any, other: Any) -> dict[str, dict[str, Hand]]:
    """{task: {hand: work}}; work returns energies (S, L, B, N), or the film. other: the same model, for nnsight."""
    arguments = call(pipe) | {"output_type": "np"}
    steps, blocks = arguments["num_inference_steps"], pipe.transformer.blocks
    if arguments["guidance_scale"] > 1:
        raise ValueError("the hooks of this comparison know no branches: choose a model that runs without guidance")
    middle = len(blocks) // 2
    direction = torch.linspace(-1, 1, pipe.transformer.scale_shift_table.shape[-1], device=pipe.device)

    def film(of: Any = pipe) -> Any:
        return of(**arguments | {"generator": cos.seeded([0])})

    def hooked(layers: range, hook: Callable) -> Any:
        handles = [blocks[layer].register_forward_hook(hook) for layer in layers]
        try:
            return film().frames
        finally:
            for handle in handles:
                handle.remove()

    def our_capture() -> Tensor:
        with cos.capture(pipe) as maps:
            film()
        return maps.stack().flatten(3)

    def our_edit() -> Any:
        with cos.edit(pipe, middle, None, lambda states, place: states + direction):
            return film().frames

    def hook_capture() -> Tensor:
        kept: list[Tensor] = []
        hooked(range(len(blocks)), lambda module, given, states: kept.append(norm(states)))
        return torch.stack(kept).cpu().unflatten(0, (steps, -1))

    def host_capture() -> Tensor:
        kept: list[Tensor] = []
        hooked(
            range(len(blocks)),
            lambda module, given, states: kept.append(states.to("cpu", torch.float32, copy=True)),
        )
        return torch.stack([norm(states) for states in kept]).unflatten(0, (steps, -1))

    def hook_edit() -> Any:
        return hooked(range(middle, middle + 1), lambda module, given, states: states + direction)

    def host_edit() -> Any:
        shift = direction.cpu()
        return hooked(
            range(middle, middle + 1),
            lambda module, given, states: (states.to("cpu", torch.float32, copy=True) + shift).to(states),
        )

    work: dict[str, dict[str, Hand]] = {
        "capture": {"plain": film, "ours": our_capture, "hook": hook_capture, "host": host_capture},
        "edit": {"plain": film, "ours": our_edit, "hook": hook_edit, "host": host_edit},
    }
    if find_spec("nnsight"):
        from nnsight import NNsight

        model = NNsight(Film(other))

        def nnsight_capture() -> Tensor:
            with model.trace(**arguments | {"generator": cos.seeded([0])}) as tracer:
                kept = list().save()
                for _ in tracer.iter[:steps]:
                    for block in model.transformer.blocks:
                        kept.append(norm(block.output))
            return torch.stack(kept).cpu().unflatten(0, (steps, -1))

        def nnsight_edit() -> Any:
            with model.trace(**arguments | {"generator": cos.seeded([0])}) as tracer:
                for _ in tracer.iter[:steps]:
                    model.transformer.blocks[middle].output = model.transformer.blocks[middle].output + direction
                made = model.output.save()
            return made.frames

        work["capture"]["nnsight"], work["edit"]["nnsight"] = nnsight_capture, nnsight_edit
    return work


def check(work: dict[str, dict[str, Hand]]) -> None:
    """ValueError unless all hands give the same; it also warms all of them up."""
    for task, by_hand in work.items():
        made = {name: np.asarray(hand()) for name, hand in by_hand.items() if name != "plain"}
        for name, result in made.items():
            if not np.allclose(result, made["ours"], atol=1e-5):
                raise ValueError(f"{task}: {name} gives another result than ours")


def ratios(model: str, device: str, threads: int, pairs: int) -> dict[str, float]:
    """{task_hand: time / time of a plain film} in this process: the median of `pairs` turns."""
    torch.set_num_threads(threads)
    pipe, found = build(model, device), {}
    work = hands(pipe, build(model, device))
    check(work)
    for task, by_hand in work.items():
        took: dict[str, list[float]] = {name: [] for name in by_hand}
        for turn in range(pairs):  # in random order: none always follows the same
            for name in np.random.default_rng(turn).permutation(list(by_hand)):
                took[name].append(seconds(pipe, by_hand[name]))
        plain = np.array(took.pop("plain"))
        found |= {f"{task}_{name}": float(np.median(np.array(one) / plain)) for name, one in took.items()}
    return found


def main() -> int:
    """Measure, print one line for each number, write the record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cos-mini", help='"cos-mini", a folder, or "random"')
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    if min(options.repeats, options.pairs) < 2:
        parser.error("--repeats and --pairs must be at least 2")
    given = options.model, options.device, options.threads, options.pairs
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        runs = list(pool.map(ratios, *([value] * options.repeats for value in given)))
    numbers = {}
    for name in runs[0]:
        value, low, high = bootstrap_interval([run[name] for run in runs], np.median)
        numbers[name] = {"value": value, "low": low, "high": high, "n": len(runs)}
        print(f"{name:18s} {interval_text(numbers[name], 4)}")
    if not find_spec("nnsight"):
        print("nnsight is not installed and left out: pip install nnsight")
    missed = 0
    for task in TASKS:
        ours = numbers[f"{task}_ours"]["value"]
        dearer = [
            name for name in ("nnsight", "host") if numbers.get(f"{task}_{name}", {"value": ours})["value"] < ours
        ]
        missed += ours > BAR or bool(dearer)
        print(f"{task}: ours costs {100 * (ours - 1):.2f} %, bar {100 * (BAR - 1):.0f} %; cheaper: {dearer or 'none'}")
    provenance = {name: getattr(options, name) for name in ("model", "device", "threads", "pairs")}
    print("written to", record_numbers(options.out, "peers", numbers, provenance))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
