"""Role of each parameter (matrix, vector, embedding, head), by which init, weight decay and optimizers treat it."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch import nn

from ablatio.registry.registry import ContractError

Role = Literal["matrix", "vector", "embedding", "head"]
ROLES: tuple[Role, ...] = ("matrix", "vector", "embedding", "head")
RESIDUAL_OUT = ("o_proj", "down_proj")  # their outputs are added to the residual stream
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
SIBLING = re.compile(r"(?:^|\.)further\.\d+\.")  # siblings of the last layer, for multi-token prediction
TRAINING_ONLY = re.compile(r"(?:^|\.)further(?:_heads)?\.\d+\.")  # these, and heads that an objective adds
R = TypeVar("R", bound=Callable[..., Any])
GAINED = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # matrices that a placement's gain scales


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """Role and place of a parameter in the model.

    role         matrix, vector (gains, biases), embedding or head
    fan_in, fan_out  of a matrix; for an embedding or head fan_out is the vocabulary and fan_in the width
    n_layers     number of layers of its stack
    layer        number of its layer in the stack, from 0; None outside the layers
    residual     True if its output is added to the residual stream
    d_model      width of the residual stream
    gain         factor that the placement puts on its initial value (deepnorm's beta), else 1
    """

    name: str
    role: Role
    fan_in: int
    fan_out: int
    n_layers: int
    residual: bool
    gain: float
    layer: int | None
    d_model: int


Rate = Callable[[ParameterInfo], float]


def with_fixed_decay(rate: R) -> R:
    """Mark a rate whose factors do not change weight_decay, so that the decay per step, lr * weight_decay, follows it.

    By default `apply_rates` divides weight_decay by the factor, which leaves the decay per step unchanged (muP).
    """
    rate.decay_factor = lambda info: 1.0  # type: ignore[attr-defined]
    return rate


class ProductRate:
    """Product of several rates.

    decay_factor  the factors by which `apply_rates` divides weight_decay: those of rates without a fixed decay
    """

    def __init__(self, *rates: Rate) -> None:
        self.rates = rates

    def __call__(self, info: ParameterInfo) -> float:
        """Return the factor on the learning rate of a parameter."""
        return math.prod(rate(info) for rate in self.rates)

    def decay_factor(self, info: ParameterInfo) -> float:
        """Return the divisor of the weight decay of a parameter."""
        return math.prod(_decay_factor(rate)(info) for rate in self.rates)


def _decay_factor(rate: Rate) -> Rate:
    return getattr(rate, "decay_factor", rate)


class ParameterGroup(TypedDict):
    """Parameter group for an optimizer: parameters with the same role and the same rate.

    rate  factor on their learning rate, given by the init; `apply_rates` multiplies it in, optimizers need not
    """

    params: list[nn.Parameter]
    role: Role
    rate: float


def describe(model: nn.Module) -> Iterator[tuple[nn.Parameter, ParameterInfo]]:
    """Yield each parameter of the model once, with its role and place.

    A module may declare what the shape of its own parameters does not show: `fans` (out, in) of experts or of a
    convolution, `roles` {parameter name: role}.
    """
    owners: dict[int, nn.Module] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), module)  # the first module owns it: a tied head's matrix is an embedding
    stacks = [(f"{path}.", m) for path, m in model.named_modules() if hasattr(m, "depth") and hasattr(m, "gain")]
    d_model = int(getattr(stacks[0][1], "d_model", 0)) if stacks else 0
    for name, parameter in model.named_parameters():
        _, stack = max(((path, m) for path, m in stacks if name.startswith(path)), default=("", None), key=_length)
        parent = name.split(".")[-2] if "." in name else ""
        owner = owners[id(parameter)]
        role = _role(name, parameter, owner)
        fan_out, fan_in = _fans(parameter, owner)
        depth = int(stack.depth) if stack is not None else 1
        numbered = LAYER.search(name)
        layer = int(numbered[1]) if numbered else depth - 1 if SIBLING.search(name) else None
        gain = _gain(stack, layer) if stack is not None and role == "matrix" and parent in GAINED else 1.0
        yield parameter, ParameterInfo(name, role, fan_in, fan_out, depth, parent in RESIDUAL_OUT, gain, layer, d_model)


def _gain(stack: Any, layer: int | None) -> float:
    """Factor of the placement of a layer; `gains` of a stack has one per layer where the placements differ."""
    gains = getattr(stack, "gains", ())
    return float(gains[layer] if gains and layer is not None else stack.gain)


def _length(found: tuple[str, nn.Module | None]) -> int:
    return len(found[0])


def _fans(parameter: nn.Parameter, owner: nn.Module) -> tuple[int, int]:
    if parameter.dim() < 2:
        return parameter.numel(), 1
    fans: tuple[int, int] | None = getattr(owner, "fans", None)
    return fans or (parameter.shape[0], parameter[0].numel())


def _role(name: str, parameter: nn.Parameter, owner: nn.Module) -> Role:
    declared: dict[str, Role] = getattr(owner, "roles", {})
    if (own := name.rpartition(".")[2]) in declared:
        return declared[own]
    if parameter.dim() < 2:
        return "vector"
    if isinstance(owner, nn.Embedding):
        return "embedding"
    return "head" if name.split(".")[-2:-1] == ["lm_head"] else "matrix"


def groups_by_role(model: nn.Module, rate: Rate | None = None) -> list[ParameterGroup]:
    """Group the trainable parameters by role and rate, in a fixed order so that an optimizer's state can be restored.

    rate: factor on the learning rate of each parameter, given by the init; None: 1 for all.
    """
    groups: dict[tuple[Role, float, float], ParameterGroup] = {}
    for parameter, info in describe(model):
        if parameter.requires_grad:
            key = (info.role, rate(info), _decay_factor(rate)(info)) if rate else (info.role, 1.0, 1.0)
            groups.setdefault(key, {"params": [], "role": key[0], "rate": key[1]})["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: ROLES.index(group["role"]))


def apply_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rate: Rate | None) -> None:
    """Multiply each group's learning rate by `rate` and divide its weight decay by it.

    Call once, before the first step; the decay per step, lr * weight_decay, is unchanged, except where the rate has a
    fixed decay (`with_fixed_decay`). Raises ContractError if a group mixes parameters with different rates: then the
    optimizer merged groups of `groups_by_role(model, rate)`.
    """
    if rate is None:
        return
    decay_factor = _decay_factor(rate)
    rates = {id(parameter): (rate(info), decay_factor(info)) for parameter, info in describe(model)}
    for group in optimizer.param_groups:
        found = {rates[id(stood_for(parameter))] for parameter in group["params"]}
        if len(found) > 1:
            raise ContractError(
                f"{type(optimizer).__name__} merges parameter groups to which the init assigns different learning-rate "
                f"factors {sorted(factor for factor, _ in found)}; an optimizer may keep or split the groups that it "
                "is given"
            )
        factor, divisor = found.pop() if found else (1.0, 1.0)
        group["lr"] = group["lr"] * factor
        if "weight_decay" in group:
            group["weight_decay"] = group["weight_decay"] / divisor


def apply_own(optimizer: torch.optim.Optimizer, model: nn.Module, own: Mapping[Role, Mapping[str, Any]]) -> None:
    """Replace settings of the groups of a role, such as {"head": {"betas": (0.8, 0.95)}}; a group without one keeps it.

    Call before `apply_rates`, which divides a weight decay by the rate.
    """
    role = {id(parameter): info.role for parameter, info in describe(model)}
    for group in optimizer.param_groups:
        for name in {role[id(stood_for(p))] for p in group["params"]}:
            group.update({key: value for key, value in own.get(name, {}).items() if key in group})


def stood_for(parameter: Any) -> nn.Parameter:
    """Return the parameter of the model that a tensor of an optimizer stands for; usually it is that parameter."""
    found: nn.Parameter = getattr(parameter, "stands_for", parameter)
    return found


def named_seed(seed: int, name: str) -> int:
    """Derive a seed from (seed, name): equal names draw equal numbers, whatever else the model contains."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def named_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator seeded by (seed, name)."""
    return torch.Generator().manual_seed(named_seed(seed, name))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore it afterwards.

    What a part draws in its constructor then depends on its place in the model, not on the parts built before it.
    """
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU's too
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
