"""The GPU proof at tiny size on the CPU: parts, their files, what it refuses; its sums by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu
from cosutils.report.results import read_numbers

pytestmark = pytest.mark.slow

TINY = ["--size", "tiny", "--device", "cpu", "--steps", "3"]


@pytest.fixture(scope="module")
def pipe():
    return gpu.build(gpu.SIZES["tiny"], torch.device("cpu"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A file with the parts identity and merge."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    assert gpu.main([*TINY, "--only", "identity,merge", "--out", str(out)]) == 0
    return out


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
    assert len(took.steps) == 4 and min(took.steps) > 0 and took.fixed > 0 and took.peak is None


def test_seconds_of_a_whole_run_by_hand():
    took = gpu.Timed(steps=[9.0, 2.0, 4.0, 3.0], fixed=5.0)
    assert took.run(50) == 5 + 50 * 3.5
    assert took.run(50, merged=3) == 5 + 3 * 9 + 47 * 3


def test_the_authors_way_copies_every_block_and_changes_nothing(pipe, monkeypatch):
    copies = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (copies.append(tuple(self.shape)), real(self))[1])
    arguments = gpu.call(pipe, gpu.SIZES["tiny"], 3)
    with gpu.copied(pipe):
        watched = pipe(**arguments).frames
    assert copies.count((1, 12, 24)) == 3 * 4  # steps, layers
    assert torch.equal(watched, pipe(**gpu.call(pipe, gpu.SIZES["tiny"], 3)).frames)


def test_a_call_writes_its_parts_with_what_was_run(first):
    numbers, record = read_numbers(first), json.loads(first.read_text())
    assert numbers["observing_identical"]["value"] == numbers["repeat_identical"]["value"] == 1
    assert {"step_seconds", "fixed_seconds", "merge_1_ratio", "merge_3_ratio"} < set(numbers)
    assert not any(name.startswith(("capture", "authors", "peak")) for name in numbers)
    facts = record["provenance"]
    assert (facts["tokens"], facts["extrapolated"], facts["ratios_of_steps"]) == (12, True, 50)
    assert facts["device"] == "cpu" and facts["cuda"] is None and facts["weights"] == "random"
    assert set(facts["parts"]) == {"identity", "merge"}
    assert all(command.startswith("python -m benchmarks.gpu --size tiny") for command in facts["parts"].values())
    assert [path.name for path in first.parent.iterdir()] == ["gpu.json"]


def test_a_later_call_joins_its_parts(first, tmp_path):
    out = tmp_path / "gpu.json"
    out.write_bytes(first.read_bytes())
    assert gpu.main([*TINY, "--only", "capture,authors,ensemble", "--out", str(out)]) == 0
    before, after = read_numbers(first), read_numbers(out)
    renewed = {"step_seconds", "fixed_seconds"}
    assert all(after[name] == before[name] for name in before.keys() - renewed)
    assert set(after) - set(before) == {"capture_ratio", "authors_ratio", "ensemble_ratio"}
    assert set(json.loads(out.read_text())["provenance"]["parts"]) == set(gpu.PARTS)


def test_a_file_of_other_settings_is_refused_and_kept(first, capsys):
    held = first.read_bytes()
    with pytest.raises(SystemExit):
        gpu.main([*TINY, "--steps", "4", "--only", "merge", "--out", str(first)])
    assert "has steps_measured 3, this call 4: name another file" in capsys.readouterr().err
    assert first.read_bytes() == held


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "full", "--device", "cpu"], "no CUDA GPU in use: --size full needs one of 80 GB"),
        ([*TINY, "--only", "identity,speed"], "no part 'speed': choose from identity, capture"),
        ([*TINY, "--steps", "1"], "--steps and --repeats must be at least 2, got 1 and 2"),
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
