"""Load a model with named settings, and make its seeds.

    pipe = load("cos-mini")
    pipe(**sample.inputs, **settings(pipe), generator=seeded(0))

The settings are the rows of `schedule.PRESETS`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline

from .._quiet import quiet
from . import schedule
from .check import check_pipeline, experts
from .families import only_wan
from .lora import Lora, add_lora
from .text import remember_prompts

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
    Raises ValueError for an unknown model, preset or offload, for a LoRA that does not fit and for weights
    that do not match their SHA256SUMS, FileNotFoundError for a missing folder or file, OSError where the hub
    has no such model.
    """
    device = torch.device(device)
    if offload not in (None, *OFFLOADS):
        raise ValueError(f"unknown offload {offload!r}: choose from None, {', '.join(map(repr, OFFLOADS))}")
    if offload and device.type == "cpu":
        raise ValueError(f"offload={offload!r} needs an accelerator to compute on: pass device='cuda' with it")
    named = str(model).split("-")[:2] == EMBEDDED.split("-") and os.sep not in str(model)
    embedded = named or bool(_own_components(Path(model)))
    chosen = schedule.preset(preset or ("mini" if embedded else "hf_default"))
    dtype = dtype or getattr(torch, chosen.dtype)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype such as torch.bfloat16, got {dtype!r}")
    dtypes = {"default": dtype, "vae": torch.float32, "image_encoder": torch.float32}
    if embedded:
        folder = data_folder() / str(model) if named else Path(model)
        if named or (folder / SUMS).is_file():
            _verify(folder)
        with quiet():
            own = {
                name: getattr(import_module(module), kind).from_pretrained(folder / name)
                for name, (module, kind) in _own_components(folder).items()
            }
            pipe = WanImageToVideoPipeline.from_pretrained(folder, **own, dtype=dtypes, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)  # a run takes a second
    else:
        pipe = _from_pretrained(model, dtypes)
        remember_prompts(pipe.text_encoder, parked=offload != "model")
    if lora is not None:
        add_lora(pipe, lora)
    _place(pipe, device, offload)
    return use_preset(pipe, chosen.name)


def use_preset(pipe: WanImageToVideoPipeline, preset: str) -> WanImageToVideoPipeline:
    """Give `pipe` the scheduler, expert boundary and call settings of `preset`; returns `pipe`.

    Raises ValueError for an unknown preset and RuntimeError while a context such as `record` is open.
    """
    only_wan(pipe, "use_preset")
    chosen = schedule.preset(preset)
    if "_cos_hub" in pipe.__dict__:
        raise RuntimeError("a context such as record is open on this pipeline: change its preset outside")
    scheduler = schedule.scheduler(chosen)
    if scheduler is not None:
        pipe.scheduler = scheduler
    if chosen.boundary is not None and pipe.config.boundary_ratio is not None:
        pipe.register_to_config(boundary_ratio=chosen.boundary)
    check_pipeline(pipe)
    pipe._cos_preset = chosen
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


def seeded(seed: int | Sequence[int]) -> torch.Generator | list[torch.Generator]:
    """Return a CPU generator for one seed, or a list for a sequence of them (one per video of a batch).

    Raises TypeError for a seed that is not an integer and ValueError for an empty sequence.
    """
    if isinstance(seed, (list, tuple, range)):
        if not seed:
            raise ValueError("no seeds given: a batch needs one seed per video")
        return [seeded(one) for one in seed]
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"a seed must be an integer or a list of integers, not {type(seed).__name__}")
    return torch.Generator().manual_seed(int(seed))


def data_folder() -> Path:
    """Where the embedded models lie: `data` of the checkout, or what the environment variable names."""
    given = os.environ.get(DATA)
    return Path(given) if given else Path(__file__).resolve().parents[2] / "data"


def _own_components(folder: Path) -> dict[str, tuple[str, str]]:
    """Module and class of each component of a pipeline folder that is this package's: diffusers knows only its own."""
    index = folder / "model_index.json"
    try:
        listed = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        pairs = {name: tuple(kind) for name, kind in listed.items() if isinstance(kind, list)}
        return {name: kind for name, kind in pairs.items() if str(kind[0]).startswith("cosutils.")}
    except (ValueError, AttributeError):  # diffusers says what is wrong with it
        return {}


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
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{folder / name} is truncated or altered: its sha256 differs from {sums.name}")


def _place(pipe: WanImageToVideoPipeline, device: torch.device, offload: str | None) -> None:
    """Move the pipeline to `device`, or only as much of it as `offload` says."""
    if offload is None:
        pipe.to(device)
    elif offload == "model":
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


def _from_pretrained(model: str | Path, dtypes: dict[str, torch.dtype]) -> WanImageToVideoPipeline:
    if not Path(model).is_dir() and (isinstance(model, Path) or str(model).count("/") != 1):
        raise ValueError(
            f"unknown model {str(model)!r}: choose {EMBEDDED!r}, an existing folder in diffusers format, or "
            "a hub id such as 'Wan-AI/Wan2.2-I2V-A14B-Diffusers'"
        )
    if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
        raise FileNotFoundError(f"no model_index.json in {model}: not a pipeline folder in diffusers format")
    try:
        return WanImageToVideoPipeline.from_pretrained(model, dtype=dtypes)
    except (OSError, ValueError) as error:
        raise OSError(f"could not load {model}: {str(error).splitlines()[0]}") from error
