"""What a pipeline is made of, told by content: two that could give different films never look alike."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .lora import adapters, without_adapters

__all__ = ["fingerprint", "identity", "stamp_commit"]

WHOLE = 2**26  # bytes of weights up to which `fingerprint` looks at every value
SAMPLED = 512  # values of each tensor that it looks at beyond
# what saving and loading add to a configuration, or what `identity` says elsewhere
PASSING = ("architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config")


def identity(pipe: DiffusionPipeline, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """What `pipe` and each of its components, or those of `names`, are now: {component: facts}, plain JSON values.

    Of a model: class, dtypes, `commit` of the hub where `load` fetched it from there and nothing has changed it,
    else `digest`, the sha256 of configuration and weights, None where they are on no device; `quantization`
    and `lora` where there is one. Of any other component class and digest. "pipeline" holds the pipeline's own
    class and settings. Digests follow the content alone: a moved folder keeps its digest. A digest of 14 billion
    weights takes seconds; it is made once and again after a change.
    """
    components = pipe.components
    settings = {name: value for name, value in pipe.config.items() if name not in components}
    found = {"pipeline": {"class": type(pipe).__name__, "config": _plain(settings)}}
    for name, part in components.items():
        if part is not None and (names is None or name in names):
            facts = _model(part) if isinstance(part, nn.Module) else {"digest": _digest(_description(part))}
            found[name] = {"class": type(part).__name__, **facts}
    return found


def stamp_commit(model: nn.Module, commit: str) -> None:
    """Note that `model` as it is now comes from this commit of the hub."""
    model.__dict__["_cos_source"] = (_look(model), {"commit": commit})


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> tuple[Any, ...]:
    """What to compare cheaply (milliseconds) to notice that named parameters and buffers were changed.

    It holds names, shapes, dtypes, PyTorch's version counters and a checksum: of all values up to 64 MiB, beyond that
    of 512 values of each tensor at fixed random places. Edits that PyTorch counts are noticed always; one through
    `.data` of a large model, which it does not count, where it touches one of these places: a change of one
    hundredth of a tensor escapes once in 170 times, of one twentieth never.
    """
    tensors = list(tensors)
    whole = sum(tensor.nbytes for _, tensor in tensors) <= WHOLE
    facts, checksum = [], 0
    for name, tensor in tensors:
        facts.append((name, tuple(tensor.shape), tensor.dtype, 0 if tensor.is_inference() else tensor._version))
        for part in _stored(tensor):
            if not part.is_meta:
                flat = part.reshape(-1)
                sample = flat if whole or len(flat) <= SAMPLED else flat[_places(len(flat), part.device)]
                checksum = zlib.crc32(_bytes(sample), checksum)
    return tuple(facts), checksum


@cache
def _places(count: int, device: torch.device) -> Tensor:
    return torch.randint(count, (SAMPLED,), generator=torch.Generator().manual_seed(count)).to(device)


def _look(model: nn.Module) -> tuple[Any, ...]:
    return _description(model), fingerprint(without_adapters(model))


def _model(model: nn.Module) -> dict[str, Any]:
    seen = _look(model)
    if model.__dict__.get("_cos_source", (None,))[0] != seen:
        model.__dict__["_cos_source"] = (seen, {"digest": _weights_digest(model)})
    tensors = [tensor for _, tensor in without_adapters(model)]
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    kinds |= {type(tensor).__name__ for tensor in tensors} - {"Tensor", "Parameter", "Buffer"}
    facts: dict[str, Any] = {**model.__dict__["_cos_source"][1], "dtype": ", ".join(sorted(kinds))}
    quantization = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantization is not None:
        facts["quantization"] = _plain(quantization if isinstance(quantization, dict) else quantization.to_dict())
    found = adapters(model)
    if found:
        facts["lora"] = {
            name: {"scale": scale, "fused": fused, "digest": _tensors_digest(weights)}
            for name, (scale, fused, weights) in found.items()
        }
    return facts


def _weights_digest(model: nn.Module) -> str | None:
    tensors = dict(without_adapters(model))
    if any(tensor.device.type == "meta" for tensor in tensors.values()):
        return None
    return _digest(_description(model) + _tensors_digest(tensors))


def _tensors_digest(tensors: dict[str, Tensor]) -> str:
    def one(pair: tuple[str, Tensor]) -> str:
        digest = hashlib.sha256(repr((pair[0], tuple(pair[1].shape), str(pair[1].dtype))).encode())
        for part in _stored(pair[1]):
            digest.update(_bytes(part))
        return digest.hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing gives way to other threads
        return _digest("".join(pool.map(one, sorted(tensors.items()))))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).contiguous().view(torch.uint8).cpu().numpy().data


def _stored(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold `tensor`: itself, or the parts of a quantised one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _stored(getattr(tensor, name))]


def _description(part: Any) -> str:
    """The settings of a component as text, without what a call or a place changes in them."""
    backend = getattr(part, "backend_tokenizer", None)
    if backend is not None:  # what comes before is padding and truncation of the latest call
        return backend.to_str().partition('"added_tokens"')[2]
    config = getattr(part, "config", part)
    config = config.to_dict() if hasattr(config, "to_dict") else config
    return json.dumps(_plain(config if isinstance(config, dict) else vars(config)), sort_keys=True)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in PASSING}
    return json.loads(json.dumps(kept, default=str))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
