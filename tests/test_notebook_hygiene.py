"""nbval passes a cell that was never run, so stripped notebooks would go unseen; these tests close that hole."""

from __future__ import annotations

import ast
import pathlib
import re

import nbformat
import pytest

from cosutils.report.findings import finding

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADVICE = "run `make refresh`"


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    nb = nbformat.read(request.param, 4)
    nbformat.validate(nb)
    return nb


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_cell_was_run_once_and_in_order(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), ADVICE
    assert sum(bool(cell.outputs) for cell in code) >= len(code) // 3, f"stored outputs are missing: {ADVICE}"


def test_a_cell_that_prints_or_shows_has_its_output(code):
    for cell in code:
        statements = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.FunctionDef)]
        calls = {ast.unparse(n.func) for s in statements for n in ast.walk(s) if isinstance(n, ast.Call)}
        if calls & {"print", "figures.show", "figures.show_film", "figures.show_html", "figures.show_table"}:
            assert cell.outputs, f"{ADVICE}; no output below:\n{cell.source}"


def test_outputs_are_neither_errors_nor_warnings_nor_widgets(code):
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            assert not any("widget" in kind for kind in output.get("data", {})), cell.source


def test_a_progress_bar_is_not_compared_with_stored_output(code):
    for cell in code:
        if "progress(" in cell.source:  # nbval does not know that the bar is cleared away
            assert "nbval-ignore-output" in cell.metadata.get("tags", []), cell.source


def test_exactly_one_parameters_cell_of_plain_literals(code):
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        ast.literal_eval(statement.value)


def test_every_picture_has_alt_text_name_and_caption(code):
    names = []
    for cell in code:
        for output in () if "finding" in cell.metadata.get("tags", ()) else cell.outputs:
            if not any(kind.startswith("image/") or kind == "text/html" for kind in output.get("data", {})):
                continue
            texts = output.metadata.get("cos")
            assert texts, f"show pictures with cosutils.report.figures.show or show_film:\n{cell.source}"
            assert cell.metadata.mystnb.image.alt == texts.alt and len(texts.alt.split()) >= 3, ADVICE
            assert cell.metadata.mystnb.figure == {"name": texts.name, "caption": texts.caption}, ADVICE
            names.append(texts.name)
    assert names and len(set(names)) == len(names)


def test_a_chapter_opens_with_its_finding_and_folds_its_own_run(request, notebook, code):
    name = request.node.callspec.params["notebook"].stem
    if not "02" <= name[:2] <= "12":
        pytest.skip("not a chapter with a finding")
    first = code[0]
    assert first.metadata.tags == ["finding", "remove-input"]
    assert '<div class="finding"' in first.outputs[0].data["text/html"]
    if name != "12_serial":  # judged by its own rules
        assert f'finding("{name}")' in first.source
        assert first.outputs[0].data["text/plain"] == repr(finding(name)), f"{ADVICE}, or the tool's --findings"
    for cell in code:
        if "print(verdict_text(" in cell.source or "print(beside(" in cell.source:
            assert "hide-cell" in cell.metadata.tags and cell.metadata.mystnb.code_prompt_show, cell.source


def test_metadata_holds_nothing_of_the_run_or_the_front_end(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, ADVICE
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "mystnb"}, ADVICE


def test_cells_are_short_and_argue_rather_than_compute(code):
    for cell in code:
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert len(cell.source.splitlines()) <= 30, cell.source
        assert not any(isinstance(node, ast.ClassDef) for node in nodes), cell.source
        assert sum(isinstance(node, ast.FunctionDef) for node in nodes) <= 1, cell.source


def test_text_names_no_machine(notebook):
    text = nbformat.writes(notebook)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(home|root|tmp|Users)/", text)
