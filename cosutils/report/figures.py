"""Figures of the book: shown with name, caption and alt text, and testable as text and as numbers.

Three layers keep a figure honest. Its picture is never compared. Its *signature* (axes, labels, artists, counts:
no digit that another CPU could round differently) is the figure's `text/plain`, which nbval compares exactly.
The *numbers* it draws (`drawn`) go through `cosutils.report.results` and are compared with a tolerance.
"""

from __future__ import annotations

import base64
import html
import io
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

import imageio_ffmpeg
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, PatchCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

__all__ = [
    "PALETTE",
    "candidate_curves",
    "curve_with_band",
    "drawn",
    "encode_film",
    "evenly",
    "picture_grid",
    "show",
    "show_film",
    "show_html",
    "show_table",
    "signature",
    "step_frame_grid",
    "stored_curve",
    "table_of",
]

PALETTE = tuple(sns.color_palette("colorblind"))
_GREY = (0.45, 0.45, 0.45)
_DASHES = ("-", "--", ":", "-.")


# ---------------------------------------------------------------- signature and numbers
def _artists(ax: Axes) -> list[tuple[str, str, np.ndarray]]:
    """(kind, label, data) of everything drawn on `ax`, in drawing order of each kind."""
    found = [("line", line.get_label(), np.asarray(line.get_ydata(), float)) for line in ax.lines]
    for item in ax.collections:
        if isinstance(item, FillBetweenPolyCollection):
            edges = [np.asarray(path.vertices)[:, 1] for path in item.get_paths()]  # none in a band without places
            found.append(("band", item.get_label(), np.concatenate([np.empty(0), *edges])))
        elif isinstance(item, PathCollection):
            found.append(("points", item.get_label(), np.asarray(item.get_offsets(), float)))
    found += [("image", image.get_label(), np.asarray(image.get_array(), float)) for image in ax.images]
    if ax.patches:
        corners = [patch.get_path().get_extents(patch.get_patch_transform()).extents for patch in ax.patches]
        found.append(("patches", "", np.asarray(corners, float)))
    return [(kind, "" if str(label).startswith("_") else str(label), data) for kind, label, data in found]


def signature(fig: Figure) -> str:
    """What `fig` shows, as text without measured digits: axes, scales, labels, legends, artists and their sizes."""
    lines = []
    for number, ax in enumerate(fig.axes):
        words = [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
        lines.append(f"axes {number}: " + " | ".join(" ".join(word.split()) or "-" for word in words))
        lines[-1] += f" ({ax.get_xscale()}, {ax.get_yscale()})"
        for kind, label, data in _artists(ax):
            size = "x".join(map(str, data.shape))
            finite = "" if np.isfinite(data).all() else ", with gaps"
            lines.append(f"  {kind} {label!r} {size}{finite}" if label else f"  {kind} {size}{finite}")
        lines += [f"  text {text.get_text()!r}" for text in ax.texts if text.get_text()]
        if (legend := ax.get_legend()) is not None:
            lines.append("  legend " + ", ".join(text.get_text() for text in legend.get_texts()))
    return "\n".join(lines)


def drawn(fig: Figure) -> dict[str, dict[str, float | int | None]]:
    """Numbers that pin down the drawn data, in the form `cosutils.report.results.record_numbers` takes.

    For each artist: mean, standard deviation, minimum, maximum and an order-weighted mean (weights cos 0, cos
    1, ...), which moves when two points change places.
    """
    numbers: dict[str, dict[str, float | int | None]] = {}
    for number, ax in enumerate(fig.axes):
        for index, (kind, label, data) in enumerate(_artists(ax)):
            values = data[np.isfinite(data)].ravel()
            if not values.size:
                continue
            summary = {
                "mean": values.mean(),
                "std": values.std(),
                "min": values.min(),
                "max": values.max(),
                "order": float(values @ np.cos(np.arange(values.size))) / values.size,
            }
            for word, value in summary.items():
                key = f"axes {number} {kind} {label or index} {word}"
                numbers[key] = {"value": float(value), "low": None, "high": None, "n": int(values.size)}
    return numbers


# ---------------------------------------------------------------- showing
def _checked_texts(name: str, alt: str, caption: str | None) -> dict[str, str]:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"a figure name is lower-case words joined by hyphens, such as 'maze-steps', not {name!r}")
    if len(alt.split()) < 3:
        raise ValueError(f"the alt text of {name} must say in words what is seen (three or more), not {alt!r}")
    return {"name": name, "alt": alt, "caption": caption or alt}


