"""Blocks against their equations, composed from the block's own sublayers and norms (pre-norm)."""

import pytest
import torch
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.context import EncoderOutput, make_context
from ablatio.registry.kinds import blocks

V, D = 11, 32


def sequential(layer, x, a, c, m):
    x = x + a(layer.input_layernorm(x))
    x = x + c(layer.cross_layernorm(x)) if c else x
    return x + m(layer.post_attention_layernorm(x))


def parallel(layer, x, a, c, m):
    h = layer.input_layernorm(x)
    return x + a(h) + m(h) + (c(h) if c else 0)


def parallel_with_own_norms(layer, x, a, c, m):
    h = layer.input_layernorm(x)
    return x + a(h) + m(layer.post_attention_layernorm(x)) + (c(h) if c else 0)


def macaron(layer, x, a, c, m):
    """arXiv:1906.02762, section 3.2: the Strang-Marchuk splitting."""
    x = x + layer.mlp_before(layer.mlp_before_layernorm(x), None) / 2
    x = x + a(layer.input_layernorm(x))
    x = x + c(layer.cross_layernorm(x)) if c else x
    return x + m(layer.post_attention_layernorm(x)) / 2


EQUATIONS = {
    "sequential": ({}, sequential),
    "parallel": ({}, parallel),
    "parallel_own_norms": ({"own_norms": True}, parallel_with_own_norms),
    "macaron": ({}, macaron),
}


@pytest.mark.oracle("block", "the paper's equation in float64")
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_layer_is_its_equation(name, crossed):
    knobs, equation = EQUATIONS[name]
    architecture = "encoder_decoder" if crossed else "causal"
    block = {"name": name.removesuffix("_own_norms"), **knobs}
    model = build_model(model_config(block=block, architecture=architecture, d_model=D), V).double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    stack, tokens = model.model, torch.randint(0, V, (2, 7))
    memory = EncoderOutput(torch.randn(2, 5, D).double()) if crossed else None
    ctx = make_context(tokens, stack.position, "causal", None, None, torch.float64, memory=memory)
    expected = stack.embed_tokens(tokens)
    for layer in stack.layers:

        def cross(h, layer=layer):
            return layer.cross_attn(h, ctx.cross)

        expected = equation(
            layer, expected, lambda h, f=layer.self_attn: f(h, ctx), cross if crossed else None,
            lambda h, f=layer.mlp: f(h, ctx),
        )  # fmt: skip
    torch.testing.assert_close(stack(tokens, memory=memory), stack.norm(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("block=unet", "the skips in a list, in float64")
@pytest.mark.parametrize("depth", [1, 4, 5])
def test_unet_adds_the_output_of_the_mirror_layer(depth):
    model = build_model(model_config(block={"name": "unet", "initial": 0.7}, n_layers=depth), V).double().eval()
    stack, tokens = model.model, torch.randint(0, V, (2, 7))
    assert [layer.skip is not None for layer in stack.layers] == [i >= depth - depth // 2 for i in range(depth)]
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    ctx = make_context(tokens, stack.position, "causal", None, None, torch.float64)
    x, given = stack.embed_tokens(tokens), []
    for i, layer in enumerate(stack.layers):
        x = x + layer.skip * given.pop() if i >= depth - depth // 2 else x  # the last one is the mirror layer's
        x = sequential(layer, x, lambda h, f=layer.self_attn: f(h, ctx), None, lambda h, f=layer.mlp: f(h, ctx))
        given += [x] if i < depth // 2 else []
    torch.testing.assert_close(stack(tokens), stack.norm(x), rtol=1e-12, atol=1e-12)


def test_macaron_has_two_separate_feed_forward_layers():
    layer = build_model(model_config(block="macaron"), V).model.layers[0]
    before, after = layer.mlp_before.up_proj.weight, layer.mlp.up_proj.weight
    assert before.shape == after.shape and not torch.equal(before, after)


def test_every_block_has_an_oracle():
    known = {n.removesuffix("_own_norms") for n in EQUATIONS} | {"unet"}
    assert known == {e.name for e in blocks if e.distribution.name == "ablatio"}


@pytest.mark.oracle("attention=none", "the layer's equation without it, in float64")
@pytest.mark.oracle("mlp=none", "the layer's equation without it, in float64")
@pytest.mark.parametrize("without", ["attention", "mlp"])
def test_a_layer_without_a_sublayer_has_neither_its_norm_nor_its_weights(without):
    model = build_model(model_config(block="sequential", d_model=D, **{without: "none"}), V).double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    stack, tokens = model.model, torch.randint(0, V, (2, 7))
    ctx = make_context(tokens, stack.position, "causal", None, None, torch.float64)
    x = stack.embed_tokens(tokens)
    for layer in stack.layers:
        kept = layer.mlp if without == "attention" else layer.self_attn
        norm = layer.post_attention_layernorm if without == "attention" else layer.input_layernorm
        assert {id(p) for p in layer.parameters()} == {id(p) for m in (kept, norm) for p in m.parameters()}
        x = x + kept(norm(x), ctx)
    torch.testing.assert_close(model(tokens), model.logits(stack.norm(x)), rtol=0, atol=1e-12)
