"""`trainer.compile=true` from the command line: the same numbers, and the next run of a sweep compiles nothing anew."""

from pathlib import Path

import pytest
from runs import TINY, ablatio, summary

from ablatio.paths import cache_root


def kernels() -> set[str]:
    """What inductor has made: one file for each graph and kernel."""
    return {str(path) for path in (cache_root() / "compiled").rglob("*") if path.suffix in (".cpp", ".so", ".py")}


@pytest.mark.slow
def test_the_runs_of_a_sweep_share_what_was_compiled(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "model.n_layers=2", "train.steps=4"]
    settings += ["data.document_mask=false"]
    assert ablatio(["train", *settings, "name=eager"], tmp_path / "log").code == 0
    compiled = [*settings, "trainer.compile=true"]
    one = ablatio(["train", *compiled, "name=first"], tmp_path / "log")
    assert one.code == 0, one.err
    made = kernels()
    assert made, "nothing was compiled"
    sweep = ablatio(["train", "-m", *compiled, "seed=1,2", "name=both"], tmp_path / "log")
    assert sweep.code == 0, sweep.err
    assert kernels() == made
    runs = [tmp_path / "eager", tmp_path / "first", *(tmp_path / "both" / "0",)]
    losses = [summary(run)["after"]["loss"] for run in runs]
    assert losses[1] == losses[2] and abs(losses[0] - losses[1]) < 1e-4
