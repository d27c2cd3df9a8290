"""FlexAttention on a CPU, for tests: torch's own reference of it, with the backward pass that torch refuses there.

torch computes scores, mask and softmax of the whole matrix then, in float32 or float64, by the same functions of a
pair that a GPU kernel is compiled from.  It does not read the list of blocks: tests/model/test_flex_attention.py
compares that one with torch's.
"""

from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as theirs

from ablatio.model import flex_attention as flex


def flex_on_cpu(patch: pytest.MonkeyPatch, *, least: int = 1, devices: tuple[str, ...] = ("cpu",)) -> list[Any]:
    """Let attention take it from `least` tokens on, in heads of any width; return the settings of its calls."""
    calls: list[Any] = []

    def counted(*args: Any, **settings: Any) -> Any:
        calls.append(settings)
        return theirs.flex_attention(*args, **settings)

    patch.setattr(flex._Setting, "allowed", True)
    patch.setattr(flex, "DEVICES", devices)
    patch.setattr(flex, "LEAST", least)
    patch.setattr(flex, "NARROWEST", 1)
    patch.setattr(flex, "DTYPES", (*flex.DTYPES, torch.float64))
    patch.setattr(flex, "_kernel", lambda: counted)
    patch.setattr(theirs, "_validate_device", lambda *tensors: None)
    patch.setattr(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # the reference itself, not compiled
    return calls
