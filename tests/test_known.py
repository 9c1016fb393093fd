"""The models of known mechanism do what they say, and the calibration follows from their record by the written rule."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cosutils as cos
from cosutils.hooks.inject import inject_each, noise_at_step, renoise
from cosutils.measures import behaviour, chain
from cosutils.mini import known, tasks
from cosutils.pipelines.schedule import flow_sigmas
from cosutils.report import calibration
from cosutils.report.claims import calibrate, load_claims, separates
from cosutils.report.results import read_numbers

DATA = Path(__file__).resolve().parents[1] / "data"
SHELVES = [tasks.shelf.sample(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def traces():
    """A function mechanism -> traces of eight puzzles in ten steps, each run once."""
    found = {}

    def traced(name):
        if name not in found:
            pipe = known.pipeline(name, SHELVES)
            found[name] = [chain.trace(pipe, one, one.seed, num_inference_steps=10) for one in SHELVES]
        return found[name]

    return traced


def test_progress_is_the_share_of_steps_that_are_done():
    assert [known.progress(float(s)) for s in flow_sigmas(10, 5.0)[:-1]] == pytest.approx(np.arange(10) / 10, abs=1e-6)


@pytest.mark.slow
def test_a_guess_holds_all_answers_alike_and_ends_in_any_of_them(traces):
    found = traces("guess")
    assert chain.alive(found)[:, 0] == pytest.approx(4, abs=0.01) and chain.alive(found)[:, -1] == pytest.approx(
        1, abs=0.1
    )
    assert chain.decision(found)[:, 0] == pytest.approx(0.25)
    right = chain.decision(found)[:, -1]
    assert 0 < right.sum() < len(found)  # neither all nor none
    puzzle = SHELVES[0]
    pipe = known.pipeline("guess", [puzzle])
    seeds = range(24)
    films = [pipe(**puzzle.inputs, **cos.settings(pipe) | dict(num_inference_steps=6), generator=cos.seeded(k),
                  output_type="np").frames[0] for k in seeds]  # fmt: skip
    leaders = [chain.leading(puzzle, film) for film in films]
    assert set(leaders) == set(puzzle.options) and max(map(leaders.count, puzzle.options)) <= 12


def test_the_guess_is_the_posterior_mean_and_does_not_see_which_answer_is_right():
    films = torch.randn(3, 2, 5, 4, 4)
    right = [torch.tensor([k == answer for k in range(3)]) for answer in range(2)]
    a, b = (known.Puzzle(films, films[rows].mean(0), films[0], rows) for rows in right)
    x = 0.4 * films[1] + 0.6 * torch.randn(2, 5, 4, 4)
    assert known.guess(x, 0.6, a).equal(known.guess(x, 0.6, b))
    density = [torch.distributions.Normal(0.4 * film, 0.6).log_prob(x).sum() for film in films]
    weights = torch.softmax(torch.stack(density), 0)
    assert torch.allclose(known.guess(x, 0.6, a), (weights[:, None, None, None, None] * films).sum(0), atol=1e-5)


@pytest.mark.slow
def test_one_pass_decides_at_once_and_draws_later(traces):
    found = traces("one_pass")
    values = chain.measures(found)
    assert (chain.decision(found) == 1).all() and (chain.commitments(found) == 0).all()
    assert values["alive_first"].min() > 3 and values["alive_last"].max() < 1.5
    assert not values["solved_first"].any() and values["solved_last"].all()
    assert (values["drawing_gain"] == 1).all() and (values["decision_gain"] == 0).all()


@pytest.mark.slow
def test_a_hop_is_made_from_the_answer_before_it_alone(traces):
    found = traces("hop")
    leads = np.array([[one.names[k] for k in one.evidence.argmax(1)] for one in found])
    answers = np.array([one.sample.answer for one in found])
    assert (leads[:, 8:] == answers[:, None]).all(1).mean() >= 0.75
    held = leads[:, [5, 6, 7]]  # three wrong answers, one after the other
    assert (held != answers[:, None]).all() and all(len(set(row)) == 3 for row in held)
    assert chain.decision(found)[:, 4] == pytest.approx(0.25)


@pytest.mark.slow
@pytest.mark.parametrize("edit", [noise_at_step, renoise])
def test_an_erased_state_breaks_the_chain_and_a_kept_one_does_not(edit):
    pipe, scores = known.pipeline("hop", SHELVES), []
    for puzzle in SHELVES:
        call = puzzle.inputs | cos.settings(pipe) | dict(num_inference_steps=10)
        with cos.record(pipe) as run:
            plain = pipe(**call, generator=cos.seeded(puzzle.seed), output_type="np").frames[0]
        ((_, out),) = inject_each(pipe, run, [edit(8, puzzle.seed)], **call | dict(output_type="np"))
        scores.append([puzzle.score(film).solved for film in (plain, out.frames[0])])
    plain, after = np.array(scores).mean(0)
    assert plain >= 0.75
    assert after <= plain - 0.25 if edit is noise_at_step else after == plain


def test_the_chain_along_the_steps_needs_its_steps():
    pipe = known.pipeline("hop", SHELVES)
    few = [chain.trace(pipe, one, one.seed, num_inference_steps=4) for one in SHELVES]
    assert chain.decision(few)[:, -1].mean() <= 0.25


@pytest.mark.slow
def test_frames_settle_one_after_the_other(traces):
    found = traces("frames")
    steps = chain.settling(found)
    latent = np.array([np.nanmean(steps[:, 4 * k - 3 : 4 * k + 1]) for k in range(1, 5)])
    assert (np.diff(latent) > 1).all() and chain.frame_lag(found).mean() > 3
    assert chain.decision(found)[:, -1].all()
    others = {name: np.nanmean(abs(chain.frame_lag(traces(name)))) for name in ("guess", "one_pass", "hop")}
    assert max(others.values()) < chain.frame_lag(found).mean(), others


def test_a_frame_waits_for_the_one_before_it():
    """With latent frame 1 kept at noise at every step, no later frame is drawn, though others were left alone."""
    puzzle = tasks.bounce.sample(0)
    pipe = known.pipeline("frames", [puzzle])
    call = puzzle.inputs | cos.settings(pipe) | dict(num_inference_steps=10)
    with cos.inject(pipe, cos.noise_at_frame(1)):
        film = pipe(**call, generator=cos.seeded(0), output_type="np").frames[0]
    assert not puzzle.score(film).solved and chain.leading(puzzle, film[:4]) != puzzle.answer


@pytest.mark.slow
@pytest.mark.parametrize("task", tasks.NAMES)
def test_every_mechanism_takes_every_task(task):
    puzzle = tasks.sample(task, 1)
    for name in known.MECHANISMS:
        pipe = known.pipeline(name, [puzzle])
        call = cos.settings(pipe) | dict(num_inference_steps=10, generator=cos.seeded(1), output_type="np")
        film = pipe(**puzzle.inputs, **call).frames[0]
        assert puzzle.score(film).solved or name in ("guess", "hop")
        twin = puzzle.twin()
        film = pipe(**twin.inputs, **call).frames[0]
        assert twin.score(film).solved or name in ("guess", "hop")


def test_what_a_mechanism_does_not_know_is_refused():
    pipe = known.pipeline("guess", SHELVES[:1])
    call = cos.settings(pipe) | dict(num_inference_steps=2, generator=cos.seeded(0))
    with pytest.raises(ValueError, match="of no puzzle that was posed"):
        pipe(**SHELVES[1].inputs, **call)
    with pytest.raises(ValueError, match="makes films of 5 latent frames, not of 4"):
        pipe(**SHELVES[0].inputs | dict(num_frames=13), **call)
    with pytest.raises(ValueError, match="unknown mechanism 'luck': choose from guess, one_pass, hop, frames"):
        known.pipeline("luck", SHELVES[:1])


# ---------------------------------------------------------------- the record
@pytest.fixture(scope="module")
def record():
    return read_numbers(DATA / "results" / "calibration.json")


def test_the_record_holds_enough_puzzles_and_all_mechanisms(record):
    for name in known.MECHANISMS:
        own = {key: number for key, number in record.items() if key.startswith(f"{name}/maze/")}
        assert own[f"{name}/maze/alive_first"]["n"] >= 40
        assert calibration.curve(record, name, "maze", "alive").shape == (20, 3)


def test_a_run_that_breaks_off_keeps_what_was_recorded(tmp_path, monkeypatch):
    def measured(model, task, puzzles):
        if task == "occlusion":
            raise RuntimeError("broken off")
        return {f"{model}/{task}/new": dict(value=1.0)}

    path = tmp_path / "calibration.json"
    shutil.copy(DATA / "results" / "calibration.json", path)
    before = read_numbers(path)
    monkeypatch.setattr(calibration, "run", measured)
    monkeypatch.setattr(sys, "argv", ["x", "--again", "--models", "guess", "--out", str(tmp_path)])
    with pytest.raises(RuntimeError, match="broken off"):
        calibration.main()
    after = read_numbers(path)
    first = {name for name in before if name.startswith("guess/reappear/")}
    assert set(after) == set(before) - first | {"guess/reappear/new"}


def test_the_column_says_what_the_rule_says(record):
    head, groups = calibration.table(record, DATA / "claims.yaml", DATA / "results")
    claims = load_claims(DATA / "claims.yaml")
    assert head[1] == "diagnostic" and len(groups) == len(claims)
    for (title, rows), claim in zip(groups.items(), claims.values(), strict=True):
        assert title.startswith(claim["claim"]) and [row[0] for row in rows] == list(claim["measures"])
        if isinstance(claim["known"], str):
            assert claim["known"] in title and {row[1] for row in rows} == {"–"}
            continue
        judged = [task for task in tasks.NAMES if calibrate(claim, task, record)]
        for row in rows:
            told = [separates(claim["known"], task, row[0], record) for task in judged]
            told = [one for one in told if one is not None]
            want = (
                f"{'yes' if sum(told) > len(told) / 2 else 'no'} ({sum(told)} of {len(told)})"
                if told
                else "one kind only"
            )
            assert row[1] == want, (title, row)


def test_what_a_guess_shows_is_no_evidence_of_a_chain(record):
    """The finding of the page, from the record: guess and chain look alike in the candidates, not in the decision."""
    for name in ("guess", "hop"):
        assert record[f"{name}/rotation/alive_first"]["value"] > 2.5
        assert record[f"{name}/rotation/alive_last"]["value"] < 1.25
    assert record["guess/rotation/beyond_guess"]["low"] < 0.05 < record["hop/rotation/beyond_guess"]["low"]
    assert record["one_pass/rotation/gain"]["value"] > 0.9 and record["one_pass/rotation/decision_gain"]["value"] == 0


def test_a_curve_that_was_not_recorded_is_named(record):
    with pytest.raises(ValueError, match="no curve 'alive' of luck on maze was recorded"):
        calibration.curve(record, "luck", "maze", "alive")


def test_right_leads_at_every_step_of_one_pass(traces):
    assert all(behaviour.right(one).all() for one in traces("one_pass"))
