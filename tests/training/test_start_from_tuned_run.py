"""A run starts from one with adapters: on shared layers, or with a prompt that was trained on several tasks."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio, summary

from ablatio.config.compose import compose_run
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.training.initial_weights import take_over
from ablatio.training.restore import read_checkpoint, restore_model


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


PROMPT = "model.virtual.prompt"


def test_a_prompt_trained_on_several_tasks_is_the_start_of_each(tmp_path: Path, text_file: Path) -> None:
    """Its first score is the last one of the shared prompt on that task; the base stays what it was."""
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"{n} zebras see {n + 1} quilts" for n in range(300)))
    out, log, words = tmp_path / "runs", tmp_path / "log", [*TINY, f"out={tmp_path / 'runs'}"]

    def train(*more: str) -> str:
        ended = ablatio(["train", *words, *more], log)
        assert ended.code == 0, ended.err
        return ended.out

    train(f"source.path={text_file}", "name=base", "train.steps=4")
    words = [w for w in words if not w.startswith(("tokenizer", "model.", "source"))]
    several = ["source=several", f"source.of=[text:{text_file},text:{other}]", "mixture=weights"]
    tokens, tuned = "peft.tokens=3", ["model=run", f"model.path={out / 'base'}", "peft=prompt", "optimizer.lr=0.1"]
    train(*tuned, tokens, *several, "name=shared", "train.steps=8")
    shared = summary(out / "shared")
    first = text_file.name.partition(".")[0]
    assert {f"val/loss/{first}", "val/loss/other"} <= shared.keys() and shared["trainable_parameters"] == 3 * 16

    again = ["model=run", f"model.path={out / 'shared'}", "peft=prompt"]
    train(*again, tokens, *several, "name=next", "train.steps=1")
    assert summary(out / "next")["before"] == pytest.approx(shared["after"], abs=1e-6)
    assert PROMPT in json.loads((out / "next" / "manifest.json").read_text())["origin"]["taken"]
    train(*again, tokens, "source=text", f"source.path={other}", "name=own", "train.steps=2", "optimizer.lr=0.1")
    weights = [read_checkpoint(out / name).checkpoint.model for name in ("shared", "own")]
    assert not torch.equal(weights[0][PROMPT], weights[1][PROMPT])
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items() if name != PROMPT)

    refused = ablatio(["train", *words, *again, "peft.tokens=4", *several, "name=no"], log)
    assert refused.code == 2 and f"try: peft=prompt {tokens}" in refused.err
