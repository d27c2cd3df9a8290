"""Contract of residual gates: linear, and each feature is independent of the others."""

import torch

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("residual_gate",)


def test_gate_is_linear(part: PartSpec) -> None:
    gate, x = sample_parts.attached(part), checks.randn(2, 3, 16)
    checks.near(part, gate(2 * x), 2 * gate(x), "g(2x) and 2 g(x)", 1e-6)


def test_gate_keeps_features_apart(part: PartSpec) -> None:
    gate, x = sample_parts.attached(part), torch.zeros(16)
    x[3] = 1.0
    assert not gate(x)[torch.arange(16) != 3].any(), f"{checks.label(part)}: one feature changes others"
