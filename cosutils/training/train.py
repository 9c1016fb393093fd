"""Train cos-mini: flow matching (paper, Eq. 1) on puzzles made on the fly.

One machine without a GPU:  OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m cosutils.training.train --out runs/cos-mini
With a GPU:                 python -m cosutils.training.train --out runs/cos-mini --device cuda --batch 1024

Resumes from `--out` where it stopped. Writes there `log.jsonl`, `checkpoint.pt` and `model/` (diffusers format). The
learning rate is constant and falls to zero over the last `--cooldown` share of `--samples`; a run that was stopped can
be finished with fewer or more samples than first planned.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from ..mini import tasks, text
from ..mini.codec import PatchCodec
from ..mini.model import build_pipeline, build_transformer, condition, teach
from ..pipelines.schedule import shifted
from .evaluate import TRAIN, VALIDATION, scores

__all__ = ["Puzzles", "train"]

DROPOUT = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance
NOISE_SHIFT = 8.0  # of the noise levels trained on: answers are decided above s = 0.9, where half of the draws fall
HARD = 0.6  # share of puzzles at the default difficulty, the others at any


class Puzzles(IterableDataset):
    """Endless training batches (ids uint8 (batch, 17, 10, 10), prompts), a pure function of the running number."""

    def __init__(self, weights: dict[str, float], batch: int, rank: int, ranks: int, start: int):
        self.weights, self.batch, self.rank, self.ranks, self.start = weights, batch, rank, ranks, start

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        lane, lanes = (worker.id, worker.num_workers) if worker else (0, 1)
        number = self.start + self.rank + self.ranks * lane
        names, shares = list(self.weights), np.array(list(self.weights.values())) / sum(self.weights.values())
        while True:
            films, prompts = [], []
            for _ in range(self.batch):
                rng = np.random.default_rng([7, number])
                name = names[rng.choice(len(names), p=shares)]
                level = None if rng.random() < HARD else int(rng.choice(tasks.get(name).DIFFICULTIES))
                puzzle = tasks.sample(name, TRAIN.start + number, level)
                film = puzzle.films[list(puzzle.films)[rng.integers(len(puzzle.films))]]
                films.append(film)
                prompts.append("" if rng.random() < DROPOUT else puzzle.prompt)
                number += self.ranks * lanes
            yield torch.from_numpy(np.stack(films)), prompts


def fit_codec() -> PatchCodec:
    """The codec, fitted to 400 training films of each task."""
    films = [tasks.sample(name, TRAIN.start + k).ids for name in tasks.NAMES for k in range(400)]
    return PatchCodec.fit(np.stack(films))


def optimizers(model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inside = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(inside, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01),
    ]


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
    model.load_state_dict(weights)


def average(decay: float):
    """Exponential moving average of the weights that starts fast."""

    def update(averaged, current, count):
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


def validate(pipe, weights, steps: int, each: int, rank: int, ranks: int) -> dict[str, list[float]]:
    """Mean score and solve rate of every task on validation puzzles, shared out over the processes."""
    puzzles = [tasks.sample(name, VALIDATION.start + k) for name in weights for k in range(each)]
    mine = puzzles[rank::ranks]
    gathered = [None] * ranks
    dist.all_gather_object(gathered, [(p.task, s.total, s.solved) for p, s in zip(mine, scores(pipe, mine, steps))])
    rows = sum(gathered, [])

    def mean(name: str, column: int) -> float:
        return round(float(np.mean([row[column] for row in rows if row[0] == name])), 3)

    return {name: [mean(name, 1), mean(name, 2)] for name in weights}


def save(folder: Path, state: dict, pipe) -> None:
    """Write checkpoint and model under temporary names, then rename."""
    torch.save(state, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")
    shutil.rmtree(folder / "model.tmp", ignore_errors=True)
    pipe.save_pretrained(folder / "model.tmp")
    shutil.rmtree(folder / "model", ignore_errors=True)
    os.replace(folder / "model.tmp", folder / "model")


def train(out: Path, weights: dict[str, float], samples: int, batch: int, rate: float, layers: int, seed: int,
          device: str, cooldown: float, every: int, shift: float, init: Path | None = None,
          teacher: Path | None = None) -> None:  # fmt: skip
    """Train until `samples` films were seen. batch: films per process; rate: peak learning rate; every: films between
    two checkpoints; shift: of the noise levels drawn; init: a pipeline folder whose weights to start from; teacher: a
    pipeline folder to distil a four-step student from (give it as `init` too)."""
    if "RANK" not in os.environ:  # a single process without torchrun
        os.environ |= dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    source = out / "model" if (out / "checkpoint.pt").exists() else init
    codec = fit_codec() if source is None else PatchCodec.from_pretrained(source / "vae")
    model = build_transformer(codec.config.z_dim, layers).to(device).train()
    tutor = None
    if init is not None:
        inherit(model, WanTransformer3DModel.from_pretrained(init / "transformer"))
    if teacher is not None:
        tutor = WanTransformer3DModel.from_pretrained(teacher / "transformer", torch_dtype=torch.float32)
        tutor = tutor.to(device).eval()
    mean = AveragedModel(model, multi_avg_fn=average(0.9995))
    pipe = build_pipeline(codec, mean.module)
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    opts, seen = optimizers(model), 0
    if (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        for opt, saved in zip(opts, state["optimizers"]):
            opt.load_state_dict(saved)
        seen = state["seen"]
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    codec_on_device = copy.deepcopy(codec).to(device)  # that of `pipe` stays where films are scored
    data = Puzzles(weights, batch, rank, ranks, seen)
    workers = 0 if device == "cpu" else min(14, os.cpu_count() - 1)
    loader = iter(DataLoader(data, batch_size=None, num_workers=workers))
    embeds: dict[str, torch.Tensor] = {}
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + seen + rank)
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    backends = [SDPBackend.MATH] if device == "cpu" else fast
    began, seen_before, smooth = time.monotonic(), seen, None
    while seen < samples:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = rate * min(
                    1, (seen + 1) / min(20_000, 0.05 * samples), (samples - seen) / (cooldown * samples)
                )
        films, prompts = next(loader)
        fresh = [p for p in set(prompts) if p not in embeds]
        if fresh:
            embeds |= dict(zip(fresh, text.embed(tokenizer, encoder, fresh).to(device)))
        words = torch.stack([embeds[p] for p in prompts])
        x0 = codec_on_device.encode_ids(films.to(device))
        x1 = torch.randn(x0.shape, generator=generator, device=device)
        given = condition(codec_on_device, x0)
        with sdpa_kernel(backends), torch.autocast(device, dtype=torch.bfloat16):
            if tutor is None:
                u = torch.rand(len(x0), generator=generator, device=device)
                s = shifted(u, shift)
                x, target = torch.lerp(x0, x1, s[:, None, None, None, None]), x1 - x0
            else:
                part = torch.randint(4, (len(x0),), generator=generator, device=device)
                x, s, target = teach(tutor, x0, x1, given, words, part)
            v = wrapped(torch.cat([x, given], 1), s * 1000, words, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(v.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        mean.update_parameters(model)
        before, seen = seen, seen + batch * ranks
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if seen // every > before // every or seen >= samples:
            mean.module.eval()
            with torch.autocast(device, dtype=torch.bfloat16):
                one, many = (validate(pipe, weights, n, 24, rank, ranks) for n in (1, 10 if tutor is None else 4))
            if rank == 0:
                speed = (seen - seen_before) / (time.monotonic() - began)
                row = dict(seen=seen, loss=round(smooth, 4), per_second=round(speed, 1), one_step=one)
                row["ten_steps" if tutor is None else "four_steps"] = many
                state = dict(model=model.state_dict(), mean=mean.state_dict(), seen=seen,
                             optimizers=[opt.state_dict() for opt in opts])  # fmt: skip
                save(out, state, pipe)
                with open(out / "log.jsonl", "a") as log:
                    log.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
            dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(tasks.NAMES), help="names, with weights if wanted: maze=3,shelf")
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=32, help="films per process and step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cooldown", type=float, default=0.3)
    parser.add_argument(
        "--shift",
        type=float,
        default=NOISE_SHIFT,
        help="of the noise levels drawn; a smaller one for the cool-down",
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="begin with the weights of this folder, such as data/cos-mini; fewer --layers take blocks at even distances",
    )
    parser.add_argument("--teacher", type=Path, help="distil a four-step student from this pipeline folder")
    parser.add_argument("--every", type=int, default=30_000, help="films between two checkpoints")
    args = vars(parser.parse_args())
    pairs = (entry.partition("=")[::2] for entry in args.pop("tasks").split(","))
    weights = {name: float(weight or 1) for name, weight in pairs}
    for name in weights:
        tasks.get(name)
    train(weights=weights, **args)


if __name__ == "__main__":
    main()
