"""Work in children of one process that has imported the libraries: each starts in no time, and is thrown away.

    python tests/forked.py tests '[["/tmp/copy", ["tests/test_record.py::test_x"]], ...]'
    python tests/forked.py notebooks '[["notebooks/01_setup.ipynb", "/tmp/place/notebooks", {"puzzles": 2}], ...]'

Importing torch and diffusers takes seconds, a guarding test or a small notebook mostly less. What `tests` and
`notebooks` below return for each job is printed as one JSON list, `WORKERS` jobs at a time.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import diffusers
import matplotlib.pyplot
import matplotlib_inline.backend_inline
import pytest
import scipy.ndimage
import scipy.optimize
import scipy.stats
import seaborn
import torch
import transformers
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

WORKERS = min(2, os.cpu_count() or 1)
KINDS = ("Wan", "LTX", "CogVideoX", "HunyuanVideo")
PRELOADED = (
    *(getattr(diffusers, f"{kind}ImageToVideoPipeline") for kind in KINDS),
    *(getattr(diffusers, name) for name in ("AutoencoderKLWan", "UniPCMultistepScheduler")),
    *(getattr(transformers, name) for name in ("UMT5EncoderModel", "CLIPVisionModel", "PreTrainedTokenizerFast")),
    scipy.ndimage, scipy.optimize, scipy.stats, matplotlib.pyplot, matplotlib_inline.backend_inline, seaborn,
)  # fmt: skip


def ended(error: pytest.ExceptionInfo) -> str:
    """Name of the exception, or "refused" where a line of the package that raises or warns ended the test."""
    last = error.traceback[-1]
    speaks = str(last.statement).lstrip().startswith(("raise ", "warnings.warn("))
    return "refused" if speaks and "cosutils" in Path(last.path).parts else error.typename


class Outcomes:
    """A pytest plugin that notes how every test ended."""

    def __init__(self):
        self.found = {}

    def pytest_collectreport(self, report):
        if report.failed:
            self.found["collection"] = "error"

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if call.when == "call":
            self.found[item.nodeid] = ended(call.excinfo) if report.failed else report.outcome
        elif report.failed:
            self.found[item.nodeid] = f"{call.excinfo.typename} in {call.when}"


def tests(folder: str, chosen: list[str]) -> dict[str, str]:
    """Outcomes of the `chosen` tests of a copy of the package: {node id: "passed" or the name of the exception}.

    A copy that cannot be collected gives {"collection": "error"}. Nothing has imported cosutils before.
    """
    os.chdir(folder)
    sys.path.insert(0, folder)
    outcomes = Outcomes()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    status = pytest.main(["-o", "addopts=", "-p", "no:cacheprovider", *chosen], plugins=[outcomes])
    used = Path(sys.modules["cosutils"].__file__)
    if not used.is_relative_to(folder):
        raise RuntimeError(f"tested {used} instead of the copy in {folder}")
    return outcomes.found or {"collection": f"exit status {status}"}


def notebooks(source: str, place: str, parameters: dict) -> str:
    """Run the cells of a notebook with other parameters in the folder `place`; the error that ended it, or ""."""
    notebook = parameterize_notebook(load_notebook_node(source), parameters)
    os.chdir(place)
    matplotlib.use("module://matplotlib_inline.backend_inline")
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            result = shell.run_cell(cell.source, store_history=True)
            if error := result.error_before_exec or result.error_in_exec:
                return f"{type(error).__name__}: {error}"
    return ""


def child(work: Callable[..., object], job: list, answer: Path) -> int:
    """Do `work(*job)` in a forked process that leaves its JSON in `answer`, and what it prints beside it."""
    if pid := os.fork():
        return pid
    try:
        log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        answer.write_text(json.dumps(work(*job)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what is there now is no child's to collect
    work, jobs = {"tests": tests, "notebooks": notebooks}[sys.argv[1]], json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        answers = [Path(folder) / f"{number}.json" for number in range(len(jobs))]
        running: set[int] = set()
        for job, answer in zip(jobs, answers, strict=True):
            if len(running) == WORKERS:
                running.discard(os.wait()[0])
            running.add(child(work, job, answer))
        while running:
            running.discard(os.wait()[0])
        found = []
        for answer in answers:
            if not answer.is_file():
                print(answer.with_suffix(".log").read_text()[-2000:], file=sys.stderr)
            found.append(json.loads(answer.read_text()) if answer.is_file() else {"collection": "error"})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
