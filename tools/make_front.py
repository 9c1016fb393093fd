"""Make the pictures of the landing page and the README from two real runs and the stored records.

    python tools/make_front.py [book/_static/front]

`changes.png` and `spoils.png` hold the last frame of the clean estimate at every step, side by side; `data.js` the
shares of the answers, which the page's script draws beside them; `strip.png` some steps of both, for the README and
for readers without scripts. `deciding.svg` and `testbed.svg` are the two figures of the landing page; their text and
axes take the colour of the page. All of it is kept in the repository: run the tool again when weights or records have
changed (`tests/test_front.py` notices).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
from functools import partial
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from make_explorer import sheet
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import cosutils as cos
from cosutils._files import write, write_text
from cosutils.measures import chain
from cosutils.report import figures
from cosutils.report.findings import MODELS
from cosutils.report.results import read_numbers
from cosutils.serial import verdict

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = "cos-mini-shallow"
CASES = {  # both chosen after a look at many runs: one of the clearest in which the steps mend, and one that they spoil
    "changes": ("bounce", 1, "It changes its mind"),
    "spoils": ("maze", 1, "It spoils a right answer"),
}
STEPS_SHOWN = (0, 4, 6, 7, 8, 10, 19)
BLUE, ORANGE, INK = "#2b7bba", "#d9730d", "#010203"  # INK stands for the colour of the page's text
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cosutils",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def svg_text(fig: Figure, title: str) -> str:
    """`fig` as an SVG for a page: without a size, in the page's colour for `INK`; `title` says what is seen."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    plt.close(fig)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    head, rest = text.split(">", 1)
    box = next(part for part in head.split("\n") if "viewBox" in part).split('viewBox="')[1].split('"')[0]
    lines = (line.rstrip() for line in rest.splitlines())
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
    return f'{opened} role="img" aria-label="{title}">' + "\n".join(lines) + "\n"


def _bars(ax: Axes, places: np.ndarray, numbers: list[dict[str, Any]], **style: Any) -> None:
    value, low, high = (np.array([number[end] for number in numbers]) for end in ("value", "low", "high"))
    ax.errorbar(value, places, xerr=[value - low, high - value], ls="", capsize=2.5, ms=6, **style)


def deciding(results: pathlib.Path) -> str:
    """What all steps change against the first, for each depth: which answer leads, and whether the film is exact."""
    records = {model: results / MODELS[model] / "06_self_correction.json" for model in ("ten blocks", "three blocks")}
    numbers = {model: read_numbers(path) for model, path in records.items()}
    tasks = ["rotation", "bounce", "maze", "two_routes"]
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), sharey=True, sharex=True, layout="constrained")
        for ax, model in zip(axes, reversed(numbers), strict=True):
            places = np.arange(len(tasks))
            for shift, measure, style in (
                (0.14, "net", {"fmt": "o", "color": BLUE}),
                (-0.14, "solved_net", {"fmt": "s", "color": ORANGE}),
            ):
                _bars(ax, places + shift, [numbers[model][f"{task}/{measure}"] for task in tasks], **style)
            ax.axvline(0, color=INK, lw=0.8, alpha=0.5)
            ax.set(title=model, ylim=(-0.6, 3.75), xlim=(-0.2, 0.6))
            ax.set_yticks(places, [task.replace("_", " ") for task in tasks])
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
        axes[0].text(0.03, 3.14, "decided", color=BLUE, va="center", fontweight="bold")
        axes[0].text(0.32, 2.86, "exact", color=ORANGE, va="center", ha="right", fontweight="bold")
        fig.supxlabel("share of puzzles that all twenty steps add to the first", fontsize=9.5)
    said = ""
    for model, found in reversed(numbers.items()):
        ends = {task: [found[f"{task}/{measure}"]["value"] for measure in ("net", "solved_net")] for task in tasks}
        listed = (f"{task.replace('_', ' ')} {net:+.2f} and {solved:+.2f}" for task, (net, solved) in ends.items())
        said += f" {model.capitalize()}: {', '.join(listed)}."
    return svg_text(fig, f"What twenty steps add to the first, in decisions and in exact films.{said}")


RUNGS = 3  # of the puzzles in the second figure


