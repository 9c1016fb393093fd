"""What looking costs at the size of the paper's model: two experts of Wan2.2-I2V-A14B with random weights, on a GPU.

    python -m benchmarks.gpu --out data/results/gpu.json                   # about 15 minutes on one H100 [estimate]
    python -m benchmarks.gpu --out data/results/gpu.json --only identity,capture,merge    # 7 of them [estimate]
    python -m benchmarks.gpu --out runs/gpu-tiny.json --size tiny             # the same code in seconds, also on a CPU

Needs 80 GB of GPU memory and no download: weights, VAE and prompt embeddings are drawn on the device. The runs have the
preset "paper" (bfloat16, guidance 5, both experts), 480 x 480 pixels and 81 frames, without decoding. Time does not
depend on what the weights are. Parts, each against plain runs beside it:

identity  are the final latents of two plain runs, and of a plain and an observed one (recording, energy of all
          layers at all steps), equal bit by bit: 1 or 0                                                observed = 1
capture   run with energy capture at all layers and steps / plain run                                   <= 1.005
authors   run that copies every block's state to the host in float32, `.detach().cpu().float()`, of the same
          passes, and keeps those of one step / plain run
ensemble  run of three seeds, merged at all steps in a quarter of the layers / plain run
merge     three seeds merged at the first 1 or 3 steps, one goes on / plain run                         <= 1.15
and of each part the peak of GPU memory in GB (10^9 bytes), without the authors'                        <= 78

A run has `--steps` steps. A step is timed from its first forward to the end of the solver's, the rest (the image
through the VAE, and so on) is the fixed time; the ratios are those of a run of as many steps as the preset has, 50:
fixed time and 50 times the median step, extrapolated unless --steps is 50. They are formed from neighbours in time;
the median over the repeats is given with a bootstrap interval. Every part that is done is written to --out at once,
whole or not at all, and joins what an earlier call left there; a file of other settings or another GPU is refused.
The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
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
from cosutils.hooks.ensemble import ensemble, merge_then_single
from cosutils.hooks.record import record
from cosutils.metrics import bootstrap_interval
from cosutils.pipelines.check import experts
from cosutils.pipelines.loading import seeded, settings, use_preset
from cosutils.report.results import interval_text, read_numbers, record_numbers

BARS = {
    "observing_identical": (">=", 1),
    "capture_ratio": ("<=", 1.005),
    "merge_1_ratio": ("<=", 1.15),
    "merge_3_ratio": ("<=", 1.15),
    "peak_gb_plain": ("<=", 78),
    "peak_gb_capture": ("<=", 78),
    "peak_gb_ensemble": ("<=", 78),
    "peak_gb_merge": ("<=", 78),
}
SEEDS = 3
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


def expert(size: Size, device: torch.device, seed: int) -> WanTransformer3DModel:
    """A transformer with seeded random weights, drawn on the device in bfloat16; norms and time embedding in float32,
    as `from_pretrained` keeps them.
    """
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = WanTransformer3DModel(**size.transformer).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, parameter in model.named_parameters():
        if any(kept in name.split(".") for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return model


def build(size: Size, device: torch.device) -> WanImageToVideoPipeline:
    """The pipeline of two experts without text encoder, with the preset "paper"."""
    first, second = expert(size, device, 1), expert(size, device, 2)
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
    texts = torch.randn(2, size.text, width, generator=seeded(0)).to(device, torch.bfloat16)
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
    """One piece of work: seconds of each step and of all else (`fixed`), peak of GPU memory in GB (None on a CPU)."""

    steps: list[float] = field(default_factory=list)
    fixed: float = 0.0
    peak: float | None = None

    def run(self, count: int, merged: int = 0) -> float:
        """Seconds of a run of `count` steps, the first `merged` of them like the first that was timed here."""
        single = statistics.median(self.steps[bool(merged) :])
        return self.fixed + merged * self.steps[0] + (count - merged) * single


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

    def begin(module: Any, arguments: tuple) -> None:
        if not marks or len(marks[-1]) == 2:
            marks.append([clock.mark()])

    def end(pipe: Any, step: int, time: Any, tensors: dict) -> dict:
        marks[-1].append(clock.mark())
        return tensors

    hooks = [model.register_forward_pre_hook(begin) for model in experts(pipe).values()]
    if clock.cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = clock.mark()
    try:
        work(callback_on_step_end=end)
    finally:
        for hook in hooks:
            hook.remove()
    total = clock.between(start, clock.mark())
    steps = [clock.between(*pair) for pair in marks]
    peak = torch.cuda.max_memory_allocated() / 1e9 if clock.cuda else None
    return Timed(steps, total - sum(steps), peak)


@contextmanager
def copied(pipe: WanImageToVideoPipeline) -> Iterator[None]:
    """Copy the states of all blocks to the host in float32 as the authors do, keeping those of one step.

    Only the first of a step's calls is copied, that of the positive prompt.
    """
    kept: dict[int, Tensor] = {}

    def keeper(layer: int) -> Callable[..., None]:
        turns = count()

        def keep(block: torch.nn.Module, arguments: tuple, states: Tensor) -> None:
            if next(turns) % (1 + pipe.do_classifier_free_guidance) == 0:
                kept[layer] = states.detach().cpu().float()

        return keep

    with ExitStack() as stack:
        for model in experts(pipe).values():
            for layer, block in enumerate(model.blocks):
                stack.callback(block.register_forward_hook(keeper(layer)).remove)
        yield


def number(values: list[float]) -> dict[str, float]:
    """Median with its bootstrap interval, as `record_numbers` takes it."""
    value, low, high = bootstrap_interval(values, np.median)
    return {"value": value, "low": low, "high": high, "n": len(values)}


class Bench:
    """The parts; each returns its numbers. whole: steps of the run that the ratios speak of."""

    def __init__(self, pipe: WanImageToVideoPipeline, size: Size, steps: int, repeats: int) -> None:
        self.pipe, self.size, self.steps, self.repeats = pipe, size, steps, repeats
        self.whole = settings(pipe)["num_inference_steps"]
        count = size.transformer["num_layers"]
        self.layers = range(count // 2, 3 * count // 4)  # the paper's 20 to 29 of 40
        self.plain(num_inference_steps=2)  # warms up

    def plain(self, seeds: int = 1, **changes: Any) -> Tensor:
        """Latents of a run."""
        return self.pipe(**call(self.pipe, self.size, self.steps, seeds) | changes).frames

    def against_plain(
        self, part: str, work: Callable[..., Any], repeats: int, merges: tuple[int, ...] = (0,)
    ) -> Numbers:
        """Ratios of `work` to a plain run beside it, whose order alternates; one for each number of merged steps."""
        pairs = []
        for turn in range(repeats):
            order = (self.plain, work) if turn % 2 else (work, self.plain)
            took = {one: timed(self.pipe, one) for one in order}
            pairs.append((took[self.plain], took[work]))
        numbers = {"step_seconds": number([step for plain, _ in pairs for step in plain.steps])}
        numbers["fixed_seconds"] = number([plain.fixed for plain, _ in pairs])
        for merged in merges:
            name = f"{part}_{merged}_ratio" if merged else f"{part}_ratio"
            numbers[name] = number([other.run(self.whole, merged) / plain.run(self.whole) for plain, other in pairs])
        if pairs[0][0].peak is not None:
            numbers["peak_gb_plain"] = {"value": max(plain.peak for plain, _ in pairs)}
            numbers[f"peak_gb_{part}"] = {"value": max(other.peak for _, other in pairs)}
        return numbers

    def identity(self) -> Numbers:
        """Whether runs are repeated, and observed, bit by bit."""
        first, again = self.plain(), self.plain()
        with record(self.pipe), capture(self.pipe):
            observed = self.plain()
        equal = {"repeat_identical": again, "observing_identical": observed}
        return {name: {"value": float(torch.equal(first, other))} for name, other in equal.items()}

    def capture(self) -> Numbers:
        """Energy of all layers at all steps."""

        def work(**changes: Any) -> None:
            with capture(self.pipe):
                self.plain(**changes)

        return self.against_plain("capture", work, 2 * self.repeats)

    def authors(self) -> Numbers:
        """Every state to the host."""

        def work(**changes: Any) -> None:
            with copied(self.pipe):
                self.plain(**changes)

        return self.against_plain("authors", work, self.repeats)

    def ensemble(self) -> Numbers:
        """Three seeds from the first step to the last."""

        def work(**changes: Any) -> None:
            with ensemble(self.pipe, self.layers, range(self.steps)):
                self.plain(SEEDS, **changes)

        return self.against_plain("ensemble", work, self.repeats)

    def merge(self) -> Numbers:
        """Three seeds at step 0, one of them from step 1 on."""

        def work(**changes: Any) -> None:
            arguments = call(self.pipe, self.size, self.steps, SEEDS) | changes
            merge_then_single(self.pipe, layers=self.layers, steps=0, **arguments)

        return self.against_plain("merge", work, self.repeats, merges=(1, 3))


PARTS = ("identity", "capture", "authors", "ensemble", "merge")


def facts(size: str, device: torch.device, steps: int, whole: int, pipe: WanImageToVideoPipeline) -> dict[str, Any]:
    """What must agree between the calls that share a file."""
    cuda = device.type == "cuda"
    chosen = SIZES[size]
    stride, side = (
        pipe.vae_scale_factor_temporal,
        pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size[1],
    )
    return {
        "size": size,
        "weights": "random",
        "preset": "paper",
        "pixels": chosen.pixels,
        "frames": chosen.frames,
        "tokens": ((chosen.frames - 1) // stride + 1) * (chosen.pixels // side) ** 2,
        "parameters": sum(weight.numel() for weight in pipe.transformer.parameters()),
        "steps_measured": steps,
        "ratios_of_steps": whole,
        "extrapolated": steps != whole,
        "seeds": SEEDS,
        "device": torch.cuda.get_device_name() if cuda else device.type,
        "cuda": torch.version.cuda if cuda else None,
        "libraries": [f"torch {torch.__version__}", f"diffusers {diffusers.__version__}"],
    }


def earlier(out: Path, given: dict[str, Any]) -> tuple[Numbers, dict[str, str]]:
    """Numbers and commands of the parts in `out`, none where it does not exist; ValueError if its settings differ."""
    if not out.is_file():
        return {}, {}
    held = json.loads(out.read_text(encoding="utf-8")).get("provenance", {})
    for name, value in given.items():
        if held.get(name) != value:
            raise ValueError(f"{out} has {name} {held.get(name)!r}, this call {value!r}: name another file with --out")
    numbers = read_numbers(out)
    return {name: {k: v for k, v in one.items() if v is not None} for name, one in numbers.items()}, held["parts"]


def report(numbers: Numbers, barred: bool) -> int:
    """Print one line for each number; 1 if a bar is missed. `barred`: whether the bars are meant for this size."""
    missed = 0
    for name, one in numbers.items():
        sign, bar = BARS.get(name, ("", None)) if barred else ("", None)
        good = bar is None or (one["value"] <= bar if sign == "<=" else one["value"] >= bar)
        missed += not good
        verdict = "" if bar is None else f"   bar {sign} {bar}: {'met' if good else 'MISSED'}"
        print(f"{name:20s} {interval_text(one, 4)}{verdict}")
    return int(missed > 0)


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen parts, write and print the numbers; 1 if a bar is missed."""
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__, formatter_class=raw_text)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(arguments)
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if options.steps < 2 or options.repeats < 2:
        parser.error(f"--steps and --repeats must be at least 2, got {options.steps} and {options.repeats}")
    if options.out.suffix != ".json":
        parser.error(f"--out must name a .json file, got {options.out}")
    if (options.device == "cuda" and not torch.cuda.is_available()) or (
        options.size == "full" and options.device == "cpu"
    ):
        parser.error("no CUDA GPU in use: --size full needs one of 80 GB; --size tiny --device cpu runs anywhere")
    size, device = SIZES[options.size], torch.device(options.device)
    pipe = build(size, device)
    given = facts(options.size, device, options.steps, settings(pipe)["num_inference_steps"], pipe)
    try:
        numbers, commands = earlier(options.out, given)
    except ValueError as error:
        parser.error(str(error))
    bench = Bench(pipe, size, options.steps, options.repeats)
    shown = " ".join(sys.argv[1:] if arguments is None else arguments)
    for part in parts:
        numbers |= getattr(bench, part)()
        commands[part] = f"python -m benchmarks.gpu {shown}"
        record_numbers(options.out.parent, options.out.stem, numbers, given | {"parts": commands})
    if given["extrapolated"]:
        print(f"ratios: of a run of {bench.whole} steps [extrapolated from runs of {options.steps} steps]")
    status = report(numbers, barred=options.size == "full")
    print("written to", options.out)
    return status


if __name__ == "__main__":
    sys.exit(main())
