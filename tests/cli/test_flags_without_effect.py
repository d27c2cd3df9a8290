"""A flag that a command would not use is refused with the reason: over all commands, all their flags and uses."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import TINY, ablatio
from helpers.scored_studies import Scored, write_scored

from ablatio.cli import commands
from ablatio.cli.commands import COMMANDS, arguments_of
from ablatio.cli.main import main

READS_ITSELF = {"train", "resume"}  # without a parser: each of their words is a setting or refused
STUDY = Scored({"rmsnorm": {1: 3.0, 2: 3.1, 3: 3.05}, "layernorm": {1: 3.2, 2: 3.3, 3: 3.22}}, baseline="norm=rmsnorm")
# Command -> its flags with a value that is not the default, "" for those without one.
FLAGS: dict[str, dict[str, str]] = {
    "evaluate": {
        "--length": "8", "--tokens": "64", "--step": "4", "--objective": "lm", "--quantization": "int8",
        "--run-code": "", "--include": "tasks", "--limit": "2", "--stride": "4", "--json": "",
        "--adapt": "0.01", "--adapter": "lora", "--with": "RUN",
    },
    "artifact": {"--quantization": "int8", "--step": "4", "--json": ""},
    "report": {
        "--out": "out", "--metric": "val/bpb", "--baseline": "norm=layernorm", "--correction": "bh",
        "--interval": "moderated", "--alpha": "0.1", "--margin": "0.01bits/byte", "--target": "3", "--quiet": "",
        "--serve": "", "--follow": "", "--port": "0", "--language": "zh",
    },
    "runs": {"--filter": "kind=study", "--sort": "name", "--reverse": "", "--remove": "", "--yes": "", "--json": ""},
    "compare": {"--json": ""},
    "noise": {"--arm": "norm=layernorm", "--metric": "val/bpb", "--scores": "", "--json": ""},
    "scaling": {
        "--arm": "norm=rmsnorm", "--baseline": "norm=rmsnorm", "--metric": "val/bpb", "--law": "kaplan",
        "--count": "active", "--at": "1e6,1e6", "--budget": "1e12", "--budgets": "1e12,1e13", "--far": "",
        "--html": "page.html", "--json": "",
    },
    "generate": {
        "--chat": "", "--system": "Be brief.", "--tokens": "3", "--samples": "2", "--temperature": "0.5",
        "--top-k": "4", "--top-p": "0.9", "--stop": "x", "--choices": "ab|cd", "--seed": "2", "--step": "4",
    },
    "prepare": {"--tokenizers": "bytes,symbols", "--json": ""},
    "fetch": {},
    "export": {"--to": "to", "--adapter": "adapter", "--step": "4", "--as": "ablatio"},
    "coordinates": {"--widths": "16,32", "--steps": "1", "--seeds": "1", "--corpus": "", "--json": ""},
    "size": {"--json": "", "--flops": "1e12", "--fit": "2e6"},
    "list": {"--verbose": "", "--json": ""},
    "show": {"--author": ""},
    "check": {"--verbose": "", "--json": ""},
    "new-plugin": {"--kind": "mlp", "--in": "."},
    "doctor": {},
    "completion": {},
}  # fmt: skip
# (command, words without flags, flags that choose the use)
USES = [
    ("evaluate", "RUN", ""), ("evaluate", "RUN eval=[dyck] eval.dyck.items=4", ""),
    ("evaluate", "RUN", "--with"), ("evaluate", "RUN lm_eval=none", ""), ("artifact", "RUN", ""),
    ("report", "STUDY", ""), ("report", "STUDY", "--serve"), ("report", "STUDY", "--follow"),
    ("runs", "FOLDER", ""), ("runs", "FOLDER", "--remove"), ("compare", "RUN RUN", ""),
    ("noise", "STUDY", ""), ("noise", "STUDY", "--scores"),
    ("generate", "RUN ab", ""), ("generate", "RUN ab", "--chat"), ("generate", "RUN ab prompt=zero_shot", ""),
    ("export", "RUN", ""), ("size", "TINY", ""), ("list", "norm", ""), ("list", "norm", "--json"),
    ("show", "norm", "--author"), ("check", "ablatio-std", ""), ("check", "ablatio-std", "--json"),
    ("new-plugin", "my-mlp", ""), ("coordinates", "TINY", ""), ("prepare", "CORPUS", ""),
]  # fmt: skip

# Flags that these runs refuse for another reason than the use of the command.
CANNOT = {
    ("evaluate", "RUN", ""): {"--stride"}, ("evaluate", "RUN", "--with"): {"--stride"},
    ("generate", "RUN ab", ""): {"--system"}, ("export", "RUN", ""): {"--adapter"},
}  # fmt: skip


class Recorded(argparse.Namespace):
    """Arguments of a command that keep which of them were read."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            object.__getattribute__(self, "__dict__").setdefault("_read", set()).add(name)
        return object.__getattribute__(self, name)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorded]]:
    """The arguments of the commands that were run; argparse's own reads are forgotten."""
    found = list[Recorded]()

    def told(method: Any) -> Any:
        def parse(self: Any, words: Any = None, namespace: Any = None) -> Any:
            made = method(self, words, namespace if namespace is not None else Recorded())
            args = made[0] if isinstance(made, tuple) else made
            args.__dict__["_read"] = set()
            found[:] = [args]
            return made

        return parse

    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(commands.CommandParser, name, told(getattr(commands.CommandParser, name)))
    yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run and a study."""
    out = tmp_path_factory.mktemp("flags")
    (out / "text.txt").write_text("\n\n".join(f"Paragraph {i}: people meet on bridge {i % 7}." for i in range(60)))
    words = [*TINY, f"source.path={out / 'text.txt'}"]
    done = ablatio(["train", *words, f"out={out}", "name=run", "train.steps=4"], out / "log")
    assert done.code == 0, done.err
    study = write_scored(out / "runs" / "study", STUDY)
    corpus = " ".join(word for word in words if not word.startswith("tokenizer="))
    return {
        "RUN": str(out / "run"), "STUDY": str(study), "FOLDER": str(study.parent), "TINY": " ".join(words),
        "CORPUS": corpus,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands end at once and leave what they are given."""
    from ablatio.report.html.live import LiveServer

    def ended(self: LiveServer, *_: Any) -> None:
        raise KeyboardInterrupt

    def scored(export: Any, *_: Any) -> dict[str, Any]:
        export(tmp_path / "exported")
        return {}

    monkeypatch.setattr(LiveServer, "serve_forever", ended)
    monkeypatch.setattr("ablatio.interop.lm_eval_tasks.lm_eval_scores", scored)
    monkeypatch.setattr("ablatio.testing.check_run.check", lambda *_: 0)
    monkeypatch.setattr("ablatio.report.read.entries.remove", lambda entry: None)
    monkeypatch.chdir(tmp_path)


