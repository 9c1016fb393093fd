"""Video files: what is written comes back, what is damaged is refused."""

import re

import numpy as np
import pytest

from cosutils.films import _ffmpeg, check_film, probe, read_film, write_film


def square(side, frames=9, seed=0):
    """A film of smooth colours that h264 keeps well (frames, side, side, 3), uint8."""
    y, x, t = np.meshgrid(*[np.linspace(0, 1, side)] * 2, np.linspace(0, 1, frames), indexing="ij")
    film = np.stack([x, y, np.abs(np.sin(3 * t + x + seed))], -1).transpose(2, 0, 1, 3)
    return np.uint8(film * 255)


def shorten(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_films_are_square_short_groups_and_keep_their_colours(tmp_path):
    film = square(96, 20)
    path = write_film(film, tmp_path / "deep" / "film.mp4", fps=16)
    back = read_film(path)
    assert back.shape == film.shape and abs(back.astype(int) - film).mean() < 2
    for part in (0, 0.4, -0.4):  # of a step of 1/255: the nearest whole one is written
        near = np.clip((film + part) / 255, 0, 1)
        assert np.array_equal(read_film(write_film(near, tmp_path / "float.mp4")), back)
    told = _ffmpeg("-i", str(path), "-vf", "showinfo", "-f", "null", "-").stderr.decode()
    keys = [int(n) for n in re.findall(r"n: *(\d+) .*iskey:1", told)]
    assert keys[0] == 0 and max(np.diff(keys)) <= 8 and "h264" in told and "yuv420p" in told and "16 fps" in told
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["film.mp4"]


@pytest.mark.parametrize(
    "film, words",
    [
        (np.zeros((5, 32, 48, 3)), "square with even sides, not 48x32"),
        (np.zeros((5, 33, 33, 3)), "square with even sides, not 33x33"),
        (np.full((5, 32, 32, 3), 2.0), r"in \[0, 1\]"),
        (np.full((5, 32, 32, 3), np.nan), "finite"),
        (np.zeros((32, 32, 3)), r"not \(32, 32, 3\)"),
    ],
)
def test_films_that_the_evaluator_would_misread_are_not_written(tmp_path, film, words):
    with pytest.raises(ValueError, match=words):
        write_film(film, tmp_path / "film.mp4")
    assert not any(tmp_path.iterdir())


def test_a_film_damaged_in_its_middle_is_refused(tmp_path):
    path = write_film(square(128, 25), tmp_path / "film.mp4")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="film.mp4 is damaged"):
        read_film(path)


def test_a_truncated_film_is_refused_without_decoding(tmp_path):
    path = write_film(square(128, 25), tmp_path / "film.mp4")
    assert probe(path) == check_film(path) == ((128, 128), 25)
    shorten(path, 0.7)
    with pytest.raises(ValueError, match=r"film.mp4 is truncated: \d+ frames of the 25"):
        probe(path)
    with pytest.raises(FileNotFoundError, match="no video"):
        read_film(tmp_path / "none.mp4")


def test_frames_are_resized_on_request(tmp_path):
    path = write_film(square(64, 5), tmp_path / "film.mp4")
    assert read_film(path, 32).shape == (5, 32, 32, 3)
