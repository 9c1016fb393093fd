"""`make full`: jobs that resume, and numbers that stay where a job fails."""

from __future__ import annotations

import json

import full_results
import nbformat
import pytest

pytestmark = pytest.mark.slow  # starts kernels


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project of one page, which records the square of its parameter and refuses zero."""
    for folder in ("notebooks/params", "cosutils", "data/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cosutils" / "one.py").write_text("x = 1\n")
    (tmp_path / "data" / "model" / "SHA256SUMS").write_text("00  weights\n")
    write = "import json, pathlib\npathlib.Path('../runs').mkdir(exist_ok=True)\n"
    write += "json.dump(dict(numbers=1 / n, provenance={}), open('../runs/01_page.json', 'w'))"
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    cells = [nbformat.v4.new_code_cell("n = 1", metadata=dict(tags=["parameters"])), nbformat.v4.new_code_cell(write)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / "01_page.ipynb")
    (tmp_path / "notebooks" / "params" / "full.yaml").write_text("01_page: {n: 2}\n")
    for other in set(full_results.PRESETS) - {"full"}:
        (tmp_path / "notebooks" / "params" / f"{other}.yaml").write_text("{}\n")
    monkeypatch.setattr(full_results, "COMMANDS", {})
    return tmp_path


def test_a_stopped_run_goes_on_and_a_change_runs_again(root, capsys):
    stored = root / "data" / "results" / "full" / "01_page.json"
    assert full_results.run_all(root, 1, None, False) == 0
    first = json.loads(stored.read_text())
    assert first["numbers"] == 0.5 and first["provenance"]["command"].endswith("--only full/01_page")
    stored.unlink()
    assert full_results.run_all(root, 1, None, False) == 0 and not stored.exists()  # done before
    assert "1 of them done before" in capsys.readouterr().out
    (root / "cosutils" / "one.py").write_text("x = 2\n")
    assert full_results.run_all(root, 1, None, False) == 0 and stored.exists()


def test_a_failed_job_leaves_its_numbers_and_runs_again(root, capsys):
    stored = root / "data" / "results" / "full" / "01_page.json"
    stored.parent.mkdir(parents=True)
    stored.write_text('{"provenance": {"seconds": 3}}')
    (root / "notebooks" / "params" / "full.yaml").write_text("01_page: {n: 0}\n")
    for _ in range(2):
        assert full_results.run_all(root, 1, None, False) == 1
        assert stored.read_text() == '{"provenance": {"seconds": 3}}'
        assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_job_that_raises_does_not_cost_the_others_their_entry(root, monkeypatch, capsys):
    monkeypatch.setattr(full_results, "COMMANDS", {"other": []})
    (root / "data" / "results").mkdir(parents=True)
    (root / "data" / "results" / "full").write_text("a file in the way of the folder")
    assert full_results.run_all(root, 1, None, False) == 1
    assert list(json.loads((root / "_build" / "full" / "done.json").read_text())) == ["other"]
    assert "FileExistsError" in capsys.readouterr().out


def test_a_page_of_another_preset_runs_where_it_is_asked_for(root):
    (root / "notebooks" / "params" / "large.yaml").write_text("01_page: {n: 4}\n")
    assert [job.name for job in full_results.jobs(root, {})] == ["full/01_page"]
    assert {job.name for job in full_results.jobs(root, {}, ["large/01_page"])} == {"full/01_page", "large/01_page"}
    with pytest.raises(ValueError, match="no preset 'larger' in notebooks/params"):
        full_results.jobs(root, {}, ["larger/01_page"])


def test_an_unknown_job_is_named(root):
    with pytest.raises(ValueError, match="no job 'full/02_page'; there are: full/01_page"):
        full_results.run_all(root, 1, ["full/02_page"], False)
