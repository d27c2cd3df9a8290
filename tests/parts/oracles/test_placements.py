"""Placements in whole stacks against their papers' equations, composed from the model's sublayers and norms."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.model.build import build_model
from ablatio.model.context import EncoderOutput, make_context
from ablatio.model.example import Example
from ablatio.registry.kinds import placements
from ablatio.registry.rules import violated_rules
from ablatio.testing import tiny_models

V, D, LAYERS = 11, 32, 3
SIZES = {"n_layers": LAYERS, "d_model": D}


def model_with(placement, **options):
    """A model in float64 with every parameter away from its initial value, so that each branch matters."""
    model = build_model(model_config(placement=placement, **SIZES | options), V).double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def context(stack, tokens, memory=None):
    return make_context(tokens, stack.position, stack.mask, None, None, torch.float64, memory=memory)


def sublayers(stack, ctx):
    """Yield (layer number from 1, sublayer as a function, its norms, its placement) in order."""
    for number, layer in enumerate(stack.layers, start=1):
        yield number, lambda h, f=layer.self_attn: f(h, ctx), layer.input_layernorm, layer.around_attention
        if layer.cross_attn is not None:
            yield number, lambda h, f=layer.cross_attn: f(h, ctx.cross), layer.cross_layernorm, layer.around_cross
        yield number, lambda h, f=layer.mlp: f(h, ctx), layer.post_attention_layernorm, layer.around_mlp


def composed(stack, tokens, equation, memory=None):
    """The stream after the last layer, with equation(x, f, norms, layer number, placement) for each sublayer."""
    x = stack.embed_tokens(tokens)
    for number, f, norms, placement in sublayers(stack, context(stack, tokens, memory)):
        x = equation(x, f, norms, number, placement)
    return x


def by_channel(scale, y):
    return torch.stack([s * column for s, column in zip(scale, y.unbind(-1), strict=True)], dim=-1)


EQUATIONS = {
    "pre": lambda x, f, norm, n, p: x + f(norm(x)),
    "decayed": lambda x, f, norm, n, p: p.kept.item() * x + p.added.item() * f(norm(x)),
    "post": lambda x, f, norm, n, p: norm(x + f(x)),
    "deepnorm": lambda x, f, norm, n, p: norm((2 * LAYERS) ** 0.25 * x + f(x)),
    "sandwich": lambda x, f, norm, n, p: x + norm[1](f(norm[0](x))),
    "reordered": lambda x, f, norm, n, p: x + norm(f(x)),
    "scaled": lambda x, f, norm, n, p: x + f(norm(x) / math.sqrt(n)),
    "layerscale": lambda x, f, norm, n, p: x + by_channel(p.scale, f(norm(x))),
    "rezero": lambda x, f, norm, n, p: x + p.scale.item() * f(x),
    "drop_path": lambda x, f, norm, n, p: x + f(norm(x)),
}
WITHOUT_FINAL_NORM = ("post", "deepnorm", "rezero")


@pytest.mark.oracle("placement", "the paper's equation in float64")
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_stack_is_the_papers_equation(name):
    model, tokens = model_with(name), torch.randint(0, V, (2, 7))
    x = composed(model.model, tokens, EQUATIONS[name])
    assert (model.model.norm is None) == (name in WITHOUT_FINAL_NORM) and model.model.embed_norm is None
    expected = x if model.model.norm is None else model.model.norm(x)
    torch.testing.assert_close(model.model(tokens), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("placement=peri", "the paper's equation in float64")
def test_peri_is_sandwich_with_a_normalized_embedding():
    model, tokens = model_with("peri"), torch.randint(0, V, (2, 7))
    stack = model.model
    x = stack.embed_norm(stack.embed_tokens(tokens))
    for _, f, norm, _ in sublayers(stack, context(stack, tokens)):
        x = x + norm[1](f(norm[0](x)))
    torch.testing.assert_close(stack(tokens), stack.norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("placement=residual_dual", "the paper's equation in float64")
def test_residual_dual_has_a_normalized_and_a_plain_stream():
    """arXiv:2304.14802, equations of section 3: y = x_ln + LN(x_d)."""
    model, tokens = model_with("residual_dual"), torch.randint(0, V, (2, 7))
    stack = model.model
    ln = d = stack.embed_tokens(tokens)
    for _, f, norm, _ in sublayers(stack, context(stack, tokens)):
        said = f(ln)
        ln, d = norm(ln + said), d + said
    torch.testing.assert_close(stack(tokens), ln + stack.norm(d), rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("placement=hybrid", "the paper's equation in float64")
def test_hybrid_adds_the_normalized_stream():
    """Y = X + MHA(X) with normalized q, k and v; X' = norm(Y) + FFN(norm(Y))."""
    model = model_with("hybrid", attention={"name": "mha", "qk_norm": "rmsnorm", "v_norm": "rmsnorm"})
    stack, tokens = model.model, torch.randint(0, V, (2, 7))
    x = stack.embed_tokens(tokens)
    for i, (_, f, norm, _) in enumerate(sublayers(stack, context(stack, tokens))):
        if i % 2 == 0:
            assert len(norm) == 0
            x = x + f(x)
        else:
            x = norm(x) + f(norm(x))
    torch.testing.assert_close(stack(tokens), stack.norm(x), rtol=1e-12, atol=1e-12)
    refused = violated_rules(effective(model_config(placement="hybrid")))
    assert {p.fix for p in refused} == {"attention.qk_norm=rmsnorm", "attention.v_norm=rmsnorm"}


