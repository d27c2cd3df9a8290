"""Gradient accumulation equals one large batch, also when micro-batches differ in their number of targets."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.conversions import Conversions
from helpers.runs import TINY, ablatio, metrics
from safetensors.torch import load_file

import ablatio as lab

MEASURED = {  # overrides -> measures that they log
    "objective=multi_token": ("train/next_token",),
    "objective=token_order stabilizer=[clip,z_loss]": ("train/token_order",),
}
OBJECTIVES = [
    "objective=lm",
    "objective=prefix_lm objective.rate=0.4",  # batches with and without padded rows
    "objective=prefix_lm objective.rate=0.4 architecture=encoder_decoder",
]


@pytest.mark.parametrize("overrides", OBJECTIVES)
def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, overrides: str) -> None:
    # Documents of 3 to 45 bytes: a row of 33 tokens holds one or several, some too short to mask a token in.
    texts = ["abcdefghij" * 5] * 60
    texts = [text[: 3 + 7 * i % 43] for i, text in enumerate(texts)]
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join(f"{i} {text}" for i, text in enumerate(texts)), encoding="utf-8")
    settings = [*TINY, f"source.path={path}", f"out={tmp_path}", "model.max_len=32", "train.steps=4"]
    settings += ["optimizer=sgd", "optimizer.lr=0.5", "train.log_every=2", *overrides.split()]
    found, logged = [], []
    for batch, accumulate in ((8, 1), (4, 2), (1, 8)):
        name = f"run-{accumulate}"
        sizes = [f"train.batch_size={batch}", f"train.accumulate={accumulate}", f"name={name}"]
        ended = ablatio(["train", *settings, *sizes], tmp_path / "log")
        assert ended.code == 0, ended.err
        found.append(load_file(tmp_path / name / "checkpoints/step-00000004.model.safetensors"))
        logged.append([float(row["train/loss"]) for row in metrics(tmp_path / name) if row["train/loss"]])
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    # The logged loss of a step is the mean over all its targets, not a mean of its batches' means.
    assert len(logged[0]) == 2 and logged[1] == pytest.approx(logged[0], rel=2e-5)
    assert logged[2] == pytest.approx(logged[0], rel=2e-5)


def test_the_head_is_converted_once_a_step(tmp_path: Path, text_file: Path) -> None:
    """In 16 bits: for the three batches of a step together, and for all batches of a validation."""
    settings = [*TINY, f"source.path={text_file}", "trainer.precision=bf16", "trainer.device=cpu", "train.accumulate=3"]
    with Conversions((257, 16)) as seen:
        lab.train(*settings, out=tmp_path, name="run", quiet=True)
    scores = sum(bool(row["val/loss"]) for row in metrics(tmp_path / "run"))
    assert scores and seen.count == 12 + scores


def logged_alike(folder: Path, words: Sequence[str], measured: Sequence[str]) -> None:
    """Runs with 4 x 1, 2 x 2 and 1 x 4 rows a step log the same measures."""
    found = []
    for accumulate in (1, 2, 4):
        name = f"run-{accumulate}"
        sizes = [f"train.batch_size={4 // accumulate}", f"train.accumulate={accumulate}", f"name={name}"]
        ended = ablatio(["train", *words, *sizes, f"out={folder}"], folder / "log")
        assert ended.code == 0, ended.err
        rows = [row for row in metrics(folder / name) if row["train/loss"]]
        assert len(rows) == 4
        found.append([float(row[column]) for row in rows for column in ("train/loss", "train/grad_norm", *measured)])
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("overrides", MEASURED)
def test_measures_are_those_of_the_whole_step(tmp_path: Path, overrides: str) -> None:
    """The oracle is one batch of all rows; a measure of the last batch alone would be another number."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i}: {'ab' * (i % 9)} people meet on bridge {i % 7}." for i in range(60)))
    words = [*TINY, f"source.path={path}", "train.steps=4", "train.log_every=1", "optimizer=sgd", *overrides.split()]
    logged_alike(tmp_path, words, MEASURED[overrides])


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_measures_of_preferences_are_those_of_the_whole_step(tmp_path: Path, method: str) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": "yes" * (1 + i % 3), "rejected": "no" * (1 + i % 2)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [w for w in TINY if not w.startswith("source")]
    words += ["task=preference", f"alignment={method}", "source=feedback", f"source.path={path}", "model.max_len=64"]
    words += ["train.steps=4", "train.log_every=1", "optimizer=sgd"]
    logged_alike(tmp_path, words, ("train/reward_margin", "train/reward_accuracy"))
