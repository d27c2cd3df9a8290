"""The README's part, commands, printed output and table of options are executed and compared."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from helpers import warm_python

from ablatio.cli.main import main
from ablatio.config.compose import compose_run
from ablatio.registry.registry import REGISTRIES, transaction

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def commands() -> list[str]:
    blocks = re.findall(r"(?:^    (ablatio train .*)$)|`(ablatio [^`]+)`", README, re.M)
    return sorted({(a or b).split("  #")[0].strip() for a, b in blocks})


@pytest.mark.slow
def test_readme_python_api_works(tmp_path: Path) -> None:
    (code,) = [block for block in PYTHON if "ablatio.train(" in block]
    done = warm_python.run(["-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "first-run" / "summary.json").exists() and "rmsnorm" in done.stdout


def test_readme_part_works(tmp_path: Path) -> None:
    (code,) = [block for block in PYTHON if "@norms.register" in block]
    (tmp_path / "readme_part.py").write_text(code)

    class Undo(Exception): ...

    with pytest.raises(Undo), transaction():
        sys.path.insert(0, str(tmp_path))
        import readme_part  # noqa: F401

        norm = REGISTRIES["norm"].build("maxnorm", {"eps": 1e-5}, d_model=8)
        y = norm(torch.randn(2, 3, 8))
        assert y.shape == (2, 3, 8) and torch.allclose(y.abs().amax(-1), torch.ones(2, 3), atol=1e-3)
        raise Undo


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("ablatio train")])
def test_readme_training_command_composes(command: str) -> None:
    from ablatio.sweep.plan import plan_sweep
    from ablatio.sweep.recipes.plan import plan_recipe

    words = [w for w in shlex.split(command)[2:] if w not in ("-m", "--help")]
    if any("RUN" in w or w.startswith("resume=") for w in words):
        return
    if "-m" in shlex.split(command):
        assert plan_sweep(words).jobs
    elif any(w.startswith("recipe=") for w in words):
        assert plan_recipe(words).stages
    else:
        compose_run(words)


@pytest.mark.parametrize(
    "command", ["list", "list position", "show position=rope", "train --help", "--help", "list --json"]
)
def test_read_only_commands_succeed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out


def test_readme_names_exactly_the_existing_commands() -> None:
    from ablatio.cli.commands import COMMANDS

    assert {c.split()[1] for c in commands()} <= {*COMMANDS}
    assert {*COMMANDS} <= {c.split()[1] for c in commands()} | {"completion"}


def test_readme_error_message_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```text\n\$ ablatio (train [^\n]*)\n(ablatio: .*?)```", README, re.S)
    assert block
    assert main(shlex.split(block[1])) == 2
    assert capsys.readouterr().err.strip() == block[2].strip()


@pytest.mark.slow
def test_readme_demo_run_is_up_to_date(tmp_path: Path) -> None:
    """Settings are equal; losses to 5 %, as the number of threads changes their rounding; speeds may differ."""
    block = re.search(r"```text\n\$ ablatio (train experiment=demo [^\n]*)\n(.*?)```", README, re.S)
    assert block
    done = warm_python.run(["-m", "ablatio.cli", *shlex.split(block[1])], cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    def settings(text: str) -> list[str]:
        return [line.rstrip() for line in text.partition("step 0/")[0].splitlines()]

    def losses(text: str) -> list[float]:
        rows = re.findall(r"^(?:bits per byte|nats per token) +(\S+) +(\S+)$", text, re.M)
        return [float(value) for row in rows for value in row]

    assert settings(done.stdout) == settings(block[2])
    assert len(losses(block[2])) == 4 and losses(done.stdout) == pytest.approx(losses(block[2]), rel=0.05)


def test_demo_commands_compose() -> None:
    from ablatio.sweep.plan import plan_sweep

    lines = re.findall(r"\$\(BIN\)/ablatio train (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(lines) == 2
    for line in lines:
        words = [w.replace("$(DEMO)", "demo") for w in shlex.split(line) if w != "-m"]
        if "-m" in shlex.split(line):
            assert plan_sweep(words).jobs
        else:
            compose_run(words)


def test_readme_table_of_options_is_complete() -> None:
    rows = dict(re.findall(r"^\| `(\w+)=` \| (.*) \|$", README, re.M))
    assert {"norm", "attention", "optimizer", "architecture"} <= rows.keys()
    for kind, names in rows.items():
        if kind == "preset":
            known = sorted(path.stem for path in (ROOT / "conf" / "preset").glob("*.yaml"))
        else:
            known = sorted(e.name for e in REGISTRIES[kind] if e.module.startswith("ablatio_std."))
        assert names.split() == known, f"README's row of {kind}"
