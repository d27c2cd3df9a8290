"""Averages along a run against torch's AveragedModel and loops in float64."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics
from torch import nn

from ablatio.model.optimizer_step import OptimizerStep
from ablatio.registry.kinds import stabilizers
from ablatio.training.load import load_run

STEPS = 17


class Trained:
    """Steps of SGD on given gradients, with a stabilizer; `weights` holds those after each step of the optimizer."""

    def __init__(self, name, knobs, lr=lambda step: 0.1):
        self.net, self.part, self.weights, self.lr = nn.Linear(5, 4).double(), stabilizers.build(name, knobs), [], lr
        for p in self.net.parameters():
            nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
        self.net.bias.requires_grad_(False)
        self.start = self.net.weight.detach().clone()
        self.optimizer = torch.optim.SGD([self.net.weight], lr=1.0)

    def run(self, gradient, begin=0, stop=STEPS):
        zero = torch.zeros(())
        for index in range(begin, stop):
            self.optimizer.param_groups[0]["lr"] = self.lr(index)
            self.net.weight.grad = gradient(self.net.weight.detach(), index)
            step = OptimizerStep(self.net, [self.net.weight], self.optimizer, index, STEPS, zero, lambda: zero, 1)
            if hasattr(self.part, "before_step"):
                self.part.before_step(step)
            self.optimizer.step()
            self.weights.append(self.net.weight.detach().clone())
            self.part.after_step(step)
        return self

    @property
    def scored(self):
        bias = self.net.bias.clone()
        with self.part.averaged(self.net):
            assert torch.equal(self.net.bias, bias)  # it does not train
            return self.net.weight.detach().clone()


def noise(w, step):
    return torch.randn(w.shape, generator=torch.Generator().manual_seed(step), dtype=w.dtype)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("stabilizer=swa", "torch.optim.swa_utils.AveragedModel")
@pytest.mark.parametrize(
    ("start", "every", "taken"), [(0.5, 1, range(8, 17)), (0.5, 3, (8, 11, 14)), (0.0, 5, (4, 9, 14))]
)
def test_swa_is_torchs(start, every, taken):
    run = Trained("swa", {"start": start, "every": every}).run(noise)
    average = torch.optim.swa_utils.AveragedModel(run.net)
    for i in taken:
        run.net.weight.data.copy_(run.weights[i])
        average.update_parameters(run.net)
    close(run.scored, average.module.weight.detach())


def test_before_its_start_swa_scores_the_weights():
    run = Trained("swa", {"start": 0.9}).run(noise, stop=9)
    assert torch.equal(run.scored, run.weights[-1])


@pytest.mark.oracle("stabilizer=lawa", "the mean of the stored weights")
@pytest.mark.parametrize(("count", "every", "taken"), [(3, 4, (7, 11, 15)), (1, 1, (16,)), (9, 6, (5, 11))])
def test_lawa_is_the_mean_of_the_latest(count, every, taken):
    run = Trained("lawa", {"count": count, "every": every}).run(noise)
    close(run.scored, sum(run.weights[i] for i in taken) / len(taken))


@pytest.mark.oracle("stabilizer=ema_nesterov", "the recursion of the paper, with gradients at the point ahead")
@pytest.mark.parametrize(("lookahead", "decay"), [(0.6, 0.9), (2.0, 0.0)])
def test_ema_nesterov_by_hand(lookahead, decay):
    target, knobs = torch.randn(4, 5, dtype=torch.float64), {"lookahead": lookahead, "decay": decay, "start": 0.2}

    def lr(step):
        return 0.1 * (1 - step / STEPS)

    def gradient(w, step):  # depends on where it is computed
        return (w - target) + 0.1 * noise(w, step)

    run = Trained("ema_nesterov", knobs | {"end": 0.8}, lr).run(gradient)
    x, m, b = Trained("ema_nesterov", knobs).start, 0.0, 0.0
    for step in range(STEPS):
        ahead = x + b * m
        new = ahead - lr(step) * gradient(ahead, step)
        m, x = decay * m + (1 - decay) * (new - x), new
        b = lookahead * lr(step) / lr(0) if 0.2 * STEPS <= step + 1 < 0.8 * STEPS else 0.0
    close(run.scored, x)


@pytest.mark.parametrize("name", ["swa", "lawa", "ema_nesterov"])
def test_a_resumed_run_is_the_whole_one(tmp_path: Path, text_file: Path, name: str) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", f"stabilizer=[clip,{name}]"]
    settings += ["stabilizer.lawa.every=3"] if name == "lawa" else [f"stabilizer.{name}.start=0.2"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = cut_and_resumed(settings, tmp_path, 8)
    assert metrics(cut) == metrics(tmp_path / "whole")
    run, _ = load_run(cut)
    assert run.score(run.task.validation())["loss"] == json.loads((cut / "summary.json").read_text())["after"]["loss"]


def test_two_averages_are_refused(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "stabilizer=[clip,swa,ema]"]
    refused = ablatio(["train", *settings], tmp_path / "log")
    assert refused.code == 2 and "stabilizer=[clip,swa]" in refused.err
