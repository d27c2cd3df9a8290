"""kl_soap and psgd against float64 loops and pytorch_optimizer, and what their factors estimate."""

import pytest
import pytorch_optimizer
import torch
from helpers.optimizer_oracle import STEPS, adamw_by_hand, assert_follows

from ablatio.registry.kinds import optimizers

KNOBS = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1, "start": 0.1}


def gram_schmidt(x):
    found = []
    for column in x.T:
        for _ in range(2):
            for q in found:
                column = column - (q @ column) * q
        found.append(column / column.norm())
    return torch.stack(found, dim=1)


def kl_soap_by_hand(w, grads, rates, knobs, decay):
    """The paper's factors with explicit inverses of the other factor; sides above `largest` have none."""
    (b1, b2), shape, use = knobs["betas"], w.shape, [n <= knobs["largest"] for n in w.shape]
    outer = [lambda g, r: g @ r @ g.T / shape[1], lambda g, r: g.T @ r @ g / shape[0]]
    eye = [torch.eye(n, dtype=w.dtype) for n in shape]
    factor = [(1 - b2) * outer[i](grads[0], eye[1 - i]) for i in (0, 1)]
    basis = [torch.linalg.svd(f).U if u else e for f, u, e in zip(factor, use, eye, strict=True)]
    values = [torch.full((n,), knobs["start"], dtype=w.dtype) for n in shape]
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(grads[1:], rates[1:], strict=True), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * (basis[0].T @ g @ basis[1]) ** 2
        u = basis[0] @ ((basis[0].T @ m @ basis[1]) / (v.sqrt() + knobs["eps"])) @ basis[1].T
        w = w - lr * decay * w - lr * u
        inverse = [b @ torch.diag(1 / a) @ b.T if u else e for a, b, u, e in zip(values, basis, use, eye, strict=True)]
        for i in (0, 1):
            new = outer[i](g, inverse[1 - i])
            factor[i] = b2 * factor[i] + (1 - b2) * new
            values[i] = b2 * values[i] + (1 - b2) * torch.diag(basis[i].T @ new @ basis[i])
            values[i] = values[i].clamp(min=1 / max(10, min(shape[i], 4000)) ** 2)
            if use[i] and t % knobs["every"] == 0:
                basis[i] = gram_schmidt(factor[i] @ basis[i])
    return w


def later_adamw(w, grads, rates, knobs, decay):
    return adamw_by_hand(w, grads[1:], rates[1:], knobs, decay)


@pytest.mark.oracle("optimizer=kl_soap", "float64 loop")
@pytest.mark.parametrize("every, start", [(1, 0.1), (4, 2.0)])
def test_kl_soap_by_hand(every, start):
    """Sides of 8 have bases; those of longer sides would have a null space, in which the basis is arbitrary."""
    by_role = dict.fromkeys(("matrix", "embedding", "head"), kl_soap_by_hand) | {"vector": later_adamw}
    assert_follows("kl_soap", KNOBS | {"every": every, "largest": 8, "start": start}, by_role, rtol=1e-6)


def run(name, scale, steps=400):
    """The optimizer after gradients A Z B with independent normal Z; A and B scale rows and columns."""
    p = torch.nn.Parameter(torch.zeros(6, 8, dtype=torch.float64))
    groups = [{"params": [p], "role": "matrix"}]
    optimizer = optimizers.build(name, {"betas": (0.9, 0.99), "every": 5}, groups=groups)
    for step in range(steps):
        z = torch.randn(p.shape, generator=torch.Generator().manual_seed(step), dtype=p.dtype)
        p.grad = torch.linspace(1, 3, 6).double()[:, None] * z * torch.tensor([scale, *[1.0] * 7]).double()
        optimizer.step()
    return optimizer.state[p]


def test_kl_soap_estimates_the_rows_whatever_the_scale_of_a_column():
    """G R^-1 G^T does not see one column's scale; soap's G G^T grows with its square."""
    shares = {}
    for name in ("kl_soap", "soap"):
        small, large = (torch.linalg.eigvalsh(run(name, scale)["left"]) for scale in (1.0, 30.0))
        shares[name] = float((large / large.sum() - small / small.sum()).abs().max()), float(large.sum() / small.sum())
    assert shares["kl_soap"][0] < 0.1
    assert shares["soap"][1] > 50
    truth = torch.linspace(1, 3, 6).double().square()
    values = run("kl_soap", 1.0)["left_values"].sort().values
    torch.testing.assert_close(values / values.sum(), truth / truth.sum(), rtol=0.35, atol=0)


def test_psgd_updates_a_scalar_as_a_vector_of_one_entry():
    one, two = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor([2.0]))
    for p in (one, two):
        optimizer = optimizers.build("psgd", {}, groups=[{"params": [p], "role": "vector"}])
        for step in range(3):
            p.grad = torch.full_like(p, 0.1 * (step + 1))
            optimizer.step()
    assert one.detach() == two.detach() != 2


def test_kl_soap_treats_more_axes_as_a_stack():
    stack = torch.nn.Parameter(torch.randn(3, 6, 6, dtype=torch.float64))  # a longer side would have a null space
    apart = [torch.nn.Parameter(x.detach().clone()) for x in stack]
    made = [optimizers.build("kl_soap", {}, groups=[{"params": w, "role": "matrix"}]) for w in ([stack], apart)]
    for step in range(STEPS):
        stack.grad = torch.randn(stack.shape, generator=torch.Generator().manual_seed(step), dtype=stack.dtype)
        for p, g in zip(apart, stack.grad, strict=True):
            p.grad = g.clone()
        for optimizer in made:
            optimizer.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in apart]), rtol=1e-6, atol=1e-8)


