"""Validation results beside the loss: loss by position and the standard error of the loss."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import TINY, ablatio
from torch import Tensor

from ablatio.registry import kinds
from ablatio.registry.discovery import load
from ablatio.training.evaluate import PARTS, Score, evaluate

load()


class FakeModel(torch.nn.Module):
    """Model that returns given losses per token."""

    vocab_size = 50

    def __init__(self, losses: list[Tensor]) -> None:
        super().__init__()
        self.losses = iter(losses)

    def token_scores(self, example):
        loss = next(self.losses)
        return loss, torch.zeros_like(loss, dtype=torch.bool)


def score(losses: list[Tensor], unscored: Tensor | None = None) -> Score:
    """Evaluate with the given losses (B, T) under objective=lm; `unscored` (T,) marks targets of weight 0."""
    plain = kinds.objectives.build("lm", {}, vocab_size=50, eos=0, max_len=64)

    def objective(tokens, segments, generator):
        made = plain(tokens, segments, generator)
        return made if unscored is None else replace(made, weights=(~unscored).float().expand(made.targets.shape))

    batches = [{"tokens": torch.zeros(len(loss), loss.shape[1] + 1, dtype=torch.long)} for loss in losses]
    return evaluate(FakeModel(losses), objective, batches, np.ones(50, dtype=np.int64), torch.device("cpu"))


@pytest.mark.parametrize("lengths", [[64], [64, 64], [40, 64], [16], [5]])
def test_loss_by_position_matches_a_loop(lengths: list[int]):
    generator = torch.Generator().manual_seed(3)
    losses = [torch.rand(3, n, generator=generator) for n in lengths]
    found = score(losses).by_position
    parts = min(PARTS, max(lengths))
    edges = np.array_split(np.arange(max(lengths)), parts)
    for part, places in zip(found, edges, strict=True):
        values = [float(row[t]) for loss in losses for row in loss for t in places if t < loss.shape[1]]
        assert part == pytest.approx(np.mean(values), rel=1e-6) if values else math.isnan(part)
    assert len(found) == parts


def test_loss_by_position_averages_to_the_loss():
    made = score([torch.rand(4, 64, generator=torch.Generator().manual_seed(1))])
    assert np.mean(made.by_position) == pytest.approx(made.loss, rel=1e-6)


def test_unscored_tokens_are_left_out_of_positions():
    loss, unscored = torch.ones(2, 64), torch.arange(64) % 7 == 0
    loss[:, unscored] = 1000.0
    made = score([loss], unscored)
    assert made.loss == 1.0 and set(made.by_position) == {1.0}
    nothing = score([loss], torch.arange(64) < 8)
    assert math.isnan(nothing.by_position[0]) and "position/1" not in nothing.numbers()
    assert "position/3" in nothing.numbers()


def test_run_summary_contains_loss_by_position(tmp_path: Path, text_file: Path):
    done = ablatio(["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run"], tmp_path / "log")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    parts = [summary["after"][f"position/{i}"] for i in range(1, 17)]
    assert np.mean(parts) == pytest.approx(summary["after"]["loss"], rel=1e-6)
    assert summary["memory"] > 50e6


def test_standard_error_of_the_loss_matches_statsmodels() -> None:
    """Rows are clusters of correlated tokens here, so the error exceeds that of independent tokens."""
    import statsmodels.api as sm

    generator = torch.Generator().manual_seed(5)
    losses = [torch.rand(3, n, generator=generator) + torch.rand(3, 1, generator=generator) for n in (16, 16, 9)]
    rows = np.concatenate([np.repeat(3 * i + np.arange(3), loss.shape[1]) for i, loss in enumerate(losses)])
    tokens = torch.cat([loss.flatten() for loss in losses]).double().numpy()
    fit = sm.OLS(tokens, np.ones_like(tokens)).fit(
        cov_type="cluster", cov_kwds={"groups": rows, "use_correction": False}
    )
    found = score(losses)
    assert found.loss == pytest.approx(fit.params[0]) and found.error == pytest.approx(fit.bse[0])
    assert found.error > tokens.std() / len(tokens) ** 0.5
