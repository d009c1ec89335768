"""A headless Chromium for tests of pages: its debugging protocol over a pipe, nothing installed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # WebGL without a GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
)


class Page:
    """A tab: what it logs and fetches is kept, from the first moment on."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.rest, self.number = write, read, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive(120)
            if found.get("id") == self.number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            got = os.read(self.read, 2**20)
            assert got, "Chromium has ended"
            self.rest += got
        one, self.rest = self.rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(one)
        return message

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        scale = 2 if mobile else 1
        sizes = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        if mobile:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)

    def theme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready !== undefined")

    def run(self, script: str) -> Any:
        """Return what an expression says, as a plain value; an exception in it fails the test."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        result = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}\n{self.complaints()}"
            time.sleep(0.05)

    def center(self, selector: str) -> tuple[float, float]:
        """Scroll to an element and return where its middle is."""
        node = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{node}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"({node}.getBoundingClientRect())"
        )
        return x, y

    def drag(self, x: float, y: float, dx: float = 0, dy: float = 0) -> None:
        """Press the mouse, move it, and let go; without a way, click."""
        mouse = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        for share in (0.5, 1) if dx or dy else ():
            at = {"x": x + share * dx, "y": y + share * dy}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", **at, **mouse, buttons=1)
        at = {"x": x + dx, "y": y + dy}
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at, **mouse)

    def picture(self, out: Path, *, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console says, and exceptions that nobody caught."""
        found = []
        for event in self.events:
            if event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                found.append(json.dumps(event["params"])[:600])
            if event.get("method") == "Log.entryAdded":
                found.append(json.dumps(event["params"]["entry"])[:600])
        return found

    def fetched(self) -> list[str]:
        """Addresses that the page asked for, its own among them."""
        asked = (e for e in self.events if e.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in asked]


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Start Chromium with an empty profile in `folder`; it ends with the block."""
    assert PROGRAM is not None
    to_it, write = os.pipe()
    read, from_it = os.pipe()
    # The protocol wants descriptors 3 and 4.
    command = f'exec "$@" 3<&{to_it} 4>&{from_it}'
    profile = f"--user-data-dir={folder / 'profile'}"
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", PROGRAM, *FLAGS, profile, "about:blank"],
        pass_fds=(to_it, from_it),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_it)
    os.close(from_it)
    try:
        yield Page(write, read)
    finally:
        process.terminate()
        process.wait(30)
        os.close(write)
        os.close(read)
