"""Run tests on altered copies of the package, each in a child of one process that has imported the libraries.

    python tests/forked.py '[["/tmp/copy", ["tests/test_record.py::test_x"]], ...]'

Prints one JSON list: for every copy its tests as {node id: outcome}, "passed" or the name of the exception that the
test raised. A copy that cannot be collected gives {"collection": "error"}. Importing torch and diffusers takes seconds,
a guarding test mostly less: forking keeps the sum of many short runs short.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import diffusers
import matplotlib.pyplot
import pytest
import scipy.ndimage
import scipy.optimize
import scipy.stats
import torch
import transformers

KINDS = ("Wan", "LTX", "CogVideoX", "HunyuanVideo")
PRELOADED = (
    *(getattr(diffusers, f"{kind}ImageToVideoPipeline") for kind in KINDS),
    *(getattr(diffusers, name) for name in ("AutoencoderKLWan", "UniPCMultistepScheduler")),
    *(getattr(transformers, name) for name in ("UMT5EncoderModel", "CLIPVisionModel", "PreTrainedTokenizerFast")),
    scipy.ndimage, scipy.optimize, scipy.stats, matplotlib.pyplot,
)  # fmt: skip


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
            self.found[item.nodeid] = call.excinfo.typename if report.failed else report.outcome
        elif report.failed:
            self.found[item.nodeid] = f"{call.excinfo.typename} in {call.when}"


def run(folder: str, tests: list[str]) -> dict[str, str]:
    """Outcomes of `tests` in the copy at `folder`; called in a child, which nothing has imported cosutils in."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    outcomes = Outcomes()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    status = pytest.main(["-o", "addopts=", "-p", "no:cacheprovider", *tests], plugins=[outcomes])
    used = Path(sys.modules["cosutils"].__file__)
    if not used.is_relative_to(folder):
        raise RuntimeError(f"tested {used} instead of the copy in {folder}")
    return outcomes.found or {"collection": f"exit status {status}"}


def child(folder: str, tests: list[str]) -> int:
    """Run the tests in a forked process, its output in `folder`/log; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        (Path(folder) / "outcomes.json").write_text(json.dumps(run(folder, tests)))
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what is there now is no child's to collect
    found = []
    for folder, tests in json.loads(sys.argv[1]):
        os.waitpid(child(folder, tests), 0)
        outcomes = Path(folder) / "outcomes.json"
        found.append(json.loads(outcomes.read_text()) if outcomes.is_file() else {"collection": "error"})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
