"""Run every notebook with a preset's parameters in a copy of the book, then build the pages from that copy.

    python tools/build_book.py [--preset default] [--workers 3] [--timeout 7200]

1. `book/`, `notebooks/` and the two configuration files are copied to `_build/stage`, `data/` is linked.
2. papermill runs each notebook (found by glob, several at a time) with the parameters that
   `notebooks/params/<preset>.yaml` gives it: {notebook name without .ipynb: {parameter: value}}.
   A notebook or parameter name that does not exist is an error; a name that begins with a dot only holds what other
   entries repeat by reference (YAML anchors).
   `make_explorer.py` computes the pictures of the explorer page beside them.
3. `_build/manifest.json` says what ran, with which parameters, how long, and what failed.
4. Jupyter Book builds the staged copy without executing anything; every warning is an error.
5. `_build/html` (pages) and `_build/results` (numbers) are replaced only when all of that went well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import nbformat
import papermill
import yaml
from refresh_notebooks import stamp_figures, write

ROOT = pathlib.Path(__file__).resolve().parents[1]
LITERALS = (bool, int, float, str, list, dict)
BINDER, COLAB = "https://mybinder.org", "https://colab.research.google.com"


def preset_parameters(root: pathlib.Path, preset: str) -> dict[str, dict[str, Any]]:
    """Parameters per notebook of `preset`, every name checked against the notebooks and their parameters cells."""
    folder = root / "notebooks"
    path = folder / "params" / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ValueError(f"no preset {preset!r} in notebooks/params; there are: {known or 'none'}")
    given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    given = {name: values for name, values in given.items() if not name.startswith(".")}
    notebooks = {p.stem: p for p in sorted(folder.glob("*.ipynb"))}
    if unknown := set(given) - set(notebooks):
        raise ValueError(f"{path.name} names no notebook {min(unknown)!r}; there are: {', '.join(notebooks)}")
    chosen = {name: given.get(name) or {} for name in notebooks}
    for name, parameters in chosen.items():
        known = papermill.inspect_notebook(str(notebooks[name]))
        for key, value in parameters.items():
            if key not in known:
                raise ValueError(f"{path.name}: {name} has no parameter {key!r}; it has: {', '.join(known)}")
            if not isinstance(value, LITERALS):
                raise ValueError(
                    f"{path.name}: {name}.{key} must be a number, text, truth value, list or mapping, not {value!r}"
                )
    return chosen


def stage_tree(root: pathlib.Path, stage: pathlib.Path) -> None:
    """Fresh copy of what the book is built from; the notebooks come later, executed."""
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(root / "book", stage / "book")
    (stage / "notebooks").mkdir()
    shutil.copy(root / "_toc.yml", stage)
    if (root / "data").is_dir():
        (stage / "data").symlink_to(root / "data", target_is_directory=True)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if address := project.get("urls", {}).get("Repository"):
        config["repository"] = {"url": address, "branch": "main"}
        config["html"] |= {f"use_{name}_button": True for name in ("repository", "issues", "edit_page")}
        config["launch_buttons"] |= {"binderhub_url": BINDER, "colab_url": COLAB}
    (stage / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def run_notebook(
    source: pathlib.Path, target: pathlib.Path, parameters: dict[str, Any], timeout: int = 7200
) -> dict[str, Any]:
    """Execute `source` into `target` and say how it went; the verdict comes from the exception alone.

    timeout: seconds that one cell may take, 0 for no end.
    """
    record = {
        "notebook": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "parameters": parameters,
        "status": "ok",
    }
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=parameters,
            cwd=str(target.parent),
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=timeout or None,
            start_timeout=1800,
        )
        write(stamp_figures(nbformat.read(target, 4)), target)
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def run_explorer(folder: pathlib.Path) -> dict[str, Any]:
    """Compute the explorer's pictures into `folder` and say how it went, as `run_notebook` does."""
    start = time.perf_counter()
    command = [sys.executable, str(pathlib.Path(__file__).with_name("make_explorer.py")), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    record = {"notebook": "explorer", "status": "failed" if run.returncode else "ok"}
    if run.returncode:
        record["error"] = run.stderr.strip()
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def run_all(
    root: pathlib.Path, stage: pathlib.Path, chosen: dict[str, dict[str, Any]], workers: int, timeout: int
) -> list[dict[str, Any]]:
    """Execute the chosen notebooks and compute the explorer, `workers` at a time, each in a process of its own."""
    with ProcessPoolExecutor(max_workers=max(1, min(workers, len(chosen) + 1))) as pool:
        folders = root / "notebooks", stage / "notebooks"
        jobs = [
            pool.submit(run_notebook, *(folder / f"{name}.ipynb" for folder in folders), values, timeout)
            for name, values in chosen.items()
        ]
        if (stage / "book" / "explorer.md").is_file():
            jobs.append(pool.submit(run_explorer, stage / "book" / "_static" / "explorer"))
        return [job.result() for job in jobs]


def mend_pages(pages: pathlib.Path) -> None:
    """Remove what the theme and Sphinx write and the book cannot want.

    The loader of live code, which names a CDN (twice), and the list role of the bibliography, whose entries are none.
    """
    for page in pages.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"\s*<script>const THEBE_JS_URL.*?</script>", "", text, flags=re.S)
        text = re.sub(r'\s*<script[^>]*src="[^"]*sphinx-thebe\.js[^"]*"></script>', "", text)
        text = re.sub(r'\s*<script type="text/x-thebe-config">.*?</script>', "", text, flags=re.S)
        text = re.sub(r"\s*<script>kernelName = .*?</script>", "", text, flags=re.S)
        text = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        page.write_text(text, encoding="utf-8")


def publish(new: pathlib.Path, final: pathlib.Path) -> None:
    """Put folder `new` in the place of `final`; readers see the old one or the new one, never a half."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)


def build(root: pathlib.Path, preset: str, workers: int, timeout: int = 7200) -> int:
    """Stage, run, build, publish; returns the exit status."""
    chosen = preset_parameters(root, preset)
    output = root / "_build"
    stage = output / "stage"
    stage_tree(root, stage)
    records = run_all(root, stage, chosen, workers, timeout)
    manifest = output / "manifest.json"
    temporary = manifest.with_suffix(".tmp")
    temporary.write_text(json.dumps({"preset": preset, "notebooks": records}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, manifest)
    for record in records:
        print(f"{record['notebook']}: {record['status']} in {record['seconds']} s")
    if failed := [record for record in records if record["status"] != "ok"]:
        print(*(f"\n{record['notebook']}: {record['error']}" for record in failed), file=sys.stderr)
        return 1
    command = [str(pathlib.Path(sys.executable).parent / "jupyter-book"), "build", str(stage)]
    command += ["--path-output", str(stage), "-W", "-n", "--keep-going", "-q"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        print(run.stdout, "the book was not built: see the warnings above", sep="\n", file=sys.stderr)
        return run.returncode
    mend_pages(stage / "_build" / "html")
    publish(stage / "_build" / "html", output / "html")
    if (stage / "runs").is_dir():
        publish(stage / "runs", output / "results")
    print(f"open {(output / 'html' / 'index.html').relative_to(root)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="default", help="a file of notebooks/params, without .yaml")
    parser.add_argument("--workers", type=int, default=3, help="notebooks run at the same time")
    parser.add_argument("--timeout", type=int, default=7200, help="seconds that one cell may take, 0 for no end")
    arguments = parser.parse_args()
    try:
        return build(ROOT, arguments.preset, arguments.workers, arguments.timeout)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
