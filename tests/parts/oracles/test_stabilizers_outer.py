"""stabilizer=outer against loops, pytorch_optimizer's Lookahead, and torch's SGD on the movement."""

import pytest
import pytorch_optimizer
import torch
from torch import nn

from ablatio.model.optimizer_step import OptimizerStep
from ablatio.registry import rules
from ablatio.registry.kinds import stabilizers

STEPS = 13


def net():
    made = nn.Linear(5, 4).double()
    made.requires_grad_()
    for p in made.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    made.bias.requires_grad_(False)
    return made


def gradient(p, step):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(step), dtype=p.dtype)


def train(made, part, optimizer=None, steps=STEPS):
    optimizer = optimizer or torch.optim.SGD(made.parameters(), lr=0.1)
    zero = torch.zeros(())
    for index in range(steps):
        made.weight.grad = gradient(made.weight, index)
        step = OptimizerStep(made, [made.weight], optimizer, index, steps, zero, lambda: zero, 1)
        assert part.before_step(step) == {}
        optimizer.step()
        assert part.after_step(step) == {}
    return made.weight.detach()


@pytest.mark.oracle("stabilizer=outer", "float64 loop")
@pytest.mark.parametrize(
    "every, lr, momentum, nesterov", [(4, 0.7, 0.9, True), (3, 0.5, 0.6, False), (1, 1.0, 0.5, True)]
)
def test_outer_by_hand(every, lr, momentum, nesterov):
    made, part = (
        net(),
        stabilizers.build("outer", {"every": every, "lr": lr, "momentum": momentum, "nesterov": nesterov}),
    )
    slow = fast = made.weight.detach().clone()
    b = torch.zeros_like(slow)
    for index in range(STEPS):
        fast = fast - 0.1 * gradient(slow, index)
        if (index + 1) % every == 0:
            s = slow - fast
            b = momentum * b + s
            slow = fast = slow - lr * (momentum * b + s if nesterov else b)
    bias = made.bias.clone()
    torch.testing.assert_close(train(made, part), fast, rtol=1e-12, atol=1e-12)
    assert torch.equal(made.bias, bias)  # it does not train
    with part.averaged(made):
        torch.testing.assert_close(made.weight.detach(), slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.weight.detach(), fast, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("stabilizer=outer", "pytorch_optimizer Lookahead")
@pytest.mark.parametrize("every, lr", [(5, 0.5), (2, 0.8)])
def test_outer_without_momentum_is_lookahead(every, lr):
    made, part = net(), stabilizers.build("outer", {"every": every, "lr": lr, "momentum": 0.0})
    adam = torch.optim.AdamW([made.weight], lr=0.1)
    ours = train(made, part, adam)
    theirs = net()
    lookahead = pytorch_optimizer.Lookahead(torch.optim.AdamW([theirs.weight], lr=0.1), k=every, alpha=lr)
    for index in range(STEPS):
        theirs.weight.grad = gradient(theirs.weight, index)
        lookahead.step()
    torch.testing.assert_close(ours, theirs.weight.detach(), rtol=1e-12, atol=1e-12)
    assert not part.buffer


@pytest.mark.oracle("stabilizer=outer", "torch SGD on the movement of the weights")
def test_outer_step_is_sgds_with_nesterov_momentum():
    """DiLoCo with one worker: torch's Nesterov SGD, whose gradient is the slow minus the fast weights."""
    made, part = net(), stabilizers.build("outer", {"every": 3, "lr": 0.7, "momentum": 0.9})
    slow = nn.Parameter(made.weight.detach().clone())
    outer = torch.optim.SGD([slow], lr=0.7, momentum=0.9, nesterov=True)
    fast = slow.detach().clone()
    for index in range(12):
        fast = fast - 0.1 * gradient(fast, index)
        if index % 3 == 2:
            slow.grad = slow.detach() - fast
            outer.step()
            fast = slow.detach().clone()
    torch.testing.assert_close(train(made, part, steps=12), fast, rtol=1e-12, atol=1e-12)


def test_outer_with_rate_1_and_no_momentum_changes_nothing():
    outer = stabilizers.build("outer", {"every": 3, "lr": 1.0, "momentum": 0.0})
    never = stabilizers.build("outer", {"every": STEPS + 1})
    torch.testing.assert_close(train(net(), outer), train(net(), never), rtol=1e-12, atol=1e-12)


def test_outer_refuses_schedule_free():
    config = {"stabilizer": {"outer": {}}, "optimizer": {"name": "schedule_free"}, "schedule": {"name": "constant"}}
    (problem,) = rules.violated_rules(config)
    assert problem.where == "stabilizer" and problem.fix == "optimizer=adamw"
