"""A real Chromium for the tests of the page, driven over the DevTools protocol through a pipe: no driver, no port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The browser on PATH, under any of its names."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One browser with one tab. `events` collects what the tab reported: console, exceptions, requests."""

    def __init__(self, chromium: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # Chromium reads its commands from descriptor 3 and answers on 4
        command = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                "bash",
                str(to_read),
                str(to_write),
                chromium,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self._width = 0
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result. Raises RuntimeError when the browser refuses it."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser went away")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(
        self, path: Path, width: int = 1280, height: int = 800, *, dark: bool = False, scripts: bool = True
    ) -> None:
        """Load a file at a width, until its figures are drawn; the screen is then as high as the page.

        Figures are drawn when they come near the screen: so are all of those in open settings.
        """
        self.events.clear()
        self._width = width
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.wait_for("document.readyState === 'complete'")
        if scripts:
            self.wait_for("!document.getElementById('payload') || document.documentElement.dataset.ready")
            self.wait_for_figures()

    def wait_for_figures(self) -> None:
        """Until every figure that is not in something closed has its SVG, on a screen as high as the page."""
        closed = "p.parentElement.closest('details:not([open])')"
        done = f"[...document.querySelectorAll('.chart')].every(p => {closed} || p.querySelector('.main-svg'))"
        end = time.monotonic() + 30
        while not self.value(done):  # the page grows while they are drawn
            if time.monotonic() > end:
                raise TimeoutError("not all figures are drawn")
            self._set_height(self.value("document.documentElement.scrollHeight"))
            time.sleep(0.1)
        self._set_height(self.value("document.documentElement.scrollHeight"))

    def _set_height(self, height: int) -> None:
        metrics = {"width": self._width, "height": height, "deviceScaleFactor": 1, "mobile": self._width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)

    def wait_for(self, condition: str, seconds: float = 30) -> None:
        """Until a JavaScript expression is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not self.value(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; promises are awaited. Raises RuntimeError when it throws."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:500])
        return result["result"].get("value")

    def errors(self) -> list[dict[str, Any]]:
        """Uncaught exceptions, console errors and refused loads since the page was opened."""
        self.value("0")  # collects what has arrived
        return [
            event
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))
        ]

    def requests(self) -> list[str]:
        """Every address asked for since the page was opened."""
        self.value("0")
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """A PNG of the whole page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """The page as it prints."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def close(self) -> None:
        """End the browser that this object started."""
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)
