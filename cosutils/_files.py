"""Private: the one way to write a file, to hash one, and to read one that people edit."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

__all__ = [
    "alive", "new_folder", "read_json", "read_text", "read_yaml", "remove_leftovers", "restore_folder", "sha256",
    "writable_folder", "write", "write_all", "write_json", "write_text",
]  # fmt: skip


def sha256(path: Path) -> str:
    """The digest of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, fill: Callable[[Path], Any]) -> str:
    """Let `fill` write a temporary file beside `path`, move it there when it is whole, and return its sha256.

    The folder is made where it is missing. Raises OSError, with nothing changed at `path`, where that fails.
    """
    digest = ""

    def filled(part: Path) -> None:
        nonlocal digest
        fill(part)
        digest = sha256(part)

    write_all({path: filled})
    return digest


def write_all(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """`write` of several files that belong together: none takes its place before all are whole."""
    parts = {
        path: path.with_name(f".{path.stem}.{os.uname().nodename}-{os.getpid()}.tmp{path.suffix}") for path in files
    }
    try:
        for path, fill in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError("a folder is in its place")
            fill(parts[path])
        for path in files:
            os.replace(parts[path], path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {path}, nothing was changed there: {error}") from error
    finally:
        for part in parts.values():
            with suppress(OSError):  # where the folder cannot be made there is nothing to remove
                part.unlink()


def alive(pid: int) -> bool:
    """Whether a process of this machine has the number `pid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `write` in `folder` whose process was one of this machine and is no more."""
    ours = re.compile(rf"\..+\.{re.escape(os.uname().nodename)}-(\d{{1,9}})\.tmp(\.\w+)?")
    for name in os.listdir(folder):
        if (found := ours.fullmatch(name)) and not alive(int(found[1])):
            (folder / name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> str:
    """`write` of a text in UTF-8."""
    return write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """`write` of JSON; ValueError for a number that is not finite, TypeError for a value that JSON cannot hold."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


class _Strict(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise ValueError(f"line {line}: the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """A text as editors save it: in UTF-8, or in UTF-16 with its mark, every line ended by "\\n".

    ValueError that names the file where it is neither.
    """
    with path.open("rb") as file:
        marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = path.read_text(encoding="utf-16" if marked else "utf-8-sig")  # some editors mark UTF-8, too
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise ValueError(f"{path} is not text in UTF-8: it holds zero bytes")
    return text


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ValueError that names file and line where it is no YAML or has a key twice."""
    try:
        return yaml.load(read_text(path), _Strict)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{path}: {place}{getattr(error, 'problem', None) or error}") from error
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds; ValueError that names file and line where it is no JSON or has a key twice."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's `log.jsonl`; FileNotFoundError, or ValueError with file and line for one that is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"the run has no {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["seen"], rows[-1]["loss"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged, line {number}: {error!r}") from error
    return rows


def writable_folder(folder: Path | str) -> Path:
    """The folder, made where it is missing, with `~` expanded; OSError that names it where nothing can be written."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(f"cannot write into the folder {path}: {error.strerror or error}") from error
    return path


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `folder` when the block ends well, and is removed when it does not.

    Between two renamings there is a moment without `folder`: after a crash in it, `restore_folder` brings back what
    was there.
    """
    part = folder.with_name(f".{folder.name}.part")
    restore_folder(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            os.replace(folder, _aside(folder))
        os.replace(part, folder)
    finally:
        restore_folder(folder)
        shutil.rmtree(part, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Undo a `new_folder` that was cut off, or take away what it left beside the new one."""
    if _aside(folder).exists() and not folder.exists():
        with suppress(FileNotFoundError):  # another process of the same run did it
            os.replace(_aside(folder), folder)
    shutil.rmtree(_aside(folder), ignore_errors=True)
