# Two commands: `make test` and `make book`. Each creates .venv from the lock if it is missing or out of date.
# While working: `make quick` (no notebooks, no mutations) and `make lint`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
PRESET ?= default
ONLY ?=
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: test quick lint coverage book full pdf refresh browser-test lock clean

test: .venv/.installed
	$(BIN)/python -m pytest -n $(WORKERS)

# the tests that are not marked slow: no notebooks, altered copies, compilers or trainings; of every grid a part
quick: .venv/.installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" tests

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the share of the package's lines that `make quick` runs
coverage: .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov=cosutils --cov-report=term tests

# `make book ONLY=05` runs one notebook afresh and keeps the others as the last build left them
book: .venv/.installed
	$(BIN)/python tools/build_book.py --preset $(PRESET) --workers $(WORKERS) $(if $(ONLY),--only $(ONLY))

# regenerate every stored number (200 puzzles per condition, fewer where one is costly; about nine hours of CPU);
# goes on where it was stopped
full: .venv/.installed
	$(BIN)/python tools/full_results.py

# write the notebooks' stored outputs again, default parameters (after new weights: the tool's --store)
refresh: .venv/.installed
	$(BIN)/python tools/refresh_notebooks.py

# the whole book as _build/book.pdf; needs the system's `chromium`
pdf: book
	$(BIN)/python tools/make_pdf.py

# read and operate every built page in Chromium; needs the system's `chromium`
browser-test: .venv/.installed book
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[browser]' --no-build-isolation
	$(BIN)/python -m pytest -n 0 tests/test_book.py tests/test_browser.py tests/test_live.py -rs

# resolve the ranges of pyproject.toml afresh in an environment of its own and write constraints.txt
lock:
	$(PYTHON) tools/lock.py

clean:
	rm -rf _build runs

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[all]'
	touch $@
