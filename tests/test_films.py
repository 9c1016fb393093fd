"""Pictures and video files: what is written comes back, what users have is read, what is damaged is refused."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

import tiny
from cosutils.films import check_film, check_picture, probe, read_film, read_picture, write_film


def square(side, frames=9, seed=0):
    """A film of smooth colours that h264 keeps well (frames, side, side, 3), uint8."""
    y, x, t = np.meshgrid(*[np.linspace(0, 1, side)] * 2, np.linspace(0, 1, frames), indexing="ij")
    film = np.stack([x, y, np.abs(np.sin(3 * t + x + seed))], -1).transpose(2, 0, 1, 3)
    return np.uint8(film * 255)


def shorten(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def overwrite(path, count=400):
    """Zeros over the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + count] = bytes(count)
    path.write_bytes(content)


def ffmpeg(*arguments):
    """What ffmpeg says while it does what it is told."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stderr.decode()


def test_films_are_square_short_groups_and_keep_their_colours(tmp_path):
    film = square(96, 20)
    path = write_film(film, tmp_path / "deep" / "film.mp4", fps=16)
    back = read_film(path)
    assert back.shape == film.shape and abs(back.astype(int) - film).mean() < 2
    for part in (0, 0.4, -0.4):  # of a step of 1/255: the nearest whole one is written
        near = np.clip((film + part) / 255, 0, 1)
        assert np.array_equal(read_film(write_film(near, tmp_path / "float.mp4")), back)
    told = ffmpeg("-i", path, "-vf", "showinfo", "-f", "null", "-")
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
    overwrite(path)
    for read in (read_film, check_film):
        with pytest.raises(ValueError, match="film.mp4 is damaged"):
            read(path)


def test_a_film_that_lost_its_end_is_refused_without_decoding(tmp_path):
    path = write_film(square(64, 25), tmp_path / "film.mp4")
    whole = path.read_bytes()
    assert probe(path) == check_film(path) == ((64, 64), 25)
    listed = ffmpeg("-i", path, "-c", "copy", "-f", "framecrc", tmp_path / "list") and (tmp_path / "list").read_text()
    sizes = [int(line.split(",")[4]) for line in listed.splitlines() if not line.startswith("#")]
    between = whole.index(b"mdat") + 4 + sum(sizes[:20])  # of two frames: ffmpeg says nothing
    for length in (len(whole) - 1, between, between - 5):
        path.write_bytes(whole[:length])
        for read in (probe, read_film):
            with pytest.raises(ValueError, match=rf"film.mp4 is truncated: {length} bytes of the {len(whole)} that"):
                read(path)
    with pytest.raises(FileNotFoundError, match="no video"):
        read_film(tmp_path / "none.mp4")


@tiny.every(ending=["mkv", "webm", "avi", "mov"])
def test_films_of_other_containers_are_read_whole_or_not(tmp_path, ending):
    path = tmp_path / f"film.{ending}"
    codec = ["-c", "copy"] if ending in ("mkv", "mov") else []
    ffmpeg("-i", write_film(square(64, 9), tmp_path / "film.mp4"), *codec, path)
    assert probe(path) == check_film(path) == ((64, 64), 9) and len(read_film(path)) == 9
    shorten(path, 0.7)
    for read in (probe, check_film, read_film):
        with pytest.raises(ValueError, match=f"film.{ending} is (truncated|damaged|not a readable video)"):
            read(path)


FORMS = {
    "sound that is longer": ["-f", "lavfi", "-i", "sine=duration=3", "-c:v", "copy"],
    "sound that is shorter": ["-f", "lavfi", "-i", "sine=duration=0.1", "-c:v", "copy"],
    "a rate that varies": ["-vf", "select='not(eq(mod(n,5),1))'", "-fps_mode", "vfr"],
    "1000 frames a second": ["-vf", "settb=1/1000,setpts=N", "-fps_mode", "passthrough"],
    "a third of a frame a second": ["-vf", "settb=1,setpts=3*N", "-fps_mode", "passthrough"],
    "sides that differ": ["-vf", "scale=66:64"],
    "another codec": ["-c:v", "libaom-av1", "-cpu-used", "8"],
    "sixteen bits": ["-c:v", "ffv1", "-pix_fmt", "gbrp16le"],
}


@tiny.every(form=list(FORMS))
def test_every_frame_of_the_video_stream_is_read_and_nothing_else(tmp_path, form):
    film, path = square(64, 20), tmp_path / ("film.mkv" if form == "sixteen bits" else "film.mp4")
    ffmpeg("-i", write_film(film, tmp_path / "plain.mp4"), *FORMS[form], path)
    expected = film[[n for n in range(20) if n % 5 != 1]] if form == "a rate that varies" else film
    shape = (66, 64) if form == "sides that differ" else (64, 64)
    assert probe(path) == check_film(path) == (shape, len(expected))
    seen = read_film(path, 64).astype(int)
    assert len(seen) == len(expected) and abs(seen - expected).mean() < 6


def test_a_turned_film_is_read_as_it_is_shown(tmp_path):
    ffmpeg("-i", write_film(square(64, 3), tmp_path / "film.mp4"), "-vf", "scale=96:64", tmp_path / "wide.mp4")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "wide.mp4", "-c", "copy", tmp_path / "turned.mp4")
    seen = read_film(tmp_path / "turned.mp4")
    assert seen.shape == (3, 96, 64, 3) and check_film(tmp_path / "turned.mp4")[0] == (64, 96)
    assert np.array_equal(seen, np.rot90(read_film(tmp_path / "wide.mp4"), 1, (1, 2)))


def test_sound_alone_is_no_film(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.1", tmp_path / "sound.mp4")
    with pytest.raises(ValueError, match="sound.mp4 is not a readable video"):
        probe(tmp_path / "sound.mp4")


ODD = ["-film", "a [1]", "50%d %03d", "x:y", "mit Umlaut ä ♦", "#1 'q' \"", "concat:z", "$HOME"]


@tiny.every(name=ODD)
def test_a_file_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("", f"{name}/", "~/"):
        path = write_film(square(32, 2), f"{folder}{name}.mp4")
        assert probe(f"{folder}{name}.mp4")[1] == len(read_film(f"{folder}{name}.mp4")) == 2
        Image.new("RGB", (4, 4), "red").save(path.with_suffix(".png"))
        assert read_picture(f"{folder}{name}.png").getpixel((0, 0)) == (255, 0, 0)
    assert (tmp_path / "home" / f"{name}.mp4").is_file() and not (tmp_path / "~").exists()


def test_a_rate_is_a_number_above_zero_and_a_place_must_be_writable(tmp_path):
    with pytest.raises(ValueError, match="fps must be above 0 and finite, got nan"):
        write_film(square(32), tmp_path / "film.mp4", fps=float("nan"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not write .*film.mp4, nothing was changed"):
        write_film(square(32), tmp_path / "file" / "film.mp4")


def test_frames_are_resized_on_request(tmp_path):
    path = write_film(square(64, 5), tmp_path / "film.mp4")
    assert read_film(path, 32).shape == (5, 32, 32, 3)


# ---------------------------------------------------------------- pictures
def arrow():
    """A grey picture, wider than high, whose every turn and mirror image differs: values 0..245."""
    return Image.fromarray(np.uint8(np.add.outer(np.arange(8) * 21, np.arange(16) * 6)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_viewers_turn_it(tmp_path, orientation):
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_270"}  # what undoes the turn that a viewer makes
    stored = arrow().transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else arrow()
    exif = Image.Exif()
    exif[0x0112] = orientation
    for ending in ("png", "tif", "webp"):
        stored.convert("RGB").save(tmp_path / f"p.{ending}", exif=exif, lossless=True)
        assert np.array_equal(read_picture(tmp_path / f"p.{ending}"), arrow().convert("RGB"))


def white(shape=(8, 16)):
    return np.full((*shape, 3), 255, np.uint8)


def test_pictures_of_every_kind_are_what_a_viewer_shows(tmp_path):
    grey = np.asarray(arrow())
    shown = np.stack([grey] * 3, -1)
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "sixteen.png")
    Image.fromarray(deep).save(tmp_path / "sixteen.tif")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "wide.tif")
    arrow().save(tmp_path / "grey.png")
    arrow().convert("P").save(tmp_path / "palette.png")
    arrow().convert("RGB").convert("CMYK").save(tmp_path / "cmyk.tif")
    arrow().save(tmp_path / "still.gif", save_all=True, append_images=[Image.new("L", (16, 8))])
    for name in ("sixteen.png", "sixteen.tif", "wide.tif", "grey.png", "palette.png", "cmyk.tif", "still.gif"):
        seen = read_picture(tmp_path / name)
        assert seen.mode == "RGB" and np.array_equal(seen, shown), name
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    assert np.array_equal(read_picture(tmp_path / "bits.png"), np.where(shown > 100, 255, 0))


def test_what_is_transparent_is_white(tmp_path):
    line = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    line.putpixel((3, 2), (0, 0, 0, 255))
    line.putpixel((4, 2), (0, 0, 0, 128))
    expected = white()
    expected[2, 3], expected[2, 4] = 0, 127
    keyed = Image.new("L", (16, 8), 7)  # grey 7 is declared transparent
    keyed.putpixel((3, 2), 0)
    made = {"rgba": line, "la": line.convert("LA")}
    for name, image in made.items():
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_picture(tmp_path / f"{name}.png"), expected), name
        assert np.array_equal(read_picture(image), expected), name
    expected[2, 4] = 255
    for mode, key in {"L": 7, "P": 7, "RGB": (7, 7, 7)}.items():
        keyed.convert(mode).save(tmp_path / f"{mode}.png", transparency=key)
        assert np.array_equal(read_picture(tmp_path / f"{mode}.png"), expected), mode


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_a_picture_that_lost_its_end_is_named(tmp_path, ending):
    path = tmp_path / f"picture.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    shorten(path, 0.5)
    with pytest.raises(ValueError, match=f"picture.{ending} is not a readable picture, or damaged"):
        read_picture(path)


def test_damage_within_a_picture_and_what_is_no_picture_are_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "picture.png")
    overwrite(tmp_path / "picture.png", 40)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("picture", "text", "empty"):
        for read in (read_picture, check_picture):
            with pytest.raises(ValueError, match=f"{name}.png is not a readable picture, or damaged: "):
                read(tmp_path / f"{name}.png")
    for place in ("none.png", "."):
        with pytest.raises(FileNotFoundError, match="no picture"):
            read_picture(tmp_path / place)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif holds floating-point numbers: save it with 8 or 16 bits"):
        read_picture(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="the given picture holds numbers of more than 16 bits"):
        read_picture(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)))
