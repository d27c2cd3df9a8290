"""Orthogonalized updates (normuon, dion, scion, polar_express) against float64 loops and pytorch_optimizer."""

import math

import pytest
import pytorch_optimizer
import torch
from helpers.optimizer_oracle import STEPS, adamw_by_hand, assert_follows
from pytorch_optimizer.optimizer.scion import LMONorm

from ablatio.registry.kinds import optimizers
from ablatio_std.optimizers._orthogonal import SAFETY, schedule

JORDAN = [(3.4445, -4.7750, 2.0315)] * 9


def best_quintic(low, high):
    """(a, b, c) of the odd quintic with the least largest distance from 1 on [low, high]: Remez' algorithm."""
    if low / high > 1 - 5e-6:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    points = torch.tensor([low, (3 * low + high) / 4, (low + 3 * high) / 4, high], dtype=torch.float64)
    for _ in range(100):
        signs = torch.tensor([1, -1, 1, -1], dtype=torch.float64)
        a, b, c, _ = torch.linalg.solve(
            torch.stack([points, points**3, points**5, signs], dim=1), torch.ones(4, dtype=torch.float64)
        ).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        points[1:3] = torch.tensor([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)]).sqrt()
    return a, b, c


def best_quintics(low, steps, cushion=0.02407327424182761):
    """The paper's algorithm 2: each quintic is the best for the interval that those before leave of [low, 1]."""
    high, found = 1.0, []
    for _ in range(steps):
        a, b, c = best_quintic(max(low, cushion * high), high)
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        a, b, c = (2 * x / sum(ends) for x in (a, b, c))  # the cushion moves the interval; center it at 1
        found.append((a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return found


@pytest.mark.oracle("optimizer=muon", "the best quintics, by Remez' algorithm")
def test_polar_express_coefficients_are_the_best_quintics():
    margin = SAFETY["polar_express"]
    expected = [(a / margin, b / margin**3, c / margin**5) for a, b, c in best_quintics(1e-3, 7)]
    *ours, last, repeated = schedule("polar_express", 9)
    assert last == repeated == (15 / 8, -10 / 8, 3 / 8)
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a == pytest.approx(b, rel=1e-5), step


@pytest.mark.parametrize("shape", [(40, 40), (40, 160), (160, 40)], ids=str)
def test_polar_express_converges_and_jordans_polynomial_does_not(shape):
    """U V^T for singular values down to 1e-3 of the Frobenius norm; wide matrices use the Gram matrix."""
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    g = u * torch.logspace(-2.5, 0, 40, dtype=torch.float64) @ vt
    off = {}
    for coefficients in ("jordan", "polar_express"):
        p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        p.grad = g.clone()
        knobs = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "ns_steps": 9, "coefficients": coefficients}
        optimizers.build("muon", knobs, groups=[{"params": [p], "role": "matrix"}]).step()
        off[coefficients] = float((p.detach() / -math.sqrt(max(1, shape[0] / shape[1])) - u @ vt).abs().max())
    assert off["polar_express"] < 1e-5 and off["jordan"] > 1e-2


def orthogonal(x, steps, polynomials, margin=1.0):
    """The polynomials applied to the singular values: U diag(p(... p(s))) V^T."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum().sqrt() / margin
    for a, b, c in polynomials[:steps]:
        s = a * s + b * s**3 + c * s**5
    return u * s @ vt


def momenta(grads, momentum, nesterov=False):
    """Yield the moving average of the gradients after each step, or with Nesterov momentum one step ahead."""
    m = torch.zeros_like(grads[0])
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        yield momentum * m + (1 - momentum) * g if nesterov else m


def aux_adamw_by_hand(w, grads, rates, knobs, decay):
    return adamw_by_hand(w, grads, rates, knobs, decay)


aux_adamw_by_hand.lr_of = "aux_lr"
AUX = dict.fromkeys(("vector", "embedding", "head"), aux_adamw_by_hand)
MUON = {"lr": 0.1, "aux_lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1, "momentum": 0.9}


@pytest.mark.oracle("optimizer=muon", "singular values in float64")
def test_muon_with_polar_express_by_hand():
    def by_hand(w, grads, rates, knobs, decay):
        for u, lr in zip(momenta(grads, knobs["momentum"], nesterov=True), rates, strict=True):
            o = orthogonal(u, 5, schedule("polar_express", 5), SAFETY["polar_express"])
            w = w - lr * decay * w - lr * math.sqrt(max(1, w.shape[0] / w.shape[1])) * o
        return w

    assert_follows("muon", MUON | {"coefficients": "polar_express"}, {"matrix": by_hand} | AUX, rtol=1e-8)


def normuon_by_hand(w, grads, rates, knobs, decay):
    """The authors' code (scale=shape) and the paper's algorithm 1 (scale=rms), one row at a time."""
    rows, columns = w.shape
    v = [0.0] * rows
    for u, lr in zip(momenta(grads, knobs["momentum"], knobs["nesterov"]), rates, strict=True):
        o = orthogonal(u, 5, JORDAN)
        v = [knobs["beta2"] * a + (1 - knobs["beta2"]) * float(r @ r) / columns for a, r in zip(v, o, strict=True)]
        n = torch.stack([r / (math.sqrt(a) + 1e-10) for a, r in zip(v, o, strict=True)])
        if knobs["scale"] == "shape":
            n = n * float(o.norm()) / float(n.norm()) * math.sqrt(max(1, rows / columns))
        else:
            n = n * 0.2 * math.sqrt(rows * columns) / float(n.norm())
        w = w - lr * decay * w - lr * n
    return w


@pytest.mark.oracle("optimizer=normuon", "float64 loop")
@pytest.mark.parametrize("nesterov, scale", [(True, "shape"), (False, "rms")])
def test_normuon_by_hand(nesterov, scale):
    knobs = MUON | {"nesterov": nesterov, "scale": scale, "beta2": 0.8}
    assert_follows("normuon", knobs, {"matrix": normuon_by_hand} | AUX, rtol=1e-8)


SHAPES = [(48, 48), (48, 160), (160, 48)]


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator) for s in SHAPES]


def three_steps(optimizer, parameters):
    for step in range(3):
        for p, g in zip(parameters, draws(step + 1), strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.oracle("optimizer=normuon", "pytorch_optimizer NorMuon")
@pytest.mark.parametrize("scale, theirs", [("shape", "preserve_norm"), ("rms", "match_rms")])
def test_normuon_in_bfloat16_is_pytorch_optimizers(scale, theirs):
    one, two = ([torch.nn.Parameter(x) for x in draws()] for _ in "ab")
    knobs = {"lr": 0.1, "weight_decay": 0.1, "scale": scale, "precision": "bfloat16"}
    ours = three_steps(optimizers.build("normuon", knobs, groups=[{"params": one, "role": "matrix"}]), one)
    groups = [{"params": two, "use_muon": True}]
    expected = pytorch_optimizer.NorMuon(groups, lr=0.1, weight_decay=0.1, update_scale=theirs, foreach=False)
    for a, b in zip(ours, three_steps(expected, two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_normuon_gives_all_rows_one_size_if_beta2_is_0():
    p = torch.nn.Parameter(torch.zeros(12, 40, dtype=torch.float64))
    p.grad = torch.randn(12, 40, dtype=torch.float64) * torch.logspace(-1, 1, 12, dtype=torch.float64)[:, None]
    optimizers.build("normuon", {"beta2": 0.0}, groups=[{"params": [p], "role": "matrix"}]).step()
    lengths = p.detach().norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(12), rtol=1e-8, atol=0)


SCION = {"lr": 0.01, "momentum": 0.8, "radius": 5.0, "head_radius": 30.0, "embedding_radius": 2.0}


def scion_by_hand(direction, radius):
    def by_hand(w, grads, rates, knobs, decay):
        for m, lr in zip(momenta(grads, knobs["momentum"]), rates, strict=True):
            w = w - lr * decay * w - lr * knobs[radius] * direction(m)
        return w

    return by_hand


SCION_BY_ROLE = {
    "matrix": scion_by_hand(lambda m: math.sqrt(m.shape[0] / m.shape[1]) * orthogonal(m, 5, JORDAN), "radius"),
    "vector": scion_by_hand(lambda m: m / (float(m.norm()) / math.sqrt(len(m)) + 1e-8), "radius"),
    "head": scion_by_hand(lambda m: m / m.abs() / m.shape[1], "head_radius"),
    "embedding": scion_by_hand(lambda m: m / m.abs(), "embedding_radius"),
}


@pytest.mark.oracle("optimizer=scion", "float64 loop")
@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
def test_scion_by_hand(weight_decay):
    assert_follows("scion", SCION | {"weight_decay": weight_decay}, SCION_BY_ROLE, rtol=1e-7)


@pytest.mark.oracle("optimizer=scion", "pytorch_optimizer SCION")
@pytest.mark.parametrize("role, norm, radius", [("matrix", LMONorm.SPECTRAL, 5.0), ("head", LMONorm.SIGN, 30.0)])
@pytest.mark.parametrize("constraint", [True, False])
def test_scion_in_bfloat16_is_pytorch_optimizers(role, norm, radius, constraint):
    one, two = ([torch.nn.Parameter(x) for x in draws()] for _ in "ab")
    knobs = SCION | {"weight_decay": float(constraint), "precision": "bfloat16"}
    ours = three_steps(optimizers.build("scion", knobs, groups=[{"params": one, "role": role}]), one)
    settings = {"lr": 0.01, "momentum": 0.2, "norm_type": norm, "scale": radius, "constraint": constraint}
    expected = pytorch_optimizer.SCION(two, **settings, foreach=False)
    for a, b, start in zip(ours, three_steps(expected, two), draws(), strict=True):  # theirs scales U V^T in bfloat16
        assert (a - b).norm() < (5e-3 if role == "matrix" else 1e-5) * (b - start).norm()


def test_scion_weights_stay_in_the_ball_of_their_radius():
    """With weight_decay=1 an entry of the head stays below head_radius / columns however long it trains."""
    p = torch.nn.Parameter(torch.zeros(7, 10, dtype=torch.float64))
    optimizer = optimizers.build("scion", {"lr": 0.1, "head_radius": 30.0}, groups=[{"params": [p], "role": "head"}])
    for _ in range(200):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert ((p >= -3.0) & (p < -2.99)).all()


def gram_schmidt(x):
    found = []
    for column in x.T:
        for _ in range(2):
            for q in found:
                column = column - (q @ column) * q
        found.append(column / column.norm())
    return torch.stack(found, dim=1)


def dion_by_hand(w, grads, rates, knobs, decay):
    """The paper's algorithm 1, with Gram-Schmidt for qr: signs of columns of P and Q cancel in the update."""
    rank = min(knobs["rank"], *w.shape)
    m, q = torch.zeros_like(w), torch.randn(w.shape[1], rank, generator=torch.Generator().manual_seed(0)).to(w)
    for g, lr in zip(grads, rates, strict=True):
        b = m + g
        p = gram_schmidt(b @ q)
        r = b.T @ p
        m = b - (1 - knobs["momentum"]) * p @ r.T
        q = r / r.norm(dim=0)
        w = w - lr * decay * w - lr * math.sqrt(w.shape[0] / w.shape[1]) * p @ q.T
    return w


@pytest.mark.oracle("optimizer=dion", "float64 loop")
@pytest.mark.parametrize("rank", [2, 100])
def test_dion_by_hand(rank):
    # With all columns, rounding grows along those of the smallest singular values.
    assert_follows("dion", MUON | {"rank": rank}, {"matrix": dion_by_hand} | AUX, rtol=1e-8 if rank == 2 else 1e-4)


def test_dion_converges_to_the_orthogonal_factor_of_a_constant_gradient():
    u, _, vt = torch.linalg.svd(torch.randn(6, 9, dtype=torch.float64), full_matrices=False)
    p = torch.nn.Parameter(torch.zeros(6, 9, dtype=torch.float64))
    optimizer = optimizers.build("dion", {"lr": 1.0, "weight_decay": 0.0}, groups=[{"params": [p], "role": "matrix"}])
    for _ in range(60):
        before, p.grad = p.detach().clone(), u * 2.0 ** -torch.arange(6, dtype=torch.float64) @ vt
        optimizer.step()
    torch.testing.assert_close((before - p.detach()) / math.sqrt(6 / 9), u @ vt, rtol=0, atol=1e-6)


def test_dion_recovers_from_a_gradient_of_0():
    """The first gradient of a matrix behind one that starts at 0 is exactly 0."""
    p = torch.nn.Parameter(torch.ones(6, 9))
    optimizer = optimizers.build("dion", {"weight_decay": 0.0}, groups=[{"params": [p], "role": "matrix"}])
    for step in range(3):
        before, p.grad = p.detach().clone(), torch.randn(6, 9) * (step > 0)
        optimizer.step()
        assert torch.isfinite(p).all() and torch.equal(before, p.detach()) == (step == 0)


@pytest.mark.parametrize("name", ["normuon", "scion", "dion"])
def test_more_axes_are_a_stack(name):
    stack = torch.nn.Parameter(torch.randn(3, 16, 40))
    apart = [torch.nn.Parameter(x.detach().clone()) for x in stack]
    made = [optimizers.build(name, {}, groups=[{"params": w, "role": "matrix"}]) for w in ([stack], apart)]
    for step in range(STEPS // 4):
        stack.grad = torch.randn(stack.shape, generator=torch.Generator().manual_seed(step))
        for p, g in zip(apart, stack.grad, strict=True):
            p.grad = g.clone()
        for optimizer in made:
            optimizer.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in apart]), rtol=1e-4, atol=1e-5)
