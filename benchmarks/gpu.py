"""What there is to prove on a GPU: identities, what looking costs at the size of the paper's model, training.

    python -m benchmarks.gpu --out data/results/gpu.json                  # about 10 minutes on one H100 [estimate]
    python -m benchmarks.gpu --out data/results/gpu.json --only train     # one part; joins what the file holds
    python -m benchmarks.gpu --out runs/gpu-tiny.json --size tiny --device cpu     # a rehearsal, about a minute

Needs a card of 80 GB and no download: weights, VAE and prompt embeddings are drawn on the device, and time does not
depend on what the weights are. Parts, in this order, each written to --out as soon as it ends:

smoke     the identities of `benchmarks.smoke`, load to resume, on shipped models with one and with two experts, in
          float32 and bfloat16: share of them that hold                                                  = 1
identity  two experts of Wan2.2-I2V-A14B with the preset "paper" (bfloat16, guidance 5), 480 x 480 pixels, 81 frames:
          are the latents of two plain runs, and of a plain and an observed one (recording, energy of all layers at
          all steps), equal bit by bit: 1 or 0                                                           = 1
capture   step with energy capture at all layers / plain step                                            <= 1.005
authors   step that copies every block's state to the host in float32, `.detach().cpu().float()` / plain step
merge     runs of three seeds, merged in a quarter of the layers at all steps (ensemble) or at the first 1 or 3 steps,
          after which one goes on (merge): run / plain run                                               <= 1.15
train     runs of the plan of `cosutils.serial` that are not shipped, one alone and then as many at a time as there
          are cores, until --minutes are over; their folders lie in --runs
and of each part of the large model the peak of GPU memory in GB (10^9 bytes)                            <= 78

Plain and other steps of one run take turns (plain, other, other, plain), so each ratio is of neighbours in time; given
is the median with a bootstrap interval. Ratios of runs are those of a run of as many steps as the preset has, 50:
the call's fixed time (the picture through the VAE, and so on) and 50 times the median step [extrapolated]. A file of
other settings or another GPU is refused. The exit status is 1 if a bar is missed or a part failed.

On a machine with torch and the Hugging Face libraries that has no network, these wheels, made elsewhere, are what else
it needs:

    python -m pip download --no-deps --only-binary=:all: -d .wheels diffusers==0.42.1 ftfy wcwidth importlib_metadata
    python -m pip install --no-index --no-deps --target .site .wheels/*.whl        # there
    PYTHONPATH=.site python -m benchmarks.gpu --out data/results/gpu.json          # there
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from torch import Tensor

from cosutils.hooks.capture import capture
from cosutils.hooks.ensemble import merge_then_single
from cosutils.hooks.record import record
from cosutils.metrics import bootstrap_interval
from cosutils.pipelines.check import experts
from cosutils.pipelines.loading import OFFLOADS, seeded, settings, use_preset
from cosutils.pipelines.schedule import preset as named_preset
from cosutils.report.results import interval_text, read_numbers, record_numbers
from cosutils.scale.cluster import on_processes
from cosutils.serial.plan import name_of, planned
from cosutils.serial.train import Arguments, train

from . import smoke

BARS = {
    "smoke_float32": (">=", 1),
    "smoke_bfloat16": (">=", 1),
    "observing_identical": (">=", 1),
    "capture_ratio": ("<=", 1.005),
    "merge_1_ratio": ("<=", 1.15),
    "merge_3_ratio": ("<=", 1.15),
    "peak_gb_plain": ("<=", 78),
    "peak_gb_capture": ("<=", 78),
    "peak_gb_merge": ("<=", 78),
}
SEEDS = 3
ROOT = Path(__file__).resolve().parents[1]
Numbers = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Size:
    """What is built and run: configurations of transformer and VAE, pixels of a side, frames, tokens of the prompt."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    pixels: int
    frames: int
    text: int


