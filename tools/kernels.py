"""Jupyter kernels forked from one process that has imported the libraries: an execution starts without their six seconds.

    with kernels.forked():         # for this process and its children, "python3" is such a kernel
        papermill.execute_notebook(...)

Jupyter starts a kernel by a command, here `python tools/kernels.py start FOLDER -f CONNECTION`. It asks the server of FOLDER, a
process that the first one starts, to fork, hands over its own environment, folder and outputs, and ends with the fork. The
fork is an ordinary kernel with nothing in its namespace; it ends with the command too, and the server with its owner.
"""
from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STARTUP = 120  # seconds that the server may take for its imports


@contextlib.contextmanager
def forked() -> Iterator[Path]:
    """Make "python3" such a kernel, by the environment variable JUPYTER_PATH; yields the folder of the server."""
    folder, before = Path(tempfile.mkdtemp(prefix="kernels-")), os.environ.get("JUPYTER_PATH")
    spec = dict(argv=[sys.executable, str(Path(__file__).resolve()), "start", str(folder), "-f", "{connection_file}"],
                display_name="Python 3", language="python")  # fmt: skip
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "owner").write_text(str(os.getpid()), encoding="utf-8")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield folder
    finally:
        os.environ.pop("JUPYTER_PATH")
        if before is not None:
            os.environ["JUPYTER_PATH"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _connect(folder: Path) -> socket.socket:
    """A connection to the server of `folder`, which is started where there is none."""
    connection = socket.socket(socket.AF_UNIX)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "socket").exists():
            log = (folder / "log").open("w")
            command = [sys.executable, __file__, "serve", str(folder)]
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            end = time.monotonic() + STARTUP
            while not (folder / "socket").exists():
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"no kernel could be forked: {(folder / 'log').read_text(encoding='utf-8')}")
                time.sleep(0.05)
    connection.connect(str(folder / "socket"))
    return connection


def start(folder: Path, *arguments: str) -> None:
    """Have a kernel forked that gets `arguments`, and wait until it ends."""
    connection = _connect(folder)
    order = dict(arguments=arguments, cwd=os.getcwd(), env=dict(os.environ))
    socket.send_fds(connection, [json.dumps(order).encode() + b"\n"], [1, 2])
    signal.signal(signal.SIGINT, lambda *_: connection.send(b"i"))
    while connection.recv(1):
        pass


def serve(folder: Path) -> None:
    """Import what the notebooks import, then fork a kernel for every order until the owner of `folder` has ended."""
    import matplotlib.pyplot  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    from ipykernel.kernelapp import IPKernelApp  # noqa: F401

    import cosutils.figures
    import cosutils.mini.tasks  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # what is there now is no kernel's to collect
    owner = int((folder / "owner").read_text(encoding="utf-8"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "bound"))
    listener.listen(64)
    listener.settimeout(1)
    os.rename(folder / "bound", folder / "socket")  # seen only when it can be connected to
    while _alive(owner) and folder.exists():
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _kernel(connection)
            connection.close()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _follow(connection: socket.socket) -> None:
    """Interrupt this process when the command at the other end is, and end it with the command."""
    while connection.recv(1):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(0)


def _kernel(connection: socket.socket) -> None:
    """Become the kernel that was ordered over `connection`, which stays open as long as it lives."""
    from ipykernel.kernelapp import IPKernelApp

    connection.settimeout(None)
    text, outputs, *_ = socket.recv_fds(connection, 2**16, 2)
    while not text.endswith(b"\n"):
        text += connection.recv(2**16)
    order = json.loads(text)
    for target, output in enumerate(outputs, 1):
        os.dup2(output, target)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.argv = ["ipykernel_launcher", *order["arguments"]]
    sys.path[0] = ""  # the notebook's folder, not that of this file
    threading.Thread(target=_follow, args=[connection], daemon=True).start()
    try:
        IPKernelApp.launch_instance()
    finally:
        os._exit(0)


if __name__ == "__main__":
    what, place, *rest = sys.argv[1:]
    start(Path(place), *rest) if what == "start" else serve(Path(place))
