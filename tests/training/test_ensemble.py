"""Several models that predict as one: `ablatio evaluate RUN --with RUN2`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import TINY, ablatio
from helpers.support import model_config

from ablatio.data.batches import ValidationBatches
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.ensemble import Ensemble
from ablatio.registry.kinds import objectives
from ablatio.training.evaluate import evaluate

V, LENGTH = 30, 8
DIFFERENT = (
    model_config(max_len=LENGTH, position="alibi"),
    model_config(max_len=LENGTH, d_model=48, norm="layernorm", tied=True),
    model_config(max_len=LENGTH, attention="mqa", head={"name": "softcap", "cap": 1.5}),
)


def models():
    return [build_model(config, V, seed=seed).eval() for seed, config in enumerate(DIFFERENT)]


def batches():
    tokens = np.random.default_rng(0).integers(1, V, 57).astype(np.uint16)
    return tokens, ValidationBatches(tokens, LENGTH, 3, eos=0)


def scored(model):
    objective = objectives.build("lm", {}, vocab_size=V, eos=0, max_len=LENGTH)
    return evaluate(model, objective, batches()[1], np.ones(V), torch.device("cpu"))


def test_scores_are_those_of_the_mean_of_the_probabilities():
    """Oracle: the softmax of the logits of each model, averaged, in plain torch."""
    members, (tokens, _) = models(), batches()
    rows = torch.from_numpy(tokens[:57].astype(np.int64)).unfold(0, LENGTH + 1, LENGTH)  # (7, LENGTH + 1)
    with torch.no_grad():
        mean = torch.stack([m(rows[:, :-1]).double().softmax(-1) for m in members]).mean(0)
    targets = rows[:, 1:]
    found = scored(Ensemble(members))
    assert found.loss == pytest.approx(-mean.gather(-1, targets[..., None]).log().mean().item(), rel=1e-5)
    assert found.accuracy == pytest.approx((mean.argmax(-1) == targets).double().mean().item())
    assert found.bpb == pytest.approx(found.loss / math.log(2), rel=1e-9)  # a byte for each token


def test_the_mean_is_no_worse_than_the_mean_loss_and_of_equal_models_the_same():
    members = models()
    alone = [scored(m).loss for m in members]
    assert scored(Ensemble(members)).loss < sum(alone) / len(alone)
    assert scored(Ensemble([members[0], members[0]])).loss == pytest.approx(alone[0], rel=1e-6)


def test_models_with_other_vocabularies_are_refused():
    with pytest.raises(UserError, match="30, 31 ids"):
        Ensemble([build_model(DIFFERENT[0], V), build_model(DIFFERENT[0], V + 1)])


@pytest.mark.slow
def test_runs_are_scored_together(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "train.steps=6"]
    for name, more in (("one", ["seed=1"]), ("two", ["seed=2", "position=alibi"])):
        assert ablatio(["train", *settings, *more, f"name={name}"], tmp_path / "log").code == 0
    learned = ["tokenizer=bpe", "tokenizer.vocab_size=300", "name=other"]
    other = [*(word for word in settings if word != "tokenizer=bytes"), *learned]
    assert ablatio(["train", *other], tmp_path / "log").code == 0
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    found = ablatio(["evaluate", one, "--with", two, "--json"], tmp_path / "log")
    assert found.code == 0, found.err
    alone, together = json.loads(found.out)["scores"]
    second = json.loads(ablatio(["evaluate", two, "--json"], tmp_path / "log").out)["scores"][0]
    assert together["models"] == 2 and together["tokens"] == alone["tokens"]
    assert together["loss"] < (alone["loss"] + second["loss"]) / 2
    shown = ablatio(["evaluate", one, "--with", two, "--stride", "8"], tmp_path / "log")
    assert shown.code == 0 and "2 models" in shown.out
    refused = ablatio(["evaluate", one, "--with", str(tmp_path / "other")], tmp_path / "log")
    assert refused.code == 2 and "another tokenizer" in refused.err
    for flags in (["--adapt", "0.1"], ["--quantization", "int8"]):
        refused = ablatio(["evaluate", one, "--with", two, *flags], tmp_path / "log")
        assert refused.code == 2 and f"{flags[0]} has no effect with --with" in refused.err
