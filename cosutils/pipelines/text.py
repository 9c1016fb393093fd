"""Private: a text encoder that encodes each prompt once and waits in host memory in between, and a tokenizer that
says what it cannot read.

Wan's UMT5-XXL takes 11 GB, two experts in bfloat16 57 GB: beside the activations of a long film an 80 GB
card has no room for a text encoder that is needed for a second.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import empty_device_cache
from torch import Tensor
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from .provenance import fingerprint

__all__ = ["prompt_memory", "remember_prompts", "tell_what_is_lost"]

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Encoder
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:
    Encoder = Tokenizer = object

REMEMBERED = 512  # encodings kept in host memory; 4 MB each for UMT5-XXL in bfloat16 and 512 tokens


def remember_prompts(encoder: PreTrainedModel, parked: bool = True, remember: bool = True) -> None:
    """Make `encoder` return remembered outputs for the token ids and masks (B, N) that it has seen.

    A batch is remembered as a whole: another batch size would change the last bits of an encoding. The memory is
    passed by where gradients, autocast or training are on and where a hook, an adapter or a replaced forward sits
    anywhere in the encoder; it holds for the weights, buffers (see `provenance.fingerprint`), rows of the embedding,
    configuration, settings, classes and device that an encoding was made with, and for no others.
    Only its class is exchanged, for a dynamic subclass of the same name: isinstance, `dtype`,
    `save_pretrained` and offload hooks hold, and outputs are bit-equal. parked: the weights stay on the CPU
    whatever device the encoder is moved to; for a new prompt a copy visits that device and is dropped.
    """
    encoder.__dict__["_cos_texts"] = OrderedDict() if remember else None
    encoder.__dict__["_cos_counts"] = {"encoded": 0, "remembered": 0}
    encoder.__dict__["_cos_home"] = encoder.device if parked else None
    encoder.__class__ = _subclass(_Remembering, type(encoder))


def prompt_memory(pipe: DiffusionPipeline) -> dict[str, int] | None:
    """How many batches of prompts the text encoder has "encoded", and for how many its memory answered instead
    ("remembered"), since `load`; None where `pipe` has no such memory.
    """
    state = vars(pipe.text_encoder) if getattr(pipe, "text_encoder", None) is not None else {}
    return None if state.get("_cos_texts") is None else dict(state["_cos_counts"])


def tell_what_is_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make `tokenizer` warn of words that it does not know and of a text that it cuts; its class is exchanged."""
    tokenizer.__class__ = _subclass(_Telling, type(tokenizer))


class _Remembering(Encoder):
    """Mixin of the exchanged class."""

    @property
    def device(self) -> torch.device:
        """Where the next prompt would be encoded: pipelines ask their first component for their device."""
        return self._cos_home or super().device

    def to(self, *args: Any, **kwargs: Any) -> PreTrainedModel:
        if self._cos_home is None:
            return super().to(*args, **kwargs)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            super().to(dtype)
        self.__dict__["_cos_home"] = device or self._cos_home
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = not kwargs and len(args) == 2 and all(isinstance(part, Tensor) for part in args)
        if self._cos_texts is None or not plain or not _is_untouched(self):
            return self._encode(*args, **kwargs)
        key = _key(self, *args)
        if key in self._cos_texts:
            self._cos_counts["remembered"] += 1
        else:
            output = self._encode(*args)
            if not isinstance(output, ModelOutput) or list(output) != ["last_hidden_state"]:
                return output
            self._cos_texts[key] = output.last_hidden_state.detach().cpu()
            if len(self._cos_texts) > REMEMBERED:
                self._cos_texts.popitem(last=False)
        self._cos_texts.move_to_end(key)
        return BaseModelOutput(last_hidden_state=self._cos_texts[key].to(args[0].device, copy=True))

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        """The encoder's own call; a parked one borrows device memory for it."""
        self._cos_counts["encoded"] += 1
        home = self._cos_home
        if home is None or home.type == "cpu":
            return super().__call__(*args, **kwargs)
        tensors = [*self.parameters(), *self.buffers()]
        parked = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(home)
            return super().__call__(*args, **kwargs)
        finally:
            for tensor, data in zip(tensors, parked, strict=True):
                tensor.data = data
            empty_device_cache(home.type)


def _is_untouched(encoder: PreTrainedModel) -> bool:
    """Whether an encoding depends on what `_key` holds alone."""
    if encoder.training or torch.is_grad_enabled() or torch.is_autocast_enabled(encoder.device.type):
        return False
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    for part in encoder.modules():
        moved = type(getattr(part, "_hf_hook", None)).__module__.startswith("accelerate.")  # by offload="model"
        replaced = ("forward" in vars(part) and not moved) or type(part).__module__.startswith("peft.")
        if replaced or part._forward_hooks or part._forward_pre_hooks:
            return False
    return True


def _key(encoder: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Any, ...]:
    embedding = encoder.get_input_embeddings().weight
    rows = embedding[ids.unique().to(embedding.device)]  # an edit of a few words of a large vocabulary
    return (
        *((part.dtype, part.shape, part.cpu().numpy().tobytes()) for part in (ids, mask)),
        ids.device,
        fingerprint((*encoder.named_parameters(), *encoder.named_buffers())),
        fingerprint([("rows", rows)]),
        encoder.config.to_json_string(use_diff=False),
        encoder.config._attn_implementation,
        torch.get_float32_matmul_precision(),
        tuple(_settings(part) for part in encoder.modules()),
    )


def _settings(part: torch.nn.Module) -> tuple[Any, ...]:
    plain = (item for item in vars(part).items() if isinstance(item[1], (bool, int, float, str)))
    return type(part).forward, part._compiled_call_impl is None, *plain


class _Telling(Tokenizer):
    """Mixin of the exchanged class."""

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        texts = [text] if isinstance(text, str) else text if isinstance(text, (list, tuple)) else ()
        for one in texts if self.is_fast else ():
            if isinstance(one, str):
                self._tell(one, kwargs.get("max_length") if kwargs.get("truncation") else None)
        return super().__call__(text, *args, **kwargs)

    def _tell(self, text: str, longest: int | None) -> None:
        read = super().__call__(text, return_offsets_mapping=True, verbose=False)
        ids, places = read["input_ids"], read["offset_mapping"]
        unknown = dict.fromkeys(
            text[slice(*at)] for at, token in zip(places, ids, strict=True) if token == self.unk_token_id
        )
        lost = [f"does not know {', '.join(map(repr, unknown))}"] if unknown else []
        lost += [f"cuts its {len(ids)} tokens to {longest}"] if longest is not None and len(ids) > longest else []
        if lost:
            start = text if len(text) <= 60 else f"{text[:60]}..."
            warnings.warn(f"of the prompt {start!r} the tokenizer {' and '.join(lost)}", stacklevel=4)


def _subclass(mixin: type, cls: type) -> type:
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
