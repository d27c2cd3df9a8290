"""A run that starts from another run inherits everything that determines its model."""

import json
from pathlib import Path
from typing import Any

import pytest

from ablatio.config.compose import compose_run
from ablatio.config.inherit import folder_tokenizer
from ablatio.config.kind_lists import shaping
from ablatio.model.builder import ModelBuilder

PARTS = ["size=tiny", "tokenizer=bytes", "norm=layernorm", "init=mup", "objective=multi_token", "attention.qk_norm=dyt"]


def test_scales_set_by_the_init_are_inherited(tmp_path: Path) -> None:
    """muP's factors on logits and scores are not weights: without its init the outputs would differ."""
    base = compose_run(PARTS).config
    (tmp_path / "config.json").write_text(json.dumps(base))
    config = compose_run(["model=run", f"model.path={tmp_path}"]).config
    assert {kind: config[kind] for kind in shaping()} == {kind: base[kind] for kind in shaping()}
    made, before = ModelBuilder(config, 257), ModelBuilder(base, 257)
    assert (made.logit_scale, made.attention_scale) == (before.logit_scale, before.attention_scale)
    assert made.logit_scale != 1.0
    assert config["tokenizer"]["name"] == folder_tokenizer().name and config["tokenizer"]["path"] == str(tmp_path)


def test_overrides_take_precedence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(compose_run(PARTS).config))
    config = compose_run(["model=run", f"model.path={tmp_path}", "init=normal", "objective=lm"]).config
    assert (config["init"]["name"], config["objective"]["name"], config["norm"]["name"]) == (
        "normal",
        "lm",
        "layernorm",
    )


LAYERED = ["attention=sliding", "layers.attention=[sliding*3,mha]", "layers.at.attention={0: none}", "layers.mlp=[moe]"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], {"attention": ["sliding*3", "mha"], "at": {"attention": {"0": "none"}}, "mlp": ["moe"]}),
        (
            ["attention=sliding"],
            {"attention": ["sliding*3", "mha"], "at": {"attention": {"0": "none"}}, "mlp": ["moe"]},
        ),
        (["attention=mha"], {"mlp": ["moe"]}),
        (["attention=mha", "layers.attention=[mha,mqa]"], {"attention": ["mha", "mqa"], "mlp": ["moe"]}),
    ],
)
def test_another_option_replaces_that_of_each_layer(given: list[str], kept: dict[str, Any], tmp_path: Path) -> None:
    """As for a preset: the options per layer of a kind belong to the run's own option."""
    base = compose_run(["size=tiny", "tokenizer=bytes", "model.n_layers=4", *LAYERED]).config
    (tmp_path / "config.json").write_text(json.dumps(base))
    config = compose_run(["model=run", f"model.path={tmp_path}", *given]).config
    assert config.get("layers") == kept


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ("linear(4,16)", 16),
        ("stages(8@0,16@5steps)", 16),
        ("stages(8@0,16@2000steps)", 8),
        ("linear(4,16,until=11steps)", 13),  # the last of 9 steps is number 8: 4 + 12 * 8 / 11 = 12.7
        ("stages(8@0,16@1024tokens)", 16),  # 8 steps of 4 rows of 32 tokens before the last one
        ("stages(8@0,16@1025tokens)", 8),
    ],
)
def test_a_schedule_is_inherited_as_its_value_at_the_end(schedule: str, last: int, tmp_path: Path) -> None:
    sizes = ["size=tiny", "tokenizer=bytes", "model.max_len=32", "train.batch_size=4", "train.steps=9"]
    base = compose_run([*sizes, "attention=sliding", f"attention.window={schedule}"]).config
    (tmp_path / "config.json").write_text(json.dumps(base))
    config = compose_run(["model=run", f"model.path={tmp_path}"]).config
    assert config["attention"]["window"] == last
