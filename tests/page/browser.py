"""A headless Chromium, driven over its DevTools protocol: no driver, nothing but the browser.

    async with Browser() as browser:
        page = await browser.open(url, width=390)
        await page.until("document.title === 'tagstream'")

What a page says in its console, and every exception, is kept in ``page.complaints``.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

import aiohttp

DEADLINE_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0", "--mute-audio"),
)


def missing() -> str | None:
    """Why no browser can be started here; None if one can."""
    if any(shutil.which(name) for name in NAMES):
        return None
    return f"none of {', '.join(NAMES)} is installed; Debian has chromium"


class Browser:
    """One process, with a profile that is gone afterwards."""

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        )
        program = next(filter(None, map(shutil.which, NAMES)))
        self._process = await asyncio.create_subprocess_exec(
            *(program, *FLAGS, f"--user-data-dir={folder}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": folder},
        )
        self._stack.push_async_callback(self._end)
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        self._http = await asyncio.wait_for(self._address(), DEADLINE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _address(self) -> str:
        """Where it listens, as it says itself."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if b"DevTools listening on ws://" in line:
                host = line.decode().split("ws://")[1].split("/")[0]
                self._draining = asyncio.create_task(self._process.stderr.read())
                return f"http://{host}"
        raise RuntimeError("the browser ended before it listened")

    async def _end(self) -> None:
        self._process.kill()
        await self._process.wait()
        await asyncio.gather(self._draining, return_exceptions=True)

    async def open(
        self,
        url: str,
        *,
        width: int,
        height: int = 900,
        language: str = "en-US",
        dark: bool = False,
    ) -> "Page":
        """A new tab of this size, in this language."""
        async with self._session.put(f"{self._http}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        page = Page(socket)
        self._stack.push_async_callback(page.close)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await page.call(f"{domain}.enable")
        phone = width < 600
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        await page.call("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await page.call("Emulation.setEmulatedMedia", features=[scheme])
        await page.call("Page.navigate", url=url)
        await page.until("document.readyState === 'complete' && location.protocol !== 'about:'")
        return page


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())
        self._seen: dict[str, list[Any]] = defaultdict(list)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
                continue
            method, params = said["method"], said["params"]
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(str(details.get("exception", details).get("description")))
            elif method == "Runtime.consoleAPICalled":
                self.complaints.append(str([item.get("value") for item in params["args"]]))
            elif method == "Log.entryAdded":
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url')}")
            elif method == "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> Any:
        """A command of the protocol; its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(answer, DEADLINE_S)
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    async def js(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true; its value.

        Raises:
            AssertionError: it still is not after a time that only a failure takes.
        """
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while not (value := await self.js(expression)):
            assert asyncio.get_running_loop().time() < deadline, f"never true: {expression}"
            await asyncio.sleep(0.05)  # between two looks
        return value

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return str(await self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def press(self, key: str, *, shift: bool = False) -> None:
        """A key of the keyboard: ``Tab``, ``Enter``, ``Escape``."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        how = {"key": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        await self.call("Input.dispatchKeyEvent", type="keyDown", **how, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **how)

    async def type(self, text: str) -> None:
        """Text at the focus."""
        await self.call("Input.insertText", text=text)

    async def names(self) -> list[tuple[str, str]]:
        """What a screen reader has: role and name of every node that is not passed over."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    async def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as a PNG; ``whole``: all of it, not only what fits the window."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(result["data"]))
