"""Run every notebook with a preset's parameters in a copy of the book, then build the pages from that copy.

    python tools/build_book.py [--preset default] [--workers 3] [--timeout 7200] [--only 05]

1. `book/`, `notebooks/` and the two configuration files are copied to `_build/stage`, `data/` is linked.
2. papermill runs each notebook (found by glob, several at a time) with the parameters that
   `notebooks/params/<preset>.yaml` gives it: {notebook name without .ipynb: {parameter: value}}.
   A notebook or parameter name that does not exist is an error; a name that begins with a dot only holds what other
   entries repeat by reference (YAML anchors).
   Beside them, `make_explorer.py` computes the pictures of the explorer page and `export_live.py` writes the models of
   the live page. A line says when each begins and ends; what else they say goes to `_build/log`.
3. `_build/manifest.json` says what ran, with which parameters, how long, and what failed.
4. Jupyter Book builds the staged copy without executing anything; every warning is an error.
5. `_build/html` (pages) and `_build/results` (numbers) are replaced only when all of that went well.

With `--only` the notebooks whose names begin so are run, and the others keep what the last build left of them; without
an earlier build the outputs stored with the notebooks take their place.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import nbformat
import papermill
import yaml
from refresh_notebooks import stamp_figures, write

ROOT = pathlib.Path(__file__).resolve().parents[1]
LITERALS = (bool, int, float, str, list, dict)
DESCRIPTION = (
    "Do video models reason along their denoising steps? The claims of Demystifying Video Reasoning, measured on small "
    "models whose answers can be read exactly."
)
TOOLS = {"explorer": "make_explorer.py", "live": "export_live.py"}  # page -> what writes its data
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


def stage_tree(root: pathlib.Path, stage: pathlib.Path, kept: Sequence[str] = ()) -> None:
    """Fresh copy of what the book is built from; the notebooks come later, executed.

    kept: names of notebooks that stay as the last build, or else the repository, has them; the explorer's pictures stay
    with them.
    """
    last = {name: stage / "notebooks" / f"{name}.ipynb" for name in kept}
    texts = {name: (p if p.is_file() else root / "notebooks" / p.name).read_bytes() for name, p in last.items()}
    explorer = stage / "book" / "_static" / "explorer"
    aside = stage.with_name("explorer.kept")
    shutil.rmtree(aside, ignore_errors=True)
    if kept and explorer.is_dir():
        os.rename(explorer, aside)
    results = stage / "runs"
    records = {p.name: p.read_bytes() for name in kept if (p := results / f"{name}.json").is_file()}
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(root / "book", stage / "book")
    (stage / "notebooks").mkdir()
    for name, text in texts.items():
        (stage / "notebooks" / f"{name}.ipynb").write_bytes(text)
    if aside.is_dir():
        os.rename(aside, explorer)
    for name, text in records.items():
        results.mkdir(exist_ok=True)
        (results / name).write_bytes(text)
    write_provenance(root / "data" / "results", stage / "book" / "_static" / "provenance.json")
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


def write_provenance(results: pathlib.Path, target: pathlib.Path) -> None:
    """One file of what all stored records say of their runs: {folder: {section: provenance}}."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("**/[0-9][0-9]_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        folder = path.parent.relative_to(results.parent).as_posix()
        found.setdefault(folder, {})[path.stem] = record["provenance"]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def into_log(path: pathlib.Path) -> Iterator[None]:
    """Send what this process and its kernels say to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        with path.open("wb") as file:
            for stream in before:
                os.dup2(file.fileno(), stream)
            yield
    finally:
        for stream, copy in before.items():
            os.dup2(copy, stream)
            os.close(copy)


def run_notebook(
    source: pathlib.Path, target: pathlib.Path, parameters: dict[str, Any], timeout: int = 7200
) -> dict[str, Any]:
    """Execute `source` into `target` and say how it went; the verdict comes from the exception alone.

    timeout: seconds that one cell may take, 0 for no end. Warnings of others end in `_build/log`. A notebook that fails
    or is broken off leaves `target` as it was, and what it ran in `<target>.part.ipynb`.
    """
    part = target.with_suffix(".part.ipynb")
    print(f"{source.stem}: begins", flush=True)
    record = {
        "notebook": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "parameters": parameters,
        "status": "ok",
    }
    start = time.perf_counter()
    try:
        with into_log(target.parents[2] / "log" / f"{source.stem}.txt"):
            papermill.execute_notebook(
                str(source),
                str(part),
                parameters=parameters,
                cwd=str(target.parent),
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=timeout or None,
                start_timeout=1800,
            )
        write(stamp_figures(nbformat.read(part, 4)), part)
        part.replace(target)
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def run_tool(page: str, folder: pathlib.Path) -> dict[str, Any]:
    """Let the tool of a page write `folder`, whole or not at all, and say how it went, as `run_notebook` does."""
    print(f"{page}: begins", flush=True)
    start = time.perf_counter()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, str(pathlib.Path(__file__).parent / TOOLS[page]), str(part)]
    run = subprocess.run(command, capture_output=True, text=True)
    record = {"notebook": page, "status": "failed" if run.returncode else "ok"}
    if run.returncode:
        record["error"] = run.stderr.strip()
    else:
        part.replace(folder)
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def run_all(
    root: pathlib.Path, stage: pathlib.Path, chosen: dict[str, dict[str, Any]], workers: int, timeout: int
) -> list[dict[str, Any]]:
    """Execute the chosen notebooks and the tools of pages, `workers` at a time, each in a process of its own.

    A tool is left out where its data are there. A line is printed as each ends, with the time that is left by
    the seconds of the last build, or else by the mean so far.
    """
    manifest = root / "_build" / "manifest.json"
    before = json.loads(manifest.read_text(encoding="utf-8"))["notebooks"] if manifest.is_file() else []
    usual = {record["notebook"].removesuffix(".ipynb"): record["seconds"] for record in before}
    book, static = stage / "book", stage / "book" / "_static"
    pages = [page for page in TOOLS if (book / f"{page}.md").is_file() and not (static / page).is_dir()]
    names = [*chosen, *pages]
    workers = max(1, min(workers, len(names)))
    print(f"{len(names)} to run, {workers} at a time: {', '.join(names)}", flush=True)
    with ProcessPoolExecutor(max_workers=workers) as pool:
        folders = root / "notebooks", stage / "notebooks"
        jobs = {
            pool.submit(run_notebook, *(folder / f"{name}.ipynb" for folder in folders), values, timeout): name
            for name, values in chosen.items()
        }
        jobs |= {pool.submit(run_tool, page, static / page): page for page in pages}
        ended: dict[str, dict[str, Any]] = {}
        for job in as_completed(jobs):
            record = ended[jobs[job]] = job.result()
            mean = sum(one["seconds"] for one in ended.values()) / len(ended)
            left = sum(usual.get(name, mean) for name in names if name not in ended) / workers
            said = f"about {left / 60:.0f} min left" if len(ended) < len(names) else "all run"
            print(
                f"{jobs[job]}: {record['status']} in {record['seconds']:.0f} s ({len(ended)} of {len(names)}, {said})",
                flush=True,
            )
    return [ended[name] for name in names]


def mend_pages(pages: pathlib.Path) -> None:
    """Remove what the theme and Sphinx write and the book cannot want, and say in each head what the book is.

    Removed are the loader of live code, which names a CDN (twice), the list role of the bibliography, whose entries are
    none, and a title that says the same twice. Added are a description and a picture for those who link to the page.
    """
    for page in pages.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<title>(.+?) &#8212; \1</title>", r"<title>\1</title>", text)
        title = re.search(r"<title>(.+?)</title>", text)
        if "</head>" in text and title:
            up = "../" * (len(page.relative_to(pages).parts) - 1)
            picture = f"{up}_static/front/strip.png"
            tags = {"og:title": title[1], "og:description": DESCRIPTION, "og:type": "article", "og:image": picture}
            head = "".join(f'<meta property="{name}" content="{text}" />\n' for name, text in tags.items())
            head += f'<meta name="description" content="{DESCRIPTION}" />\n'
            text = text.replace("</head>", head + "</head>", 1)
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


def build(root: pathlib.Path, preset: str, workers: int, timeout: int = 7200, only: str = "") -> int:
    """Stage, run, build, publish; returns the exit status. only: how the names of the notebooks to run begin."""
    every = preset_parameters(root, preset)
    chosen = {name: values for name, values in every.items() if name.startswith(only)}
    if not chosen:
        raise ValueError(f"no notebook's name begins with {only!r}; there are: {', '.join(every)}")
    output = root / "_build"
    stage = output / "stage"
    stage_tree(root, stage, [name for name in every if name not in chosen])
    records = run_all(root, stage, chosen, workers, timeout)
    manifest = output / "manifest.json"
    temporary = manifest.with_suffix(".tmp")
    temporary.write_text(json.dumps({"preset": preset, "notebooks": records}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, manifest)
    if failed := [record for record in records if record["status"] != "ok"]:
        print(*(f"\n{record['notebook']}: {record['error']}" for record in failed), file=sys.stderr)
        return 1
    print("building the pages", flush=True)
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
    parser.add_argument("--only", default="", help="run only notebooks whose names begin so, such as 05")
    arguments = parser.parse_args()
    try:
        return build(ROOT, arguments.preset, arguments.workers, arguments.timeout, arguments.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
