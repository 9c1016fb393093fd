"""The studies of the paper's model, and the guide that runs them: what can be tried without its weights is tried here.

Stand-ins, where the text of a study or a command is changed: the model is a tiny two-expert pipeline in a folder, the
device the CPU, the films are small and short, the benchmark is the five samples of `data/vbvr-samples`, and the
official scorer is that of `test_official`. Files, commands and code are those of `data/studies` and of page 14.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_official import checkout

import cosutils as cos
import tiny
from cosutils import vbvr
from cosutils.pipelines.loading import OFFLOADS
from cosutils.pipelines.lora import active_lora
from cosutils.report.claims import is_ours
from cosutils.scale.study import read
from cosutils.scale.sweep import main
from tiny import saved

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
GUIDE = nbformat.read(ROOT / "notebooks" / "17_paper_scale.ipynb", 4)
STUDIES = {
    "benchmark": 5,
    "members": 10,
    "ensemble": 20,
    "noise": 5 * 58,
    "state": 5 * 25,
    "withdrawal": 5 * 13,
    "frames": 5 * 10,
    "decision": 5,
    "switch": 3 * 30 * 9,
    "puzzles": 2000,
}  # runs with five samples
SMALL = {"pro_5b": 5 * 27}  # of another model, not in the plan of the page
WEIGHTS = "Video-Reason/VBVR-Wan2.2"


def blocks(language: str) -> list[str]:
    text = "\n".join(cell.source for cell in GUIDE.cells if cell.cell_type == "markdown")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


COMMANDS = [
    line.split("  #")[0].strip()
    for block in blocks("bash")
    for line in re.sub(r"<<'END'\n.*?\nEND", "<<END", block, flags=re.S).splitlines()
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with the benchmark where the studies look for it, and the repository's own folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vbvr-bench").symlink_to(ROOT / "data" / "vbvr-samples" / "ground-truth", target_is_directory=True)
    for name in ("data", "notebooks", "tools"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A stand-in for the paper's model."""
    return saved("a14b", tmp_path_factory.mktemp("model"))


@pytest.fixture
def small(place, model):
    """Makes a study small: writes a copy with a stand-in model on the CPU and the given fields; returns its file."""

    def change(name: str, **fields) -> Path:
        given = yaml.safe_load((ROOT / "data" / "studies" / f"{name}.yaml").read_text())
        assert given["grid"]["model"] == WEIGHTS and given["grid"]["device"] == "cuda"
        given["grid"] |= {"model": str(model), "device": "cpu"} | fields
        path = place / f"{name}.yaml"
        path.write_text(yaml.safe_dump(given))
        return path

    return change


def test_there_are_studies():
    assert {path.stem for path in (ROOT / "data" / "studies").iterdir()} == set(STUDIES | SMALL)


@pytest.mark.parametrize("name", STUDIES | SMALL)
def test_the_price_of_a_study_is_told_without_the_weights(name, place, capsys):
    assert main([f"data/studies/{name}.yaml", "--dry-run", "--workers", "8"]) == 0
    printed = capsys.readouterr().out
    runs = (STUDIES | SMALL)[name]
    assert printed.startswith(f"{runs} runs, 0 finished, {runs} to do\nabout ")
    assert "GPU hours" in printed and "on 8 workers" in printed
    assert not (place / "runs").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_asks_for_the_authors_settings(name, place):
    for spec in read(f"data/studies/{name}.yaml").specs:
        assert (spec.model, spec.preset, spec.steps, spec.size) == (WEIGHTS, "paper", 50, 480)
        if spec.sample is not None:
            assert spec.has_film and (spec.frames - 1) % 4 == 0


