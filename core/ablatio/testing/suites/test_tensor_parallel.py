"""What a part declares of its division over devices: they compute the loss and the gradients of one device."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.testing import checks, sample_parts, tiny_models, two_threads
from ablatio.testing.other_knob_values import other_values

FACTS = ("row_parallel", "tensor_parallel")  # by which a part says that it can be divided
TOLERANCE = 1e-9


def KINDS(registry: Registry[Any]) -> bool:  # noqa: N802
    """True for kinds of which the forward pass consists."""
    return registry.scope == "model" or "tensor_parallel" in registry.facts


def _refused(part: PartSpec, knobs: Mapping[str, Any]) -> str:
    """Why a strategy that divides heads refuses the small model with this part; "" if it does not."""
    try:
        made = tiny_models.config(part, knobs)
    except UserError as error:
        return str(error)
    if isinstance(knobs.get("targets"), tuple):
        return "names of layers"
    strategy = next((s.name for s in REGISTRIES["strategy"] if s.facts["splits"] == "heads"), None)
    if strategy is None:
        return "no strategy divides heads"
    made = made | {"strategy": {"name": strategy}, "trainer": made["trainer"] | {"devices": two_threads.COUNT}}
    return "; ".join(str(problem) for problem in tiny_models.broken_rules(made))


def _settings(part: PartSpec) -> Iterator[dict[str, Any]]:
    """The defaults; for a part that says how it is divided, each knob at another value, too."""
    yield {}
    if any(part.facts.get(fact) for fact in FACTS):
        yield from ({knob.name: value} for knob in part.knobs for value in other_values(knob)[:1])


def _model(part: PartSpec, knobs: Mapping[str, Any]) -> LanguageModel:
    """The small model, with weights none of which is zero; dropout would draw other numbers in each thread."""
    net = sample_parts.tuned(part, knobs)[0] if part.kind == "peft" else tiny_models.model(part, knobs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return net.double().eval()


def _loss(net: nn.Module) -> torch.Tensor:
    return tiny_models.mean_loss(net, tiny_models.example(2, 12))  # type: ignore[arg-type]


def test_divided_as_declared(part: PartSpec) -> None:
    """Loss and all gradients, in two threads with half of the heads and features each, are those of the whole model."""
    tried = 0
    for knobs in _settings(part):
        why = _refused(part, knobs)
        if why and not knobs:
            pytest.skip(why)
        if why:
            continue
        tried, net = tried + 1, _model(part, knobs)
        axes, found = two_threads.divided_axes(net), two_threads.gradients(net, _loss)
        loss = _loss(net)
        loss.backward()  # type: ignore[no-untyped-call]
        where = f"with {knobs}" if knobs else "with its defaults"
        for index, own in enumerate(found):
            checks.near(part, own["loss"], loss.detach(), f"{where}: the loss of a divided model", TOLERANCE)
            for name, p in net.named_parameters():
                if p.grad is None:
                    continue
                ours, theirs = own.get(name, torch.zeros_like(p)), p.grad
                if name in axes:
                    ours, theirs = (g.chunk(two_threads.COUNT, dim=axes[name])[index] for g in (ours, theirs))
                checks.near(part, ours, theirs, f"{where}: the gradient of {name} in a divided model", TOLERANCE)
    assert tried
