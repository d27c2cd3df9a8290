"""Linear and recurrent attention against all pairs at once, token-by-token loops, and transformers' delta rule."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_loops import WIDTH, D, H, context, made
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache

LONG = 150  # more than two chunks


def heads(x):
    return x.unflatten(-1, (H, WIDTH)).transpose(1, 2)


def documents(length, pieces):
    """Two rows of documents; if split, the second half of the first document follows the second document."""
    first = [0] * 40 + [1] * 70 + [0] * (length - 110) if pieces else [0] * 40 + [1] * (length - 40)
    return torch.tensor([first, [3] * (length - 5) + [4] * 5])


def seen(length, segments, causal, opened=None):
    later = torch.ones(length, length, dtype=torch.bool).tril() if causal else torch.ones(length, length).bool()
    later = later if opened is None else later | opened[:, None, :]
    same = torch.ones(2, 1, 1).bool() if segments is None else segments[:, :, None] == segments[:, None, :]
    return (later & same)[:, None]


def features(name, part, x):
    """phi as written in the papers."""
    if name == "linear":
        return torch.where(x > 0, x + 1, x.exp())
    if name == "rfa":
        x = x / x.square().sum(-1, keepdim=True).sqrt()
        angles = torch.einsum("bhtd,md,d->bhtm", x, part.directions.double(), 1 / part.sigma)
        return torch.cat([angles.sin(), angles.cos()], -1) * len(part.directions) ** -0.5
    x = x * WIDTH**-0.25
    w = part.directions.double()
    return torch.stack([(x @ w_i - (x * x).sum(-1) / 2).exp() for w_i in w], dim=-1)


@pytest.mark.oracle("attention", "sums over all pairs in float64")
@pytest.mark.parametrize("name", ["linear", "performer", "rfa"])
@pytest.mark.parametrize("packed", [False, True, "pieces"])
@pytest.mark.parametrize("mask", ["causal", "full", "prefix"])
def test_kernels_are_sums_over_all_pairs(name, packed, mask):
    part = made(name, {"eps": 0.0} if name == "performer" else {"features": 300} if name == "rfa" else {})
    if name == "rfa":
        part.sigma.data.uniform_(0.8, 1.5)
    x = torch.randn(2, LONG, D, dtype=torch.float64)
    segments = documents(LONG, packed == "pieces") if packed else None
    opened = torch.arange(LONG).expand(2, -1) < 60 if mask == "prefix" else None
    q, k = (features(name, part, heads(p(x))) for p in (part.q_proj, part.k_proj))
    weights = (q @ k.mT) * seen(LONG, segments, mask != "full", opened)
    expected = part.o_proj((weights / weights.sum(-1, keepdim=True) @ heads(part.v_proj(x))).transpose(1, 2).flatten(2))
    ctx = context(LONG, segments=segments, mask="full" if mask == "full" else "causal", opened=opened)
    torch.testing.assert_close(part(x, ctx), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("attention=performer", "softmax attention, in the limit")
def test_performer_converges_to_softmax_attention():
    """FAVOR+ is unbiased: with many features it is mha with the same weights; the error falls with their number."""
    x, full, errors = 0.3 * torch.randn(2, 40, D, dtype=torch.float64), made("mha"), []
    for count in (64, 16384):
        part = made("performer", {"features": count, "eps": 0.0})
        part.load_state_dict(full.state_dict(), strict=False)
        errors.append((part(x, context(40)) - full(x, context(40))).square().mean().sqrt() / full(x, context(40)).std())
    assert errors[1] < 0.05 and errors[1] < errors[0] / 4


@pytest.mark.oracle("attention=rfa", "softmax over cosines, in the limit")
def test_rfa_converges_to_a_softmax_over_cosines():
    """E phi(q) . phi(k) = exp(-|q - k|^2 / 2) = exp(cos(q, k) - 1) for unit vectors: the 1 cancels in the softmax."""
    x, errors = torch.randn(2, 40, D, dtype=torch.float64), []
    for count in (64, 16384):
        part = made("rfa", {"features": count})
        part.sigma.data.fill_(1.0)
        q, k = (torch.nn.functional.normalize(heads(p(x)), dim=-1) for p in (part.q_proj, part.k_proj))
        weights = (q @ k.mT).exp() * seen(40, None, True)
        expected = part.o_proj(
            (weights / weights.sum(-1, keepdim=True) @ heads(part.v_proj(x))).transpose(1, 2).flatten(2)
        )
        errors.append((part(x, context(40)) - expected).square().mean().sqrt() / expected.std())
    assert errors[1] < 0.05 and errors[1] < errors[0] / 4


@pytest.mark.oracle("attention=rfa_gate", "the paper's recurrence, token by token in float64")
@pytest.mark.parametrize("packed", [False, True, "pieces"])
def test_rfa_gate_token_by_token(packed):
    """S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T and z_t likewise; the output is phi(q_t) S_t / phi(q_t) . z_t."""
    part, x = made("rfa_gate", {"features": 300}), torch.randn(2, LONG, D, dtype=torch.float64)
    part.sigma.data.uniform_(0.8, 1.5)
    segments = documents(LONG, packed == "pieces") if packed else torch.zeros(2, LONG).long()
    q, k = (features("rfa", part, heads(p(x))) for p in (part.q_proj, part.k_proj))
    v, gates = heads(part.v_proj(x)), torch.sigmoid(x @ part.g_proj.weight.T + part.g_proj.bias)  # (B, T, H)
    said = torch.zeros(2, LONG, H, WIDTH, dtype=torch.float64)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(H)).tolist():
        held = {}
        for t in range(LONG):
            s, z = held.get(int(segments[b, t]), (0.0, 0.0))
            g = gates[b, t, h]
            s, z = g * s + (1 - g) * k[b, h, t, :, None] * v[b, h, t], g * z + (1 - g) * k[b, h, t]
            held[int(segments[b, t])] = s, z
            said[b, t, h] = q[b, h, t] @ s / (q[b, h, t] @ z).clamp(min=1e-4)
    ctx = context(LONG, segments=segments if packed else None)
    torch.testing.assert_close(part(x, ctx), part.o_proj(said.flatten(2)), rtol=1e-9, atol=1e-11)


def test_performers_directions():
    """Orthogonal within each block, with the lengths of normal vectors, and uniform in direction."""
    from ablatio_std.attentions.linear import orthogonal

    w = orthogonal(12, 4).double()
    for block in w.split(4):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-5)
    many = orthogonal(40000, 4)
    assert many.mean(0).abs().max() < 0.03  # standard deviation: 1 / sqrt(40000) = 0.005
    torch.testing.assert_close(many.T @ many / 40000, torch.eye(4), rtol=0, atol=0.05)
    x, y = torch.tensor([0.9, 0.1, -0.4, 0.3]), torch.tensor([0.5, -0.7, 0.2, 0.1])

    def error(draw):
        """Mean squared error of 8 features for exp(x . y), over many draws."""
        w = draw.view(-1, 8, 4)
        found = ((w @ x - x @ x / 2).exp() * (w @ y - y @ y / 2).exp()).mean(1)
        return (found - (x @ y).exp()).square().mean()

    assert error(orthogonal(400000, 4)) < 0.95 * error(torch.randn(400000, 4))


@pytest.mark.oracle("attention=retention", "the paper's parallel form in float64")
@pytest.mark.parametrize("packed", [False, True, "pieces"])
def test_retention_is_the_papers_parallel_form(packed):
    """(q k^T * D) v with D[t, s] = gamma^(t - s), then a norm of each head, and the gate."""
    part, x = made("retention", {"exponent": 1.0}), torch.randn(2, LONG, D, dtype=torch.float64)
    segments = documents(LONG, packed == "pieces") if packed else torch.zeros(2, LONG).long()
    decay = torch.zeros(2, H, LONG, LONG, dtype=torch.float64)
    for b in range(2):
        for h in range(H):
            for d in segments[b].unique():
                places = (segments[b] == d).nonzero()[:, 0].tolist()
                for i, t in enumerate(places):
                    for j, s in enumerate(places[: i + 1]):
                        decay[b, h, t, s] = (1 - 2 ** -(1.0 + h)) ** (i - j)
    q, k, v = (heads(p(x)) for p in (part.q_proj, part.k_proj, part.v_proj))
    o = (q @ k.mT / math.sqrt(WIDTH) * decay) @ v
    o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    g = part.g_proj(x)
    expected = part.o_proj(g * g.sigmoid() * o.transpose(1, 2).flatten(2))
    ours = part(x, context(LONG, segments=segments if packed else None))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def by_token(part, x):
    """One document through the gated delta rule: torch's conv1d, then S <- a S (1 - b k k^T) + b v k^T, as matrices."""
    length, width = len(x), len(part.q_conv.weight)

    def convolved(project, conv):
        line = F.pad(project(x).T[None], (width - 1, 0))
        y = F.conv1d(line, conv.weight.flip(0).T[:, None], groups=line.shape[1])[0].T
        return (y * y.sigmoid()).view(length, H, WIDTH)

    q, k, v = (convolved(getattr(part, f"{n}_proj"), getattr(part, f"{n}_conv")) for n in "qkv")
    rate, step = part.b_proj(x).sigmoid(), F.softplus(part.a_proj(x) + part.dt)
    said = torch.zeros(length, H, WIDTH, dtype=x.dtype)
    for h in range(H):
        state = torch.zeros(WIDTH, WIDTH, dtype=x.dtype)
        for t in range(length):
            key, query = k[t, h] / k[t, h].norm(), q[t, h] / q[t, h].norm() / math.sqrt(WIDTH)
            keep = (-part.log_a[h].exp() * step[t, h]).exp() * (torch.eye(WIDTH) - rate[t, h] * torch.outer(key, key))
            state = state @ keep + rate[t, h] * torch.outer(v[t, h], key)
            o = state @ query
            said[t, h] = o / (o.square().mean() + 1e-6).sqrt() * part.norm
    g = part.g_proj(x)
    return part.o_proj(g * g.sigmoid() * said.flatten(1))


