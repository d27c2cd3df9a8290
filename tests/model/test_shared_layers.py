"""Layers that share weights: the stack applies its distinct layers in the order given by `sharing`."""

from pathlib import Path

import pytest
import torch
from helpers.support import model_config

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.cost.parameters import measure
from ablatio.model.example import Example
from ablatio.model.kv_cache import KVCache
from ablatio.registry.shared_layers import owners

V = 19
ORDERS = {"cycle": [0, 1, 0, 1, 0], "runs": [0, 0, 0, 1, 1], "middle": [0, 1, 0, 1, 0]}


def looped(sharing="cycle", **options):
    config = model_config(n_layers=5, distinct_layers=2, sharing=sharing, **options)
    return build_model(config, V).double().eval()


@pytest.mark.parametrize("sharing", ORDERS)
def test_stack_applies_its_distinct_layers_in_order(sharing):
    """Against a loop over the layers of a model with only these layers; gradients of all uses add up."""
    model, tokens = looped(sharing), torch.randint(0, V, (2, 8))
    plain = build_model(model_config(n_layers=2), V).double().eval()
    own = [i for i, _ in enumerate(ORDERS[sharing]) if ORDERS[sharing].index(ORDERS[sharing][i]) == i]
    for layer, first in zip(plain.model.layers, own, strict=True):
        layer.load_state_dict(model.model.layers[first].state_dict())
    plain.model.norm.load_state_dict(model.model.norm.state_dict())
    plain.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    stack = plain.model
    ctx = make_context(tokens, stack.position, "causal", None, None, torch.float64)
    x = stack.embed_tokens(tokens)
    for i in ORDERS[sharing]:
        x = stack.layers[i](x, ctx)
    expected = plain.lm_head(stack.norm(x))
    torch.testing.assert_close(model(tokens), expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (model(tokens) * weight).sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_parameters_count_once_and_flops_each_time():
    deep, shared, few = (
        measure(model_config(n_layers=n, distinct_layers=d), V) for n, d in ((6, None), (6, 2), (2, None))
    )
    assert shared.parameters == few.parameters < deep.parameters
    assert shared.flops_per_token == deep.flops_per_token > few.flops_per_token


@pytest.mark.parametrize("attention", ["mha", "sliding", "retention", "performer"])
def test_each_use_of_a_layer_has_its_own_cache(attention):
    model, tokens = looped(attention=attention), torch.randint(0, V, (2, 12))
    with torch.no_grad():
        cache = KVCache()
        parts = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-9, atol=1e-9)


def test_weights_stay_shared_after_loading_and_casting():
    model = build_model(model_config(n_layers=4, distinct_layers=2, tied=False), V)
    other = build_model(model_config(n_layers=4, distinct_layers=2, tied=False), V, seed=3)
    model.load_state_dict(other.state_dict(), assign=True)
    model = model.double()
    first, third = model.model.layers[0], model.model.layers[2]
    assert first.mlp.up_proj.weight is third.mlp.up_proj.weight
    assert len(list(model.parameters())) == len(list(other.parameters()))
    tokens = torch.randint(0, V, (1, 6))
    torch.testing.assert_close(model(tokens), other.double()(tokens), rtol=0, atol=0)


def test_balancing_bias_is_updated_by_every_use():
    model = looped(mlp={"name": "deepseek_moe", "bias_rate": 0.01, "balance": 0.0}).train()
    x = torch.randint(0, V, (2, 9))
    model.loss(Example(x[:, :-1], x[:, 1:]))
    biases = [layer.mlp.balance_bias.bias for layer in model.model.layers]
    assert biases[0].any() and biases[0] is biases[2] is biases[4] and biases[1] is biases[3] is not biases[0]


@pytest.mark.parametrize("options", [{"mlp": {"name": "moe", "every": 2}}, {"attention": "value_residual"}])
def test_layers_of_different_structure_cannot_share(options):
    with pytest.raises(UserError, match="must have the same parts"):
        build_model(model_config(n_layers=4, distinct_layers=1, **options), V)


@pytest.mark.parametrize(
    "part, fix", [("block=unet", "model.distinct_layers=null"), ("attention=value_residual", "attention.kind=identity")]
)
def test_parts_that_cannot_share_are_refused_in_the_config(part, fix):
    settings = ["size=tiny", part, "model.distinct_layers=1"]
    with pytest.raises(ConfigError, match=fix):
        compose_run(settings)
    made = compose_run([*settings, fix]).config
    assert build_model(made, V)


def test_export_and_load_give_the_same_logits(tmp_path: Path):
    """transformers loads ablatio's class; each weight is in the file once."""
    from safetensors import safe_open

    from ablatio.interop.export import difference, export
    from ablatio.registry.kinds import tokenizers

    config = compose_run(["size=tiny", "model.n_layers=4", "model.distinct_layers=2", "tokenizer=bytes"]).config
    tokenizer = tokenizers.build("bytes", {})
    model = build_model(config, tokenizer.vocab_size).eval()
    assert export(config, model, tokenizer, tmp_path / "out") == "ablatio"
    assert difference(tmp_path / "out", model) < 1e-5
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(list(model.parameters()))


def test_a_loop_over_the_middle_runs_the_first_and_last_layers_once():
    assert [owners(4, 3, "middle"), owners(7, 5, "middle")] == [[0, 1, 1, 2], [0, 1, 2, 1, 2, 3, 4]]
    assert owners(11, 9, "middle") == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8]
    for depth in range(1, 9):
        for distinct in range(1, depth + 3):
            for sharing in ORDERS:
                found = owners(depth, distinct, sharing)
                assert len(found) == depth and {*found} == set(range(min(depth, distinct))), (depth, distinct, sharing)
                assert [i for n, i in enumerate(found) if i not in found[:n]] == sorted({*found})
    model = build_model(model_config(n_layers=7, distinct_layers=5, sharing="middle"), V)
    held = [id(layer.mlp.up_proj.weight) for layer in model.model.layers]
    assert [held.index(h) for h in held] == [0, 1, 2, 1, 2, 5, 6]
    config = model_config(n_layers=7, distinct_layers=5, sharing="middle")
    assert measure(config, V).parameters == sum(p.numel() for p in model.parameters())
