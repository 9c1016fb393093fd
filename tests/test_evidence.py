"""The evidence page's judgement from two folders of records, its table and its picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from cosutils.metrics import over_trainings
from cosutils.report import evidence
from cosutils.report.results import by_training, read_numbers, record_numbers

DATA = Path(__file__).resolve().parents[1] / "data"
CLAIMS = """
noise.step: {paper: Sec. 3.2, claim: Noise hurts., evidence: scores, measures: {damage: [0.25, 1.0]}, %s}
noise.again:
  {paper: "none, our control", claim: So does new noise., evidence: none,
   measures: {again: [0.1, .inf], late: [0, 1]}, %s}
layers.order: {paper: Sec. 5.1, claim: Layers differ., evidence: pictures, measures: {rank: [0.5, 1.0]}, %s}
""".replace("%s", "room: {}, known: no mechanism")


def number(low, high, n=60):
    return dict(value=(low + high) / 2, low=low, high=high, n=n)


@pytest.fixture
def folders(tmp_path):
    """Claims, a default run on two tasks, a full run on one of them."""
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    small = {"maze/damage": number(0.2, 0.4), "maze/again": number(0.2, 0.4), "shelf/damage": number(0, 0.1)}
    record_numbers(tmp_path / "small", "03_noise", small, {"seeds": list(range(60)), "model": "none"})
    record_numbers(tmp_path / "full", "03_noise", {"maze/damage": number(0.3, 0.32, 200)})
    return tmp_path / "full", tmp_path / "small", tmp_path / "claims.yaml"


def test_the_full_run_decides_and_the_default_run_where_there_is_none(folders):
    found = evidence.gather(*folders)
    got = [(f.key, f.task, f.verdict, f.run) for f in found]
    assert got == [
        ("noise.step", "maze", "supported", "full"),
        ("noise.step", "shelf", "not supported", "default"),
        ("noise.again", "maze", "undecided", "default"),
        ("layers.order", "", "not measured", ""),
    ]
    full, default, span = found[0].rows["damage"]
    assert (full["n"], default["n"], span) == (200, 60, (0.25, 1.0))
    assert found[2].rows["late"] == (None, None, (0, 1))
    assert [f.ours for f in found] == [False, False, True, False]


def test_records_of_another_model_are_left_out(folders):
    found = evidence.gather(*folders, model="cos-mini")  # the small run says that it is of the model "none"
    assert [(f.key, f.task, f.run) for f in found] == [
        ("noise.step", "maze", "full"), ("noise.again", "", ""), ("layers.order", "", ""),
    ]  # fmt: skip
    assert found[0].rows["damage"][1] is None


def test_a_full_run_alone_leaves_the_rest_not_measured(folders):
    found = evidence.gather(folders[0], claims=folders[2])
    assert [(f.task, f.verdict, f.run) for f in found] == [
        ("maze", "supported", "full"), ("", "not measured", ""), ("", "not measured", ""),
    ]  # fmt: skip


def test_without_any_record_every_claim_is_not_measured(folders, tmp_path):
    found = evidence.gather(tmp_path / "none", tmp_path / "nowhere", folders[2])
    assert [f.verdict for f in found] == ["not measured"] * 3
    evidence.verdict_map(found)
    plt.close("all")


def test_two_records_of_a_section_are_refused(folders):
    (folders[1] / "02_noise.json").write_text((folders[1] / "03_noise.json").read_text())
    with pytest.raises(ValueError, match="2 records of noise in .*02_noise.json, 03_noise.json"):
        evidence.gather(*folders)


def test_the_table_tells_numbers_ranges_and_which_run_judged(folders):
    found = evidence.gather(*folders)
    head, groups = evidence.section_table(found, "noise")
    first, second = groups.values()
    assert "Sec. 3.2; its evidence: scores" in next(iter(groups))
    assert first[0] == [
        "maze",
        "✓ supported",
        "damage",
        "0.25 to 1",
        "0.31 [0.30, 0.32], N = 200",
        "0.30 [0.20, 0.40], N = 60",
    ]
    assert first[1][1] == "✗ not supported (default run)" and first[1][4] == "–"
    assert [row[3] for row in second] == ["≥ 0.1", "0 to 1"] and len(head) == 6
    with pytest.raises(ValueError, match="no claim of section 'ensemble'"):
        evidence.section_table(found, "ensemble")


def test_the_map_shows_a_sign_for_every_verdict(folders):
    fig = evidence.verdict_map(evidence.gather(*folders))
    (ax,) = fig.axes
    cells = {
        (int(t.get_position()[0]), int(t.get_position()[1])): t.get_text() for t in ax.texts if t.get_ha() == "center"
    }
    assert cells == {(0, 0): "✓", (1, 0): "(✗)", (0, 1): "(?)"}
    assert [t.get_text() for t in ax.texts if t.get_ha() == "left"] == ["1 of 2", "0 of 1", "not measured"]
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "noise: step",
        "noise: again (ours)",
        "layers: order",
    ]
    plt.close(fig)


@pytest.mark.parametrize("end", ["low", "high"])
def test_a_strip_shows_where_the_verdict_turns(end):
    ax = plt.figure().subplots()
    numbers = {"maze": number(0.2, 0.4), "shelf": number(0.7, 0.8)}
    evidence.strip(ax, numbers, (0.5, 1.0) if end == "low" else (0.0, 0.5), end)
    rows = [[bar for bar in ax.patches if bar.get_y() < row < bar.get_y() + bar.get_height()] for row in (0, 1)]
    edges = [[round(bar.get_x() + bar.get_width(), 3) for bar in bars[:-1]] for bars in rows]
    assert edges == [[0.2, 0.4], [0.7, 0.8]]
    words = [text.get_text() for text in ax.texts]
    assert words == (["✓", "?", "✗"] * 2 if end == "low" else ["✗", "?", "✓"] * 2)
    assert ax.lines[0].get_xdata()[0] == 0.5
    with pytest.raises(ValueError, match="'low' or 'high', got 'middle'"):
        evidence.strip(ax, numbers, (0.5, 1.0), "middle")
    with pytest.raises(ValueError, match="the high end of .* is not finite"):
        evidence.strip(ax, numbers, (0.5, float("inf")), "high")
    plt.close("all")


def test_what_is_ours_are_controls_readings_and_measures_and_nothing_else():
    findings = evidence.gather(DATA / "nowhere", claims=DATA / "claims.yaml")
    ours = {f.key for f in findings if f.ours}
    assert {"layers.probes", "information_flow.commitment", "ensemble.single", "noise.cell"} <= ours
    for f in findings:
        assert f.ours == ("our" in f.paper.split()), f.key
        assert f.ours or f.paper.startswith(("Sec.", "ablations", "training-free")), f.key
        assert f.evidence.startswith("none") or not f.ours, f.key  # what is ours has no evidence of the paper


def test_what_pages_5_6_14_and_18_say_of_trainings_follows_the_records():
    """Working memory, pruning and frames that settle together come with a memory; self-correction was one training."""
    stored = Path(__file__).parents[1] / "data" / "results"

    def more(section, name):
        found = by_training(stored, ["longer", "memory"], section, name)
        return over_trainings(found["memory"] - found["longer"])

    assert more("05_working_memory", "reappear/start_held")["low"] > 0
    held = by_training(stored, ["longer", "memory"], "05_working_memory", "reappear/start_held")
    assert held["memory"].min() > 0.8 and held["longer"].max() < 0.5 and len(held["longer"]) == 3
    assert more("02_chain_of_steps", "maze/alive_fall")["low"] > 0 > more("02_chain_of_steps", "maze/frame_lag")["high"]
    assert more("06_self_correction", "bounce/confident_net")["low"] < 0
    kinds = ("memory", "memory_seed1", "memory_seed2")
    mended = [read_numbers(stored / kind / "06_self_correction.json")["bounce/confident_net"] for kind in kinds]
    assert [number["low"] > 0 for number in mended] == [True, False, False]


def test_a_claim_stands_at_the_model_that_its_numbers_are_of(folders):
    claims = folders[-1]
    claims.write_text(CLAIMS.replace("evidence: scores,", "evidence: scores, of: three blocks,"))
    found = evidence.by_model({"ten blocks": evidence.gather(*folders)}, claims)
    assert [(f.key, f.task) for f in found["three blocks"]] == [("noise.step", "maze"), ("noise.step", "shelf")]
    assert [f.key for f in found["ten blocks"]] == ["noise.again", "layers.order"]
    claims.write_text(CLAIMS)
    (same,) = evidence.by_model({"ten blocks": evidence.gather(*folders)}, claims).values()
    assert same == evidence.gather(*folders)
