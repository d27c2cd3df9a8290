"""kerple, sandwich and fire against float64 loops over heads, queries and keys (alibi and t5: test_positions.py)."""

import math

import pytest
import torch

from ablatio.registry.kinds import positions

H = 3
WIRING = {"d_model": 24, "d_head": 8, "n_heads": H, "n_layers": 2, "max_len": 32, "causal": True}
Q_POS, K_POS = torch.tensor([4, 0, 37, 600]), torch.tensor([0, 3, 37, 5, 600])


def made(name, knobs=None, **wiring):
    part = positions.build(name, knobs, **WIRING | wiring)
    return part.double()


def by_loop(value):
    """value(h, t, s) for each head, query and key."""
    rows = [[[value(h, t, s) for s in K_POS.tolist()] for t in Q_POS.tolist()] for h in range(H)]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.oracle("position=kerple", "float64 loop")
@pytest.mark.parametrize("form", ["log", "power"])
def test_kerple_by_loop(form):
    part = made("kerple", {"form": form}).requires_grad_(False)

    def value(h, t, s):
        a, b, distance = math.exp(part.a[h]), part.b[h].item(), abs(t - s)
        if form == "log":
            return -a * math.log(1 + math.exp(b) * distance)
        return -a * distance ** (2 / (1 + math.exp(-b)))

    torch.testing.assert_close(part.bias(Q_POS, K_POS), by_loop(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["log", "power"])
def test_kerple_starts_in_the_authors_range_and_decreases_for_all_parameters(form):
    part, pos = made("kerple", {"form": form}, n_heads=500), torch.arange(40)
    a, b = part.a.exp(), part.b.exp() if form == "log" else part.b.sigmoid()
    assert 0 < a.min() < 0.1 and 1.9 < a.max() < 2 and 0 < b.min() < 0.05 and 0.95 < b.max() < 1
    for shift in (0.0, -3.0, 3.0):  # positive definite needs a > 0 and, for the power, 0 < 2 b <= 2
        for p in part.parameters():
            p.data += shift
        bias = part.bias(pos[-1:], pos)[:, 0]  # (H, S), the nearest key last
        assert (bias.diff(dim=1) > 0).all() and not bias[:, -1].any()


@pytest.mark.oracle("position=sandwich", "float64 loop over cosines")
@pytest.mark.parametrize("width, base", [(128, 10000.0), (6, 50.0)])
def test_sandwich_by_loop(width, base):
    def value(h, t, s):
        cosines = sum(math.cos((t - s) / base ** (2 * i / width)) for i in range(1, width // 2 + 1))
        return (cosines - width / 2) / (8 * (h + 1) / H)

    ours = made("sandwich", {"width": width, "base": base}).bias(Q_POS, K_POS)
    torch.testing.assert_close(ours, by_loop(value), rtol=1e-6, atol=1e-6)  # the scales are kept in float32


def test_sandwich_decreases_with_the_logarithm():
    """Doubling the distance removes, on average, the cosines of (w/2) ln 2 / ln base frequencies."""
    bias = made("sandwich").bias(torch.tensor([0]), 2 ** torch.arange(11))[0, 0]  # distances 1, 2, 4 ... 1024
    assert (bias.diff() < 0).all()
    expected = 64 * math.log(2) / math.log(10000) / (8 / H)
    assert (bias[3] - bias[10]).item() / 7 == pytest.approx(expected, rel=0.05)
    pos = torch.arange(50)
    assert made("sandwich").bias(pos, pos).diagonal(dim1=1, dim2=2).abs().max() < 1e-6


@pytest.mark.oracle("position=fire", "float64 loop")
@pytest.mark.parametrize("c, threshold", [(0.1, 512.0), (2.0, 10.0)])
def test_fire_by_loop(c, threshold):
    part = made("fire", {"c": c, "threshold": threshold, "hidden": 5})
    with torch.no_grad():
        part.threshold.fill_(1.5)

    def value(h, t, s):
        x = math.log(1 + c * abs(t - s)) / math.log(1 + c * max(t, 1.5 * threshold))
        hidden = [max(0.0, x * part.slope[j].item() + part.offset[j].item()) for j in range(5)]
        return sum(w * y for w, y in zip(part.out.weight[h].tolist(), hidden, strict=True)) + part.out.bias[h].item()

    with torch.no_grad():  # c passed through float32
        torch.testing.assert_close(part.bias(Q_POS, K_POS), by_loop(value), rtol=1e-6, atol=1e-6)


def test_fire_is_relative_to_the_length_of_the_text():
    """Beyond the threshold the first and last key are at relative distances 1 and 0 for every length."""
    part, pos = made("fire", {"threshold": 16.0}), torch.arange(400)
    bias = part.bias(pos, pos)[:, 16:]
    for key in (bias[:, :, 0], bias.diagonal(offset=16, dim1=1, dim2=2)):
        torch.testing.assert_close(key, key[:, :1].expand_as(key), rtol=0, atol=1e-12)
    below = part.bias(pos[:16], pos)  # below the threshold only distances matter
    torch.testing.assert_close(below[:, 5, 3], below[:, 12, 10], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["alibi", "t5", "kerple", "sandwich"])
def test_biases_depend_on_distances_only(name):
    part, pos = made(name), torch.arange(50)
    torch.testing.assert_close(part.bias(pos + 777, pos + 777), part.bias(pos, pos), rtol=0, atol=1e-9)
