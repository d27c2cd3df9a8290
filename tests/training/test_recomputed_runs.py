"""Runs with `checkpointing=full` give the results of runs without it, also after a kill."""

from pathlib import Path

from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary


def test_activation_checkpointing_changes_no_result(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "model.n_layers=3", "model.dropout=0.1"]
    assert ablatio(["train", *settings, "name=plain"], tmp_path / "log").code == 0
    run = ablatio(["train", *settings, "name=full", "checkpointing=full"], tmp_path / "log")
    assert run.code == 0 and "checkpointing" in run.out and "segment=1" in run.out
    assert metrics(tmp_path / "full") == metrics(tmp_path / "plain")
    cut = cut_and_resumed([*settings, "checkpointing=full"], tmp_path, 8)
    assert metrics(cut) == metrics(tmp_path / "plain")
    assert summary(cut)["after"] == summary(tmp_path / "plain")["after"]


def test_activation_checkpointing_of_a_policy_run(tmp_path: Path, text_file: Path) -> None:
    """Equal up to rounding: the shared prompt is encoded once only without recomputation."""
    settings = [*TINY, "task=policy", "alignment=grpo", "reward=length", "reward.target=3", "model.max_len=32"]
    settings += [f"source.path={text_file}", f"out={tmp_path}", "task.prompt_tokens=6", "task.answer_tokens=8"]
    settings += ["train.batch_size=8", "train.steps=2", "train.log_every=1", "data.val_tokens=64"]
    for name, more in (("plain", []), ("full", ["checkpointing=full"])):
        run = ablatio(["train", *settings, f"name={name}", *more], tmp_path / "log")
        assert run.code == 0, run.err
    plain, full = (metrics(tmp_path / name) for name in ("plain", "full"))
    assert len(plain) == len(full) > 2
    for a, b in zip(plain, full, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == b[key] or abs(float(a[key]) - float(b[key])) < 1e-4, key
