"""Plot functions through the artists they return; showing through what IPython would store."""

from __future__ import annotations

import base64
import re
import subprocess

import imageio_ffmpeg
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from cosutils.report import figures


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module", autouse=True)
def shell():
    """A real IPython shell, so that what `display` publishes can be read back."""
    config = Config({"HistoryManager": {"enabled": False}})
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


def curve(values, label="solved"):
    fig, ax = plt.subplots()
    figures.curve_with_band(ax, range(len(values)), values, np.subtract(values, 0.1), np.add(values, 0.1), label)
    ax.set(xlabel="step", ylabel="share")
    ax.legend()
    return fig


def test_signature_holds_structure_and_no_measured_digit():
    text = figures.signature(curve([0.1, 0.5, 0.9]))
    assert "step" in text and "'solved' 3" in text and "legend solved" in text
    assert text == figures.signature(curve([0.1 + 1e-7, 0.5, 0.8999]))
    assert not re.search(r"\d\.\d", text)


def test_signature_sees_a_changed_label_length_and_gap():
    seen = {
        figures.signature(curve(v, w))
        for v, w in [([0.1, 0.5], "a"), ([0.1, 0.5, 0.9], "a"), ([0.1, 0.5], "b"), ([0.1, np.nan], "a")]
    }
    assert len(seen) == 4


def test_drawn_numbers_see_one_changed_point_and_two_that_swap_places():
    values = np.linspace(0.1, 0.9, 200)
    moved, swapped = values.copy(), values.copy()
    moved[77] += 0.2
    swapped[[3, 150]] = swapped[[150, 3]]
    plain, other, third = (figures.drawn(curve(v)) for v in (values, moved, swapped))
    key = "axes 0 line solved "
    assert plain[key + "mean"]["n"] == 200
    assert abs(plain[key + "mean"]["value"] - other[key + "mean"]["value"]) > 1e-4
    assert plain[key + "mean"]["value"] == pytest.approx(third[key + "mean"]["value"])
    assert abs(plain[key + "order"]["value"] - third[key + "order"]["value"]) > 1e-4


def shown(fig, *texts):
    with capture_output() as captured:
        figures.show(fig, *texts)
    (output,) = captured.outputs
    return output


def test_show_stores_one_svg_with_texts_and_closes_the_figure():
    fig = curve([0.1, 0.5])
    output = shown(fig, "maze-share", "share of solved mazes per step", "**Shares.**")
    assert "<svg" in output.data["image/svg+xml"] and ">solved</text>" in output.data["image/svg+xml"]
    assert output.data["text/plain"].startswith("figure maze-share: share of solved mazes per step\naxes 0:")
    assert output.metadata["image/svg+xml"] == {"alt": "share of solved mazes per step"}
    assert output.metadata["cos"]["caption"] == "**Shares.**"
    assert not plt.fignum_exists(fig.number)


def test_show_stores_pictures_as_png():
    output = shown(
        figures.picture_grid(np.zeros((1, 2, 4, 4, 3)), ["a"], ["0", "1"], "frame"), "a", "two black pictures"
    )
    assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG") and "image/svg+xml" not in output.data


def test_every_picture_has_a_frame_of_its_own():
    fig = figures.picture_grid(np.ones((2, 3, 4, 5, 3)), ["a", "b"], ["0", "1", "2"], "frame")
    (frames,) = fig.axes[0].collections
    corners = [path.get_extents().bounds for path in frames.get_paths()]
    assert len(corners) == 6 and corners[0] == (-0.5, -0.5, 5, 4) and corners[-1] == (11.5, 4.5, 5, 4)
    plt.close(fig)


def test_show_refuses_small_print():
    fig = curve([0.1, 0.5])
    fig.axes[0].tick_params(labelsize=7)
    with pytest.raises(ValueError, match="figure a may be smaller than 9 points.*has 7"):
        figures.show(fig, "a", "a rising straight line")
    plt.close(fig)


