"""A progress bar for long sweeps that leaves no trace in a notebook's stored outputs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["progress"]

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` with a bar named `what`; in a notebook the cell's output is cleared when all are done.

    Use it in a cell that shows nothing else. total: the number of items where `len` does not know it.
    """
    yield from tqdm(items, desc=what, total=total, file=sys.stdout, leave=False, mininterval=1.0)
    if (
        "IPython" in sys.modules
        and (shell := sys.modules["IPython"].get_ipython()) is not None
        and shell.has_trait("kernel")
    ):
        from IPython.display import clear_output

        clear_output()
