"""The GPU proof at tiny size on the CPU: parts, their files, what it refuses; its sums by hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from benchmarks import gpu, smoke
from cosutils.pipelines.loading import seeded
from cosutils.report.results import read_numbers

pytestmark = pytest.mark.slow

TINY = ["--size", "tiny", "--device", "cpu", "--minutes", "0"]


@pytest.fixture(scope="module")
def pipe():
    return gpu.build(gpu.SIZES["tiny"], torch.device("cpu"))


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The file of all parts, in the order in which a GPU would do them."""
    folder = tmp_path_factory.mktemp("gpu")
    assert gpu.main([*TINY, "--out", str(folder / "gpu.json"), "--runs", str(folder / "runs")]) == 0
    return folder / "gpu.json"


def test_the_full_size_is_the_papers_model():
    with torch.device("meta"):
        model = WanTransformer3DModel(**gpu.SIZES["full"].transformer)
    count = sum(weight.numel() for weight in model.parameters())
    assert 2 * count == pytest.approx(28.6e9, rel=0.002)
    assert (len(model.blocks), model.config.in_channels, model.config.out_channels) == (40, 36, 16)


def test_weights_are_seeded_differ_by_expert_and_keep_norms_in_float32(pipe):
    again = gpu.expert(gpu.SIZES["tiny"], torch.device("cpu"), 1)
    ours, theirs = (dict(model.named_parameters()) for model in (pipe.transformer, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    name = "blocks.0.attn1.to_q.weight"
    assert not torch.equal(ours[name], dict(pipe.transformer_2.named_parameters())[name])
    kinds = {name: weight.dtype for name, weight in ours.items()}
    assert kinds["blocks.0.scale_shift_table"] == kinds["blocks.0.norm2.weight"] == torch.float32
    assert kinds["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert kinds[name] == kinds["proj_out.weight"] == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


def test_a_short_run_uses_both_experts_and_every_step_is_timed(pipe):
    ran = []
    hooks = [
        model.register_forward_hook(lambda m, a, out, name=name: ran.append(name))
        for name, model in (("high", pipe.transformer), ("low", pipe.transformer_2))
    ]
    took = gpu.timed(pipe, lambda **more: pipe(**gpu.call(pipe, gpu.SIZES["tiny"], 4) | more))
    for hook in hooks:
        hook.remove()
    assert ran == ["high"] * 4 + ["low"] * 4  # two passes a step
    assert len(took.steps) == 4 and min(took.steps) > 0 and took.fixed > 0 and took.peaks == [0.0] * 4


def test_seconds_of_a_whole_run_by_hand():
    assert gpu.whole_run(5.0, 3.5, 50) == 5 + 50 * 3.5
    assert gpu.whole_run(5.0, 3.0, 50, merged=3, together=9.0) == 5 + 3 * 9 + 47 * 3


def test_the_authors_way_copies_every_block_at_its_steps_and_changes_nothing(pipe, monkeypatch):
    copies = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (copies.append(tuple(self.shape)), real(self))[1])
    arguments = gpu.call(pipe, gpu.SIZES["tiny"], 3)
    with gpu.copied(pipe, [0, 2]) as kept:
        watched = pipe(**arguments).frames
    assert copies.count((1, 12, 24)) == 2 * 4 and len(kept) == 4  # steps, layers
    assert kept[0].dtype == torch.float32
    assert torch.equal(watched, pipe(**gpu.call(pipe, gpu.SIZES["tiny"], 3)).frames)


def test_plain_and_other_steps_take_turns(pipe, monkeypatch):
    told, bench = [], gpu.Bench(gpu.SIZES["tiny"], torch.device("cpu"), 2, Path("unused"), 0)
    bench.pipe = pipe
    seconds = gpu.Timed([9.0, 2.0, 3.0, 4.5, 3.0, 1.0, 2.0, 8.0, 4.0], 0.5, [0, 1, 2, 3, 1, 1, 2, 2, 1])
    monkeypatch.setattr(gpu, "timed", lambda pipe, work: (work(), seconds)[1])
    numbers = bench.in_turn("looked", 2, lambda steps: (told.append(steps), nullcontext())[1])
    assert told == [[2, 3, 6, 7]]
    assert numbers["looked_ratio"]["value"] == 1.75 and numbers["looked_ratio"]["n"] == 4  # of 3/2, 4.5/3, 2/1, 8/4
    assert numbers["step_seconds"]["value"] == 2.5
    assert (numbers["peak_gb_plain"]["value"], numbers["peak_gb_looked"]["value"]) == (1, 3)


def test_a_rehearsal_leaves_every_part_with_what_was_run(rehearsed):
    numbers, facts = read_numbers(rehearsed), json.loads(rehearsed.read_text())["provenance"]
    assert {name for name, (sign, bar) in gpu.BARS.items() if sign == ">="} <= numbers.keys()
    assert all(numbers[name]["value"] == 1 for name, (sign, bar) in gpu.BARS.items() if sign == ">=")
    assert numbers["smoke_bfloat16"]["n"] == 2 * len(smoke.IDENTITIES) and facts["broken"] == facts["failed"] == {}
    assert numbers["distance_from_cpu_float32"]["value"] == 0
    for part in ("capture", "authors", "ensemble", "merge_1", "merge_3"):
        assert numbers[f"{part}_ratio"]["value"] > 0
    assert (facts["tokens"], facts["ratios_of_steps"], facts["device"], facts["cuda"]) == (12, 50, "cpu", None)
    assert list(facts["parts"]) == list(gpu.PARTS)
    assert all(command.startswith("python -m benchmarks.gpu --size tiny") for command in facts["parts"].values())
    (run,) = (rehearsed.parent / "runs").iterdir()
    assert facts["trained"] == [run.name] and (run / "weights.safetensors").is_file()
    assert numbers["trained_runs"]["value"] == 1 and numbers["train_films_per_second"]["value"] > 0


def test_a_part_that_fails_is_told_and_the_others_are_done(rehearsed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    out.write_bytes(rehearsed.read_bytes())

    def broken(self):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(gpu.Bench, "authors", broken)
    assert gpu.main([*TINY, "--only", "authors,identity", "--out", str(out)]) == 1
    before, after = read_numbers(rehearsed), read_numbers(out)
    assert after.keys() == before.keys() and after["smoke_float32"] == before["smoke_float32"]
    facts = json.loads(out.read_text())["provenance"]
    assert facts["failed"] == {"authors": "RuntimeError: out of memory"}
    assert "--only authors,identity" in facts["parts"]["identity"]
    assert "and more" in capsys.readouterr().err


def test_an_identity_that_does_not_hold_is_named(pipe):
    seeds = iter(range(1000))
    subject = smoke.Subject(pipe, lambda *_: gpu.call(pipe, gpu.SIZES["tiny"], 3) | {"generator": seeded(next(seeds))})
    found = dict(smoke.checks(subject))
    assert found["repeat"] is False and found["observing"] is False
    assert "resumed" in found["resumed"] or "seed" in found["resumed"]  # an error is told


def test_a_file_of_other_settings_is_refused_and_kept(rehearsed, tmp_path, capsys):
    record = json.loads(rehearsed.read_text())
    record["provenance"]["device"] = "NVIDIA H100"
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        gpu.main([*TINY, "--only", "identity", "--out", str(out)])
    assert "has device 'NVIDIA H100', this call 'cpu': name another file" in capsys.readouterr().err
    assert json.loads(out.read_text()) == record


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "full", "--device", "cpu"], "no CUDA GPU in use: --size full needs one of 80 GB"),
        ([*TINY, "--only", "identity,speed"], "no part 'speed': choose from smoke, identity, capture"),
        ([*TINY, "--repeats", "1"], "--repeats must be at least 2, got 1"),
        ([*TINY, "--out", "runs"], "--out must name a .json file, got runs"),
    ],
)
def test_odd_calls_are_refused_in_one_sentence(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_bars_are_judged_at_full_size_only(capsys):
    numbers = {"capture_ratio": {"value": 1.006, "low": 1.0, "high": 1.01}, "peak_gb_merge": {"value": 77.9}}
    assert gpu.report(numbers, barred=True) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("bar <= 1.005: MISSED") and shown[1].endswith("bar <= 78: met")
    assert gpu.report(numbers, barred=False) == 0 and "bar" not in capsys.readouterr().out
    assert gpu.report({"observing_identical": {"value": 0.0}}, barred=True) == 1
