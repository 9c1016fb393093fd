"""Write what the page `live` computes with: the models as ONNX graphs, codecs, puzzles and prompts, as plain scripts.

    python tools/export_live.py _build/stage/book/_static/live

A page opened from a file may read scripts and nothing else, so every file is one: `data.js` (puzzles, prompts, codecs)
and `<model>.js` (the graph with its float16 weights, base64). The graph is written here, node by node, in ONNX's own
encoding; nothing beyond the project's packages is needed. `tools/build_book.py` calls it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from diffusers import WanTransformer3DModel

import cosutils as cos
from cosutils.mini import text, world
from cosutils.mini.codec import PatchCodec
from cosutils.mini.model import SHIFT, condition
from cosutils.serial import model as serial_model
from cosutils.serial import puzzles as serial
from cosutils.serial import train

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
MINI = {"cos-mini-shallow": "three blocks", "cos-mini": "ten blocks"}
SERIAL = {  # folders of data/serial/models
    "ladder-trail-1-memory-x1-s0": "one block that sees its last estimate",
    "ladder-trail-1-plain-x1-s0": "one block, plain",
}
SEEDS = range(8)
LENGTHS, EACH = (2, 4, 6, 8), 3  # rungs of a ladder, puzzles of each

FLOAT, INT64, HALF = 1, 7, 10  # ONNX's numbers of data types
NUMBERS = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64, np.dtype(np.float16): HALF}


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + np.float32(value).tobytes()
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


class Graph:
    """An ONNX graph that grows node by node; every method returns the name of a value. Opset 20."""

    def __init__(self) -> None:
        self.body, self.count = bytearray(), 0

    def name(self) -> str:
        self.count += 1
        return str(self.count)

    def constant(self, value: np.ndarray) -> str:
        name = self.name()
        value = np.ascontiguousarray(value)
        tensor = b"".join(_field(1, size) for size in value.shape)
        tensor += _field(2, NUMBERS[value.dtype]) + _field(8, name) + _field(9, value.tobytes())
        self.body += _field(5, tensor)
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: int | float | str | Sequence[int]) -> str:
        names = [self.name() for _ in range(outputs)]
        node = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in names)
        node += _field(4, kind)
        for key, value in attributes.items():
            if isinstance(value, (list, tuple)):
                content = b"".join(_field(8, item) for item in value) + _field(20, 7)
            else:
                place, kind_of = {int: (3, 2), float: (2, 1), str: (4, 3)}[type(value)]
                content = _field(place, value) + _field(20, kind_of)
            node += _field(5, _field(1, key) + content)
        self.body += _field(1, node)
        return names[0] if outputs == 1 else names

    def file(self, inputs: Mapping[str, Sequence[int | str]], outputs: Mapping[str, Sequence[int | str]]) -> bytes:
        """The finished model. inputs, outputs: name -> shape, a text for a size left open."""
        told = b""
        for number, values in ((11, inputs), (12, outputs)):
            for name, shape in values.items():
                sizes = [_field(1, _field(2 if isinstance(size, str) else 1, size)) for size in shape]
                kind = _field(1, FLOAT) + _field(2, b"".join(sizes))
                told += _field(number, _field(1, name) + _field(2, _field(1, kind)))
        graph = bytes(self.body) + _field(2, "wan") + told
        return _field(1, 9) + _field(8, _field(1, "") + _field(2, 20)) + _field(7, graph)


def wan_graph(model: WanTransformer3DModel, frames: int, height: int, width: int, words: int) -> bytes:
    """One forward of a Wan transformer as an ONNX file; a test holds it equal to the class.

    Inputs: entry (B, channels, F, H, W), latents and condition; prompt (1, words, 64); sigma (1,); for every block
    `keep` (blocks,), 1, or 0 for a block that is left out, and `merge` (blocks,), 0, or 1 for a block after which all
    B rows get their mean. Output: the velocity (B, C, F, H, W). Shapes are latent sizes.
    """
    g, weights, config = Graph(), model.state_dict(), model.config
    (pt, ph, pw), heads, size = config.patch_size, config.num_attention_heads, config.attention_head_dim
    dim = heads * size

    def number(value: float) -> str:
        return g.constant(np.array(value, np.float32))

    def shape(*sizes: int) -> str:
        return g.constant(np.array(sizes, np.int64))

    def weight(name: str, transposed: bool = False) -> str:
        value = weights[name].half().numpy()
        return g.node("Cast", g.constant(value.T if transposed else value), to=FLOAT)

    def linear(x: str, name: str) -> str:
        return g.node("Add", g.node("MatMul", x, weight(f"{name}.weight", transposed=True)), weight(f"{name}.bias"))

    def silu(x: str) -> str:
        return g.node("Mul", x, g.node("Sigmoid", x))

    def gelu(x: str) -> str:
        return g.node("Gelu", x, approximate="tanh")

    def layer_norm(x: str, *affine: str) -> str:
        scale = affine or (g.constant(np.ones(dim, np.float32)),)
        return g.node("LayerNormalization", x, *scale, axis=-1, epsilon=config.eps)

    def rms_norm(x: str, name: str) -> str:
        square = g.node("ReduceMean", g.node("Mul", x, x), shape(-1), keepdims=1)
        root = g.node("Sqrt", g.node("Add", square, number(config.eps)))
        return g.node("Mul", g.node("Div", x, root), weight(f"{name}.weight"))

    def modulated(x: str, shift: str, scale: str) -> str:
        return g.node("Add", g.node("Mul", layer_norm(x), g.node("Add", scale, number(1))), shift)

    def to_heads(x: str) -> str:
        return g.node("Transpose", g.node("Reshape", x, shape(0, 0, heads, size)), perm=[0, 2, 1, 3])

    cos, sin = (table[0, :, 0].float().numpy() for table in model.rope(torch.empty(1, 1, frames, height, width)))
    turn = np.zeros((size, size), np.float32)  # x @ turn: of every pair (a, b), (-b, a)
    turn[range(1, size, 2), range(0, size, 2)], turn[range(0, size, 2), range(1, size, 2)] = -1, 1
    rope = g.constant(cos), g.constant(sin), g.constant(turn)

    def placed(x: str) -> str:
        return g.node("Add", g.node("Mul", x, rope[0]), g.node("Mul", g.node("MatMul", x, rope[2]), rope[1]))

    def attention(x: str, seen: str, name: str, place) -> str:
        query = place(to_heads(rms_norm(linear(x, f"{name}.to_q"), f"{name}.norm_q")))
        key = place(to_heads(rms_norm(linear(seen, f"{name}.to_k"), f"{name}.norm_k")))
        fit = g.node("MatMul", query, g.node("Transpose", key, perm=[0, 1, 3, 2]))
        share = g.node("Softmax", g.node("Mul", fit, number(size**-0.5)), axis=-1)
        found = g.node("MatMul", share, to_heads(linear(seen, f"{name}.to_v")))
        found = g.node("Reshape", g.node("Transpose", found, perm=[0, 2, 1, 3]), shape(0, 0, dim))
        return linear(found, f"{name}.to_out.0")

    def toward(x: str, other: str, way: str, block: int) -> str:
        """x + way[block] (other - x)"""
        much = g.node("Gather", way, shape(block))
        return g.node("Add", x, g.node("Mul", g.node("Sub", other, x), much))

    half = config.freq_dim // 2
    waves = np.exp(-np.log(10_000) * np.arange(half) / half).astype(np.float32) * 1000
    angle = g.node("Mul", "sigma", g.constant(waves))
    time = g.node("Concat", g.node("Cos", angle), g.node("Sin", angle), axis=0)
    time = g.node("Reshape", time, shape(1, config.freq_dim))
    for layer in ("linear_1", "linear_2"):
        time = linear(silu(time) if layer == "linear_2" else time, f"condition_embedder.time_embedder.{layer}")
    modulation = g.node("Reshape", linear(silu(time), "condition_embedder.time_proj"), shape(1, 6, dim))
    text = gelu(linear("prompt", "condition_embedder.text_embedder.linear_1"))
    text = linear(text, "condition_embedder.text_embedder.linear_2")

    x = g.node("Conv", "entry", weight("patch_embedding.weight"), weight("patch_embedding.bias"), strides=[pt, ph, pw])
    x = g.node("Transpose", g.node("Reshape", x, shape(0, 0, -1)), perm=[0, 2, 1])
    for i in range(config.num_layers):
        block, before = f"blocks.{i}", x
        parts = g.node("Add", weight(f"{block}.scale_shift_table"), modulation)
        shift, scale, gate, shift_2, scale_2, gate_2 = g.node("Split", parts, outputs=6, axis=1, num_outputs=6)
        y = modulated(x, shift, scale)
        x = g.node("Add", x, g.node("Mul", attention(y, y, f"{block}.attn1", placed), gate))
        y = layer_norm(x, weight(f"{block}.norm2.weight"), weight(f"{block}.norm2.bias"))
        x = g.node("Add", x, attention(y, text, f"{block}.attn2", lambda value: value))
        y = linear(gelu(linear(modulated(x, shift_2, scale_2), f"{block}.ffn.net.0.proj")), f"{block}.ffn.net.2")
        x = toward(before, g.node("Add", x, g.node("Mul", y, gate_2)), "keep", i)
        x = toward(x, g.node("ReduceMean", x, shape(0), keepdims=1), "merge", i)
    parts = g.node("Add", weight("scale_shift_table"), g.node("Reshape", time, shape(1, 1, dim)))
    shift, scale = g.node("Split", parts, outputs=2, axis=1, num_outputs=2)
    x = linear(modulated(x, shift, scale), "proj_out")
    grid, channels = (frames // pt, height // ph, width // pw), config.out_channels
    x = g.node("Reshape", x, shape(-1, *grid, pt, ph, pw, channels))
    x = g.node("Transpose", x, perm=[0, 7, 1, 4, 2, 5, 3, 6])
    velocity = g.node("Reshape", x, shape(-1, channels, frames, height, width))
    inputs = {
        "entry": ("rows", weights["patch_embedding.weight"].shape[1], frames, height, width),
        "prompt": (1, words, config.text_dim),
        "sigma": (1,),
        "keep": (config.num_layers,),
        "merge": (config.num_layers,),
    }
    return g.file(inputs, {velocity: ("rows", channels, frames, height, width)})


def floats(values: np.ndarray | torch.Tensor) -> str:
    """float32, base64."""
    return base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes()).decode()


def board(ids: np.ndarray) -> str:
    """Tile numbers (..., 10, 10) as one letter or digit each."""
    return "".join(np.base_repr(i, 36) for i in np.ravel(ids))


def codec_facts(codec: PatchCodec, still: torch.Tensor) -> dict:
    """What encodes a board and decodes a film. still: latents (C,) of every tile that stays as it is, (tiles, C)."""
    std = torch.tensor(codec.config.latents_std)[:, None]
    grey = condition(codec, torch.zeros(1, len(std), 2, 1, 1))[0, 4:, 1, 0, 0]
    return {
        "still": floats(still),
        "grey": floats(grey),
        "basis": floats(codec.basis * std),
        "mean": floats(codec.mean),
    }


def model_facts(transformer: WanTransformer3DModel, codec: PatchCodec, still: torch.Tensor, frames: int, words: int,
                shift: float) -> dict:  # fmt: skip
    """Graph and codec of one model, JSON-ready."""
    channels = transformer.config.out_channels
    memory = transformer.patch_embedding.in_channels > transformer.config.in_channels
    graph = base64.b64encode(wan_graph(transformer, frames, world.CELLS, world.CELLS, words)).decode()
    facts = {"channels": channels, "frames": frames, "words": words, "shift": shift, "memory": memory, "graph": graph}
    return facts | {"blocks": transformer.config.num_layers, "codec": codec_facts(codec, still)}


def mini_puzzle(sample: cos.tasks.Sample) -> dict:
    return {
        "title": f"puzzle {sample.seed}",
        "prompt": sample.prompt,
        "films": {name: board(film) for name, film in sample.films.items()},
        "options": {name: board(last) for name, last in sample.options.items()},
        "blank": board(sample.blank),
    }


def ladder_puzzles() -> Iterable[dict]:
    """Ladders of the validation split. An option is its end alone on the given board: see `serial.sampling.shares`."""
    for length in LENGTHS:
        puzzles = serial.take("ladder", "validation", length, EACH)[0]
        shown = [0, 1, 1, 1, 1, 2, 2, 2, 2]  # latent frame of each pixel frame, see `serial.draw`
        for i, film in enumerate(puzzles.film("trail")):
            options, names = {}, [f"line {k + 1}" for k in range(len(puzzles.options[i]))]
            for name, (row, column) in zip(names, puzzles.options[i], strict=True):
                last = puzzles.first[i].copy()
                last[row, column] = serial.END
                options[name] = board(last)
            yield {
                "title": f"{length} rungs, puzzle {i}",
                "prompt": "",
                "films": {names[puzzles.answer[i]]: board(film[shown])},
                "options": options,
                "blank": board(puzzles.first[i]),
            }


def worlds(prompts: dict[str, str]) -> dict:
    """The two worlds: tiles, models and puzzles by task; adds every prompt's embedding to `prompts`."""
    samples = {name: [cos.tasks.sample(name, seed) for seed in SEEDS] for name in cos.tasks.NAMES}
    asked = dict.fromkeys(s.prompt for row in samples.values() for one in row for s in (one, one.twin()))
    embeds = text.embed(text.build_tokenizer(), text.build_text_encoder(), list(asked))
    prompts |= {prompt: floats(row) for prompt, row in zip(asked, embeds, strict=True)} | {
        "": floats(serial_model.embed())
    }
    colours = np.broadcast_to(serial.COLOURS[:, None, None], (len(serial.COLOURS), world.CELL, world.CELL, 3))
    return {
        "mini": {
            "tiles": floats(world.TILES),
            "names": world.TILE,
            "models": MINI,
            "motion": 0.8,
            "tasks": {name: [mini_puzzle(one) for one in row] for name, row in samples.items()},
        },
        "serial": {
            "tiles": floats(colours),
            "names": {},
            "models": SERIAL,
            "motion": 1.0,
            "tasks": {"ladder": list(ladder_puzzles())},
        },
    }


