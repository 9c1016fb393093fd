"""Train one model of the testbed: flow matching (paper, Eq. 1) on serial puzzles made on the fly, minutes on
one thread.

    python -m cosutils.serial.train --out runs/serial/one --task ladder --film trail --layers 1 --variant memory

Resumes from `--out` where it stopped, and refuses a folder that was begun with other arguments. Writes there
`arguments.json`, `log.jsonl`, `checkpoint.pt` and, at the end, `weights.safetensors` (the moving average,
float32). On some virtual machines large activations are freed and mapped again at every step; the environment
variables MALLOC_MMAP_THRESHOLD_=1073741824 and MALLOC_TRIM_THRESHOLD_=4294967296 keep them.

Variants: plain (flow matching) · memory (self-conditioned: half of the samples see the estimate of a first
pass) · levels (half of the samples have a noise level for each row of each frame) · rollout (half of the
states are the model's own, two Euler steps from noise) · once (trained at sigma = 1 only: the best one pass).

With `--teacher data/serial/models/<run> --steps 4` and that run's task, film, variant and sizes a student of four
steps is trained instead. It begins with the weights of that run and learns where sixteen steps of it arrive
(progressive distillation in one stage: Salimans & Ho, arXiv 2202.00512).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from .._check import whole
from .._files import read_json, read_log, writable_folder, write, write_json, write_text
from ..mini.memory import RememberingWan
from ..mini.model import optimizers
from ..pipelines.schedule import flow_sigmas, shifted
from . import puzzles as world
from .model import SHIFT, LoopedWan, build_codec, build_transformer, condition, embed, encode, hasten
from .sampling import read, steps_of

__all__ = ["TAUGHT", "VARIANTS", "Arguments", "build", "load_run", "train"]

VARIANTS = ("plain", "memory", "levels", "rollout", "once")
CHUNK = 8192  # films between two checkpoints; data and noise are a pure function of (seed, chunk)
PURE = 0.2  # share of draws at sigma = 1
LOOPS = range(1, 9)
TAUGHT = 16  # steps of a teacher's run


@dataclass(frozen=True)
class Arguments:
    """What a training is determined by.

    teacher, steps: folder of a run and the number of steps of a student of it, which begins with its weights. The
    student's task, film, variant and sizes must be given as its teacher's.
    """

    task: str = "ladder"
    film: str = "trail"
    layers: int = 1
    loops: bool = False
    variant: str = "plain"
    scale: float = 1.0
    seed: int = 0
    samples: int = 131_072
    batch: int = 64
    rate: float = 3e-3
    width: int = 64
    heads: int = 2
    teacher: str = ""
    steps: int = 0

    def check(self) -> None:
        world.lengths(self.task)
        if self.film not in world.FILMS:
            raise ValueError(f"unknown film {self.film!r}: choose from {', '.join(world.FILMS)}")
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}: choose from {', '.join(VARIANTS)}")
        for name in ("layers", "batch", "width", "heads", "samples"):
            whole(getattr(self, name), name, least=1)
        whole(self.seed, "seed", least=0)
        if self.samples % CHUNK:
            raise ValueError(f"samples must be a multiple of {CHUNK}, got {self.samples}")
        if CHUNK % self.batch:
            raise ValueError(f"batch must divide {CHUNK}, got {self.batch}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the {self.heads} heads, got {self.width}")
        if bool(self.teacher) != bool(self.steps):
            raise ValueError(f"a student needs both teacher and steps, got {self.teacher!r} and {self.steps}")
        if self.teacher and (self.loops or self.variant not in ("plain", "memory")):
            raise ValueError(f"a student is plain or has a memory, got {self.variant!r}, loops {self.loops}")
        if self.teacher and (self.steps < 1 or TAUGHT % self.steps):
            raise ValueError(f"steps of a student must divide the {TAUGHT} of its teacher, got {self.steps}")
        for name in ("scale", "rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")


def build(args: Arguments):
    """Codec and untrained transformer of a training; the codec depends on task, film and scale alone."""
    films = world.take(args.task, "train", max(world.lengths(args.task)), 2048)[0].film(args.film)
    torch.manual_seed(args.seed)
    transformer = build_transformer(args.layers, args.variant, args.loops, args.width, args.heads, args.scale)
    return build_codec(args.scale, films), transformer


def load_run(folder: Path):
    """Arguments, codec and transformer of a finished run, or of a shipped one (float16 weights)."""
    args = Arguments(**read_json(folder / "arguments.json"))
    codec, transformer = build(args)
    transformer.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    return args, codec, transformer.eval()


def tutor(args: Arguments) -> WanTransformer3DModel:
    """The teacher of a student. ValueError where it was trained on something else, is of another size, or is a
    student itself.
    """
    theirs, _, transformer = load_run(Path(args.teacher))
    if theirs.teacher:
        raise ValueError(f"{args.teacher} is a student itself: name the run that it learnt from, {theirs.teacher}")
    for name in ("task", "film", "layers", "loops", "variant", "scale", "width", "heads"):
        if getattr(theirs, name) != getattr(args, name):
            raise ValueError(
                f"{name} of a student is that of its teacher, {getattr(theirs, name)!r}, got {getattr(args, name)!r}"
            )
    return hasten(transformer)


def chunk(args: Arguments, number: int) -> np.ndarray:
    """Training films of one chunk, all lengths alike: (CHUNK, 3, 10, 10)."""
    allowed = list(world.lengths(args.task))
    each = -(-CHUNK // len(allowed))
    stride = 40 * each
    skip = (args.seed * 10**5 + number) * stride
    films = [world.take(args.task, "train", length, each, skip)[0].film(args.film) for length in allowed]
    order = np.random.default_rng([args.seed, number, 11]).permutation(each * len(allowed))[:CHUNK]
    return np.concatenate(films)[order]


def loss_of(args: Arguments, model, x0: torch.Tensor, given: torch.Tensor, words: torch.Tensor, draws: torch.Generator):
    """Mean squared error of the velocity, by variant. x0: normalised latents (B, 2, 3, 10, 10)."""
    count, device = len(x0), x0.device

    def rand(*shape):
        return torch.rand(*shape, generator=draws).to(device)

    def call(x, s, **more):
        return model(torch.cat([x, given], 1), s * 1000, words, return_dict=False, **more)[0].float()

    def wide(s):
        return s.view(-1, 1, 1, 1, 1)

    s = shifted(rand(count), SHIFT)
    s = torch.where(rand(count) < (1 if args.variant == "once" else PURE), torch.ones_like(s), s)
    x1 = torch.randn(x0.shape, generator=draws).to(device)
    half = wide(rand(count) < 0.5)
    if args.variant == "levels":
        rows = shifted(rand(count, 3, world.CELLS), SHIFT)
        rows = torch.where(half.view(-1, 1, 1), rows, s[:, None, None])
        x = torch.lerp(x0, x1, rows[:, None, :, :, None])
        return (call(x, rows.flatten(1)) - (x1 - x0)).square().mean()
    x, target, weight, more = torch.lerp(x0, x1, wide(s)), x1 - x0, x0.new_ones(()), {}
    if args.variant == "memory":
        with torch.no_grad():
            memory = torch.zeros_like(x)
            part = slice(count // 2)  # samples are in random order: the first half remembers
            entry = torch.cat([x[part], given[part]], 1)
            v = model(entry, s[part] * 1000, words[part], return_dict=False, memory=memory[part])[0].float()
            memory[part] = x[part] - wide(s[part]) * v
        more["memory"] = memory
    if args.variant == "rollout":
        with torch.no_grad():
            s = torch.where(half.flatten(), s.clamp(0.05, 0.98), s)  # the velocity to the truth is (x - x0) / s
            between = s + (1 - s) * rand(count)
            own = x1 + wide(between - 1) * call(x1, torch.ones_like(s))
            own = own + wide(s - between) * call(own, between)
            x = torch.where(half, own, torch.lerp(x0, x1, wide(s)))
            target = torch.where(half, (x - x0) / wide(s), target)
            weight = torch.where(half, wide(s).square(), weight)  # there the error of x0hat counts, not of v
    return ((call(x, s, **more) - target).square() * weight).mean()


def loss_of_student(args: Arguments, model, teacher, x1: torch.Tensor, given: torch.Tensor, words: torch.Tensor):
    """Mean squared error of the student's velocities: it begins each of its steps where the teacher's run from the
    noise x1 (B, 2, 3, 10, 10) is, and should end it where that run then arrives. With a memory it sees what it
    estimated a step before, and gradients flow back through that.
    """
    run = list(steps_of(teacher, x1, given, words[:1], TAUGHT))
    states = [x for _, x, _ in run[:: TAUGHT // args.steps]] + [run[-1][2]]
    sigmas = flow_sigmas(args.steps, SHIFT).tolist()
    memory, loss = torch.zeros_like(x1), x1.new_zeros(())
    for (x, goal), (s, s_next) in zip(itertools.pairwise(states), itertools.pairwise(sigmas), strict=True):
        more = {"memory": memory} if isinstance(model, RememberingWan) else {}
        level = x.new_full((len(x),), s * 1000)
        v = model(torch.cat([x, given], 1), level, words, return_dict=False, **more)[0].float()
        loss = loss + (v - (x - goal) / (s - s_next)).square().mean() / args.steps
        memory = x - s * v
    return loss


def average(averaged, current, count):
    """Exponential moving average of the weights that starts fast."""
    torch._foreach_lerp_(averaged, current, 1 - min(0.998, (1 + int(count)) / (10 + int(count))))


def validate(args: Arguments, model, codec, embeds, count: int = 256) -> dict[str, list[float]]:
    """Decision accuracy with 1 and 4 steps (a student: with its own) on validation puzzles, by length (a looped
    model: all loops), on the CPU.
    """
    model = deepcopy(model).cpu().eval()
    if isinstance(model, LoopedWan):
        model.loops = LOOPS[-1]
    rows = {}
    for length in list(world.lengths(args.task))[1::2]:
        sample = world.take(args.task, "validation", length, count)[0]
        rows[str(length)] = [round(float(read(model, codec, sample, args.film, embeds, steps).right[-1].mean()), 3)
                             for steps in ((args.steps,) if args.teacher else (1, 4))]  # fmt: skip
    return rows


def train(out: Path, args: Arguments, device: str = "cpu") -> None:
    """Train to the end on a torch device, or go on with what lies in `out`. ValueError where it was begun with
    other arguments.
    """
    args.check()
    writable_folder(out)
    stored = out / "arguments.json"
    teacher = tutor(args).to(device) if args.teacher else None
    if stored.is_file() and Arguments(**read_json(stored)) != args:
        raise ValueError(f"{out} was begun with other arguments, see {stored}: choose another folder")
    if not stored.is_file():
        write_json(stored, asdict(args))
    if (out / "weights.safetensors").is_file():
        return
    codec, model = build(args)
    if teacher is not None:
        model.load_state_dict(teacher.state_dict())
    hasten(model).to(device).train()
    mean = AveragedModel(model, multi_avg_fn=average)
    opts, done = optimizers(model), 0
    if (out / "checkpoint.pt").is_file():
        state = torch.load(out / "checkpoint.pt", weights_only=True, map_location=device)
        if Arguments(**state["arguments"]) != args:
            raise ValueError(f"{out}/checkpoint.pt belongs to other arguments: {state['arguments']}")
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        done = state["chunks"]
    rows = [row for row in read_log(out / "log.jsonl") if row["seen"] <= done * CHUNK] if done else []
    embeds = embed()
    words = embeds.expand(args.batch, -1, -1).to(device)
    chunks, before = args.samples // CHUNK, time.process_time() - (rows[-1]["cpu"] if rows else 0)
    for number in range(done, chunks):
        films, losses = chunk(args, number), []
        draws = torch.Generator().manual_seed(args.seed * 1_000_003 + number)
        for start in range(0, CHUNK, args.batch):
            seen = number * CHUNK + start
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = args.rate * min(
                        1, (seen + 1) / (0.05 * args.samples), (args.samples - seen) / (0.3 * args.samples)
                    )
            x0 = encode(codec, films[start : start + args.batch]).to(device)
            if isinstance(model, LoopedWan):
                model.loops = int(torch.randint(LOOPS[0], LOOPS[-1] + 1, (), generator=draws))
            with sdpa_kernel(SDPBackend.MATH):
                if teacher is None:
                    loss = loss_of(args, model, x0, condition(codec, x0), words, draws)
                else:
                    x1 = torch.randn(x0.shape, generator=draws).to(device)
                    loss = loss_of_student(args, model, teacher, x1, condition(codec, x0), words)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            mean.update_parameters(model)
            losses.append(loss.item())
        row: dict[str, Any] = dict(
            seen=(number + 1) * CHUNK, loss=round(float(np.mean(losses)), 4), cpu=round(time.process_time() - before)
        )
        if (number + 1) % 8 == 0 or number + 1 == chunks:
            row["decision"] = validate(args, mean.module, codec, embeds)
        state = dict(arguments=asdict(args), model=model.state_dict(), mean=mean.state_dict(), chunks=number + 1,
                     optimizers=[opt.state_dict() for opt in opts])  # fmt: skip
        rows.append(row)
        write_text(out / "log.jsonl", "".join(json.dumps(one) + "\n" for one in rows))
        write(out / "checkpoint.pt", partial(torch.save, state))
        print(json.dumps(row), flush=True)
    weights = {name: value.cpu().contiguous() for name, value in mean.module.state_dict().items()}
    write(out / "weights.safetensors", lambda part: save_file(weights, part))
    (out / "checkpoint.pt").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda (default cpu)")
    for name, value in asdict(Arguments()).items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(value), default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    train(given.pop("out"), device=given.pop("device"), args=Arguments(**given))


if __name__ == "__main__":
    main()
