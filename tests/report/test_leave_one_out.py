"""Leave-one-out studies: a planted trick is found with its size, a planted dummy is not."""

from pathlib import Path

import numpy as np
import pytest
from helpers.runs import TINY
from helpers.runs import ablatio as command
from helpers.studies import Fake, write_study

import ablatio
from ablatio.report.analysis.findings import find
from ablatio.report.read.table import read_table
from ablatio.report.statistics import compare
from ablatio.report.statistics.comparison import excludes_zero

SEEDS, GAIN, NOISE, STUDIES = range(1, 6), 0.03, 0.006, 200


def test_simulated_studies_find_the_trick_with_its_size_and_not_the_dummies() -> None:
    """Of 200 studies of a stack with one trick and six dummies, each left out in turn, at 5 seeds."""
    draw = np.random.default_rng(7)
    found = covered = wrong = 0
    for _ in range(STUDIES):
        by_seed = {seed: 2.0 + draw.normal(0, 0.05) for seed in SEEDS}
        gains = {"stack": 0.0, "without the trick": GAIN} | {f"without dummy {i}": 0.0 for i in range(6)}
        values = {arm: {s: by_seed[s] + gain + draw.normal(0, NOISE) for s in SEEDS} for arm, gain in gains.items()}
        pairs = {pair.b if pair.a == "stack" else pair.a: pair for pair in compare(values, "stack").pairs}
        trick = pairs.pop("without the trick")
        sign = 1 if trick.a == "without the trick" else -1
        low, high = sorted(sign * x for x in (trick.corrected or (trick.difference.low, trick.difference.high)))
        found += excludes_zero(low, high) and low > 0
        covered += low <= GAIN <= high
        wrong += any(pair.p < 0.05 for pair in pairs.values())
    # A false finding in any of six dummies: at most 5 % of the studies, and 3 standard errors of 200 of them.
    assert wrong / STUDIES <= 0.05 + 3 * (0.05 * 0.95 / STUDIES) ** 0.5
    assert found / STUDIES > 0.8 and covered / STUDIES > 0.93


PARTS = '''\
import torch
from torch import Tensor, nn

from ablatio import embeddings, shortcuts
from ablatio.model.context import Context


@embeddings.register("leak", paper="arXiv:0000.00000")
class Leak(nn.Module):
    """x_t + 4 x_{t+1}: the next token is given away, so leaving this out costs much.  (B, T, D) -> same."""

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        return x + 4 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)


@shortcuts.register("idle", paper="arXiv:0000.00000")
class Idle(nn.Module):
    """x: it does nothing, so leaving it out changes nothing.  (B, T, D) -> same."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x
'''


@pytest.mark.long
def test_a_real_study_finds_a_leak_and_no_idle_part(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    axes = ["embedding=leak,plain", "shortcut=idle,none", "norm=rmsnorm,layernorm", "seed=1,2,3"]
    study = ["design=one_at_a_time", "name=study", "workers=1", f"source.path={text_file}", "train.val_every=null"]
    words = [*TINY, *axes, *study, "train.steps=60", "optimizer.lr=0.01", "parts=parts.py"]
    done = command(["train", "-m", *words], tmp_path / "log")
    assert done.code == 0, done.err
    folder = next(path.parent for path in tmp_path.rglob("study.json"))
    found = {}
    for sentence in ablatio.open_study(folder).verdict.sentences:
        left_out = {name for name in ("plain", "none", "layernorm") if name in f"{sentence.pair.a} {sentence.pair.b}"}
        if len(left_out) == 1:  # against the whole stack
            found[left_out.pop()] = sentence
    assert (found["plain"].kind, found["none"].kind) == ("resolved", "equal"), found
    trick = found["plain"].pair.difference
    assert min(abs(trick.low), abs(trick.high)) > 0.1, trick


def test_a_baseline_of_many_settings_is_called_baseline(tmp_path: Path) -> None:
    """Other arms are named by what they leave out, and a note says what the baseline is."""
    axes = {"norm": ["rmsnorm", "dyt"], "mlp": ["dense", "moe"], "activation": ["gelu", "silu"], "init": ["gpt2", "t5"]}
    base = {key: values[0] for key, values in axes.items()}
    arms = [base, *({**base, key: values[1]} for key, values in axes.items())]
    study = write_study(tmp_path / "s", Fake(axes=axes, arms=arms, design="one_at_a_time", baseline=base))
    found = find(read_table([study]))
    assert {row.arm.name for row in found.rows} == {"baseline", "dyt", "moe", "silu", "t5"}
    assert "baseline is norm=rmsnorm mlp=dense activation=gelu init=gpt2" in found.table.notes
