"""A run that starts from another run inherits everything that determines its model."""

import json
from pathlib import Path

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
