"""Train cos-mini: flow matching (paper, Eq. 1) on puzzles made on the fly.

One machine without a GPU:  OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m cosutils.training.train --out runs/cos-mini
With a GPU:                 python -m cosutils.training.train --out runs/cos-mini --device cuda --batch 1024

Writes `log.jsonl`, `checkpoint.pt` and `model/` (diffusers format) into `--out`, and goes on from there where it was
stopped. The checkpoint holds all arguments, and a run goes on with the same ones only: but with any number of
processes, on another device, and with fewer or more `--samples` than first planned. The learning rate is constant and
falls to zero over the last `--cooldown` share of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from .._check import whole
from .._files import new_folder, read_log, remove_leftovers, restore_folder, sha256, writable_folder, write, write_text
from ..mini import split, tasks, text, world
from ..mini.codec import PatchCodec
from ..mini.memory import RememberingWan
from ..mini.model import SHIFT, build_pipeline, build_transformer, condition, optimizers, teach
from ..pipelines.schedule import shifted
from .evaluate import scores

__all__ = ["Plan", "Puzzles", "read_state", "train"]

DROPOUT = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance
NOISE_SHIFT = 8.0  # of the noise levels trained on: answers are decided above s = 0.9, where half of the draws fall
HARD = 0.6  # share of puzzles at the default difficulty, the others at any
VALIDATED = 24  # puzzles of each task at every checkpoint
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
APART = 10**12  # training puzzles between those of one training seed and those of the next
SEEDS = split.FURTHER // APART  # training seeds that there is room for
FREE = ("out", "samples", "every", "device", "precision")  # arguments that a run may go on with others of


@dataclass(frozen=True)
class Plan:
    """The arguments of a training run; TypeError, ValueError or FileNotFoundError names the first that cannot be.

    out: the run's folder; weights: share of each task; samples: films to be seen; batch: films per process and step;
    rate: peak learning rate; layers: blocks of the model; memory: a `RememberingWan`, half of whose samples see the
    estimate of a first pass (self-conditioning); cooldown: the share of `samples` in which the rate falls to zero;
    every: films between two checkpoints; shift: of the noise levels drawn; precision: "float32", "bfloat16", or "auto"
    for the faster of both on this machine; split: "seed", or "content" to leave out every puzzle that `split.part`
    keeps for reports and validation; lengths: numbers of frames in which films are told, `world.retimed`, one for
    each step and drawn at random; seed: of films and noise; perturb: how many times its noise a state gets once more,
    unknown to the model (input perturbation, Ning et al. 2023, arXiv 2301.11706), so that it meets states that a run
    has spoilt; rollout: half of the samples are states of the model's own runs, of 4 to so many steps, from which it
    learns the way to the truth (0: none); init: a pipeline folder whose weights to start from;
    teacher: a pipeline folder to distil a four-step student from (give it as `init` too), which has no memory.
    """

    out: Path
    weights: dict[str, float]
    samples: int = 2_000_000
    batch: int = 32
    rate: float = 3e-3
    layers: int = 10
    memory: bool = False
    seed: int = 0
    device: str = "cpu"
    cooldown: float = 0.3
    every: int = 30_000
    shift: float = NOISE_SHIFT
    precision: str = "auto"
    split: str = "seed"
    lengths: tuple[int, ...] = (world.FRAMES,)
    perturb: float = 0.0
    rollout: int = 0
    init: Path | None = None
    teacher: Path | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "layers", "every"):
            whole(getattr(self, name), name, least=1)
        if whole(self.seed, "seed", least=0) >= SEEDS:
            raise ValueError(f"seed must be below {SEEDS}, got {self.seed}")
        for name in ("rate", "cooldown", "shift"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        if not 0 <= self.perturb < math.inf:
            raise ValueError(f"perturb must be a number from 0 on, got {self.perturb!r}")
        if self.perturb and self.teacher is not None:
            raise ValueError("a student learns from its teacher's states: leave out either perturb or teacher")
        if 0 < whole(self.rollout, "rollout", least=0) < 4:
            raise ValueError(f"own runs have 4 steps or more, got rollout={self.rollout}")
        if self.rollout and (self.perturb or self.memory or self.teacher is not None or len(self.lengths) > 1):
            raise ValueError("rollout goes without perturb, memory, teacher and several lengths: leave out it or them")
        if self.rollout and self.batch < 2:
            raise ValueError(f"half of a batch are own states: it needs 2 or more, got batch={self.batch}")
        if self.cooldown > 1:
            raise ValueError(f"cooldown is a share of the samples, at most 1, got {self.cooldown!r}")
        for name, known in (
            ("device", ("cpu", "cuda")),
            ("precision", ("auto", *PRECISIONS)),
            ("split", ("seed", "content")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.lengths:
            raise ValueError("no length to train on: lengths must not be empty")
        for frames in self.lengths:
            world.retimed(frames)
        if not self.weights:
            raise ValueError("no task to train on: weights must not be empty")
        for task, weight in self.weights.items():
            tasks.get(task)
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of {task} must be a positive number, got {weight!r}")
        if self.memory and self.teacher is not None:
            raise ValueError("a student has no memory: leave out either memory or teacher")
        for name in ("out", "init", "teacher"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).expanduser())
        for folder in (self.init, self.teacher):
            if folder is not None and not (folder / "model_index.json").is_file():
                raise FileNotFoundError(f"{folder} is no pipeline folder: it has no model_index.json")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: this machine has no GPU that torch can use")

    def arguments(self) -> dict[str, Any]:
        """All of them as JSON holds them; a folder is told by its name and the digest of its weights."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "out"}
        found["lengths"] = ", ".join(map(str, self.lengths))
        found["weights"] = ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items())
        for name in ("init", "teacher"):
            if (folder := found[name]) is not None:
                weights = sha256(folder / "transformer" / "diffusion_pytorch_model.safetensors")
                found[name] = f"{folder.name} (weights {weights[:12]})"
        return found


