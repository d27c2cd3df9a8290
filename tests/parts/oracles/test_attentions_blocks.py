"""Attention to chosen blocks, paired and composed heads, test-time training: against loops over queries and heads."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_loops import WIDTH, D, H, assert_texts_alone, context, made
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.model.cost.parameters import measure
from ablatio.registry.rules import violated_rules

T = 13
PACKED = torch.tensor([[0] * 5 + [1] * 6 + [0] * 2, [3] * 12 + [5]])  # a document may be in two pieces
EACH = pytest.mark.parametrize("packed", [False, True])


def compare(part, packed, alone):
    """The part on two rows against `alone(x)`, which maps one document (T, D) -> (T, H, d_head)."""
    x = torch.randn(2, T, D, dtype=torch.float64)
    segments, expected = PACKED if packed else torch.zeros(2, T).long(), torch.zeros_like(x)
    for b in range(2):
        for d in segments[b].unique():
            rows = segments[b] == d
            expected[b, rows] = part.o_proj(alone(x[b, rows]).flatten(1))
    ours = part(x, context(T, segments=segments if packed else None))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def projected(part, x):
    return (p(x).unflatten(-1, (-1, WIDTH)) for p in (part.q_proj, part.k_proj, part.v_proj))  # (T, heads, d_head)


def softmax_over(q, k, v):
    return (k @ q / math.sqrt(WIDTH)).softmax(0) @ v


@pytest.mark.oracle("attention=moba", "float64 loop over queries, heads and blocks")
@EACH
@pytest.mark.parametrize(("block", "top_k", "n_kv"), [(3, 2, 4), (2, 3, 2), (4, 1, 4)])
@torch.no_grad()
def test_moba_by_loop(packed, block, top_k, n_kv):
    part = made("moba", {"block": block, "top_k": top_k, "n_kv_heads": n_kv})

    def alone(x):
        q, k, v = projected(part, x)
        y = torch.zeros_like(q)
        for t in range(len(x)):
            for h in range(H):
                g = h * n_kv // H
                means = [(k[i * block : (i + 1) * block, g].mean(0) @ q[t, h]).item() for i in range(t // block)]
                chosen = sorted(range(len(means)), key=lambda i: -means[i])[: top_k - 1]
                seen = [s for s in range(t + 1) if s // block in (*chosen, t // block)]
                y[t, h] = softmax_over(q[t, h], k[seen, g], v[seen, g])
        return y

    compare(part, packed, alone)


@torch.no_grad()
def test_all_blocks_are_plain_attention():
    part, x = made("moba", {"block": 2, "top_k": 99}), torch.randn(2, T, D, dtype=torch.float64)
    plain = made("mha")
    plain.load_state_dict(part.state_dict())
    torch.testing.assert_close(part(x, context(T)), plain(x, context(T)), rtol=1e-10, atol=1e-12)


@pytest.mark.oracle("attention=nsa", "float64 loop over queries, heads, blocks and branches")
@EACH
@pytest.mark.parametrize(("block", "top_k", "n_kv"), [(2, 3, 2), (3, 2, 4), (3, 3, 1)])
@torch.no_grad()
def test_nsa_by_loop(packed, block, top_k, n_kv):
    part = made("nsa", {"block": block, "top_k": top_k, "n_kv_heads": n_kv, "window": 4})
    share = H // n_kv

    def squeezed(module, x):
        return module.down(F.gelu(module.up(x.flatten())))

    def alone(x):
        q, k, v = projected(part, x)
        (kc, ks, kw), (vc, vs, vw) = k.split(n_kv, 1), v.split(n_kv, 1)
        gates, y = torch.sigmoid(part.g_proj(x)).unflatten(-1, (H, 3)), torch.zeros_like(q)
        for t in range(len(x)):
            for g in range(n_kv):
                whole = (t + 1) // block
                parts = [slice(i * block, (i + 1) * block) for i in range(whole)]
                keys = [squeezed(part.k_compression, kc[p, g]) for p in parts]
                values = [squeezed(part.v_compression, vc[p, g]) for p in parts]
                importance = torch.zeros(t // block + 1, dtype=x.dtype)
                for h in range(g * share, (g + 1) * share):
                    if whole:
                        p = (torch.stack(keys) @ q[t, h] / math.sqrt(WIDTH)).softmax(0)
                        y[t, h] += gates[t, h, 0] * (p @ torch.stack(values))
                        importance[:whole] += p
                importance[0] = importance[-1] = math.inf
                best = importance.topk(min(top_k, len(importance))).indices.tolist()
                seen = [s for s in range(t + 1) if s // block in best]
                near = list(range(max(0, t - 3), t + 1))
                for h in range(g * share, (g + 1) * share):
                    y[t, h] += gates[t, h, 1] * softmax_over(q[t, h], ks[seen, g], vs[seen, g])
                    y[t, h] += gates[t, h, 2] * softmax_over(q[t, h], kw[near, g], vw[near, g])
        return y

    compare(part, packed, alone)


@pytest.mark.oracle("attention=paired_heads", "float64 loop over the interleaved keys of two heads")
@EACH
@torch.no_grad()
def test_paired_heads_by_loop(packed):
    part = made("paired_heads")

    def alone(x):  # twice as many tokens, half as many heads, causal: as the source computes it
        q, k, v = (t.unflatten(1, (H // 2, 2)).transpose(1, 2).flatten(0, 1) for t in projected(part, x))
        y = torch.zeros_like(q)
        for t in range(len(q)):
            for p in range(H // 2):
                y[t, p] = softmax_over(q[t, p], k[: t + 1, p], v[: t + 1, p])
        return y.unflatten(0, (-1, 2)).transpose(1, 2).flatten(1, 2)

    compare(part, packed, alone)


@pytest.mark.oracle("attention=dcmha", "float64 loop over pairs of tokens, with (H, H) maps written out")
@EACH
@pytest.mark.parametrize("sides", ["both", "logits", "weights"])
@torch.no_grad()
def test_dcmha_by_loop(packed, sides):
    part = made("dcmha", {"sides": sides})

    def matrix(name, x):
        """Identity, low-rank and diagonal parts of one token's map, as one (H, H) matrix."""
        if name not in part.maps:
            return None
        maps = part.maps[name]
        u, w = maps.w_2(F.gelu(maps.w_1(x))).view(2, 2, H)
        u = u / (u.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return torch.einsum("rh,ri->hi", u, w) + torch.diag(torch.tanh(maps.w_g(x)))

    def mixed(scores, side, x, t):
        if f"{side}_q" not in part.maps:
            return scores
        return torch.stack(
            [a + a @ (matrix(f"{side}_q", x[t]) + matrix(f"{side}_k", x[s])) for s, a in enumerate(scores)]
        )

    def alone(x):
        q, k, v = projected(part, x)
        y = torch.zeros_like(q)
        for t in range(len(x)):
            scores = torch.einsum("hd,shd->sh", q[t], k[: t + 1]) / math.sqrt(WIDTH)
            shares = mixed(mixed(scores, "logits", x, t).softmax(0), "weights", x, t)
            y[t] = torch.einsum("sh,shd->hd", shares, v[: t + 1])
        return y

    compare(part, packed, alone)


@pytest.mark.oracle("attention=ttt", "float64 loop of gradient steps by autograd")
@EACH
@pytest.mark.parametrize(("batch", "rate"), [(1, 1.0), (4, 0.7), (16, 2.0)])
def test_ttt_by_autograd(packed, batch, rate):
    part = made("ttt", {"batch": batch, "rate": rate}).requires_grad_(False)

    def f(x, w, b, h):
        return x + F.layer_norm(x @ w + b, (WIDTH,), part.gain[h, 0], part.shift[h, 0], eps=1e-6)

    def alone(x):
        q, k, v = projected(part, x)
        y = torch.zeros_like(q)
        for h in range(H):
            at_start = w, b = part.start[h].clone(), part.bias[h, 0].clone()
            for t in range(len(x)):
                if t % batch == 0:
                    at_start = (w, b)
                leaves = [p.clone().requires_grad_() for p in at_start]
                loss = (f(k[t, h], *leaves, h) - v[t, h]).square().sum() / 2
                d_w, d_b = torch.autograd.grad(loss, leaves)
                step = rate / WIDTH * torch.sigmoid(part.e_proj(x[t])[h])
                w, b = w - step * d_w, b - step * d_b
                y[t, h] = f(q[t, h], w, b, h)
        return part.norm(y.flatten(1)).unflatten(-1, (H, WIDTH))

    compare(part, packed, alone)


@pytest.mark.oracle("attention=titans", "float64 loop of gradient steps by autograd")
@EACH
@pytest.mark.parametrize(("batch", "rate"), [(1, 1.0), (4, 0.7), (16, 2.0)])
def test_titans_by_autograd(packed, batch, rate):
    part = made("titans", {"batch": batch, "rate": rate}).requires_grad_(False)

    def alone(x):
        q, k, v = projected(part, x)
        y = torch.zeros_like(q)
        for h in range(H):
            memory = surprise = at_start = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
            for t in range(len(x)):
                forget, momentum, step = part.gates(x[t]).unflatten(0, (3, H))[:, h]
                at_start = memory if t % batch == 0 else at_start
                leaf = at_start.clone().requires_grad_()
                key = k[t, h] / k[t, h].norm()
                (gradient,) = torch.autograd.grad((key @ leaf - v[t, h]).square().sum() / 2, leaf)
                surprise = torch.sigmoid(momentum) * surprise - rate * torch.sigmoid(step) * gradient
                memory = (1 - torch.sigmoid(forget + part.forgetting[h, 0, 0])) * memory + surprise
                read = q[t, h] / q[t, h].norm() @ memory
                y[t, h] = part.gain[h, 0] * read / (read.square().mean() + 1e-6).sqrt()
        return y

    compare(part, packed, alone)


PAIRS = [
    ({"name": "moba", "block": 3, "top_k": 2}, "rope"),
    ({"name": "moba", "block": 3, "top_k": 2, "n_kv_heads": 2}, "alibi"),
    ({"name": "nsa", "block": 3, "top_k": 2, "window": 4, "n_kv_heads": 2}, "rope"),
    ({"name": "paired_heads"}, "rope"),
    ({"name": "paired_heads"}, "alibi"),
    ({"name": "dcmha", "n_kv_heads": 2}, "rope"),
    ({"name": "dcmha"}, "alibi"),
    ({"name": "ttt", "batch": 4}, "rope"),
    ({"name": "titans", "batch": 4}, "rope"),
]


@pytest.mark.parametrize(("attention", "position"), PAIRS, ids=lambda x: x if isinstance(x, str) else x["name"])
def test_decoding_packing_and_padding(attention, position):
    assert_texts_alone(attention, position)


@pytest.mark.parametrize(("block", "top_k"), [(16, 1), (16, 3), (24, 2), (64, 9)])
def test_only_the_chosen_pairs_are_counted(block, top_k):
    """Of the pairs of mha, those of a query's own block of 64 tokens and of up to top_k - 1 earlier blocks."""
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 4, "max_len": 64}

    def flops(**attention):
        return measure(model_config(attention=attention, **sizes), 50).flops_per_token

    shown = 0
    for t in range(64):
        own = t // block
        shown += min(block, 64 - own * block) + block * min(own, top_k - 1)
    means = 2 * 16 * -(-64 // block)  # q . mean(k)
    assert flops(name="mha") - flops(name="moba", block=block, top_k=top_k) + means == 4 * 16 * (64 - shown / 64)


def test_what_cannot_be_is_refused():
    config = model_config(attention="paired_heads", n_heads=1, d_model=16)
    assert [p.fix for p in violated_rules(effective(config))] == ["attention=mha"]
    config = model_config(attention="paired_heads", position="cope")
    assert "position=rope" in [p.fix for p in violated_rules(effective(config))]
