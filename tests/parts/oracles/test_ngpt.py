"""nGPT (arXiv:2410.01131): our parts against the paper's equations on a sphere of radius 1, written out here."""

import math

import pytest
import torch
from helpers.support import model_config

from ablatio.config.compose import compose_run
from ablatio.model.build import build_model
from ablatio.model.parameter_roles import describe
from ablatio.registry.kinds import stabilizers
from ablatio.testing import tiny_models

V, D, HEADS, LAYERS = 13, 16, 2, 2
PARTS = {
    "placement": {"name": "hypersphere", "initial": 0.3},
    "activation": "scaled_swiglu",
    "position": {"name": "rope", "layout": "interleaved"},
    "attention": {"name": "mha", "qk_norm": "rmsnorm"},
    "match": "none",
}


def model_on_sphere():
    """A model in float64 with unit-length weights, and every learned scale away from its initial value."""
    config = model_config(**PARTS, d_model=D, n_layers=LAYERS, n_heads=HEADS, tied=False)
    model = build_model(config, V).double().eval()
    for name, p in model.named_parameters():
        p.data += 0.3 * torch.randn_like(p) * (0.1 if "rate" in name else 1.0)
        if "q_norm" in name or "k_norm" in name:
            p.data.fill_(p.data.mean())  # the paper scales after the rotation, we before: one scalar commutes with it
    stabilizers.build("unit_weights").attach(model)
    return model


def unit(x):
    return x / math.sqrt(sum(float(c) ** 2 for c in x))


def rotated(x, t):
    """The pair (2i, 2i + 1) as a complex number, rotated by t / 10000^(2i/d)."""
    turned = []
    for i in range(0, len(x), 2):
        angle = t / 10000 ** (i / len(x))
        turned.append(complex(float(x[i]), float(x[i + 1])) * complex(math.cos(angle), math.sin(angle)))
    return torch.tensor([c for z in turned for c in (z.real, z.imag)], dtype=torch.float64)


def turn(h, said, part):
    """h <- Norm(h + alpha (Norm(output) - h)), token by token; alpha = |s| alpha_init / alpha_scale."""
    alpha = (part.rate * (0.3 / D**-0.5)).abs()
    return [unit(a + alpha * (unit(b) - a)) for a, b in zip(h, said, strict=True)]


def attention(part, h):
    """Cosines of rotated queries and keys times their scales, with sqrt(d_k) in place of 1 / sqrt(d_k)."""
    width, heads = D // HEADS, []
    q, k, v = ([p.weight @ x for x in h] for p in (part.q_proj, part.k_proj, part.v_proj))
    for n in range(HEADS):
        own = slice(n * width, (n + 1) * width)
        qs = [part.q_norm.weight * unit(rotated(x[own], t)) for t, x in enumerate(q)]
        ks = [part.k_norm.weight * unit(rotated(x[own], t)) for t, x in enumerate(k)]
        heads.append([])
        for t in range(len(h)):
            scores = torch.tensor([math.sqrt(width) * float(qs[t] @ ks[s]) for s in range(t + 1)]).double().softmax(0)
            heads[-1].append(sum(w * v[s][own] for s, w in enumerate(scores)))
    return [part.o_proj.weight @ torch.cat([head[t] for head in heads]) for t in range(len(h))]


def feed_forward(part, h):
    """u <- u s_u, v <- v s_v sqrt(d_model), then SiLU(v) * u."""
    said = []
    for x in h:
        u = part.up_proj.weight @ x * part.activation.up_scale
        v = part.gate_proj.weight @ x * part.activation.gate_scale * math.sqrt(D)
        said.append(part.down_proj.weight @ (v / (1 + torch.exp(-v)) * u))
    return said


@pytest.mark.oracle("placement=hypersphere", "nGPT on the unit sphere, token by token in float64")
@pytest.mark.oracle("activation=scaled_swiglu", "nGPT on the unit sphere, token by token in float64")
@torch.no_grad()
def test_the_combined_parts_are_the_papers_network():
    """Radius sqrt(D) without a factor sqrt(D) in the feed-forward layer equals radius 1 with that factor."""
    model, tokens = model_on_sphere(), torch.randint(0, V, (1, 6))
    stack = model.model
    h = [stack.embed_tokens.weight[t] for t in tokens[0]]
    for layer in stack.layers:
        h = turn(h, attention(layer.self_attn, h), layer.around_attention)
        h = turn(h, feed_forward(layer.mlp, h), layer.around_mlp)
    expected = torch.stack([model.lm_head.weight @ x for x in h]) * math.sqrt(D)  # rows of free length: s_z
    torch.testing.assert_close(model(tokens)[0], expected, rtol=1e-5, atol=1e-5)  # qk_norm's eps is 1e-6


WRITE = ("o_proj.weight", "down_proj.weight")
READ = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "embed_tokens.weight")


def lengths(model):
    """{name: norms that are 1 in the paper}, by the names of LLaMA's matrices."""
    for name, p in model.named_parameters():
        if name.endswith(WRITE):
            yield name, torch.stack([p[:, j].norm() for j in range(p.shape[1])])
        elif name.endswith(READ):
            yield name, torch.stack([row.norm() for row in p])


@pytest.mark.oracle("stabilizer=unit_weights", "each row and column by itself")
def test_weights_have_unit_length_initially_and_after_each_step():
    net = tiny_models.model(tied=False)
    head = net.lm_head.weight.detach().clone()
    part, seen = stabilizers.build("unit_weights"), []

    class Look:
        def before_step(self, step):
            seen.append(dict(lengths(net)))
            return {}

    tiny_models.run(net, tiny_models.adamw(net, lr=0.1), 3, hooks=[part, Look()])
    assert len(seen[0]) == 7 * 2 + 1
    for found in (*seen, dict(lengths(net))):
        for norms in found.values():
            torch.testing.assert_close(norms, torch.ones(len(norms)))
    assert (net.lm_head.weight.norm(dim=1) - 1).abs().min() > 1e-3 and not torch.equal(net.lm_head.weight, head)


def test_only_directions_are_changed():
    """Projected weights keep their direction, and all other parameters are unchanged."""
    net = tiny_models.model(tied=False, bias=True)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    stabilizers.build("unit_weights").attach(net)
    for p, info in describe(net):
        axis = -2 if info.residual else -1
        if info.role in ("vector", "head"):
            assert torch.equal(p, before[info.name])
        else:
            cosine = torch.nn.functional.cosine_similarity(p, before[info.name], dim=axis)
            torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_residual_stream_stays_on_the_sphere():
    model, seen = model_on_sphere(), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, args, out: seen.extend([args[0], out]))
    model(torch.randint(0, V, (2, 7)))
    for x in seen:
        torch.testing.assert_close(x.norm(dim=-1), torch.full(x.shape[:2], math.sqrt(D)).double())


def test_the_preset_is_the_combination():
    config = compose_run(["preset=ngpt"]).config
    assert config["placement"]["name"] == "hypersphere" and config["attention"]["qk_norm"] == "rmsnorm"
    assert "unit_weights" in config["stabilizer"] and config["optimizer"]["weight_decay"] == 0
    assert config["schedule"]["warmup"] == 0 and not config["model"]["tied"]
