"""Under autocast biases and rotations keep float32, and the gradients of tables and heads are exact sums."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.attention.kernels import attend
from ablatio.model.context import make_context
from ablatio.model.cross_entropy import add_product, add_rows, block_rows, linear_cross_entropy
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import sample_parts, tiny_models

B, H, T, D = 2, sample_parts.HEADS, 40, sample_parts.WIDTH
SIXTEEN = (torch.bfloat16, torch.float16)


def having(method: str) -> list[str]:
    made = {e.name: sample_parts.position(e, dtype=torch.float32) for e in REGISTRIES["position"]}
    return [name for name, part in made.items() if hasattr(part, method)]


def part_of(name: str) -> Any:
    torch.manual_seed(0)
    return sample_parts.position(REGISTRIES["position"][name], dtype=torch.float32, max_len=4096)


def heads(dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", having("bias"))
def test_every_bias_is_that_of_float32(name: str, dtype: torch.dtype) -> None:
    """Bit for bit: rounded to bfloat16, alibi would have 641 different biases at 2048 keys."""
    part, tokens = part_of(name), torch.zeros(1, 2048 if name == "alibi" else 256, dtype=torch.long)
    exact = make_context(tokens, part, "causal", None, None, torch.float32).bias
    with torch.autocast("cpu", dtype=dtype):
        bias = make_context(tokens, part, "causal", None, None, dtype).bias
    assert bias is not None and bias.dtype == torch.float32 and torch.equal(bias, exact)
    if name == "alibi":
        assert len(bias[0, -1].unique()) == 2048


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", [*having("bias"), *having("score")])
def test_attention_with_a_bias_is_that_of_float32(name: str, dtype: torch.dtype) -> None:
    """The oracle computes softmax(q k^T / sqrt(d) + bias) v of the same 16-bit numbers in float64."""
    part, tokens = part_of(name), torch.zeros(B, T, dtype=torch.long)
    q, k, v = (heads(dtype, seed) for seed in range(3))
    with torch.autocast("cpu", dtype=dtype):
        ctx = make_context(tokens, part, "causal", None, None, dtype)
        found = attend(q, k, v, ctx)
    assert found.dtype == dtype
    wide = part.double()
    exact = make_context(tokens, wide, "causal", None, None, torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    logits = q @ k.mT / D**0.5
    if exact.bias is not None:
        logits = logits + exact.bias
    if hasattr(wide, "score"):
        logits = logits + wide.score(q, k, exact.q_pos, exact.k_pos)
    logits = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    # One rounding of the output, where the biases would otherwise have been rounded before the softmax, too.
    torch.testing.assert_close(found.double(), logits.softmax(-1) @ v, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", having("rotate"))
def test_every_rotation_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    """At positions up to 4096: the rotation in float32 of the same numbers, rounded; with and without `prepare`."""
    part, pos = part_of(name), torch.linspace(0, 4095, T).long()
    q, k = heads(dtype, 0), heads(dtype, 1)
    exact = part.rotate(q.float(), k.float(), pos)
    given = [pos]
    if hasattr(part, "prepare"):
        given.append(part.prepare(pos, torch.float32, pos.amax() + 1))
    for where in given:
        with torch.autocast("cpu", dtype=dtype):
            for ours, theirs in zip(part.rotate(q, k, where), exact, strict=True):
                assert ours.dtype == dtype and torch.equal(ours, theirs.to(dtype))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_tables_of_rope_are_prepared_in_float32(dtype: torch.dtype) -> None:
    tokens = torch.zeros(1, 64, dtype=torch.long)
    with torch.autocast("cpu", dtype=dtype):
        ctx = make_context(tokens, part_of("rope"), "causal", None, None, dtype)
    assert {t.dtype for t in ctx.prepared} == {torch.float32}


def test_forgetting_and_differential_are_near_float32_in_bfloat16() -> None:
    """The decay is an additive bias; the difference of two attentions is not rounded before it is taken."""
    for name, most in (("forgetting", 0.2), ("differential", 1.0)):  # 3.3, if the difference is rounded
        gradients = []
        for dtype in (None, torch.bfloat16):
            net = tiny_models.model(REGISTRIES["attention"][name])
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = tiny_models.mean_loss(net, tiny_models.example())
            loss.backward()
            gradients.append({n: p.grad for n, p in net.named_parameters() if "f_proj" in n or "lambda" in n})
        for parameter, exact in gradients[0].items():
            gap = (gradients[1][parameter] - exact).norm() / exact.norm()
            assert gap < most, f"{name}: the gradient of {parameter} is off by {gap:.2f} of its size"


def test_rows_are_added_alike_on_all_devices() -> None:
    """A GPU takes the sorted, deterministic form: the same sums as index_add_, which it replaces there."""
    index, rows = torch.randint(0, 7, (3, 50)), torch.randn(3, 50, 5)
    expected = add_rows(torch.ones(9, 5), index, rows)
    sorted_form = torch.ones(9, 5) + torch.ops.aten.embedding_dense_backward(rows, index, 9, -1, False)
    torch.testing.assert_close(expected, sorted_form, rtol=1e-6, atol=1e-5)
    by_loop = torch.ones(9, 5)
    for i, row in zip(index.flatten().tolist(), rows.flatten(0, 1), strict=True):
        by_loop[i] += row
    torch.testing.assert_close(expected, by_loop, rtol=1e-6, atol=1e-5)
    assert add_rows(torch.empty(9, 5, device="meta"), index.to("meta"), rows.to("meta")).shape == (9, 5)


@pytest.mark.parametrize("first", [True, False])
def test_products_are_summed_in_the_dtype_of_the_weights(first: bool) -> None:
    left, right = torch.randn(30, 4).bfloat16(), torch.randn(30, 6).bfloat16()
    start = torch.full((4, 6), torch.nan) if first else torch.ones(4, 6)
    expected = (left.double().T @ right.double()) + (0 if first else 1)
    found = add_product(start, left, right, first=first)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)


def test_blocks_of_logits_are_larger_on_a_gpu_and_change_no_sum() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("meta")
    assert [block_rows(v, cpu) for v in (257, 50304)] == [512, 128]
    assert [block_rows(v, gpu) for v in (257, 50304, 10**7)] == [8192, 2624, 512]
    hidden, weight, targets = torch.randn(700, 8), torch.randn(50, 8), torch.randint(0, 50, (700,))
    found = []
    for chunk in (128, 700):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = linear_cross_entropy(h, w, targets, chunk=chunk)
        loss.backward()
        found.append((loss.detach(), h.grad, w.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[0][0], F.cross_entropy(hidden @ weight.T, targets, reduction="sum"))