@pytest.mark.oracle("attention=gated_deltanet", "float64 loop over tokens")
@pytest.mark.parametrize("packed", [False, True, "pieces"])
def test_gated_deltanet_token_by_token(packed):
    part, x = made("gated_deltanet"), torch.randn(2, LONG, D, dtype=torch.float64)
    segments = documents(LONG, packed == "pieces") if packed else torch.zeros(2, LONG).long()
    expected = torch.zeros_like(x)
    for b in range(2):
        for d in segments[b].unique():
            expected[b, segments[b] == d] = by_token(part, x[b, segments[b] == d])
    ours = part(x, context(LONG, segments=segments if packed else None))
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.oracle("attention=gated_deltanet", "transformers Qwen3-Next delta rule")
def test_delta_rule_is_transformers():
    """The recurrence of transformers' Qwen3-Next, in float32."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    from ablatio.model.local_mixing import Rows
    from ablatio_std.attentions._recurrences import delta_rule

    q, k, v = (torch.randn(2, H, LONG, 8) for _ in range(3))
    k = F.normalize(k, dim=-1)
    log_decay, rate = -torch.rand(2, H, LONG), torch.rand(2, H, LONG)
    ours, state = delta_rule(q / 8**0.5, k, v, log_decay, rate, Rows(context(LONG)), None)
    theirs, held = torch_recurrent_gated_delta_rule(
        *(t.transpose(1, 2) for t in (q, k, v, log_decay, rate)), output_final_state=True
    )
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, held, rtol=1e-4, atol=1e-4)


RECURRENT = ["linear", "performer", "rfa", "rfa_gate", "retention", "gated_deltanet"]


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_decoding_holds_one_state(name, padded):
    """A prompt and single tokens, more than a chunk, give the result of one full pass; the cache does not grow."""
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_len": 200, "tied": False}
    model = build_model(model_config(attention=name, **sizes), 50).double().eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    tokens, cache, pads = torch.randint(0, 50, (3, 100)), KVCache(), (0, 2, 8) if padded else (0, 0, 0)
    segments = torch.tensor([[-1] * pad + [0] * (100 - pad) for pad in pads]) if padded else None
    logits, sizes = [model(tokens[:, :9], segments[:, :9] if padded else None, cache)], set()
    for chunk in tokens[:, 9:].split([1] * 10 + [70] + [1] * 11, dim=1):
        logits.append(model(chunk, cache=cache))
        sizes.add(sum(t.numel() for state in cache._states.values() for t in state))
    assert len(sizes) == 1 and not cache._buffers
    for row, pad in enumerate(pads):
        alone = model(tokens[row : row + 1, pad:])
        torch.testing.assert_close(torch.cat(logits, dim=1)[row, pad:], alone[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", RECURRENT)
def test_gradients_by_differences(name):
    part, x = made(name), torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True)
    ctx = context(5, segments=torch.tensor([[0, 0, 1, 1, 1], [0] * 5]))
    assert torch.autograd.gradcheck(lambda x: part(x, ctx), (x,))