class Puzzles(IterableDataset):
    """Endless training batches (ids uint8 (batch, T, 10, 10), prompts), a pure function of the running number.

    by_content: leave out the puzzles that `split.part` keeps for reports and validation. lengths: T is one of them for
    each batch, 17 alone by default.
    """

    def __init__(
        self,
        weights: dict[str, float],
        batch: int,
        rank: int,
        ranks: int,
        start: int,
        by_content: bool = False,
        lengths: tuple[int, ...] = (world.FRAMES,),
    ):
        self.weights, self.batch, self.rank, self.ranks, self.start = weights, batch, rank, ranks, start
        self.by_content, self.lengths = by_content, lengths

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        lane, lanes = (worker.id, worker.num_workers) if worker else (0, 1)
        number = self.start + self.rank + self.ranks * lane
        names, shares = list(self.weights), np.array(list(self.weights.values())) / sum(self.weights.values())
        while True:
            films, prompts = [], []
            told = world.retimed(np.random.default_rng([8, number]).choice(self.lengths))
            for _ in range(self.batch):
                rng = np.random.default_rng([7, number])
                name = names[rng.choice(len(names), p=shares)]
                level = None if rng.random() < HARD else int(rng.choice(tasks.get(name).DIFFICULTIES))
                puzzle = split.training(name, number, level, self.by_content)
                film = puzzle.films[list(puzzle.films)[rng.integers(len(puzzle.films))]]
                films.append(film[told])
                prompts.append("" if rng.random() < DROPOUT else puzzle.prompt)
                number += self.ranks * lanes
            yield torch.from_numpy(np.stack(films)), prompts


def fit_codec(each: int = 400, by_content: bool = False) -> PatchCodec:
    """The codec, fitted to `each` training films of every task."""
    films = [split.training(name, k, by_content=by_content).ids for name in tasks.NAMES for k in range(each)]
    return PatchCodec.fit(np.stack(films))


