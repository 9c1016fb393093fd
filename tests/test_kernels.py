"""Forked kernels are ordinary kernels: empty, in their own folder and environment, interrupted and ended from outside."""

from __future__ import annotations

import os
import time

import pytest
from jupyter_client.manager import start_new_kernel


@pytest.fixture
def start(tmp_path):
    """Start a kernel in `tmp_path` with given variables; all are ended with the test."""
    started = []

    def begin(**variables):
        manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=os.environ | variables)
        started.append((manager, client))

        def execute(source, **options):
            texts = []
            reply = client.execute_interactive(
                source, output_hook=lambda message: texts.append(message["content"].get("text", "")), timeout=60, **options
            )
            return reply["content"].get("ename", "ok"), "".join(texts).strip()

        return manager, client, execute

    yield begin
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def ended(process: int) -> bool:
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_kernels_are_forked_empty_and_apart(start, tmp_path):
    _, _, first = start(WHICH="1")
    _, _, second = start(WHICH="2")
    look = "import os, sys; print(os.getppid(), os.getcwd(), os.environ['WHICH'], 'torch' in sys.modules, 'kept' in dir())"
    assert first("kept = 1") == ("ok", "")
    (_, one), (_, other) = first(look), second(look)
    parent = one.split()[0]
    assert one == f"{parent} {tmp_path} 1 True True" and other == f"{parent} {tmp_path} 2 True False"
    assert first("1 / 0")[0] == "ZeroDivisionError"


def test_a_kernel_is_interrupted_and_ends_with_its_command(start):
    manager, client, execute = start()
    process = int(execute("import os; print(os.getpid())")[1])
    message = client.execute("import time; time.sleep(60)")
    time.sleep(0.5)
    manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=20))["parent_header"]["msg_id"] != message:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    manager.shutdown_kernel(now=True)
    assert ended(process)


def test_a_kernel_ends_when_asked(start):
    manager, _, execute = start()
    process = int(execute("import os; print(os.getpid())")[1])
    manager.shutdown_kernel()
    assert ended(process)
