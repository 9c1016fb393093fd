"""Private: keep remarks and progress bars of the libraries off the pages of the book."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

__all__ = ["quiet"]

LIBRARIES = (diffusers_logging, transformers_logging)


@contextmanager
def quiet() -> Iterator[None]:
    """Show only errors of diffusers and transformers, and no progress bars, inside the block."""
    levels = [library.get_verbosity() for library in LIBRARIES]
    bars = [library for library in LIBRARIES if library.is_progress_bar_enabled()]
    for library in LIBRARIES:
        library.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(LIBRARIES, levels, strict=True):
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
