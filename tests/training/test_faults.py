"""Failures during a run: the message, the exit code, and that no invalid checkpoint is saved."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

FINE = ["train.steps=4"]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["optimizer=sgd", "optimizer.lr=1e38", "stabilizer=[]"], "embed_tokens.weight at step 2"),
        (["optimizer.lr=1e30"], "is nan"),
    ],
)
def test_diverged_run_exits_with_4_and_saves_only_finite_weights(
    tmp_path: Path, text_file: Path, settings: list[str], what: str
) -> None:
    run = tmp_path / "run"
    arguments = ["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", *settings]
    ended = ablatio([*arguments, "train.checkpoint_every=1"], tmp_path / "log")
    assert ended.code == 4 and what in ended.err and "optimizer.lr" in ended.err
    assert summary(run)["status"] == "diverged"
    from ablatio.storage.checkpoints import Checkpoints

    for step in Checkpoints(run / "checkpoints").steps():  # those from before the divergence
        found = Checkpoints(run / "checkpoints").load(step)
        assert all(bool(t.isfinite().all()) for t in found.model.values())


def test_nan_weight_is_never_saved(tmp_path: Path, text_file: Path) -> None:
    """The loss may still be finite when the last step has produced a NaN weight, so saving checks every weight."""
    from ablatio.errors import Diverged
    from ablatio.storage.checkpoints import Checkpoints

    assert (
        ablatio(["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run"], tmp_path / "log").code == 0
    )
    found = Checkpoints(tmp_path / "run/checkpoints").load()
    name = next(n for n, t in found.model.items() if t.dim() == 2)
    found.model[name][0, 0] = float("nan")
    with pytest.raises(Diverged, match=name):
        Checkpoints(tmp_path / "other").save(1, found.model, {})
    assert not list((tmp_path / "other").glob("*")) if (tmp_path / "other").exists() else True


def test_unwritable_output_folder_exits_with_5(tmp_path: Path, text_file: Path) -> None:
    if (
        os.getuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(_mount_point(tmp_path))]).returncode == 0
    ):
        out = _mount_point(tmp_path)
    else:  # without the right to mount: a file in place of the folder
        out = tmp_path / "file"
        out.write_text("")
    try:
        ended = ablatio(["train", *TINY, f"source.path={text_file}", f"out={out}", *FINE], tmp_path / "log")
    finally:
        subprocess.run(["umount", str(out)], capture_output=True, check=False)
    assert ended.code == 5 and "Traceback" not in ended.err and str(out) in ended.err


def test_full_disk_exits_with_5_and_leaves_no_partial_checkpoint(tmp_path: Path, text_file: Path) -> None:
    """RLIMIT_FSIZE rejects large writes as a full disk would, for any user."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from ablatio.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    import sys

    arguments = ["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", *FINE]
    assert ablatio([*arguments[:-2], "name=warm", *FINE], tmp_path / "log").code == 0  # fills the caches
    ended = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 5 and "Traceback" not in ended.stderr, ended.stderr
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp"))


def _mount_point(folder: Path) -> Path:
    (folder / "readonly").mkdir(exist_ok=True)
    return folder / "readonly"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no document with text"), (b"\x00\x01\xff\xfe binary \x00", "text"), (None, "text.txt")],
)
def test_empty_binary_or_missing_corpus_is_rejected(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    ended = ablatio(["train", *TINY, f"source.path={path}", f"out={tmp_path}"], tmp_path / "log")
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err, ended.err


def test_damaged_token_cache_is_rebuilt(tmp_path: Path, text_file: Path) -> None:
    arguments = ["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", *FINE]
    assert ablatio([*arguments, "name=one"], tmp_path / "log").code == 0
    key = json.loads((tmp_path / "one/manifest.json").read_text())["data"]["key"]
    tokens = Path(os.environ["ABLATIO_CACHE"]) / "tokens" / key / "train.bin"
    data = bytearray(tokens.read_bytes())
    data[100] ^= 1
    tokens.write_bytes(data)
    again = ablatio([*arguments, "name=two"], tmp_path / "log")
    assert again.code == 0
    assert summary(tmp_path / "one")["after"] == summary(tmp_path / "two")["after"]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("[1]", 5, "an object was expected"),
        ("{", 5, "cannot be read"),
        ('{"name": "${oc.env:NOT_HERE}"}', 2, "NOT_HERE"),
        ('{"seed": 1}', 2, "is missing from the config"),
    ],
)
def test_run_folder_with_invalid_config_is_rejected(tmp_path: Path, content: str, code: int, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    ended = ablatio(["evaluate", str(tmp_path)], tmp_path / "log")
    assert ended.code == code and message in ended.err and "Traceback" not in ended.err, ended.err


def test_run_config_that_names_code_is_rejected(tmp_path: Path, text_file: Path) -> None:
    arguments = ["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", *FINE]
    assert ablatio(arguments, tmp_path / "log").code == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    proof = tmp_path / "proof"
    config["norm"]["_target_"] = "os.system"
    config["norm"]["command"] = f"touch {proof}"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    for command in (["evaluate", str(tmp_path / "run")], ["train", f"resume={tmp_path / 'run'}"]):
        ended = ablatio(command, tmp_path / "log")
        assert ended.code == 2 and "norm._target_" in ended.err and not proof.exists()
