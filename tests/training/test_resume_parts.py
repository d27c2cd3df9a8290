"""A killed run resumes bit for bit with every optimizer, stabilizer and kind of example."""

from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics

from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models

OPTIMIZERS = [f"optimizer={e.name}" for e in REGISTRIES["optimizer"]]
STABILIZERS = [f"stabilizer=[{e.name}]" for e in REGISTRIES["stabilizer"]]
MLPS = ["mlp=moe", "mlp=deepseek_moe mlp.bias_rate=0.01"]  # router noise, and a bias updated at each step
LAYERS = [
    "layers.attention=[gated_deltanet,mha] layers.at.mlp={0:none,-1:moe} model.n_layers=3",
    "layers.position=[alibi,rope] layers.placement=[pre,sandwich] checkpointing=full model.n_layers=3",
    "embedding=bigram_hash shortcut=value_embeddings checkpointing=full model.n_layers=3",
    "embedding=factorized shortcut=denseformer head=sigmoid model.n_layers=3",
]
EXAMPLES = [
    f"architecture={a.name} objective={o.name}"
    for o in REGISTRIES["objective"]
    for a in REGISTRIES["architecture"]
    if "teacher" not in {knob.name for knob in o.knobs}  # needs another run: see test_distillation
    and o.facts["produces"] in a.facts["accepts"]
    and (a.name != "causal" or o.facts["produces"] == "next tokens")
]


def with_required(overrides: str) -> list[str]:
    """The overrides with those that rules require (schedule_free requires a constant schedule)."""
    words = overrides.split()
    kind, _, name = words[0].partition("=")
    if kind == "optimizer":
        schedule = tiny_models.config(REGISTRIES[kind].entries[name])["schedule"]["name"]
        words.append(f"schedule={schedule}")
    if {"objective=answers", "objective=meta_icl"} & {*words}:
        words.append("objective.marker=101")  # the letter e
    return words


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("overrides", [*OPTIMIZERS, *STABILIZERS, *MLPS, *LAYERS, *EXAMPLES])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, text_file: Path, overrides: str) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "model.dropout=0.1", "train.batch_size=8"]
    settings += ["model.max_len=32", *with_required(overrides)]
    whole = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    cut = cut_and_resumed(settings, tmp_path)
    assert metrics(cut) == metrics(tmp_path / "whole")
    last = "checkpoints/step-00000012.model.safetensors"
    assert (cut / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
