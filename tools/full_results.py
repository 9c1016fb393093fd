"""Run notebooks with the preset `full` (N >= 200 per condition), or another one, and store their numbers with the book.

    python tools/full_results.py [--preset full] [--workers 4] [--only 03_noise 11_ensemble]

Runs every notebook that `notebooks/params/<preset>.yaml` names, in a copy under `_build/<preset>`, and writes its
numbers to `data/results/<preset>/<notebook>.json`; those of `full` the pages show beside the live ones. A notebook
that fails leaves its stored numbers as they were. A cell may take as long as it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from build_book import ROOT, preset_parameters, run_notebook


def store(runs: pathlib.Path, target: pathlib.Path, record: dict, command: str) -> None:
    """Copy a notebook's numbers, with the command and the time they took, whole or not at all."""
    name = record["notebook"].removesuffix(".ipynb")
    numbers = json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))
    numbers["provenance"] |= {"command": f"{command} --only {name}", "seconds": record["seconds"]}
    temporary = target / f".{name}.tmp"
    temporary.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, target / f"{name}.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full", help="a file of notebooks/params, without .yaml")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="notebooks run at the same time")
    parser.add_argument("--only", nargs="+", help="names of notebooks without .ipynb; default: all in the preset")
    arguments = parser.parse_args()
    preset, command = arguments.preset, "python tools/full_results.py"
    if preset != "full":
        command += f" --preset {preset}"
    try:
        chosen = {name: values for name, values in preset_parameters(ROOT, preset).items() if values}
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(arguments.only or ()) - set(chosen):
        parser.error(f"{preset}.yaml has no parameters for {min(unknown)!r}; it has: {', '.join(chosen)}")
    chosen = {name: chosen[name] for name in arguments.only or chosen}
    stage = ROOT / "_build" / preset
    (stage / "notebooks").mkdir(parents=True, exist_ok=True)
    if not (stage / "data").exists():
        (stage / "data").symlink_to(ROOT / "data", target_is_directory=True)
    target = ROOT / "data" / "results" / preset
    target.mkdir(parents=True, exist_ok=True)
    failed = 0
    with ProcessPoolExecutor(arguments.workers) as pool:
        folders = ROOT / "notebooks", stage / "notebooks"
        jobs = [
            pool.submit(run_notebook, *(folder / f"{name}.ipynb" for folder in folders), values, 0)
            for name, values in chosen.items()
        ]
        for job in as_completed(jobs):
            record = job.result()
            if record["status"] == "ok":  # first of all: hours of work
                store(stage / "runs", target, record, command)
            print(f"{record['notebook']}: {record['status']} in {record['seconds']} s", flush=True)
            if record["status"] != "ok":
                failed += 1
                print(record["error"], file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
