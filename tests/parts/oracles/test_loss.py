"""The chunked head and cross-entropy against F.cross_entropy on full logits, and that full logits never exist."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ablatio.model.cross_entropy import linear_cross_entropy, token_scores


def case(rows, vocab=37, width=8, scale=1.0, dtype=torch.float64):
    hidden = (torch.randn(rows, width, dtype=dtype) * scale).requires_grad_()
    weight = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, vocab, (rows,))


def plain(hidden, weight, targets, row_weights=None):
    losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    return losses.sum() if row_weights is None else (losses * row_weights).sum()


def assert_equal(inputs, row_weights=None, chunk=None, scale=0.37):
    hidden, weight, targets = inputs
    ours = linear_cross_entropy(hidden, weight, targets, row_weights, chunk=chunk)
    theirs = plain(hidden, weight, targets, row_weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad(y * scale, (hidden, weight)) for y in (ours, theirs))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=4e-12)


@pytest.mark.parametrize("rows", [1, 2, 511, 512, 513, 1100])
def test_any_number_of_rows(rows):
    assert_equal(case(rows))


@given(rows=st.integers(1, 40), chunk=st.integers(1, 50), vocab=st.integers(1, 30), weighted=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_shape_and_chunk(rows, chunk, vocab, weighted):
    inputs = case(rows, vocab)
    assert_equal(inputs, torch.rand(rows, dtype=torch.float64) if weighted else None, chunk)


def test_no_rows_at_all():
    hidden, weight, targets = case(0)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss == 0 and not torch.autograd.grad(loss, weight)[0].any()


def test_weights_leave_rows_out():
    hidden, weight, targets = inputs = case(300)
    keep = torch.zeros(300, dtype=torch.float64)
    keep[::7] = 1
    assert_equal(inputs, keep)
    some = linear_cross_entropy(hidden[::7], weight, targets[::7])
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, keep), some, rtol=1e-12, atol=0)
    loss = linear_cross_entropy(hidden, weight, targets, torch.zeros(300, dtype=torch.float64))
    assert loss == 0 and all(not g.any() for g in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(dtype):
    """Logits of +-1e4: one-hot certainty, and targets whose probability underflows to 0."""
    weight = torch.tensor([[1e4], [-1e4], [0.0], [9.9e3]], dtype=dtype, requires_grad=True)
    hidden = torch.tensor([[1.0], [1.0], [-1.0], [0.0], [1e-4]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 0])
    losses = token_scores(hidden, weight, targets)[0]
    assert losses[:3].tolist() == [0.0, 2e4, 1e4]
    ours = linear_cross_entropy(hidden, weight, targets)
    theirs = plain(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs)
    for x, y in zip(*(torch.autograd.grad(y, (hidden, weight)) for y in (ours, theirs)), strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x, y)


def test_gradients_by_differences():
    hidden, weight, targets = case(5, vocab=7, width=3)
    rows = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, rows, chunk=2), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, chunk=3) / 5, (hidden, weight))


def test_token_losses_are_its_summands():
    hidden, weight, targets = case(300)
    losses = token_scores(hidden, weight, targets)[0]
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses.sum(), linear_cross_entropy(hidden, weight, targets), rtol=1e-12, atol=0)


def test_autocast_takes_products_in_bfloat16_and_sums_in_float32():
    hidden, weight, targets = case(300, dtype=torch.float32)
    exact = plain(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets)
        each, hits = token_scores(hidden, weight, targets)
    assert ours.dtype == each.dtype == torch.float32
    torch.testing.assert_close(ours, exact, rtol=5e-3, atol=0)
    torch.testing.assert_close(each.sum(), ours, rtol=1e-6, atol=0)  # the same rounded products
    products = (hidden.bfloat16() @ weight.bfloat16().T).float()
    assert torch.equal(hits, products.argmax(-1) == targets)
    for x, y in zip(*(torch.autograd.grad(y, (hidden, weight)) for y in (ours, exact)), strict=True):
        assert x.dtype == torch.float32
        assert F.cosine_similarity(x.flatten(), y.flatten(), dim=0) > 0.9999


class Watch(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives, and of matrix products."""

    elements = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else (result,)
        sizes = [t.untyped_storage().nbytes() // t.element_size() for t in tensors if isinstance(t, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        self.products += "mm" in function.name()
        return result


def test_full_logits_never_exist():
    hidden, weight, targets = case(2048, vocab=3000, width=4, dtype=torch.float32)
    with Watch() as seen:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert seen.elements <= 512 * 3000
    with Watch() as seen:
        token_scores(hidden, weight, targets)
    assert seen.elements <= 128 * 3000
    with Watch() as seen:  # the measure sees what plain cross-entropy makes
        plain(hidden, weight, targets)
    assert seen.elements == 2048 * 3000


def products(inputs):
    with Watch() as seen:
        linear_cross_entropy(*inputs)
    return seen.products


def test_only_wanted_gradients_are_made():
    hidden, weight, _ = inputs = case(1200)
    assert products(inputs) == 3 * 3  # three chunks: forward, and two gradients
    with torch.no_grad():
        assert products(inputs) == 3
    for one, other in [(hidden, weight), (weight, hidden)]:  # a frozen head, or one trained alone
        one.requires_grad_(False)
        expected = torch.autograd.grad(plain(*inputs), other)
        torch.testing.assert_close(torch.autograd.grad(linear_cross_entropy(*inputs), other), expected)
        assert products(inputs) == 3 * 2
        one.requires_grad_(True)


def test_a_second_backward_is_like_the_first():
    hidden, weight, targets = case(5)
    loss = linear_cross_entropy(hidden, weight, targets) * 0.5
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    copies = [g.clone() for g in first]
    second = torch.autograd.grad(loss * 3, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-12, atol=0)


def test_second_derivatives_are_refused_not_wrong():
    hidden, weight, targets = case(5)
    loss = linear_cross_entropy(hidden, weight, targets) * hidden.sum()
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
