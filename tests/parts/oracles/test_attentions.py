"""Attention against an explicit softmax, torch's own module, and itself with repeated heads."""

import pytest
import torch
from helpers.attention_loops import WIDTH, D, H, by_loop, context, made

CASES = [("mha", {}, H), ("mqa", {}, 1), *(("gqa", {"n_kv_heads": n}, n) for n in (1, 2, 4))]


@pytest.mark.oracle("attention", "float64 loop")
@pytest.mark.oracle("position=none", "attention in a float64 loop")
@pytest.mark.parametrize("name, knobs, n_kv", CASES, ids=str)
@pytest.mark.parametrize("position", ["none", "alibi"])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_by_loop(name, knobs, n_kv, position, packed):
    part, x = made(name, knobs), torch.randn(2, 7, D, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 5, 5]]) if packed else None
    slope = (lambda h: 2.0 ** (-8 * (h + 1) / H)) if position == "alibi" else (lambda h: 0.0)
    same = (lambda b, t, s: segments[b, t] == segments[b, s]) if packed else (lambda b, t, s: True)
    ours = part(x, context(7, position, segments))
    theirs = by_loop(part, x, n_kv, lambda h, t, s: -slope(h) * (t - s), same)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("attention=mha", "torch MultiheadAttention")
@pytest.mark.parametrize("bias", [True, False])
def test_mha_is_torchs(bias):
    ours, theirs = made("mha", bias=bias), torch.nn.MultiheadAttention(D, H, bias=bias, batch_first=True).double()
    qkv = [ours.q_proj, ours.k_proj, ours.v_proj]
    state = {"in_proj_weight": torch.cat([p.weight for p in qkv]), "out_proj.weight": ours.o_proj.weight}
    if bias:
        state |= {"in_proj_bias": torch.cat([p.bias for p in qkv]), "out_proj.bias": ours.o_proj.bias}
    theirs.load_state_dict({k: v.detach() for k, v in state.items()})
    x = torch.randn(3, 9, D, dtype=torch.float64, requires_grad=True)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    a, b = ours(x, context(9, batch=3)), theirs(x, x, x, attn_mask=hidden, need_weights=False)[0]
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (a, b)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name, knobs, n_kv", CASES, ids=str)
def test_fewer_kv_heads_are_mha_with_repeated_rows(name, knobs, n_kv):
    few, full = made(name, knobs), made("mha")
    state = few.state_dict()
    for key in [k for k in state if k[:2] in ("k_", "v_")]:
        state[key] = state[key].unflatten(0, (n_kv, WIDTH)).repeat_interleave(H // n_kv, 0).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 6, D, dtype=torch.float64)
    torch.testing.assert_close(few(x, context(6)), full(x, context(6)), rtol=1e-12, atol=1e-13)


def test_gradients_by_differences():
    part, x = made("gqa", {"n_kv_heads": 2}), torch.randn(1, 4, D, dtype=torch.float64, requires_grad=True)
    ctx = context(4, "t5", batch=1)
    assert torch.autograd.gradcheck(lambda x: part(x, ctx), (x,))
