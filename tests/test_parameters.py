"""Parameters of a page are checked against its own; pages and benchmarks use public names alone."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from cosutils.report.parameters import check, check_page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DEFAULTS = dict(
    model="cos-mini",
    steps=20,
    level=0.9,
    loud=False,
    tasks=["maze"],
    depths=[0.1, 0.5],
    any=[],
    loading={},
    sizes={"a": 1},
)


@pytest.mark.parametrize(
    "given",
    [
        dict(model="other", steps=3, level=1, loud=True),
        dict(tasks=["shelf", "maze"], depths=[1, 0.5], any=[1, "a"], loading={"lora": "x"}, sizes={}),
        dict(tasks=[], level=0.5),
        {},
    ],
)
def test_parameters_of_the_kind_of_their_defaults_pass(given):
    check(given, DEFAULTS)


@pytest.mark.parametrize(
    "given, kind, sentence",
    [
        (
            dict(step=2),
            ValueError,
            "unknown parameter 'step': did you mean 'steps'? This page has model, steps, level, ",
        ),
        (dict(zzz=2), ValueError, "unknown parameter 'zzz': this page has model, steps, level, "),
        (dict(steps="2"), TypeError, "the parameter steps is a whole number such as 20, got '2'"),
        (dict(steps=2.0), TypeError, "the parameter steps is a whole number such as 20, got 2.0"),
        (dict(steps=True), TypeError, "the parameter steps is a whole number such as 20, got True"),
        (dict(steps=None), TypeError, "the parameter steps is a whole number such as 20, got None"),
        (dict(level="high"), TypeError, "the parameter level is a number such as 0.9, got 'high'"),
        (dict(loud=1), TypeError, "the parameter loud is True or False such as False, got 1"),
        (dict(model=3), TypeError, "the parameter model is a text such as 'cos-mini', got 3"),
        (dict(tasks="maze"), TypeError, "the parameter tasks is a list such as ['maze'], got 'maze'"),
        (dict(tasks=["maze", 3]), TypeError, "the parameter tasks is a list such as ['maze'], got ['maze', 3]"),
        (dict(depths=["a"]), TypeError, "the parameter depths is a list such as [0.1, 0.5], got ['a']"),
        (dict(sizes={"a": "b"}), TypeError, "the parameter sizes is a mapping such as {'a': 1}, got {'a': 'b'}"),
    ],
)
def test_another_name_or_kind_ends_in_one_sentence(given, kind, sentence):
    with pytest.raises(kind) as found:
        check(given, DEFAULTS)
    assert str(found.value).startswith(sentence)


def sources(path: Path, given: dict) -> list[str]:
    """The parameters cell of a page, papermill's own and the one after, as IPython's history holds them."""
    page = parameterize_notebook(load_notebook_node(str(path)), given)
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    start = next(place for place, cell in enumerate(code) if "parameters" in cell.metadata.tags)
    return [cell.source for cell in code[start : start + 3]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_page_checks_what_papermill_gives_it_before_it_uses_it(path):
    defaults, given, first = sources(path, {"stepp": 2})
    body = ast.parse(first).body
    after = [line for line in body if not isinstance(line, (ast.Import, ast.ImportFrom))]
    assert ast.unparse(after[0]) == "check_page(globals())"
    page: dict = {"In": ["", defaults, given]}
    exec(f"{defaults}\n{given}", page)
    with pytest.raises(ValueError, match="unknown parameter 'stepp'"):
        check_page(page)
    page = {"In": ["", defaults]}
    exec(defaults, page)
    check_page(page)  # nothing was given


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_fit_the_pages_that_they_name(path):
    presets = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for name, given in ((name, given) for name, given in presets.items() if not name.startswith(".")):
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
        check(given or {}, {key: ast.literal_eval(one["default"]) for key, one in known.items()})


# ---------------------------------------------------------------- public names
OTHERS = {"_execution_device", "_keep_in_fp32_modules"}  # diffusers' own, for which it has no public name


def private(tree: ast.AST) -> set[str]:
    """Names that begin with one underscore, in imports (any part of the path) and as attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(name.name for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {part for name in node.names for part in name.name.split(".")}
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - OTHERS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_use_public_names_alone(path):
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert set().union(*(private(ast.parse(source)) for source in cells)) == set()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_use_public_names_alone(path):
    assert private(ast.parse(path.read_text(encoding="utf-8"))) == set()
