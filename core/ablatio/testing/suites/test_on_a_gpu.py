"""Find, without a GPU, where a part makes a training step wait for one, and what autocast leaves in float32."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ablatio.model.build import build_model
from ablatio.model.builder import PartChoice
from ablatio.model.language_model import loss_of
from ablatio.model.on_meta import meta_copy
from ablatio.model.parameter_roles import named_generator
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.testing import checks, tiny_models
from ablatio.testing.device_waits import WaitsForDevice, meta_as_gpu

ROWS, LENGTH = 4, 24
SEES_DOCUMENTS = ("attention", "position", "mlp", "objective")  # kinds that take another way in packed rows
LEAST = 0.05  # share of a model's FLOPs: the router of a mixture stays below it


def KINDS(registry: Registry[Any]) -> bool:  # noqa: N802
    """True for the kinds that a loss and its gradient consist of."""
    return registry.scope == "model" or registry.kind == "objective"


def _parts(part: PartSpec) -> list[PartSpec]:
    """The parts of the small model with this part."""
    config = tiny_models.config(part)
    names = {kind: (config.get(kind) or {}).get("name") for kind in REGISTRIES}
    return [REGISTRIES[kind][name] for kind, name in names.items() if name in REGISTRIES[kind].entries]


def _step(part: PartSpec, packed: bool) -> None:
    """Loss and gradient of a batch on the meta device in place of a GPU."""
    config = tiny_models.config(part)
    net = meta_copy(build_model(config, tiny_models.VOCAB)).train()
    choice = PartChoice.of(config["objective"])
    objective: Any = kinds.objectives.build(
        choice.name, choice.knobs, vocab_size=tiny_models.VOCAB, eos=0, max_len=LENGTH
    )
    if hasattr(objective, "learn_from"):
        objective.learn_from(meta_copy(build_model(config, tiny_models.VOCAB, seed=1)))
    segments = torch.arange(LENGTH + 1).div(9, rounding_mode="floor").expand(ROWS, -1) if packed else None
    example = objective(tiny_models.tokens(ROWS, LENGTH + 1), segments, named_generator(0, "waits")).to("meta")
    with meta_as_gpu():
        total, weight, _ = loss_of(objective, net, example)
        (total / weight).backward()  # type: ignore[no-untyped-call]


def test_a_step_waits_for_the_device_only_if_it_says_so(part: PartSpec) -> None:
    """No value is read, no shape depends on one, and nothing is copied from the host while it waits."""
    # The smallest model in which the part runs may have other parts that wait.
    reasons = (other.facts.get("waits") for other in _parts(part))
    reason, found = next(filter(None, reasons), ""), list[str]()
    for packed in (False, True) if part.kind in SEES_DOCUMENTS else (True,):
        try:
            _step(part, packed)
        except WaitsForDevice as wait:
            found.append(str(wait))
    assert bool(found) == bool(reason), f"{checks.label(part)}: " + (
        f"{found[0]}; declare the fact `waits` with the reason, or use new_full, masks and fixed shapes"
        if found
        else f"says that it waits ({reason}), and nothing waits"
    )


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FLOPs of matrix products by dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = Counter[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            first = next(a for a in args if isinstance(a, Tensor))
            self.flops[first.dtype] += count(*args, **(kwargs or {}), out_val=result)
        return result


def test_float32_products_are_declared(part: PartSpec) -> None:
    if "float32_products" not in part.facts:
        pytest.skip("its kind has no such fact")
    net = tiny_models.model(part).train()
    with torch.autocast("cpu", dtype=torch.bfloat16), _Products() as products:
        net.hidden(tiny_models.example(ROWS, LENGTH))
    share = products.flops[torch.float32] / max(1, products.flops.total())
    says = bool(part.facts["float32_products"])
    came = f"{share:.0%} of the products' FLOPs are in float32 under autocast, and float32_products = {says}"
    assert (share > LEAST) == says, f"{checks.label(part)}: {came}"
