"""Runs of older versions can be evaluated and resumed: settings they lack get their defaults."""

import json
import signal
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, metrics, summary

from ablatio.config.compose import compose_run
from ablatio.sweep.arms import job_id
from ablatio.training import run_folder, run_spec
from ablatio.training.run_folder import earlier_id, run_id


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


def test_the_id_tells_which_options_of_a_list_are_chosen() -> None:
    """At their defaults, too, and in which order; the usual list is left out, so most ids are those of before."""
    lists = ["[clip]", "[]", "[clip,ema]", "[ema,clip]", "[clip,skip_step]"]
    configs = [compose_run([f"stabilizer={names}"]).config for names in lists]
    assert len({run_id(c) for c in configs}) == len({job_id(c) for c in configs}) == len(lists)
    assert {earlier_id(c) for c in configs} == {run_id(configs[0])}


def test_a_run_with_the_id_of_an_earlier_version_is_resumed_scored_and_reported(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, settings = tmp_path / "log", [*TINY, f"source.path={text_file}", f"out={tmp_path}", "stabilizer=[clip,ema]"]
    assert ablatio(["train", *settings, "name=whole"], log).code == 0
    cut, step = tmp_path / "cut", tmp_path / "cut" / "checkpoints" / "step-00000004.json"
    with monkeypatch.context() as earlier:  # the child is forked, so it has the function of the earlier version
        for module in (run_folder, run_spec):
            earlier.setattr(module, "run_id", earlier_id)
        assert ablatio(["train", *settings, "name=cut"], log, kill_when=step).code == -signal.SIGKILL
    for words in (["evaluate", str(cut)], ["train", f"resume={cut}"], ["evaluate", str(cut)], ["report", str(cut)]):
        done = ablatio(words, log)
        assert done.code == 0 and "damaged" not in done.out + done.err, done.err
    assert metrics(cut) == metrics(tmp_path / "whole")
    ids = {summary(folder)["run"] for folder in (cut, tmp_path / "whole")}
    assert len(ids) == 2 and json.loads((cut / "manifest.json").read_text())["run"] in ids