def _checked_sizes(fig: Figure, name: str) -> None:
    small = [
        text for text in fig.findobj(Text) if text.get_text() and text.get_visible() and float(text.get_fontsize()) < 9
    ]
    if small:
        found = f"{small[0].get_text()!r} has {small[0].get_fontsize():g}"
        raise ValueError(f"no text of figure {name} may be smaller than 9 points; {found}")


def show(fig: Figure, name: str, alt: str, caption: str | None = None) -> None:
    """Display `fig` once, with its signature as text, and close it.

    It is an SVG, or a PNG of 220 dots an inch where it holds coloured pictures. name: target for cross-references,
    lower-case words joined by hyphens; alt: what is seen, for those who do not see it; caption: printed below the
    numbered figure (MyST markdown, default: the alt text). The three travel in the output's metadata;
    `tools/refresh_notebooks.py` and `tools/build_book.py` copy them to where the book reads them. ValueError for a
    text smaller than 9 points.
    """
    from IPython.display import display

    texts = _checked_texts(name, alt, caption)
    pixels = any(np.ndim(np.asarray(image.get_array())) == 3 for ax in fig.axes for image in ax.images)
    kind, buffer = ("image/png" if pixels else "image/svg+xml"), io.BytesIO()
    if pixels:
        fig.savefig(buffer, format="png", dpi=220, bbox_inches="tight", metadata={"Software": None})
        data = base64.b64encode(buffer.getvalue()).decode()
    else:
        unsigned = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            fig.savefig(buffer, format="svg", bbox_inches="tight", metadata=unsigned)
        data = buffer.getvalue().decode()
    _checked_sizes(fig, name)  # tick labels have their text once they are drawn
    text = f"figure {name}: {alt}\n{signature(fig)}"
    plt.close(fig)
    display({kind: data, "text/plain": text}, raw=True, metadata={kind: {"alt": alt}, "cos": texts})


