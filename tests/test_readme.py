"""What the README states is what is stored."""

import json
import re
from pathlib import Path

from cosutils.report.results import interval_text, read_numbers
from cosutils.training.evaluate import side_by_side, table

ROOT = Path(__file__).resolve().parents[1]


def scores(model):
    return json.loads((ROOT / "data" / "results" / f"{model}-scores.json").read_text())


def shown(name):
    return re.search(rf"<!-- {name}.*?-->\n(.*?)<!-- end of {name} -->", (ROOT / "README.md").read_text(), re.S)[1]


def test_the_score_table_is_that_of_the_stored_scores():
    stored = scores("cos-mini")
    assert table(stored["numbers"], tuple(stored["provenance"]["steps"])) in shown("scores")


def test_the_student_table_is_that_of_the_stored_scores():
    teacher, student = (scores(name)["numbers"] for name in ("cos-mini", "cos-mini-student"))
    assert side_by_side({"teacher": (teacher, (1, 4, 20)), "student": (student, (4,))}) in shown("student")


def test_the_depth_table_is_that_of_the_stored_scores():
    models = {"ten blocks": "cos-mini", "three blocks": "cos-mini-shallow", "two blocks": "cos-mini-two"}
    rates = {depth: (scores(name)["numbers"], (1, 20)) for depth, name in models.items()}
    assert side_by_side(rates) in shown("depth") and side_by_side(rates, "decided") in shown("leading")


def test_the_deciding_table_is_that_of_the_stored_run():
    stored = read_numbers(ROOT / "data" / "results" / "shallow" / "06_self_correction.json")
    for row in shown("deciding").splitlines()[2:]:
        task, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        measures = ("corrected", "spoiled", "net", "solved_net")
        assert cells == [interval_text(stored[f"{task}/{measure}"]) for measure in measures]


def test_every_file_the_readme_points_at_exists():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:notebooks|data|cosutils|tests|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_shipped_data_stays_small():
    files = [p for p in (ROOT / "data").rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in files) <= 16e6 and sum(p.stat().st_size for p in files) <= 80e6