@pytest.mark.oracle("placement=hybrid_star", "the paper's equation in float64")
@pytest.mark.parametrize("architecture", ["causal", "encoder_decoder"])
def test_hybrid_star_has_a_pre_norm_layer_first(architecture):
    """The authors' setting of layer 0: `attn_norm` on, `ffn_residual` off; all others as in hybrid."""
    attention = {"name": "mha", "qk_norm": "rmsnorm", "v_norm": "rmsnorm"}
    model = model_with("hybrid_star", attention=attention, architecture=architecture)
    source, tokens = torch.randint(0, V, (2, 5)), torch.randint(0, V, (2, 7))

    def hybrid(x, f, norm, number, _):
        if number == 1:
            return x + f(norm(x))
        if isinstance(norm, torch.nn.ModuleList):
            assert len(norm) == 0
            return x + f(x)
        return norm(x) + f(norm(x))

    if architecture == "causal":
        states, ours = None, model.model(tokens)
    else:
        states = model.encoder.norm(composed(model.encoder, source, hybrid))
        ours = model.hidden(Example(tokens, tokens, source=source))
    x = composed(model.model, tokens, hybrid, None if states is None else EncoderOutput(states))
    torch.testing.assert_close(ours, model.model.norm(x), rtol=1e-12, atol=1e-12)


def test_a_different_first_layer_cannot_share_weights():
    config = effective(model_config(placement="hybrid_star", distinct_layers=1))
    assert "model.distinct_layers=null" in {p.fix for p in violated_rules(config)}


def rms(x, norm):
    """RMSNorm by its formula."""
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def mlp_by_hand(mlp, h):
    return rms(F.gelu(h @ mlp.up_proj.weight.T), mlp.inner_norm) @ mlp.down_proj.weight.T


def attention_by_hand(attention, h, inner):
    """Causal attention without positions, head by head."""
    q, k, v = (h @ getattr(attention, f"{p}_proj").weight.T for p in "qkv")
    heads, length = [], h.shape[1]
    for part in range(0, q.shape[-1], attention.d_head):
        a, b, c = (t[..., part : part + attention.d_head] for t in (q, k, v))
        logits = a @ b.mT * attention.d_head**-0.5 + torch.full((length, length), -math.inf).triu(1)
        heads.append(logits.softmax(-1) @ c)
    y = torch.cat(heads, dim=-1)
    return (rms(y, attention.inner_norm) if inner else y) @ attention.o_proj.weight.T


PLAIN = {"activation": "gelu", "position": "none"}


@pytest.mark.oracle("placement=subln", "attention and feed-forward by hand in float64")
def test_subln_normalizes_before_each_last_projection():
    model, tokens = model_with("subln", **PLAIN), torch.randint(0, V, (2, 7))
    x = model.model.embed_tokens(tokens)
    for layer in model.model.layers:
        x = x + attention_by_hand(layer.self_attn, rms(x, layer.input_layernorm), inner=True)
        x = x + mlp_by_hand(layer.mlp, rms(x, layer.post_attention_layernorm))
    torch.testing.assert_close(model.model(tokens), rms(x, model.model.norm), rtol=1e-10, atol=1e-10)