def test_stored_curve_draws_the_stored_run_and_dots_of_the_own():
    rate = lambda value: dict(value=value, low=value - 0.1, high=value + 0.1)  # noqa: E731
    fig, ax = plt.subplots()
    figures.stored_curve(ax, {4: rate(0.5), 1: rate(0.2), 9: rate(float("nan"))}, {1: rate(0.3)}, "maze")
    figures.stored_curve(ax, {}, {1: rate(0.3), 2: rate(0.4)}, "rotation")
    figures.stored_curve(ax, {}, {}, "bounce")  # nothing is known: an entry of the legend alone
    kinds = [(kind, label, data.tolist()) for kind, label, data in figures._artists(ax) if kind != "band"]
    lines = [("line", "maze", [0.2, 0.5]), ("line", "rotation", [0.3, 0.4]), ("line", "bounce", [])]
    assert kinds == [*lines, ("points", "", [[1.0, 0.3]])]
    assert "band 0" in figures.signature(fig)
    plt.close(fig)


def test_show_twice_gives_the_same_bytes():
    stored = []
    for _ in range(2):
        with capture_output() as captured:
            figures.show(curve([0.1, 0.5]), "a", "a rising straight line")
        stored.append(captured.outputs[0].data)
    assert stored[0] == stored[1]


@pytest.mark.parametrize(
    ("name", "alt"), [("Maze", "three words here"), ("a b", "three words here"), ("maze", "figure")]
)
def test_show_refuses_a_bad_name_or_an_empty_alt(name, alt):
    with pytest.raises(ValueError):
        figures.show(plt.figure(), name, alt)


def test_film_is_h264_sharp_even_and_reproducible():
    frames = np.zeros((5, 10, 10, 3), np.float32)
    frames[np.arange(5), 4, np.arange(5)] = 1.0
    film = figures.encode_film(frames)
    assert film == figures.encode_film(frames)
    assert b"avc1" in film
    decode = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        "-",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(decode, input=film, capture_output=True, check=True).stdout
    back = np.frombuffer(raw, np.uint8).reshape(5, 320, 320, 3)
    small = back.reshape(5, 10, 32, 10, 32, 3).mean(axis=(2, 4)) / 255
    assert np.abs(small - frames).max() < 0.03


def test_show_film_has_controls_label_and_escapes_the_alt():
    with capture_output() as captured:
        figures.show_film(np.zeros((2, 8, 8, 3), np.uint8), "film", 'a "black" film < nothing')
    data = captured.outputs[0].data
    assert (
        " controls " in data["text/html"] and 'aria-label="a &quot;black&quot; film &lt; nothing"' in data["text/html"]
    )
    assert "http" not in data["text/html"]
    assert data["text/plain"].endswith("2x8x8x3")


@pytest.mark.parametrize("shape", [(5, 8, 8), (0, 8, 8, 3), (2, 3, 8, 8, 3)])
def test_film_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape|film|frames"):
        figures.encode_film(np.zeros(shape, np.uint8))


def test_grid_puts_every_picture_in_its_place():
    images = np.zeros((3, 2, 16, 16, 3), np.float32)
    images += np.arange(6).reshape(3, 2, 1, 1, 1) / 10
    fig = figures.step_frame_grid(images, [1.0, 0.5, 0.1], [0, 4], steps=[0, 7, 19], phases={"explore": (0, 1)})
    (ax,) = fig.axes
    canvas = ax.images[0].get_array()
    assert canvas.shape == (50, 33, 3)
    assert canvas[34 + 8, 17 + 8, 0] == round(0.5 * 255) and canvas[8, 8, 0] == 0 and canvas[16, 8, 0] == 255
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0   σ 1.00", "7   σ 0.50", "19   σ 0.10"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "4"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("frame", "denoising step")
    assert [text.get_text() for text in ax.texts] == ["explore"]


def test_places_are_spread_from_the_first_to_the_last():
    assert (
        figures.evenly(17, 5) == [0, 4, 8, 12, 16]
        and figures.evenly(3, 9) == [0, 1, 2]
        and figures.evenly(20, 1) == [0]
    )
    for length, number in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=f"no {number} places in {length}"):
            figures.evenly(length, number)


