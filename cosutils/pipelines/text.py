"""Private: a text encoder that encodes each prompt once and waits in host memory in between.

Wan's UMT5-XXL takes 11 GB, two experts in bfloat16 57 GB: beside the activations of a long film an 80 GB
card has no room for a text encoder that is needed for a second.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from diffusers.utils.torch_utils import empty_device_cache
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["remember_prompts"]

REMEMBERED = 512  # encodings kept in host memory; 4 MB each for UMT5-XXL in bfloat16 and 512 tokens


def remember_prompts(encoder: PreTrainedModel, parked: bool = True) -> None:
    """Make `encoder` return remembered outputs for the token ids and masks (B, N) that it has seen.

    A batch is remembered as a whole: another batch size would change the last bits of an encoding.
    Only its class is exchanged, for a dynamic subclass of the same name: isinstance, `dtype`,
    `save_pretrained` and offload hooks hold, and outputs are bit-equal. parked: the weights stay on the CPU
    whatever device the encoder is moved to; for a new prompt a copy visits that device and is dropped.
    """
    encoder.__dict__["_cos_texts"] = OrderedDict()
    encoder.__dict__["_cos_home"] = encoder.device if parked else None
    encoder.__class__ = _remembering_class(type(encoder))


class _Remembering:
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
        if kwargs or len(args) != 2 or not all(isinstance(part, Tensor) for part in args) or self.training:
            return self._encode(*args, **kwargs)
        key = (self.dtype, *((part.shape, part.cpu().numpy().tobytes()) for part in args))
        if key not in self._cos_texts:
            self._cos_texts[key] = self._encode(*args).last_hidden_state.detach().cpu()
            if len(self._cos_texts) > REMEMBERED:
                self._cos_texts.popitem(last=False)
        self._cos_texts.move_to_end(key)
        return BaseModelOutput(last_hidden_state=self._cos_texts[key].to(args[0].device))

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        """The encoder's own call; a parked one borrows device memory for it."""
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


@cache
def _remembering_class(cls: type) -> type:
    return type(cls.__name__, (_Remembering, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
