"""Run notebooks with the preset `full` (N >= 200 per condition) and store their numbers with the book.

    python tools/full_results.py [--workers 4] [--only 02_noise 10_ensemble]

Runs every notebook that `notebooks/params/full.yaml` names, in a copy under `_build/full`, and writes its numbers to
`data/results/full/<notebook>.json`, where the pages show them beside the live ones. A notebook that fails leaves its
stored numbers as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from build_book import ROOT, preset_parameters, run_notebook


def store(runs: pathlib.Path, target: pathlib.Path, record: dict) -> None:
    """Copy a notebook's numbers, with the command and the time they took, whole or not at all."""
    name = record["notebook"].removesuffix(".ipynb")
    numbers = json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))
    numbers["provenance"] |= {"command": f"python tools/full_results.py --only {name}", "seconds": record["seconds"]}
    temporary = target / f".{name}.tmp"
    temporary.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, target / f"{name}.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="notebooks run at the same time")
    parser.add_argument("--only", nargs="+", help="names of notebooks without .ipynb; default: all in full.yaml")
    arguments = parser.parse_args()
    chosen = {name: values for name, values in preset_parameters(ROOT, "full").items() if values}
    if unknown := set(arguments.only or ()) - set(chosen):
        parser.error(f"full.yaml has no parameters for {min(unknown)!r}; it has: {', '.join(chosen)}")
    chosen = {name: chosen[name] for name in arguments.only or chosen}
    stage = ROOT / "_build" / "full"
    (stage / "notebooks").mkdir(parents=True, exist_ok=True)
    if not (stage / "data").exists():
        (stage / "data").symlink_to(ROOT / "data", target_is_directory=True)
    target = ROOT / "data" / "results" / "full"
    target.mkdir(parents=True, exist_ok=True)
    failed = 0
    with ProcessPoolExecutor(arguments.workers) as pool:
        folders = ROOT / "notebooks", stage / "notebooks"
        jobs = [
            pool.submit(run_notebook, *(folder / f"{name}.ipynb" for folder in folders), values)
            for name, values in chosen.items()
        ]
        for job in as_completed(jobs):
            record = job.result()
            print(f"{record['notebook']}: {record['status']} in {record['seconds']} s", flush=True)
            if record["status"] == "ok":
                store(stage / "runs", target, record)
            else:
                failed += 1
                print(record["error"], file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
