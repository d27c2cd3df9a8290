"""Prefix token prediction by hand, and in a run with a trained tokenizer."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio, metrics
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.registry.kinds import objectives
from ablatio_std.objectives.spelling import prefix_ids

TEXTS = ["", "t", "th", "the", "then", "x", "xy!", "\ufffd", "\ufffdt", "there"]
PREFIX = {2: 1, 3: 2, 4: 3, 6: 5, 9: 3}


def test_the_longest_token_that_a_token_begins_with() -> None:
    assert prefix_ids(TEXTS) == [PREFIX.get(i, -1) for i in range(len(TEXTS))]


@pytest.mark.oracle("objective=prefix_token", "a sum over positions in float64")
@pytest.mark.parametrize("head", ["plain", "softcap"])
def test_prefix_token_by_hand(head: str) -> None:
    torch.manual_seed(0)
    part = objectives.build("prefix_token", {"weight": 0.5}, vocab_size=len(TEXTS), eos=0, max_len=32)
    part.take_tokens(TEXTS[:-1])  # an id beyond the tokenizer's has no spelling
    model = build_model(model_config(objective="prefix_token", head=head), len(TEXTS)).double().eval()
    rows = torch.randint(1, len(TEXTS), (2, 12))
    example = part(rows, None, torch.Generator())
    total, count, measures = part.loss(model, example)
    logs = model(example.inputs).log_softmax(-1)
    own = prefix = 0.0
    for row, t in itertools.product(range(2), range(11)):
        target = int(rows[row, t + 1])
        own -= logs[row, t, target]
        prefix -= logs[row, t, PREFIX[target]] if target in PREFIX and target != 9 else 0.0
    assert count == 22
    torch.testing.assert_close(total, own + 0.5 * prefix)
    torch.testing.assert_close(measures["train/prefix_token"], prefix.detach() / 22)
    for ours, theirs in zip(
        *(torch.autograd.grad(y, [*model.parameters()]) for y in (total, own + 0.5 * prefix)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_run_learns_the_spelling_of_its_tokenizer(tmp_path: Path, text_file: Path) -> None:
    plain = [text for text in TINY if not text.startswith("tokenizer")]
    settings = [*plain, "objective=prefix_token", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    settings += [f"source.path={text_file}", f"out={tmp_path}", "train.steps=3", "train.log_every=1", "name=run"]
    run = ablatio(["train", *settings], tmp_path / "log")
    assert run.code == 0, run.err
    logged = [row["train/prefix_token"] for row in metrics(tmp_path / "run") if row.get("train/prefix_token")]
    assert logged and all(0 < float(x) < 6 for x in logged)