@pytest.mark.oracle("placement=normformer", "attention and feed-forward by hand in float64")
def test_normformer_normalizes_after_attention_and_inside_feed_forward():
    model, tokens = model_with("normformer", **PLAIN), torch.randint(0, V, (2, 7))
    x = model.model.embed_tokens(tokens)
    for layer in model.model.layers:
        before, after = layer.input_layernorm
        x = x + rms(attention_by_hand(layer.self_attn, rms(x, before), inner=False), after)
        x = x + mlp_by_hand(layer.mlp, rms(x, layer.post_attention_layernorm))
    torch.testing.assert_close(model.model(tokens), rms(x, model.model.norm), rtol=1e-10, atol=1e-10)


def hyper_connected(h, f, norm, part, dynamic):
    """arXiv:2409.19606, algorithm of the appendix, token by token with the matrix HC = [[0, b], [a_m, a_r]].

    h: n streams (B, T, n, D).
    """
    n = h.shape[-2]
    alphas, betas = torch.empty(*h.shape[:2], n, n + 1).double(), torch.empty(*h.shape[:2], n).double()
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            for i in range(n):
                token = norm[1](h[b, t, i]) if dynamic else None
                betas[b, t, i] = part.write[i]
                betas[b, t, i] += part.beta_scale.item() * torch.tanh(token @ part.to_beta[0]) if dynamic else 0
                for j in range(n + 1):
                    alphas[b, t, i, j] = part.read_and_mix[i, j]
                    alphas[b, t, i, j] += (
                        part.alpha_scale.item() * torch.tanh(token @ part.to_alpha[j]) if dynamic else 0
                    )
    read = sum(alphas[..., i, 0, None] * h[..., i, :] for i in range(n))
    said = f((norm[0] if dynamic else norm)(read))
    rows = []
    for j in range(n):
        mixed = sum(alphas[..., i, 1 + j, None] * h[..., i, :] for i in range(n))
        rows.append(mixed + betas[..., j, None] * said)
    return torch.stack(rows, dim=-2)


@pytest.mark.oracle("placement", "float64 loop over tokens")
@pytest.mark.parametrize("name", ["hyper_connections", "static_hyper_connections"])
def test_hyper_connections_token_by_token(name):
    model, tokens = model_with({"name": name, "streams": 3}), torch.randint(0, V, (2, 4))
    stack = model.model
    h = torch.stack([stack.embed_tokens(tokens)] * 3, dim=-2)
    with torch.no_grad():
        for _, f, norm, part in sublayers(stack, context(stack, tokens)):
            h = hyper_connected(h, f, norm, part, dynamic=name == "hyper_connections")
    torch.testing.assert_close(stack(tokens), stack.norm(h.sum(-2)), rtol=1e-11, atol=1e-11)


@pytest.mark.oracle("placement=lanes", "two lists of streams in float64")
def test_attention_and_feed_forward_read_a_lane_each():
    model, tokens = model_with("lanes"), torch.randint(0, V, (2, 7))
    stack = model.model
    one = other = stack.embed_tokens(tokens)
    calls = list(sublayers(stack, context(stack, tokens)))
    assert len(calls) == 2 * LAYERS
    for number, (_, f, norm, part) in enumerate(calls):
        said = f(norm(other if number % 2 else one))
        kept, (to_one, to_other) = part.kept.item(), part.added.tolist()
        one, other = kept * one + to_one * said, kept * other + to_other * said
    torch.testing.assert_close(stack(tokens), stack.norm((one + other) / 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["hyper_connections", "static_hyper_connections"])
@pytest.mark.parametrize("streams", [1, 2, 5])
def test_hyper_connections_start_as_pre_norm(name, streams):
    """Every stream equals the pre-norm stream, so their sum is n times it, and the final norm removes the factor."""
    plain = build_model(model_config(placement="pre", norm={"name": "rmsnorm", "eps": 1e-30}), V).double()
    connected = {"name": name, "streams": streams}
    model = build_model(model_config(placement=connected, norm={"name": "rmsnorm", "eps": 1e-30}), V).double()
    tokens = torch.randint(0, V, (2, 7))
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-6, atol=1e-7)  # drawn in float32, norms differ


@pytest.mark.parametrize("name", sorted(EQUATIONS.keys() - {"post", "deepnorm", "rezero", "decayed"}))
def test_a_zero_sublayer_changes_nothing(name):
    """The residual stream is an identity path: with zero last projections it equals the embedding."""
    model, tokens = model_with(name), torch.randint(0, V, (2, 7))
    for key, p in model.named_parameters():
        if "o_proj" in key or "down_proj" in key:
            p.data.zero_()
    torch.testing.assert_close(model.model(tokens), model.model.norm(model.model.embed_tokens(tokens)))


