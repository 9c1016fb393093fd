"""Load a model with named settings, and make its seeds.

>>> pipe = load("cos-mini-two")
>>> output = pipe(**puzzle.inputs, **settings(pipe), generator=seeded(0))

The settings are the rows of `schedule.PRESETS`.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from safetensors import safe_open

from .._check import is_whole, whole
from .._files import sha256
from .._quiet import quiet
from . import schedule
from .check import check_pipeline, experts
from .families import only_wan
from .lora import Lora, add_lora
from .provenance import stamp_commit
from .text import remember_prompts, tell_what_is_lost

__all__ = ["data_folder", "load", "seeded", "settings", "use_preset"]

DATA = "COSUTILS_DATA"  # environment variable: the folder that holds cos-mini, default data/ of the checkout
EMBEDDED = "cos-mini"
SUMS = "SHA256SUMS"
OFFLOADS = ("model", "group")


def load(
    model: str | Path,
    preset: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    lora: Lora | None = None,
    offload: str | None = None,
    revision: str | None = None,
    remember: bool = True,
) -> WanImageToVideoPipeline:
    """Return the stock pipeline of `model` with `preset` attached.

    model: "cos-mini" (or another cos-mini-... folder of data/), a folder in diffusers format, or a hub id. A folder
    that `cosutils.training.train` or `release` wrote is an embedded model too.
    preset: a name in `schedule.PRESETS`; default "mini" for the embedded models, else "hf_default".
    dtype: of transformers and text encoder, default the preset's; VAE and image encoder stay in float32.
    device: where it runs. All but the embedded models encode each prompt once and remember it; in between the
    text encoder (11 GB) stays on the CPU, so that two 14B experts in bfloat16 (57 GB) fit an 80 GB card.
    lora: low-rank weights, needs the extra [lora]: a .safetensors file, a folder that holds one, "owner/name"
    or "owner/name/file.safetensors" of the hub, or a list of (such a source, alpha) pairs; alpha, default 1,
    multiplies the network alpha / rank of the file, 0 switches it off. Every expert gets the file; Wan2.2's
    weights for one expert each are given as {"transformer": high-noise file, "transformer_2": low-noise file}.
    offload: for cards that the model does not fit, needs an accelerator as `device`. "model" keeps one whole
    component on it at a time: one exchange of experts per film, memory of one expert. "group" streams the
    blocks of the experts through it, the next one arriving while this one computes: least memory.
    revision: branch, tag or commit of a hub id, default its main branch; `provenance.identity` tells the commit.
    remember: False encodes every prompt anew. The memory never answers for an encoder that was changed or hooked
    (see `text.remember_prompts`); `text.prompt_memory` counts its answers.
    Warns of a prompt that is cut, of words that the tokenizer does not know and of layers of a LoRA that have no place
    in this model. Raises ValueError for an unknown model, preset or offload, for a LoRA that does not fit, for
    weights that do not match their SHA256SUMS or their configuration and for an embedded model whose weights are not
    finite, FileNotFoundError for a missing folder or file, OSError where the hub has no such model.
    """
    device = torch.device(device)
    if offload not in (None, *OFFLOADS):
        raise ValueError(f"unknown offload {offload!r}: choose from None, {', '.join(map(repr, OFFLOADS))}")
    if offload and device.type == "cpu":
        raise ValueError(f"offload={offload!r} needs an accelerator to compute on: pass device='cuda' with it")
    if not isinstance(model, (str, Path)):
        raise TypeError(f"model must be a name, a folder or a hub id, got {model!r}")
    named = str(model).split("-")[:2] == EMBEDDED.split("-") and os.sep not in str(model)
    folder = data_folder() / str(model) if named else Path(model).expanduser()
    embedded = named or bool(_own_components(folder))
    if revision is not None and (embedded or folder.is_dir()):
        raise ValueError(f"revision={revision!r} belongs to a model of the hub, but {str(model)!r} is a folder")
    chosen = schedule.preset(preset or ("mini" if embedded else "hf_default"))
    dtype = dtype or getattr(torch, chosen.dtype)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype such as torch.bfloat16, got {dtype!r}")
    dtypes = {"default": dtype, "vae": torch.float32, "image_encoder": torch.float32}
    if embedded:
        if named or (folder / SUMS).is_file():
            _verify(folder)
        with quiet():
            parts = load_own(folder, dtypes)
            pipe = WanImageToVideoPipeline.from_pretrained(folder, **parts, dtype=dtypes, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)  # a run takes a second
    else:
        pipe = _from_pretrained(folder if folder.is_dir() else model, dtypes, revision)
        remember_prompts(pipe.text_encoder, offload != "model", remember)
    _check_weights(pipe, folder if folder.is_dir() else None, finite=embedded)
    tell_what_is_lost(pipe.tokenizer)
    if lora is not None:
        add_lora(pipe, lora)
    _place(pipe, device, offload)
    return use_preset(pipe, chosen.name)


def use_preset(pipe: WanImageToVideoPipeline, preset: str) -> WanImageToVideoPipeline:
    """Give `pipe` the scheduler, expert boundary and call settings of `preset`; returns `pipe`.

    What a preset leaves open is as shipped: as `load` found it, or the first call of this function on a pipeline
    made otherwise. A scheduler that was set by hand in between is replaced, with a warning. Warns too where a
    model of one expert has no use for the preset's boundary or second guidance.
    Raises ValueError for an unknown preset and for a shipped scheduler that the instruments do not know, and
    RuntimeError while a context such as `record` is open.
    """
    only_wan(pipe, "use_preset")
    chosen = schedule.preset(preset)
    if "_cos_hub" in pipe.__dict__:
        raise RuntimeError("a context such as record is open on this pipeline: change its preset outside")
    held, two = (pipe.scheduler, pipe.config.boundary_ratio), len(experts(pipe)) == 2
    shipped = pipe.__dict__.setdefault("_cos_shipped", (deepcopy(held[0]), held[1]))
    boundary = chosen.boundary if two and chosen.boundary is not None else shipped[1]
    pipe.scheduler = schedule.scheduler(chosen) or deepcopy(shipped[0])
    try:
        check_pipeline(pipe)
    except (TypeError, ValueError):
        pipe.scheduler = held[0]
        raise
    pipe.register_to_config(boundary_ratio=boundary)
    ours = pipe.__dict__.get("_cos_scheduler", held[0])
    pipe.__dict__.update(_cos_preset=chosen, _cos_scheduler=pipe.scheduler)
    told = [f"replaces the {type(held[0]).__name__} set on this pipeline"] if held[0] is not ours else []
    told += ["leaves two experts without a boundary: only the first will run"] if two and boundary is None else []
    if chosen.boundary is not None and not two:
        told.append(f"has boundary={chosen.boundary} and guidance_2={chosen.guidance_2} without effect on one expert")
    if told:
        warnings.warn(f"preset {preset!r} {' and '.join(told)}", stacklevel=2)
    return pipe


def settings(pipe: WanImageToVideoPipeline) -> dict[str, Any]:
    """Return the call arguments of the pipeline's preset: number of steps and guidance."""
    chosen = getattr(pipe, "_cos_preset", None)
    if chosen is None:
        raise ValueError("this pipeline has no preset: make it with load, or call use_preset(pipe, ...)")
    call = {"num_inference_steps": chosen.steps, "guidance_scale": chosen.guidance}
    if pipe.config.boundary_ratio is not None and chosen.guidance_2 is not None:
        call["guidance_scale_2"] = chosen.guidance_2
    return call


