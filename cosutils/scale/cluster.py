"""Spread work over processes of this machine, or over a Ray cluster: two engines with one interface.

    for item, error in on_processes(work, items, workers=4, gpu=True):
        ...

`work` is a function of one item that can be imported by name (or a `functools.partial` of one); what it returns is
dropped, so it leaves its result in a file. gpu: whether each worker needs a GPU of its own. Items are yielded as they
end, in any order, with None or with the text of the last error; one that failed is tried `retries` more times, after
the others. A worker that dies is replaced.
"""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection, get_context
from typing import Any, cast

import torch

__all__ = ["ENGINES", "on_processes", "on_ray"]


def on_processes(
    work: Callable[[Any], Any], items: Iterable[Any], workers: int = 1, retries: int = 0, gpu: bool = False
) -> Iterator[tuple[Any, str | None]]:
    """Yield (item, error) from `workers` fresh processes with one thread each; worker k uses GPU k modulo their number.

    Where the calling process is killed, its workers end after the item they are at. Raises RuntimeError where GPUs are
    needed and this machine has none.
    """
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("device 'cuda' needs a GPU, and torch finds none on this machine")
    context = get_context("forkserver")  # the libraries are imported once, no worker inherits a used GPU
    context.set_forkserver_preload(["cosutils.scale.spec"])
    waiting, crew = deque((item, retries) for item in items), {}

    def give(line: connection.Connection, process: Any, number: int) -> None:
        crew[line] = process, number, *waiting.popleft()
        with suppress(OSError):  # died while idle: its line is at its end, which `wait` reports
            line.send(crew[line][2])

    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                number = min(set(range(workers)) - {number for _, number, *_ in crew.values()})
                line, far = context.Pipe()
                process = context.Process(target=_serve, args=(far, work, number if gpu else None), daemon=True)
                process.start()
                far.close()
                give(line, process, number)
            for line in cast(list[connection.Connection], connection.wait(list(crew))):
                process, number, item, left = crew.pop(line)
                try:
                    error, alive = line.recv(), True
                except (EOFError, OSError):
                    process.join()
                    error, alive = f"the worker process died (exit code {process.exitcode})", False
                if error is not None and left:
                    waiting.append((item, left - 1))
                if alive and waiting:
                    give(line, process, number)
                else:
                    line.close()
                    process.join()
                if error is None or not left:
                    yield item, error
    finally:
        for process, *_ in crew.values():
            process.terminate()


def on_ray(
    work: Callable[[Any], Any], items: Iterable[Any], workers: int = 1, retries: int = 0, gpu: bool = False
) -> Iterator[tuple[Any, str | None]]:
    """Yield (item, error) from at most `workers` Ray actors of one core and, where they need it, one GPU each.

    Fewer slots than workers do with fewer workers; a slot that becomes free later is used. Uses the cluster that
    RAY_ADDRESS names, else starts one on this machine. Files must lie where all nodes see them. Raises RuntimeError
    where Ray is not installed, or GPUs are needed and no node has one.
    """
    try:
        import ray
    except ImportError as missing:
        raise RuntimeError(
            "the engine 'ray' needs the extra [cluster]: pip install 'cosutils[cluster]', or use the engine 'local'"
        ) from missing
    if not ray.is_initialized():
        ray.init(logging_level="WARNING", configure_logging=False)
    if gpu and not ray.cluster_resources().get("GPU"):
        raise RuntimeError("device 'cuda' needs GPUs, and no node of this Ray cluster has one")
    hire = ray.remote(num_cpus=1, num_gpus=int(gpu))(_Actor).remote
    waiting = deque((item, retries) for item in items)
    # what an actor was asked for -> the actor, and the item with the tries left; None while it starts
    crew: dict[Any, tuple[Any, tuple[Any, int] | None]] = {}
    try:
        while waiting or any(task for _, task in crew.values()):
            starting = sum(task is None for _, task in crew.values())
            for _ in range(min(workers - len(crew), len(waiting) - starting)):
                actor = hire(work)
                crew[actor.begun.remote()] = actor, None
            (ended,), _ = ray.wait(list(crew))
            actor, task = crew.pop(ended)
            try:
                error, lives = ray.get(ended), True
            except ray.exceptions.RayError as failure:
                error, lives = f"the actor died ({str(failure).strip().splitlines()[0]})", False
                task = task or (waiting.popleft() if waiting else None)  # one that cannot start costs an item a try
            if task and error is not None and task[1]:
                waiting.append((task[0], task[1] - 1))
            if lives and waiting:
                following = waiting.popleft()
                crew[actor.attempt.remote(following[0])] = actor, following
            elif lives:
                ray.kill(actor)  # its slot is free for others, those that start among them
            if task and (error is None or not task[1]):
                yield task[0], error
    finally:
        for actor, _ in crew.values():
            ray.kill(actor)


ENGINES = {"local": on_processes, "ray": on_ray}


class _Actor:
    """A worker of `on_ray`: lives for many items, so what `work` caches (the model) is loaded once."""

    def __init__(self, work: Callable[[Any], Any]):
        torch.set_num_threads(1)
        self.work = work

    def begun(self) -> None:
        """Answers when the actor has found its place."""

    def attempt(self, item: Any) -> str | None:
        return _attempt(self.work, item)


def _serve(line: connection.Connection, work: Callable[[Any], Any], gpu: int | None) -> None:
    """The life of a worker process: items come in, errors (None where there is none) go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the caller, which ends its workers
    torch.set_num_threads(1)
    if gpu is not None:
        torch.cuda.set_device(gpu % torch.cuda.device_count())
    while True:
        try:
            line.send(_attempt(work, line.recv()))
        except (EOFError, OSError):  # nothing more to do, or nobody there any more
            return


def _attempt(work: Callable[[Any], Any], item: Any) -> str | None:
    """Do one item; whatever it raises comes back as text, its one-line form first."""
    try:
        work(item)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return None
