"""The progress bar hands every item through and leaves nothing in a notebook."""

import pytest
from nbclient import NotebookClient
from nbformat import v4

from cosutils.report.progress import progress


def test_items_come_through_and_the_bar_goes_away(capsys):
    assert list(progress(range(3), "three")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_notebook_stores_no_bar():
    source = "from cosutils.report.progress import progress\ntotal = sum(progress([1, 2], 'two'))"
    nb = v4.new_notebook(cells=[v4.new_code_cell(source), v4.new_code_cell("print(total)")])
    NotebookClient(nb, timeout=7200, startup_timeout=1800, kernel_name="python3").execute()
    assert nb.cells[0].outputs == [] and nb.cells[1].outputs[0].text == "3\n"
