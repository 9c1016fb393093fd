"""What looking costs: ratios measured within one run, so that the machine's speed cancels.

    python -m benchmarks.run                                        # cos-mini, or random weights of its size
    python -m benchmarks.run --repeats 15 --threads 4 --out runs

Five questions, four with a bar; the exit status is 1 if a bar is missed.

capture   time of a run with energy capture at all layers and steps / time of a plain run, both
          with decoding (one video, in fresh processes, and 8 seeds in a batch)                    <= 1.02
sweep     time of a noise-at-step sweep over all steps with shared prefixes / of full runs         <= 0.60
rate      FLOP/s while sampling (one video, and 8 seeds in a batch) / FLOP/s of a 1024 x 1024
          float32 matrix product                                                                   >= 0.30
memory    peak memory after 16 streamed samples, each recorded with all raw states, / after 4      <= 1.02
muon      time of a training step's optimizer in float32 / of torch's own, which rounds to bfloat16;
          three blocks on the CPU, so that it depends on the processor's units for bfloat16

Compared pieces alternate, every ratio is formed from neighbours in time, and the median over repeats is given
with a bootstrap interval. Where a process happens to lay its memory shifts the ratio of a single video by up to a
percent, more than repeats within it show: it is the median of 16 pairs, each repeat in a process of its own. On
one CPU thread the clock is processor time, which other processes disturb little; otherwise it is wall-clock time.
FLOPs are counted by torch.utils.flop_counter (matrix products, convolutions, attention). Writes
<out>/benchmarks.json whole or not at all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cosutils.hooks.capture import capture
from cosutils.hooks.inject import inject, inject_each, noise_at_step
from cosutils.hooks.record import record
from cosutils.hooks.reductions import raw
from cosutils.metrics import bootstrap_interval
from cosutils.mini import world
from cosutils.mini.codec import PatchCodec
from cosutils.mini.model import build_pipeline, build_transformer, optimizers
from cosutils.mini.muon import Muon
from cosutils.pipelines.loading import load, seeded, settings, use_preset
from cosutils.report.results import interval_text, record_numbers

BARS = {
    "capture_one": ("<=", 1.02),
    "capture_batch": ("<=", 1.02),
    "sweep_ratio": ("<=", 0.60),
    "flop_rate_one": (">=", 0.30),
    "flop_rate_batch": (">=", 0.30),
    "memory_growth": ("<=", 1.02),
}


def build(model: str, device: str) -> WanImageToVideoPipeline:
    """The named model, or for "random" the embedded model's architecture with seeded random weights."""
    if model == "random":
        torch.manual_seed(0)
        pipe = use_preset(build_pipeline(PatchCodec(), build_transformer()).to(device), "mini")
    else:
        pipe = load(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: WanImageToVideoPipeline, seeds: int = 1, first: int = 0) -> dict[str, Any]:
    """Arguments of one call with this many seeds of one prompt."""
    return {
        "image": Image.new("RGB", (world.SIZE, world.SIZE), "white"),
        "prompt": ["walk through the maze to the red goal"] * seeds,
        "height": world.SIZE,
        "width": world.SIZE,
        "num_frames": world.FRAMES,
        "max_sequence_length": 16,
        "generator": seeded(list(range(first, first + seeds))),
        "output_type": "latent",
        **settings(pipe),
    }


def seconds(pipe: WanImageToVideoPipeline, work: Callable[[], Any]) -> float:
    """Duration of `work()`."""
    cuda = pipe.device.type == "cuda"
    clock = time.process_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def capture_overhead(pipe: WanImageToVideoPipeline, repeats: int, seeds: int) -> list[float]:
    """Run with energy capture everywhere / plain run; the order alternates."""

    def plain() -> None:
        pipe(**call(pipe, seeds) | {"output_type": "np"})

    def watched() -> None:
        with capture(pipe):
            plain()

    ratios = []
    for turn in range(repeats):
        order = (plain, watched) if turn % 2 else (watched, plain)
        took = {work: seconds(pipe, work) for work in order}
        ratios.append(took[watched] / took[plain])
    return ratios


def capture_of_one(model: str, device: str, threads: int) -> float:
    """`capture_overhead` of one video in this process: the median of 16 pairs, after one that warms up."""
    torch.set_num_threads(threads)
    return float(np.median(capture_overhead(build(model, device), 17, 1)[1:]))


