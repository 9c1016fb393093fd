"""A page in Debian's Firefox, spoken to by its own WebDriver BiDi; no driver is needed beside it."""

from __future__ import annotations

import asyncio
import itertools
import json
import pathlib
import re
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
_LARGEST = 2**28  # bytes of one answer


class Tab:
    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket, self.numbers, self.context = socket, itertools.count(), ""

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        await self.socket.write_message(json.dumps(dict(id=number, method=method, params=params)))
        while (message := await self.socket.read_message()) is not None:
            answer = json.loads(message)
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return dict(answer["result"])
        raise ConnectionError(f"Firefox went away during {method}")

    async def call(self, function: str, argument: Any) -> Any:
        """What the page's async function gives for one argument; both are what JSON holds."""
        source = f"async (given) => JSON.stringify(await ({function})(JSON.parse(given)))"
        target, given = dict(context=self.context), [dict(type="string", value=json.dumps(argument))]
        found = await self.ask(
            "script.callFunction", functionDeclaration=source, arguments=given, target=target, awaitPromise=True
        )
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])


async def _calls(page: pathlib.Path, function: str, arguments: Sequence[Any], profile: pathlib.Path) -> list[Any]:
    command = [str(FIREFOX), "--headless", "--remote-debugging-port", "0", "--profile", str(profile), "about:blank"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async for line in process.stderr:
            if found := re.search(rb"WebDriver BiDi listening on (ws://\S+)", line):
                break
        else:
            raise ConnectionError("Firefox ended before it could be spoken to")
        address = found[1].decode() + "/session"
        socket = await websocket_connect(address, max_message_size=_LARGEST)
        tab = Tab(socket)
        await tab.ask("session.new", capabilities={})
        tab.context = (await tab.ask("browsingContext.getTree"))["contexts"][0]["context"]
        await tab.ask("browsingContext.navigate", context=tab.context, url=page.as_uri(), wait="complete")
        answers = [await tab.call(function, argument) for argument in arguments]
        socket.close()
        while await socket.read_message() is not None:  # until it is closed
            pass
        return answers
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()


def calls(page: pathlib.Path, function: str, arguments: Sequence[Any], profile: pathlib.Path) -> list[Any]:
    """Open a page of the built book in Firefox and return what its async `function` gives for each argument.

    profile: an empty folder. ConnectionError where Firefox ends before it answers.
    """
    with ThreadPoolExecutor(1) as aside:  # playwright, where it runs too, keeps a loop in this thread
        return aside.submit(lambda: asyncio.run(_calls(page, function, arguments, profile))).result()
