"""Positions: embed, rotate, bias or score, at (T,) or (B, T) places."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("position",)
HEADS, WIDTH, MAX_LEN = sample_parts.HEADS, sample_parts.WIDTH, 32
PLACES = torch.tensor([[0, 1, 2, 3, 4], [5, 3, 0, 1, 31]])


def test_defines_what_it_says(part: PartSpec) -> None:
    made = sample_parts.position(part)
    for method in REGISTRIES["position"].any_of:
        has, says = callable(getattr(made, method, None)), method in part.facts["uses"]
        assert has == says, f"{checks.label(part)}: `{method}` is {'is' if has else 'is not'} there; the class differs"


def test_shapes(part: PartSpec) -> None:
    for causal in (True, False):
        made = sample_parts.position(part, causal=causal, dtype=torch.float32)
        for pos in (torch.arange(7), PLACES):
            with checks.unchanged(part, pos), checks.draws_nothing(part, "when used"):
                found = sample_parts.use_position(part, made, pos, torch.float32)
            for method, y in found.items():
                _check_shape(part, method, y, pos)


def _check_shape(part: PartSpec, method: str, y: Any, pos: Tensor) -> None:
    rows, length = (pos.shape[0] if pos.dim() == 2 else 2), pos.shape[-1]
    heads = (HEADS, length, length)
    expected: dict[str, list[tuple[int, ...]]] = {
        "embed": [(rows, length, HEADS * WIDTH)],
        "rotate": [(rows, HEADS, length, WIDTH)],
        "bias": [(rows, *heads)] if pos.dim() == 2 else [heads, (1, *heads), (rows, *heads)],
        "score": [(rows, *heads)],
    }
    if method == "rotate":
        pair = isinstance(y, tuple) and len(y) == 2
        assert pair, f"{checks.label(part)}: rotate gives {type(y).__name__}; expected the pair (q, k)"
    for tensor in y if isinstance(y, tuple) else (y,):
        shape, wanted = tuple(tensor.shape), " or ".join(map(str, expected[method]))
        where = f"{method} with positions {tuple(pos.shape)}"
        assert shape in expected[method], f"{checks.label(part)}: {where} gives {shape}, expected {wanted}"
        assert tensor.is_floating_point(), f"{checks.label(part)}: {where} gives {tensor.dtype}; expected floats"
        checks.finite(part, tensor, f"in {where}")


def test_embed_and_rotate_keep_dtype(part: PartSpec) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = sample_parts.use_position(part, sample_parts.position(part, dtype=dtype), torch.arange(5), dtype)
        for method in ("embed", "rotate"):
            tensors = found.get(method, ())
            for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
                came = f"{method} gives {tensor.dtype} for {dtype}"
                assert tensor.dtype == dtype, f"{checks.label(part)}: {came}; expected the dtype of its input"


def test_rows_by_themselves(part: PartSpec) -> None:
    made = sample_parts.position(part)
    together = sample_parts.use_position(part, made, PLACES)
    for i, row in enumerate(PLACES):
        alone = sample_parts.use_position(part, made, row)
        for method, y in together.items():
            for a, b in zip(*(_tuple(v) for v in (y, alone[method])), strict=True):
                b = b[None] if b.dim() < a.dim() else b
                checks.near(part, a[i], b[0], f"{method} of a batch of positions and row by row")


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_bias_goes_by_position_not_by_place(part: PartSpec) -> None:
    if "bias" not in part.facts["uses"]:
        pytest.skip("it has no bias")
    made, pos = sample_parts.position(part), torch.arange(9)
    q, k = torch.tensor([4, 0, 8]), torch.tensor([8, 1, 3, 0])
    whole, some = made.bias(pos, pos), made.bias(q, k)
    checks.near(part, some, whole[..., q, :][..., k], "the bias of some queries and keys, and those rows of the whole")


def test_bias_of_a_pair(part: PartSpec) -> None:
    made = sample_parts.position(part)
    if getattr(made, "pair_bias", None) is None:
        pytest.skip("it has no pair_bias")
    trained = isinstance(made, nn.Module) and list(made.parameters())
    assert not trained, f"{checks.label(part)}: pair_bias is for a bias without weights, and it has some"
    of_pair = made.pair_bias()
    for q, k in ((torch.tensor([4, 0, 8]), torch.tensor([8, 1, 3, 0])), (PLACES, PLACES)):
        whole = made.bias(q, k)
        whole = whole[None] if whole.dim() == 3 else whole
        heads = torch.arange(HEADS)[:, None, None]
        queries, keys = (p if p.dim() == 2 else p[None] for p in (q, k))
        pairs = of_pair(heads, queries[:, None, :, None], keys[:, None, None, :])
        checks.near(part, pairs.expand_as(whole), whole, "pair_bias and bias")


def test_far_positions(part: PartSpec) -> None:
    if not part.facts["extends"]:
        pytest.skip("it has positions up to max_len only (extends = False)")
    pos = torch.tensor([0, MAX_LEN, MAX_LEN * 16, 100_000])
    found = sample_parts.use_position(part, sample_parts.position(part, dtype=torch.float32), pos, torch.float32)
    for method, y in found.items():
        for tensor in _tuple(y):
            checks.finite(part, tensor, f"in {method} at position 100000 (`extends = False` says that it cannot)")


def test_gradients(part: PartSpec) -> None:
    made, pos = sample_parts.position(part), torch.tensor([0, 1, 5])
    x = checks.randn(1, 3, HEADS * WIDTH, dtype=torch.float64)
    q, k = (checks.randn(1, HEADS, 3, WIDTH, seed=i, dtype=torch.float64) for i in (1, 2))
    calls: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
        "embed": (lambda x: made.embed(x, pos), (x,)),
        "rotate": (lambda q, k: made.rotate(q, k, pos), (q, k)),
        "score": (lambda q, k: made.score(q, k, pos, pos), (q, k)),
        "bias": (lambda: made.bias(pos, pos), ()),
    }
    for method in part.facts["uses"]:
        if method == "bias" and not (isinstance(made, nn.Module) and list(made.parameters())):
            continue
        function, inputs = calls[method]
        checks.module_gradients_agree(part, made, function, *inputs)
