"""Seeds of a serial puzzle that go together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cosutils.serial import ensemble, puzzles
from cosutils.serial.model import condition, embed, encode, hasten
from cosutils.serial.sampling import noise_for, shares, steps_of
from cosutils.serial.train import load_run

DATA = Path(__file__).resolve().parents[1] / "data" / "serial"


@pytest.fixture(scope="module", params=["plain", "memory"])
def asked(request):
    """A shipped model, hastened, and what it is asked: three seeds of two puzzles."""
    args, codec, transformer = load_run(DATA / "models" / f"ladder-trail-1-{request.param}-x1-s0")
    sample = puzzles.take(args.task, "validation", 5, 2)[0]
    given = condition(codec, encode(codec, sample.film(args.film))).repeat_interleave(3, 0)
    noise = torch.stack([noise_for(sample, seed) for seed in range(3)], 1).flatten(0, 1)
    return hasten(transformer), codec, sample, args.film, noise, given


def alike(rows):
    """Are the three rows of each puzzle equal?"""
    return torch.allclose(
        rows.unflatten(0, (-1, 3)), rows.unflatten(0, (-1, 3))[:, :1].expand(-1, 3, *rows.shape[1:]), atol=1e-4
    )


def run(asked, what=None, passes=2):
    transformer, _, _, _, noise, given = asked
    with torch.no_grad():
        if what is None:
            return list(steps_of(transformer, noise, given, embed(), 4))
        with ensemble.lockstep(transformer, 3, passes, what):
            return list(steps_of(transformer, noise, given, embed(), 4))


@pytest.mark.parametrize("what", ["merged", "estimates"])
def test_seeds_share_a_velocity_or_an_estimate_in_the_first_passes_alone(asked, what):
    common = [(x - x0) / sigma if what == "merged" else x0 for sigma, x, x0 in run(asked, what)]
    assert [alike(rows) for rows in common] == [True, True, False, False]
    assert not torch.allclose(common[0][0], common[0][3], atol=1e-2), "puzzles do not mix"


def test_nothing_is_left_behind(asked):
    before, _ = run(asked), run(asked, "merged")
    for one, other in zip(before, run(asked), strict=True):
        assert torch.equal(one[2], other[2])


def test_a_memory_holds_the_common_estimate():
    args, codec, transformer = load_run(DATA / "models" / "ladder-trail-1-memory-x1-s0")
    sample = puzzles.take(args.task, "validation", 5, 1)[0]
    given = condition(codec, encode(codec, sample.film(args.film))).repeat_interleave(3, 0)
    noise = torch.stack([noise_for(sample, seed) for seed in range(3)], 1).flatten(0, 1)
    with torch.no_grad(), ensemble.lockstep(transformer, 3, 1, "estimates"):
        _, _, x0 = next(steps_of(transformer, noise, given, embed(), 4))
    kept, level = transformer._memory[None]
    assert torch.allclose(kept, x0, atol=1e-4) and alike(kept) and level[0] == 1000


def test_what_the_methods_add_is_counted_against_single_runs(asked):
    transformer, codec, sample, film, *_ = asked
    found = ensemble.added(transformer, codec, sample, film)
    *_, (_, _, x0) = run_of(asked, ensemble.STEPS)
    alone = torch.stack([shares(codec, sample, x0[k::3]) for k in range(3)], 1)
    right = alone.argmax(-1).numpy() == sample.answer[:, None]
    assert np.allclose(found["one"], right.mean(1))
    assert np.allclose(found["oracle"], right.any(1) - right.mean(1)) and (found["oracle"] >= 0).all()
    assert np.allclose(
        found["together"], (alone.clamp(0, 1).sum(1).argmax(-1).numpy() == sample.answer) - right.mean(1)
    )
    *_, (_, _, x0) = run_of(asked, 3 * ensemble.STEPS)
    longer = torch.stack([shares(codec, sample, x0[k::3]) for k in range(3)], 1).argmax(-1).numpy()
    assert np.allclose(found["more"], (longer == sample.answer[:, None]).mean(1) - right.mean(1))
    for what in ("merged", "estimates"):
        with ensemble.lockstep(transformer, 3, ensemble.MERGED, what):
            *_, (_, _, x0) = run_of(asked, ensemble.STEPS)
        ends = torch.stack([shares(codec, sample, x0[k::3]) for k in range(3)], 1).argmax(-1).numpy()
        assert np.allclose(found[what], (ends == sample.answer[:, None]).mean(1) - right.mean(1))
    assert set(found) == {"one", "oracle", *ensemble.METHODS}


def run_of(asked, steps):
    transformer, _, _, _, noise, given = asked
    with torch.no_grad():
        return list(steps_of(transformer, noise, given, embed(), steps))


def test_no_other_way_is_known(asked):
    with (
        pytest.raises(ValueError, match="rows are 'latents' in no way that is known"),
        ensemble.lockstep(asked[0], 3, 1, "latents"),
    ):
        pass


def row(seed, split, length, **gains):
    return (
        dict(name=f"ladder-s{seed}", split=split, length=length)
        | dict.fromkeys([*ensemble.METHODS, "oracle"], 0.0)
        | gains
    )


def test_only_lengths_with_room_are_judged_and_over_trainings():
    runs = []
    for seed, gain in enumerate((0.10, 0.11, 0.12)):
        for split in ("validation", "report"):
            runs += [
                row(seed, split, 2, one=0.9, oracle=0.1, merged=gain),  # one run is right too often
                row(seed, split, 4, one=0.6, oracle=0.2, merged=gain, together=-gain, more=0.3 * seed),
                row(seed, split, 6, one=0.6, oracle=0.01, merged=gain),  # nothing to gain
            ]
    judged = {(one["length"], one["method"]): one for one in ensemble.judge(runs)}
    assert {length for length, _ in judged} == {4} and judged[4, "merged"]["added"]["n"] == 3
    assert judged[4, "merged"]["verdict"] == "supported"
    assert judged[4, "together"]["verdict"] == "not supported" and judged[4, "more"]["verdict"] == "undecided"
    assert judged[4, "oracle"]["verdict"] == "room"
    assert judged[4, "estimates"]["verdict"] == "undecided"  # three equal gains are no certainty
    one = [run for run in runs if run["name"] == "ladder-s0"]
    assert {row["verdict"] for row in ensemble.judge(one)} == {"room", "undecided"}  # a single training


def test_each_training_has_puzzles_that_nobody_has_read():
    read = puzzles.take("ladder", "validation", 6, 128)[0]
    own = [ensemble.unread("ladder", "validation", 6, 16, training) for training in range(3)]
    keys = [set(one.seed.tolist()) for one in (read, *own)]
    assert all(len(one) == 16 for one in keys[1:]) and len(set.union(*keys)) == 128 + 3 * 16


def test_the_command_writes_both_splits(tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(DATA / "models", target_is_directory=True)
    given = f"x ladder-trail-1-plain-x1-s0 --data {tmp_path} --lengths 3 --each 2"
    monkeypatch.setattr(sys, "argv", given.split())
    ensemble.main()
    stored = json.loads((tmp_path / "ensemble.json").read_text())
    assert [run["split"] for run in stored["runs"]] == ["validation", "report"]
    assert stored["judged"] == ensemble.judge(stored["runs"])
    assert all(run["n"] == 2 and run["length"] == 3 for run in stored["runs"])
