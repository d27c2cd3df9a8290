"""Runs of older versions can be evaluated and resumed: settings they lack get their defaults."""

import json
import signal
from pathlib import Path

from helpers.runs import TINY, ablatio, metrics


def remove_settings(run: Path, *keys: str) -> None:
    """Rewrite config.json as a version without these settings would have written it."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    for key in keys:
        section, _, setting = key.partition(".")
        del (config[section] if setting else config)[setting or section]
    path.write_text(json.dumps(config))


def test_settings_missing_from_config_get_defaults(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = tmp_path / "cut"
    killed = ablatio(
        ["train", *settings, "name=cut"], tmp_path / "log", kill_when=cut / "checkpoints/step-00000004.json"
    )
    assert killed.code == -signal.SIGKILL
    remove_settings(cut, "data.rows", "model.logit_scale", "norm.affine", "train.label_smoothing", "checkpointing")
    assert ablatio(["evaluate", str(cut)], tmp_path / "log").code == 0
    assert ablatio(["train", f"resume={cut}"], tmp_path / "log").code == 0
    assert metrics(cut) == metrics(tmp_path / "whole")


def test_missing_non_default_setting_is_detected(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "norm.eps=0.01", "name=run"]
    assert ablatio(["train", *settings], tmp_path / "log").code == 0
    remove_settings(tmp_path / "run", "norm.eps")
    refused = ablatio(["evaluate", str(tmp_path / "run")], tmp_path / "log")
    assert refused.code == 5 and "belongs to run" in refused.err


def test_evaluate_with_another_supported_objective(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run"]
    assert ablatio(["train", *settings], tmp_path / "log").code == 0
    run = str(tmp_path / "run")
    own, other = (
        json.loads(ablatio(["evaluate", run, "--json", *more], tmp_path / "log").out)["scores"][0]
        for more in ([], ["--objective", "prefix_lm"])
    )
    assert own["tokens"] > other["tokens"] > 0 and own["loss"] != other["loss"]
    for name, what in {"masked_lm": "--objective lm", "span_corruption": "--objective prefix_lm"}.items():
        refused = ablatio(["evaluate", run, "--objective", name], tmp_path / "log")
        assert refused.code == 2 and what in refused.err
