"""Scores with overlapping rows, and the bytes of an artifact."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import TINY, ablatio
from helpers.support import model_config

from ablatio.config.compose import compose_run
from ablatio.data.batches import ValidationBatches
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.cost.artifact import compressed_bytes, stored_bytes
from ablatio.registry.kinds import objectives, quantizations
from ablatio.sweep.plan import plan_sweep
from ablatio.training.evaluate import evaluate
from ablatio.training.run_spec import RunSpec

V, LENGTH = 30, 8


def batches(count, **more):
    tokens = np.random.default_rng(0).integers(1, V, count).astype(np.uint16)
    return tokens, ValidationBatches(tokens, LENGTH, 3, eos=0, **more)


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_every_target_is_scored_once_with_enough_context(stride):
    tokens, plain = batches(44)
    model = build_model(model_config(max_len=LENGTH, position="alibi"), V).eval()
    objective, sizes = objectives.build("lm", {}, vocab_size=V, eos=0, max_len=LENGTH), np.ones(V)
    score = evaluate(model, objective, plain.overlapping(stride), sizes, torch.device("cpu"))
    targets = 40  # five rows of eight; the last tokens fill no row
    nats, begin, seen = 0.0, 0, 0
    while seen < targets:  # by hand: the first row whole, then the last new targets of each
        begin = min(begin, targets - LENGTH)
        row = torch.from_numpy(tokens[begin : begin + LENGTH + 1].astype(np.int64))[None]
        losses = model.token_losses(objective(row, None, torch.Generator()))[0]
        nats += losses[seen - begin :].sum().item()
        seen, begin = begin + LENGTH, begin + stride
    assert score.tokens == targets and score.loss == pytest.approx(nats / targets, rel=1e-6)
    if stride == LENGTH:
        assert score.loss == pytest.approx(evaluate(model, objective, plain, sizes, torch.device("cpu")).loss, rel=1e-9)


def test_strides_that_leave_something_out_are_refused():
    for stride in (0, 9):
        with pytest.raises(UserError, match="expected 1 to 8"):
            batches(44)[1].overlapping(stride)
    with pytest.raises(UserError, match="spread over the text"):
        batches(200, val_tokens=32)[1].overlapping(4)


@pytest.mark.parametrize("name", ["int8", "int6", "ternary", "none"])
def test_stored_bytes_are_those_of_the_codes(name):
    config = model_config(max_len=LENGTH, tied=True) | {"quantization": {"name": name, "qat": True}}
    config |= {"peft": {"name": "none"}, "train": {}, "data": {}}
    if name == "none":
        del config["quantization"]["qat"]
    model = build_model(config, V)
    quantizations.build(name, {}).apply(model)
    by_hand = 0
    for _, tensor in model.state_dict().items():
        by_hand += tensor.numel() * (1 if tensor.dtype in (torch.uint8, torch.int8) else 2)
    by_hand -= 2 * 32 * V  # the head is the embedding
    assert stored_bytes(model) == by_hand == RunSpec(config, ids=V).stored_bytes
    packed = compressed_bytes(model)
    assert 0.5 * by_hand < packed < 1.05 * by_hand + 500


def test_equal_weights_compress_well():
    model = build_model(model_config(), V)
    for p in model.parameters():
        torch.nn.init.ones_(p)
    assert compressed_bytes(model) < 0.02 * stored_bytes(model)
    assert compressed_bytes(model) == len(lzma.compress(b"\x80\x3f" * (stored_bytes(model) // 2), preset=9))


def test_arms_are_matched_by_the_bytes_of_their_weights():
    words = ["quantization=int8,int4", "quantization.qat=true", "match=bytes", "size=tiny", "tokenizer=bytes"]
    one, other = (compose_run(list(job.overrides)).config for job in plan_sweep(words).jobs)
    assert RunSpec(other).stored_bytes == pytest.approx(RunSpec(one).stored_bytes, rel=0.01)
    assert other["model"]["d_ff"] > 400 and one["model"]["d_ff"] is None


def test_a_run_says_its_bytes_and_its_score_with_a_stride(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "quantization=int6", "quantization.qat=true"]
    assert ablatio(["train", *settings, "train.steps=2", "name=run"], tmp_path / "log").code == 0
    told = ablatio(["artifact", str(tmp_path / "run"), "--json"], tmp_path / "log")
    found = json.loads(told.out)
    assert found["artifact"] == found["compressed"] + found["code"] and found["compressed"] < 1.1 * found["weights"]
    plain, dense = (
        json.loads(ablatio(["evaluate", str(tmp_path / "run"), "--json", *more], tmp_path / "log").out)["scores"][0]
        for more in ([], ["--stride", "4"])
    )
    assert dense["stride"] == 4 and dense["tokens"] == plain["tokens"] and dense["loss"] != plain["loss"]


@pytest.mark.parametrize("stride", [None, 3])
def test_each_batch_is_scored_before_it_is_learned_from(stride):
    """Against a loop with autograd; the weights are put back, and a step of 0 changes no score."""
    from ablatio.training.test_time import TrainedOnTheWay

    _, rows = batches(60)
    rows = rows if stride is None else rows.overlapping(stride)
    model = build_model(model_config(max_len=LENGTH, position="alibi"), V).double().eval()
    objective, rate = objectives.build("lm", {}, vocab_size=V, eos=0, max_len=LENGTH), 0.1
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with TrainedOnTheWay(rows, model, objective, rate) as trained_on:
        scored = [trained_on[i] for i in range(len(rows))]
        assert len(trained_on) == len(rows) == len(scored) > 1

    def score(given):
        return evaluate(model, objective, (given[i] for i in range(len(given))), np.ones(V), torch.device("cpu"))

    with TrainedOnTheWay(rows, model, objective, rate) as trained_on:
        adapted = score(trained_on)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    nats, tokens = 0.0, 0
    for batch in (rows[i] for i in range(len(rows))):
        example = objective(batch["tokens"], batch.get("segments"), torch.Generator())
        losses = torch.nn.functional.cross_entropy(model(example.inputs).mT, example.targets, reduction="none")
        counts = batch["scored"].double() if "scored" in batch else torch.ones_like(losses)
        nats, tokens = nats + (losses * counts).sum().item(), tokens + int(counts.sum())
        names = [n for n, _ in model.named_parameters()]
        gradients = torch.autograd.grad(losses.mean(), [*model.parameters()])
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                model.get_parameter(name).sub_(gradient, alpha=rate)
    assert adapted.tokens == tokens and adapted.loss == pytest.approx(nats / tokens, rel=1e-9)
    model.load_state_dict(before, strict=False)
    with TrainedOnTheWay(rows, model, objective, 0.0) as trained_on:
        assert score(trained_on).loss == pytest.approx(score(rows).loss, rel=1e-12) != pytest.approx(adapted.loss)
    with pytest.raises(UserError, match="all weights of this model are frozen"):
        TrainedOnTheWay(rows, model.requires_grad_(False), objective, rate)


@pytest.mark.slow
def test_a_run_is_scored_with_test_time_training(tmp_path, text_file):
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", "train.steps=4"]
    assert ablatio(["train", *settings], tmp_path / "log").code == 0

    def said(*flags):
        done = ablatio(["evaluate", str(tmp_path / "run"), "--json", *flags], tmp_path / "log")
        assert done.code == 0, done.err
        return json.loads(done.out)["scores"][0]

    plain, adapted, small = said(), said("--adapt", "0.3"), said("--adapt", "0.3", "--adapter", "lora", "--stride", "4")
    assert adapted["tokens"] == plain["tokens"] and adapted["loss"] != plain["loss"]
    assert adapted["adapt"] == small["adapt"] == 0.3 and small["stride"] == 4
    for flags, match in ((["--adapter", "lora"], "--adapt 0.01 --adapter lora"), (["--adapt", "-1"], "above 0"),
                         (["--adapt", "1", "--adapter", "lro"], "lora")):  # fmt: skip
        done = ablatio(["evaluate", str(tmp_path / "run"), *flags], tmp_path / "log")
        assert done.code == 2 and match in done.err
