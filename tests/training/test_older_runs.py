"""A run that an older version made can still be scored and resumed: what it does not say has its default."""

import json
import signal
from pathlib import Path

from helpers.runs import TINY, ablatio, metrics


def forget(run: Path, *keys: str) -> None:
    """What a version would have written that did not know these settings yet."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    for key in keys:
        section, _, setting = key.partition(".")
        del (config[section] if setting else config)[setting or section]
    path.write_text(json.dumps(config))


def test_settings_that_came_later_have_their_defaults(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = tmp_path / "cut"
    killed = ablatio(
        ["train", *settings, "name=cut"], tmp_path / "log", kill_when=cut / "checkpoints/step-00000004.json"
    )
    assert killed.code == -signal.SIGKILL
    forget(cut, "data.rows", "model.logit_scale", "norm.affine", "train.label_smoothing", "checkpointing")
    assert ablatio(["evaluate", str(cut)], tmp_path / "log").code == 0
    assert ablatio(["train", f"resume={cut}"], tmp_path / "log").code == 0
    assert metrics(cut) == metrics(tmp_path / "whole")


def test_a_setting_that_was_changed_is_missed(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "norm.eps=0.01", "name=run"]
    assert ablatio(["train", *settings], tmp_path / "log").code == 0
    forget(tmp_path / "run", "norm.eps")
    refused = ablatio(["evaluate", str(tmp_path / "run")], tmp_path / "log")
    assert refused.code == 5 and "belongs to run" in refused.err


def test_a_run_is_scored_by_another_objective_that_it_can_answer(tmp_path: Path, text_file: Path) -> None:
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