def inherit(model, parent) -> None:
    """Take over the parent's weights; a shallower model takes blocks at even distances, the last one included."""
    depth, ratio = len(model.blocks), len(parent.blocks) / len(model.blocks)
    if ratio < 1:
        raise ValueError(f"a model of {depth} blocks cannot begin with the {len(parent.blocks)} blocks of its parent")
    taken = {f"blocks.{round((k + 1) * ratio) - 1}.": f"blocks.{k}." for k in range(depth)}
    weights = {}
    for name, value in parent.state_dict().items():
        block = ".".join(name.split(".")[:2]) + "."
        if not name.startswith("blocks."):
            weights[name] = value
        elif block in taken:
            weights[taken[block] + name.removeprefix(block)] = value
    if isinstance(model, RememberingWan) and not isinstance(parent, RememberingWan):  # nothing is remembered yet
        entry = weights["patch_embedding.weight"]
        weights["patch_embedding.weight"] = torch.cat(
            [entry, torch.zeros_like(entry[:, : model.config.out_channels])], 1
        )
    for name, value in model.state_dict().items():
        if (given := weights.get(name)) is None or given.shape != value.shape:
            shape = "none" if given is None else tuple(given.shape)
            raise ValueError(f"this model's {name} has shape {tuple(value.shape)}, its parent's {shape}")
    model.load_state_dict(weights)


def average(decay: float):
    """Exponential moving average of the weights that starts fast."""

    def update(averaged, current, count):
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


class Pace(NamedTuple):
    """How forward and backward are computed: the precision and the attention's kernel."""

    precision: str
    backends: list[SDPBackend]

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        dtype, reduced = PRECISIONS[self.precision], self.precision != "float32"
        with warnings.catch_warnings(), sdpa_kernel(self.backends), torch.autocast(device.type, dtype, enabled=reduced):
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # norms stay in float32
            yield


def fastest(model, batch: int, device: torch.device, precision: str) -> Pace:
    """The fastest way of a few training steps of `model`, the same on all processes, and a line with the speeds.

    bfloat16 is far slower than float32 where a processor has no units for it. The weights are left as they were.
    """
    batch = min(batch, 256 if device.type == "cuda" else 8)
    config = model.config
    x = torch.zeros(batch, config.in_channels, 5, 10, 10, device=device)
    t, words = torch.zeros(batch, device=device), torch.zeros(batch, text.MAX_LENGTH, config.text_dim, device=device)
    kernels = [[SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]]
    if device.type == "cpu":
        kernels = [[SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION]]
    speeds: dict[tuple[str, int], float] = {}

    def measure(precision: str, kernel: int) -> None:
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            with Pace(precision, kernels[kernel])(device):
                loss = model(x, t, words, return_dict=False)[0].float().square().mean()
            loss.backward()
            model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - begin)
        speed = torch.tensor(batch / min(took[1:]))
        dist.all_reduce(speed)
        speeds[precision, kernel] = float(speed)

    first, *others = list(PRECISIONS) if precision == "auto" else [precision]
    for kernel in range(len(kernels)):
        measure(first, kernel)
    best = max(speeds, key=speeds.__getitem__)
    for other in others:
        measure(other, best[1])
    best = max(speeds, key=speeds.__getitem__)
    if dist.get_rank() == 0:
        found = [f"{p} with {kernels[k][0].name.lower()} {speed:.1f}" for (p, k), speed in speeds.items()]
        print(
            f"films a second: {', '.join(found)}; chosen: {best[0]} with {kernels[best[1]][0].name.lower()}", flush=True
        )
    return Pace(best[0], kernels[best[1]])


@torch.no_grad()
def first_estimate(model: RememberingWan, entry: Tensor, s: Tensor, words: Tensor, count: int) -> Tensor:
    """The memory of a batch, like x_s: x0hat of a pass without one for the first `count` samples, zero for the others.

    entry: x_s and the condition (B, C + 4 + C, F, H, W); s: noise levels (B,); words: embeddings of the prompts.
    """
    x = entry[:, : model.config.out_channels]
    memory = torch.zeros_like(x)
    v = model(entry[:count], s[:count] * 1000, words[:count], return_dict=False)[0].float()
    memory[:count] = x[:count] - wide(s[:count]) * v
    return memory


