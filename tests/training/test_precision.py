"""Precisions of a run: the loss scale of 16 bits, rollouts in the run's precision, state on the model's device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.policies import made
from helpers.runs import TINY, ablatio, metrics, summary
from torch import nn

from ablatio.errors import Diverged, EnvironmentFault
from ablatio.model.on_meta import meta_copy
from ablatio.model.optimizer_step import SkipStep
from ablatio.model.parameter_roles import groups_by_role, named_generator
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import sample_parts, tiny_models
from ablatio.training import precision
from ablatio.training.device import Machine
from ablatio.training.lightning_module import on_device
from ablatio.training.load import load_run
from ablatio.training.machine_history import MachineHistory
from ablatio.training.precision import SCALE, LossScaledPrecision

OPTIMIZERS = [entry.name for entry in REGISTRIES["optimizer"]]
METHODS = [e.name for e in REGISTRIES["alignment"] if e.facts["data"] == "prompts"]


@pytest.mark.slow
def test_16_bits_follow_32_and_clip_sees_unscaled_gradients(tmp_path: Path, text_file: Path) -> None:
    """The oracle is the run in 32 bits: with the scale in it the norm would be 65536 times as large."""
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "train.log_every=1", "trainer.device=cpu"]
    settings += ["stabilizer=[clip,skip_step,ema]"]
    rows = {}
    for name in ("32", "bf16", "16"):
        ran = ablatio(["train", *settings, f"name=in_{name}", f"trainer.precision={name}"], tmp_path / "log")
        assert ran.code == 0, ran.err
        rows[name] = [row for row in metrics(tmp_path / f"in_{name}") if row["train/loss"]]
    for name, most in (("16", 0.01), ("bf16", 0.05)):
        for row, exact in zip(rows[name], rows["32"], strict=True):
            for key in ("train/loss", "train/grad_norm"):
                assert float(row[key]) == pytest.approx(float(exact[key]), rel=most), (name, key)
            assert float(row["train/skipped_steps"]) == float(exact["train/skipped_steps"])
    assert {float(row[SCALE]) for row in rows["16"]} == {2.0**16} and SCALE not in rows["32"][0]
    assert rows["16"] != rows["32"] and rows["16"] != rows["bf16"], "16 is not another precision under its name"
    scored = [[row["val/loss"] for row in metrics(tmp_path / f"in_{name}")] for name in rows]
    assert scored[0] != scored[1] != scored[2] != scored[0], "scores are computed in the precision of the run"


def test_an_overflow_is_skipped_and_the_scale_is_in_the_checkpoint(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "INITIAL_SCALE", 2.0**22)
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "train.log_every=1", "trainer.device=cpu"]
    settings += ["trainer.precision=16", "train.steps=16", "train.keep=9", "optimizer=lion"]
    ran = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert ran.code == 0, ran.err
    scales = [float(row[SCALE]) for row in metrics(tmp_path / "whole") if row[SCALE]]
    assert scales[0] == 2.0**21 and scales[-2:] == [scales[-1]] * 2 and scales == sorted(scales, reverse=True)
    losses = [float(row["train/loss"]) for row in metrics(tmp_path / "whole") if row["train/loss"]]
    assert losses[-1] < losses[0] - 0.1, "once the scale is right, the run learns"
    # A run that is killed and resumed, at a scale that the checkpoint alone knows, goes on bit for bit.
    part = ablatio(
        ["train", *settings, "name=cut"], tmp_path / "log",
        kill_when=tmp_path / "cut/checkpoints/step-00000004.json",
    )  # fmt: skip
    assert part.code < 0
    assert ablatio(["train", f"resume={tmp_path / 'cut'}"], tmp_path / "log").code == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


class _Model(nn.Module):
    """What a plugin needs of the module that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.overflowed, self.metrics = False, dict[str, Any]()


