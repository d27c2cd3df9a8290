"""Recurrent and state-space mixers against their papers' recurrences, token by token, and transformers' layers."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_loops import WIDTH, D, H, context, made
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.model.records import Store

LONG = 150  # more than two chunks
KNOBS = {"mamba": {"state": 5, "rank": 2}, "mamba2": {"state": 5}, "gla": {"rank": 2}, "rwkv7": {"rank": 2}}
NAMES = ["deltanet", "gla", "hgrn2", "kda", "mamba", "mamba2", "mingru", "rwkv7"]


def documents(length, pieces):
    """Two rows of documents; if pieces, the second half of the first document follows the second document."""
    first = [0] * 40 + [1] * 70 + [0] * (length - 110) if pieces else [0] * 40 + [1] * (length - 40)
    return torch.tensor([first, [3] * (length - 5) + [4] * 5])


def heads(x):
    """(T, H * width) -> (T, H, width)."""
    return x.unflatten(-1, (H, -1))


def convolved(x, conv):
    """Torch's conv1d on one document.  (T, channels) -> same."""
    width = len(conv.weight)
    line = F.pad(x.T[None], (width - 1, 0))
    return F.conv1d(line, conv.weight.flip(0).T[:, None], conv.bias, groups=line.shape[1])[0].T


def silu(x):
    return x / (1 + torch.exp(-x))


def rms(x, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def recur(transition, write, read):
    """S_t = M_t S_{t-1} + W_t and o_t = read_t S_t, in each head: M (T, H, F, F), W (T, H, F, V), read (T, H, F)."""
    state, outputs = torch.zeros_like(write[0]), []
    for t in range(len(write)):
        state = transition[t] @ state + write[t]
        outputs.append(torch.einsum("hf,hfv->hv", read[t], state))
    return torch.stack(outputs)


def outer(x, y):
    return x[..., :, None] * y[..., None, :]


def delta(part, x):
    """q, k, v and b of the delta rules."""
    q, k, v = (
        heads(silu(convolved(p(x), c)))
        for p, c in ((part.q_proj, part.q_conv), (part.k_proj, part.k_conv), (part.v_proj, part.v_conv))
    )
    return unit(q) / math.sqrt(WIDTH), unit(k), v, torch.sigmoid(part.b_proj(x))[..., None]


def deltanet(part, x):
    """S_t = (I - b k k^T) S_{t-1} + b k v^T."""
    q, k, v, b = delta(part, x)
    o = recur(torch.eye(WIDTH) - outer(b * k, k), outer(b * k, v), q)
    return (rms(o) * part.norm).flatten(1)


def kda(part, x):
    """S_t = (I - b k k^T) Diag(a) S_{t-1} + b k v^T."""
    q, k, v, b = delta(part, x)
    step = F.softplus(part.a_up(part.a_down(x)) + part.dt)
    a = torch.exp(-part.log_a.exp()[:, None] * heads(step))
    o = recur((torch.eye(WIDTH) - outer(b * k, k)) * a[:, :, None, :], outer(b * k, v), q)
    return torch.sigmoid(part.g_up(part.g_down(x))) * (rms(o) * part.norm).flatten(1)


def gla(part, x):
    """S_t = Diag(a) S_{t-1} + k v^T, a = sigmoid(...)^(1/16)."""
    q, k, v = (heads(p(x)) for p in (part.q_proj, part.k_proj, part.v_proj))
    a = heads(torch.sigmoid(part.a_up(part.a_down(x))) ** (1 / 16))
    o = recur(torch.diag_embed(a), outer(k, v), q / math.sqrt(WIDTH))
    return silu(part.g_proj(x)) * (rms(o) * part.norm).flatten(1)


def hgrn2(part, x):
    """S_t = Diag(f) S_{t-1} + (1 - f) i^T; layer 0 of 1: l = sigmoid(bound)."""
    low = torch.sigmoid(part.bound)
    f = heads(low + (1 - low) * torch.sigmoid(part.k_proj(x)))
    o = recur(torch.diag_embed(f), outer(1 - f, heads(silu(part.v_proj(x)))), heads(torch.sigmoid(part.q_proj(x))))
    return rms(o.flatten(1)) * part.norm


def mamba(part, x):
    """h_t = exp(s A) h_{t-1} + s B u, y = C h + D u, the state of each channel by itself."""
    u, z = part.in_proj(x).chunk(2, -1)
    u = silu(convolved(u, part.conv))
    low, b, c = part.x_proj(u).split([2, 5, 5], -1)
    step = torch.log(1 + torch.exp(low @ part.dt_proj.weight.T + part.dt))
    y = torch.zeros_like(u)
    for channel in range(u.shape[1]):
        h, a = torch.zeros(5, dtype=x.dtype), -part.log_a[channel].exp()
        for t in range(len(x)):
            h = torch.exp(step[t, channel] * a) * h + step[t, channel] * u[t, channel] * b[t]
            y[t, channel] = h @ c[t] + part.skip[channel] * u[t, channel]
    return y * silu(z)


def mamba2(part, x):
    """S_t = a S_{t-1} + B (s u)^T, o = C S + D u, a = exp(s A) for each of 2 H heads."""
    z, mixed, step = part.in_proj(x).split([2 * D, 2 * D + 10, 2 * H], -1)
    u, b, c = silu(convolved(mixed, part.conv)).split([2 * D, 5, 5], -1)
    u, step = u.unflatten(-1, (2 * H, -1)), torch.log(1 + torch.exp(step + part.dt))
    a = torch.exp(-part.log_a.exp() * step)
    b, c = (t[:, None].expand(-1, 2 * H, -1) for t in (b, c))
    o = recur(a[..., None, None] * torch.eye(5, dtype=x.dtype), outer(b, step[..., None] * u), c)
    y = (o + part.skip[:, None] * u).flatten(1)
    return rms(y * silu(z), 1e-5) * part.norm


def mingru(part, x):
    """h_t = (1 - z) h_{t-1} + z g(h')."""
    x = convolved(x, part.conv)
    z, new = torch.sigmoid(part.z_proj(x)), part.h_proj(x)
    new, h, outputs = torch.where(new >= 0, new + 0.5, torch.sigmoid(new)), 0.0, []
    for t in range(len(x)):
        h = (1 - z[t]) * h + z[t] * new[t]
        outputs.append(h)
    return torch.stack(outputs)


def rwkv7(part, x):
    """S_t = S_{t-1} (Diag(w) - c^T (e * c)) + v^T k, here transposed."""
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])

    def read(name):
        return x + part.mixtures[name] * (before - x)

    def low(module, y, inner=lambda y: y):
        y = inner(y @ module.down.weight.T) @ module.up.weight.T
        return y if module.offset is None else y + module.offset

    r, k, v = part.q_proj(read("r")), part.k_proj(read("k")), part.v_proj(read("v"))
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(low(part.decay, read("d"), torch.tanh)))
    e = torch.sigmoid(low(part.rate, read("e")))
    g = low(part.out_gate, read("g"), torch.sigmoid)
    c, k = unit(heads(k * part.erased)), k * (1 + (e - 1) * part.adapted)
    r, k, v, w, e = (heads(t) for t in (r, k, v, w, e))
    o = recur(torch.diag_embed(w) - outer(e * c, c), outer(k, v), r)
    o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, keepdim=True, unbiased=False) + WIDTH * 1e-5).sqrt()
    bonus = (r * heads(part.bonus[None]) * k).sum(-1, keepdim=True) * v
    return g * (o.flatten(1) * part.norm_weight + part.norm_bias + bonus.flatten(1))


