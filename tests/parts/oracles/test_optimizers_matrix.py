"""Matrix optimizers (muon, soap, shampoo, galore) against float64 loops, and muon against torch's."""

import math

import pytest
import torch
from helpers.optimizer_oracle import STEPS, adamw_by_hand, assert_follows, assert_like

from ablatio.registry.kinds import optimizers

A, B, C = 3.4445, -4.7750, 2.0315


def newton_schulz(x, steps):
    """The quintic polynomial applied to the singular values: U diag(p(... p(s))) V^T."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(steps):
        s = A * s + B * s**3 + C * s**5
    return u * s @ vt


def muon_by_hand(w, grads, rates, knobs, decay):
    m, (rows, columns) = torch.zeros_like(w), w.shape
    size = math.sqrt(max(1, rows / columns)) if knobs["scale"] == "shape" else 0.2 * math.sqrt(max(rows, columns))
    for g, lr in zip(grads, rates, strict=True):
        m = knobs["momentum"] * m + (1 - knobs["momentum"]) * g
        ahead = knobs["momentum"] * m + (1 - knobs["momentum"]) * g if knobs["nesterov"] else m
        w = w - lr * decay * w - lr * size * newton_schulz(ahead, knobs["ns_steps"])
    return w


def aux_adamw_by_hand(w, grads, rates, knobs, decay):
    return adamw_by_hand(w, grads, rates, knobs, decay)


aux_adamw_by_hand.lr_of = "aux_lr"
MUON = {"lr": 0.1, "aux_lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1, "momentum": 0.9}


@pytest.mark.oracle("optimizer=muon", "singular values in float64")
@pytest.mark.parametrize("nesterov, ns_steps, scale", [(True, 5, "shape"), (False, 5, "rms"), (True, 1, "rms")])
def test_muon_by_hand(nesterov, ns_steps, scale):
    """Matrices by their singular values, the other roles by AdamW at aux_lr."""
    by_role = {"matrix": muon_by_hand} | dict.fromkeys(("vector", "embedding", "head"), aux_adamw_by_hand)
    knobs = MUON | {"nesterov": nesterov, "ns_steps": ns_steps, "scale": scale}
    assert_follows("muon", knobs, by_role, rtol=1e-8)


def matrices(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(*s, generator=generator).to(dtype)) for s in shapes]


SHAPES = [(48, 48), (48, 160), (160, 48), (48, 64), (300, 300), (260, 700)]


def muon_steps(optimizer, parameters, count=3):
    for step in range(count):
        for p, g in zip(parameters, matrices(*(p.shape for p in parameters), seed=step + 1), strict=True):
            p.grad = g.data.to(p.dtype)
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.oracle("optimizer=muon", "torch Muon")
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale, theirs", [("shape", "original"), ("rms", "match_rms_adamw")])
def test_muon_in_bfloat16_is_torchs(nesterov, scale, theirs):
    one, two = matrices(*SHAPES), matrices(*SHAPES)
    knobs = {"lr": 0.1, "weight_decay": 0.1, "nesterov": nesterov, "scale": scale, "precision": "bfloat16"}
    ours = muon_steps(optimizers.build("muon", knobs, groups=[{"params": one, "role": "matrix"}]), one)
    given = {"lr": 0.1, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": theirs}
    for a, b in zip(ours, muon_steps(torch.optim.Muon(two, **given), two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_muon_in_float32_is_closer_to_float64_than_torchs():
    """Wide matrices use the Gram matrix; torch's implementation rounds to bfloat16."""
    exact, single, half = matrices(*SHAPES, dtype=torch.float64), matrices(*SHAPES), matrices(*SHAPES)
    start = [p.detach().clone() for p in exact]
    for weights in (exact, single):
        precision = "float32" if weights is single else "auto"  # auto keeps float64
        knobs = {"lr": 0.1, "weight_decay": 0.0, "precision": precision}
        muon_steps(optimizers.build("muon", knobs, groups=[{"params": weights, "role": "matrix"}]), weights)
    muon_steps(torch.optim.Muon(half, lr=0.1, weight_decay=0.0), half)
    for p, *moved in zip(start, exact, single, half, strict=True):
        x, y, z = (q.detach().double() - p for q in moved)
        off, theirs = (float((q - x).norm() / x.norm()) for q in (y, z))
        assert off < 1e-4 and off < theirs < 0.05


@pytest.mark.parametrize("unit, taken", [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx2", "float32")])
def test_muon_uses_bfloat16_if_the_processor_supports_it(monkeypatch, unit, taken):
    """`auto` equals, bit for bit, bfloat16 where it is native, and float32 elsewhere."""
    from ablatio_std.optimizers import _orthogonal

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True, "amx_tile": False})
    _orthogonal._has_bfloat16_units.cache_clear()
    moved = []
    for precision in ("auto", taken):
        weights = matrices(*SHAPES[:3])
        groups = [{"params": weights, "role": "matrix"}]
        moved.append(muon_steps(optimizers.build("muon", {"precision": precision}, groups=groups), weights))
    _orthogonal._has_bfloat16_units.cache_clear()
    for a, b in zip(*moved, strict=True):
        assert torch.equal(a, b)