def test_the_noise_study_has_every_step_and_frames_that_all_films_have(place):
    specs = read("data/studies/noise.yaml").specs
    conditions = {spec.condition for spec in specs}
    assert {f"noise_at_step {step}" for step in range(50)} | {"plain"} < conditions
    latent = min((spec.frames - 1) // 4 + 1 for spec in specs)
    assert max(int(name.split()[1]) for name in conditions if name.startswith("noise_at_frame")) < latent


def test_studies_on_the_benchmark_share_what_they_have_run(place):
    plans = {name: read(f"data/studies/{name}.yaml") for name in ("benchmark", "members", "ensemble", "noise", "state")}
    assert len({plan.out for plan in plans.values()}) == 1
    (plain,) = plans["benchmark"].specs[:1]
    assert plain in plans["noise"].specs and plain not in plans["members"].specs
    assert {spec for spec in plans["state"].specs if "noise_at" in spec.condition} < set(plans["noise"].specs)
    # members of an ensemble of 3: noise seeds 1, 2 and 3
    members = {spec.noise_seed for name in ("benchmark", "members") for spec in plans[name].specs}
    assert members == {1, 2, 3} and {spec.noise_seed for spec in plans["ensemble"].specs} == {1}


def test_the_benchmark_goes_in_and_its_score_comes_out(small, place, monkeypatch, capsys):
    all_samples = (place / "vbvr-bench").readlink()
    (place / "vbvr-bench").unlink()
    task = Path("Out-of-Domain_50", "O-60_symbol_substitute_data-generator")
    (place / "vbvr-bench" / task).parent.mkdir(parents=True)
    (place / "vbvr-bench" / task).symlink_to(all_samples / task, target_is_directory=True)
    study = small("benchmark", steps=1, size=32)
    assert main([str(study), "--limit", "1"]) == 0
    assert main([str(study), "--dry-run"]) == 0
    assert "2 runs, 1 finished, 1 to do" in capsys.readouterr().out
    assert main([str(study)]) == 0
    assert re.search(r"^videos: runs/sweeps/vbvr/studies/benchmark-\w{8}/answers/plain$", capsys.readouterr().out, re.M)
    assert main([str(study), "status"]) == 0
    assert re.match(r"benchmark-\w{8}: 2 runs, 2 done, 0 running, 0 failed, 0 to do\n", capsys.readouterr().out)
    kit = checkout(place / "stand-in")
    monkeypatch.setenv("VBVR_EVALKIT", str(kit))
    monkeypatch.setenv("PYTHONPATH", str(kit.with_name("modules")))
    (code,) = (found for block in blocks("bash") for found in re.findall(r"<<'END'\n(.*?)\nEND", block, re.S))
    assert "data/studies/benchmark.yaml" in code
    exec(compile(code.replace("data/studies/benchmark.yaml", str(study)), "guide", "exec"), {})
    table = capsys.readouterr().out
    for role in ("plain", "ground truth", "frozen first frame", "noise"):
        assert re.search(rf"^{role} .*2 puzzles$", table, re.M), table


def test_the_new_conditions_run_as_the_studies_write_them(small, place, capsys):
    sample = "vbvr-bench/*/O-59*/00000"
    for name, few in (
        ("state", ["truth 1", "renoise 1"]),
        ("withdrawal", ["prompt_until 1", "picture_until 1", "prompt_from 1"]),
        ("frames", ["frames_apart steps 0-1", "frames_earlier steps 1"]),
    ):
        given = yaml.safe_load((ROOT / "data" / "studies" / f"{name}.yaml").read_text())["grid"]["condition"]
        assert {form.split()[0] for form in few} <= {form.split()[0] for form in given}
        assert main([str(small(name, size=16, frames=5, steps=2, sample=sample, condition=few))]) == 0
    assert main([str(small("decision", size=16, frames=5, steps=2, sample=sample, keep="steps 0,1"))]) == 0
    switch = small("switch", size=80, frames=17, steps=2, task="shelf", seed=0, condition="prompt_switch 1")
    assert main([str(switch)]) == 0
    assert "failed" not in capsys.readouterr().out
    found = {path.name for path in place.glob("runs/sweeps/vbvr/studies/*/answers/*")}
    assert {"plain_step_0", "plain_step_1", "prompt_until_1", "truth_1", "frames_apart_steps_0-1"} <= found


def test_noise_and_ensembles_run_as_the_studies_write_them(small, place, capsys):
    conditions = {
        name: yaml.safe_load((ROOT / "data" / "studies" / f"{name}.yaml").read_text())["grid"]["condition"]
        for name in ("noise", "ensemble")
    }
    sample = "vbvr-bench/*/O-59*/00000"
    few = ["plain", "noise_at_step 2..3", *conditions["noise"][2:5]]
    assert main([str(small("noise", size=16, frames=21, steps=4, sample=sample, condition=few))]) == 0
    shallow = [text.replace("20-29", "1-2").replace("5-14", "0-1") for text in conditions["ensemble"]]  # of four blocks
    assert main([str(small("ensemble", size=16, frames=5, steps=7, sample=sample, condition=shallow))]) == 0
    assert "failed" not in capsys.readouterr().out
    assert len(list(place.glob("runs/sweeps/vbvr/studies/*/answers/*"))) == 6 + 4


@pytest.mark.parametrize(
    "command", [line for line in COMMANDS if "cosutils.scale.sweep" in line and "status" not in line]
)
def test_a_sweep_command_of_the_guide_is_understood(command, place, capsys):
    words = shlex.split(command)
    assert main([*words[words.index("cosutils.scale.sweep") + 1 :], "--dry-run"]) == 0


@pytest.mark.parametrize("command", [line for line in COMMANDS if "tools/" in line])
def test_a_tool_command_of_the_guide_names_what_is_there(command, place):
    words = shlex.split(command)
    tool = next(word for word in words if word.startswith("tools/"))
    source = (ROOT / tool).read_text()
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))
    preset, _, page = words[words.index("--only") + 1].partition("/") if "--only" in words else ("", "", "")
    preset = preset or words[words.index("--preset") + 1]
    assert (ROOT / "notebooks" / "params" / f"{preset}.yaml").is_file()
    assert not page or (ROOT / "notebooks" / f"{page}.ipynb").is_file()