SIZES = {
    "full": Size(
        {"in_channels": 36, "out_channels": 16, "num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128,
         "ffn_dim": 13824, "text_dim": 4096, "freq_dim": 256},
        {}, pixels=480, frames=81, text=512,
    ),
    "tiny": Size(
        {"in_channels": 12, "out_channels": 4, "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 12,
         "ffn_dim": 32, "text_dim": 16, "freq_dim": 16},
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "latents_mean": [0.0] * 4,
         "latents_std": [1.0] * 4},
        pixels=32, frames=9, text=8,
    ),
}  # fmt: skip


def expert(size: Size, device: torch.device, seed: int, dtype: torch.dtype = torch.bfloat16) -> WanTransformer3DModel:
    """A transformer with seeded random weights, drawn on the device in `dtype`; norms and time embedding in float32,
    as `from_pretrained` keeps them.
    """
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = WanTransformer3DModel(**size.transformer).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, parameter in model.named_parameters():
        if any(kept in name.split(".") for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return model


def build(size: Size, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> WanImageToVideoPipeline:
    """The pipeline of two experts without text encoder, with the preset "paper"."""
    first, second = (expert(size, device, seed, dtype) for seed in (1, 2))
    with device:
        vae = AutoencoderKLWan(**size.vae).eval().requires_grad_(False)
    pipe = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=first, transformer_2=second, boundary_ratio=0.9,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return use_preset(pipe, "paper")


def call(pipe: WanImageToVideoPipeline, size: Size, steps: int, seeds: int = 1) -> dict[str, Any]:
    """Arguments of one call with this many seeds of one random prompt; latents are returned."""
    width, device = size.transformer["text_dim"], pipe.device
    texts = torch.randn(2, size.text, width, generator=seeded(0)).to(device, pipe.transformer.dtype)
    return settings(pipe) | {
        "image": Image.new("RGB", (size.pixels, size.pixels), "white"),
        "prompt_embeds": texts[:1].repeat(seeds, 1, 1),
        "negative_prompt_embeds": texts[1:].repeat(seeds, 1, 1),
        "height": size.pixels,
        "width": size.pixels,
        "num_frames": size.frames,
        "num_inference_steps": steps,
        "generator": seeded(list(range(seeds))),
        "output_type": "latent",
    }


@dataclass
class Timed:
    """One call: seconds of each step and of all else (`fixed`), peak of GPU memory of each step in GB (0 on a CPU)."""

    steps: list[float] = field(default_factory=list)
    fixed: float = 0.0
    peaks: list[float] = field(default_factory=list)


def whole_run(fixed: float, step: float, count: int, merged: int = 0, together: float = 0.0) -> float:
    """Seconds of a run of `count` steps, the first `merged` of which take `together` each."""
    return fixed + merged * together + (count - merged) * step


class Clock:
    """Marks in time: of the GPU's work on a GPU, else of the clock on the wall."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds from mark to mark; waits for them."""
        if not self.cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


def timed(pipe: WanImageToVideoPipeline, work: Callable[..., Any]) -> Timed:
    """Time `work(callback_on_step_end=...)`, which calls the pipeline with this argument."""
    clock = Clock(pipe.device.type == "cuda")
    marks: list[list[Any]] = []
    peaks: list[float] = []

    def begin(module: Any, arguments: tuple) -> None:
        if not marks or len(marks[-1]) == 2:
            if clock.cuda:
                torch.cuda.reset_peak_memory_stats()
            marks.append([clock.mark()])

    def end(pipe: Any, step: int, time: Any, tensors: dict) -> dict:
        marks[-1].append(clock.mark())
        peaks.append(torch.cuda.max_memory_allocated() / 1e9 if clock.cuda else 0.0)
        return tensors

    hooks = [model.register_forward_pre_hook(begin) for model in experts(pipe).values()]
    if clock.cuda:
        torch.cuda.synchronize()
    start = clock.mark()
    try:
        work(callback_on_step_end=end)
    finally:
        for hook in hooks:
            hook.remove()
    total = clock.between(start, clock.mark())
    steps = [clock.between(*pair) for pair in marks]
    return Timed(steps, total - sum(steps), peaks)


@contextmanager
def copied(pipe: WanImageToVideoPipeline, steps: Iterable[int]) -> Iterator[list[Tensor]]:
    """Copy the states of all blocks at `steps` to the host in float32 as the authors do; yields those of the last one.

    Only the first of a step's calls is copied, that of the positive prompt.
    """
    kept: list[Tensor] = []
    wanted, passes, forwards = set(steps), 1 + pipe.do_classifier_free_guidance, 0

    def begin(module: torch.nn.Module, arguments: tuple) -> None:
        nonlocal forwards
        forwards += 1

    def keep(block: torch.nn.Module, arguments: tuple, states: Tensor) -> None:
        step, turn = divmod(forwards - 1, passes)
        if turn == 0 and step in wanted:
            kept.append(states.detach().cpu().float())
            del kept[: -len(pipe.transformer.blocks)]

    with ExitStack() as stack:
        for model in experts(pipe).values():
            stack.callback(model.register_forward_pre_hook(begin).remove)
            for block in model.blocks:
                stack.callback(block.register_forward_hook(keep).remove)
        yield kept


def number(values: list[float]) -> dict[str, float]:
    """Median with its bootstrap interval, as `record_numbers` takes it."""
    value, low, high = bootstrap_interval(values, np.median)
    return {"value": value, "low": low, "high": high, "n": len(values)}


@dataclass
class Bench:
    """The parts, by name; each returns its numbers. until: time.monotonic() at which `train` ends."""

    size: Size
    device: torch.device
    repeats: int
    runs: Path
    until: float
    told: dict[str, Any] = field(default_factory=dict)  # by the parts, for the file

    @cached_property
    def pipe(self) -> WanImageToVideoPipeline:
        return build(self.size, self.device)

    def plain(self, steps: int, seeds: int = 1, **changes: Any) -> Tensor:
        """Latents of a run."""
        return self.pipe(**call(self.pipe, self.size, steps, seeds) | changes).frames

    def smoke(self) -> Numbers:
        """Share of the identities that hold, and how far the device's latents are from the CPU's."""
        numbers: Numbers = {}
        broken: dict[str, str] = {}
        self.told["broken"] = broken
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            one = smoke.shipped("cos-mini-two", self.device, dtype)
            found = {}
            for which, subject in (("one expert", one), ("two experts", self.two_experts(dtype))):
                found |= {f"{what}, {which}": result for what, result in smoke.checks(subject)}
            plain = one.run()

            def offloaded(how: str, dtype: torch.dtype = dtype, plain: Tensor = plain) -> bool:
                return torch.equal(plain, smoke.shipped("cos-mini-two", self.device, dtype, how).run())

            for how in OFFLOADS if self.device.type == "cuda" else ():
                found[f"offload {how}"] = smoke.attempt(offloaded, how)
            broken |= {f"{what}, {name}": str(result) for what, result in found.items() if result is not True}
            held = [result is True for result in found.values()]
            numbers[f"smoke_{name}"] = {"value": sum(held) / len(held), "n": len(held)}
            far = smoke.distance(plain, smoke.shipped("cos-mini-two", torch.device("cpu"), dtype).run())
            numbers[f"distance_from_cpu_{name}"] = {"value": far}
        return numbers

    def two_experts(self, dtype: torch.dtype) -> smoke.Subject:
        """A tiny pipeline of the large one's form, with random weights."""
        size = SIZES["tiny"]
        pipe = build(size, self.device, dtype)

        def arguments(*seeds: int) -> dict[str, Any]:
            given = call(pipe, size, smoke.STEPS, len(seeds))
            return given | {"generator": seeded(list(seeds))}

        return smoke.Subject(pipe, arguments)

    def identity(self) -> Numbers:
        """Whether runs are repeated, and observed, bit by bit."""
        first, again = self.plain(2), self.plain(2)
        with record(self.pipe), capture(self.pipe):
            observed = self.plain(2)
        equal = {"repeat_identical": again, "observing_identical": observed}
        return {name: {"value": float(torch.equal(first, other))} for name, other in equal.items()}

    def in_turn(self, part: str, repeats: int, context: Callable[[list[int]], Any]) -> Numbers:
        """Ratios of steps under `context`, which is told them, to the plain ones beside them in the same run."""
        count = 1 + 4 * repeats  # the first one warms up
        others = [step for step in range(1, count) if step % 4 in (2, 3)]

        def work(**changes: Any) -> None:
            with context(others):
                self.plain(count, **changes)

        took = timed(self.pipe, work)
        pairs = [sorted((step, step + 1), key=others.count) for step in range(1, count, 2)]
        plain = [first for first, _ in pairs]
        numbers = {
            "step_seconds": number([took.steps[step] for step in plain]),
            "fixed_seconds": {"value": took.fixed},
            f"{part}_ratio": number([took.steps[other] / took.steps[first] for first, other in pairs]),
        }
        for name, steps in (("plain", plain), (part, others)):
            numbers[f"peak_gb_{name}"] = {"value": max(took.peaks[step] for step in steps)}
        return numbers

    def capture(self) -> Numbers:
        """Energy of all layers."""
        return self.in_turn("capture", 2 * self.repeats, lambda steps: capture(self.pipe, steps=steps))

    def authors(self) -> Numbers:
        """Every state to the host."""
        return self.in_turn("authors", 1, lambda steps: copied(self.pipe, steps))

    def merge(self) -> Numbers:
        """Three seeds at the first two steps, one of them from step 2 on."""
        layers = self.size.transformer["num_layers"]
        merged = range(layers // 2, 3 * layers // 4)  # the paper's 20 to 29 of 40
        count = settings(self.pipe)["num_inference_steps"]

        def work(**changes: Any) -> None:
            arguments = call(self.pipe, self.size, 4, SEEDS) | changes
            merge_then_single(self.pipe, layers=merged, steps=range(2), **arguments)

        alone, ratios, peak = timed(self.pipe, partial(self.plain, 2)), {}, 0.0
        for _ in range(self.repeats):
            took = timed(self.pipe, work)
            together, single = took.steps[1], statistics.median(took.steps[2:])
            plain = whole_run(alone.fixed, single, count)
            for name, steps in (("ensemble", count), ("merge_1", 1), ("merge_3", 3)):
                run = whole_run(took.fixed, single, count, steps, together)
                ratios.setdefault(f"{name}_ratio", []).append(run / plain)
            peak = max(peak, *took.peaks[:2])
        return {name: number(values) for name, values in ratios.items()} | {"peak_gb_merge": {"value": peak}}

    def train(self) -> Numbers:
        """Runs of the testbed's plan that are not shipped."""
        if "pipe" in self.__dict__:
            del self.pipe  # the memory is needed
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        small = {"samples": 8192, "batch": 1024, "width": 16} if self.size is SIZES["tiny"] else {}
        shipped = ROOT / "data" / "serial" / "models"
        todo = [
            args for args in planned(ROOT / "data" / "serial" / "plan.yaml") if not (shipped / name_of(args)).is_dir()
        ]
        todo = [replace(args, **small) for args in todo or [Arguments(seed=9)]]
        work = partial(_train, runs=self.runs, device=self.device.type)
        begun = time.monotonic()
        work(todo[0])
        alone = took = time.monotonic() - begun
        numbers = {"train_films_per_second": {"value": todo[0].samples / alone}}
        done, todo, crew, begun = [name_of(todo[0])], todo[1:], max(1, (os.cpu_count() or 2) // 2), time.monotonic()
        films = 0
        while todo and time.monotonic() + 1.5 * took < self.until:
            wave, start = todo[:crew], time.monotonic()
            for args, error in on_processes(work, wave, len(wave), gpu=self.device.type == "cuda"):
                if error is not None:
                    raise RuntimeError(error)
                done.append(name_of(args))
                films += args.samples
            todo, took = todo[crew:], time.monotonic() - start
            numbers["train_films_per_second_together"] = {"value": films / (time.monotonic() - begun)}
        self.told["trained"] = done
        return numbers | {"trained_runs": {"value": len(done)}}


def _train(args: Arguments, runs: Path, device: str) -> None:
    train(runs / name_of(args), args, device)


PARTS = ("smoke", "identity", "capture", "authors", "merge", "train")


def facts(size: str, device: torch.device) -> dict[str, Any]:
    """What must agree between the calls that share a file."""
    cuda = device.type == "cuda"
    chosen = SIZES[size]
    with torch.device("meta"):
        model = WanTransformer3DModel(**chosen.transformer)
    return {
        "size": size,
        "weights": "random",
        "preset": "paper",
        "pixels": chosen.pixels,
        "frames": chosen.frames,
        "tokens": ((chosen.frames - 1) // 4 + 1) * (chosen.pixels // 16) ** 2,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "ratios_of_steps": named_preset("paper").steps,
        "seeds": SEEDS,
        "device": torch.cuda.get_device_name() if cuda else device.type,
        "cuda": torch.version.cuda if cuda else None,
        "libraries": [f"torch {torch.__version__}", f"diffusers {diffusers.__version__}"],
    }


def earlier(out: Path, given: dict[str, Any]) -> tuple[Numbers, dict[str, Any]]:
    """Numbers of the parts in `out` and what is told of them, none where it does not exist; ValueError if its settings
    differ.
    """
    if not out.is_file():
        return {}, {"parts": {}, "failed": {}}
    held = json.loads(out.read_text(encoding="utf-8")).get("provenance", {})
    for name, value in given.items():
        if held.get(name) != value:
            raise ValueError(f"{out} has {name} {held.get(name)!r}, this call {value!r}: name another file with --out")
    numbers = {name: {k: v for k, v in one.items() if v is not None} for name, one in read_numbers(out).items()}
    return numbers, {name: value for name, value in held.items() if name not in (*given, "versions")}


def report(numbers: Numbers, barred: bool) -> int:
    """Print one line for each number; 1 if a bar is missed. `barred`: whether the bars are meant for this size."""
    missed = 0
    for name, one in numbers.items():
        sign, bar = BARS.get(name, ("", None)) if barred else ("", None)
        good = bar is None or (one["value"] <= bar if sign == "<=" else one["value"] >= bar)
        missed += not good
        verdict = "" if bar is None else f"   bar {sign} {bar}: {'met' if good else 'MISSED'}"
        print(f"{name:32s} {interval_text(one, 4)}{verdict}")
    return int(missed > 0)


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen parts, write and print the numbers; 1 if a bar is missed or a part failed."""
    begun = time.monotonic()
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__, formatter_class=raw_text)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/serial-gpu"), help="folder of the trained runs")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9.5, help="after which no further training is begun")
    options = parser.parse_args(arguments)
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2, got {options.repeats}")
    if options.out.suffix != ".json":
        parser.error(f"--out must name a .json file, got {options.out}")
    if (options.device == "cuda" and not torch.cuda.is_available()) or (
        options.size == "full" and options.device == "cpu"
    ):
        parser.error("no CUDA GPU in use: --size full needs one of 80 GB; --size tiny --device cpu runs anywhere")
    device = torch.device(options.device)
    given = facts(options.size, device)
    try:
        numbers, told = earlier(options.out, given)
    except ValueError as error:
        parser.error(str(error))
    bench = Bench(SIZES[options.size], device, options.repeats, options.runs, begun + 60 * options.minutes, told)
    shown = " ".join(sys.argv[1:] if arguments is None else arguments)
    failed = False
    for part in parts:
        start = time.monotonic()
        try:
            numbers |= getattr(bench, part)()
        except Exception as error:  # the parts after it are still worth their time
            traceback.print_exc()
            told["failed"][part] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            failed = True
        else:
            told["failed"].pop(part, None)
            told["parts"][part] = f"python -m benchmarks.gpu {shown}"
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
        if numbers:
            record_numbers(options.out.parent, options.out.stem, numbers, given | told)
    missed = report(numbers, barred=options.size == "full")
    print("written to", options.out)
    return int(missed or failed)


if __name__ == "__main__":
    sys.exit(main())