def test_muon_treats_more_axes_as_a_stack():
    (stack,) = matrices((3, 16, 40))
    apart = [torch.nn.Parameter(x.detach().clone()) for x in stack]
    generator = torch.Generator().manual_seed(5)
    stack.grad = torch.randn(stack.shape, generator=generator)
    for p, g in zip(apart, stack.grad, strict=True):
        p.grad = g.clone()
    for weights in ([stack], apart):
        optimizers.build("muon", {}, groups=[{"params": weights, "role": "matrix"}]).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in apart]))


def rotated_adam(w, grads, rates, knobs, decay, finish=lambda u: u):
    """SOAP for sides of at most `largest`, computed in the eigenbases of each step: G' = Q_L^T G Q_R.

    The first gradient only sets the bases, as in the authors' code.
    """
    b1, b2 = knobs["betas"]
    use = [n <= knobs["largest"] for n in w.shape]
    grams = [lambda g: g @ g.T, lambda g: g.T @ g]
    factor = [(1 - b2) * gram(grads[0]) for gram in grams]
    basis = [eigenvectors(f) if u else torch.eye(len(f), dtype=w.dtype) for f, u in zip(factor, use, strict=True)]
    v = torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(grads[1:], rates[1:], strict=True), start=1):
        m = sum((1 - b1) * b1 ** (t - s) * x for s, x in enumerate(grads[1 : t + 1], start=1)) / (1 - b1**t)
        left, right = basis
        v = b2 * v + (1 - b2) * (left.T @ g @ right) ** 2
        u = left @ ((left.T @ m @ right) / ((v / (1 - b2**t)).sqrt() + knobs["eps"])) @ right.T
        w = w - lr * decay * w - lr * finish(u)
        for side in (0, 1):
            factor[side] = b2 * factor[side] + (1 - b2) * grams[side](g)
            if t % knobs["every"] == 0 and use[side]:
                basis[side] = gram_schmidt(factor[side] @ basis[side])
    return w


def eigenvectors(x):
    return torch.linalg.svd(x).U  # for a symmetric positive matrix; largest eigenvalue first


def gram_schmidt(x):
    found = []
    for column in x.T:
        for _ in range(2):
            for q in found:
                column = column - (q @ column) * q
        found.append(column / column.norm())
    return torch.stack(found, dim=1)


def later_adamw(w, grads, rates, knobs, decay):
    return adamw_by_hand(w, grads[1:], rates[1:], knobs, decay)


SOAP = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.oracle("optimizer=soap", "float64 loop")
@pytest.mark.parametrize("every", [1, 4])
def test_soap_by_hand(every):
    """Sides of 8 have bases; those of longer sides would have a null space, in which the basis is arbitrary."""
    by_role = dict.fromkeys(("matrix", "embedding", "head"), rotated_adam) | {"vector": later_adamw}
    assert_follows("soap", SOAP | {"every": every, "largest": 8}, by_role, rtol=1e-6)


def orthogonalized_soap(w, grads, rates, knobs, decay):
    def finish(direction):
        u, s, vt = torch.linalg.svd(direction, full_matrices=False)
        s = s / s.norm()
        for _ in range(knobs["ns_steps"]):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        return 0.2 * math.sqrt(max(w.shape)) * (u * s @ vt)

    return rotated_adam(w, grads, rates, knobs, decay, finish)


@pytest.mark.oracle("optimizer=soap_muon", "float64 loop, singular values")
@pytest.mark.parametrize("ns_steps", [2, 5])
def test_soap_muon_by_hand(ns_steps):
    by_role = {"matrix": orthogonalized_soap, "embedding": rotated_adam, "head": rotated_adam, "vector": later_adamw}
    knobs = SOAP | {"every": 2, "largest": 8, "ns_steps": ns_steps}
    assert_follows("soap_muon", knobs, by_role, rtol=1e-6)


def test_soap_without_bases_is_adamw_from_its_second_step_on():
    assert_follows("soap", SOAP | {"largest": 1}, later_adamw)


def test_soap_equals_pytorch_optimizer():
    """Also in its first step, which moves nothing; bases that are kept throughout, as that library re-sorts them."""
    import pytorch_optimizer

    knobs = SOAP | {"every": STEPS + 1, "largest": 8}
    settings = {"betas": knobs["betas"], "eps": 1e-30, "precondition_frequency": STEPS + 1, "max_precondition_dim": 8}

    def make(groups):
        return pytorch_optimizer.SOAP(groups, lr=knobs["lr"], **settings)

    assert_like("soap", knobs | {"eps": 1e-30, "weight_decay": 0.0}, make, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3])