class OwnRuns:
    """Runs of the model that is trained, each a step further at every batch: own states, without a pass more.

    count: runs at a time; longest: a run has 4 to `longest` steps, of the sampler's noise levels; generator: draws how
    many. `begin` puts the next puzzles in the place of the runs that are over, `advance` takes all a step on. They are
    not in the checkpoint: a resumed training begins them anew.
    """

    def __init__(self, count: int, longest: int, generator: torch.Generator):
        self.longest, self.generator = longest, generator
        self.steps = torch.ones(count, dtype=torch.long, device=generator.device)
        self.step = self.steps.clone()  # all are over
        self.kept: list[Tensor] = []

    def levels(self, step: Tensor) -> Tensor:
        """Noise level of every run at its `step`, (count,)."""
        return shifted(1 - step / self.steps, SHIFT)

    def begin(self, *new: Tensor) -> list[Tensor]:
        """new: x1, x0, condition and words of `count` puzzles, of which those runs that are over take theirs. Returns
        x_s, x0, condition and words of all runs.
        """
        over = self.step == self.steps
        drawn = torch.randint(4, self.longest + 1, over.shape, generator=self.generator, device=over.device)
        self.steps, self.step = torch.where(over, drawn, self.steps), torch.where(over, 0, self.step)
        pairs = zip(new, self.kept or new, strict=True)
        self.kept = [torch.where(over.view(-1, *[1] * (one.ndim - 1)), one, old) for one, old in pairs]
        return self.kept

    def advance(self, v: Tensor) -> None:
        """v: the velocity (count, ...) of the states that `begin` returned."""
        self.kept[0] = self.kept[0] + wide(self.levels(self.step + 1) - self.levels(self.step)) * v.detach()
        self.step = self.step + 1


def wide(values: Tensor) -> Tensor:
    """One number for each sample (B,), as films are multiplied with: (B, 1, 1, 1, 1)."""
    return values[:, None, None, None, None]


def validation(plan: Plan) -> list[tasks.Sample]:
    """The puzzles that a model is looked at with while it is trained: `VALIDATED` of each task."""
    within = "validation" if plan.split == "content" else None
    return [p for name in plan.weights for p in split.draw(name, split.VALIDATION, VALIDATED, within)]


def validate(pipe, puzzles: list[tasks.Sample], steps: int, rank: int, ranks: int) -> dict[str, list[float]]:
    """Mean score and solve rate of every task on `puzzles`, shared out over the processes."""
    mine = puzzles[rank::ranks]
    gathered: list[Any] = [None] * ranks
    found = scores(pipe, mine, steps)
    dist.all_gather_object(gathered, [(p.task, s.total, s.solved) for p, s in zip(mine, found, strict=True)])
    rows = [row for part in gathered for row in part]

    def mean(name: str, column: int) -> float:
        return round(float(np.mean([row[column] for row in rows if row[0] == name])), 3)

    return {name: [mean(name, 1), mean(name, 2)] for name in dict.fromkeys(p.task for p in puzzles)}


def read_state(path: Path) -> dict[str, Any]:
    """What a run's `checkpoint.pt` holds, on the CPU; ValueError where it is damaged or not of this version."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"model", "mean", "optimizers", "seen", "arguments"} - set(state)
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(f"{path} is damaged, so that the run cannot go on from it: {reason}") from error
    if missing:
        raise ValueError(f"{path} holds no {', '.join(sorted(missing))}: another version made it")
    return state


def resumed(plan: Plan) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Checkpoint and log that `plan` goes on from, (None, []) at the beginning; ValueError if its arguments differ.

    A checkpoint that is older than an argument had the default of it.
    """
    restore_folder(plan.out / "model")
    if not (plan.out / "checkpoint.pt").is_file():
        return None, []
    state, mine = read_state(plan.out / "checkpoint.pt"), plan.arguments()
    usual = Plan(plan.out, plan.weights).arguments()
    for name in (name for name in mine if name not in FREE):
        if (theirs := state["arguments"].get(name, usual[name])) != mine[name]:
            raise ValueError(f"the run in {plan.out} has {name} {theirs!r} and cannot go on with {mine[name]!r}: "
                             f"use the same arguments, or another folder and --init {plan.out / 'model'}")  # fmt: skip
    if not (plan.out / "model" / "vae").is_dir():
        raise FileNotFoundError(f"the run in {plan.out} has a checkpoint and no model/vae to go on with")
    return state, [row for row in read_log(plan.out / "log.jsonl") if row["seen"] <= state["seen"]]


