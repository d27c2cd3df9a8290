"""LoraHub against its formula, and peft's own methods through peft=hf against peft itself."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ablatio import pefts
from ablatio.adapter_folder import save_adapter
from ablatio.compose import compose_run
from ablatio.errors import UserError


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def kept_loras(folder: Path) -> list[Any]:
    """Three LoRAs of the base, in folders; and the models that hold them."""
    nets = []
    for i in range(3):
        net, knobs = base(), {"targets": ("linear",), "rank": 2, "alpha": 6.0}
        pefts.build("lora", knobs).apply(net, i)
        for p in net.parameters():
            if p.requires_grad:
                p.data.normal_(generator=torch.Generator().manual_seed(i))
        save_adapter(folder / str(i), net, {"name": "lora", **pefts["lora"].defaults, **knobs})
        nets.append(net)
    return nets


@pytest.mark.oracle("peft=lorahub", "its formula on the LoRAs that were saved")
def test_lorahub_adds_up_what_was_trained(tmp_path: Path) -> None:
    loras, net = kept_loras(tmp_path), base()
    part = pefts.build("lorahub", {"adapters": [str(tmp_path / str(i)) for i in range(3)]})
    part.apply(net, 0)
    mixture = torch.tensor([0.5, -1.0, 2.0])
    net[0].adapter.weights.data = mixture
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 3
    x = torch.randn(4, 8)
    y = x
    for i in range(2):
        a, b = (sum(w * getattr(n[i].adapter, f"lora_{x}") for w, n in zip(mixture, loras, strict=True)) for x in "AB")
        y = y @ (net[i].weight + 3.0 * b @ a).T + net[i].bias
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-4)


def test_lorahub_finds_the_mixture_without_gradients(tmp_path: Path) -> None:
    kept_loras(tmp_path)
    net = base()
    part = pefts.build("lorahub", {"adapters": [str(tmp_path / str(i)) for i in range(3)], "l1": 0.0})
    part.apply(net, 0)
    weights, goal = net[0].adapter.weights, torch.tensor([0.6, -0.3, 1.0])
    for index in range(200):
        loss = (weights.detach() - goal).square().sum()
        part.before_step(SimpleNamespace(model=net, loss=loss, index=index))
    assert (net[1].adapter.best - goal).abs().max() < 0.05


def test_lorahub_refuses_what_it_cannot_mix(tmp_path: Path) -> None:
    kept_loras(tmp_path)
    with pytest.raises(UserError, match="names none"):
        pefts.build("lorahub").apply(base(), 0)
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(UserError, match="another base model"):
        pefts.build("lorahub", {"adapters": [str(tmp_path / "0")]}).apply(other, 0)


METHODS = {
    "vblora": ["num_vectors=4", "vector_length=4"],
    "miss": ["r=2"],
    "randlora": ["r=2"],
    "road": ["group_size=4"],
    "hira": ["r=2"],
}


@pytest.mark.oracle("peft=hf", "peft, put into the model by itself")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_peft(method: str) -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    net, theirs = base(), base()
    pefts.build("hf", {"method": method, "targets": ("linear",), "settings": METHODS[method]}).apply(net, 0)
    given = {k: int(v) for k, v in (s.split("=") for s in METHODS[method])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()](target_modules=["0", "1"], **given)
        PEFT_TYPE_TO_TUNER_MAPPING[method.upper()](theirs, config, "default")
    trains = {n for n, p in net.named_parameters() if p.requires_grad}
    assert trains == {n for n, p in theirs.named_parameters() if p.requires_grad} and trains
    theirs.load_state_dict(net.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(net(x), theirs(x))


def test_what_peft_does_not_know_is_listed() -> None:
    for knobs, said in (
        ({"method": "vblorra"}, "did you mean vblora"),
        ({"method": "prefix_tuning"}, "peft=prefix"),
        ({"settings": ("rang=4",)}, "key=value"),
        ({"settings": ("r=0",)}, "peft"),
    ):
        with pytest.raises(UserError, match=said):
            pefts.build("hf", {"targets": ("linear",), **knobs}).apply(base(), 0)


def test_settings_on_the_command_line() -> None:
    config = compose_run(["peft=hf", "peft.method=vblora", "peft.settings=['num_vectors=4','vector_length=4']"]).config
    assert config["peft"]["settings"] == ["num_vectors=4", "vector_length=4"]