def models() -> Iterable[tuple[str, dict]]:
    """Name and facts of every model, one after the other."""
    tiles = torch.arange(len(world.TILES), dtype=torch.uint8).view(-1, 1, 1, 1)
    for name in MINI:
        pipe = cos.load(name)
        still = pipe.vae.encode_ids(tiles.expand(-1, world.FRAMES, 1, 1))[:, :, 1, 0, 0]
        frames = 1 + (world.FRAMES - 1) // pipe.vae.config.scale_factor_temporal
        yield name, model_facts(pipe.transformer, pipe.vae, still, frames, text.MAX_LENGTH, SHIFT)
    for name in SERIAL:
        _, codec, transformer = train.load_run(DATA / "serial" / "models" / name)
        boards = np.arange(len(serial.COLOURS), dtype=np.uint8)[:, None, None, None]
        still = serial_model.encode(codec, boards)[:, :, 0, 0, 0]
        yield name, model_facts(transformer, codec, still, 3, 1, serial_model.SHIFT)


def make(folder: pathlib.Path) -> float:
    """Fill `folder`; returns the seconds it took."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)

    def script(name: str, value: dict) -> None:
        content = json.dumps(value, separators=(",", ":"), allow_nan=False)
        text = f'(window.cosData ??= {{}})["{name}"] = {content};\n'
        (folder / f"{name}.js").write_text(text, encoding="utf-8")

    prompts: dict[str, str] = {}
    script("live", {"worlds": worlds(prompts), "prompts": prompts})
    for name, facts in models():
        script(name, facts)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    print(f"{folder}: {make(folder):.1f} s")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