def test_rezero_starts_as_the_embedding():
    model = build_model(model_config(placement="rezero"), V)
    tokens = torch.randint(0, V, (2, 7))
    assert torch.equal(model.model(tokens), model.model.embed_tokens(tokens))
    assert not any("norm" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("layers, initial", [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_by_depth(layers, initial):
    """arXiv:2103.17239, section 2.1."""
    assert torch.equal(made("layerscale", layers).scale, torch.full((6,), initial))


def test_reordered_adds_outputs_of_unit_size():
    norm = {"name": "rmsnorm", "eps": 1e-30}
    model, seen = build_model(model_config(placement="reordered", norm=norm), V).double(), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, args, out: seen.append(out - args[0]))
    model(torch.randint(0, V, (2, 7)))
    added = torch.stack(seen).pow(2).mean().sqrt()  # two norms of size 1, nearly independent of one another
    assert 1.2 < added < 1.6


def made(name, layers, layer=0, knobs=None):
    return placements.build(
        name, knobs or {}, d_model=6, n_layers=layers, layer=layer, sublayer=0, around="attention", side="decoder",
        encoder_layers=0, decoder_layers=layers,
    )  # fmt: skip


@pytest.mark.oracle("placement=drop_path", "shares of dropped rows by the linear rule")
def test_drop_path_drops_rows_by_the_linear_rule():
    x, f = torch.randn(4000, 2, 6, dtype=torch.float64), torch.nn.Linear(6, 6, dtype=torch.float64)
    norm = torch.nn.Identity()
    for layer in range(4):
        part, p = made("drop_path", 4, layer, {"rate": 0.6}), 0.6 * (layer + 1) / 4
        added = part(x, f, norm) - x
        dropped = (added == 0).all(-1).all(-1)
        assert abs(dropped.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / len(x))
        torch.testing.assert_close(added[~dropped], f(x)[~dropped] / (1 - p))
        assert torch.equal(part.eval()(x, f, norm), x + f(x))


def test_drop_path_is_reproducible_from_the_global_seed():
    model = build_model(model_config(placement={"name": "drop_path", "rate": 0.9}), V)
    tokens, seen = torch.randint(0, V, (16, 7)), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen.append(model(tokens))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_deepnorm_in_an_encoder_decoder():
    """The whole model: each side with its own alpha, post-norm around self-attention, cross-attention and mlp."""
    config = model_config(placement="deepnorm", architecture="encoder_decoder", **SIZES)
    config["model"] |= {"encoder_layers": 2}
    model = build_model(config, V).double().eval()
    source, inputs = torch.randint(0, V, (2, 9)), torch.randint(0, V, (2, 7))
    n, m = 2, LAYERS
    alpha = 0.81 * (n**4 * m) ** (1 / 16)
    states = composed(model.encoder, source, lambda x, f, norm, _, p: norm(alpha * x + f(x)))
    beside = (3 * m) ** 0.25
    hidden = composed(
        model.model, inputs, lambda x, f, norm, _, p: norm(beside * x + f(x)), memory=EncoderOutput(states)
    )
    ours = model.hidden(Example(inputs, inputs, source=source))
    torch.testing.assert_close(ours, hidden, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["residual_dual", "hyper_connections"])
@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder"])
def test_wide_streams_in_every_architecture(name, architecture):
    model = build_model(model_config(placement=name, architecture=architecture), V)
    tokens = torch.randint(0, V, (2, 7))
    assert model(tokens).shape == (2, 7, V)


def test_norms_that_differ_by_sublayer_need_two_sublayers():
    parallel = {"name": "parallel", "own_norms": False}
    one, other = (
        violated_rules(effective(tiny_models.config() | {"block": parallel, "placement": {"name": name}}))
        for name in ("normformer", "sandwich")
    )
    assert [p.fix for p in one] == ["block=sequential"] and not other


def test_every_placement_has_an_oracle():
    more = {"peri", "hybrid", "hybrid_star", "residual_dual", "subln", "normformer", "hypersphere"}
    more |= {"hyper_connections", "static_hyper_connections", "lanes"}
    assert EQUATIONS.keys() | more == {e.name for e in placements if e.distribution.name == "ablatio"}