def in_fresh_processes(repeats: int, *arguments: Any) -> list[float]:
    """`capture_of_one` in one new process after the other."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(capture_of_one, *([value] * repeats for value in arguments)))


def sweep_ratio(pipe: WanImageToVideoPipeline, repeats: int) -> list[float]:
    """Noise at each step: one recording and the steps from the noise on / a full run for every step."""
    edits = [noise_at_step(step) for step in range(call(pipe)["num_inference_steps"])]

    def naive() -> None:
        for edit in edits:
            with inject(pipe, edit):
                pipe(**call(pipe))

    def shared() -> None:
        with record(pipe) as run:
            pipe(**call(pipe))
        for _ in inject_each(pipe, run, edits, **call(pipe)):
            pass

    return [seconds(pipe, shared) / seconds(pipe, naive) for _ in range(repeats)]


def flop_rate(pipe: WanImageToVideoPipeline, repeats: int, seeds: int) -> list[float]:
    """FLOP/s of a whole call / FLOP/s of a matrix product just before it."""
    # fused attention on the CPU is not counted, its parts are
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe(**call(pipe, seeds))
    size, products = 1024, 10
    a, b = torch.randn(2, size, size, device=pipe.device)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b)

    ratios = []
    for _ in range(repeats):
        matmul = products * 2 * size**3 / seconds(pipe, multiply)
        ratios.append(counter.get_total_flops() / seconds(pipe, lambda: pipe(**call(pipe, seeds))) / matmul)
    return ratios


def muon_ratio(repeats: int) -> list[float]:
    """One step of `Muon` / one of torch's own, on the matrices of three blocks; the order alternates."""
    matrices = optimizers(build_transformer(layers=3))[0].param_groups[0]["params"]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    steps = [Muon(matrices, lr=1e-6).step, torch.optim.Muon(matrices, lr=1e-6, adjust_lr_fn="match_rms_adamw").step]
    ratios = []
    for turn in range(repeats + 1):
        took = {}
        for step in steps if turn % 2 else steps[::-1]:
            start = time.perf_counter()
            step()
            took[step] = time.perf_counter() - start
        ratios.append(took[steps[0]] / took[steps[1]])
    return ratios[1:]


def peak_bytes(pipe: WanImageToVideoPipeline) -> int:
    """Most memory held so far, on the device, or by the process where that is the CPU."""
    if pipe.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_growth(pipe: WanImageToVideoPipeline) -> tuple[float, float]:
    """Peak after 16 streamed samples / after 4, and what it would be if nothing were let go / after 4.

    Each sample keeps its recording and the raw states of all layers until the next one. Must be measured
    first.
    """
    peaks, kept = {}, 0
    for sample in range(16):
        with ExitStack() as stack:
            run = stack.enter_context(record(pipe))
            states = stack.enter_context(capture(pipe, reduce=raw))
            pipe(**call(pipe, first=sample))
        kept = sum(t.nbytes for series in (run.x, run.v, run.x0, states) for t in series.values())
        peaks[sample + 1] = peak_bytes(pipe)
    return peaks[16] / peaks[4], (peaks[4] + 12 * kept) / peaks[4]


def main() -> int:
    """Measure, print one line for each number, write the record; 1 if a bar is missed."""
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__, formatter_class=raw_text)
    parser.add_argument("--model", help='"cos-mini" (default where it is there), a folder, or "random"')
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="runs")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2, got {options.repeats}")
    torch.set_num_threads(options.threads)
    model = options.model
    try:
        pipe = build(model or "cos-mini", options.device)
    except FileNotFoundError:
        if model is not None:
            raise
        model, pipe = "random", build("random", options.device)
    growth, unstreamed = memory_growth(pipe)
    measured = {
        "capture_one": in_fresh_processes(options.repeats, model or "cos-mini", options.device, options.threads),
        "capture_batch": capture_overhead(pipe, 2 * options.repeats, 8),
        "sweep_ratio": sweep_ratio(pipe, options.repeats),
        "flop_rate_one": flop_rate(pipe, options.repeats, 1),
        "flop_rate_batch": flop_rate(pipe, options.repeats, 8),
        "muon": muon_ratio(options.repeats),
    }
    numbers = {"memory_growth": {"value": growth}, "memory_growth_if_kept": {"value": unstreamed}}
    for name, ratios in measured.items():
        value, low, high = bootstrap_interval(ratios, np.median)
        numbers[name] = {"value": value, "low": low, "high": high, "n": len(ratios)}
    missed = 0
    for name, number in numbers.items():
        sign, bar = BARS.get(name, ("", None))
        good = bar is None or (number["value"] <= bar if sign == "<=" else number["value"] >= bar)
        missed += not good
        verdict = "" if bar is None else f"   bar {sign} {bar}: {'met' if good else 'MISSED'}"
        print(f"{name:22s} {interval_text(number, 3)}{verdict}")
    provenance = {
        "model": model or "cos-mini",
        "device": options.device,
        "threads": options.threads,
        "settings": settings(pipe),
    }
    print("written to", record_numbers(options.out, "benchmarks", numbers, provenance))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
