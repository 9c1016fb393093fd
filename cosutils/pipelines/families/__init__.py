"""The pipelines that `record`, `inject` and `capture` work on, one small adapter (`base.Family`) each."""

from __future__ import annotations

from typing import Any

from .base import Call, Family
from .cogvideox import CogVideoX
from .hunyuan import HunyuanVideo
from .ltx import LTX
from .wan import Wan

__all__ = ["FAMILIES", "Call", "Family", "family_of", "only_wan"]

WAN = Wan()
FAMILIES: tuple[Family, ...] = (WAN, LTX(), CogVideoX(), HunyuanVideo())


def family_of(pipe: Any) -> Family:
    """The family of `pipe`; TypeError that lists the supported pipelines for any other object."""
    for family in FAMILIES:
        if isinstance(pipe, family.pipeline):
            return family
    *names, last = (family.pipeline.__name__ for family in FAMILIES)
    raise TypeError(f"pipe must be a {', '.join(names)} or {last}, not {type(pipe).__name__}")


def only_wan(pipe: Any, what: str) -> None:
    """TypeError for a supported pipeline of another family than Wan, on which `what` does not work."""
    if family_of(pipe) is not WAN:
        raise TypeError(f"{what} works on a {WAN.pipeline.__name__} only, not on a {type(pipe).__name__}")
