"""Private: low-rank weights (LoRA) put on the transformers of a pipeline by diffusers' own loader."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .check import experts

__all__ = ["Lora", "active_lora", "adapters", "add_lora", "lora_files", "without_adapters"]

Source = str | Path | dict[str, str | Path]
Lora = Source | Sequence[Source | tuple[Source, float]]
USUAL = "pytorch_lora_weights.safetensors"  # the name diffusers gives to a LoRA


def add_lora(pipe: WanImageToVideoPipeline, lora: Lora) -> None:
    """Put `lora` on the transformers of `pipe`, unmerged: W x + alpha (a / r) B A x, in the dtype of W.

    See `loading.load` for the forms of `lora`. Raises ValueError or TypeError for what is none of them, and
    for a file that does not fit the model; FileNotFoundError and OSError where there is no such file.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("lora= needs the package peft: pip install -e '.[lora]'") from error
    names: dict[str, list[str]] = {name: [] for name in experts(pipe)}
    scales: dict[str, list[float]] = {name: [] for name in names}
    for number, (source, alpha) in enumerate(_pairs(lora)):
        files = source if isinstance(source, dict) else dict.fromkeys(names, source)
        unknown = [name for name in files if name not in names]
        if unknown or not files:
            raise ValueError(f"lora names {unknown or 'no expert'}: this model has {', '.join(names)}")
        for expert, given in files.items():
            file = _file(given)
            names[expert].append(f"{number}_{file.stem.replace('.', '_')}")
            scales[expert].append(float(alpha))
            _put(pipe, expert, file, names[expert][-1])
    for expert, model in experts(pipe).items():
        if names[expert]:
            model.set_adapters(names[expert], scales[expert])


def active_lora(pipe: WanImageToVideoPipeline) -> dict[str, dict[str, float]]:
    """Return {expert: {name: alpha}} of the LoRA weights in use now, fused ones too, however loaded; {} without."""
    found = {
        expert: {name: scale for name, (scale, *_) in adapters(model).items()}
        for expert, model in experts(pipe).items()
    }
    return {expert: names for expert, names in found.items() if names}


def adapters(model: nn.Module) -> dict[str, tuple[float, bool, dict[str, Tensor]]]:
    """{name: (alpha, whether it is fused, its tensors)} of the adapters that act in `model` now.

    alpha multiplies the network alpha / rank of the file; of several in one adapter it is the largest. The tensors
    hold the weights and each layer's alpha.
    """
    found: dict[str, tuple[float, bool, dict[str, Tensor]]] = {}
    for path, layer in model.named_modules() if getattr(model, "peft_config", None) else ():
        fused = set(getattr(layer, "merged_adapters", ()))
        for name, scaling in getattr(layer, "scaling", {}).items():
            if layer.disable_adapters or name not in (fused or layer.active_adapters) or name not in layer.lora_A:
                continue
            alpha = round(scaling * layer.r[name] / layer.lora_alpha[name], 9)
            before, _, tensors = found.get(name, (alpha, False, {}))
            own = {tuple(key.split(".")): value for key, value in layer.named_parameters() if key.startswith("lora_")}
            parts = {f"{path}.{key[0]}": value for key, value in own.items() if key[1] == name}
            parts[f"{path}.scaling"] = torch.tensor(scaling, dtype=torch.float64)
            found[name] = (max(before, alpha, key=abs), bool(fused), tensors | parts)
    return found


def without_adapters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of `model` under the names that they have without adapters."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor


def lora_files(lora: Lora) -> list[Path]:
    """The files that `lora` means, in its order; raises as `add_lora` does."""
    sources = [source for source, _ in _pairs(lora)]
    return [_file(given) for one in sources for given in (one.values() if isinstance(one, dict) else [one])]


def _pairs(lora: Lora) -> list[tuple[Source, float]]:
    if isinstance(lora, (str, Path, dict)):
        lora = [lora]
    if not isinstance(lora, (list, tuple)):
        raise TypeError(f"lora must be a path, a hub id or a list of them, not {type(lora).__name__}")
    pairs = [(one, 1.0) if isinstance(one, (str, Path, dict)) else one for one in lora]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], (str, Path, dict)):
            raise TypeError(f"a lora must be a path, a hub id, or a (path or hub id, alpha) pair, got {pair!r}")
        if isinstance(pair[1], bool) or not isinstance(pair[1], (int, float)):
            raise TypeError(f"the alpha of a lora must be a number, got {pair[1]!r}")
    return [tuple(pair) for pair in pairs]


def _file(given: str | Path) -> Path:
    """The one .safetensors file meant by a file, a folder, 'owner/name' or 'owner/name/file.safetensors'."""
    path = Path(given)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise ValueError(f"{path} holds {len(files)} .safetensors files ({found}): name one of them")
        return files[0]
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"lora {str(path)!r} is no .safetensors file: other formats are not read")
        return path
    parts = str(given).split("/")
    if isinstance(given, Path) or len(parts) < 2 or not all(parts):
        raise FileNotFoundError(f"no LoRA file {str(given)!r}: give a .safetensors file or a hub id")
    name = "/".join(parts[2:]) or USUAL
    try:
        return Path(hf_hub_download("/".join(parts[:2]), name))
    except (OSError, ValueError) as error:
        raise OSError(
            f"could not load the LoRA {given} ({name}): {str(error).splitlines()[0]} For another file write "
            "owner/name/file.safetensors"
        ) from error


def _put(pipe: WanImageToVideoPipeline, expert: str, file: Path, name: str) -> None:
    """Load `file` onto one expert as adapter `name` and check that all of it arrived."""
    model = experts(pipe)[expert]
    try:
        weights = _weights(file)
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "null"))
        state = pipe.lora_state_dict(weights)
        pairs = sum(key.endswith("lora_A.weight") for key in state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # several add up
            pipe.load_lora_into_transformer(state, model, adapter_name=name, metadata=facts, _pipeline=pipe)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{file} does not fit {expert} of this model: {str(error).strip().splitlines()[-1].strip()}"
        ) from error
    layers = [layer for layer in model.modules() if name in getattr(layer, "lora_A", {})]
    if not pairs or len(layers) != pairs:
        raise ValueError(
            f"{file} does not fit {expert} of this model: {len(layers)} of its {pairs} LoRA layers found a place"
        )


def _weights(file: Path) -> dict[str, Tensor]:
    """The file's tensors under names that diffusers' converter knows.

    DiffSynth-Studio, which the paper's models were trained with, leaves out the prefix and adds ".default";
    a network alpha `a` beside diffusers' own names is multiplied in here: B becomes (a / r) B.
    """
    weights = load_file(file)
    weights = {key.replace(".default.", "."): value for key, value in weights.items()}
    if all(key.startswith("blocks.") and ("_attn." in key or ".ffn." in key) for key in weights):
        weights = {f"diffusion_model.{key}": value for key, value in weights.items()}
    for key in [key for key in weights if key.startswith("transformer.") and key.endswith(".alpha")]:
        alpha, layer = weights.pop(key).item(), key.removesuffix(".alpha")
        scale = alpha / weights[f"{layer}.lora_A.weight"].shape[0]
        weights[f"{layer}.lora_B.weight"] = weights[f"{layer}.lora_B.weight"].float() * scale
    return weights