def save(folder: Path, state: dict, rows: list[dict], pipe) -> None:
    """Write model, log and checkpoint, each whole or not at all; the checkpoint, which decides, last."""
    with new_folder(folder / "model") as part:
        pipe.save_pretrained(part)
    write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "checkpoint.pt", lambda path: torch.save(state, path))


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, number) of the processes that train together: those of torchrun, or a single one that needs no port."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def own_device(kind: str) -> torch.device:
    """The device of this process: the CPU, or the GPU of its number on this machine (torchrun's LOCAL_RANK)."""
    if kind == "cpu":
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise ValueError(f"process {number} has no GPU of its own: this machine has {torch.cuda.device_count()}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def train(plan: Plan) -> None:
    """Train until `plan.samples` films were seen, from the beginning or from where the run in `plan.out` was stopped.

    ValueError before anything is computed if that run has other arguments or is damaged; FloatingPointError, with
    nothing saved, at the first step whose loss or gradient is not finite.
    """
    state, rows = resumed(plan)
    remove_leftovers(writable_folder(plan.out))
    with processes() as (rank, ranks):
        _train(plan, state, rows, rank, ranks)


def _train(plan: Plan, state: dict | None, rows: list[dict], rank: int, ranks: int) -> None:
    device, samples = own_device(plan.device), plan.samples
    torch.manual_seed(plan.seed)
    source = plan.init if state is None else plan.out / "model"
    by_content = plan.split == "content"
    codec = fit_codec(by_content=by_content) if source is None else PatchCodec.from_pretrained(source / "vae")
    model = build_transformer(codec.config.z_dim, plan.layers, memory=plan.memory).to(device).train()
    tutor = None
    if plan.init is not None and state is None:
        inherit(model, WanTransformer3DModel.from_pretrained(plan.init / "transformer"))
    if plan.teacher is not None:
        tutor = WanTransformer3DModel.from_pretrained(plan.teacher / "transformer", torch_dtype=torch.float32)
        tutor = tutor.to(device).eval()
        if tutor.config.in_channels != model.config.in_channels:
            theirs, mine = tutor.config.in_channels, model.config.in_channels
            raise ValueError(f"the teacher takes {theirs} channels, its student {mine}: give it as init too")
    mean = AveragedModel(model, multi_avg_fn=average(0.9995))
    pipe = build_pipeline(codec, mean.module)
    opts, seen = optimizers(model), 0
    if state is not None:
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        seen = state["seen"]
    pace = fastest(model, plan.batch, device, plan.precision)
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    codec_on_device = copy.deepcopy(codec).to(device)  # that of `pipe` stays where films are scored
    data = Puzzles(plan.weights, plan.batch, rank, ranks, plan.seed * APART + seen, by_content, plan.lengths)
    workers = 0 if device.type == "cpu" else min(14, (os.cpu_count() or 1) - 1)
    loader = iter(DataLoader(data, batch_size=None, num_workers=workers))
    held_out, embeds = validation(plan), dict[str, torch.Tensor]()
    generator = torch.Generator(device).manual_seed(plan.seed * 1_000_003 + seen + rank)
    own = OwnRuns(plan.batch // 2, plan.rollout, generator) if plan.rollout else None
    began, seen_before, smooth = time.monotonic(), seen, None
    while seen < samples:
        warm, left = min(20_000, 0.05 * samples), (samples - seen) / (plan.cooldown * samples)
        for group in (group for opt in opts for group in opt.param_groups):
            group["lr"] = plan.rate * min(1, (seen + 1) / warm, left)
        films, prompts = next(loader)
        if fresh := [p for p in set(prompts) if p not in embeds]:
            found = text.embed(pipe.tokenizer, pipe.text_encoder, fresh).to(device)
            embeds |= dict(zip(fresh, found, strict=True))
        words = torch.stack([embeds[p] for p in prompts])
        x0 = codec_on_device.encode_ids(films.to(device))
        x1 = torch.randn(x0.shape, generator=generator, device=device)
        given = condition(codec_on_device, x0)
        with pace(device):
            if tutor is None:
                u = torch.rand(len(x0), generator=generator, device=device)
                s = shifted(u, plan.shift)
                noise = x1
                if plan.perturb:
                    noise = x1 + plan.perturb * torch.randn(x0.shape, generator=generator, device=device)
                x, target = torch.lerp(x0, noise, wide(s)), x1 - x0
                if own is not None:
                    half = slice(len(own.steps))
                    x[half], truth, given[half], words[half] = own.begin(x1[half], x0[half], given[half], words[half])
                    s[half] = own.levels(own.step)
                    target[half] = (x[half] - truth) / wide(s[half])
            else:
                part = torch.randint(4, (len(x0),), generator=generator, device=device)
                x, s, target = teach(tutor, x0, x1, given, words, part)
            entry, more = torch.cat([x, given], 1), {}
            if plan.memory:
                more["memory"] = first_estimate(model, entry, s, words, len(x0) // 2)
            v = wrapped(entry, s * 1000, words, return_dict=False, **more)[0]
            if own is not None:
                own.advance(v[half].float())
        loss = torch.nn.functional.mse_loss(v.float(), target)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise FloatingPointError(
                f"step {seen // (plan.batch * ranks)}, {seen} films seen: the loss is {loss.item()} and its gradient "
                f"has norm {norm.item()}; nothing was saved since {rows[-1]['seen'] if rows else 0} films"
            )
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        mean.update_parameters(model)
        before, seen = seen, seen + plan.batch * ranks
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if seen // plan.every > before // plan.every or seen >= samples:
            mean.module.eval()
            with pace(device):
                one, many = (validate(pipe, held_out, n, rank, ranks) for n in (1, 10 if tutor is None else 4))
            if rank == 0:
                speed = (seen - seen_before) / (time.monotonic() - began)
                row = dict(seen=seen, loss=round(smooth, 4), per_second=round(speed, 1), one_step=one)
                row["ten_steps" if tutor is None else "four_steps"] = many
                rows.append(row | dict(precision=pace.precision, processes=ranks))
                state = dict(model=model.state_dict(), mean=mean.state_dict(), seen=seen, arguments=plan.arguments(),
                             optimizers=[opt.state_dict() for opt in opts])  # fmt: skip
                save(plan.out, state, rows, pipe)
                print(json.dumps(rows[-1]), flush=True)
            dist.barrier()


def _weights(entries: str) -> dict[str, float]:
    """ "maze=3,shelf" -> {"maze": 3.0, "shelf": 1.0}."""
    found: dict[str, float] = {}
    for name, _, weight in (entry.strip().partition("=") for entry in entries.split(",")):
        if name in found:
            raise ValueError(f"the task {name} is named twice in {entries!r}")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"the weight of {name} must be a number, got {weight!r}") from None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(tasks.NAMES), help="names, with weights if wanted: maze=3,shelf")
    parser.add_argument("--samples", type=int, default=Plan.samples)
    parser.add_argument("--batch", type=int, default=Plan.batch, help="films per process and step")
    parser.add_argument("--rate", type=float, default=Plan.rate)
    parser.add_argument("--layers", type=int, default=Plan.layers)
    parser.add_argument("--memory", action="store_true", help="let the model see its last estimate (self-conditioning)")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--device", default=Plan.device, choices=["cpu", "cuda"])
    parser.add_argument("--cooldown", type=float, default=Plan.cooldown)
    parser.add_argument("--shift", type=float, default=Plan.shift, help="of the noise levels drawn")
    parser.add_argument(
        "--precision", default=Plan.precision, choices=["auto", *PRECISIONS], help="auto: the faster one"
    )
    parser.add_argument(
        "--split", default=Plan.split, choices=["seed", "content"],
        help="content: leave out the puzzles that are kept for reports and validation, whatever their seed",
    )  # fmt: skip
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=Plan.lengths, help="frames in which films are told, of 5, 9, 13, 17"
    )
    parser.add_argument(
        "--perturb",
        type=float,
        default=Plan.perturb,
        help="input perturbation: further noise, as a share of the state's",
    )
    parser.add_argument(
        "--rollout", type=int, default=Plan.rollout,
        help="most steps of the model's own runs, whose states half of the samples are (0: none)",
    )  # fmt: skip
    parser.add_argument(
        "--init",
        type=Path,
        help="begin with the weights of this folder, such as data/cos-mini; fewer --layers take some of its blocks",
    )
    parser.add_argument("--teacher", type=Path, help="distil a four-step student from this pipeline folder")
    parser.add_argument("--every", type=int, default=Plan.every, help="films between two checkpoints")
    args = vars(parser.parse_args())
    try:
        train(Plan(weights=_weights(args.pop("tasks")), lengths=tuple(args.pop("lengths")), **args))
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
