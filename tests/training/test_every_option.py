"""Every option in a real run of the command line: it succeeds and lowers the loss on held-out text."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio.config.kind_lists import usual_parts
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models
from ablatio.testing.compatibility_table import paired_kinds

# These need special data or another run, and have tests of their own.
TESTED_ELSEWHERE = ("answers", "meta_icl", "distillation", "context_distillation")
QKV_NORM = ["attention.qk_norm=rmsnorm", "attention.v_norm=rmsnorm"]
REQUIRED_KNOBS = {"placement=hybrid": QKV_NORM, "placement=hybrid_star": QKV_NORM}  # knobs that a rule requires
OPTIONS = [
    (kind, entry.name) for kind in paired_kinds() for entry in REGISTRIES[kind] if entry.name not in TESTED_ELSEWHERE
]


def required_overrides(kind: str, name: str) -> list[str]:
    """Overrides that the rules require together with an option: parts other than the default ones."""
    config = tiny_models.config(REGISTRIES[kind].entries[name])
    others = [f"{k}={config[k]['name']}" for k, v in usual_parts().items() if config[k]["name"] != v and k != kind]
    return [*others, f"data.document_mask={str(config['data']['document_mask']).lower()}"]


def choices() -> Iterator[tuple[str, str, str]]:
    """Yield (kind, part, override) for each non-default choice of a knob, with the first part that has the knob."""
    seen = set()
    for kind, name in OPTIONS:
        for knob in REGISTRIES[kind][name].knobs:
            for value in knob.choices:
                if value != knob.default and (kind, knob.name, value) not in seen:
                    seen.add((kind, knob.name, value))
                    yield kind, name, f"{kind}.{knob.name}={value}"


CHOICES = [*choices(), ("mlp", "moe", "mlp.top_k=2"), ("activation", "gated", "activation.gate=relu2")]


def assert_run_lowers_loss(tmp_path: Path, text_file: Path, kind: str, name: str, *more: str) -> None:
    option = f"{kind}=[{name}]" if REGISTRIES[kind].multiple else f"{kind}={name}"
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", "train.steps=40", "model.n_heads=4"]
    settings += ["train.batch_size=8", "model.max_len=32", "model.n_layers=2", "train.checkpoint_every=20"]
    settings += REQUIRED_KNOBS.get(f"{kind}={name}", [])
    ended = ablatio(["train", *settings, option, *required_overrides(kind, name), *more], tmp_path / "log")
    assert ended.code == 0, ended.err
    result = summary(tmp_path / "run")
    assert result["after"]["loss"] < result["before"]["loss"] - 0.05, (result["before"], result["after"])


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind, name", OPTIONS, ids=lambda value: value)
def test_short_run_with_each_option_lowers_loss(tmp_path: Path, text_file: Path, kind: str, name: str) -> None:
    assert_run_lowers_loss(tmp_path, text_file, kind, name)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind, name, setting", CHOICES, ids=lambda value: value)
def test_short_run_with_each_knob_choice_lowers_loss(
    tmp_path: Path, text_file: Path, kind: str, name: str, setting: str
) -> None:
    assert_run_lowers_loss(tmp_path, text_file, kind, name, setting)