def _as_bytes(frames: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) float in [0, 1] or uint8 -> uint8."""
    frames = np.asarray(frames)
    if frames.ndim < 3 or frames.shape[-1] != 3:
        raise ValueError(f"frames end in (height, width, 3), not in shape {frames.shape}")
    if frames.dtype == np.uint8:
        return frames
    if not np.isfinite(frames).all():
        raise ValueError("frames hold a value that is not finite")
    return np.round(np.clip(frames, 0.0, 1.0) * 255).astype(np.uint8)


def encode_film(frames: np.ndarray, fps: float = 6.0, height: int = 320) -> bytes:
    """H.264 mp4 (yuv420p, playable everywhere) of `frames` (T, H, W, 3), float in [0, 1] or uint8.

    Pixels are repeated a whole number of times, at least up to `height`, so that a 40-pixel world stays
    sharp.
    """
    frames = _as_bytes(frames)
    if frames.ndim != 4 or not len(frames):
        raise ValueError(f"a film is (T, H, W, 3) with T >= 1, not {frames.shape}")
    scale = -(-height // frames.shape[1])
    scale += scale % 2  # yuv420p wants even sides
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "film.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", size, "-r", str(fps), "-i", "-", "-vf", "scale=out_color_matrix=bt709:out_range=tv"]
        command += [
            "-c:v",
            "libx264",
            "-pix_fmt",
            "yuv420p",
            "-crf",
            "18",
            "-preset",
            "slow",
            "-threads",
            "1",
        ]
        command += [
            "-colorspace",
            "bt709",
            "-color_primaries",
            "bt709",
            "-color_trc",
            "bt709",
            "-color_range",
            "tv",
        ]
        command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", str(path)]
        run = subprocess.run(command, input=frames.tobytes(), capture_output=True)
        if run.returncode:
            raise RuntimeError(f"ffmpeg could not encode the film: {run.stderr.decode(errors='replace').strip()}")
        return path.read_bytes()


def show_film(frames: np.ndarray, name: str, alt: str, caption: str | None = None, fps: float = 6.0) -> None:
    """Display `frames` (T, H, W, 3) as an embedded mp4 with controls; name, alt and caption as in `show`."""
    from IPython.display import display

    texts = _checked_texts(name, alt, caption)
    film = encode_film(frames, fps=fps)
    source = "data:video/mp4;base64," + base64.b64encode(film).decode()
    tag = (
        f'<video class="film" controls loop muted playsinline preload="auto" aria-label="{html.escape(alt)}">'
        f'<source type="video/mp4" src="{source}"></video>'
    )
    shape = "x".join(map(str, np.shape(frames)))
    display({"text/html": tag, "text/plain": f"film {name}: {alt}\n{shape}"}, raw=True, metadata={"cos": texts})


def show_table(
    head: Sequence[str],
    groups: Mapping[str, Sequence[Sequence[str]]],
    name: str,
    alt: str,
    caption: str | None = None,
    merge: int = 2,
    marks: Mapping[str, str] | None = None,
) -> None:
    """Display texts as a table that scrolls in its own box; name, alt and caption as in `show`.

    head: names of the columns; groups: title (a line of its own above the rows, none where it is "") -> rows, each with
    one text per column. In the first `merge` columns neighbours of a group that are equal so far share one cell. marks:
    beginning of a text -> class that the book's style colours. The rows are the output's text too. Raises ValueError
    where a row is too long or short.
    """
    table, plain = table_of(head, groups, merge, marks)
    show_html(table, plain, name, alt, caption)


def table_of(
    head: Sequence[str],
    groups: Mapping[str, Sequence[Sequence[str]]],
    merge: int = 2,
    marks: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """A table as HTML and as plain text; arguments and errors as `show_table` has them."""
    parts = ["<thead><tr>", *(f'<th scope="col">{html.escape(word)}</th>' for word in head), "</tr></thead>"]
    plain = [" | ".join(head)]
    for title, rows in groups.items():
        if wrong := [row for row in rows if len(row) != len(head)]:
            raise ValueError(f"a row of {len(wrong[0])} texts in a table of {len(head)} columns: {wrong[0]}")
        parts.append("<tbody>")
        if title:
            parts.append(f'<tr><th scope="rowgroup" colspan="{len(head)}">{html.escape(title)}</th></tr>')
            plain.append(title)
        for number, row in enumerate(rows):
            parts.append("<tr>")
            for column, text in enumerate(row):
                begun = list(row[: column + 1])
                if column < merge and number and list(rows[number - 1][: column + 1]) == begun:
                    continue
                same = 1
                while column < merge and number + same < len(rows) and list(rows[number + same][: column + 1]) == begun:
                    same += 1
                mark = next((f' class="{c}"' for start, c in (marks or {}).items() if text.startswith(start)), "")
                tag = 'th scope="row"' if column == 0 else "td"
                parts.append(f'<{tag} rowspan="{same}"{mark}>{html.escape(text)}</{tag[:2]}>')
            parts.append("</tr>")
            plain.append("  " + " | ".join(row))
        parts.append("</tbody>")
    return f'<table class="texts">{"".join(parts)}</table>', "\n".join(plain)


def show_html(table: str, plain: str, name: str, alt: str, caption: str | None = None) -> None:
    """Display HTML that scrolls in its own box, with `plain` as its text; name, alt and caption as in `show`."""
    from IPython.display import display

    texts = _checked_texts(name, alt, caption)
    box = f'<div class="table-box" role="region" tabindex="0" aria-label="{html.escape(alt)}">{table}</div>'
    display({"text/html": box, "text/plain": f"table {name}: {alt}\n{plain}"}, raw=True, metadata={"cos": texts})


# ---------------------------------------------------------------- plots
def picture_grid(
    images: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str = "",
    cell: float = 1.0,
) -> Figure:
    """Pictures side by side, framed: images (R, C, H, W, 3), float in [0, 1] or uint8, with R row and C column labels.

    cell: side of one picture in inches. Raises ValueError when the labels do not fit the images.
    """
    images = _as_bytes(images)
    if images.ndim != 5:
        raise ValueError(f"images must be (rows, columns, height, width, 3), not {images.shape}")
    count, across, height, width = images.shape[:4]
    for word, given, wanted in (("rows", rows, count), ("columns", columns, across)):
        if len(given) != wanted:
            raise ValueError(f"{len(given)} {word} for images of {wanted}")
    gap = max(1, height // 16)
    canvas = np.full((count * (height + gap) - gap, across * (width + gap) - gap, 3), 255, np.uint8)
    frames = []
    for row in range(count):
        for column in range(across):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = images[row, column]
            frames.append(Rectangle((left - 0.5, top - 0.5), width, height))
    fig, ax = plt.subplots(figsize=(cell * across * width / height + 1.5, cell * count + 0.5), layout="constrained")
    ax.imshow(canvas, interpolation="nearest")
    ax.add_collection(PatchCollection(frames, fc="none", ec="0.7", lw=0.6, clip_on=False), autolim=False)
    ax.set_yticks(np.arange(count) * (height + gap) + (height - 1) / 2, rows)
    ax.set_xticks(np.arange(across) * (width + gap) + (width - 1) / 2, columns)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0, labelsize=9, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    return fig


def evenly(length: int, number: int) -> list[int]:
    """At most `number` places of `range(length)`, evenly from the first to the last, for the rows or columns of a grid.

    ValueError unless both are at least 1.
    """
    if min(length, number) < 1:
        raise ValueError(f"no {number} places in {length}: both must be at least 1")
    return sorted({round(place) for place in np.linspace(0, length - 1, min(number, length))})


def step_frame_grid(
    images: np.ndarray,
    sigmas: Sequence[float],
    frames: Sequence[int],
    steps: Sequence[int] | None = None,
    phases: Mapping[str, tuple[int, int]] | None = None,
    cell: float = 1.0,
) -> Figure:
    """The paper's Fig. 1 as one picture: rows are denoising steps (noisiest on top), columns are frames.

    images: (S, F, H, W, 3), float in [0, 1] or uint8; sigmas: the S noise levels in [0, 1]; frames: the F
    frame numbers; steps: the S step numbers (default 0..S-1); phases: name -> (first row, last row),
    bracketed at the right; cell: side of one picture in inches. Raises ValueError when the lengths do not fit
    the images.
    """
    steps = range(len(images)) if steps is None else steps
    for word, given in (("sigmas", sigmas), ("steps", steps)):
        if len(given) != len(images):
            raise ValueError(f"{len(given)} {word} for images of {len(images)}")
    names = [f"{step}   σ {sigma:.2f}" for step, sigma in zip(steps, sigmas, strict=True)]
    fig = picture_grid(images, names, [str(frame) for frame in frames], "frame", "denoising step", cell)
    (ax,) = fig.axes
    height, middle = np.shape(images)[2], ax.get_yticks()
    gap = max(1, height // 16)
    x = ax.get_xlim()[1] + 2 * gap
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    for color, (name, (first, last)) in zip(PALETTE, (phases or {}).items(), strict=False):
        if not 0 <= first <= last < len(images):
            raise ValueError(f"phase {name!r} spans rows {first}..{last}; there are rows 0..{len(images) - 1}")
        ends = [middle[first] - height / 2 + gap, middle[last] + height / 2 - gap]
        ax.plot([x, x], ends, color=color, lw=3, clip_on=False, solid_capstyle="butt")
        ax.text(x + 2 * gap, sum(ends) / 2, name, color=_GREY, rotation=90, va="center", fontsize=9)
    return fig


def curve_with_band(
    ax: Axes,
    x: Sequence[float],
    mean: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    label: str,
    color: tuple[float, float, float] | None = None,
) -> tuple[Line2D, FillBetweenPolyCollection]:
    """Line `mean` over `x` with its interval [`low`, `high`] shaded; returns (line, band).

    The colour is the next of the palette and the dash the next pattern, so that curves differ in print too.
    Raises ValueError when the four lengths differ or an interval is upside down.
    """
    places, middle, bottom, top = arrays = [np.asarray(values, float) for values in (x, mean, low, high)]
    if len({values.shape for values in arrays}) > 1 or places.ndim != 1:
        shapes = ", ".join(str(values.shape) for values in arrays)
        raise ValueError(f"x, mean, low, high must be 1-D and equally long, not {shapes}")
    if (bottom > top).any():
        raise ValueError(f"curve {label!r}: low > high at x = {places[bottom > top].tolist()}")
    drawn_before = len(ax.lines)
    color = PALETTE[drawn_before % len(PALETTE)] if color is None else color
    (line,) = ax.plot(places, middle, color=color, ls=_DASHES[drawn_before % len(_DASHES)], lw=1.8, label=label)
    band = ax.fill_between(places, bottom, top, color=color, alpha=0.2, lw=0)
    return line, band


def stored_curve(
    ax: Axes,
    stored: Mapping[float, Mapping[str, float]],
    live: Mapping[float, Mapping[str, float]],
    label: str,
    color: tuple[float, float, float] | None = None,
) -> Line2D:
    """The curve of the stored run with its band, and this page's own run as dots on it; returns the line.

    stored, live: place on the x axis -> {value, low, high}, as `cosutils.report.results` stores numbers; places without
    a finite value are left out. Where `stored` is empty, the own run is drawn as the curve, without dots.
    """

    def known(run: Mapping[float, Mapping[str, float]]) -> dict[float, Mapping[str, float]]:
        finite = {x: rate for x, rate in run.items() if rate["value"] is not None and np.isfinite(rate["value"])}
        return dict(sorted(finite.items()))

    kept, own = known(stored), known(live)
    rows = kept or own
    mean, low, high = ([rate[end] for rate in rows.values()] for end in ("value", "low", "high"))
    line, _ = curve_with_band(ax, [*rows], mean, low, high, label, color)
    if kept and own:
        ax.scatter(
            [*own], [rate["value"] for rate in own.values()], s=22, color=line.get_color(), edgecolor="white", zorder=4
        )
    return line


def candidate_curves(
    ax: Axes, steps: Sequence[int], evidence: np.ndarray, names: Sequence[str], answer: str
) -> list[Line2D]:
    """Soft evidence for every candidate answer against the denoising step; returns one line per candidate.

    evidence: (S, K) in [0, 1]; names: the K candidates; answer: the right one, drawn thick and on top. It is named at
    its end, and so is the strongest of the others.
    """
    evidence = np.asarray(evidence, float)
    if evidence.shape != (len(steps), len(names)):
        raise ValueError(f"evidence must be (steps, names) = ({len(steps)}, {len(names)}), not {evidence.shape}")
    if answer not in names:
        raise ValueError(f"answer {answer!r} is not among the candidates {', '.join(map(str, names))}")
    others = 0
    lines = []
    for column, name in enumerate(names):
        if name == answer:
            style = {"color": PALETTE[0], "lw": 2.6, "zorder": 3, "label": f"{name} (answer)"}
        else:
            others += 1
            dash = _DASHES[(others - 1) // (len(PALETTE) - 1) % len(_DASHES)]
            style = {
                "color": PALETTE[1 + (others - 1) % (len(PALETTE) - 1)],
                "lw": 1.2,
                "ls": dash,
                "label": str(name),
            }
        lines += ax.plot(steps, evidence[:, column], **style)
    last = dict(zip(names, evidence[-1], strict=True))
    right = last.pop(answer)
    beside = {"correct": (right, PALETTE[0])}
    if last:  # of the wrong answers the strongest at the end is named, clear of the right one
        strongest = max(last, key=last.__getitem__)
        clear = right + 0.1 if last[strongest] >= right else right - 0.1
        height = max(last[strongest], clear) if clear > right else min(last[strongest], clear)
        beside["wrong"] = (height, lines[list(names).index(strongest)].get_color())
    for word, (height, color) in beside.items():
        end = (1, height), (3, 0)  # behind the right spine
        ax.annotate(word, *end, xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=9,
                    color=color)  # fmt: skip
    ax.set(xlabel="denoising step", ylabel="share in the clean estimate", ylim=(-0.03, 1.03))
    return lines
