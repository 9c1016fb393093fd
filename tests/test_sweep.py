"""A sweep: a grid of runs survives being stopped at any moment, and what belongs to different studies never mixes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from html.parser import HTMLParser
from multiprocessing import forkserver
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from test_spec import PUZZLE, model, sample, sample_in  # noqa: F401

from cosutils import vbvr
from cosutils._files import remove_leftovers, write_json
from cosutils.scale import cluster, slurm
from cosutils.scale.spec import Spec, key, run_one
from cosutils.scale.status import LABELS, page, status
from cosutils.scale.stored import running
from cosutils.scale.study import Study, read
from cosutils.scale.sweep import answers, estimate, main, summary, sweep

GRID = {"model": "cos-mini", "preset": "mini", "task": ["maze", "reappear"], "seed": "0..1", "steps": 3,
        "condition": ["plain", "noise_at_step 1..2", "renoise 1"], "measures": ["score", "commitment"],
        "keep": "latents"}  # fmt: skip
FAILS = "ensemble 2 layers 99 steps 0"  # cos-mini has ten layers


def written(folder: Path, grid: dict = GRID, name: str = "grid", **more) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"grid": grid, "out": str(folder / "out"), **more}, sort_keys=False))
    return path


def files(out: Path) -> dict[str, bytes]:
    """All that a sweep leaves, but for the timings."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("timings/")}


