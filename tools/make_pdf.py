"""Print the whole book, as `make book` staged it, into one PDF with the system's Chromium.

    python tools/make_pdf.py [_build/book.pdf]

The staged pages are built once more as a single page, which Chromium prints. A film is printed as its first picture.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from build_book import ROOT, mend_pages

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The browser's command; ValueError where there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise ValueError(f"no Chromium found (looked for {', '.join(NAMES)}): install it, on Debian `apt install chromium`")


def single_page(stage: pathlib.Path) -> pathlib.Path:
    """Build the staged book as one page and return it; ValueError where nothing is staged or the build fails."""
    if not (stage / "_config.yml").is_file():
        raise ValueError("nothing to print: run `make book` first")
    command = [str(pathlib.Path(sys.executable).parent / "jupyter-book"), "build", str(stage)]
    command += ["--path-output", str(stage), "--builder", "singlehtml", "-q"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    pages = stage / "_build" / "singlehtml"
    if run.returncode or not (pages / "book" / "index.html").is_file():
        raise ValueError(f"the single page was not built:\n{run.stdout}")
    mend_pages(pages)
    return (pages / "book" / "index.html").replace(pages / "book.html")  # its links are those of a page at the top


def print_page(page: pathlib.Path, target: pathlib.Path) -> None:
    """Print a page to a PDF, whole or not at all; ValueError where the browser leaves none."""
    with tempfile.TemporaryDirectory(prefix="book-") as folder:
        made = pathlib.Path(folder) / "book.pdf"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={folder}",
        ]
        options += [
            "--virtual-time-budget=60000",
            f"--print-to-pdf={made}",
            page.as_uri(),
        ]  # time to set the maths
        run = subprocess.run([chromium(), *options], capture_output=True, text=True, timeout=7200)
        if run.returncode or not made.is_file():
            raise ValueError(f"Chromium printed nothing:\n{run.stderr.strip()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(made, temporary)
        os.replace(temporary, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", type=pathlib.Path, default=ROOT / "_build" / "book.pdf")
    target = parser.parse_args().target
    try:
        chromium()  # before the build, which takes longer
        print_page(single_page(ROOT / "_build" / "stage"), target)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
