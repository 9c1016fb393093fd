"""The finding box of a page follows the stored records, not the page's own run."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from cosutils.report import evidence, findings
from cosutils.report.results import record_numbers

DATA = Path(__file__).resolve().parents[1] / "data"
SECTIONS = sorted(path.stem for path in (DATA.parent / "notebooks").glob("*.ipynb") if "02" <= path.name[:2] <= "11")
CLAIMS = """
noise.step: {paper: Sec. 3.2, claim: Noise hurts., evidence: scores, measures: {damage: [0.25, 1.0]}, %s}
noise.again: {paper: "none, our control", claim: So does new noise., evidence: none, measures: {again: [0.1, .inf]}, %s}
""".replace("%s", "room: {}, known: no mechanism")
FINDINGS = """
any: {undecided: "Nobody knows: {claim}."}
noise:
  - {claim: noise.step, model: three blocks, measure: damage, task: maze, words: Fall, supported: It hurts.,
     not supported: It does not., mixed: "It hurts on {tasks}; {rest}.",
     on none: "Nowhere: {shares}. No: {refused}. Open: {open}."}
  - {claim: noise.again, model: ten blocks, supported: New noise hurts <too>.}
"""


def number(low, high, n=200):
    return dict(value=(low + high) / 2, low=low, high=high, n=n)


@pytest.fixture
def stored(tmp_path):
    """Function that stores the numbers of both models in a data folder and returns it."""
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    (tmp_path / "findings.yaml").write_text(FINDINGS)

    def store(**runs):
        for folder, numbers in runs.items():
            record_numbers(tmp_path / "results" / folder, "03_noise", numbers, {"model": f"model of {folder}"})
        return tmp_path

    return store


HURTS, HARMLESS, OPEN = number(0.3, 0.5), number(0.0, 0.1), number(0.2, 0.4)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"maze/damage": HURTS, "shelf/damage": HURTS}, "It hurts."),
        ({"maze/damage": HARMLESS, "shelf/damage": HARMLESS}, "It does not."),
        ({"maze/damage": HURTS, "shelf/damage": HARMLESS}, "It hurts on maze; on shelf it does not."),
        ({"maze/damage": HURTS, "shelf/damage": OPEN}, "It hurts on maze; on shelf it cannot be told."),
        (
            {"maze/damage": HURTS, "shelf/damage": HARMLESS, "bounce/damage": OPEN},
            "It hurts on maze; on shelf it does not, on bounce it cannot be told.",
        ),
        (
            {"maze/damage": OPEN, "shelf/damage": HARMLESS},
            "Nowhere: undecided on maze; not supported on shelf. No: shelf. Open: maze.",
        ),
        ({"maze/damage": OPEN}, "Nobody knows: Noise hurts."),
    ],
)
def test_the_sentence_follows_the_stored_verdicts(stored, numbers, sentence):
    box = findings.finding("03_noise", stored(shallow=numbers))
    assert box.said[0].sentence == sentence


def test_number_verdicts_and_models_are_those_of_the_records(stored):
    data = stored(shallow={"shelf/damage": HURTS}, full={"maze/damage": HARMLESS, "maze/again": HURTS})
    box = findings.finding("03_noise", data)
    step, again = box.said
    assert step.number == "Fall: 0.40 [0.30, 0.50], N = 200 (shelf, three blocks)"  # the maze was not run there
    assert step.verdicts == {"ten blocks": {"not supported": ["maze"]}, "three blocks": {"supported": ["shelf"]}}
    assert again.number == "" and again.ours and again.verdicts["three blocks"] == {}
    text, page = repr(box), box._repr_html_()
    assert "ten blocks: not supported 1" in text and "three blocks: not measured" in text
    assert "model of full (ten blocks) and model of shallow (three blocks)" in text
    assert '<span class="verdict verdict-not-supported" title="maze">✗ not supported 1</span>' in page
    assert "New noise hurts &lt;too&gt;." in page and page.startswith('<div class="finding"')


def test_the_models_are_compared_measure_by_measure(stored):
    data = stored(shallow={"shelf/damage": HURTS}, full={"maze/damage": HARMLESS, "shelf/damage": HARMLESS})
    table = findings.compared("03_noise", data)
    assert list(table.models) == ["ten blocks", "three blocks"]
    rows = {(task, measure): numbers for rows in table.groups.values() for task, measure, *numbers in rows}
    assert rows["shelf", "damage"][1] == "0.40 [0.30, 0.50], N = 200" != rows["shelf", "damage"][0]
    assert rows["maze", "damage"][1] == "–"
    assert (
        "shelf | damage | " in repr(table) and '<td rowspan="1">0.40 [0.30, 0.50], N = 200</td>' in table._repr_html_()
    )
    with pytest.raises(ValueError, match="no finding for '15_your_turn'"):
        findings.compared("15_your_turn")


def test_a_claim_that_no_run_has_measured_is_left_out(stored):
    box = findings.finding("03_noise", stored(full={"maze/again": HURTS}))
    assert [one.claim for one in box.said] == ["So does new noise."]


def test_another_model_speaks_where_that_of_the_part_was_not_run(stored):
    box = findings.finding("03_noise", stored(full={"maze/damage": HURTS}))
    assert box.said[0].sentence == "It hurts." and "(maze, ten blocks)" in box.said[0].number


@tiny.every(section=SECTIONS)
def test_every_chapter_has_a_finding_with_a_number_and_a_verdict(section):
    box = findings.finding(section)
    assert all(one.sentence.endswith(".") and "{" not in one.sentence for one in box.said)
    assert any("N = " in one.number for one in box.said)
    assert all(any(one.verdicts.values()) for one in box.said)
    calibration = DATA / "results" / "calibration.json"
    full = evidence.gather(DATA / "results" / "full", None, DATA / "claims.yaml", calibration=calibration)
    judged = {(f.claim, f.task): f.verdict for f in full}
    for one in box.said:
        for word, tasks in one.verdicts["ten blocks"].items():
            assert [judged[one.claim, task] for task in tasks] == [word] * len(tasks)


def test_no_sentence_holds_a_measured_number():
    for parts in findings.load_findings().values():
        for part in parts:
            assert not any(
                "." in word.strip(".") and word.strip(".")[0].isdigit() for word in " ".join(part.says.values()).split()
            )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{claim: noise.none, model: ten blocks}", "no claim 'noise.none'"),
        (
            "{claim: noise.step, model: 9 blocks}",
            r"the model is one of ten blocks, three blocks, three blocks \+ memory, not '9 blocks'",
        ),
        ("{claim: noise.step, model: ten blocks, measure: x}", "its measures are damage"),
        ("{claim: noise.step, model: ten blocks, measure: damage}", "a measure is quoted with its task"),
        ("{claim: noise.step, model: ten blocks, perhaps: y}", "no verdict is called 'perhaps'"),
    ],
)
def test_a_malformed_part_is_refused_in_one_sentence(stored, wrong, said):
    data = stored()
    (data / "findings.yaml").write_text(f"noise: [{wrong}]")
    with pytest.raises(ValueError, match=said):
        findings.finding("03_noise", data)


def test_a_page_without_a_finding_is_refused():
    with pytest.raises(ValueError, match="no finding for '15_your_turn'; there are: chain_of_steps, noise"):
        findings.finding("15_your_turn")