def as_study(study: Study, out: Path) -> Study:
    return Study(study.name, study.specs, out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The study of GRID, and the table of what it leaves when every run is done in order in this process."""
    study = read(written(tmp_path_factory.mktemp("undisturbed")))
    for spec in study.specs:
        run_one(spec, study.out)
    return study, summary(study)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory, model):  # noqa: F811
    """A study of one sample and two conditions with films, done, and its sample."""
    folder = tmp_path_factory.mktemp("filmed")
    own = sample_in(folder)
    grid = {"model": str(model), "preset": "paper", "sample": str(own), "size": 32, "frames": 5, "steps": 2,
            "condition": ["plain", "noise_at_step 1"], "keep": "video"}  # fmt: skip
    study = read(written(folder, grid))
    for spec in study.specs:
        run_one(spec, study.out)
    return study, own


# ---------------------------------------------------------------- the file
def test_a_range_within_an_ensemble_is_one_condition(tmp_path):
    grid = GRID | {"condition": ["ensemble 3 layers 2-4 steps 0-1", "merge_then_single 2 layers 2-4 steps 0..1"]}
    assert {spec.condition for spec in read(written(tmp_path, grid)).specs} == {
        "ensemble 3 layers 2-4 steps 0-1", *(f"merge_then_single 2 layers 2-4 steps {step}" for step in range(2))
    }  # fmt: skip


def test_a_grid_is_the_product_of_its_values(tmp_path, sample):  # noqa: F811
    specs = read(written(tmp_path)).specs
    assert len(specs) == 2 * 2 * 4
    assert {spec.condition for spec in specs} == {"plain", "noise_at_step 1", "noise_at_step 2", "renoise 1"}
    alone = {name: GRID[name] for name in ("model", "preset", "steps", "measures", "keep")}
    assert specs[0] == Spec.of(alone | {"task": "maze", "seed": 0, "condition": "plain"})
    shutil.copytree(sample, sample.parent / "00001")
    pattern = {"model": "cos-mini", "preset": "mini", "sample": f"{sample.parents[1]}/*/*"}
    assert [Path(spec.sample).name for spec in read(written(tmp_path, pattern)).specs] == ["00000", "00001"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: [", "line 2: did not find expected node"),
        ("grid:\n  task: maze\n\tseed: 3", "line 3: "),
        ("grid:\n  seed: 1\n  task: maze\n  seed: 2", "line 4: the key 'seed' stands there twice"),
        ("", "needs a grid of spec fields"),
        ("- 3", "needs a grid of spec fields"),
        ("grid: {}", "needs a grid of spec fields"),
        ("grid: {model: x}\nworkers: 3", "unknown field 'workers'"),
        ("grid: {model: x}\nseconds_per_run: soon", "seconds_per_run must be a positive number, got 'soon'"),
        ("grid: {model: x}\nseconds_per_run: .nan", "seconds_per_run must be a positive number, got nan"),
        ("grid: {model: x}\nseconds_per_run: [1]", "seconds_per_run must be a positive number, got [1]"),
        ("grid: {model: x}\nout: 3", "out must be a folder as text, got 3"),
        ("grid: {model: cos-mini, preset: mini, task: maze, seed: 5..2}", "the range '5..2' of seed runs backwards"),
        ("grid: {model: cos-mini, preset: mini, task: maze, seed: []}", "seed has an empty list"),
        ("grid: {model: cos-mini, preset: mini, task: maze, seed: [3, 3]}", "seed lists 3 twice"),
        ("grid: {model: cos-mini, preset: mini, task: maze, seed: [0..4, 3]}", "seed lists 3 twice"),
        ("grid: {model: cos-mini, preset: mini, task: [maze, maze], seed: 3}", 'task lists "maze" twice'),
        ("grid: {model: cos-mini, preset: mini, sample: none/*}", "no folder of the pattern 'none/*'"),
    ],
)
def test_a_bad_file_ends_in_one_sentence(tmp_path, capsys, text, words):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert main([str(path)]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    if words.startswith("line"):
        assert str(path) in message


@pytest.mark.parametrize("wrong", [["--workers", "0"], ["--limit", "0"], ["--retries", "-1"]])
def test_numbers_of_the_command_are_checked(wrong, tmp_path, capsys):
    assert main([str(written(tmp_path)), *wrong]) == 2
    assert f"{wrong[0][2:]} must be {1 + min(0, int(wrong[1]))} or more" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*"))


@pytest.mark.slow
def test_odd_characters_in_every_path(model, tmp_path):  # noqa: F811
    odd = tmp_path / "a [b] *c 'd' \"e\" &amp; #1 100% ü ?x=1;"
    own = sample_in(odd)
    shutil.copytree(model, odd / "model")
    grid = {"model": str(odd / "model"), "preset": "paper", "sample": f"{odd}/*/*/0000[0-3]", "size": 32, "frames": 5,
            "steps": 1, "keep": "video"}  # fmt: skip
    study = read(written(odd, grid, name="odd [1] 'study'"))
    assert [spec.sample for spec in study.specs] == [str(own)]
    assert [spec.sample for spec in read(written(odd, grid | {"sample": str(own)}, name="one")).specs] == [str(own)]
    run_one(study.specs[0], study.out)
    (folder,) = answers(study).values()
    vbvr.check_answers(vbvr.read(own.parents[2], pixels=32, frames=5), folder)
    assert [link.is_file() for link in links(page(study))] == [True]


# ---------------------------------------------------------------- what is made of many runs
@pytest.mark.slow
def test_a_dry_run_counts_and_estimates(tmp_path, capsys, undisturbed):
    assert main([str(written(tmp_path, seconds_per_run=90)), "--dry-run", "--workers", "4"]) == 0
    assert capsys.readouterr().out == (
        "16 runs, 0 finished, 16 to do\nabout 0.4 CPU hours, 0.1 hours on 4 workers (90 s per plain run, stated)\n"
    )
    assert not (tmp_path / "out").exists()
    study, _ = undisturbed
    assert estimate(as_study(study, tmp_path)) == (
        "16 runs, 0 finished, 16 to do\n"
        "hours unknown: state seconds_per_run in the file, or measure a few runs with --limit 3"
    )
    cuda = [Spec.of(spec.facts() | {"device": "cuda", "measures": "commitment"}) for spec in study.specs]
    assert estimate(Study("cuda", cuda, tmp_path, 3600)).endswith(
        "about 16 GPU hours, 16 hours on 1 worker (3600 s per plain run, stated)"
    )
    timed = [json.loads(path.read_text())["seconds"] for path in (study.out / "timings").iterdir()]
    longer = [Spec.of(spec.facts() | {"steps": 6, "condition": "plain"}) for spec in study.specs[::4]]
    text = estimate(Study("longer", [*study.specs, *longer], study.out))
    assert text.startswith("20 runs, 16 finished, 4 to do") and "measured over 16 runs" in text
    assert float(re.search("about (.*) CPU", text)[1]) == pytest.approx(sum(timed) / 48 * 24 / 3600, rel=1e-2)


def test_times_of_another_size_are_not_those_of_this_one(tmp_path):
    specs = [Spec.of(PUZZLE | {"seed": seed, "size": size}) for size in (80, 160) for seed in (0, 1)]
    study = Study("sizes", specs, tmp_path)
    for name, seconds in list(zip(study.keys, (2, 0, 20, 0), strict=True))[::2]:
        write_json(tmp_path / "timings" / f"{name}.json", {"seconds": seconds, "steps": 2})
        write_json(tmp_path / "runs" / f"{name}.json", {})
    assert float(re.search("about (.*) CPU", estimate(study))[1]) == pytest.approx(22 / 3600, rel=1e-2)


def test_the_summary_counts_puzzles_and_names_what_differs(tmp_path):
    specs = [Spec.of(PUZZLE | {"seed": seed, "noise_seed": noise, "condition": condition, "measures": ["score"]})
             for seed in range(3) for noise in range(2) for condition in ("plain", "renoise 1")]  # fmt: skip
    study = Study("noise", specs, tmp_path)
    with pytest.raises(ValueError, match="no run of this sweep is finished"):
        summary(study)
    for spec in specs[:-1]:  # the last one is not finished
        value = spec.seed + 10 * spec.noise_seed + 100 * (spec.condition == "plain")
        write_json(tmp_path / "runs" / f"{key(spec)}.json", {"spec": spec.facts(), "values": {"score": value}})
    table = summary(study)
    stored = json.loads((study.place / "summary.json").read_text())
    numbers = stored["numbers"]
    assert set(numbers) == {"plain/score", "renoise 1/score"}
    assert numbers["plain/score"]["value"] == pytest.approx(106) and numbers["plain/score"]["n"] == 3
    assert numbers["plain/score"]["low"] >= 105  # over the three means 105, 106, 107: noise seeds are no cases
    assert numbers["renoise 1/score"]["value"] == pytest.approx((5 + 6 + 2) / 3)
    assert {k: stored["provenance"][k] for k in ("runs", "finished")} == {"runs": 12, "finished": 11}
    assert re.search(r"^plain +106\.000 \[105\.\d+, 107\.\d+\] +3$", table, re.M)


@pytest.mark.slow
def test_videos_are_laid_out_for_the_official_evaluator(filmed):
    study, own = filmed
    folders = answers(study)
    puzzles = vbvr.read(own.parents[2], pixels=32)
    for folder in folders.values():
        vbvr.check_answers(puzzles, folder)
    one, other = (vbvr.answer_path(puzzles[0], folder) for folder in folders.values())
    assert list(folders) == ["plain", "noise_at_step 1"] and one.read_bytes() != other.read_bytes()
    assert one.samefile(study.out / "runs" / f"{study.keys[0]}.mp4")
    seeds = [Spec.of(spec.facts() | {"noise_seed": seed}) for seed in (0, 1) for spec in study.specs]
    assert list(answers(Study("seeds", seeds, study.out))) == [
        "noise_seed 0, plain", "noise_seed 0, noise_at_step 1", "noise_seed 1, plain", "noise_seed 1, noise_at_step 1"
    ]  # fmt: skip


@pytest.mark.slow
def test_kept_estimates_are_answers_of_their_own(filmed, tmp_path):
    study, own = filmed
    kept = Study("steps", [Spec.of(study.specs[0].facts() | {"keep": "steps 0-1"})], tmp_path)
    (name,), (film, *_) = kept.keys, sorted((study.out / "runs").glob("*.mp4"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"{name}.json").write_text("{}")
    for ending in ("mp4", "step_000.mp4", "step_001.mp4"):
        shutil.copy(film, tmp_path / "runs" / f"{name}.{ending}")
    folders = answers(kept)
    assert list(folders) == ["plain", "plain, step 0", "plain, step 1"]
    for folder in folders.values():
        vbvr.check_answers(vbvr.read(own.parents[2], pixels=32), folder)
    assert vbvr.answer_path(vbvr.read(own.parents[2])[0], folders["plain, step 1"]).samefile(
        tmp_path / "runs" / f"{name}.step_001.mp4"
    )


@pytest.mark.slow
def test_videos_are_copied_where_the_file_system_has_no_links(filmed, tmp_path, monkeypatch):
    def refuse(*names, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    study, own = filmed
    out = shutil.copytree(study.out, tmp_path / "out", ignore=shutil.ignore_patterns("studies"))
    monkeypatch.setattr(os, "link", refuse)
    for folder, name in zip(answers(as_study(study, out)).values(), study.keys, strict=True):
        answer = vbvr.answer_path(vbvr.read(own.parents[2], pixels=32)[0], folder)
        assert answer.read_bytes() == (out / "runs" / f"{name}.mp4").read_bytes()
        assert not answer.samefile(out / "runs" / f"{name}.mp4")


@pytest.mark.slow
def test_studies_with_one_out_keep_their_own(filmed):
    study, _ = filmed
    changed = [Spec.of(spec.facts() | {"noise_seed": 1}) for spec in study.specs]
    run_one(changed[0], study.out)
    studies = [study, Study(study.name, changed, study.out), Study("grid", study.specs[:1], study.out)]
    left = []
    for one in studies:  # of one name and one out
        table, folders = summary(one), answers(one)
        left.append((table, [path for folder in folders.values() for path in folder.rglob("*.mp4")], files(one.place)))
    assert len({one.place for one in studies}) == 3
    for one, (table, videos, content) in zip(studies, left, strict=True):  # and nobody has touched the others'
        assert files(one.place) == content and summary(one) == table
        names = [name for name in one.keys if (one.out / "runs" / f"{name}.mp4").is_file()]
        assert len(videos) == len(names)
        assert all(path.samefile(one.out / "runs" / f"{name}.mp4") for path, name in zip(videos, names, strict=True))
    assert {json.loads((one.place / "summary.json").read_text())["provenance"]["finished"] for one in studies} == {1, 2}


def test_two_samples_of_one_name_are_refused_before_anything_is_run(model, tmp_path):  # noqa: F811
    for name in ("a", "b"):
        sample_in(tmp_path / name)
    grid = {"model": str(model), "preset": "paper", "sample": f"{tmp_path}/[ab]/*/*/*", "size": 32}
    assert len(read(written(tmp_path, grid)).specs) == 2
    with pytest.raises(ValueError, match="have one place in the official layout"):
        read(written(tmp_path, grid | {"keep": "video"}))


# ---------------------------------------------------------------- how it stands
class Links(HTMLParser):
    """Addresses that a page loads something from."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]


def links(path: Path) -> list[Path]:
    reader = Links()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not any(":" in link.split("/")[0] or link.startswith("/") for link in reader.found)
    return [path.parent / unquote(link) for link in reader.found]


def test_the_status_counts_and_the_page_shows_films_and_labels(tmp_path, capsys):
    seen = {"model": "cos-mini", "preset": "mini", "task": "maze", "seed": "0..2", "steps": 2, "keep": "steps 0"}
    file = written(tmp_path, seen | {"condition": ["plain", FAILS]})
    study = read(file)
    names = dict(zip(((spec.seed, spec.condition) for spec in study.specs), study.keys, strict=True))
    assert list(sweep(study, slice(2), retries=0)) == [names[0, FAILS]]
    killed = os.fork()
    if not killed:
        os._exit(0)
    os.waitpid(killed, 0)
    for seed, pid in ((1, os.getpid()), (2, killed)):
        marker = {"host": os.uname().nodename, "pid": pid, "since": time.time() - 120}
        write_json(study.out / "running" / f"{names[seed, 'plain']}.json", marker)
    capsys.readouterr()
    assert main([str(file), "status"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{study.place.name}: 6 runs, 1 done, 1 running, 1 failed, 3 to do\n")
    assert f"running: maze 1, plain: process {os.getpid()} on {os.uname().nodename}, 2.0 min\n" in told
    assert re.search(rf"failed: maze 0, {FAILS}: \w+Error: .*99", told)
    seconds = json.loads((study.out / "timings" / f"{names[0, 'plain']}.json").read_text())["seconds"]
    used, left = re.search(r"CPU hours: (\S+) used by finished runs, about (\S+) left", told).groups()
    assert float(used) == pytest.approx(seconds / 3600, rel=1e-2)
    assert float(left) == pytest.approx(seconds / 3600 * (2 + 3 * 2), rel=1e-2)  # two plain runs, three of two seeds
    index = Path(re.search("page: (.*)", told)[1])
    assert index.parent == study.place
    films = [study.out / "runs" / f"{names[0, 'plain']}.{ending}" for ending in ("step_000.mp4", "mp4")]
    assert [link.resolve() for link in links(index)] == [film.resolve() for film in films] and films[0].is_file()
    text = index.read_text(encoding="utf-8")
    assert all(label in text for label in LABELS) and "http" not in text and "99" in text
    notes = study.out / "labels.yaml"
    mine = notes.read_text() + f'"{names[0, "plain"]}": [Memory, Multi-Path]\n'
    notes.write_text(mine)
    text = page(study).read_text(encoding="utf-8")
    assert '<span class="label">Memory</span> <span class="label">Multi-Path</span>' in text and "Memory 1," in text
    assert notes.read_text() == mine and notes.read_text().startswith("# What people see")
    wrong = {f'"{names[0, "plain"]}": Magic': "unknown label 'Magic'", "abc: Memory": "no finished run 'abc'"}
    for line, words in wrong.items():
        notes.write_text(line)
        with pytest.raises(ValueError, match=words):
            page(study)


@pytest.mark.slow
def test_the_status_of_a_finished_study(undisturbed):
    assert re.match(r"grid-\w+: 16 runs, 16 done, 0 running, 0 failed, 0 to do\n", status(undisturbed[0]))


# ---------------------------------------------------------------- being stopped
def test_temporary_files_of_others_stay(tmp_path):
    node, dead = os.uname().nodename, os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    kept = [f".a.{node}-{os.getpid()}.tmp.json", f".b.{node}-{os.getppid()}.tmp", f".c.elsewhere-{dead}.tmp.mp4",
            f".d.{node}-{dead}.json", f"e.{node}-{dead}.tmp.json", "f.json"]  # fmt: skip
    for name in [*kept, f".a.{node}-{dead}.tmp.json", f".g.step_007.{node}-{dead}.tmp.mp4"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def in_a_child(work) -> int:
    """Start `work` in a forked child, which takes workers from this process's fork server; returns its number."""
    pid = os.fork()
    if not pid:
        forkserver._forkserver.ensure_running = lambda: None  # it does run, but is no child of the child
        try:
            work()
        finally:
            os._exit(0)
    return pid


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children; this system has no fork")
def test_killed_before_and_after_every_file_nothing_is_lost(tmp_path):
    """What can be seen after a death at any write is whole, films are there before the result that speaks of them, and
    the next start does the rest."""
    given = PUZZLE | {"steps": 2, "measures": ["score"]}
    specs = [Spec.of(given | {"keep": keep}) for keep in ("steps 0", "latents", None)]
    whole = tmp_path / "whole"
    for spec in specs:
        run_one(spec, whole)  # loads the model, which the children inherit

    def dies_at(moment: int, out: Path) -> bool:
        """Whether a child that dies at its `moment`-th event, before or after a file takes its place, got so far."""
        if pid := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        events, replace = itertools.count(), os.replace

        def replaced(*names):
            if next(events) == moment:
                os._exit(9)
            replace(*names)
            if next(events) == moment:
                os._exit(9)

        os.replace = replaced
        for spec in specs:
            run_one(spec, out)
        os._exit(0)

    for moment in itertools.count():
        out = tmp_path / str(moment)
        if not dies_at(moment, out):
            break
        seen = list(out.glob("runs/[!.]*"))
        assert all(path.read_bytes() == (whole / "runs" / path.name).read_bytes() for path in seen)
        for result in (path for path in seen if path.suffix == ".json"):
            parts = {path.name for path in whole.glob(f"runs/{result.stem}.*")}
            assert parts <= {path.name for path in seen}
        if moment % 4 == 0:
            for spec in specs:
                run_one(spec, out)
            for folder in ("runs", "timings", "running"):
                remove_leftovers(out / folder)
            done, expected = (
                {name: held for name, held in files(one).items() if "running" not in name} for one in (out, whole)
            )
            assert done == expected
    assert moment >= 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children; this system has no fork")
def test_killed_at_random_moments_nothing_is_lost(tmp_path, undisturbed):
    """Kills, in turns, the driver and both workers of a sweep, a worker, a driver, and a process without an engine."""
    done, table = undisturbed
    study, rng = as_study(done, tmp_path / "out"), random.Random(0)
    assert dict(cluster.on_processes(work, ["fine"])) == {"fine": None}  # the fork server runs

    def alone():
        for spec in study.specs:
            run_one(spec, study.out)

    for turn in range(8):
        if len(list(study.out.glob("runs/[!.]*.json"))) > len(study.specs) / 2:
            shutil.rmtree(study.out)
        start, end = time.time(), time.time() + 60
        driver = in_a_child(alone if turn % 4 == 3 else lambda: sweep(study, workers=2))
        while not any(facts["since"] > start for facts in running(study.out).values()) and time.time() < end:
            time.sleep(0.01)  # a client killed while it asks for a worker would take the shared fork server with it
        time.sleep(rng.uniform(0, 0.6))
        if turn % 4 < 2:
            for facts in list(running(study.out).values())[turn % 4 :]:
                with contextlib.suppress(ProcessLookupError):  # its run has ended since
                    os.kill(facts["pid"], signal.SIGKILL)
            time.sleep(0.2 * (turn % 4))
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
        for path in study.out.glob("runs/[!.]*.json"):
            assert path.read_bytes() == (done.out / "runs" / path.name).read_bytes()
    assert sweep(study) == {} and summary(study) == table
    deadline = time.time() + 60
    while files(study.out) != files(done.out) and time.time() < deadline:  # a worker may be at its last run
        time.sleep(0.1)
    assert files(study.out) == files(done.out)


def test_the_command_runs_a_study_and_goes_on_with_it(tmp_path, capsys, monkeypatch, undisturbed):
    done, table = undisturbed
    file = written(tmp_path)
    shutil.copytree(done.out / "runs", tmp_path / "out" / "runs", ignore=lambda _, names: sorted(names)[::4])
    monkeypatch.setattr(sys, "argv", ["sweep", str(file), "--workers", "2"])
    monkeypatch.delitem(sys.modules, "cosutils.scale.sweep")  # as in a fresh process
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cosutils.scale.sweep", run_name="__main__")
    assert ended.value.code == 0
    assert table in capsys.readouterr().out
    assert files(tmp_path / "out") == files(done.out)


def test_failures_are_listed_the_others_finish_and_a_second_start_retries(tmp_path, capsys):
    grid = {name: PUZZLE[name] for name in ("model", "preset", "task", "steps")}
    grid |= {"seed": "0..1", "condition": ["plain", FAILS]}
    path, out = written(tmp_path, grid), tmp_path / "out"
    assert main([str(path)]) == 1
    printed = capsys.readouterr().out
    failed = sorted(out.glob("failed/*.json"))
    assert len(failed) == 2 and len(list(out.glob("runs/*.json"))) == 2
    for record in failed:
        assert re.search(rf"failed: {record}: \w+Error: .*99", printed)
        assert json.loads(record.read_text())["spec"]["condition"] == FAILS
    assert not list((out / "running").iterdir())
    study = read(path)
    shutil.rmtree(out / "runs")
    write_json(out / "failed" / f"{study.keys[0]}.json", {"spec": {}, "error": ["an earlier one"]})
    assert sweep(study, slice(0, 1), retries=0) == {}
    assert not (out / "failed" / f"{study.keys[0]}.json").exists() and len(list(out.glob("failed/*.json"))) == 2


def work(item: str) -> None:
    """What the workers of the next test do: fail, die, or die the first time only."""
    if item == "raises":
        raise KeyError("no such thing")
    if item == "dies" or (item.startswith("/") and not os.path.exists(item)):
        if item != "dies":
            Path(item).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_replaced(tmp_path):
    items = ["fine", "raises", "dies", str(tmp_path / "mark"), "fine too"]
    errors = dict(cluster.on_processes(work, items, workers=2, retries=1))
    assert set(errors) == set(items)
    assert errors["fine"] is errors["fine too"] is errors[str(tmp_path / "mark")] is None
    assert errors["raises"].startswith("KeyError: 'no such thing'\n") and "Traceback" in errors["raises"]
    assert errors["dies"] == "the worker process died (exit code -9)"


def test_unknown_engines_and_missing_gpus_are_refused(tmp_path):
    study = Study("one", [PUZZLE], tmp_path)
    with pytest.raises(ValueError, match="unknown engine 'slurm'; engines are local, ray"):
        sweep(study, engine="slurm")
    with pytest.raises(RuntimeError, match="device 'cuda' needs a GPU, and torch finds none"):
        sweep(Study("gpu", [PUZZLE | {"device": "cuda"}], tmp_path))
    with pytest.raises(ValueError, match="the study 'none' has no run"):
        Study("none", [], tmp_path)


@pytest.mark.parametrize("module", ["ray", "submitit"])
def test_a_missing_package_names_the_extra(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    file = str(written(tmp_path))
    assert main([file, "--engine", "ray"]) == 2 if module == "ray" else slurm.main([file]) == 2
    assert "pip install 'cosutils[cluster]'" in capsys.readouterr().err


# ---------------------------------------------------------------- many machines
@pytest.fixture
def ray():
    """Ray, with one slot."""
    module = pytest.importorskip("ray", reason="Ray is an optional engine: pip install -e '.[cluster]'")
    module.init(num_cpus=1, logging_level="ERROR", configure_logging=False, include_dashboard=False)
    yield module
    module.shutdown()


def test_ray_with_one_slot_for_two_workers_gives_the_same_files(tmp_path, undisturbed, ray):
    done, table = undisturbed
    study = as_study(done, tmp_path)
    assert sweep(study, workers=2, engine="ray") == {}
    assert summary(study) == table
    assert files(tmp_path) == files(done.out)
    items = ["fine", "raises", "dies", str(tmp_path / "mark"), "fine too"]
    errors = dict(cluster.on_ray(work, items, workers=2, retries=1))
    assert {item: error is None for item, error in errors.items()} == dict.fromkeys(items, True) | {
        "raises": False, "dies": False
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="no node of this Ray cluster has one"):
        list(cluster.on_ray(work, items, gpu=True))


def test_settings_of_slurm_are_refused_elsewhere(tmp_path, undisturbed):
    pytest.importorskip("submitit", reason="the example for Slurm needs submitit: pip install -e '.[cluster]'")
    with pytest.raises(ValueError, match="partition belongs to Slurm"):
        slurm.submit(undisturbed[0], 1, cluster="local", partition="gpu")


def test_jobs_of_slurm_in_local_mode_give_the_same_files(tmp_path, undisturbed, capsys):
    pytest.importorskip("submitit", reason="the example for Slurm needs submitit: pip install -e '.[cluster]'")
    done, table = undisturbed
    file = written(tmp_path)
    for name in ("runs", "timings"):
        shutil.copytree(done.out / name, tmp_path / "out" / name, ignore=lambda _, names: sorted(names)[:4])
    assert slurm.main([str(file), "--jobs", "2", "--cluster", "local", "--hours", "1"]) == 0
    assert table in capsys.readouterr().out
    found = {name: content for name, content in files(tmp_path / "out").items() if "/jobs/" not in name}
    assert found == files(done.out)