PSGD = {"lr": 0.03, "momentum": 0.9, "factor_lr": 0.1, "weight_decay": 0.1}


def psgd_by_hand(w, grads, rates, knobs, decay, draws):
    """Explicit inverses and Kronecker products: u = (Q^T Q) vec(M), Q the product of the sides' factors."""
    x = w[:, None] if w.dim() == 1 else w
    q = [torch.eye(n, dtype=w.dtype) for n in x.shape[: w.dim()]]
    diagonal = [w.dim() == 1 or n > knobs["largest"] for n in w.shape]
    m = torch.zeros_like(x)
    for t, (g, lr, v) in enumerate(zip(grads, rates, draws, strict=True), start=1):
        m = knobs["momentum"] * m + (1 - knobs["momentum"]) * g.view_as(x)
        mean = m / (1 - knobs["momentum"] ** t)
        if (t - 1) % knobs["every"] == 0:
            right = q[1] if len(q) > 1 else torch.eye(1, dtype=w.dtype)
            a, b = q[0] @ mean @ right.T, torch.linalg.inv(q[0]).T @ v @ torch.linalg.inv(right)
            for i, (one, two) in enumerate([(a @ a.T, b @ b.T), (a.T @ a, b.T @ b)][: len(q)]):
                if diagonal[i]:
                    step = torch.diag(torch.diag(one - two)) / torch.diag(one + two).max()
                else:
                    row = (one + two)[(one + two).norm(dim=1).argmax()] @ (one + two)
                    step = torch.triu(one - two) / ((one + two) @ row / row.norm()).norm()
                q[i] = q[i] - knobs["factor_lr"] * step @ q[i]
        whole = q[0] if len(q) == 1 else torch.kron(q[0], q[1])
        u = (whole.T @ whole @ mean.flatten()).view_as(x)
        u = u * min(1.0, 1.1 / (float(u.square().mean().sqrt()) + 1e-6))
        x = x - lr * decay * x - lr * u
    return x.view_as(w)


def psgd_run(knobs, groups, steps=STEPS):
    """Weights after some steps of ours, and the draws of each step by parameter, in the order of the group."""
    optimizer = optimizers.build("psgd", knobs, groups=groups)
    parameters = groups[0]["params"]
    grads = [[gradient(p, 10 * s + i) for i, p in enumerate(parameters)] for s in range(steps)]
    draws = []
    for s in range(steps):
        generator = torch.Generator().manual_seed(s + 1)
        as_matrices = [p[:, None] if p.dim() == 1 else p for p in parameters]
        draws.append([torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in as_matrices])
        for p, g in zip(parameters, grads[s], strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters], grads, draws


def gradient(p, seed):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype) * 0.1 + 0.02


def weights(*shapes):
    return [torch.nn.Parameter(gradient(torch.zeros(s, dtype=torch.float64), 99 + i)) for i, s in enumerate(shapes)]


@pytest.mark.oracle("optimizer=psgd", "float64 loop")
@pytest.mark.parametrize("role, shapes", [("matrix", [(6, 9), (12, 5)]), ("vector", [(7,)])])
@pytest.mark.parametrize("every, largest", [(1, 100), (3, 8)])
def test_psgd_by_hand(role, shapes, every, largest):
    knobs, start = PSGD | {"every": every, "largest": largest}, weights(*shapes)
    ours, grads, draws = psgd_run(knobs, [{"params": weights(*shapes), "role": role}])
    for i, (a, w) in enumerate(zip(ours, start, strict=True)):
        given = [[step[i] for step in x] for x in (grads, draws)]
        decay = 0.0 if role == "vector" else knobs["weight_decay"]
        expected = psgd_by_hand(w.detach(), given[0], [knobs["lr"]] * STEPS, knobs, decay, given[1])
        torch.testing.assert_close(a, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("optimizer=psgd", "pytorch_optimizer Kron")
def test_psgd_is_pytorch_optimizers_with_the_same_draws(monkeypatch):
    """Their triangular solve is in float32."""
    theirs = weights((6, 9))
    ours, grads, draws = psgd_run(PSGD, [{"params": weights((6, 9)), "role": "matrix"}])
    given = iter([x[0] for x in draws])
    monkeypatch.setattr(torch, "randn_like", lambda x, dtype: next(given))
    kron = pytorch_optimizer.Kron(
        theirs, lr=0.03, momentum=0.9, weight_decay=0.1, precondition_dtype=torch.float64, balance_prob=0.0
    )
    for step in grads:
        theirs[0].grad = step[0].clone()
        kron.step()
    torch.testing.assert_close(ours[0], theirs[0].detach(), rtol=1e-4, atol=1e-5)


def test_psgd_whitens():
    """Rows of gradients with sizes from 0.1 to 1: in the end those of Q_L^T Q_L G Q_R^T Q_R have the size 1."""
    p = torch.nn.Parameter(torch.zeros(6, 8, dtype=torch.float64))
    knobs = {"momentum": 0.0, "factor_lr": 0.05}
    optimizer = optimizers.build("psgd", knobs, groups=[{"params": [p], "role": "matrix"}])
    scales = torch.logspace(-1, 0, 6, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        p.grad = scales * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    left, right = (optimizer.state[p][side] for side in ("left", "right"))
    g = scales * torch.randn(500, *p.shape, generator=generator, dtype=p.dtype)
    sizes = (left.T @ left @ g @ right.T @ right).square().mean((0, 2)).sqrt()
    assert ((sizes > 0.7) & (sizes < 1.4)).all()