def test_all_flags_of_all_commands_are_tried() -> None:
    assert {*FLAGS} == {*COMMANDS} - READS_ITSELF
    for command, flags in FLAGS.items():
        own = [a for a in arguments_of(command) if a.option_strings and "--help" not in a.option_strings]
        assert {max(a.option_strings, key=len) for a in own} == {*flags}, command
    assert {command for command, _, _ in USES} >= {c for c, flags in FLAGS.items() if len(flags) > 1} - {"scaling"}


@pytest.mark.parametrize(("command", "words", "use"), USES)
def test_a_flag_is_used_or_refused(
    command: str, words: str, use: str, folders: dict[str, str], parsed: list[Recorded],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cannot = CANNOT.get((command, words, use), set())
    for name, path in folders.items():
        words = words.replace(name, path)
    chooses = {flag for of, _, flag in USES if of == command and flag}
    possible = [flag for flag in FLAGS[command] if flag == use or flag not in chooses | cannot]
    given = {flag: folders.get(FLAGS[command][flag], FLAGS[command][flag]) for flag in possible}
    while True:
        typed = [word for flag, value in given.items() for word in (flag, value) if word]
        code = main([command, *shlex.split(words), *typed])
        said = capsys.readouterr().err
        refused = re.search(r"(--[a-z-]+) has no effect", said)
        if code != 2 or refused is None:
            break
        _, command_line = said.strip().rsplit("try: ", 1)
        assert refused[1] in given and f" {refused[1]}" not in command_line, said
        del given[refused[1]]
    read = parsed[0].__dict__["_read"]
    names = {max(a.option_strings, key=len): a.dest for a in arguments_of(command) if a.option_strings}
    assert code == 0, said
    assert not [flag for flag in given if names[flag] not in read]
