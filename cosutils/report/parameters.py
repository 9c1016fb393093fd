"""Parameters that papermill gives to a page, checked against the page's own: it would only warn of an unknown name."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from .._check import is_whole

__all__ = ["check", "check_page"]

_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def _fits(value: Any, default: Any) -> bool:
    """Whether `value` is of the kind of `default`; whole numbers are numbers, and one item stands for all of a list."""
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(default, (int, float)):
        return is_whole(value) or (isinstance(default, float) and isinstance(value, float))
    if isinstance(value, type(default)):
        items = (part.values() if isinstance(part, dict) else part for part in (value, default))
        inside, usual = map(list, items)
        return not usual or all(_fits(item, usual[0]) for item in inside)
    return False


def check(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """ValueError for a name that is not among `defaults`, TypeError for a value of another kind than its default."""
    for name, value in given.items():
        if name not in defaults:
            near = get_close_matches(name, defaults, 1)
            meant = f"did you mean {near[0]!r}? This page has" if near else "this page has"
            raise ValueError(f"unknown parameter {name!r}: {meant} {', '.join(defaults)}")
        default = defaults[name]
        if not _fits(value, default):
            raise TypeError(f"the parameter {name} is {_WORDS[type(default)]} such as {default!r}, got {value!r}")


def _assigned(source: str) -> dict[str, ast.expr]:
    return {ast.unparse(line.targets[0]): line.value for line in ast.parse(source).body if isinstance(line, ast.Assign)}


def check_page(page: Mapping[str, Any]) -> None:
    """`check` what papermill injected into the notebook that runs; to be called as `check_page(globals())`.

    papermill's cell begins with "# Parameters" and follows the cell of the defaults, which are plain literals; both are
    found in IPython's history of cells. Without such a cell the defaults stand and there is nothing to check.
    """
    cells = list(page.get("In", ()))
    for place in range(len(cells) - 1, 0, -1):
        if cells[place].startswith("# Parameters"):
            defaults = {name: ast.literal_eval(value) for name, value in _assigned(cells[place - 1]).items()}
            check({name: page[name] for name in _assigned(cells[place])}, defaults)
            return
