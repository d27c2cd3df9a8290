"""YAML files of a user with anything in them: `GROUP=./x.yaml` is a config or one error, never a traceback."""

import random
from pathlib import Path

import pytest
import yaml

from ablatio.config import local_files
from ablatio.config.compose import compose_run
from ablatio.config.schema import section_knobs
from ablatio.errors import AblatioError
from ablatio.sweep.recipes.schema import find
from ablatio.sweep.request import read
from ablatio.sweep.settings import Sweep

ODD = (
    None,
    True,
    -1,
    10**30,
    "",
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
    [3],
    {"name": [1]},
    "a=b",
    "${x}",
    [{"stage": 3}],
)
WHOLE = {
    "recipe": {"paper": "x", "overrides": ["seed=1"], "stages": [{"stage": "a", "what": "b", "overrides": ["seed=2"]}]},
    "sweep": {
        "sweep": {
            "question": "Which?", "axes": {"norm": ["rmsnorm", "layernorm"]}, "baseline": {"norm": "rmsnorm"},
            "design": {"name": "full"}, "overrides": ["seed=2"], "margin": 0.1, "alpha": 0.05, "expected": "none",
        },
        "train": {"steps": 10},
    },
    "experiment": {"defaults": [{"override /norm": "rmsnorm"}], "train": {"steps": 10}, "model": {"d_model": 32}},
    "preset": {"norm": {"name": "rmsnorm", "eps": 1e-5}, "model": {"d_model": 32}},
}  # fmt: skip


def edited(node: object, rng: random.Random) -> object:
    """The data with one value somewhere replaced, removed or added."""
    places = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    if not places or rng.random() < 0.25:
        return rng.choice(ODD)
    key = rng.choice(places)
    copy = node.copy()  # type: ignore[union-attr, attr-defined]
    if rng.random() < 0.1:
        del copy[key]
    else:
        copy[key] = edited(copy[key], rng)
    return copy


@pytest.mark.parametrize("edits", [25, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("group", WHOLE)
def test_any_yaml_file_is_used_or_refused(
    group: str, edits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_files, "_named", {})
    rng, refused = random.Random(edits), 0
    for number in range(edits):
        data, name = edited(WHOLE[group], rng), f"x{number}.yaml"
        Path(name).write_text(yaml.safe_dump(data), encoding="utf-8")
        try:
            if group == "recipe":
                find(f"./{name}")
            elif group == "sweep":
                read([f"+sweep=./{name}"])
            else:
                compose_run([f"{group}=./{name}"])
        except AblatioError as error:
            refused += 1
            assert name in str(error) or "try: " in str(error) or "cannot run" in str(error), data
        except Exception as error:
            raise AssertionError(f"{data!r}: {type(error).__name__}: {error}") from error
    assert 0 < refused < edits


@pytest.mark.parametrize("key", [knob.name for knob in section_knobs(Sweep) if knob.default is None])
def test_null_in_a_study_is_what_is_left_out(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = {"axes": {"norm": ["rmsnorm", "layernorm"], "seed": [1, 2]}}
    for name, more in (("plain", {}), ("null", {key: None})):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"sweep": study | more}), encoding="utf-8")
    plain, null = (read([f"+sweep=./{name}.yaml"]) for name in ("plain", "null"))
    assert (null.settings, null.axes, null.seeds) == (plain.settings, plain.axes, plain.seeds)
