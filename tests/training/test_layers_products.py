"""Parts per layer and what else changes a run: schedules of settings, counts, checkpointing, shared weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import TINY
from torch import nn

import ablatio
from ablatio.config.compose import compose_run
from ablatio.model.cost.flops import Work
from ablatio.training.prepare import prepare_run
from ablatio.training.run_spec import RunSpec

Read = Callable[[nn.Module], Any]
SIZE = ["model.n_layers=4", "model.d_model=16", "model.n_heads=2"]


def spec(text_file: Path, *words: str) -> RunSpec:
    return RunSpec(compose_run([*TINY, f"source.path={text_file}", *SIZE, *words]).config)


def of_layers(part: str, name: str) -> Callable[[Any], list[Any]]:
    return lambda model: [getattr(getattr(layer, part), name, None) for layer in model.model.layers]


def of_positions(name: str) -> Callable[[Any], list[Any]]:
    return lambda model: [m.base for m in model.modules() if getattr(m, "built_as", "") == name]


# settings, how the values are read, those at the first and at the last step
REACHED: dict[str, tuple[list[str], Callable[[Any], list[Any]], list[Any], list[Any]]] = {
    "a window": (
        ["attention=sliding", "attention.window=linear(4,16)",
         "layers.attention=[{sliding: {window: 16}},sliding,mha,lambda_window]"],
        of_layers("self_attn", "window"), [16, 4, None, 4], [16, 16, None, 16]),
    "a cap of all softmax attentions": (
        ["attention.softcap=stages(0@0,20@0.5)", "layers.attention=[{sliding: {softcap: 5}},mha,sliding,mqa]"],
        of_layers("self_attn", "softcap"), [5, 0, 0, 0], [5, 20, 20, 20]),
    "weights of a loss": (
        ["mlp=moe", "mlp.balance=linear(0,0.1)", "layers.mlp=[{moe: {balance: 0.5}},moe,dense,moe]"],
        of_layers("mlp", "balance"), [0.5, 0, None, 0], [0.5, 0.1, None, 0.1]),
    "an angle": (  # the run's own position, then others of layers; a constant equal to the largest value stays, too
        ["position.base=stages(100@0,10000@0.5)",
         "layers.position=[{rope: {base: 10000}},rope,{rope: {fraction: 0.5}},xpos]"],
        of_positions("position"), [100, 10000, 100, 100], [10000, 10000, 10000, 10000]),
}  # fmt: skip


@pytest.mark.parametrize("case", REACHED)
def test_a_schedule_reaches_the_layers_that_take_the_knob_from_the_run(case: str, text_file: Path) -> None:
    words, read, first, last = REACHED[case]
    run = prepare_run(spec(text_file, *words))
    for step, expected in ((0, first), (11, last), (0, first)):
        assert run.learner.scheduled is not None
        run.learner.scheduled.set(step)
        assert read(run.model) == pytest.approx(expected)


def test_flops_are_of_the_windows_that_each_layer_has(text_file: Path) -> None:
    """Oracle: the sum over the steps of models with constant windows."""
    layers = ["attention=sliding", "layers.attention=[{sliding: {window: 3}},sliding,mha]", "train.steps=4"]
    found = spec(text_file, *layers, "attention.window=linear(4,16)").train_flops
    constant = [spec(text_file, *layers, f"attention.window={w}") for w in (4, 8, 12, 16)]
    assert found == pytest.approx(sum(s.cost().of(Work.trained(4 * 16)) for s in constant), rel=1e-12)


@pytest.mark.parametrize("more", [["checkpointing=full"], ["model.distinct_layers=2"]])
def test_resumed_and_recomputed_runs_follow_the_schedule(more: list[str], text_file: Path, tmp_path: Path) -> None:
    """Recomputing gives the same weights as not; sharing weights keeps each layer's own window."""
    words = [*TINY, f"source.path={text_file}", *SIZE, f"out={tmp_path}", "attention=sliding", "train.steps=4",
             "attention.window=linear(4,16)", "layers.attention=[{sliding: {window: 6}},sliding]"]  # fmt: skip
    shared = [word for word in more if "distinct" in word]
    one = ablatio.train(*words, *more, "name=one", quiet=True)
    two = ablatio.train(*words, *shared, "train.checkpoint_every=2", "name=two", quiet=True)
    ours, theirs = one.model.state_dict(), two.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert [layer.self_attn.window for layer in one.model.model.layers] == [6, 16, 6, 16]
