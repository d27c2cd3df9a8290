"""The served page: this machine only, two paths, refreshed from the folder, and drawn by a browser without errors."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, browser
from helpers.studies import Fake, write_study

from ablatio.api.reports import find_in
from ablatio.errors import EnvironmentFault
from ablatio.report import watch
from ablatio.report.html.live import LiveReport, LiveServer
from ablatio.report.watch import fingerprint
from ablatio.sweep.study import run_folder

HALF = Fake(
    axes={"norm": ["rmsnorm", "layernorm"], "position": ["rope", "alibi"]},
    states={("norm=layernorm", 3): "running"},
    steps=200,
)


@contextmanager
def served(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(LiveReport([folder], lambda: find_in([folder])), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: LiveServer, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers.get("Content-Type", "")


def finish(folder: Path) -> None:
    """Let one running run of the study end, as a process that trains in it would."""
    for config in sorted(folder.glob("runs/*/config.json")):
        other = config.parent
        if not (other / "summary.json").exists():
            (other / "error.txt").write_text("out of memory\n")
            return
    raise AssertionError


def test_page_and_data_are_served_to_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    folder = write_study(tmp_path / "s", HALF)
    with served(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        code, page, kind = ask(server, "/")
        assert code == 200 and kind.startswith("text/html") and "connect-src 'self'" in page and "/data" in page
        code, text, kind = ask(server, "/data")
        first = json.loads(text)
        assert code == 200 and kind.startswith("application/json") and first["data"]["states"]["running"] == 2
        running = first["data"]["running"]
        assert [(r["seed"], r["step"], r["steps"]) for r in running] == [(3, 70, 200)] * 2
        for path in ("/../study.json", "/report.html", "/data/../study.json", f"/{folder}", "/?x=1"):
            assert ask(server, path)[0] == 404
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1:1", ""):
            assert ask(server, "/data", host)[0] == 403
        assert ask(server, "/data", f"localhost:{server.server_port}")[0] == 200
        assert ask(server, "/", method="POST")[0] == 501
        finish(folder)
        second = json.loads(ask(server, "/data")[1])
        assert second["version"] != first["version"] and second["data"]["states"]["running"] == 1
        assert json.loads(ask(server, "/data")[1])["version"] == second["version"]


def test_an_error_leaves_the_last_report_standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    folder = write_study(tmp_path / "s", HALF)
    with served(folder) as server:
        (folder / "study.json").unlink()
        for name in ("jobs", "runs"):
            (folder / name).rename(tmp_path / name)
        found = json.loads(ask(server, "/data")[1])
        assert "holds no runs" in found["trouble"] and found["data"]["states"]["done"] == 10


def test_taken_port_is_said_with_a_way_out(tmp_path: Path) -> None:
    report = LiveReport([tmp_path], lambda: find_in([write_study(tmp_path / "s", HALF)]))
    with LiveServer(report, 0) as server, pytest.raises(EnvironmentFault, match=r"cannot be used: [\s\S]*--port 0"):
        LiveServer(report, server.server_port)


def test_fingerprint_changes_with_each_file_of_a_run(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", HALF)
    run = run_folder(folder, next(iter(sorted(p.name for p in (folder / "runs").iterdir()))))
    for name in ("metrics.csv", "config.json", "evaluations.json"):
        before = fingerprint([folder])
        assert fingerprint([folder]) == before
        with (run / name).open("a") as file:
            file.write(" ")
        assert fingerprint([folder]) != before
    (run / "samples.txt").write_text("x")
    assert fingerprint([folder]) == fingerprint([folder])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_browser_follows_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, refresh in place, a phone's width, and nothing asked of any other server."""
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    folder = write_study(tmp_path / "s", HALF)
    with served(folder) as server, browser() as page:
        page.visit(server.url)
        page.wait_for("#arms table")
        assert page.value("document.querySelectorAll('.alert progress').length") == 2
        page.key("j")
        first = page.value("document.activeElement.textContent")
        page.key("j")
        assert first and page.value("document.activeElement.textContent") != first
        place = page.value("document.activeElement.closest('section').id")
        finish(folder)
        deadline = time.monotonic() + 20
        while page.value("document.querySelectorAll('.alert progress').length") != 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert page.value("document.querySelectorAll('.alert progress').length") == 1
        assert page.value("document.activeElement.closest('section').id") == place
        page.key("l")
        assert page.value("document.documentElement.lang") == "zh"
        page.resize(390)
        page.settle()
        assert page.value("document.documentElement.scrollWidth") <= 390
        assert page.errors == [] and set(page.asked) == {server.url, f"{server.url}data"}
