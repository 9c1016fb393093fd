"""Private: the tokens that this process holds where diffusers' context parallelism spreads one run over several.

`enable_parallelism(config=ContextParallelConfig(...))` cuts the tokens (B, N, D) before block 0 into consecutive parts,
one for each process, and joins them after the last block. A hook on a block gets the part (B, n, D) of its own process;
states outside the transformer, what `record` and `inject` see, are whole in every process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..pipelines.check import experts

__all__ = ["Shard", "refuse_shards", "shard_of"]


class Shard:
    """The part of `count` tokens that this process holds, from number `first` on.

    Every method is called by all processes, in the same order, with tensors of the same batch and width.
    """

    def __init__(self, group: dist.ProcessGroup, count: int) -> None:
        self.group, self.count = group, count
        self.sizes = [len(part) for part in torch.arange(count).tensor_split(dist.get_world_size(group))]
        self.first = sum(self.sizes[: dist.get_rank(group)])

    def whole(self, part: Tensor) -> Tensor:
        """The parts (B, n, ...) of all processes, joined to (B, N, ...)."""
        padded = part.new_zeros(len(part), max(self.sizes), *part.shape[2:])  # all processes send the same shape
        padded[:, : part.shape[1]] = part
        parts = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :size] for part, size in zip(parts, self.sizes, strict=True)], 1)

    def chosen(self, part: Tensor, indices: Tensor) -> Tensor:
        """Tokens `indices` (k,) of the whole state, (B, k, ...); no others travel."""
        here = indices.to(part.device) - self.first
        mine = (here >= 0) & (here < part.shape[1])
        kept = part.new_zeros(len(part), len(indices), *part.shape[2:])
        kept[:, mine] = part[:, here[mine]]
        dist.all_reduce(kept, group=self.group)  # every token has one owner, the others add zeros
        return kept


def _group(model: nn.Module) -> dist.ProcessGroup | None:
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    return None if config is None else config._flattened_mesh.get_group()


def shard_of(model: nn.Module, count: int) -> Shard | None:
    """The part of a state of `count` tokens that this process holds of `model`; None where it holds all."""
    group = _group(model)
    return None if group is None else Shard(group, count)


def refuse_shards(pipe: Any, what: str) -> None:
    """ValueError if a transformer of `pipe` holds a part of the tokens only, which `what` cannot work on."""
    for name, model in experts(pipe).items():
        group = _group(model)
        if group is not None:
            raise ValueError(
                f"{what} needs whole states, but the tokens of pipe.{name} are spread over "
                f"{dist.get_world_size(group)} processes (enable_parallelism): run it in one"
            )
