"""Kernels of notebooks that are children of one process which has imported the libraries: each starts in no time.

`warm()` starts that process and makes its kernels those of the name "python3" for all Jupyter clients of this one.

    python -P tests/kernels.py serve NUMBER           the process: forks a kernel for every client of an open socket
    python -P tests/kernels.py start SOCKET -f FILE   what Jupyter starts, and what lives as long as its kernel

The process ends with the one that started it, and a kernel with what Jupyter started.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread


def warm() -> Callable[[], None]:
    """Start the process and wait until it has imported all; return what ends it."""
    folder = tempfile.TemporaryDirectory()
    spec = Path(folder.name) / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    program = [sys.executable, "-P", __file__]
    address = f"{folder.name}/socket"
    argv = [*program, "start", address, "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder.name, before)))
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as a kernel sets it, before the import
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        number = listener.fileno()
        process = subprocess.Popen(
            [*program, "serve", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[number],
            env=inline | os.environ,
        )
    process.stdout.readline()  # it has imported all

    def end() -> None:
        with process:
            process.terminate()
        os.environ.pop("JUPYTER_PATH") if before is None else os.environ.update(JUPYTER_PATH=before)
        folder.cleanup()

    return end


def serve(number: str) -> None:
    with socket.socket(fileno=int(number)) as listener:
        import scipy.optimize  # noqa: F401
        from ipykernel import kernelapp

        import cosutils.measures.chain
        import cosutils.report.figures  # noqa: F401

        gc.freeze()  # what is there now is no kernel's to collect
        print(flush=True)
        signal.signal(signal.SIGCHLD, lambda *_: reap())
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                kernel(client, kernelapp.launch_new_instance)
            client.close()


def kernel(client: socket.socket, launch: Callable[[], None]) -> None:
    """Be a kernel as the client asks for, and end with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    given = json.loads(client.makefile().readline())
    client.sendall(f"{os.getpid()}\n".encode())
    Thread(target=lambda: client.recv(1) or os._exit(1), daemon=True).start()
    os.environ.clear()
    os.environ.update(given["environment"])
    os.chdir(given["folder"])
    sys.argv = ["ipykernel_launcher.py", *given["arguments"]]
    try:
        launch()
    finally:
        os._exit(0)


def reap() -> None:
    """Wait for the kernels that have ended, so that their time counts as this process's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start(address: str, *arguments: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        given = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall((json.dumps(given) + "\n").encode())
        answer = server.makefile()
        number = int(answer.readline())
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda sign, frame: os.kill(number, sign))
        with contextlib.suppress(ConnectionResetError):
            answer.readline()  # the kernel says no more: it has ended


if __name__ == "__main__":
    {"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:])
