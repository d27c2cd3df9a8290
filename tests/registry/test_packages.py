"""Packages that parts need: declared forms, and that a run without them is refused before it has a folder."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablatio.cli.main import main
from ablatio.config.packages import check_packages
from ablatio.errors import ConfigError
from ablatio.registry import packages
from ablatio.registry.part_spec import ContractError
from ablatio.registry.registry import REGISTRIES

TINY = ["size=tiny", "train.steps=2"]
CASES = {
    "logger": ("wandb", ["train", *TINY, "logger=wandb"]),
    "several": ("tensorboard", ["train", *TINY, "logger=[csv,tensorboard]"]),
    "source": ("reasoning_gym", ["train", *TINY, "source=gsm_symbolic"]),
    "launcher": ("ray", ["train", "-m", *TINY, "norm=rmsnorm,layernorm", "launcher=ray"]),
    "slurm": ("submitit", ["train", "-m", *TINY, "seed=1,2", "launcher=slurm"]),
    "one arm of a sweep": ("vaderSentiment", ["train", "-m", *TINY, "source=sotu,sentiment"]),
}


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a package look as if it were not installed."""

    def hidden(name: str) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, p=None: None if n == name else real(n, p))
        monkeypatch.setitem(sys.modules, name, None)

    return hidden


@pytest.mark.parametrize("case", CASES)
def test_missing_package_is_found_before_a_folder_is_made(
    case: str,
    tmp_path: Path,
    hide: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name, arguments = CASES[case]
    hide(name)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"needs the package {name}, which is not installed" in said and "try: pip install 'ablatio[" in said
    assert "Traceback" not in said and not [*tmp_path.iterdir()]


def test_several_missing_packages_are_said_at_once(hide: Callable[[str], None]) -> None:
    hide("wandb")
    hide("ray")
    configs = [{"logger": {"wandb": {}, "csv": {}}}, {"logger": {"wandb": {}}}]
    with pytest.raises(ConfigError, match=r"2 problems") as found:
        check_packages(configs, [REGISTRIES["launcher"].entries["ray"]])
    assert [p.where for p in found.value.problems] == ["launcher", "logger"]


def test_declared_packages_are_extras_of_the_distribution() -> None:
    """Each part's `ablatio[extra]` names an extra whose requirements contain the module's package."""
    found = [(p, item) for r in REGISTRIES.values() for p in r for item in p.facts.get(packages.FACT, ())]
    assert len(found) >= 8
    wanted = {line.lower().replace("-", "_") for line in requires("ablatio") or ()}
    for part, item in found:
        module, _, requirement = item.partition("=")
        extra = requirement.partition("[")[2].rstrip("]")
        names = [line for line in wanted if f'extra == "{extra}"' in line or f"extra == '{extra}'" in line]
        assert any(line.startswith(module.partition(".")[0].lower()) for line in names), (part.name, item)


@pytest.mark.parametrize("wrong", [("wandb",), ("wandb=",), ("wandb=a b",), (3,), ("=x",)])
def test_wrong_declarations_are_refused(wrong: Any) -> None:
    with pytest.raises(ContractError, match="what pip installs"):
        packages.declared(wrong)
    assert packages.declared("ray=ray") == ["ray=ray"] and packages.declared(()) == []


def test_modules_inside_packages_and_plain_requirements(hide: Callable[[str], None]) -> None:
    part = SimpleNamespace(kind="norm", name="own", facts={"packages": ["not_there.sub=not-there", "json=json"]})
    (problem,) = packages.missing([part])  # type: ignore[list-item]
    assert problem.fix == "pip install not-there" and "the package not_there" in problem.what
