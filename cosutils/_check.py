"""Private: the one rule for whole numbers, those of NumPy and torch included."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["is_whole", "whole", "wholes"]


def is_whole(value: Any) -> bool:
    """Whether `value` is one whole number; truth values are none."""
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def whole(value: Any, what: str, least: int | None = None) -> int:
    """`value` as a Python int; TypeError where it is no whole number, ValueError where it is below `least`."""
    if not is_whole(value):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    number = operator.index(value)
    if least is not None and number < least:
        raise ValueError(f"{what} must be {least} or more, got {number}")
    return number


def wholes(values: Iterable[Any] | Any, what: str) -> tuple[int, ...]:
    """One whole number or many, sorted, each once; ValueError where there is none, TypeError for another value."""
    if is_whole(values):
        values = (values,)
    elif not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{what}s must be integers, got {values!r}")
    found = {whole(value, f"a {what}") for value in values}
    if not found:
        raise ValueError(f"no {what} chosen: {what}s must not be empty")
    return tuple(sorted(found))
