"""The serial testbed: exact puzzles, models in the stock pipeline, resumable training, readings that can
fail.
"""

import hashlib
import json
import sys
from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml

from cosutils.hooks.record import record
from cosutils.mini.memory import RememberingWan
from cosutils.serial import causes, evaluate, model, plan, puzzles, sampling, train, verdict

TASKS = list(puzzles.TASKS)


def tile(board, number):
    return [(int(r), int(c)) for r, c in np.argwhere(board == number)]


def walked(board):
    """Ladder lottery, from the picture alone: go down, and along every rung that is met. Returns the cells
    and the end.
    """
    ((top, column),) = tile(board, puzzles.START)
    cells = []
    for row in range(top + 1, 9):
        for step in (1, -1):
            beside = column + step
            if 0 <= beside < 9 and board[row, beside] == puzzles.RUNG:
                cells.append((row, beside))
                column += 2 * step
                break
        cells.append((row, column))
    return cells, column


def hopped(board):
    """Arrows, from the picture alone."""
    ((row, _),) = tile(board, puzzles.START)
    cells = []
    while (found := np.flatnonzero(board[row] == puzzles.RUNG)).size:
        cells.append((row, int(found[0])))
        row = int(found[0])
    return cells, row


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_is_that_of_an_independent_solver(task):
    for length in puzzles.lengths(task):
        found, _ = puzzles.take(task, "validation", length, 40)
        assert len(found) > 20
        for k, board in enumerate(found.first):
            answer = tuple(found.options[k, found.answer[k]])
            middle, end = ([tuple(map(int, cell)) for cell in np.argwhere(way)] for way in found.way[k])
            if task == "ladder":
                cells, column = walked(board)
                assert answer == (9, column) and sorted(cells) == end
                assert [cell for cell in sorted(cells) if cell[0] <= 4] == middle
                assert sum(puzzles.RUNG in row for row in board[tile(board, puzzles.START)[0][0] + 1 :]) == length
            elif task == "arrows":
                cells, row = hopped(board)
                assert answer == (row, row) and len(cells) == length and sorted(cells) == end
                assert sorted(cells[: (length + 1) // 2 if length > 1 else 0]) == middle
            elif task == "ladder_most":
                below = board[tile(board, puzzles.START)[0][0] + 1 :]
                counts = [(below[:, c] == puzzles.RUNG).sum() for c in (1, 3, 5, 7)]
                assert answer == (9, 1 + 2 * int(np.argmax(counts))) and sorted(counts)[-2] < max(counts)
                assert sum(counts) == length
            else:
                ends = [row for row in range(10) if puzzles.RUNG not in board[row]]
                counts = [(board[:, end] == puzzles.RUNG).sum() for end in ends]
                best = ends[int(np.argmax(counts))]
                assert answer == (best, best) and sorted(counts)[-2] < max(counts) and sum(counts) == length


def test_no_puzzle_of_one_split_occurs_in_another():
    taken = {split: puzzles.take("ladder", split, 3, 2000)[0] for split in puzzles.SPLITS}
    boards = {split: {board.tobytes() for board in found.first} for split, found in taken.items()}
    assert len(boards["validation"]) == len(taken["validation"]) and len(boards["report"]) == len(taken["report"])
    assert not boards["validation"] & boards["report"] and not boards["train"] & (
        boards["validation"] | boards["report"]
    )
    small, _ = puzzles.take("arrows_most", "report", 3, 3)
    assert len(small) == 3 and puzzles.distinct("ladder", 8) == 5 * 4**8


def test_a_puzzle_is_a_function_of_its_seed_and_take_goes_on_where_it_stopped():
    both, _ = puzzles.take("arrows", "train", 4, 60)
    one, used = puzzles.take("arrows", "train", 4, 30)
    two, _ = puzzles.take("arrows", "train", 4, 30, used)
    assert np.array_equal(np.concatenate([one.first, two.first]), both.first)
    assert np.array_equal(puzzles.make("arrows", 4, both.seed).first, both.first)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown task 'sudoku'"):
        puzzles.take("sudoku", "train", 3, 1)
    with pytest.raises(ValueError, match="lengths 1 to 8, got 9"):
        puzzles.take("ladder", "train", 9, 1)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        puzzles.take("ladder", "test", 3, 1)
    with pytest.raises(ValueError, match="unknown film 'long'"):
        puzzles.take("ladder", "train", 3, 1)[0].film("long")
    with pytest.raises(ValueError, match="unknown variant"):
        train.Arguments(variant="magic").check()
    bad = [dict(batch=-64), dict(batch=0), dict(rate=float("inf")), dict(scale=0.0), dict(width=65), dict(seed=-1)]
    bad += [dict(layers=0), dict(heads=0), dict(samples=5), dict(batch=100)]
    for changes in bad:
        ((name, value),) = changes.items()
        with pytest.raises(ValueError, match=f"{name} .*{value}"):
            train.Arguments(**changes).check()


def test_runs_that_are_not_there_are_named_and_kept_ones_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "ladder-trail-9", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "no run 'ladder-trail-9'" in capsys.readouterr().err
    name = "ladder-trail-1-plain-x1-s0"
    monkeypatch.setattr(sys, "argv", ["x", name])
    monkeypatch.setattr(evaluate, "record", lambda *_: pytest.fail("measured what has a record of these weights"))
    evaluate.main()
    assert capsys.readouterr().out == f"{name}: kept\n"
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        causes.main()
    assert "no run is named, and none has a record" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ladder():
    return puzzles.take("ladder", "validation", 5, 4)[0]


@pytest.fixture(scope="module")
def codec(ladder):
    return model.build_codec(0.5, puzzles.take("ladder", "train", 8, 500)[0].film("trail"))


def test_the_codec_is_exact_and_of_the_asked_scale(codec, ladder):
    films = ladder.film("trail")
    video = torch.from_numpy(puzzles.draw(films)).permute(0, 4, 1, 2, 3) * 2 - 1
    raw = codec.encode(video).latent_dist.mode()
    latents = model.encode(codec, films)
    std = torch.tensor(codec.config.latents_std)[:, None, None, None]
    torch.testing.assert_close(raw / std, latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(raw).sample, video, atol=1e-4, rtol=0)
    assert np.array_equal(sampling.nearest(codec, latents).numpy(), films)
    many = model.encode(codec, puzzles.take("ladder", "train", 8, 500)[0].film("trail"))
    assert float(many.square().mean().sqrt()) == pytest.approx(0.5, abs=1e-3)


def build(kind):
    torch.manual_seed(0)
    if kind == "looped":
        net = model.build_transformer(2, loops=True)
        net.loops = 3
        return net
    return model.build_transformer(1, kind)


def pictured(film):
    """The first frame as the pipeline's input, unrounded."""
    return torch.from_numpy(puzzles.draw(film[None])[:, 0]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["plain", "memory", "looped"])
def test_batches_of_different_puzzles_equal_the_stock_pipeline(kind, codec, ladder):
    net = build(kind)
    pipe = model.build_pipeline(codec, net)
    films = ladder.film("answer")
    noise = sampling.noise_for(ladder)
    given = model.condition(codec, model.encode(codec, films))
    *_, (_, _, last) = sampling.steps_of(model.hasten(build(kind).eval()), noise, given, model.embed(), 3)
    for k in (2, 0):  # a second run does not remember the first
        picture = pictured(films[k])
        call = dict(prompt="", height=80, width=80, num_frames=9, max_sequence_length=1, num_inference_steps=3)
        call |= dict(guidance_scale=1.0, latents=noise[k : k + 1], output_type="latent")
        stock = pipe(image=picture, **call).frames
        torch.testing.assert_close(stock, last[k : k + 1], atol=2e-4, rtol=0)


def test_memory_is_used_kept_apart_by_branch_and_survives_a_folder(codec, ladder, tmp_path):
    net = build("memory").eval()
    x, given = sampling.noise_for(ladder), model.condition(codec, model.encode(codec, ladder.film("answer")))
    entry, words = torch.cat([x, given], 1), model.embed().expand(4, -1, -1)

    def call(level, memory=None):
        with torch.no_grad():
            return net(entry, torch.full((4,), float(level)), words, return_dict=False, memory=memory)[0]

    with net.cache_context("cond"):
        first = call(1000)
    with net.cache_context("uncond"):
        torch.testing.assert_close(call(900), call(900, torch.zeros_like(x)))  # nothing of the other branch
    with net.cache_context("cond"):
        torch.testing.assert_close(call(900), call(900, x - first))
        assert not torch.allclose(call(800), call(800, torch.zeros_like(x)))
        torch.testing.assert_close(call(1000), first)  # a new run
    net.save_pretrained(tmp_path)
    again = RememberingWan.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(call(1000), again(entry, torch.full((4,), 1000.0), words, return_dict=False)[0])
    assert json.loads((tmp_path / "config.json").read_text())["in_channels"] == 8


def test_guidance_of_one_and_a_half_runs_in_the_stock_pipeline_with_a_memory(codec, ladder):
    pipe = model.build_pipeline(codec, build("memory"))
    picture = pictured(ladder.film("answer")[0])
    call = dict(image=picture, prompt="", negative_prompt="", height=80, width=80, num_frames=9, max_sequence_length=1,
                num_inference_steps=3, latents=sampling.noise_for(ladder[:1]), output_type="latent")  # fmt: skip
    torch.testing.assert_close(pipe(**call, guidance_scale=1.0).frames, pipe(**call, guidance_scale=1.5).frames)


def test_the_recorder_reads_a_memory_as_it_reads_any_model(codec, ladder):
    pipe = model.build_pipeline(codec, build("memory"))
    call = dict(image=pictured(ladder.film("trail")[1]), prompt="", height=80, width=80, num_frames=9,
                max_sequence_length=1, num_inference_steps=3, guidance_scale=1.0, output_type="latent")  # fmt: skip
    with record(pipe) as run:
        pipe(**call, latents=sampling.noise_for(ladder)[1:2])
    given = model.condition(codec, model.encode(codec, ladder.film("trail")))
    steps = sampling.steps_of(build("memory").eval(), sampling.noise_for(ladder), given, model.embed(), 3)
    for step, (_, _, x0) in enumerate(steps):
        torch.testing.assert_close(run.x0[step], x0[1:2], atol=2e-4, rtol=0)


def test_a_looped_pair_is_as_deep_as_asked():
    net = build("looped").eval()
    x = torch.randn(1, 8, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    outs = []
    for loops in (1, 3):
        net.loops = loops
        outs.append(net(x, torch.tensor([500.0]), model.embed(), return_dict=False)[0])
    assert not torch.allclose(*outs)
    assert len(net.state_dict()) == len(model.build_transformer(2).state_dict())
    with pytest.raises(ValueError, match="loops must be an integer of at least 1, got 0"):
        net.loops = 0


class Knows:
    """A denoiser of known mechanism: says `film` at every step, whatever it sees."""

    def __init__(self, codec, films):
        self.x0 = model.encode(codec, films)

    def __call__(self, entry, timestep, words, return_dict):
        return ((entry[:, :2] - self.x0) / (timestep / 1000).view(-1, 1, 1, 1, 1),)


def test_readings_tell_truth_from_mistake(codec, ladder):
    wrong = (ladder.answer + 1) % 5
    truth = sampling.read(Knows(codec, ladder.film("trail")), codec, ladder, "trail", model.embed(), 2)
    fault = sampling.read(Knows(codec, ladder.film("trail", wrong)), codec, ladder, "trail", model.embed(), 2)
    assert truth.right.all() and truth.exact.all() and truth.alive.max() < 1.01 and truth.cells.min() == 1
    assert not fault.right.any() and not fault.exact.any() and (fault.leader == wrong).all() and fault.cells.min() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("variant", train.VARIANTS)
def test_every_variant_learns_from_the_right_target(variant, codec):
    """One film, many steps of gradient: the loss falls far below that of predicting nothing."""
    args = train.Arguments(variant=variant, rate=1e-2)
    torch.manual_seed(0)
    net = model.hasten(model.build_transformer(1, variant)).train()
    x0 = model.encode(codec, puzzles.take("ladder", "train", 3, 1)[0].film("trail")).expand(16, -1, -1, -1, -1)
    given, words, draws = model.condition(codec, x0), model.embed().expand(16, -1, -1), torch.Generator().manual_seed(0)
    opt, losses = torch.optim.AdamW(net.parameters(), 1e-2), []
    for _ in range(30):
        loss = train.loss_of(args, net, x0, given, words, draws)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("variant", ["plain", "memory"])
def test_a_student_of_as_many_steps_is_its_teacher_and_one_of_fewer_learns_to_arrive(variant, codec, monkeypatch):
    monkeypatch.setattr(train, "TAUGHT", 4)
    torch.manual_seed(0)
    teacher = model.hasten(model.build_transformer(1, variant)).eval()
    x0 = model.encode(codec, puzzles.take("ladder", "train", 3, 8)[0].film("trail"))
    given, words = model.condition(codec, x0), model.embed().expand(8, -1, -1)
    x1 = sampling.noise_for(puzzles.take("ladder", "train", 3, 8)[0])

    def loss(net, steps):
        args = train.Arguments(variant=variant, teacher="it", steps=steps)
        return train.loss_of_student(args, net, teacher, x1, given, words)

    assert loss(deepcopy(teacher).train(), 4).item() < 1e-9
    student = deepcopy(teacher).train()
    opt, losses = torch.optim.AdamW(student.parameters(), 1e-3), []
    for _ in range(60):
        losses.append(loss(student, 1))
        losses[-1].backward()
        opt.step()
        opt.zero_grad()
    assert losses[0] > 1e-6 and losses[-1] < 0.7 * losses[0]


def test_a_student_that_cannot_be_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="needs both teacher and steps, got 'it' and 0"):
        train.Arguments(teacher="it").check()
    with pytest.raises(ValueError, match="needs both teacher and steps, got '' and 4"):
        train.Arguments(steps=4).check()
    with pytest.raises(ValueError, match="must divide the 16 of its teacher, got 5"):
        train.Arguments(teacher="it", steps=5).check()
    with pytest.raises(ValueError, match="plain or has a memory, got 'levels'"):
        train.Arguments(teacher="it", steps=4, variant="levels").check()
    teacher = str(evaluate.Path(__file__).parent.parent / "data/serial/models/ladder-trail-1-memory-x1-s0")
    with pytest.raises(ValueError, match="layers of a student is that of its teacher, 1, got 2"):
        train.train(tmp_path, train.Arguments(layers=2, variant="memory", teacher=teacher, steps=4))
    assert not (tmp_path / "arguments.json").exists()  # the folder can be used for the right ones


def test_a_student_begins_as_its_teacher_and_is_measured_with_its_own_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 32)
    monkeypatch.setattr(train, "validate", lambda *_: {})
    monkeypatch.setattr(train, "TAUGHT", 2)
    monkeypatch.setattr(evaluate, "PASSES", 1)
    folder = evaluate.Path(__file__).parent.parent / "data/serial/models/ladder-trail-1-memory-x1-s0"
    args = train.Arguments(variant="memory", teacher=str(folder), steps=2, samples=32, batch=16, rate=1e-12)
    train.train(tmp_path / "run", args)
    _, codec, student = train.load_run(tmp_path / "run")
    assert plan.name_of(args) == "ladder-trail-1-memory-x1-s0-n32-to2"
    for name, value in train.load_run(folder)[2].state_dict().items():
        assert torch.allclose(student.state_dict()[name], value, atol=1e-6), name
    with pytest.raises(ValueError, match="is a student itself"):
        train.tutor(replace(args, teacher=str(tmp_path / "run")))
    theirs = evaluate.facts_of(folder, train.load_run(folder)[0], "validation")
    assert evaluate.facts_of(tmp_path / "run", args, "validation")["teacher"] == theirs["weights"]
    rows = evaluate.curves(student, codec, args, "validation", 2)
    assert {(row["sampler"], row["steps"]) for row in rows} == {("uniform", 2), ("parallel", 1)}


@pytest.mark.slow
def test_training_resumes_bit_by_bit_and_refuses_other_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 32)
    monkeypatch.setattr(train, "validate", lambda *_: {})
    args = train.Arguments(samples=96, batch=16, variant="memory")
    train.train(tmp_path / "whole", args)

    class Stop(Exception):
        pass

    calls, real = [], train.chunk

    def interrupted(args, number):
        calls.append(number)
        if len(calls) == 3:
            raise Stop
        return real(args, number)

    monkeypatch.setattr(train, "chunk", interrupted)
    with pytest.raises(Stop):
        train.train(tmp_path / "parts", args)
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    with pytest.raises(ValueError, match="other arguments"):
        train.train(tmp_path / "parts", replace(args, seed=1))
    log = tmp_path / "parts" / "log.jsonl"  # killed between log and checkpoint: the log is a row ahead
    log.write_text(log.read_text() + log.read_text().splitlines()[-1].replace('"seen": 64', '"seen": 96') + "\n")
    older = {name: value for name, value in asdict(args).items() if name not in ("teacher", "steps")}
    (tmp_path / "parts" / "arguments.json").write_text(json.dumps(older))  # begun before these had a name
    train.train(tmp_path / "parts", args)
    assert [json.loads(line)["seen"] for line in log.read_text().splitlines()] == [32, 64, 96]
    assert calls == [0, 1, 2, 2]
    whole, parts = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert json.loads((tmp_path / "whole" / "arguments.json").read_text()) == asdict(args)


