"""Capture where diffusers' context parallelism spreads the tokens of one run over two processes.

Real: two processes that speak through gloo on the CPU, tiny Wan pipelines, diffusers' own `enable_parallelism` (its
cuts before block 0, its joins after the last block, its Ulysses attention in the backend "native"). Not real: the GPUs,
NCCL, and the number of accelerators. diffusers asks for that number, divides by it and fails where it is 0; here it is
told 1. Not tested in a pipeline: ring attention, whose backends need a GPU, and parts of unequal size
(`ulysses_anything`), which diffusers does not join over gloo; `Shard` is tested with them alone.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from safetensors.torch import load_file, save_file

import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cosutils.hooks._shards import Shard
from cosutils.hooks.capture import capture
from cosutils.hooks.ensemble import ensemble
from cosutils.hooks.reductions import energy, projection, raw, region, tokens
from cosutils.hooks.swap import swap

pytestmark = pytest.mark.slow

CASES = {
    "a14b": ("a14b", torch.float32),
    "a14b-bf16": ("a14b", torch.bfloat16),
    "wan21": ("wan21", torch.float32),
    "ti2v5b": ("ti2v5b", torch.float32),
}
GRID = (3, 1, 2)
WANTED = {
    "energy": {},
    "uncond": {"branch": "uncond"},
    "raw": {"reduce": raw, "inputs": True},
    "tokens": {"reduce": tokens([5, 0])},
    "region": {"reduce": tokens(region(frames=[1]))},
    "projection": {"reduce": projection(5)},
    "own": {"reduce": lambda states, grid: states.float().mean(1)},
}
UNEVEN = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
SEEDS = {"prompt": ["the red ball moves"] * 2, "seed": [0, 1]}


def watched(pipe, kind) -> dict[str, torch.Tensor]:
    """Latents of a run, and all it left in the captures of `WANTED`."""
    with ExitStack() as stack:
        open_ = {name: stack.enter_context(capture(pipe, **what)) for name, what in WANTED.items()}
        found = {"latents": pipe(**tiny.call(steps=3, kind=kind)).frames}
    found |= {name: states.stack() for name, states in open_.items()}
    inputs = open_["raw"].inputs
    return found | {"inputs": torch.stack([inputs[key] for key in sorted(inputs)])}


def refusal(context, pipe) -> str:
    """What a run inside `context` says."""
    with pytest.raises(ValueError) as caught, context:
        pipe(**tiny.call(**SEEDS))
    return str(caught.value)


def member(rank: int, folder: Path) -> None:
    """What each of the two processes does; its tensors and sentences go to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2)
    torch.accelerator.device_count = lambda: 1
    shard = Shard(dist.group.WORLD, 9)
    own = UNEVEN[:, [slice(0, 5), slice(5, 9)][rank]]
    found, said = {"whole": shard.whole(own), "chosen": shard.chosen(own, torch.tensor([8, 0, 5, 4]))}, []
    for case, (kind, dtype) in CASES.items():
        pipe = tiny.build(kind, dtype=dtype)
        alone = watched(pipe, kind)
        if case == "a14b":
            with ensemble(pipe, layers=[1], steps=[0]):
                alone["ensemble"] = pipe(**tiny.call(**SEEDS)).frames
        for model in filter(None, (pipe.transformer, pipe.transformer_2)):
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        plain, shapes = pipe(**tiny.call(steps=3, kind=kind)).frames, []
        look = pipe.transformer.blocks[1].register_forward_hook(
            lambda m, a, out, keep=shapes.append: keep(out.shape[1])
        )
        shared = watched(pipe, kind)
        look.remove()
        shared |= {"unwatched": plain, "part": torch.tensor(shapes[0])}
        if case == "a14b":
            with ensemble(pipe, layers=[1], steps=[0]):
                shared["ensemble"] = pipe(**tiny.call(**SEEDS)).frames
            said.append(refusal(swap(pipe, 1, {0: 1}), pipe))
            said.append(refusal(ensemble(pipe, layers=[1], steps=[0], mode="pooled"), pipe))
        for who, made in (("alone", alone), ("shared", shared)):
            found |= {f"{case} {who} {name}": value.contiguous() for name, value in made.items()}
    save_file(found, folder / f"{rank}.safetensors")
    (folder / f"{rank}.txt").write_text("\n".join(said), encoding="utf-8")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"log{rank}").open("w")) for rank in range(2)]
        members = [
            subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        for process in members:
            stack.callback(process.kill)
        statuses = [process.wait(timeout=7200) for process in members]
    assert statuses == [0, 0], "\n".join((folder / f"log{rank}").read_text() for rank in range(2))
    return folder


@pytest.fixture(scope="module", params=CASES)
def case(request, folder):
    """What process 0 found alone, and what both found together."""
    ranks = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]

    def of(rank, who):
        start = f"{request.param} {who} "
        return {name.removeprefix(start): value for name, value in ranks[rank].items() if name.startswith(start)}

    return request.param, of(0, "alone"), of(0, "shared"), of(1, "shared")


def test_every_process_holds_a_part(case):
    _, alone, first, second = case
    assert alone["raw"].shape[3] == 6 and first["part"] == second["part"] == 3


def test_every_process_gets_the_whole_map_of_a_run_alone(case):
    name, alone, first, second = case
    close = {"rtol": 0.05, "atol": 0.1} if name == "a14b-bf16" else {"atol": 2e-5}
    for what, expected in alone.items():
        assert first[what].shape == expected.shape and first[what].dtype == expected.dtype
        assert torch.allclose(first[what], expected, **close), what
        assert torch.equal(first[what], second[what]), what


def test_capturing_changes_nothing(case):
    _, _, first, second = case
    assert torch.equal(first["latents"], first["unwatched"]) and torch.equal(second["latents"], first["unwatched"])


def test_what_travels_reduced_is_what_the_whole_state_holds(case):
    _, _, first, _ = case
    states = first["raw"]
    assert torch.equal(first["tokens"], states[:, :, :, [5, 0]])
    assert torch.equal(first["region"], states[:, :, :, [2, 3]])
    assert torch.allclose(first["energy"], energy(states).unflatten(-1, GRID), rtol=1e-6)
    assert torch.allclose(first["own"], states.float().mean(3), atol=1e-6)


def test_parts_of_unequal_size_are_joined(folder):
    for rank in range(2):
        found = load_file(folder / f"{rank}.safetensors")
        assert torch.equal(found["whole"], UNEVEN) and torch.equal(found["chosen"], UNEVEN[:, [8, 0, 5, 4]])


def test_what_needs_whole_states_is_refused(folder):
    for rank in range(2):
        for what, said in zip(("swap", "pooled"), (folder / f"{rank}.txt").read_text().splitlines(), strict=True):
            assert what in said and "pipe.transformer are spread over 2 processes" in said


if __name__ == "__main__":
    member(int(sys.argv[1]), Path(sys.argv[2]))
