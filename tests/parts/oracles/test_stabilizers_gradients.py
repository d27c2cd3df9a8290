"""Stabilizers that change the gradients which the optimizer sees, against loops in plain torch."""

import numpy as np
import pytest
import torch
from helpers.support import model_config
from torch import nn

from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.optimizer_step import OptimizerStep
from ablatio.model.parameter_roles import describe
from ablatio.registry.kinds import stabilizers
from ablatio.testing import tiny_models

STEPS = 11


def step_of(model, optimizer, index):
    zero = torch.zeros(())
    return OptimizerStep(model, [*model.parameters()], optimizer, index, STEPS, zero, lambda: zero, 1)


def linears(bias=False):
    made = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 4, bias=bias)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(generator=generator)
    return made


def rows(index, wide=False):
    draw = torch.randn(9, 6, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    return draw.requires_grad_()


@pytest.mark.oracle("stabilizer=sparse_updates", "torch's AdamW on the mean gradients, every k-th step")
@pytest.mark.parametrize("every, roles", [(2, ("embedding", "head")), (3, ("vector",)), (4, ("matrix", "head"))])
def test_roles_are_updated_by_the_mean_gradient_of_several_steps(every, roles):
    ours, theirs = (build_model(model_config(tied=False, norm="layernorm"), 20, seed=1).double() for _ in range(2))
    part = stabilizers.build("sparse_updates", {"every": every, "roles": roles})
    part.attach(ours)
    role = {info.name: info.role for _, info in describe(ours)}
    adam = torch.optim.AdamW(ours.parameters(), lr=0.01)
    own = {name: torch.optim.AdamW([p], lr=0.01) for name, p in theirs.named_parameters()}
    held = {name: [] for name in own}
    for index in range(STEPS):
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            generator = torch.Generator().manual_seed(100 * index + len(name))
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            held[name].append(p.grad.clone())
            if role[name] not in roles or (index + 1) % every == 0:
                q.grad = torch.stack(held[name]).mean(0)
                held[name] = []
                own[name].step()
        part.before_step(step_of(ours, adam, index))
        adam.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_a_restored_instance_goes_on_within_a_sum():
    outcomes = []
    for cut in (None, 4):  # 5 of 6 gradients are in the sum
        net, part = linears(), stabilizers.build("sparse_updates", {"every": 6, "roles": ("matrix",)})
        part.attach(net)
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        for index in range(STEPS):
            net.zero_grad()
            net(rows(index)).square().sum().backward()
            part.before_step(step_of(net, sgd, index))
            sgd.step()
            if index == cut:
                again = stabilizers.build("sparse_updates", {"every": 6, "roles": ("matrix",)})
                again.attach(net)
                again.load_state_dict(part.state_dict())
                part = again
        outcomes.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert not torch.equal(outcomes[0][0], linears()[0].weight)


def test_no_role_is_refused():
    with pytest.raises(UserError, match="roles is empty"):
        stabilizers.build("sparse_updates", {"roles": ()})


def whitened(net, part, batches=1):
    """The gradients that the optimizer gets in each step."""
    part.attach(net)
    sgd, found = torch.optim.SGD(net.parameters(), lr=0.05), []
    for index in range(STEPS):
        net.zero_grad()
        for batch in range(batches):
            net(rows(batches * index + batch)).square().sum().backward()
        part.before_step(step_of(net, sgd, index))
        found.append([p.grad.clone() for p in net.parameters()])
        sgd.step()
    return found


@pytest.mark.oracle("stabilizer=input_whitening", "moments and inverses in numpy, from the inputs of each map")
@pytest.mark.parametrize("every, batches", [(1, 1), (3, 1), (2, 2)])
def test_gradients_are_those_of_newton_muon(every, batches):
    net, decay, ridge = linears(), 0.6, 0.3
    part = stabilizers.build("input_whitening", {"every": every, "decay": decay, "ridge": ridge})
    found = whitened(net, part, batches)
    other = linears()
    first, last = other[0].weight, other[2].weight
    moments, inverses = [0.001 * torch.eye(n).double() for n in (6, 5)], [None, None]
    for index in range(STEPS):
        inputs = [[], []]
        other.zero_grad()
        for batch in range(batches):
            x = rows(batches * index + batch)
            hidden = torch.tanh(x @ first.T)
            (hidden @ last.T).square().sum().backward()
            inputs[0].append(x.detach())
            inputs[1].append(hidden.detach())
        for i, p in enumerate((first, last)):
            if (index + 1) % every == 0:
                mean = sum(z.T @ z / len(z) for z in inputs[i]) / batches
                moments[i] = decay * moments[i] + (1 - decay) * mean
                r = ridge * moments[i].trace() / len(moments[i]) + 1e-8
                inverses[i] = torch.from_numpy(
                    np.linalg.inv((moments[i] + r * torch.eye(len(moments[i])).double()).numpy())
                )
            g = p.grad if inverses[i] is None else p.grad @ inverses[i]
            torch.testing.assert_close(found[index][i], g, rtol=1e-8, atol=1e-10)
            with torch.no_grad():
                p.sub_(0.05 * found[index][i])


def test_an_update_does_not_depend_on_the_basis_of_the_inputs():
    """Of inputs A z and weights W A^-1, the step changes the outputs as that of z and W: what G alone does not."""
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(40, 6, generator=generator).requires_grad_()
    a = torch.randn(6, 6, generator=generator) + 3 * torch.eye(6)
    weight = torch.randn(4, 6, generator=generator)
    moves = []
    for inputs, w in ((z, weight), ((z @ a.T).detach().requires_grad_(), weight @ a.inverse())):
        net = nn.Linear(6, 4, bias=False)
        with torch.no_grad():
            net.weight.copy_(w)
        part = stabilizers.build("input_whitening", {"every": 1, "decay": 0.0, "ridge": 0.0})
        part.attach(net)
        net(inputs).square().sum().backward()
        plain = net.weight.grad.clone()
        part.before_step(step_of(net, torch.optim.SGD(net.parameters(), lr=0.1), 0))
        moves.append((inputs @ net.weight.grad.T, inputs @ plain.T))
    torch.testing.assert_close(moves[0][0], moves[1][0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(moves[0][1], moves[1][1], rtol=0.1)


def test_wide_inputs_have_a_block_for_each_width_of_the_stream():
    net = build_model(model_config(d_model=16, d_ff=64, match="none", activation="relu2"), tiny_models.VOCAB)
    part = stabilizers.build("input_whitening", {"every": 1})
    tiny = tiny_models.run(net, torch.optim.SGD(net.parameters(), lr=1e-3), 2, hooks=[part])
    shapes = {name.split(".")[-2]: tuple(k.shape) for name, k in part.moments.items()}
    assert shapes["down_proj"] == (4, 16, 16) and shapes["q_proj"] == (1, 16, 16) and len(tiny) == 2
    assert "lm_head" not in shapes
    net.eval()
    before = {name: k.clone() for name, k in part.moments.items()}
    part.looking = True
    net(torch.ones(1, 5, dtype=torch.long))  # scored text is not looked at
    assert not part.seen and all(torch.equal(before[n], part.moments[n]) for n in before)