def test_grid_refuses_what_does_not_fit():
    images = np.zeros((3, 2, 8, 8, 3))
    with pytest.raises(ValueError, match="2 sigmas for images of 3"):
        figures.step_frame_grid(images, [1, 0], [0, 4])
    with pytest.raises(ValueError, match="1 columns for images of 2"):
        figures.step_frame_grid(images, [1, 0.5, 0], [0])
    with pytest.raises(ValueError, match="rows 0..2"):
        figures.step_frame_grid(images, [1, 0.5, 0], [0, 1], phases={"late": (2, 3)})
    with pytest.raises(ValueError, match="rows, columns, height, width"):
        figures.picture_grid(images[0], ["a"], ["b"], "frame")
    with pytest.raises(ValueError, match="not finite"):
        figures.step_frame_grid(images + np.nan, [1, 0.5, 0], [0, 1])


def test_curves_carry_their_data_and_differ_in_colour_and_dash():
    _, ax = plt.subplots()
    first, band = figures.curve_with_band(ax, [0, 1, 2], [1, 2, 3], [0, 1, 2], [2, 3, 4], "one")
    second, _ = figures.curve_with_band(ax, [0, 1, 2], [3, 2, 1], [3, 2, 1], [3, 2, 1], "two")
    assert first.get_ydata().tolist() == [1, 2, 3]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == 0 and heights.max() == 4
    assert first.get_color() != second.get_color() and first.get_linestyle() != second.get_linestyle()


def test_curve_refuses_upside_down_intervals_and_unequal_lengths():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="low > high at x = \\[1.0\\]"):
        figures.curve_with_band(ax, [0, 1], [0, 0], [0, 1], [0, 0], "bad")
    with pytest.raises(ValueError, match="equally long"):
        figures.curve_with_band(ax, [0, 1], [0], [0], [0], "bad")


def test_candidates_mark_the_answer():
    _, ax = plt.subplots()
    evidence = np.linspace(0, 1, 36).reshape(4, 9)
    names = [f"cell {k}" for k in range(9)]
    lines = figures.candidate_curves(ax, range(4), evidence, names, "cell 4")
    assert len(lines) == 9 and lines[4].get_label() == "cell 4 (answer)"
    assert lines[4].get_linewidth() > max(line.get_linewidth() for line in lines[:4] + lines[5:])
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
    for k, line in enumerate(lines):
        assert line.get_label().split(" (")[0] == names[k]
        np.testing.assert_array_equal(line.get_xydata(), np.stack([np.arange(4), evidence[:, k]], 1))
    assert ax.get_xlabel() == "denoising step" and ax.get_ylabel().startswith("share")
    with pytest.raises(ValueError, match="'cell 9' is not among"):
        figures.candidate_curves(ax, range(4), evidence, names, "cell 9")
    with pytest.raises(ValueError, match=r"\(3, 9\)"):
        figures.candidate_curves(ax, range(3), evidence, names, "cell 4")


def test_table_shares_equal_cells_marks_and_escapes_texts():
    rows = [["maze", "ok", "a < b"], ["maze", "ok", "2"], ["shelf", "ok", "3"]]
    with capture_output() as captured:
        figures.show_table(
            ["task", "verdict", "value"],
            {"Claim": rows},
            "claims",
            "table of three rows",
            marks={"ok": "good"},
        )
    (output,) = captured.outputs
    shown = output.data["text/html"]
    assert shown.count("<tr>") == 5 and 'tabindex="0"' in shown and 'aria-label="table of three rows"' in shown
    assert '<th scope="row" rowspan="2">maze</th><td rowspan="2" class="good">ok</td>' in shown
    assert '<th scope="row" rowspan="1">shelf</th><td rowspan="1" class="good">ok</td>' in shown
    assert '<th scope="rowgroup" colspan="3">Claim</th>' in shown and "a &lt; b" in shown
    assert output.data["text/plain"].splitlines()[-1] == "  shelf | ok | 3"
    assert output.metadata["cos"]["name"] == "claims"
    with pytest.raises(ValueError, match="a row of 2 texts in a table of 3 columns"):
        figures.show_table(["a", "b", "c"], {"": [["1", "2"]]}, "bad", "table of one row")