@pytest.mark.parametrize("line", [line for line in COMMANDS if "papermill" in line])
def test_a_papermill_command_of_the_guide_sets_parameters_that_exist(line):
    command = shlex.split(line)
    given = {command[k + 1]: command[k + 2] for k, word in enumerate(command) if word == "-p"}
    given |= yaml.safe_load(command[command.index("-y") + 1])
    assert set(given) <= set(papermill.inspect_notebook(str(ROOT / command[1])))
    assert given["loading"]["preset"] in cos.PRESETS and given["loading"].get("offload", "group") in OFFLOADS
    assert set(given["loading"]) <= set(inspect.signature(cos.load).parameters)
    assert cos.tasks.sample(given["tasks"][0], 0, **given["scale"]).shape == (81, 480, 480, 3)


@pytest.mark.filterwarnings("ignore:preset 'paper' has boundary=0.875")  # of one expert
@pytest.mark.parametrize(("kind", "line"), [("wan21", "wan21-lora"), ("a14b", "a14b-lora")])
def test_the_guides_low_rank_weights_load_into_a_model_of_that_form(kind, line, tmp_path):
    """On a stand-in: what the command calls by the names of files, with files of that form."""
    pytest.importorskip("peft", reason="the extra [lora] is not installed")
    (command,) = (shlex.split(text) for text in COMMANDS if line in text)
    wanted = yaml.safe_load(command[command.index("-y") + 1])["loading"]["lora"]
    pipe = tiny.build(kind)
    files = {}
    for name in ["transformer"] if isinstance(wanted, str) else wanted:
        tensors = {}
        for number in range(tiny.LAYERS):
            place = f"blocks.{number}.attn1.to_q"
            width = getattr(pipe, name).get_submodule(place).weight.shape[0]
            tensors |= {f"transformer.{place}.lora_A.weight": torch.full((2, width), 0.01)}
            tensors |= {f"transformer.{place}.lora_B.weight": torch.full((width, 2), 0.01)}
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, files[name])
    loaded = cos.load(saved(kind, tmp_path / "model"), "paper", lora=files if len(files) > 1 else files["transformer"])
    assert set(active_lora(loaded)) == set(files)


def test_what_the_guide_installs_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for line in COMMANDS for name in re.findall(r"\.\[(\w+)\]", line)}
    assert named and named <= set(extras)
    targets = (ROOT / "Makefile").read_text()
    for line in COMMANDS:
        if line.startswith("make "):
            assert re.search(rf"^{re.escape(line.split()[1])}:", targets, re.M)
        if line.startswith(".venv/bin/"):
            assert (Path(sys.executable).parent / line.split()[0].removeprefix(".venv/bin/")).is_file()


def test_every_command_of_the_guide_is_looked_at():
    known = ("make ", "export ", "mkdir ", "ray start", ".venv/bin/", "RAY_ADDRESS=auto .venv/bin/python -m cosutils.",
             "git clone ", "python3.11 -m venv kit-venv", "kit-venv/bin/python -m pip ")  # fmt: skip
    assert len(COMMANDS) >= 15 and all(line.startswith(known) for line in COMMANDS)


def test_the_script_of_the_guide_is_python():
    (script,) = blocks("python")
    tree = ast.parse(script)
    heads = 40
    keywords = {node.arg: node.value for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    degree = keywords["ulysses_degree"].value
    assert heads % degree == 0 and f"--nproc_per_node {degree} " in script


def test_every_claim_of_the_paper_has_a_rule_written_before_its_run():
    rules = yaml.safe_load((ROOT / "data" / "settle.yaml").read_text())
    claims = yaml.safe_load((ROOT / "data" / "claims.yaml").read_text())
    assert {key for key, claim in claims.items() if not is_ours(claim["paper"])} <= set(rules)
    pages = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for key, rule in rules.items():
        assert set(rule) == {"studies", "measures", "room"} and set(rule["studies"]) <= pages | set(STUDIES), key
        for name, measure in rule["measures"].items():
            assert set(measure) == {"is", "supported", "refuted"}, (key, name)
            (low, high), (worse, better) = measure["supported"], measure["refuted"]
            assert low < high and worse < better and (high < worse or better < low), (
                key,
                name,
            )  # apart from each other
    used = {study for rule in rules.values() for study in rule["studies"]}
    assert {"state", "withdrawal", "frames", "decision", "switch", "noise", "ensemble", "members"} <= used


def test_every_cost_says_where_it_is_from():
    for name, cost in yaml.safe_load((ROOT / "data" / "costs.yaml").read_text()).items():
        assert cost["value"] > 0 and cost["mark"] in ("published", "estimate", "measured") and cost["source"], name


def test_the_guide_counts_what_the_files_say(place):
    stored = json.loads((ROOT / "data" / "results" / "17_paper_scale.json").read_text())
    full = stored["provenance"]["full"]
    assert set(full) == set(STUDIES)
    for name, cases in full.items():
        specs = read(f"data/studies/{name}.yaml").specs
        found = {spec.sample or (spec.task, spec.seed) for spec in specs}
        assert stored["numbers"][f"{name}/runs"]["value"] == len(specs) * cases / len(found)
    assert len(vbvr.read("vbvr-bench")) == 5 and read("data/studies/puzzles.yaml").specs[0].frames == 81
