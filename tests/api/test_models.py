"""`ablatio.build_model` and `ablatio.list_parts`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import ablatio as command
from lightning.pytorch import Callback

import ablatio
from ablatio.registry.registry import REGISTRIES


class First(Callback):
    """The weights before the first step."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.weights = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}


def test_a_model_is_a_plain_module_of_the_preset() -> None:
    model = ablatio.build_model("preset=llama2", "size=tiny")
    assert isinstance(model, torch.nn.Module)
    tokens = torch.arange(12).view(2, 6)
    logits = model(tokens)
    assert logits.shape[:2] == (2, 6) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("more", [(), ("peft=lora",), ("task=sft", "source=gsm_symbolic", "source.size=40")])
def test_a_model_has_the_weights_that_a_run_begins_with(
    settings: tuple[str, ...], more: tuple[str, ...], tmp_path: Path
) -> None:
    words = [s for s in settings if not (any(m.startswith("source=") for m in more) and s.startswith("source"))]
    words += [*more, "seed=7", "train.steps=1", "model.max_len=256"] if "task=sft" in more else [*more, "seed=7"]
    first = First()
    ablatio.train(*words, "train.steps=1", name="run", out=tmp_path, callbacks=[first], quiet=True)
    built = ablatio.build_model(*words).state_dict()
    assert built.keys() == first.weights.keys()
    assert all(torch.equal(built[name], first.weights[name]) for name in built)


def test_the_random_state_of_the_caller_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ablatio.build_model("size=tiny")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("words", [("preset=lama",), ("size=tiny", "norm=nothing"), ("model.d_model=0",)])
def test_a_wrong_option_is_the_error_of_the_command_line(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ablatio.ConfigError) as raised:
        ablatio.build_model(*words)
    assert command(["train", *words], tmp_path).err == f"ablatio: {raised.value}\n"


def test_a_model_that_cannot_fit_is_not_begun() -> None:
    with pytest.raises(ablatio.EnvironmentFault, match="176,247,271,424 parameters"):
        ablatio.build_model("preset=bloom", "size=176b")


def test_parts_are_listed_with_their_knobs() -> None:
    norms = {part.name: part for part in ablatio.list_parts("norm")}
    assert norms.keys() == set(REGISTRIES["norm"].names())
    rms = norms["rmsnorm"]
    assert str(rms) == "norm=rmsnorm" and rms.knobs["eps"] == REGISTRIES["norm"]["rmsnorm"].defaults["eps"]
    assert rms.paper == "arXiv:1910.07467" and rms.distribution.startswith("ablatio ") and rms.summary in repr(rms)
    assert {part.name for part in ablatio.list_parts("preset")} >= {"llama2", "bloom"}
    assert {part.kind for part in ablatio.list_parts()} >= {*REGISTRIES, "preset", "size"}


def test_a_kind_that_is_not_there_is_the_error_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ablatio.UserError, match="did you mean norm") as raised:
        ablatio.list_parts("norms")
    assert command(["list", "norms"], tmp_path).err == f"ablatio: {raised.value}\n"