@pytest.mark.parametrize("packed", [False, True, "pieces"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.oracle(f"attention={n}", "the paper's recurrence, token by token in float64"))
        for n in NAMES
    ],
)
@torch.no_grad()
def test_chunks_equal_the_recurrence_token_by_token(name, packed):
    part, x = made(name, KNOBS.get(name)), torch.randn(2, LONG, D, dtype=torch.float64)
    segments = documents(LONG, packed == "pieces") if packed else torch.zeros(2, LONG).long()
    expected = torch.zeros_like(x)
    for b in range(2):
        for d in segments[b].unique():
            expected[b, segments[b] == d] = part.o_proj(globals()[name](part, x[b, segments[b] == d]))
    ours = part(x, context(LONG, segments=segments if packed else None))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def scatter(layer):
    """Random weights, in which every term counts."""
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)


def layers_of_transformers(name):
    """A layer of transformers with random weights, and these under the names of ours."""
    if name == "kda":
        from transformers.models.kimi_linear import KimiLinearConfig
        from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

        sizes = {"hidden_size": D, "linear_num_heads": H, "linear_head_dim": WIDTH, "num_hidden_layers": 1}
        sizes |= {"layer_types": ["linear_attention"], "rms_norm_eps": 1e-6}
        layer = KimiLinearDeltaAttention(KimiLinearConfig(**sizes), 0)
        scatter(layer)
        gate, convs = layer.forget_gate, layer.conv1d.weight[:, 0].T.flip(0).chunk(3, dim=1)
        own = {f"{c}_conv.weight": w for c, w in zip("qkv", convs, strict=True)} | {
            "a_down.weight": gate.f_a_proj.weight, "a_up.weight": gate.f_b_proj.weight, "dt": gate.dt_bias,
            "g_down.weight": layer.g_a_proj.weight, "g_up.weight": layer.g_b_proj.weight,
            "log_a": gate.A_log.flatten(), "norm": layer.o_norm.weight,
        }  # fmt: skip
        return layer, own | {f"{n}_proj.weight": getattr(layer, f"{n}_proj").weight for n in "qkvbo"}
    if name == "mamba":
        from transformers.models.mamba import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        layer = MambaMixer(MambaConfig(hidden_size=D, state_size=5, time_step_rank=2, num_hidden_layers=1), 0)
        scatter(layer)
        own = {"x_proj.weight": layer.x_proj.weight, "dt_proj.weight": layer.dt_proj.weight, "dt": layer.dt_proj.bias}
    else:
        from transformers.models.mamba2 import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        sizes = {"hidden_size": D, "state_size": 5, "num_heads": 2 * H, "head_dim": WIDTH, "n_groups": 1}
        layer = Mamba2Mixer(Mamba2Config(**sizes, chunk_size=32, num_hidden_layers=1), 0)
        scatter(layer)
        own = {"dt": layer.dt_bias, "norm": layer.norm.weight}
    return layer, own | {
        "in_proj.weight": layer.in_proj.weight, "o_proj.weight": layer.out_proj.weight, "log_a": layer.A_log,
        "skip": layer.D, "conv.weight": layer.conv1d.weight[:, 0].T.flip(0), "conv.bias": layer.conv1d.bias,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kda", marks=pytest.mark.oracle("attention=kda", "transformers KimiLinearDeltaAttention")),
        pytest.param("mamba", marks=pytest.mark.oracle("attention=mamba", "transformers MambaMixer")),
        pytest.param("mamba2", marks=pytest.mark.oracle("attention=mamba2", "transformers Mamba2Mixer")),
    ],
)
@torch.no_grad()
def test_layers_are_those_of_transformers(name, monkeypatch):
    """The whole layer, in float32; their |x| is sqrt(x . x + 1e-6), ours at least 1e-12 as in F.normalize."""
    theirs, own = layers_of_transformers(name)
    if name == "kda":
        monkeypatch.setattr("transformers.models.kimi_linear.modeling_kimi_linear.l2norm", lambda x, **_: unit(x))
    part, x = made(name, KNOBS.get(name), bias=False).float(), torch.randn(2, LONG, D)
    part.load_state_dict(own)  # strict: none is missing
    torch.testing.assert_close(part(x, context(LONG)), theirs.eval()(x), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_decoding_holds_one_state(name, padded):
    """A prompt and single tokens, more than a chunk, give the result of one full pass; the cache does not grow."""
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_len": 200, "tied": False}
    model = build_model(model_config(attention=name, position="none", **sizes), 50).double().eval()
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


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_differences(name):
    part, x = made(name, KNOBS.get(name)), torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True)
    ctx = context(5, segments=torch.tensor([[0, 0, 1, 1, 1], [0] * 5]))
    assert torch.autograd.gradcheck(lambda x: part(x, replace(ctx, _shared=Store())), (x,), fast_mode=True)


