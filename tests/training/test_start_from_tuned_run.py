"""A run with adapters on shared layers, exported and continued: each layer has weights of its own then."""

from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio

from ablatio.config.compose import compose_run
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.training.initial_weights import take_over
from ablatio.training.restore import restore_model


def test_adapters_of_shared_layers_in_export_and_next_run(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=tuned", "train.steps=3", "peft=lora",
                "model.n_layers=4", "model.distinct_layers=2", "optimizer.lr=0.5"]  # fmt: skip
    ended = ablatio(["train", *settings], tmp_path / "log")
    assert ended.code == 0, ended.err
    tuned = restore_model(tmp_path / "tuned").model
    tokens = torch.arange(1, 20)[None]
    expected = tuned(tokens)
    ended = ablatio(["export", str(tmp_path / "tuned"), "--to", str(tmp_path / "out")], tmp_path / "log")
    assert ended.code == 0, ended.err  # it compares the exported logits with the merged model's

    started = ["model=run", f"model.path={tmp_path / 'tuned'}"]
    config = compose_run(started).config
    assert config["model"]["distinct_layers"] is None
    model = build_model(config, 257).eval()
    taken = take_over(model, config["model"])
    assert taken is not None and not taken.anew
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)
    config = compose_run([*started, "model.distinct_layers=2"]).config
    with pytest.raises(UserError, match=r"different weights in .*\n.*model.distinct_layers=null"):
        take_over(build_model(config, 257), config["model"])


def test_an_untied_model_does_not_start_a_tied_one(tmp_path: Path) -> None:
    """The head's rows would overwrite the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 257, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=0, tie_word_embeddings=False)).save_pretrained(tmp_path)
    config = compose_run(["model=hf", f"model.path={tmp_path}", "tokenizer=bytes", "model.tied=true"]).config
    with pytest.raises(UserError, match=r"model\.tied=false"):
        take_over(build_model(config, 257), config["model"])
