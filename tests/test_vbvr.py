"""The benchmark's layout, read and written, on real samples of it; every damage is done to copies of these files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_films import ffmpeg, overwrite, shorten, square

import cosutils as cos
import tiny
from cosutils import vbvr
from cosutils.films import read_film, write_film
from cosutils.mini.export import export
from cosutils.pipelines.loading import data_folder
from tiny import build

SAMPLES = data_folder() / "vbvr-samples"
TRUTH = SAMPLES / "ground-truth"
GRAPH = "In-Domain_50/G-31_directed_graph_navigation_data-generator/00000"
SYMBOL = "Out-of-Domain_50/O-60_symbol_substitute_data-generator/00000"


@pytest.fixture
def copy(tmp_path):
    """A benchmark folder of one puzzle, to be damaged; (root, its sample folder)."""
    shutil.copytree(TRUTH / SYMBOL, tmp_path / SYMBOL)
    return tmp_path, tmp_path / SYMBOL


# ---------------------------------------------------------------- sizes
def test_frames_and_sides_are_rounded_up_as_the_authors_do():
    assert [vbvr.frames_up(n) for n in (1, 2, 5, 22, 40, 41, 42, 96, 97)] == [1, 5, 5, 25, 41, 41, 45, 97, 97]
    assert vbvr.frames_up(40, stride=8) == 41 and vbvr.frames_up(42, stride=8) == 49
    assert [vbvr.side_up(n) for n in (1, 480, 1000, 1024)] == [16, 480, 1008, 1024] and vbvr.side_up(720, 32) == 736
    with pytest.raises(ValueError, match="frames must be 1 or more, got 0"):
        vbvr.frames_up(0)


@pytest.mark.slow
def test_a_real_answer_has_as_many_frames_as_we_would_ask_for():
    (puzzle,) = vbvr.read(TRUTH, tasks=["G-31"])
    film = read_film(vbvr.answer_path(puzzle, SAMPLES / "model-output"), 64)
    assert len(film) == puzzle.frames == 41 and len(puzzle.video) == 40


def test_geometry_comes_from_the_pipeline():
    assert vbvr.geometry(build("a14b")) == {"multiple": 16, "stride": 4}


# ---------------------------------------------------------------- reading
def test_samples_are_read_whole():
    puzzles = vbvr.read(TRUTH, pixels=256)
    assert [puzzle.name for puzzle in puzzles] == sorted(puzzle.name for puzzle in puzzles)
    assert [puzzle.frames for puzzle in puzzles] == [41, 57, 25, 25, 25]
    symbol = puzzles[3]
    assert symbol.name == SYMBOL and symbol.split == "Out-of-Domain_50" and symbol.number == 0
    assert symbol.prompt.startswith("Substitute ♦ at position 1") and symbol.prompt == symbol.prompt.strip()
    assert symbol.image.size == symbol.final.size == (256, 256)
    assert symbol.video.shape == (22, 256, 256, 3) and symbol.video.dtype == np.float32
    start, end = (np.asarray(picture, np.float32) / 255 for picture in (symbol.image, symbol.final))
    far = [[abs(frame - picture).mean() for picture in (start, end)] for frame in symbol.video[[0, -1]]]
    assert far[0][0] < far[0][1] and far[1][1] < far[1][0]  # each end is nearest to its own picture
    assert max(far[0][0], far[1][1]) < 0.02  # what mp4v makes of white


def test_splits_tasks_and_limits_choose():
    def names(**choice):
        return [(puzzle.task.split("_")[0], puzzle.number) for puzzle in vbvr.read(TRUTH, **choice)]

    assert names(splits=["Out-of-Domain_50"]) == [("O-59", 0), ("O-60", 0), ("O-60", 1)]
    assert names(splits=["Out-of-Domain_50"], limit=np.int64(1)) == [("O-59", 0), ("O-60", 0)]
    assert names(tasks=["O-60", "G-31_directed_graph_navigation_data-generator"])[0] == ("G-31", 0)
    assert vbvr.read(TRUTH, tasks=["G-31"], frames=17, pixels=512, multiple=32)[0].inputs["num_frames"] == 17


@pytest.mark.parametrize(
    "choice, error, words",
    [
        ({"splits": ["In-Domain"]}, ValueError, "unknown split 'In-Domain': the splits are In-Domain_50 and"),
        ({"tasks": ["O-6"]}, FileNotFoundError, "no task O-6 in"),
        ({"tasks": ["O-60", "O-39"]}, FileNotFoundError, "no task O-39 in"),
        ({"pixels": 500}, ValueError, "multiple of 16, got 500; the next is 512"),
        ({"frames": 80}, ValueError, r"4 k \+ 1, got 80; the next is 81"),
        ({"limit": 0}, ValueError, "limit must be 1 or more, got 0"),
        ({"limit": 1.5}, TypeError, "limit must be an integer, got 1.5"),
        ({"pixels": 480.0}, TypeError, "pixels must be an integer, got 480.0"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(choice, error, words):
    with pytest.raises(error, match=words):
        vbvr.read(TRUTH, **choice)


@pytest.mark.slow
def test_our_own_export_is_read_back(tmp_path):
    sample = cos.tasks.maze.sample(seed=3)
    export([sample], tmp_path)
    (puzzle,) = vbvr.read(tmp_path, pixels=480)
    assert puzzle.task == "cos_mini_maze_data-generator" and puzzle.prompt == sample.prompt
    assert puzzle.frames == len(sample.video)
    assert abs(puzzle.video - sample.video.repeat(6, 1).repeat(6, 2)).mean() < 0.02


# ---------------------------------------------------------------- missing and odd files
@pytest.mark.parametrize("name", vbvr.FILES)
def test_a_missing_file_is_named(copy, name):
    (copy[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in .*00000"):
        vbvr.read(copy[0])


def damaged(name):
    """The damages, by name: each is done to the sample folder."""

    def rename(old, new):
        return lambda sample: (sample / old).rename(sample / new)

    def write(file, content):
        return lambda sample: (sample / file).write_bytes(content)

    def stretch(sample):
        with Image.open(sample / "first_frame.png") as image:
            wide = image.resize((1024, 512))
        wide.save(sample / "first_frame.png")

    def shrink(sample):
        with Image.open(sample / "final_frame.png") as image:
            small = image.resize((512, 512))
        small.save(sample / "final_frame.png")

    return {
        "empty prompt": write("prompt.txt", b" \n"),
        "prompt of another encoding": write("prompt.txt", "für".encode("latin-1")),
        "truncated video": lambda sample: shorten(sample / "ground_truth.mp4", 0.6),
        "video that is text": write("ground_truth.mp4", b"version https://git-lfs.github.com/spec/v1\n"),
        "empty video": write("ground_truth.mp4", b""),
        "picture that is text": write("first_frame.png", b"no picture"),
        "picture that lost its end": lambda sample: shorten(sample / "final_frame.png", 0.5),
        "damaged picture": lambda sample: overwrite(sample / "first_frame.png", 40),
        "image setting": lambda sample: (sample / "ground_truth.mp4").rename(sample / "frame_1.png"),
        "task in both splits": lambda sample: shutil.copytree(
            sample.parent, sample.parents[2] / "In-Domain_50" / sample.parent.name
        ),
        "picture that is not square": stretch,
        "picture of another size": shrink,
        "unexpected file": write("first.png", b""),
        "odd sample name": lambda sample: sample.rename(sample.with_name("0")),
        "odd task name": lambda sample: sample.parent.rename(sample.parent.with_name("O-60_symbol_substitute")),
        "odd split name": lambda sample: sample.parents[1].rename(sample.parents[1].with_name("out-of-domain_50")),
        "file among the samples": lambda sample: (sample.parent / "00001.mp4").touch(),
    }[name]


@pytest.mark.parametrize(
    "name, words",
    [
        ("empty prompt", "prompt.txt is empty"),
        ("prompt of another encoding", "prompt.txt is not text in UTF-8"),
        ("truncated video", "ground_truth.mp4 is (truncated|not a readable video)"),
        ("video that is text", "ground_truth.mp4 is not a readable video"),
        ("empty video", "ground_truth.mp4 is not a readable video"),
        ("picture that is text", "first_frame.png is not a readable picture"),
        ("picture that lost its end", "final_frame.png is not a readable picture, or damaged"),
        ("damaged picture", "first_frame.png is not a readable picture, or damaged"),
        ("image setting", "is of VBVR-Pro-Bench's image setting .*films answer the video setting"),
        ("task in both splits", "O-60_.* lies in .* and in .*the evaluator takes the truth of In-Domain_50 for both"),
        ("picture that is not square", "square and of one size, but first_frame.png 1024x512"),
        ("picture of another size", "final_frame.png 512x512"),
        ("unexpected file", "unexpected 'first.png' in .*expected first_frame.png"),
        ("odd sample name", "unexpected '0' in .*five digits"),
        ("odd task name", "unexpected 'O-60_symbol_substitute' in .*expected a task"),
        ("odd split name", "unexpected folder 'out-of-domain_50'"),
        ("file among the samples", "unexpected '00001.mp4'"),
    ],
)
def test_an_odd_file_is_named(copy, name, words):
    damaged(name)(copy[1])
    with pytest.raises(ValueError, match=words):
        vbvr.read(copy[0])


def test_one_bad_sample_is_left_out_only_by_name(copy):
    root, sample = copy
    good = sample.with_name("00001")
    shutil.copytree(sample, good)
    shorten(sample / "ground_truth.mp4", 0.5)
    with pytest.raises(ValueError, match="ground_truth.mp4 is truncated"):
        vbvr.read(root)
    (puzzle,) = vbvr.read(root, skip=[SYMBOL])
    assert puzzle.folder == good and puzzle.skipped == (SYMBOL,)
    assert vbvr.read(root, skip=SYMBOL, limit=1) == [puzzle]  # the limit counts what is read
    for odd in ("O-60", "Out-of-Domain_50/O-60_symbol_substitute_data-generator/00007"):
        with pytest.raises(FileNotFoundError, match=f"no sample {odd} to skip"):
            vbvr.read(root, skip=[SYMBOL, odd])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_prompt_is_read_as_any_editor_saves_it(copy, encoding, newline):
    (copy[1] / "prompt.txt").write_text("Swap ♦ and ä.\nStop.\n", encoding=encoding, newline=newline)
    assert vbvr.read(copy[0])[0].prompt == "Swap ♦ and ä.\nStop."


@tiny.every(name=["a [1] 50%d", "-x", "x:y ä ♦", "~"])
def test_a_benchmark_may_lie_anywhere(copy, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = Path(name).expanduser()
    shutil.copytree(tmp_path / "Out-of-Domain_50", place / "Out-of-Domain_50")
    (puzzle,) = vbvr.read(name, pixels=64)
    assert puzzle.video.shape[1:] == (64, 64, 3)
    vbvr.save_answer(puzzle.video, puzzle, f"{name}/answers")
    assert vbvr.check_answers([puzzle], f"{name}/answers") == {SYMBOL: (64, 22)} and (place / "answers").is_dir()
    puzzle.image.save(place / "mine.png")
    assert vbvr.custom(f"{name}/mine.png", "Go.", pixels=64).image.tobytes() == puzzle.image.tobytes()


def test_hidden_files_of_downloads_are_passed(copy):
    (copy[0] / ".cache").mkdir()
    (copy[1] / ".DS_Store").touch()
    (copy[0] / "VBVR-Bench.json").write_text("{}")
    assert len(vbvr.read(copy[0])) == 1


def test_folders_without_puzzles_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        vbvr.read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no In-Domain_50 or Out-of-Domain_50 .*folders are none"):
        vbvr.read(tmp_path)
    (tmp_path / "In-Domain_50" / "O-39_maze_data-generator").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no samples in"):
        vbvr.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no Out-of-Domain_50 in"):
        vbvr.read(tmp_path, splits=["In-Domain_50", "Out-of-Domain_50"])


# ---------------------------------------------------------------- custom puzzles
def test_one_picture_and_a_prompt_make_a_puzzle(tmp_path):
    Image.new("RGB", (60, 30), (10, 200, 30)).save(tmp_path / "mine.png")
    puzzle = vbvr.custom(tmp_path / "mine.png", " Move the ball. ", pixels=64, frames=17)
    assert puzzle.prompt == "Move the ball." and puzzle.digest != vbvr.custom(tmp_path / "mine.png", "Go.").digest
    assert puzzle.inputs["num_frames"] == 17
    assert puzzle.inputs["height"] == puzzle.inputs["width"] == 64
    assert np.unique(np.asarray(puzzle.image).reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]
    for absent in ("final", "video", "truth"):
        with pytest.raises(ValueError, match="a picture and a prompt only"):
            getattr(puzzle, absent)
    with pytest.raises(ValueError, match="no place in the benchmark: use films.write_film"):
        vbvr.answer_path(puzzle, tmp_path)


def test_nothing_is_cut_off_a_picture_made_square():
    wide = np.full((20, 40, 3), 255, np.uint8)
    wide[5:8, 0:3] = wide[12:15, 37:40] = 0
    made = np.asarray(vbvr.squared(Image.fromarray(wide), 40))
    assert made.shape == (40, 40, 3) and (made == 0).sum() == (wide == 0).sum() and (made[:10] == 255).all()


def test_odd_custom_puzzles_are_refused(tmp_path):
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="prompt is empty"):
        vbvr.custom(picture, " ")
    with pytest.raises(ValueError, match="got 80; the next is 81"):
        vbvr.custom(picture, "Go.", frames=80)
    with pytest.raises(FileNotFoundError, match="no picture"):
        vbvr.custom(tmp_path / "none.png", "Go.")
    for name in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="must do as that of a folder"):
            vbvr.custom(picture, "Go.", name=name)


# ---------------------------------------------------------------- answers
def test_answers_lie_where_the_evaluator_looks_and_finished_work_is_known(tmp_path):
    puzzles = vbvr.read(TRUTH, splits=["Out-of-Domain_50"], pixels=64)
    assert vbvr.missing(puzzles, tmp_path) == puzzles
    for puzzle in puzzles[:2]:
        vbvr.save_answer(square(64), puzzle, tmp_path)
    assert vbvr.answer_path(puzzles[1], tmp_path) == tmp_path / f"{SYMBOL}.mp4"
    assert vbvr.missing(puzzles, tmp_path) == puzzles[2:]
    with pytest.raises(FileNotFoundError, match="1 of 3 answers are missing in .*O-60.*/00001$"):
        vbvr.check_answers(puzzles, tmp_path)
    path = vbvr.save_answer(square(64), puzzles[2], tmp_path)
    vbvr.check_answers(puzzles, tmp_path)
    shorten(path, 0.5)
    with pytest.raises(ValueError, match="00001.mp4 is"):
        vbvr.check_answers(puzzles, tmp_path)
    film = write_film(square(64), tmp_path / "film.mp4")
    ffmpeg("-i", film, "-vf", "scale=66:64", path)  # the evaluator resizes it
    assert vbvr.check_answers(puzzles, tmp_path)[puzzles[2].name] == (66, 9)
    ffmpeg("-i", film, "-vf", "scale=68:64", path)
    with pytest.raises(ValueError, match="is 68x64: the evaluator would crop it to a square"):
        vbvr.check_answers(puzzles, tmp_path)


@pytest.mark.slow
def test_an_answer_belongs_to_a_puzzle_by_its_content_not_by_its_name(copy, tmp_path):
    root, sample = copy
    (puzzle,) = vbvr.read(root, pixels=64, frames=5)
    vbvr.save_answer(square(64, 5), puzzle, tmp_path / "answers")
    assert vbvr.missing(vbvr.read(root, pixels=64, frames=5), tmp_path / "answers") == []
    others = {"size": vbvr.read(root, pixels=80, frames=5), "frames": vbvr.read(root, pixels=64, frames=9)}
    (sample / "prompt.txt").write_text("Do something else.")
    others["prompt"] = vbvr.read(root, pixels=64, frames=5)
    shutil.copy(TRUTH / SYMBOL / "prompt.txt", sample)
    shutil.copy(sample / "final_frame.png", sample / "first_frame.png")
    others["picture"] = vbvr.read(root, pixels=64, frames=5)
    for what, puzzles in others.items():
        for refuse in (vbvr.missing, vbvr.check_answers):
            with pytest.raises(ValueError, match="00000.mp4 answers another puzzle of that name"):
                refuse(puzzles, tmp_path / "answers")
                pytest.fail(what)
    foreign = write_film(square(64, 5), tmp_path / "foreign" / f"{puzzle.name}.mp4")  # of another program: by its name
    assert vbvr.missing([puzzle], tmp_path / "foreign") == [] and foreign.is_file()


def test_a_stock_pipeline_takes_a_puzzle_and_its_film_is_an_answer(tmp_path):
    pipe = build("a14b")
    (puzzle,) = vbvr.read(TRUTH, tasks=["G-31"], pixels=32, frames=5, **vbvr.geometry(pipe))
    out = pipe(**puzzle.inputs, num_inference_steps=2, guidance_scale=1.0, output_type="np",
               max_sequence_length=16, generator=torch.Generator().manual_seed(1))  # fmt: skip
    path = vbvr.save_answer(out.frames[0], puzzle, tmp_path)
    assert read_film(path).shape == (5, 32, 32, 3) and Path(path) == tmp_path / f"{GRAPH}.mp4"
    vbvr.check_answers([puzzle], tmp_path)