class Echo:
    """A denoiser of known mechanism: its estimate is the state itself."""

    def __call__(self, entry, timestep, words, return_dict):
        return (torch.zeros_like(entry[:, :2]),)


def test_exchanged_states_move_an_echo_and_not_a_denoiser_that_knows(codec, ladder):
    asked = causes.posed(codec, ladder, "answer")
    for row in causes.dependence(Knows(codec, ladder.film("answer")), asked, 3):
        assert all(row[name]["flips"] == 0 and row[name]["right"] == 1 for name in ("own", "truth", "other", "noise"))
    rows = causes.dependence(Echo(), asked, 8)
    assert rows[-1]["truth"]["right"] == 1 and min(row["noise"]["moved"] for row in rows) > 0.1


def test_what_a_memory_holds_is_exchanged_too(codec, ladder):
    rows = causes.dependence(build("memory").eval(), causes.posed(codec, ladder, "trail"), 3)
    assert {"memory", "none"} <= rows[0].keys() and rows[0]["none"]["moved"] > 0


def test_an_injected_mistake_stays_with_an_echo_and_is_mended_by_one_that_knows(codec, ladder):
    films, wrong = causes.mistaken(ladder, "trail")
    assert (
        (wrong != ladder.answer).all() and (films[:, 0] == ladder.first).all() and (films != ladder.film("trail")).any()
    )
    asked = causes.posed(codec, ladder, "trail")
    knows = causes.recovery(Knows(codec, ladder.film("trail")), asked, 4)
    assert all(row["right"] == 1 and row["kept"] == 0 for row in knows) and len(knows) == 3
    echo = causes.recovery(Echo(), asked, 64)
    assert echo[-1]["kept"] == 1 and echo[-1]["right"] == 0


