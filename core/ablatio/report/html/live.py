"""Serve the report of a study on this machine while it runs: one page that refreshes itself from the folder.

The server listens on 127.0.0.1 alone and answers two paths: the page, and its data.  It reads no file by name, and
refuses requests for another host name (a page elsewhere could otherwise read it by DNS rebinding).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ablatio.errors import EnvironmentFault
from ablatio.report.html.page_data import content
from ablatio.report.html.render import page_text
from ablatio.report.watch import WatchedReport

HOST = "127.0.0.1"


class LiveReport(WatchedReport):
    """A report of folders that is kept up to date, as a page and its data."""

    def page(self) -> str:
        """HTML of the page, with the script that fetches new data."""
        return page_text(self.findings, script="live.js")

    def data(self) -> str:
        """Data of the page as JSON, with its version."""
        return json.dumps(
            {"version": self.seen, "trouble": self.trouble, "data": content(self.findings)}, allow_nan=False
        )


class LiveServer(ThreadingHTTPServer):
    """HTTP server of one live report on 127.0.0.1; port 0 takes a free one.

    Raises EnvironmentFault if the port is taken.
    """

    # Ctrl-C must not wait for a browser that keeps its connection open.
    daemon_threads = True

    def __init__(self, report: LiveReport, port: int) -> None:
        self.report = report
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise EnvironmentFault(
                f"port {port} of {HOST} cannot be used: {why}\n    try: --port 0, for a free one"
            ) from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "ablatio", ""

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in self._hosts():
            self._answer(403, "text/plain", "this page is served to 127.0.0.1 only\n")
        elif self.path == "/":
            self._answer(200, "text/html", self.server.report.page())
        elif self.path == "/data":
            self.server.report.refresh()
            self._answer(200, "application/json", self.server.report.data())
        else:
            self._answer(404, "text/plain", "there is / and /data\n")

    def _hosts(self) -> set[str]:
        names = (HOST, "localhost")
        return {f"{name}:{self.server.server_port}" for name in names} | (
            set(names) if self.server.server_port == 80 else set()
        )

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        # The browser has closed the page while it was computed.
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a request every few seconds is no news."""
