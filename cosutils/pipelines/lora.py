"""Private: low-rank weights (LoRA) put on the transformers of a pipeline by diffusers' own loader."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

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
UNFIT = (SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
USUAL = "pytorch_lora_weights.safetensors"  # the name diffusers gives to a LoRA


def add_lora(pipe: WanImageToVideoPipeline, lora: Lora) -> None:
    """Put `lora` on the transformers of `pipe`, unmerged: W x + alpha (a / r) B A x, in the dtype of W.

    See `loading.load` for the forms of `lora`. Adapters that act already go on acting. Layers of a file that the model
    has no place for are left out with a warning that names them: Wan2.1's image layers `k_img`, `v_img` in
    files that are given to Wan2.2. Raises ValueError or TypeError for what is no LoRA and for a file of which nothing
    fits, or a layer has another size or is not finite; FileNotFoundError and OSError where there is no such file. The
    pipeline is as before then.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("lora= needs the package peft: pip install -e '.[lora]'") from error
    models = experts(pipe)
    acting = {
        expert: {name: scale for name, (scale, *_) in adapters(model).items()} for expert, model in models.items()
    }
    scales = {expert: dict(names) for expert, names in acting.items()}
    first = max(len(getattr(model, "peft_config", None) or ()) for model in models.values())
    states = []
    told: dict[str, list[str]] = {}
    for number, (source, alpha) in enumerate(_pairs(lora), first):
        files = source if isinstance(source, dict) else dict.fromkeys(models, source)
        unknown = [name for name in files if name not in models]
        if unknown or not files:
            raise ValueError(f"lora names {unknown or 'no expert'}: this model has {', '.join(models)}")
        for expert, given in files.items():
            file = _file(given)
            name = f"{number}_{file.stem.replace('.', '_')}"
            state, facts, left_out = _fitting(pipe, expert, file)
            states.append((expert, file, name, state, facts))
            scales[expert][name] = float(alpha)
            if left_out:
                told.setdefault(f"{file} holds layers that have no place ({left_out})", []).append(expert)
    if told:
        text = "; ".join(f"{what} in {' and '.join(where)} of this model" for what, where in told.items())
        warnings.warn(f"{text}: the others are loaded", stacklevel=3)
    try:
        for one in states:
            expert, file, name, state, facts = one
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # several add up
                pipe.load_lora_into_transformer(state, models[expert], name, pipe, metadata=facts)
            put = sum(name in getattr(layer, "lora_A", {}) for layer in models[expert].modules())
            pairs = sum(".lora_A." in key for key in state)
            if put != pairs:
                raise ValueError(f"{put} of its {pairs} LoRA layers found a place")
    except UNFIT as error:
        for name, model in models.items():
            model.delete_adapters([new for new in scales[name] if new not in acting[name]])
            if acting[name]:
                model.set_adapters(list(acting[name]), list(acting[name].values()))
            elif not getattr(model, "peft_config", None):
                model.unload_lora()
        raise _unfit(file, expert, error) from error
    for expert, model in models.items():
        if scales[expert]:
            model.set_adapters(list(scales[expert]), list(scales[expert].values()))


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
        if isinstance(pair[1], bool) or not isinstance(pair[1], Real):
            raise TypeError(f"the alpha of a lora must be a number, got {pair[1]!r}")
        if not math.isfinite(pair[1]):
            raise ValueError(f"the alpha of a lora must be finite, got {pair[1]!r}")
    return [tuple(pair) for pair in pairs]


def _file(given: str | Path) -> Path:
    """The one .safetensors file meant by a file, a folder, 'owner/name' or 'owner/name/file.safetensors'."""
    path = Path(given).expanduser()
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


def _fitting(
    pipe: WanImageToVideoPipeline, expert: str, file: Path
) -> tuple[dict[str, Tensor], dict[str, Any] | None, str]:
    """The tensors of `file` for which `expert` has a place, under diffusers' names; its header; what is left out."""
    model = experts(pipe)[expert]
    try:
        weights = _weights(file)
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "null"))
        unheeded = {
            key for key in weights if "norm" in key and key.endswith((".diff", ".diff_b")) and weights[key].any()
        }
        state = pipe.lora_state_dict(weights)
        layers = {key.partition(".lora_")[0] for key in state}
        places = {f"transformer.{name}": part for name, part in model.named_modules() if hasattr(part, "weight")}
        fitting = {key: value for key, value in state.items() if key.partition(".lora_")[0] in places}
        for layer in layers & set(places):
            down, up = (fitting[f"{layer}.lora_{side}.weight"] for side in "AB")
            sizes, wanted = (up.shape[0], down.shape[1]), tuple(places[layer].weight.shape[:2])
            if sizes != wanted or up.shape[1] != down.shape[0]:
                raise ValueError(f"{layer} is {wanted[0]} x {wanted[1]}, its B A is {sizes[0]} x {sizes[1]}")
            if not (down.isfinite().all() and up.isfinite().all()):
                raise ValueError(f"{layer} holds NaN or infinity")
        if not fitting:
            raise ValueError(f"0 of its {len(layers)} LoRA layers found a place")
    except UNFIT as error:
        raise _unfit(file, expert, error) from error
    surplus = (layers - set(places)) | unheeded
    kinds = sorted({re.sub(r"\.\d+\.", ".*.", layer) for layer in surplus})
    return fitting, facts, f"{len(surplus)} of {len(layers)}: {', '.join(kinds)}" if surplus else ""


def _unfit(file: Path, expert: str, error: Exception) -> ValueError:
    told = f"it lacks {error}" if isinstance(error, KeyError) else str(error).strip().splitlines()[-1].strip()
    return ValueError(f"{file} does not fit {expert} of this model: {told}")


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
