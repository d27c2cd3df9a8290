"""Choice of the attention kernel: long rows trained on a CPU use blocks and equal the masked kernel."""

import pytest
import torch
from helpers.support import model_config

from ablatio.model.attention import kernels
from ablatio.model.build import build_model

LENGTH = 173
CASES = [
    {"attention": {"name": "sliding", "window": 20}},
    {"attention": {"name": "sliding", "window": 20, "full_every": 2}, "position": "alibi"},
    {"position": "alibi", "attention": "gqa"},
    {"position": "t5"},
    {"attention": "forgetting"},
    {"attention": "forgetting", "position": "t5"},
    {"attention": "differential", "position": "t5"},
    {"attention": "mla", "position": "alibi"},
    {"attention": "bigbird"},
]
ONE = torch.zeros(2, LENGTH).long()
SEVERAL = torch.stack([torch.arange(LENGTH) // 70, (torch.arange(LENGTH) > 3).long()])
PIECES = torch.stack([torch.arange(LENGTH) // 50 % 2, torch.arange(LENGTH) // 60])


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("segments", [None, ONE, SEVERAL, PIECES], ids=["none", "one", "several", "pieces"])
def test_blockwise_attention_equals_the_masked_kernel(options, segments, monkeypatch):
    model = build_model(model_config(**options, max_len=LENGTH, d_model=16), 50).double()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    tokens, calls, real = torch.randint(0, 50, (2, LENGTH)), [], kernels.blocked_attention
    monkeypatch.setattr(kernels, "blocked_attention", lambda *a, **k: calls.append(1) or real(*a, **k))

    def outcome():
        model.zero_grad()
        logits = model(tokens, segments)
        logits.square().mean().backward()
        return [logits, *(p.grad.clone() for p in model.parameters())]

    monkeypatch.setattr(kernels, "LEAST", 128)
    by_blocks = outcome()
    blocks, more = len(calls), options.get("attention") == "bigbird" or segments is PIECES
    monkeypatch.setattr(kernels, "LEAST", 10**9)
    monkeypatch.setattr(kernels, "LEAST_TRAINED", 10**9)
    for a, b in zip(by_blocks, outcome(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert len(calls) == blocks and (blocks == 0) == more
