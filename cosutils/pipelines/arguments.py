"""Private: the arguments of a pipeline call, checked before anything is computed, and as plain facts to compare."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from numbers import Number
from types import CodeType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._check import whole
from .families import Family

__all__ = ["checked", "function_name", "is_finite", "plain"]

WHOLE = ("height", "width", "num_frames", "num_inference_steps", "num_videos_per_prompt", "max_sequence_length")


def checked(pipe: Any, family: Family, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with whole numbers as Python's; TypeError or ValueError for what cannot run."""
    call |= {name: whole(call[name], name, least=1) for name in WHOLE if name in call}
    frames, height, width = (call[name] for name in ("num_frames", "height", "width"))
    (stride, pixels), patch = family.scales(pipe), family.patch(pipe)
    if (frames - 1) % stride:
        allowed = f"1, {stride + 1}, {2 * stride + 1}, ..."
        raise ValueError(f"num_frames must be {stride}k + 1 ({allowed}), got {frames!r}")
    for name, size, side in (("height", height, patch[1]), ("width", width, patch[2])):
        multiple = pixels * side
        if size % multiple:
            raise ValueError(f"{name} must be a multiple of {multiple} px for this model, got {size}")
    steps, most = call["num_inference_steps"], pipe.scheduler.config.num_train_timesteps
    if steps > most:
        raise ValueError(f"num_inference_steps is {steps} but the scheduler has {most} timesteps")
    for name in family.settings:
        if not isinstance(call[name], (Number, np.generic, Tensor, type(None))):
            raise TypeError(f"{name} must be a number, got {call[name]!r}")
    for name, value in call.items():
        if _broken(value):
            raise ValueError(f"{name} holds NaN or infinity")
    for name in ("image", "last_image"):
        pictures = call.get(name)
        for picture in pictures if isinstance(pictures, list) else [pictures]:
            _check_picture(name, picture, height, width)
    prompts = call["prompt"] if isinstance(call["prompt"], list) else [call["prompt"]]
    if not all(isinstance(prompt, (str, type(None))) for prompt in prompts):
        raise TypeError(f"prompt must be a text or a list of texts, got {call['prompt']!r}")
    videos = family.batch(call)
    if videos < 1:
        raise ValueError(f"the call makes no video: prompt is {call['prompt']!r} and prompt_embeds give none")
    generators = call["generator"] if isinstance(call["generator"], list) else [call["generator"]]
    for generator in generators:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or a list of them (see cosutils.seeded), "
                f"not {type(generator).__name__}"
            )
    if isinstance(call["generator"], list) and len(generators) != videos:
        raise ValueError(f"generator holds {len(generators)} generators but the call makes {videos} videos")
    return call


def _broken(value: Any) -> bool:
    """Whether an argument holds a number that is none, however deep."""
    if isinstance(value, (list, tuple, dict)):
        return any(map(_broken, value.values() if isinstance(value, dict) else value))
    if isinstance(value, Tensor):
        return value.is_floating_point() and not is_finite(value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and not np.isfinite(value).all()
    return isinstance(value, (float, np.floating)) and not math.isfinite(value)


def _check_picture(name: str, picture: Any, height: int, width: int) -> None:
    if isinstance(picture, Image.Image):
        if picture.mode != "RGB":
            raise ValueError(f"the {name} has the mode {picture.mode}: pass {name}.convert('RGB')")
        size = picture.height, picture.width
    elif isinstance(picture, Tensor):
        if picture.min() < -1 or picture.max() > 1:
            raise ValueError(f"the {name} has values outside [-1, 1], from {picture.min()} to {picture.max()}")
        size = tuple(picture.shape[-2:])
    else:
        return
    if size != (height, width):
        raise ValueError(
            f"the {name} is {size[0]}x{size[1]} px but the call asks for {height}x{width} px "
            f"(height x width): resize the {name} or change height and width"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of a floating tensor is NaN or infinite."""
    return bool(torch.isfinite(tensor.float().sum()))


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers and text as they are, of pictures and tensors (each row) a digest."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        return [_tensor(row) for row in value] if value.ndim else value.item()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Image.Image):
        return _digest(f"{value.mode} {value.size} ", value.tobytes())
    return function_name(value) if callable(value) else type(value).__name__


def function_name(function: Callable[..., Any]) -> str:
    """Name of a function with a digest of its code and of the values and functions that it holds or looks up.

    Functions that it holds (closures, defaults) and those of its own module are followed, others stand by their name.
    """
    return _named(function, {})


def _named(function: Callable[..., Any], known: dict[int, str]) -> str:
    """known: names of functions met so far, so that each is looked into once."""
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None)
    if code is None:  # functools.partial and objects that can be called
        held = [getattr(function, name, None) for name in ("func", "args", "keywords")] + [vars(function)]
        return f"{type(function).__name__} {_digest(repr(plain(held)))[:8]}"
    if id(inner) in known:
        return known[id(inner)]
    known[id(inner)] = inner.__qualname__  # for one that calls itself

    def value(one: Any, follow: bool) -> Any:
        if not callable(one):
            return plain(one)
        if follow and (hasattr(getattr(one, "__func__", one), "__code__") or isinstance(one, partial)):
            return _named(one, known)
        return getattr(one, "__qualname__", type(one).__name__)

    codes = _codes(code)
    names = dict.fromkeys(name for one in codes for name in one.co_names)
    looked = [inner.__globals__.get(name) for name in names]
    held = [cell.cell_contents for cell in inner.__closure__ or ()]
    held += [*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()]
    values = [value(one, True) for one in held]
    values += [value(one, hasattr(one, "__code__") and one.__module__ == inner.__module__) for one in looked]
    constants = [[one for one in part.co_consts if not hasattr(one, "co_code")] for part in codes]
    digest = _digest(*(one.co_code for one in codes), repr(([*names], constants, values)))
    known[id(inner)] = f"{inner.__qualname__} {digest[:8]}"
    return known[id(inner)]


def _codes(code: CodeType) -> list[CodeType]:
    """The code of a function and of those that it makes."""
    return [code, *(inner for one in code.co_consts if isinstance(one, CodeType) for inner in _codes(one))]


def _tensor(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _digest(f"{tensor.dtype} {tuple(tensor.shape)} ", content)


def _digest(*parts: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `parts`."""
    content = hashlib.sha256()
    for part in parts:
        content.update(part.encode() if isinstance(part, str) else part)
    return content.hexdigest()[:16]