def test_an_injection_reaches_the_memory(codec, ladder):
    net = build("memory").eval()
    net.remember(model.encode(codec, ladder.film("trail")), 0.9)
    assert float(net._recall(torch.zeros(4, 2, 3, 10, 10), torch.full((4,), 800.0)).abs().max()) > 0
    assert float(net._recall(torch.zeros(4, 2, 3, 10, 10), torch.full((4,), 900.0)).abs().max()) == 0


def test_the_verifier_tells_fixed_points_from_guesses(codec):
    ladder = puzzles.take("ladder", "validation", 5, 6)[0]
    guess = np.where(np.arange(6) < 3, ladder.answer, (ladder.answer + 1) % 5)
    other = np.where(np.arange(6) < 3, ladder.answer, (ladder.answer + 2) % 5)
    first, second = (model.encode(codec, ladder.film("answer", a)) for a in (guess, other))

    class Guesses:
        calls = 0

        def __call__(self, entry, timestep, words, return_dict):
            self.calls += 1
            x0 = second if self.calls % 2 else first
            return ((entry[:, :2] - x0) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

    found = causes.verifier(Guesses(), causes.posed(codec, ladder, "answer"), 2)
    assert found["right"] == 0.5 and found["auroc"] == 1 and found["returns_right"] == 1 and found["returns_wrong"] < 1


def test_reach_and_index_are_exact_on_known_curves():
    lengths, null = range(1, 9), 0.2
    sharp = [1.0] * 4 + [0.2] * 4
    assert evaluate.d50(lengths, sharp, null) == pytest.approx(4.5) and evaluate.horizon(sharp, null) == pytest.approx(
        4
    )
    assert evaluate.d50(lengths, [1.0] * 8, null) == 8 and evaluate.d50(lengths, [0.2] * 8, null) == 1
    reach = {1: 2.0, 2: 4.0, 4: 6.0}
    assert evaluate.cos_index(reach, reach) == pytest.approx(1)
    assert evaluate.cos_index(reach, {1: 2.0, 4: 2.0}) == pytest.approx(0)


@pytest.mark.slow
def test_a_run_is_measured_and_the_record_names_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 32)
    monkeypatch.setattr(train, "validate", lambda *_: {})
    monkeypatch.setattr(evaluate, "curves", lambda *given: evaluate_curves(*given, steps=(1, 2)))
    path = tmp_path / "plan.yaml"
    path.write_text("- {task: arrows_most, film: answer, variant: levels, samples: 32, batch: 16, seed: [0, 3]}\n")
    runs = plan.planned(path)
    names = [plan.name_of(args) for args in runs]
    assert names[1] == "arrows_most-answer-1-levels-x1-s3-n32" and len(runs) == 2
    twice = "- {batch: 16, samples: 32, seed: [0, 1]}\n- {batch: 32, samples: 32, seed: 1}\n"
    (tmp_path / "twice.yaml").write_text(twice)
    with pytest.raises(ValueError, match="two runs of the name ladder-trail-1-plain-x1-s1-n32"):
        plan.planned(tmp_path / "twice.yaml")
    plan.work(tmp_path / "runs", path, tmp_path, 4)
    plan.work(tmp_path / "runs", path, tmp_path, 4)  # nothing is left to do
    found = json.loads((tmp_path / "validation" / f"{names[0]}.json").read_text())
    weights = (tmp_path / "models" / names[0] / "weights.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert found["weights"] == digest and found["chance"] == 0.25 and digest in (tmp_path / "SHA256SUMS").read_text()
    assert {row["sampler"] for row in found["curves"]} == {"uniform", "staircase", "parallel"}
    assert type(evaluate.load_pipeline(tmp_path / "models" / names[0])).__module__.startswith("diffusers")
    for row in found["curves"]:
        assert row["n"] == 4 and row["decision"]["low"] <= row["decision"]["value"] <= row["decision"]["high"]
        if row["sampler"] == "uniform":
            assert row["first"] + row["corrected"] - row["spoiled"] == pytest.approx(row["decision"]["value"], abs=1e-3)


evaluate_curves = evaluate.curves


def recorded(seed, gain, layers=1, first=0.3):
    """A record of eight lengths whose first estimate is right at `first` and which gains with the steps."""
    rows = []
    for length in puzzles.lengths("ladder"):
        for steps in evaluate.STEPS:
            value = first + 0.01 * seed + gain * np.log2(steps) / 5
            rows.append(dict(length=length, sampler="uniform", steps=steps, decision=dict(value=value)))
        rows.append(dict(length=length, sampler="parallel", steps=8, decision=dict(value=first)))
    args = asdict(train.Arguments(seed=seed, layers=layers))
    return dict(arguments=args, chance=0.2, curves=rows, split="report", weights="aa")


def test_a_gain_is_serial_where_the_control_gains_less_than_half_of_it():
    def judged(*, gain=0.1, first=0.3, seeds=3):
        control = [recorded(seed, gain, first=first) for seed in range(seeds)]
        for one in control:
            one["arguments"] |= dict(task="ladder_most")
        return verdict.summary([recorded(s, 0.5) for s in range(3)] + control)

    (row,) = verdict.serial_gains(judged())
    assert row["verdict"] == "supported" and row["depth"] == "1" and row["control"]["value"] == pytest.approx(0.1)
    kinds = dict(gain=0.3), dict(gain=0.3, first=0.85)
    words = [verdict.serial_gains(judged(**kind))[0]["verdict"] for kind in kinds]
    assert words == ["not supported", "supported"]  # the second has nothing to gain
    assert verdict.serial_gains(judged(seeds=2)) == []
    assert verdict.serial_gains(verdict.summary([recorded(s, 0.0) for s in range(3)])) == []


def test_verdicts_follow_the_rules():
    cases = [([recorded(s, 0.5) for s in range(3)], "supported"),
             ([recorded(s, 0.0) for s in range(3)], "not supported"),
             ([recorded(s, 0.3, first=0.6) for s in range(3)], "no room"), ([recorded(0, 0.5)], "undecided"),
             ([recorded(s, (0.5, 0.0, -0.4)[s]) for s in range(3)], "undecided")]  # fmt: skip
    for records, expected in cases:
        assert verdict.judge(records)["verdict"] == expected
    deep, deeper = ([recorded(s, 0.0, layers=2**k, first=0.3 + 0.2 * k) for s in range(3)] for k in (1, 2))
    assert verdict.summary(cases[0][0] + deep)["cos_index"] == []  # the rule asks for three depths ...
    assert verdict.summary([one for one in cases[0][0] + deep + deeper if one["arguments"]["seed"]])["cos_index"] == []
    judged = verdict.summary(cases[0][0] + deep + deeper)
    assert len(judged["groups"]) == 3 and verdict.cells(judged)[1][0][-1] == "supported"
    assert list(verdict.by_depth(judged, "ladder", "trail", "plain")) == [1, 2, 4]
    curve = verdict.decided(deep)[3]
    assert [curve[steps]["value"] for steps in (1, 32)] == pytest.approx([0.51, 0.51]) and curve[1]["n"] == 3
    index, *others = judged["cos_index"]
    assert [one["at"] for one in others] == [2, 4] and others[0]["value"] == pytest.approx(0)  # their steps add nothing
    assert index["n"] == 3 and index["value"] == pytest.approx(0.5 / 5 / 0.2) and index["at"] == 1


def test_mistakes_and_verifier_are_means_over_the_seeds_of_one_kind(tmp_path):
    kinds = [dict(seed=0), dict(seed=1), dict(seed=2, layers=2), dict(seed=3, film="answer")]
    for kind in kinds:
        seed = kind["seed"]
        recovery = [dict(length=length, step=1, sigma=0.9, right=0.2 * length + 0.1 * seed) for length in (2, 4)]
        areas = {0.9: 0.6 + 0.2 * seed, 0.5: (None, 0.7, 1, 1)[seed]}
        check = [dict(length=2, sigma=sigma, auroc=area, right=0.5) for sigma, area in areas.items()]
        facts = dict(arguments=asdict(train.Arguments(**kind)), recovery=recovery, verifier=check)
        evaluate.write(tmp_path / f"one-s{seed}.json", facts)
    key = verdict.usual("ladder", "trail", 1, "plain")
    assert [verdict.measured(tmp_path, length) for length in (1, 2, 3, 4, 8)] == [2, 2, 2, 4, 4]
    ((sigma, right),) = verdict.mended(tmp_path, key, 2)
    assert sigma == 0.9 and right["value"] == pytest.approx(0.45) and right["n"] == 2
    word, found = verdict.verified(tmp_path, key, 2)
    assert found[0.9]["value"] == pytest.approx(0.7) and found[0.5] is None
    assert word == "not usable"  # the interval over two seeds reaches below what is blind
    with pytest.raises(FileNotFoundError, match="no recovery of ladder, trail, 1, memory"):
        verdict.mended(tmp_path, verdict.usual("ladder", "trail", 1, "memory"), 2)
    with pytest.raises(FileNotFoundError, match="at 3 in"):
        verdict.mended(tmp_path, key, 3)


def student(seed, steps, value, **more):
    """A record of a student that decides right at `value` of every length."""
    one = recorded(seed, 0.0, first=value - 0.01 * seed, **more)
    args = train.Arguments(seed=seed, teacher=f"anywhere/teacher-s{seed}", steps=steps)
    curves = [row for row in one["curves"] if row["steps"] == steps and row["sampler"] == "uniform"]
    return one | dict(arguments=asdict(args), curves=curves, teacher="aa")


def test_what_a_student_loses_follows_the_rules(tmp_path):
    def told(gain, values, seeds=3):
        folder = tmp_path / f"{gain} {values} {seeds}"
        for seed in range(seeds):
            evaluate.write(folder / "long" / f"teacher-s{seed}.json", recorded(seed, gain))
            for steps, value in values.items():
                evaluate.write(folder / "few" / f"student-s{seed}-to{steps}.json", student(seed, steps, value))
        return verdict.compressed(folder / "few", folder / "long")

    kept, lost = sorted(told(0.5, {1: 0.35, 4: 0.79}), key=lambda row: row["lost"]["value"])
    assert (kept["steps"], kept["verdict"], lost["steps"], lost["verdict"]) == (4, "not supported", 1, "supported")
    reach = {name: 8 * (share + 0.01 - 0.2) / 0.8 for name, share in dict(first=0.3, long=0.8).items()}
    assert {name: lost[name]["value"] for name in reach} == pytest.approx(reach)
    assert lost["lost"]["value"] == pytest.approx(8 * (0.81 - 0.35) / 0.8) and lost["lost"]["n"] == 3
    assert lost["won"]["value"] == pytest.approx(8 * 0.04 / 0.8)
    assert told(0.0, {1: 0.3})[0]["verdict"] == "no room"
    assert told(0.5, {1: 0.35}, seeds=2)[0]["verdict"] == "undecided"
    assert told(0.5, {1: 0.72})[0]["verdict"] == "undecided"


def test_students_and_teachers_that_do_not_belong_together_are_refused(tmp_path):
    few, long = tmp_path / "few", tmp_path / "long"
    evaluate.write(few / "student-s0.json", student(0, 1, 0.35))
    with pytest.raises(FileNotFoundError, match="no record of the teacher teacher-s0"):
        verdict.compressed(few, long)
    for name, value in dict(split="validation", weights="bb").items():
        evaluate.write(long / "teacher-s0.json", recorded(0, 0.5) | {name: value})
        with pytest.raises(ValueError, match=f"teacher-s0 .* has other {name} than its student"):
            verdict.compressed(few, long)
    evaluate.write(long / "teacher-s0.json", recorded(0, 0.5))
    with pytest.raises(ValueError, match="of no student"):
        verdict.compressed(long, long)
    with pytest.raises(ValueError, match="of a student of anywhere/teacher-s0"):
        verdict.summary(verdict.load_records(few))
    again = student(0, 1, 0.35)
    evaluate.write(few / "student-s9.json", again | dict(arguments=again["arguments"] | dict(seed=9)))
    with pytest.raises(ValueError, match="two students of teacher-s0"):
        verdict.compressed(few, long)


def test_depths_are_told_in_words_the_supported_ones_first():
    rows = {1: "undecided", 2: "supported", 3: "supported", 5: "no room"}
    assert verdict.told({blocks: dict(verdict=word) for blocks, word in rows.items()}) == (
        "with 2 and 3 blocks they solve puzzles that one pass cannot; with 1 block it is undecided; "
        "with 5 blocks there is no room to tell"
    )


def test_the_rules_in_words_are_the_rules_in_code():
    rules = yaml.safe_load((evaluate.Path(__file__).parent.parent / "data/serial/rules.yaml").read_text())
    words = " ".join(map(str, rules["claims"]["steps_add_serial_computation"].values()))
    for number in (verdict.ROOM, verdict.GAIN, verdict.SURE):
        assert f"{number:.2f}"[1:] in words
    assert (
        f"after {verdict.END} steps" in rules["measures"]["end"]
        and f"mean of {evaluate.PASSES} " in rules["measures"]["parallel"]
    )
    serial = rules["claims"]["the_gain_is_serial"]["supported"]
    assert verdict.HALF == 0.5 and "less than half" in serial and f"{verdict.FULL:.2f}"[1:] in serial
    words = " ".join(map(str, rules["claims"]["compressing_the_steps_costs_reach"].values()))
    assert f"{verdict.LOST:.1f} length" in words and words.count(f"{verdict.KEPT:.2f}"[1:]) == 2
    assert train.TAUGHT == 16 and "sixteen steps" in words and f"after {verdict.END} steps" in words
    for name in ("plan.yaml", "students/plan.yaml"):
        assert plan.planned(evaluate.Path(__file__).parent.parent / "data/serial" / name)
