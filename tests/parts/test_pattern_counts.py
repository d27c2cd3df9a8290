"""The number of pairs that a window shows has a formula; it is what counting them gives."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ablatio_std.attentions._patterns import hidden_pairs, near


@given(st.integers(1, 40), st.integers(1, 60))
def test_pairs_of_a_window(length: int, window: int) -> None:
    pos = torch.arange(length)
    shown = int(near(pos[:, None], pos[None], window).sum())
    assert hidden_pairs(length, (near, window)) == length * length - shown
