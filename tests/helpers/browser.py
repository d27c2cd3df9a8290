"""Headless Chromium, driven over its DevTools protocol, to check what a page renders, logs and requests."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


class Page:
    """A browser tab.  `errors`: console errors and exceptions; `asked`: the URL of every request."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0
        self.errors: list[str] = []
        self.asked: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            self._note(message)
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        payload = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(payload["request"]["url"])
            case "Runtime.exceptionThrown":
                details = payload["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if payload["type"] in ("error", "warning", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in payload["args"]))
            case "Log.entryAdded" if payload["entry"]["level"] in ("error", "warning"):
                self.errors.append(payload["entry"]["text"])

    def open(self, file: Path, width: int = 1280, height: int = 900) -> None:
        self.visit(file.resolve().as_uri(), width, height)

    def visit(self, url: str, width: int = 1280, height: int = 900) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 20
        while self.value("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.05)
        self.settle()

    def key(self, letter: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=letter, text=letter if kind == "keyDown" else "")
        self.settle()

    def settle(self) -> None:
        """Wait for two animation frames, so that pending updates are drawn."""
        self.value("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))")

    def wait_for(self, selector: str) -> None:
        """Wait until an element matches, up to 20 s: a busy machine may be slow."""
        deadline = time.monotonic() + 20
        while not self.value(f"!!document.querySelector({json.dumps(selector)})") and time.monotonic() < deadline:
            time.sleep(0.05)

    def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")
        self.settle()

    def picture(self, path: Path) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def whole_picture(self, path: Path, width: int) -> None:
        self.resize(width)
        self.settle()
        self.resize(width, int(self.value("document.documentElement.scrollHeight")))
        self.settle()
        self.picture(path)

    def pdf(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))


@contextmanager
def browser(language: str = "en-US", dark: bool = False) -> Iterator[Page]:
    """Start a new browser that reaches this machine only; it is closed at the end."""
    from websockets.sync.client import connect

    assert CHROMIUM
    home = Path(tempfile.mkdtemp(prefix="ablatio-browser-"))
    arguments = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--remote-debugging-port=0", f"--user-data-dir={home}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--disable-background-networking", "--disable-component-update", f"--lang={language}",
        f"--accept-lang={language}", "about:blank",
    ]  # fmt: skip
    environment = os.environ | {"LANGUAGE": language, "HOME": str(home)}
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        with connect(_address(home, process), max_size=None) as socket:
            root = Page(socket)
            target = root.call("Target.createTarget", url="about:blank")["targetId"]
        port = (home / "DevToolsActivePort").read_text().split()[0]
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as socket:
            page = Page(socket)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            page.call("Emulation.setEmulatedMedia", features=scheme)
            yield page
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _address(home: Path, process: "subprocess.Popen[bytes]") -> str:
    """WebSocket address of the browser, from the file that it writes once it listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            port, path = (home / "DevToolsActivePort").read_text().split()
            return f"ws://127.0.0.1:{port}{path}"
        except (FileNotFoundError, ValueError):
            time.sleep(0.05)
    raise RuntimeError("the browser ended, or did not write DevToolsActivePort within 30 s")