class _Seen(LossScaledPrecision):
    """Records what hooks see, in place of Lightning's calls."""

    def _after_closure(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        if model.overflowed:
            raise SkipStep


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_with_unscaled_gradients(name: str) -> None:
    """Powers of two scale exactly: weights after three steps equal those without a scale, bit for bit."""
    weights = []
    for scaled in (False, True):
        groups = sample_parts.groups(torch.float32)
        optimizer = sample_parts.made(REGISTRIES["optimizer"][name], groups=groups)
        parameters, plugin, model = sample_parts.parameters(groups), _Seen("cpu"), _Model()
        plugin.scaler.scale(torch.ones(()))
        for step in range(3):
            given = [torch.randn(p.shape, generator=named_generator(step, str(i))) for i, p in enumerate(parameters)]

            def closure(given: Any = given, parameters: Any = parameters, scaled: bool = scaled) -> None:
                for p, g in zip(parameters, given, strict=True):
                    p.grad = g * precision.INITIAL_SCALE if scaled else g.clone()

            if scaled:
                plugin.optimizer_step(optimizer, model, closure)
                held = [p for group in optimizer.param_groups for p in group["params"]]
                order = [next(i for i, p in enumerate(parameters) if p is q) for q in held]
                assert all(torch.equal(g, given[i]) for g, i in zip(plugin.seen, order, strict=True))
            else:
                closure()
                optimizer.step()
        weights.append([p.detach() for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_scale_that_cannot_help_ends_the_run() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer, plugin, model = torch.optim.AdamW([weight], fused=True), _Seen("cpu"), _Model()
    plugin.scaler.scale(torch.ones(()))

    def closure() -> None:
        weight.grad = torch.full((2,), float("nan"))

    with pytest.raises(Diverged, match=r"loss scale fell to(.|\n)*trainer.precision=bf16"):
        for _ in range(100):
            with pytest.raises(SkipStep):
                plugin.optimizer_step(optimizer, model, closure)
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_ratio_to_the_sampling_policy_is_one_before_an_update(name: str, dtype: torch.dtype) -> None:
    """In 16 bits too, in each batch of the first pass: the old log-probabilities are those of the loss, bit for bit."""
    task, model = made(name, answer_tokens=6, prompt_tokens=6, accumulate=2)
    model.train()
    with torch.autocast("cpu", dtype=dtype):
        task.begin_step(model, 0)
        for number in range(2):
            _, _, measures = task.loss(model, task.example(task.training[number], named_generator(0, "x")))
            assert float(measures["train/old_kl"]) == 0
            assert float(measures.get("train/ratio", torch.ones(()))) == 1


def test_state_comes_back_on_the_device_of_the_model(tmp_path: Path, text_file: Path) -> None:
    """The meta device stands for a GPU: checkpoints are read on the CPU."""
    from ablatio.storage.checkpoints import Checkpoints
    from ablatio.training.run_folder import read_run
    from ablatio.training.run_spec import RunSpec

    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "stabilizer=[ema,outer,skip_step]"]
    assert ablatio(["train", *settings, "name=run"], tmp_path / "log").code == 0
    from ablatio.training.prepare import prepare_run

    spec = RunSpec(read_run(tmp_path / "run"))
    run, found = prepare_run(spec), Checkpoints(tmp_path / "run/checkpoints", run=spec.id).load()
    run.model.to("meta")
    run.learner.on_load_checkpoint(dict(found.state))
    for name in ("ema", "outer"):
        assert _devices(run.learner.stabilizers[name].state_dict()) == {"meta"}


def _devices(state: Any) -> set[str]:
    if isinstance(state, torch.Tensor):
        return {state.device.type}
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return {device for value in values for device in _devices(value)}


def test_a_rollout_comes_back_on_the_device_of_the_model() -> None:
    task, model = made("ppo", method_knobs={"epochs": 3})
    task.begin_step(model, 0)
    again, other = made("ppo", method_knobs={"epochs": 3})
    again.load_state_dict(on_device(task.state_dict(), torch.device("meta")))
    held = {k: v for k, v in again.state_dict().items() if k in ("words", "rollout")}
    assert _devices(held) == {"meta"}
    again.begin_step(other.to("meta"), 1)  # in the middle of the rollout's passes: nothing is sampled
    part = again._select(again._rows(1))
    assert _devices(part) == {"meta"} and again.rollout[again._rows(1)].tokens.device.type == "meta"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_continues_on_the_device_of_the_model(name: str) -> None:
    """State that was saved on the CPU steps the weights of a model on another device."""
    net, entry = tiny_models.model(), REGISTRIES["optimizer"][name]
    optimizer = sample_parts.made(entry, groups=groups_by_role(net))
    tiny_models.run(net, optimizer, 2)
    state = optimizer.state_dict()
    moved = sample_parts.made(entry, groups=groups_by_role(meta_copy(net)))
    moved.load_state_dict(state)
    for held in moved.state.values():
        tensors = {k: v for k, v in held.items() if k != "step"}  # torch keeps its own count of steps on the CPU
        assert _devices(tensors) <= {"meta"}, name


def test_a_resume_in_another_precision_is_said(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "trainer.device=cpu"]
    first = tmp_path / "run/checkpoints/step-00000004.json"
    part = ablatio(["train", *settings, "name=run", "trainer.precision=bf16"], tmp_path / "log", kill_when=first)
    assert part.code < 0
    ran = ablatio(["train", f"resume={tmp_path / 'run'}", "trainer.precision=32"], tmp_path / "log")
    said = " ".join(ran.out.split())
    assert ran.code == 0 and "computed in precision bf16 on cpu" in said and "trainer.precision=bf16" in said
    found = summary(tmp_path / "run")["machines"]
    assert [entry["precision"] for entry in found] == ["bf16", "32"] and found[1]["step"] >= 4  # type: ignore[attr-defined,index]
    state = json.loads((tmp_path / "run/manifest.json").read_text())
    assert state["machine"]["precision"] == "bf16"


def test_history_of_an_older_checkpoint_begins_with_the_manifest() -> None:
    history = MachineHistory.of({}, {"device": "cuda", "precision": "bf16", "threads": 1})
    assert "from here on in 32 on cpu" in history.proceed(Machine("cpu", "32", 1), 7)
    assert history.proceed(Machine("cpu", "32", 1), 9) == ""
    assert not MachineHistory.of({}, {}).proceed(Machine("cpu", "16", 1), 0)


def test_32_is_not_rounded_and_tf32_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        for name, matmul in (("32", "highest"), ("tf32", "high"), ("bf16", "high")):
            Machine("cuda", name, threads).prepare(64)
            assert torch.get_float32_matmul_precision() == matmul
            assert torch.backends.cudnn.allow_tf32 == (name != "32")
    finally:
        Machine("cpu", "32", threads).prepare(64)
    with pytest.raises(EnvironmentFault, match=r"tf32(.|\n)*try: trainer.precision=32"):
        Machine.choose({"device": "cpu", "precision": "tf32", "threads": 1})


def test_each_run_of_a_shared_gpu_counts_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from ablatio.registry.kinds.launch_types import GPU_RUNS
    from ablatio.training import estimate

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * 2**30, 16 * 2**30))
    trainer = {"device": "cuda", "precision": "32", "threads": 1}
    assert estimate.memory_here(trainer) == 16 * 2**30
    monkeypatch.setenv(GPU_RUNS, "4")
    assert estimate.memory_here(trainer) == 4 * 2**30


def test_averages_are_copied_into_the_storage_of_the_weights() -> None:
    """Whoever refers to it (a shard, a compiled graph) sees the averages, and the weights come back bit for bit."""
    net = tiny_models.model()
    for name in ("ema", "outer"):
        part = sample_parts.made(REGISTRIES["stabilizer"][name])
        tiny_models.run(net, tiny_models.adamw(net), 3, hooks=[part])
        views = {n: p.detach() for n, p in net.named_parameters()}  # share the storage
        trained = {n: v.clone() for n, v in views.items()}
        held = part.state_dict().get("slow", part.state_dict())
        with part.averaged(net):
            assert all(torch.equal(views[n], held[n]) for n in held)
        assert all(torch.equal(views[n], trained[n]) for n in views)


def test_loading_keeps_the_scored_weights(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "trainer.precision=16", "trainer.device=cpu"]
    assert ablatio(["train", *settings, "name=run"], tmp_path / "log").code == 0
    assert all(p.dtype == torch.float32 for p in load_run(tmp_path / "run")[0].model.parameters())
