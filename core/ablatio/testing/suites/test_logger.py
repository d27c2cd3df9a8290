"""Loggers: offline, silent, writing only to their folder, without effect on the numbers."""

import socket
from pathlib import Path
from typing import Any

import pytest

from ablatio.errors import UserError
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts
from ablatio.testing.observe import isolated
from ablatio.testing.suites.test_common import _switches

KINDS = ("logger",)
ROWS = [{"step": s, "tokens": 64 * s, "train/loss": 5.0 - 0.1 * s, "val/loss": float("nan")} for s in (2, 4, 6, 8)]


def test_writes_in_its_place_and_nothing_else(
    part: PartSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run and its continuation from step 4: no output, network, secrets, files elsewhere or random numbers."""

    def refused(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert local, f"{checks.label(part)}: connects to {address}"
        connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("SECRET", "swordfish")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    try:
        logger = sample_parts.logger(part, folder)
    except UserError as error:
        pytest.skip(str(error).splitlines()[0])
    assert not list(folder.iterdir()), f"{checks.label(part)}: writes before `start`"
    before = dict(_switches())
    with isolated(1):
        first = dict(_switches())
        logger.start([])
        for row in ROWS:
            logger.log(row)
        logger.start(ROWS[:2])
        logger.log(ROWS[2])
        logger.finish("done")
        assert dict(_switches()) == first, f"{checks.label(part)}: draws random numbers or turns a switch"
    assert dict(_switches()) == before
    said = "".join(capfd.readouterr())
    assert not said, f"{checks.label(part)}: prints {said!r}"
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any(p.is_relative_to(folder.parent) for p in files), f"{checks.label(part)}: writes nothing"
    elsewhere = [p for p in files if not p.is_relative_to(folder.parent)]
    assert not elsewhere, f"{checks.label(part)}: writes {elsewhere[0]}, which is not beside the run"
    told = [p for p in files if b"swordfish" in p.read_bytes()]
    assert not told, f"{checks.label(part)}: writes a value of the environment into {told[:1]}"
