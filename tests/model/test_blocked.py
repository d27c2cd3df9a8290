"""Blockwise attention against plain softmax attention in float64: outputs and all gradients, the bias's included."""

import itertools
import math

import pytest
import torch

from ablatio.model.attention.blocked import BLOCK, blocked_attention

B, H, WIDTH = 3, 2, 4


def plain(q, k, v, bias, visible, scale):
    logits = (q @ k.mT) * scale + (0 if bias is None else bias)
    return logits.masked_fill(~visible, -math.inf).softmax(-1) @ v


def seen(queries, keys, first, window):
    """Mask (B, 1, T, S) from the definition."""
    rows = []
    for b in range(B):
        starts = [0] * queries if first is None else (first if first.dim() == 1 else first[b]).tolist()
        place = [keys - queries + t for t in range(queries)]
        rows.append(
            [
                [starts[t] <= s <= place[t] and (window is None or place[t] - s < window) for s in range(keys)]
                for t in range(queries)
            ]
        )
    return torch.tensor(rows)[:, None]


def documents(queries, keys):
    """Document start of each query: borders differ by row, some inside a block, one at its edge."""
    borders = [[0], [0, 3, BLOCK, BLOCK + 5], [0, 1, keys - 2]]
    place = range(keys - queries, keys)
    return torch.tensor([[max(x for x in row if x <= t) for t in place] for row in borders])


CASES = [(1, 1), (1, 9), (7, 7), (BLOCK, BLOCK), (BLOCK + 1, BLOCK + 1), (2 * BLOCK + 3, 2 * BLOCK + 3), (5, 2 * BLOCK)]


@pytest.mark.matrix
@pytest.mark.parametrize("queries, keys", CASES)
@pytest.mark.parametrize("biased", [None, (H,), (B, H), (1, H), (B, 1)], ids=str)
@pytest.mark.parametrize("packed", [None, "shared", "own"])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_blockwise_attention_equals_plain_attention(queries, keys, biased, packed, window):
    q = torch.randn(B, queries, H, WIDTH, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(B, keys, H, WIDTH, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in "kv")
    bias = None if biased is None else torch.randn(*biased, queries, keys, dtype=torch.float64, requires_grad=True)
    first = None if packed is None else documents(queries, keys)
    if packed == "shared":
        first = first[1]
    ours = blocked_attention(q, k, v, bias, first=first, window=window, scale=0.7)
    theirs = plain(q, k, v, bias, seen(queries, keys, first, window), 0.7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    inputs = [x for x in (q, k, v, bias) if x is not None]
    weights = torch.randn(ours.shape, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_documents_within_and_across_blocks():
    n = 2 * BLOCK + 9
    q, k, v = (torch.randn(B, H, n, WIDTH, dtype=torch.float64) for _ in range(3))
    first = documents(n, n)
    ours = blocked_attention(q, k, v, first=first)
    for b in range(B):
        borders = [*sorted(set(first[b].tolist())), n]
        for i, j in itertools.pairwise(borders):
            alone = blocked_attention(*(x[b : b + 1, :, i:j] for x in (q, k, v)))
            torch.testing.assert_close(ours[b : b + 1, :, i:j], alone, rtol=0, atol=1e-12)


def test_default_scale_equals_sdpa():
    q, k, v = (torch.randn(B, H, 100, WIDTH) for _ in range(3))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(blocked_attention(q, k, v), theirs, rtol=0, atol=1e-5)


def test_later_tokens_have_no_influence():
    q, k, v = (torch.randn(1, H, 150, WIDTH) for _ in range(3))
    bias = torch.randn(H, 150, 150)
    changed = [x.clone() for x in (q, k, v, bias)]
    for x in changed:
        x[..., 70:, :] += 1
    assert torch.equal(blocked_attention(*changed)[:, :, :70], blocked_attention(q, k, v, bias)[:, :, :70])


def test_runs_under_autocast_in_the_input_dtype():
    q, k, v = (torch.randn(1, H, 80, WIDTH, requires_grad=True) for _ in range(3))
    bias = torch.randn(H, 80, 80, requires_grad=True)
    expected = blocked_attention(q, k, v, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = blocked_attention(q, k, v, bias)
        low = blocked_attention(*(x.bfloat16() for x in (q, k, v)), bias)
    low.float().sum().backward()
    torch.testing.assert_close(same, expected)
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=0.05)
    assert low.dtype == torch.bfloat16 and bias.grad.dtype == torch.float32 and bias.grad.isfinite().all()
