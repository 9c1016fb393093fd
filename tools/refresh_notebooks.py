"""Execute notebooks with their default parameters and write clean, diff-able stored outputs.

    python tools/refresh_notebooks.py [--store | --findings] [notebooks/02_chain_of_steps.ipynb ...]   (default: all)

With --store the numbers that a notebook recorded replace those stored in `data/results`, and its last cell, which
compares the two, is run once more. With --findings only the cells tagged "finding" are executed, which read stored
records alone: for when these, the claims or the sentences have changed.

Run twice it writes the same bytes: cell ids are fixed, timings and front-end metadata are dropped, streams
merged. A notebook that raises is left as it was. Every figure's name, caption and alt text, which
`cosutils.report.figures.show` publishes with the picture, are copied into the cell's metadata, where the book reads
them.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import pathlib
import re
import time
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_output

from cosutils._files import write_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDED = {  # tag -> what the reader opens
    "own-verdicts": "This page's own small run: verdicts",
    "own-numbers": "This page's own small run: numbers",
    "by-task": "Verdicts task by task",
    "all-numbers": "All numbers",
}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def stamp_figures(nb: NotebookNode) -> NotebookNode:
    """Write the `mystnb` metadata of cells: the texts of a figure or film, and the name of what is `FOLDED`.

    More than one figure per cell is refused.
    """
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        texts = [output.metadata["cos"] for output in cell.outputs if "cos" in output.get("metadata", {})]
        if len(texts) > 1:
            raise ValueError(f"one figure per cell; this one shows {', '.join(text['name'] for text in texts)}")
        cell.metadata.pop("mystnb", None)
        for text in texts:
            figure = {"name": text["name"], "caption": text["caption"]}
            cell.metadata["mystnb"] = {"figure": figure, "image": {"alt": text["alt"]}}
        for tag in set(FOLDED) & set(cell.metadata.get("tags", ())):
            prompts = {"code_prompt_show": FOLDED[tag], "code_prompt_hide": FOLDED[tag]}
            cell.metadata["mystnb"] = cell.metadata.get("mystnb", {}) | prompts
    return nb


def read(path: pathlib.Path) -> NotebookNode:
    """The notebook with a fixed id on every cell, given before nbformat would draw random ones.

    A valid, unique id is kept; the others get one made from the cell's source.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["nbformat_minor"] = 5
    taken: set[str] = set()
    for cell in raw["cells"]:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", cell.get("id", "")) or cell["id"] in taken:
            count = 0
            while (new := hashlib.sha256(f"{count}{''.join(cell['source'])}".encode()).hexdigest()[:8]) in taken:
                count += 1
            cell["id"] = new
        taken.add(cell["id"])
    return nbformat.reads(json.dumps(raw), as_version=4)


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring outputs to the same stream: how the kernel cuts them is a matter of timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1]["text"] += output.text
        else:
            merged.append(output)
    return merged


def clean(nb: NotebookNode) -> NotebookNode:
    """`nb` without anything that changes from run to run or from front end to front end."""
    nb["metadata"] = NotebookNode(kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python"))
    for cell in nb.cells:
        tags = cell.metadata.get("tags")
        cell["metadata"] = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell["outputs"] = _merge_streams(cell.outputs)
    return stamp_figures(nb)


def write(nb: NotebookNode, path: pathlib.Path) -> None:
    """Validate and write `nb` whole or not at all."""
    nbformat.validate(nb)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(nbformat.writes(nb, version=4).rstrip("\n") + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def renew_findings(path: pathlib.Path) -> bool:
    """Run the cells tagged "finding" alone, in this process, and count all cells; True when the bytes changed."""
    before = path.read_bytes()
    nb = read(path)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        if "finding" in cell.metadata.get("tags", ()):
            *lines, last = ast.parse(cell.source).body
            names: dict[str, Any] = {}
            exec(compile(ast.Module(lines, []), path.name, "exec"), names)
            box = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            data = {"text/html": box._repr_html_(), "text/plain": repr(box)}
            cell.outputs = [new_output("execute_result", data, execution_count=count)]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    write(clean(nb), path)
    return path.read_bytes() != before


def refresh(path: pathlib.Path, store: bool = False) -> bool:
    """Execute one notebook in its own folder; True when its stored bytes changed. Raises what a cell raises.

    store: first put the numbers it recorded, `runs/<name>.json`, in the place of `data/results/<name>.json`; of a page
    that records none nothing is stored.
    """
    before = path.read_bytes()
    nb, began = read(path), time.time()
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        nb, timeout=7200, startup_timeout=1800, kernel_name="python3", resources=resources, record_timing=False
    )
    with client.setup_kernel():
        for index, cell in enumerate(nb.cells):
            client.execute_cell(cell, index)
        recorded, stored = (path.parent.parent / place / f"{path.stem}.json" for place in ("runs", "data/results"))
        if store and recorded.is_file() and recorded.stat().st_mtime >= began:  # some pages record nothing
            write_text(stored, recorded.read_text(encoding="utf-8"))
            count = cell.execution_count
            client.execute_cell(cell, index)
            cell.execution_count = count
    write(clean(nb), path)
    return path.read_bytes() != before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, help="default: every notebook of notebooks/")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--store", action="store_true", help="store the recorded numbers in data/results too")
    kind.add_argument("--findings", action="store_true", help="execute the finding boxes alone")
    arguments = parser.parse_args()
    for path in arguments.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        path = path.resolve()
        changed = renew_findings(path) if arguments.findings else refresh(path, arguments.store)
        print(f"{path.name}: {'changed' if changed else 'unchanged'}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