def testbed(report: pathlib.Path) -> str:
    """The testbed's two models on sealed puzzles: candidates alive at the last step, and decisions, by steps."""
    found = verdict.groups(verdict.load_records(report))
    panels = {"the picture: answers still alive": verdict.alive, "the truth: the right answer leads": verdict.decided}
    said = dict.fromkeys(("plain", "memory"), "")
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained")
        for ax, (title, curves), ends in zip(axes, panels.items(), ((1, 5), (0, 1)), strict=True):
            for variant, color, dash in (("plain", BLUE, "--"), ("memory", ORANGE, "-")):
                band = curves(found[verdict.usual("ladder", "trail", 1, variant)])[RUNGS]
                value, low, high = (
                    np.clip([row[end] for row in band.values()], *ends) for end in ("value", "low", "high")
                )
                ax.plot(list(band), value, color=color, ls=dash, lw=2)
                ax.fill_between(list(band), low, high, color=color, alpha=0.18, lw=0)
                said[variant] += f", {title} {value[0]:.2f} to {value[-1]:.2f}"
            ax.set_xscale("log", base=2)
            ax.set(title=title, xlabel="number of denoising steps", xticks=list(band), xticklabels=list(band))
        axes[0].set(ylim=(0.9, 5.1), yticks=range(1, 6), ylabel="of five")
        axes[1].set(ylim=(0, 1.03), ylabel="share of puzzles")
        axes[1].axhline(0.2, color=INK, lw=0.8, alpha=0.5)
        axes[1].text(32, 0.17, "chance", ha="right", va="top")
        for ax, plain, memory in ((axes[0], (32, 1.95), (1.05, 1.2)), (axes[1], (32, 0.51), (32, 0.82))):
            ax.text(*plain, "plain", color=BLUE, fontweight="bold", ha="right")
            ax.text(*memory, "with a memory", color=ORANGE, fontweight="bold", ha="right" if memory[0] > 2 else "left")
    listed = "; ".join(f"{name}{text}" for name, text in said.items())
    return svg_text(fig, f"Two models by number of steps, {RUNGS} rungs: {listed}.")


def runs() -> dict[str, chain.Trace]:
    """The two chosen runs, with the films of all their clean estimates."""
    pipe = cos.load(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return {
        name: chain.trace(pipe, cos.tasks.sample(task, seed), seed, keep_films=True)
        for name, (task, seed, _) in CASES.items()
    }


def shares(name: str, trace: chain.Trace) -> dict[str, Any]:
    """What the page says of one run: the share of the right answer and of the strongest wrong one, at every step."""
    task, seed, title = CASES[name]
    right = trace.names.index(trace.sample.answer)
    wrong = max((k for k in range(len(trace.names)) if k != right), key=lambda k: trace.evidence[:, k].max())
    return {
        "picture": f"{name}.png",
        "title": title,
        "case": f"{task}, seed {seed}",
        "right": np.round(trace.evidence[:, right], 3).tolist(),
        "wrong": np.round(trace.evidence[:, wrong], 3).tolist(),
    }


def make(folder: pathlib.Path) -> None:
    """Fill `folder` with everything that the docstring of this file lists."""
    folder.mkdir(parents=True, exist_ok=True)
    traces = runs()
    data = [shares(name, trace) for name, trace in traces.items()]
    write_text(folder / "data.js", f"window.cosFront = {json.dumps(data, separators=(',', ':'))};\n")
    for name, trace in traces.items():
        picture = sheet(trace.films[None, :, -1]).quantize(64)
        write(folder / f"{name}.png", partial(picture.save, format="png", optimize=True))
    tiles = np.stack([trace.films[list(STEPS_SHOWN), -1] for trace in traces.values()])
    rows = [f"{title.lower()}\n({task}, seed {seed})" for task, seed, title in CASES.values()]
    fig = figures.picture_grid(tiles, rows, [str(step) for step in STEPS_SHOWN], "denoising step", cell=0.95)
    saved = partial(fig.savefig, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    write(folder / "strip.png", saved)
    plt.close(fig)
    write_text(folder / "deciding.svg", deciding(ROOT / "data" / "results"))
    write_text(folder / "testbed.svg", testbed(ROOT / "data" / "serial" / "report"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "book" / "_static" / "front")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
