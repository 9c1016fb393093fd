"""The refresh and build tools on a tiny notebook, and the built pages: offline, complete, quiet in a browser."""

from __future__ import annotations

import html.parser
import json
import os
import pathlib
import re
import shutil

import nbformat
import pytest
import yaml
from nbformat import v4

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ROOT / "_build" / "html"
NOT_BUILT = "the book is not built here: run `make book` first"
needs_book = pytest.mark.skipif(not (PAGES / "index.html").is_file(), reason=NOT_BUILT)


@pytest.fixture(scope="module")
def tools():
    """The two tools as modules."""
    import build_book
    import refresh_notebooks

    return build_book, refresh_notebooks


@pytest.fixture
def tree(tmp_path):
    """A tree with one notebook: one parameter, one figure, one way to fail."""
    cells = [
        v4.new_code_cell("size = 2"),
        v4.new_code_cell("import matplotlib.pyplot as plt\nfrom cosutils import figures\nprint(1 // size)"),
        v4.new_code_cell(
            "fig, ax = plt.subplots()\nax.plot([0, size])\nfigures.show(fig, 'line', 'one straight line')"
        ),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    cells[0].metadata["scrolled"] = True
    nb = v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    (tmp_path / "notebooks" / "params" / "default.yaml").write_text("{}\n")
    (tmp_path / "notebooks" / "one.ipynb").write_text(nbformat.writes(nb))
    return tmp_path


def preset(tree, text):
    (tree / "notebooks" / "params" / "default.yaml").write_text(text)


def test_refreshing_twice_writes_the_same_bytes_and_stamps_the_figure(tools, tree):
    path = tree / "notebooks" / "one.ipynb"
    nb = nbformat.read(path, 4)
    for cell, name in zip(nb.cells, ("a", "a", ""), strict=True):
        cell["id"] = name  # one doubled, one empty: both are given fixed ones
    path.write_text(v4.writes(nb))
    given = [cell.id for cell in tools[1].read(path).cells]
    assert tools[1].refresh(path)
    first = path.read_bytes()
    assert not tools[1].refresh(path) and path.read_bytes() == first
    assert [cell.id for cell in tools[1].read(path).cells] == given
    nb = nbformat.read(path, 4)
    assert [cell.execution_count for cell in nb.cells] == [1, 2, 3]
    assert len({cell.id for cell in nb.cells}) == 3 and "scrolled" not in nb.cells[0].metadata
    assert nb.cells[2].metadata.mystnb == {
        "figure": {"name": "line", "caption": "one straight line"},
        "image": {"alt": "one straight line"},
    }
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_preset_names_are_checked(tools, tree):
    build = tools[0]
    assert build.preset_parameters(tree, "default") == {"one": {}}
    with pytest.raises(ValueError, match="no preset 'fast' .* there are: default"):
        build.preset_parameters(tree, "fast")
    preset(tree, "two: {size: 1}")
    with pytest.raises(ValueError, match="no notebook 'two'; there are: one"):
        build.preset_parameters(tree, "default")
    preset(tree, "one: {sise: 1}")
    with pytest.raises(ValueError, match="one has no parameter 'sise'; it has: size"):
        build.preset_parameters(tree, "default")
    preset(tree, "one: {size: null}")
    with pytest.raises(ValueError, match="one.size must be"):
        build.preset_parameters(tree, "default")
    preset(tree, "one: {size: 3}")
    assert build.preset_parameters(tree, "default") == {"one": {"size": 3}}
    preset(tree, ".shared: &shared {size: {pixels: 3}}\none:\n  <<: *shared")
    assert build.preset_parameters(tree, "default") == {"one": {"size": {"pixels": 3}}}


def test_a_notebook_that_raises_is_recorded_as_failed_and_nothing_is_published(tools, tree):
    (tree / "book").mkdir()
    for name in ("_toc.yml", "_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    (tree / "_build" / "html").mkdir(parents=True)
    (tree / "_build" / "html" / "index.html").write_text("old")
    preset(tree, "one: {size: 0}")
    assert tools[0].build(tree, "default", workers=1) == 1
    manifest = (tree / "_build" / "manifest.json").read_text()
    assert '"status": "failed"' in manifest and "ZeroDivisionError" in manifest
    assert (tree / "_build" / "html" / "index.html").read_text() == "old"
    staged = tree / "_build" / "stage" / "notebooks"  # what a later build may keep is whole or not there
    assert [path.name for path in staged.iterdir()] == ["one.part.ipynb"]


def test_a_tool_that_fails_leaves_no_half_of_its_pages(tools, tmp_path, monkeypatch):
    for name, end in (("fails.py", "raise SystemExit('out of paint')"), ("works.py", "")):
        code = "import pathlib, sys\nfolder = pathlib.Path(sys.argv[1])\nfolder.mkdir()\n(folder / 'a').touch()\n"
        (tmp_path / name).write_text(code + end)
    monkeypatch.setattr(tools[0], "TOOLS", {"bad": str(tmp_path / "fails.py"), "good": str(tmp_path / "works.py")})
    bad, good = (tools[0].run_tool(page, tmp_path / page) for page in ("bad", "good"))
    assert bad["status"] == "failed" and bad["error"] == "out of paint" and not (tmp_path / "bad").exists()
    assert good["status"] == "ok" and (tmp_path / "good" / "a").is_file()


def test_one_page_afresh_keeps_the_others_as_the_last_build_left_them(tools, tree):
    (tree / "book" / "_static").mkdir(parents=True)
    for name in ("_toc.yml", "_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    shutil.copy(tree / "notebooks" / "one.ipynb", tree / "notebooks" / "two.ipynb")
    stage = tree / "_build" / "stage"
    tools[0].stage_tree(tree, stage, ["two"])
    assert (stage / "notebooks" / "two.ipynb").read_bytes() == (tree / "notebooks" / "two.ipynb").read_bytes()
    (stage / "notebooks" / "two.ipynb").write_text("as it was run")
    (stage / "runs").mkdir()
    (stage / "runs" / "two.json").write_text("{}")
    (stage / "book" / "_static" / "explorer").mkdir()
    tools[0].stage_tree(tree, stage, ["two"])
    assert (stage / "notebooks" / "two.ipynb").read_text() == "as it was run"
    assert (stage / "runs" / "two.json").is_file() and (stage / "book" / "_static" / "explorer").is_dir()
    tools[0].stage_tree(tree, stage)
    assert not list((stage / "notebooks").iterdir()) and not (stage / "book" / "_static" / "explorer").exists()
    with pytest.raises(ValueError, match="no notebook's name begins with '07'; there are: one, two"):
        tools[0].build(tree, "default", 1, only="07")


def test_the_provenance_of_every_record_is_one_file(tools, tmp_path):
    record = '{"section": "03_noise", "numbers": {}, "provenance": {"model": "cos-mini", "seeds": [0]}}'
    for folder in ("results", "results/full"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "03_noise.json").write_text(record)
    tools[0].write_provenance(tmp_path / "results", tmp_path / "out" / "provenance.json")
    found = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert found == {name: {"03_noise": {"model": "cos-mini", "seeds": [0]}} for name in ("results", "results/full")}


def test_what_a_notebook_says_goes_to_its_log(tools, tmp_path, capfd):
    with tools[0].into_log(tmp_path / "log" / "one.txt"):
        os.write(2, b"a warning of others")
    os.write(2, b"heard")
    assert (tmp_path / "log" / "one.txt").read_text() == "a warning of others" and capfd.readouterr().err == "heard"


def test_a_page_says_once_what_it_is_and_what_the_book_is(tools, tmp_path):
    (tmp_path / "notebooks").mkdir()
    page = tmp_path / "notebooks" / "one.html"
    page.write_text("<html><head><title>Book &#8212; Book</title></head><body></body></html>")
    tools[0].mend_pages(tmp_path)
    text = page.read_text()
    assert "<title>Book</title>" in text and '<meta name="description"' in text
    assert 'property="og:image" content="../_static/front/strip.png"' in text


def test_buttons_appear_once_the_address_is_given(tools, tree):
    """A whole build of a small book: without the address no page leads to it, with it every page has the buttons."""
    shutil.copytree(ROOT / "book" / "_static", tree / "book" / "_static", ignore=shutil.ignore_patterns("explorer"))
    shutil.copy(ROOT / "book" / "references.bib", tree / "book")
    (tree / "book" / "index.md").write_text("# Small book\n\nOne page: [one](../notebooks/one.ipynb).\n")
    nb = nbformat.read(tree / "notebooks" / "one.ipynb", 4)
    nb.cells.insert(0, v4.new_markdown_cell("# One"))
    nbformat.write(nb, tree / "notebooks" / "one.ipynb")
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"glob": "notebooks/*"}]}
    (tree / "_toc.yml").write_text(yaml.safe_dump(toc))
    for name in ("_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    address = "https://github.com/someone/book"
    for given in (False, True):
        if given:
            with (tree / "pyproject.toml").open("a") as file:
                file.write(f'\n[project.urls]\nRepository = "{address}"\n')
        assert tools[0].build(tree, "default", workers=1) == 0
        page = (tree / "_build" / "html" / "notebooks" / "one.html").read_text()
        links = (
            "mybinder.org/v2",
            "colab.research.google.com",
            f"{address}/edit/main/notebooks/one.ipynb",
            f"{address}/issues",
        )
        assert [link in page for link in links] == [given] * 4, links
        assert "Fig. 1" in page and 'alt="one straight line"' in page


def test_the_pdf_says_what_it_lacks(tools, tmp_path, monkeypatch):
    import make_pdf

    with pytest.raises(ValueError, match="nothing to print: run `make book` first"):
        make_pdf.single_page(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no Chromium found .*`apt install chromium"):
        make_pdf.chromium()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="the system has no chromium")
def test_a_page_is_printed(tools, tmp_path):
    import make_pdf

    (tmp_path / "page.html").write_text("<title>one</title><p>one line")
    make_pdf.print_page(tmp_path / "page.html", tmp_path / "new" / "page.pdf")
    assert (tmp_path / "new" / "page.pdf").read_bytes().startswith(b"%PDF")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.pdf"]


def test_publishing_replaces_the_whole_folder(tools, tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    tools[0].publish(tmp_path / "new", tmp_path / "final")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["final", "final/new"]


class Loads(html.parser.HTMLParser):
    """Addresses that a page loads by itself (links to follow are not among them), and pictures without alt text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.mute: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" or "src" in given:
            self.addresses.append(given.get("href" if tag == "link" else "src") or "")
        if tag == "img" and not given.get("alt"):
            self.mute.append(given.get("src") or "")
        if tag == "video" and not ("controls" in given and given.get("aria-label")):
            self.mute.append("video")


def built_pages() -> list[pathlib.Path]:
    return sorted(page for page in PAGES.rglob("*.html") if "_static" not in page.parts)


@needs_book
def test_built_pages_load_only_files_of_the_book_and_no_picture_is_mute():
    for page in built_pages():
        text = page.read_text(encoding="utf-8")
        found = Loads()
        found.feed(text)
        outside = [a for a in found.addresses if re.match(r"(https?:)?//", a)]
        assert not outside, f"{page.name} loads {outside}"
        for address in found.addresses:
            local = address.split("?")[0].split("#")[0]
            if local and not local.startswith("data:"):
                assert (page.parent / local).exists(), f"{page.name} lacks {local}"
        assert not found.mute, f"{page.name}: no alternative text for {found.mute}"
        assert "unpkg.com" not in text and "cdn.jsdelivr.net" not in text, page.name


@needs_book
def test_every_notebook_has_its_page_with_numbered_figures():
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = (PAGES / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        nb = nbformat.read(notebook, 4)
        figures = [cell.metadata.mystnb.figure for cell in nb.cells if "figure" in cell.metadata.get("mystnb", ())]
        assert page.count('class="caption-number"') >= len(figures) > 0
        for figure in figures:
            assert f'id="{figure.name}"' in page


@needs_book
def test_every_chapter_says_what_it_finds_before_its_first_code():
    for page in sorted((PAGES / "notebooks").glob("*.html")):
        if "02" <= page.name[:2] <= "11":
            text = page.read_text(encoding="utf-8")
            assert text.count('<div class="finding"') == 1, page.name
            assert text.index('<div class="finding"') < text.index('<div class="highlight'), page.name
