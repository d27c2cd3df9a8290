"""Lists of kinds are derived from the registries, for the kinds of ablatio and of plugins."""

import json
from typing import Any

import pytest

import ablatio
from ablatio.config import kind_lists
from ablatio.config.hydra_sources import main_config
from ablatio.registry.registry import REGISTRIES, ContractError, Registry
from ablatio.testing import readme_table
from ablatio.testing.compatibility_table import paired_kinds

MODEL = [
    "embedding", "shortcut", "head", "norm", "placement", "activation", "mlp", "position", "attention", "block",
    "architecture",
]  # fmt: skip


@pytest.fixture
def kinds() -> Any:
    """The registries, restored afterwards."""
    before = dict(REGISTRIES)
    yield REGISTRIES
    REGISTRIES.clear()
    REGISTRIES.update(before)


def test_the_lists_of_our_kinds() -> None:
    """Expected lists are written out, because an unnoticed change would alter run ids and exports."""
    assert [r.kind for r in REGISTRIES.values() if r.scope == "model"] == MODEL
    assert kind_lists.shaping() == [*MODEL, "init", "objective"]
    assert paired_kinds() == (*MODEL, "init", "objective", "optimizer", "schedule", "stabilizer")
    assert kind_lists.volatile() == ("out", "name", "trainer", "sweep", "strategy", "logger", "eval", "metric")
    optional = {r.kind for r in kind_lists.listed()} - set(kind_lists.needed())
    assert optional == {"mixture", "curriculum", "alignment", "reward", "decode", "prompt"}
    assert [r.kind for r in REGISTRIES.values() if not r.in_run] == ["design", "launcher"]


def test_a_new_run_lists_every_kind_once() -> None:
    lines = [line for line in main_config()["defaults"] if isinstance(line, dict)]
    chosen = {kind: option for line in lines for kind, option in line.items() if kind in REGISTRIES}
    assert list(chosen) == [
        "task", *MODEL, "init", "objective", "optimizer", "schedule", "stabilizer", "quantization", "peft",
        "checkpointing", "source", "tokenizer", "template", "filter", "mixture", "curriculum", "alignment", "reward",
        "decode", "prompt", "eval", "metric", "logger", "strategy",
    ]  # fmt: skip
    assert chosen["norm"] == "rmsnorm" and chosen["stabilizer"] == ["clip"] and chosen["reward"] is None
    for kind, option in chosen.items():
        for name in option if isinstance(option, list) else [option] if option else []:
            assert name in REGISTRIES[kind].names()


def test_the_package_offers_every_registry() -> None:
    offered = [value for name in ablatio.__all__ if isinstance(value := getattr(ablatio, name), Registry)]
    assert {r.kind for r in offered} == set(REGISTRIES)


def test_readme_is_current() -> None:
    assert readme_table.current(), "README.md: run `python -m ablatio.testing.readme_table`"


def test_a_registry_survives_json(kinds: Any) -> None:
    """A kind read from the catalogue equals the one its module defines, in every field."""
    for registry in list(kinds.values()):
        data = json.loads(json.dumps(registry.to_json()))
        del kinds[registry.kind]
        assert json.loads(json.dumps(Registry.from_json(data).to_json())) == data


def test_a_kind_of_a_plugin_is_in_every_list(kinds: Any) -> None:
    Registry[Any]("gate", "for tests", scope="model", optional=True, attaches="layer", methods=("forward",))
    Registry[Any]("sink", "for tests", scope="output", multiple=True)
    assert "gate" in kind_lists.shaping() and "gate" in paired_kinds() and "sink" in kind_lists.volatile()
    assert {"gate", "sink"} <= {r.kind for r in kind_lists.listed()} and "gate" not in kind_lists.needed()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"scope": "modle"}, "scope='modle'; expected one of task"),
        ({"attaches": "head", "optional": True}, "attaches='head'; expected one of embedding"),
        ({"attaches": "layer"}, "needs default='none'"),
        ({"attaches": "layer", "optional": True, "multiple": True}, "needs default='none'"),
        ({"attaches": "layer", "optional": True, "wiring": ("tokens",)}, "wiring has `tokens`"),
    ],
)
def test_an_inconsistent_kind_is_refused(kinds: Any, said: dict[str, Any], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        Registry[Any]("gate", "for tests", **said)
    assert "gate" not in kinds