def seeded(seed: SupportsIndex | Iterable[SupportsIndex]) -> torch.Generator | list[torch.Generator]:
    """Return a CPU generator for one seed of 0 to 2**64 - 1, or a list for many (one per video of a batch).

    Integers of NumPy and torch, and arrays of them, are seeds too. Raises TypeError for a seed that is not an integer,
    ValueError for one out of range and for none at all.
    """
    if not is_whole(seed):
        if not isinstance(seed, (Sequence, np.ndarray, torch.Tensor)) or isinstance(seed, str):
            raise TypeError(f"a seed must be an integer or a list of integers, not {type(seed).__name__}")
        if not len(seed):
            raise ValueError("no seeds given: a batch needs one seed per video")
        return [seeded(one) for one in seed]
    number = whole(seed, "a seed")
    if not 0 <= number < 2**64:
        raise ValueError(f"a seed must be 0 to 2**64 - 1, got {number}")
    return torch.Generator().manual_seed(number)


def data_folder() -> Path:
    """Where the embedded models lie: `data` of the checkout, or what the environment variable names."""
    given = os.environ.get(DATA)
    return Path(given).expanduser() if given else Path(__file__).resolve().parents[2] / "data"


def _own_components(folder: Path) -> dict[str, tuple[str, str]]:
    """Module and class of each component of a pipeline folder that is this package's: diffusers knows only its own."""
    index = folder / "model_index.json"
    try:
        listed = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        pairs = {name: tuple(kind) for name, kind in listed.items() if isinstance(kind, list)}
        return {name: kind for name, kind in pairs.items() if str(kind[0]).startswith("cosutils.")}
    except (ValueError, AttributeError):  # diffusers says what is wrong with it
        return {}


