"""Turn a training run into a folder that ships: weights, learning curve, model card, checksums.

    python -m cosutils.training.release runs/cos-mini data/cos-mini

`cosutils.load` refuses a folder whose files do not match its SHA256SUMS.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from diffusers import WanImageToVideoPipeline

from .._files import new_folder, read_log, sha256, writable_folder
from ..mini import split, tasks, world
from ..mini.codec import PatchCodec
from ..pipelines.loading import SUMS, load_own
from .train import VALIDATED, read_state

__all__ = ["codec_error", "learning_curve", "release"]

CARD = """# {name}

A video diffusion transformer small enough for a laptop: diffusers' `WanTransformer3DModel` with {parameters:.1f}
million parameters ({layers} blocks of width {width}){memory},
run by the stock `WanImageToVideoPipeline`, for small puzzles
like the examples of "Demystifying Video Reasoning" (arXiv 2603.16870). Part of the project, under its licence.

| file | what |
|---|---|
| `transformer/` | the trained weights (moving average), float16 |
| `vae/` | the codec: orthonormal on patches of 4 frames x 8 x 8 px, {z_dim} components |
| `text_encoder/`, `tokenizer/` | frozen random one-layer UMT5 encoder, one token per word |
| `training.jsonl`, `learning-curve.png` | loss and validation scores along the training |
| `SHA256SUMS` | of every file that is loaded |

Made by `python -m cosutils.training.train` and `python -m cosutils.training.release`: {seen:,} films seen, all made
from training seeds on the fly. The curve shows validation seeds; the scores in the README come from report seeds, used
for nothing else. The arguments of the training, as its checkpoint holds them:

{arguments}

Codec error on {films} validation films: root mean square {rms:.4f}, largest {largest:.2f} (pixels in [0, 1]); tiles
misread after a round trip: {misread:.4%}.
"""


def codec_error(codec: PatchCodec, films: int = 20) -> dict[str, float]:
    """Round-trip error of the codec on validation films of every task: rms, largest, share of tiles misread."""
    ids = np.stack([tasks.sample(name, split.VALIDATION.start + k).ids for name in tasks.NAMES for k in range(films)])
    video = torch.from_numpy(world.draw(ids))
    with torch.no_grad():
        latents = codec.encode(video.permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()
        back = ((codec.decode(latents).sample + 1) / 2).permute(0, 2, 3, 4, 1)
    error = (back - video).abs()
    misread = float((world.read(back.clamp(0, 1).numpy()) != ids).mean())
    return dict(films=len(ids), rms=float(error.square().mean().sqrt()), largest=float(error.max()), misread=misread)


def learning_curve(log: list[dict], path: Path) -> None:
    """Solve rate on validation puzzles of every task against films seen; solid: full chain, dashed: one step."""
    many = next(key for key in log[0] if key.endswith("_steps"))
    names = list(log[-1][many])
    lines = -(-len(names) // 5)
    fig, axes = plt.subplots(
        lines, 5, figsize=(12, 2.3 * lines), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    colours = sns.color_palette("colorblind")
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, name in zip(axes.flat, names, strict=False):
        rows = [row for row in log if name in row[many]]
        seen = [row["seen"] / 1000 for row in rows]
        ax.plot(seen, [row[many][name][1] for row in rows], color=colours[0], label=many.replace("_", " "))
        ax.plot(seen, [row["one_step"][name][1] for row in rows], "--", color=colours[1], label="one step")
        ax.set_title(name)
        ax.set_ylim(0, 1)
    axes[0, 0].legend()
    fig.supxlabel("films seen (thousands)")
    fig.supylabel(f"solved ({VALIDATED} validation puzzles)")
    fig.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(fig)


def _table(arguments: dict[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in arguments.items() if value is not None]
    return "\n".join(["| argument | value |", "|---|---|", *rows])


def release(run: Path, folder: Path) -> None:
    """Write `folder` from the training run; it appears when it is complete.

    FileNotFoundError for a run without a model, checkpoint or log, ValueError for one of these that is damaged.
    """
    run, folder = Path(run).expanduser(), Path(folder).expanduser()
    for name in ("model/model_index.json", "checkpoint.pt"):
        if not (run / name).is_file():
            command = f"python -m cosutils.training.train --out {run}"
            raise FileNotFoundError(f"no trained model in {run}, it has no {name}: run `{command}` first")
    if folder.resolve() in (run.resolve(), *run.resolve().parents, (run / "model").resolve()):
        raise ValueError(f"the released model cannot take the place of its run, got {folder} for {run}")
    log, arguments = read_log(run / "log.jsonl"), read_state(run / "checkpoint.pt")["arguments"]
    if not log:
        raise ValueError(f"{run / 'log.jsonl'} is empty")
    parts = load_own(run / "model", {"default": torch.float32})
    pipe, codec = WanImageToVideoPipeline.from_pretrained(run / "model", **parts, local_files_only=True), parts["vae"]
    pipe.transformer.half()
    if not all(weight.isfinite().all() for weight in pipe.transformer.parameters()):
        raise ValueError(f"the weights in {run} are not finite in float16, nothing was released")
    writable_folder(folder.parent)
    with new_folder(folder) as part:
        pipe.save_pretrained(part)
        for path in part.rglob("*.json"):  # no trace of the folder that the run was in
            stored = json.loads(path.read_text(encoding="utf-8"))
            stored.pop("_name_or_path", None)
            path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in part.rglob("*.safetensors"):
            path.chmod(0o644)
        (part / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
        learning_curve(log, part / "learning-curve.png")
        config = pipe.transformer.config
        memory = " that sees its last estimate (self-conditioning)" if arguments.get("memory") else ""
        facts = dict(name=folder.name, seen=log[-1]["seen"], z_dim=codec.config.z_dim, layers=config.num_layers,
                     parameters=pipe.transformer.num_parameters() / 1e6, memory=memory, arguments=_table(arguments),
                     width=config.num_attention_heads * config.attention_head_dim)  # fmt: skip
        (part / "README.md").write_text(CARD.format(**facts, **codec_error(codec)), encoding="utf-8")
        files = sorted(p for p in part.rglob("*") if p.suffix in (".json", ".safetensors"))
        sums = "".join(f"{sha256(p)}  {p.relative_to(part).as_posix()}\n" for p in files)
        (part / SUMS).write_text(sums, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --out folder of a training run")
    parser.add_argument("folder", type=Path, help="where the released model goes, such as data/cos-mini")
    args = parser.parse_args()
    try:
        release(args.run, args.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
