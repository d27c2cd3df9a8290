"""A stack that mixes the newer parts, trained, resumed, tuned and decoded through the command line."""

from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

STACK = [
    "layers.attention=[moba,nsa,dcmha,paired_heads,ttt]",
    "layers.mlp=[product_key,memory,dense,mixture_of_depths,dense]",
    "model.n_layers=5", "position=rope",
]  # fmt: skip


@pytest.mark.slow
def test_a_mixed_stack_trains_resumes_and_decodes(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, *STACK, f"source.path={text_file}", f"out={tmp_path}", "train.steps=8"]
    refused = ablatio(["train", *settings, "shortcut=mudd", "name=refused"], tmp_path / "log")
    assert refused.code == 2 and "layer 4" in refused.err  # mudd hands keys and values, which ttt does not take
    settings = [*settings, "shortcut=denseformer"]
    whole = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    assert metrics(cut_and_resumed(settings, tmp_path, 4)) == metrics(tmp_path / "whole")
    assert summary(tmp_path / "whole")["after"]["loss"] < summary(tmp_path / "whole")["before"]["loss"]
    said = ablatio(["generate", str(tmp_path / "whole"), "a b", "--tokens", "8"], tmp_path / "log")
    assert said.code == 0, said.err
    tuned = [f"model.path={tmp_path / 'whole'}", "model=run", "peft=lora", "train.steps=2", f"out={tmp_path}"]
    tuned += ["source=text", f"source.path={text_file}", "trainer.threads=1", "name=tuned"]
    assert ablatio(["train", *tuned], tmp_path / "log").code == 0