def test_soap_takes_no_step_of_rounding_noise(scale):
    """No entry moves by more than Adam's bound: in float32 the first gradient's own eigenbases gave up to 31 lr."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(32, 96, generator=generator))
    optimizer = optimizers.build("soap", {"lr": 1.0, "weight_decay": 0.0}, groups=[{"params": [p], "role": "matrix"}])
    for step in range(3):
        before, p.grad = p.detach().clone(), torch.randn(32, 96, generator=generator) * scale
        optimizer.step()
        moved = (p.detach() - before).square().mean().sqrt()
        assert moved == 0 if step == 0 else 0.1 < moved < 1.5


def test_soap_is_equivariant_to_rotations():
    """Rotated gradients give rotated steps, which does not hold for Adam."""
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    for name, same in (("soap", True), ("adamw", False)):
        straight, turned = (torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.float64)) for _ in "ab")
        for p, turn in ((straight, torch.eye(8, dtype=torch.float64)), (turned, q)):
            optimizer = optimizers.build(name, {"weight_decay": 0.0}, groups=[{"params": [p], "role": "matrix"}])
            for step in range(STEPS):
                g = torch.randn(8, 8, generator=torch.Generator().manual_seed(step), dtype=p.dtype)
                p.grad = turn @ g
                optimizer.step()
        assert torch.allclose(q @ straight, turned, atol=1e-6) == same


def shampoo_by_hand(w, grads, rates, knobs, decay):
    x = w[:, None] if w.dim() == 1 else w
    use = [n <= knobs["largest"] for n in x.shape][: w.dim()]
    left, right = (knobs["eps"] * torch.eye(n, dtype=w.dtype) for n in x.shape)
    power, m = -0.5 / max(1, sum(use)), torch.zeros_like(x)
    roots = [left, right]
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g.view_as(x)
        left, right = left + g @ g.T, right + g.T @ g
        if t < knobs["every"] or t % knobs["every"] == 0:
            roots = [matrix_power(left, power), matrix_power(right, power)]
        u = roots[0] @ g if use[0] else g
        u = u @ roots[1] if w.dim() > 1 and use[1] else u
        m = knobs["momentum"] * m + u
        x = x - lr * decay * x - lr * m
    return x.view_as(w)


def matrix_power(x, power):
    u, s, _ = torch.linalg.svd(x)
    return u @ torch.diag(s**power) @ u.T


@pytest.mark.oracle("optimizer=shampoo", "float64 loop")
@pytest.mark.parametrize("every, largest", [(1, 100), (4, 100), (4, 8), (20, 12)])
def test_shampoo_by_hand(every, largest):
    knobs = {"lr": 0.1, "momentum": 0.9, "eps": 1e-2, "every": every, "largest": largest, "weight_decay": 0.1}
    assert_follows("shampoo", knobs, shampoo_by_hand, rtol=1e-7)


def galore_by_hand(w, grads, rates, knobs, decay):
    """The update in the original axes, with P from the eigenvectors of G G^T."""
    if w.shape[0] > w.shape[1]:
        return galore_by_hand(w.T, [g.T for g in grads], rates, knobs, decay).T
    (b1, b2), m, v = knobs["betas"], 0, 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        if (t - 1) % knobs["every"] == 0:
            p = torch.linalg.eigh(g @ g.T).eigenvectors.flip(1)[:, : knobs["rank"]]
            # signs of a basis are arbitrary, but the moments are kept entry by entry, so they must be equal to ours
            p = p * torch.sign((p * torch.linalg.svd(g, full_matrices=False).U[:, : p.shape[1]]).sum(0))
        low = p.T @ g
        m, v = b1 * m + (1 - b1) * low, b2 * v + (1 - b2) * low**2
        n = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + knobs["eps"])
        w = w - lr * decay * w - lr * knobs["scale"] * p @ n
    return w


@pytest.mark.oracle("optimizer=galore", "float64 loop")
@pytest.mark.parametrize("rank, every", [(3, 200), (4, 6), (100, 7)])
def test_galore_by_hand(rank, every):
    knobs = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    knobs |= {"rank": rank, "every": every, "scale": 0.5}
    by_role = {"matrix": galore_by_hand} | dict.fromkeys(("vector", "embedding", "head"), adamw_by_hand)
    assert_follows("galore", knobs, by_role, rtol=1e-7)


def test_galore_updates_have_at_most_its_rank():
    p = torch.nn.Parameter(torch.zeros(12, 40, dtype=torch.float64))
    optimizer = optimizers.build("galore", {"rank": 3}, groups=[{"params": [p], "role": "matrix"}])
    for step in range(STEPS):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step), dtype=p.dtype)
        optimizer.step()
    assert int(torch.linalg.matrix_rank(p.detach())) == 3
    assert optimizer.state[p]["m"].shape == (3, 40)
