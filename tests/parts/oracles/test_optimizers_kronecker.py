"""kl_soap against a float64 loop, and what distinguishes its factors from those of soap."""

import pytest
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
