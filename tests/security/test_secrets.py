"""A value that came from the environment is written nowhere, however the config refers to it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.config.compose import compose_run
from ablatio.storage import secrets
from ablatio.storage.atomic_write import write_json, write_text
from ablatio.training.run_folder import resolved

SECRET = "hunter2-Zq9x"
BASE = ("source=text", "template=chatml", "task=pretrain")
# The ways to refer to a value: each gives the secret, or a text that contains it.
REFERENCES = {
    "direct": ("source.path=${oc.env:ABLATIO_SECRET}",),
    "with a default": ("source.path=${oc.env:ABLATIO_SECRET,none}",),
    "inside a text": ("source.path='/data/${oc.env:ABLATIO_SECRET}/text'",),
    "second": ("source.path=${oc.env:ABLATIO_SECRET}", "source.separator=${source.path}"),
    "second, inside a text": ("source.path=${oc.env:ABLATIO_SECRET}", "source.separator='<${source.path}>'"),
    "relative": ("source.path=${oc.env:ABLATIO_SECRET}", "source.separator=${.path}"),
    "third": (
        "source.path=${oc.env:ABLATIO_SECRET}", "source.separator=${source.path}",
        "+logger=mlflow", "logger.mlflow.experiment=${source.separator}",
    ),
    "chosen by another key": (
        "source.path=${oc.env:ABLATIO_SECRET}", "template.system=path",
        "source.separator='${source.${template.system}}'",
    ),
    "selected": ("source.path=${oc.env:ABLATIO_SECRET}", "source.separator='${oc.select:source.path}'"),
    "decoded": ("source.path='${oc.decode:${oc.env:ABLATIO_SECRET}}'",),
    "named by another variable": ("source.path='${oc.env:${oc.env:ABLATIO_WHICH}}'",),
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_hidden", {})
    monkeypatch.setenv("ABLATIO_SECRET", SECRET)
    monkeypatch.setenv("ABLATIO_WHICH", "ABLATIO_SECRET")


@pytest.mark.parametrize("how", REFERENCES)
def test_a_written_config_keeps_the_reference_and_resolves_to_the_same(how: str) -> None:
    composed = compose_run([*BASE, *REFERENCES[how]])
    assert SECRET in json.dumps(composed.config)
    assert SECRET not in json.dumps(composed.public)
    assert resolved(composed.public, "config") == composed.config


def test_other_references_are_written_resolved() -> None:
    """Only the environment is left open: `${model.d_model}` is a number in config.json."""
    composed = compose_run([*BASE, "source.path=${oc.env:ABLATIO_SECRET}", "source.separator=${task.name}"])
    assert composed.public["source"] == {
        "name": "text", "path": "${oc.env:ABLATIO_SECRET}", "separator": "pretrain",
    }  # fmt: skip


def test_a_word_among_choices_and_the_folder_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATIO_DEVICE", "auto")
    monkeypatch.setenv("ABLATIO_NAME", "my-first-run")
    composed = compose_run(["trainer.device=${oc.env:ABLATIO_DEVICE}", "name=${oc.env:ABLATIO_NAME}"])
    assert composed.public["trainer"]["device"] == "${oc.env:ABLATIO_DEVICE}"
    assert secrets.redact("auto my-first-run") == "auto my-first-run"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=30)


@settings(max_examples=40, deadline=None)
@given(secret=WORDS.filter(lambda s: len(s.strip()) > 3), before=st.text(max_size=5), after=st.text(max_size=5))
def test_no_quoting_of_a_text_brings_a_secret_back(
    secret: str, before: str, after: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secrets._hidden.clear()
    secrets.hide(secret, "${oc.env:X}")
    if secret not in secrets._hidden:
        assert secret.replace(".", "").strip().isdigit()
        return
    path = tmp_path_factory.mktemp("x") / "x.json"
    write_text(path, f"{before} {secret} {after}")
    assert "${oc.env:X}" in path.read_text()
    write_json(path, {"key": [f"{before} {secret} {after}", 1]})
    assert secret not in json.loads(path.read_text())["key"][0].replace("${oc.env:X}", "")


def everything(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leaks(folder: Path) -> list[str]:
    return [name for name, content in everything(folder).items() if SECRET.encode() in content or SECRET in name]


@pytest.fixture
def places(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(folder for results, folder whose name is the secret, with a text)."""
    hidden = tmp_path / "aside" / SECRET
    hidden.mkdir(parents=True)
    shutil.copy(text_file, hidden / "text.txt")
    monkeypatch.setenv("ABLATIO_SECRET", str(hidden / "text.txt"))
    monkeypatch.setenv("ABLATIO_RUN", str(hidden / "run"))
    monkeypatch.setenv("ABLATIO_MISSING", str(hidden / "missing.txt"))
    catalogue = Path(os.environ["ABLATIO_CACHE"], "catalogue")  # kept: a scan of all plugins takes seconds
    shutil.copytree(catalogue, tmp_path / "out/cache/catalogue")
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "out/cache"))
    return tmp_path / "out", hidden


def test_runs_write_no_value_of_the_environment(places: tuple[Path, Path]) -> None:
    out, hidden = places
    known = everything(hidden)
    words = [*TINY, "source.path=${oc.env:ABLATIO_SECRET}", f"out={out}", "template=chatml",
             "template.system=${source.path}", "train.steps=4"]  # fmt: skip
    ended = ablatio(["train", *words, "name=a"], out / "log")
    assert ended.code == 0, ended.err
    assert summary(out / "a")["status"] == "done" and everything(hidden) == known
    assert not leaks(out)
    failed = ablatio(
        ["train", *words, "source.path=${oc.env:ABLATIO_MISSING}", "template.system=${source.path}", "name=b"],
        out / "log2",
    )
    assert failed.code in (2, 5) and "${oc.env:ABLATIO_MISSING}" in failed.err
    assert not leaks(out)


def test_a_study_writes_no_value_of_the_environment(places: tuple[Path, Path]) -> None:
    """Its failures reach error.txt, the log, the ledger and the report."""
    out, _ = places
    words = [*TINY, "source.path=${oc.env:ABLATIO_SECRET}", f"out={out}", "template=chatml", "name=s", "table=0",
             "template.system=${source.path}", "seed=1", "workers=1", "train.steps=4"]  # fmt: skip
    planned = ablatio(["train", "-m", *words], out / "log")
    assert planned.code == 0, planned.err
    Path(os.environ["ABLATIO_SECRET"]).unlink()
    shutil.rmtree(out / "cache", ignore_errors=True)
    failed = ablatio(["train", "-m", *words, "seed=1,2"], out / "log2")
    assert failed.code in (2, 3, 5)
    assert ablatio(["report", str(out / "s")], out / "log3").code == 0
    assert not leaks(out)
