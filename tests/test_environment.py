"""pyproject.toml holds the ranges, constraints.txt the lock, environment.yml the names: the three agree. Offline."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.metadata
import json
import pathlib
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
LOCK = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LOCK_LINES}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Canonical name -> requirement of the package itself and of `extras`, references to our own extras left out."""
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    found = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    return {name: r for name, r in found.items() if name != "cosutils"}


def test_the_lock_is_exact_sorted_and_without_build_tags():
    for line in LOCK_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    assert sorted(LOCK_LINES, key=str.lower) == LOCK_LINES


@pytest.mark.parametrize("name", sorted(requirements("report", "book", "test", "dev", "browser")))
def test_the_lock_pins_every_direct_requirement_within_its_range(name):
    requirement = requirements("report", "book", "test", "dev", "browser")[name]
    assert LOCK[name] in requirement.specifier, f"{requirement} but the lock has {LOCK.get(name)}"


def test_hooks_install_beside_any_recent_torch_and_bring_no_plotting():
    for release in ("2.9.1", "2.11.0", "2.13.0", "2.14.1"):
        assert release in requirements()["torch"].specifier
    assert not {"matplotlib", "seaborn", "jupyter"} & set(requirements())


def test_the_lock_holds_the_engine_the_book_was_built_with():
    assert LOCK["torch"] == "2.13.0" and LOCK["diffusers"] == "0.42.1"


def test_the_lock_is_closed():
    """Whatever a locked and installed package requires here is locked too."""
    missing = set()
    for name in LOCK:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            installed_alone = need.marker is None or need.marker.evaluate({"extra": ""})
            if installed_alone and canonicalize_name(need.name) not in LOCK:
                missing.add(f"{name} needs {need}")
    assert not {line for line in missing if not re.search(r"needs (pip|wheel|nvidia|cuda|triton)", line)}


def test_environment_names_exactly_the_required_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert conda == ["python=3.11", "pip"]
    assert pip[0] == "-c constraints.txt" and pip[-1] == "-e .[all]"
    named = {canonicalize_name(r.name): r.extras for r in map(Requirement, pip[1:-1])}
    wanted = {name: r.extras for name, r in requirements("report", "book", "test").items()}
    assert named == wanted


def test_all_means_book_and_test():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(line).extras == {"book", "test"}


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"])
def test_no_file_names_a_package_index(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"index-url|find-links|trusted-host|https?://(?!\.\.\.)", text)


def test_every_package_folder_is_shipped():
    from setuptools import find_packages

    found = set(find_packages(str(ROOT), include=["cosutils", "cosutils.*"]))
    assert {"cosutils", "cosutils.mini", "cosutils.mini.tasks"} <= found


def test_the_vendored_scripts_come_with_their_licences():
    vendor = ROOT / "book/_static/vendor"
    assert {folder.name for folder in vendor.iterdir()} == {"mathjax", "onnxruntime"}
    assert "Apache License" in (vendor / "mathjax" / "LICENSE").read_text()
    assert "3.2.2" in (vendor / "mathjax" / "tex-svg.js").read_text()
    assert "MIT License" in (vendor / "onnxruntime" / "LICENSE").read_text()
    runtime = (vendor / "onnxruntime" / "runtime.js").read_text().removeprefix("window.cosRuntime = ")
    parts, told = json.loads(runtime.removesuffix(";\n")), (vendor / "onnxruntime" / "README.md").read_text()
    for content in (parts["module"].encode(), gzip.decompress(base64.b64decode(parts["wasm"]))):
        assert hashlib.sha256(content).hexdigest() in told