@pytest.mark.parametrize("name", ["mamba", "mingru"])
def test_gradients_of_a_scan_are_those_of_a_loop(name):
    """Gradients of all parameters, over more than a block of tokens, against autograd through the loops above."""
    part, x = made(name, KNOBS.get(name)), torch.randn(1, 70, D, dtype=torch.float64)
    weight, gradients = torch.randn(70, D, dtype=torch.float64), []
    for y in (part(x, context(70, batch=1))[0], part.o_proj(globals()[name](part, x[0]))):
        gradients.append(torch.autograd.grad((y * weight).sum(), list(part.parameters())))
    for (label, _), ours, theirs in zip(part.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, n=label: f"{n}: {m}")


@pytest.mark.parametrize("name", ["gla", "kda"])
def test_decays_that_underflow(name):
    """Decays of exp(-1000) forget all before a token: exact zeros, and the finite gradients of a loop."""
    part, x = made(name, KNOBS.get(name)).float(), torch.randn(1, 100, D)
    with torch.no_grad():
        (part.a_up.bias if name == "gla" else part.dt).fill_(-16e3 if name == "gla" else 1e3)
    y = part(x, context(100, batch=1))
    moved = torch.cat([x[:, :50] + 1, x[:, 50:]], dim=1)
    later = 50 if name == "gla" else 53  # the convolution of kda reads three tokens before
    assert torch.equal(part(moved, context(100, batch=1))[:, later:], y[:, later:])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)
