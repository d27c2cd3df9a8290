"""The pictures: they are what the script draws, and the lives in them are what really happens in a run."""

import importlib.util
import sys
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.doc_pages import DOCS
from rich.console import Console

from ablatio.config.compose import compose_run
from ablatio.registry.kinds import stabilizers, tasks
from ablatio.registry.kinds.training import Stabilizer, StabilizerMethods
from ablatio.registry.registry import transaction
from ablatio.training.run import train
from ablatio.training.run_spec import RunSpec


@pytest.fixture(scope="module")
def drawn() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", DOCS / "tools" / "pictures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_what_the_script_draws(drawn: ModuleType) -> None:
    made = drawn.pictures()
    assert made.keys() == {p.name for p in (DOCS / "pictures").glob("*.svg")}
    for name, svg in made.items():
        assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == svg, f"run docs/tools/pictures.py: {name}"


class Seen:
    """A batch list that writes down which batches are asked for."""

    def __init__(self, batches: Any, calls: list[str]) -> None:
        self.batches, self.calls = batches, calls

    def __getitem__(self, number: int) -> Any:
        self.calls.append("training[k]")
        return self.batches[number]


class Undo(Exception):
    """Takes back what was registered."""


def spy(base: type, names: list[str], calls: list[str]) -> dict[str, Any]:
    """Methods that write down their name and do what those of `base` do, with the arguments of these."""

    def method(name: str) -> Any:
        own = getattr(base, name)

        @wraps(own)
        def call(self: Any, *given: Any) -> Any:
            calls.append(name)
            return own(self, *given) or {}  # a protocol's own method returns nothing

        return call

    return {name: method(name) for name in names}


@pytest.fixture
def calls_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, list[str]]:
    """The calls that a run of two steps makes of a task and of a stabilizer that have all methods."""
    monkeypatch.chdir(tmp_path)
    told: dict[str, list[str]] = {"task": [], "stabilizer": []}
    pretrain = tasks.target("pretrain")
    names = ["attach", "prepare", "validation", "samples", "example", "begin_step", "loss", "before_step", "score"]
    made = spy(pretrain, names, told["task"]) | {"samples": lambda self, model: told["task"].append("samples") or []}

    def training(self: Any) -> Seen:
        return Seen(pretrain.training.fget(self), told["task"])

    def state(self: Any) -> dict[str, int]:
        told["task"].append("state_dict")
        return {}

    seen = type("SpiedTask", (pretrain,), made | {"training": property(training), "state_dict": state})
    hooks = spy(Stabilizer, ["before_step"], told["stabilizer"])
    hooks |= spy(StabilizerMethods, ["attach", "after_step"], told["stabilizer"])

    def kept(self: Any) -> dict[str, int]:
        told["stabilizer"].append("state_dict")
        return {}

    def rows(self: Any, seen: int, full: int) -> int:
        told["stabilizer"].append("batch_rows")
        return full

    watcher = type("Watcher", (), hooks | {"state_dict": kept, "batch_rows": rows, "__doc__": "Writes down calls."})
    with pytest.raises(Undo), transaction():
        tasks.register("spied")(seen)
        stabilizers.register("watcher")(watcher)
        small = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=32", "tokenizer=bytes"]
        data = ["data.val_tokens=256", "train.steps=2", "train.batch_size=2", "train.accumulate=1"]
        config = compose_run([*small, *data, "trainer.progress=false", "trainer.threads=1"]).config
        config = {**config, "task": {"name": "spied"}, "stabilizer": {"watcher": {}}}
        folder = tmp_path / "run"
        folder.mkdir()
        train(RunSpec(config), folder, Console(quiet=True))
        raise Undo
    return told


def in_order(calls: list[str], expected: list[str]) -> bool:
    """Whether `expected` comes in `calls` in this order, with others between."""
    rest = iter(calls)
    return all(name in rest for name in expected)


def test_the_lives_are_those_of_a_run(drawn: ModuleType, calls_in_a_run: Mapping[str, list[str]]) -> None:
    never = {"load_state_dict", "averaged"}  # in a resumed run, and of one that keeps an average
    for part, phases in (("task", drawn.TASK), ("stabilizer", drawn.STABILIZER)):
        calls = calls_in_a_run[part]
        for phase in phases[:2]:
            expected = [c.name for c in phase.calls if c.name in calls]
            told = {c.name for c in phase.calls} - set(calls) - never
            assert all(name[0].isupper() for name in told), f"{part}: {told} was never called; came {calls}"
            assert in_order(calls, expected), f"{part}, {phase.title}: {expected} was expected, came {calls}"
        assert calls[-1] in ("state_dict", "samples", "validation", "score"), calls[-5:]
