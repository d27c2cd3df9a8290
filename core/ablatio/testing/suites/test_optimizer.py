"""Optimizers: groups of parameters by role -> a torch Optimizer that schedules can drive."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.model.parameter_roles import ParameterInfo, apply_rates, describe, groups_by_role
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, tiny_models

KINDS = ("optimizer",)
PLAIN = (bool, int, float, str, type(None))


def _made(part: PartSpec, seed: int = 0) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    groups = sample_parts.groups(torch.float64, seed)
    return sample_parts.made(part, groups=groups), sample_parts.parameters(groups)


def _steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int, seed: int = 0) -> None:
    for i in range(count):
        for j, p in enumerate(parameters):
            p.grad = checks.randn(*p.shape, seed=1000 * seed + 50 * i + j, dtype=p.dtype)
        optimizer.step()


def test_takes_every_parameter_once(part: PartSpec) -> None:
    optimizer, parameters = _made(part)
    came = isinstance(optimizer, torch.optim.Optimizer)
    assert came, f"{checks.label(part)}: gives {type(optimizer).__name__}; expected a torch Optimizer"
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    missing = [i for i, p in enumerate(parameters) if held.count(id(p)) != 1]
    assert not missing, f"{checks.label(part)}: parameters {missing} are not in its groups exactly once"


def test_lowers_a_quadratic(part: PartSpec) -> None:
    optimizer, parameters = _made(part)
    targets = [checks.randn(*p.shape, seed=9 + i, dtype=p.dtype) for i, p in enumerate(parameters)]
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.stack([(p - t).square().mean() for p, t in zip(parameters, targets, strict=True)]).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    checks.finite(part, torch.stack(losses), "in the loss of a quadratic")
    first, last = float(losses[0]), float(losses[-1])
    assert last < 0.99 * first, f"{checks.label(part)}: a quadratic goes from {first:.4g} to {last:.4g} in 150 steps"


def test_trains_a_model(part: PartSpec) -> None:
    net = tiny_models.model()
    losses = tiny_models.run(net, sample_parts.made(part, groups=groups_by_role(net)), 30)
    checks.finite(part, torch.tensor(losses), "in the loss of a tiny model")
    went = f"goes from {losses[0]:.4f} to {losses[-1]:.4f}"
    assert losses[-1] < losses[0] - 0.01, (
        f"{checks.label(part)}: the loss of a tiny model on one batch {went} in 30 steps"
    )


def _as_saved(state: Any) -> Any:
    """The state as a checkpoint gives it back: tensors are contiguous, whose products may round in another way."""
    if isinstance(state, Tensor):
        return state.contiguous().clone()
    if isinstance(state, dict):
        return {key: _as_saved(value) for key, value in state.items()}
    return [_as_saved(value) for value in state] if isinstance(state, list) else copy.deepcopy(state)


def test_state_continues_bit_for_bit(part: PartSpec) -> None:
    optimizer, parameters = _made(part)
    _steps(optimizer, parameters, 5)
    again, copies = _made(part)
    with torch.no_grad():
        for p, q in zip(parameters, copies, strict=True):
            q.copy_(p)
    again.load_state_dict(_as_saved(optimizer.state_dict()))
    for o, ps in ((optimizer, parameters), (again, copies)):
        _steps(o, ps, 5, seed=1)
    different = [i for i, (p, q) in enumerate(zip(parameters, copies, strict=True)) if not torch.equal(p, q)]
    assert not different, (
        f"{checks.label(part)}: after state_dict and load_state_dict, parameters {different} go on differently; "
        "all that a step reads has to be in the state"
    )


def test_state_is_plain(part: PartSpec) -> None:
    """Checkpoints hold tensors and JSON values, never objects."""
    optimizer, parameters = _made(part)
    _steps(optimizer, parameters, 2)
    wrong = list(dict.fromkeys(_objects(optimizer.state_dict())))
    assert not wrong, f"{checks.label(part)}: its state holds {', '.join(wrong)}; expected tensors and plain values"


def _objects(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [o for v in value.values() for o in _objects(v)]
    if isinstance(value, list | tuple):
        return [o for v in value for o in _objects(v)]
    return [] if isinstance(value, (*PLAIN, Tensor)) else [type(value).__name__]


def test_skips_what_has_no_gradient(part: PartSpec) -> None:
    optimizer, parameters = _made(part)
    before = [p.detach().clone() for p in parameters]
    for p in parameters[1:]:
        p.grad = torch.ones_like(p)
    for _ in range(2):  # the first may only prepare the second (soap)
        optimizer.step()
    assert torch.equal(parameters[0], before[0]), f"{checks.label(part)}: moves a parameter that has no gradient"
    still = [i for i, (p, b) in enumerate(zip(parameters, before, strict=True)) if i and torch.equal(p, b)]
    assert not still, f"{checks.label(part)}: leaves parameters {still} where they are, although they have gradients"


def test_skips_what_another_rank_updates(part: PartSpec) -> None:
    """Tensors on the meta device stand for those of which a rank holds nothing: weights and state are as without."""
    found = []
    for others in (False, True):
        groups = sample_parts.groups(torch.float64)
        parameters = sample_parts.parameters(groups)
        for group in groups if others else ():
            shape = (1, *group["params"][0].shape[1:])  # one row
            group["params"].insert(1, nn.Parameter(torch.empty(shape, dtype=torch.float64, device="meta")))
        optimizer = sample_parts.made(part, groups=groups)
        _steps(optimizer, parameters, 3)
        again = sample_parts.made(part, groups=groups)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        _steps(again, parameters, 2, seed=1)
        found.append(parameters)
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert same, f"{checks.label(part)}: tensors without a gradient, on the meta device, change the others"


def test_takes_rates_by_parameter(part: PartSpec) -> None:
    """An init (mup) may set learning rates per parameter: the optimizer keeps or splits the groups it receives."""

    def rate(info: ParameterInfo) -> float:
        return 0.5 if info.layer == 0 else 1.0

    net = tiny_models.model()
    optimizer = sample_parts.made(part, groups=groups_by_role(net, rate))
    before = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    apply_rates(optimizer, net, rate)
    after = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    wrong = [info.name for p, info in describe(net) if float(after[id(p)] / before[id(p)]) != rate(info)]
    assert not wrong, f"{checks.label(part)}: the rate of {', '.join(wrong)} is not multiplied in"


def test_follows_the_learning_rate(part: PartSpec) -> None:
    """A schedule multiplies param_groups[i]["lr"]: at 0 nothing moves."""
    optimizer, parameters = _made(part)
    for i, group in enumerate(optimizer.param_groups):
        assert "lr" in group, f"{checks.label(part)}: group {i} has no `lr`; a schedule scales it there"
        group["lr"] = group["lr"] * 0.0
    before = [p.detach().clone() for p in parameters]
    _steps(optimizer, parameters, 3)
    gap = max(float((p.detach() - b).abs().max()) for p, b in zip(parameters, before, strict=True))
    assert gap <= 1e-12, f"{checks.label(part)}: with lr 0 in all groups the weights move by {gap:.3g}"


def test_takes_a_closure(part: PartSpec) -> None:
    """The trainer passes a closure that runs forward and backward; step calls it first and returns its loss."""
    optimizer, parameters = _made(part)
    before = [p.detach().clone() for p in parameters]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in parameters]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    expected = sum(float(b.square().sum()) for b in before)
    came = optimizer.step(closure)
    back = came is not None and abs(float(torch.as_tensor(came).detach()) - expected) < 1e-9 * expected
    assert back, f"{checks.label(part)}: step(closure) gives {came}; expected the closure's loss {expected}"
    optimizer.step(closure)  # the first step may only prepare the second (soap)
    still = [i for i, (p, b) in enumerate(zip(parameters, before, strict=True)) if torch.equal(p, b)]
    assert not still, f"{checks.label(part)}: step(closure) leaves parameters {still} where they are"