def load_own(folder: Path, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """The components of a pipeline folder that diffusers cannot load by itself, in the dtypes of their names."""
    return {
        name: getattr(import_module(module), kind).from_pretrained(
            folder / name, torch_dtype=dtypes.get(name, dtypes["default"])
        )
        for name, (module, kind) in _own_components(folder).items()
    }


def _verify(folder: Path) -> None:
    """Compare every weight and configuration file below `folder` with its SHA256SUMS."""
    sums = folder / SUMS
    if not sums.is_file():
        known = sorted(path.parent.name for path in folder.parent.glob(f"{EMBEDDED}*/{SUMS}"))
        raise FileNotFoundError(
            f"no {folder.name} in {folder.parent} (found: {', '.join(known) or 'none'}): use a full "
            f"checkout of the repository, or point {DATA} to its data folder"
        )
    listed = {}
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, name = line.split(maxsplit=1)
        listed[name.lstrip("*").removeprefix("./")] = digest
    files = [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]
    present = {path.relative_to(folder).as_posix() for path in files}
    for name in sorted(present - listed.keys()):
        raise ValueError(f"{folder / name} is not listed in {sums.name}: not part of the published model")
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing although {sums.name} lists it")
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is truncated or altered: its sha256 differs from {sums.name}")


def _check_weights(pipe: WanImageToVideoPipeline, folder: Path | None, finite: bool) -> None:
    """Compare the names in the weight files with the loaded models: loaders pass a surplus block by in silence.

    In the experts every name counts. Files of other components may hold more, such as a decoder beside its encoder:
    there a name counts that belongs to a numbered row of the model. finite: look at the values too.
    """
    for name, part in pipe.components.items():
        config = getattr(part, "config", {})
        path = folder / name if folder else Path(getattr(config, "_name_or_path", name))
        files = sorted(path.glob("*.safetensors"))
        if not isinstance(part, torch.nn.Module) or not files or getattr(config, "quantization_config", None):
            continue
        stored = set().union(*(safe_open(file, framework="pt").keys() for file in files))
        wanted = set(part.state_dict())
        expert, inside = name in experts(pipe), {path for path, _ in part.named_modules()}
        ignored = tuple(getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ())
        surplus = {key for key in stored - wanted if expert or re.split(r"\.\d+\.", key)[0] in inside}
        surplus -= {key for key in surplus if any(re.search(pattern, key) for pattern in ignored)}
        lacking = wanted - stored if expert else set()
        for names, what in ((surplus, "hold {}, for which {} has no place"), (lacking, "lack {}, which {} asks for")):
            if names:
                others = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ValueError(f"the weights in {path} {what.format(min(names) + others, 'its config.json')}")
        for key, tensor in part.state_dict().items() if finite else ():
            if not tensor.isfinite().all():
                raise ValueError(f"the weights of {name} are not finite: {key} holds NaN or infinity")
        commit = None if folder else re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
        if commit:
            stamp_commit(part, commit[1])


def _place(pipe: WanImageToVideoPipeline, device: torch.device, offload: str | None) -> None:
    """Move the pipeline to `device`, or only as much of it as `offload` says."""
    if offload is None:
        pipe.to(device)
    elif offload == "model":
        if device.index is None and torch.accelerator.is_available():  # diffusers would take the first
            device = torch.device(device.type, torch.accelerator.current_device_index())
        pipe.enable_model_cpu_offload(device=device)
    else:
        for name, component in pipe.components.items():
            if name in experts(pipe):
                component.enable_group_offload(
                    onload_device=device,
                    offload_type="block_level",
                    num_blocks_per_group=1,
                    use_stream=device.type == "cuda",
                )
            elif isinstance(component, torch.nn.Module):
                component.to(device)


def _from_pretrained(
    model: str | Path, dtypes: dict[str, torch.dtype], revision: str | None
) -> WanImageToVideoPipeline:
    if not Path(model).is_dir() and (isinstance(model, Path) or str(model).count("/") != 1):
        raise ValueError(
            f"unknown model {str(model)!r}: choose {EMBEDDED!r}, an existing folder in diffusers format, or "
            "a hub id such as 'Wan-AI/Wan2.2-I2V-A14B-Diffusers'"
        )
    if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
        raise FileNotFoundError(f"no model_index.json in {model}: not a pipeline folder in diffusers format")
    try:
        return WanImageToVideoPipeline.from_pretrained(model, dtype=dtypes, revision=revision)
    except (OSError, ValueError) as error:
        raise OSError(f"could not load {model}: {str(error).splitlines()[0]}") from error
