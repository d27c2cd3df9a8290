"""Memory of each device: what `ablatio size` says, and what is refused before a run starts."""

import json
from typing import Any

import pytest
from helpers.gangs import TINY

from ablatio.cli.size import run as size_command
from ablatio.config.compose import compose_run
from ablatio.errors import EnvironmentFault, UserError
from ablatio.model.cost import memory
from ablatio.training import estimate, largest_model
from ablatio.training.run_spec import RunSpec


def sizes(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    size_command([*TINY, *words, "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_size_divides_by_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4 devices each has 2 of 8 rows; zero3 divides all else too, and a given rate is that of one device."""
    one = sizes(capsys)
    assert "device" not in one and "seconds" not in one
    four = sizes(capsys, "strategy=zero3", "trainer.devices=4", "--flops", "1e12")
    device = four["device"]
    assert [device[use] for use in ("weights", "gradients", "optimizer")] == [  # type: ignore[index]
        -(-one[use] // 4)
        for use in ("weights", "gradients", "optimizer")  # type: ignore[operator]
    ]
    assert device["activations"] == 2 * one["activations"]  # type: ignore[index,operator]
    assert four["seconds"] == pytest.approx(5 * 8 * 32 * one["train_flops_per_token"] / 4e12)  # type: ignore[operator]
    moved = sizes(capsys, "strategy=fsdp", "strategy.offload=cpu", "trainer.devices=4")["device"]
    assert moved["optimizer"] == 0 and moved["host"] > one["optimizer"] / 4  # type: ignore[index,operator]
    size_command([*TINY, "strategy=ddp", "trainer.devices=4"])
    assert "each device" in capsys.readouterr().out
    with pytest.raises(UserError, match="try: --flops"):
        size_command([*TINY, "--flops", "0"])


def test_size_of_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4 layers each stage has 2, and all that is in no layer; 1f1b stores 2 of 8 microbatches, gpipe all."""
    words = ("model.n_layers=4", "trainer.devices=2", "strategy=pipeline", "strategy.microbatches=8")
    layer = (sizes(capsys, "model.n_layers=4")["weights"] - sizes(capsys, "model.n_layers=2")["weights"]) // 2  # type: ignore[operator]
    found = {name: sizes(capsys, *words, f"strategy.schedule={name}") for name in ("gpipe", "1f1b")}
    stored = {name: one["device"]["activations"] for name, one in found.items()}  # type: ignore[index]
    whole = found["gpipe"]
    assert whole["device"]["weights"] == whole["weights"] - 2 * layer  # type: ignore[index,operator]
    assert whole["device"]["optimizer"] == pytest.approx(2 * whole["device"]["weights"], rel=0.01)  # type: ignore[index]
    assert stored["gpipe"] == pytest.approx(8 * whole["activations"] / 2, rel=0.01)  # type: ignore[operator]
    assert stored["1f1b"] == pytest.approx(stored["gpipe"] * 2 / 8, rel=0.01)


def test_size_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4 devices in 2 groups each has half of the weights; or 1 / 4 of those in layers, and half of the others."""
    one = sizes(capsys)
    half = -(-one["weights"] // 2)  # type: ignore[operator]
    copies = sizes(capsys, "strategy=fsdp", "strategy.copies=2", "trainer.devices=4")["device"]
    assert copies["weights"] == half  # type: ignore[index]
    apart, grid = (
        sizes(capsys, "strategy=tensor", *words)["device"]
        for words in (("trainer.devices=2",), ("strategy.degree=2", "trainer.devices=4"))
    )
    assert grid["weights"] == pytest.approx(apart["weights"] / 2, abs=1)  # type: ignore[index]
    assert grid["activations"] == one["activations"] * 2  # type: ignore[index,operator]
    whole = sizes(capsys, "strategy=tensor", "trainer.devices=2", "optimizer=muon")["device"]
    assert whole["buffers"] > apart["buffers"] == 0  # type: ignore[index]


def test_refused_by_what_a_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With adamw, ddp needs 4 times the weights on each of two devices, and zero2 2.5 times."""

    def check(strategy: str) -> None:
        spec = RunSpec(compose_run([*TINY, f"strategy={strategy}", "trainer.devices=2"]).config)
        monkeypatch.setattr(estimate, "memory_here", lambda trainer: 2 * 3 * spec.memory.weights)
        estimate.check_memory(spec)

    check("zero2")
    with pytest.raises(EnvironmentFault, match=r"each of 2 devices with strategy=ddp has"):
        check("ddp")


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("tensor", marks=pytest.mark.long)])
def test_the_largest_model_that_fits(strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It fits, and one with a layer or a step of heads more does not; `tensor` has heads for each device."""
    words = (
        f"strategy={strategy}",
        "trainer.devices=4",
        "attention=gqa",
        "attention.n_kv_heads=4",
        "model.n_heads=4",
        "activation=gelu",
    )
    room, step = 4e6, 4 if strategy == "tensor" else 1
    fit: Any = sizes(capsys, *words, "--fit", f"{room:g}")["fit"]
    for what, further in (
        ("deepest", {"model.n_layers": 1}),
        ("widest", {"model.n_heads": step, "model.d_model": 8 * step, "attention.n_kv_heads": step}),
    ):
        settings, found = fit[what]["settings"], fit[what]
        assert settings.keys() == further.keys()
        same: Any = sizes(capsys, *words, *(f"{key}={value}" for key, value in settings.items()))
        assert same["device"]["total"] == found["bytes"] <= room and same["parameters"] == found["parameters"]
        larger: Any = sizes(capsys, *words, *(f"{key}={value + further[key]}" for key, value in settings.items()))
        assert larger["device"]["total"] > room


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes(capsys, "--fit", "1000")["fit"] == {"deepest": None, "widest": None}
    with pytest.raises(UserError, match="try: --fit"):
        size_command([*TINY, "--fit", "-1"])


def test_refused_if_the_whole_model_does_not_fit_before_it_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 8 devices fsdp leaves each half of what the weights take, but all build the model whole."""
    spec = RunSpec(compose_run([*TINY, "strategy=fsdp", "trainer.devices=8"]).config)
    monkeypatch.setattr(estimate, "memory_here", lambda trainer: int(8 * 0.9 * spec.memory.weights))
    with pytest.raises(EnvironmentFault, match="before they are divided"):
        estimate.check_memory(spec)
    monkeypatch.setattr(estimate, "memory_here", lambda trainer: int(8 * 1.1 * spec.memory.weights))
    estimate.check_memory(spec)


@pytest.mark.parametrize(
    ("words", "straight"),
    [
        ((), True),
        (("model.n_layers=3", "layers.attention=[mha,mha,linear]"), True),
        pytest.param(("layers.at.mlp={0:moe,-1:moe}",), True, marks=pytest.mark.long),
        pytest.param(("model.distinct_layers=2",), True, marks=pytest.mark.long),
        (("shortcut=denseformer",), False),  # layer n reads the n before it: not a line
    ],
)
def test_deep_models_are_counted_from_shallow_ones(
    words: tuple[str, ...], straight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count equals that of the whole model, which is built only if layers do not all cost the same."""
    config = compose_run([*TINY, *words]).config
    built: list[int] = []
    counted = largest_model._counted
    monkeypatch.setattr(largest_model, "_counted", lambda c, s: built.append(s["model.n_layers"]) or counted(c, s))
    depths = largest_model._Depths(config)
    for number in (40, 41):
        found = depths(number)
        assert (number not in built) == straight
        assert found == counted(config, {"model.n_layers": number})


def test_the_deepest_of_many_layers_builds_no_deep_model(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    counted = largest_model._counted
    monkeypatch.setattr(largest_model, "_counted", lambda c, s: built.append(s["model.n_layers"]) or counted(c, s))
    passes: list[int] = []
    saved = memory._saved_by
    monkeypatch.setattr(memory, "_saved_by", lambda c, v: passes.append(c["model"]["n_layers"]) or saved(c, v))
    found = largest_model.deepest(compose_run(TINY).config, 1e9)
    assert len(passes) == len(set(passes)), "the activations of a model were counted twice"
    assert found is not None and found.settings["model.n_layers"] > 300 and found.bytes <= 1e9
    assert sum(built) < 60  # layers
