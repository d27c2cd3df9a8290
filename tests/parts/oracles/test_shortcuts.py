"""Shortcuts against their recurrences: the layers of a plain model, called one by one, with states in a list."""

import math

import pytest
import torch
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.registry.registry import REGISTRIES

V, T = 19, 7


def pair(name, knobs, depth, **parts):
    """(model with the shortcut, the plain model with the same layers, tokens), in float64 and off their start."""
    shortcut = {"name": name, **knobs}
    model = build_model(model_config(n_layers=depth, shortcut=shortcut, **parts), V).double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    plain = build_model(model_config(n_layers=depth, **parts), V).double().eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing and all("shortcut" in n for n in unexpected)
    return model, plain, torch.randint(0, V, (2, T))


def weights_of(model, layer):
    stack = model.model
    return stack.layers[layer].shortcut if layer < len(stack.layers) else stack.shortcut


def recurrence(plain, tokens, read):
    """Logits of the plain model's layers where layer l, and at last the norm, reads read(l, [h_0, ..., h_l])."""
    stack, states = plain.model, [plain.model.embed_tokens(tokens)]
    ctx = make_context(tokens, stack.position, "causal", None, None, torch.float64)
    for i, layer in enumerate(stack.layers):
        states.append(layer(read(i, states), ctx))
    return plain.lm_head(stack.norm(read(len(stack.layers), states)))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("shortcut=none", "the plain model")
def test_none_builds_nothing():
    model = build_model(model_config(shortcut="none"), V)
    assert model.model.shortcut is None and not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.oracle("shortcut=unet", "block=unet, bit for bit, and the recurrence")
@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_unet_is_the_block_of_that_name(depth):
    model, plain, tokens = pair("unet", {}, depth)
    block = build_model(model_config(n_layers=depth, block="unet"), V).double().eval()
    names = {n: n.replace("shortcut.weight", "skip") for n in model.state_dict()}
    block.load_state_dict({names[n]: t for n, t in model.state_dict().items()})
    assert torch.equal(model(tokens), block(tokens))

    def read(layer, states):
        takes = depth - depth // 2 <= layer < depth
        return states[-1] + weights_of(model, layer).weight * states[depth - layer] if takes else states[-1]

    close(model(tokens), recurrence(plain, tokens, read))


@pytest.mark.oracle("shortcut=x0", "the recurrence")
def test_x0_is_read_by_every_layer():
    model, plain, tokens = pair("x0", {}, 3)

    def read(layer, states):
        if layer == 3:
            return states[-1]
        a, b = weights_of(model, layer).weights
        return a * states[-1] + b * states[0]

    close(model(tokens), recurrence(plain, tokens, read))


@pytest.mark.oracle("shortcut=backout", "the recurrence")
@pytest.mark.parametrize("depth, share, middle", [(12, 2 / 3, 8), (4, 0.5, 2), (3, 1.0, 2), (2, 0.0, 0), (1, 0.9, 0)])
def test_backout_subtracts_a_middle_state(depth, share, middle):
    model, plain, tokens = pair("backout", {"depth": share}, depth, d_model=8)
    weight = model.model.shortcut.weight
    assert sum("shortcut" in n for n, _ in model.named_parameters()) == 1
    close(
        model(tokens),
        recurrence(plain, tokens, lambda i, h: h[-1] - weight * h[middle] if i == depth else h[-1]),
    )


@pytest.mark.oracle("shortcut=denseformer", "equation 2 of the paper, dilation and period of its section 3")
@pytest.mark.parametrize("dilation, period", [(1, 1), (2, 1), (1, 2), (4, 5), (3, 2)])
def test_denseformer_averages_earlier_states(dilation, period):
    model, plain, tokens = pair("denseformer", {"dilation": dilation, "period": period}, 5)

    def read(layer, states):
        if layer == 0 or layer % period:
            return states[-1]
        chosen = [j for j in range(layer + 1) if (layer - j) % dilation == 0]
        weights = weights_of(model, layer).weights
        assert len(weights) == len(chosen) == (layer + dilation) // dilation  # as in the authors' code
        return sum(a * states[j] for a, j in zip(weights, chosen, strict=True))

    close(model(tokens), recurrence(plain, tokens, read))


@torch.no_grad()
@pytest.mark.parametrize("name", ["denseformer", "x0"])
def test_training_starts_from_the_plain_model(name):
    tokens = torch.randint(0, V, (2, T))
    models = [build_model(model_config(n_layers=4, **kinds), V).eval() for kinds in ({}, {"shortcut": name})]
    assert torch.equal(models[0](tokens), models[1](tokens))


LAYOUTS = {  # number of the table of each layer, by tables, layout and depth
    (3, "ends", 8): [0, 1, 2, None, None, 0, 1, 2],
    (1, "ends", 4): [0, None, None, 0],
    (3, "ends", 4): [0, 1, 2, 2],
    (None, "ends", 3): [0, 1, 2],
    (2, "cycle", 5): [0, 1, 0, 1, 0],
    (1, "cycle", 3): [0, 0, 0],
}


@pytest.mark.oracle("shortcut=value_embeddings", "the plain model, whose v_proj a hook changes")
@pytest.mark.parametrize("tables, layout, depth", LAYOUTS)
@pytest.mark.parametrize("gate", ["input", "learned"])
def test_value_embeddings_change_the_values(tables, layout, depth, gate):
    numbers = LAYOUTS[tables, layout, depth]
    knobs = {"tables": tables, "layout": layout, "gate": gate, "channels": 5}
    attention = {"name": "gqa", "n_kv_heads": 2}
    model, plain, tokens = pair("value_embeddings", knobs, depth, attention=attention)
    found = {}
    for i, number in enumerate(numbers):
        part = weights_of(model, i)
        if part.table is not None:
            found[number] = part.table.weight[tokens]
        assert (part.table is not None) == (number is not None and number not in numbers[:i])
        if number is None:
            continue

        def change(module, args, v, part=part, e=found[number]):
            if gate == "learned":
                return part.weights[0] * v + part.weights[1] * e
            gates = [2 * torch.sigmoid(args[0][..., :5] @ part.gate[head]) for head in range(2)]
            return torch.cat(
                [v[..., 8 * h : 8 * h + 8] + gates[h][..., None] * e[..., 8 * h : 8 * h + 8] for h in (0, 1)], -1
            )

        plain.model.layers[i].self_attn.v_proj.register_forward_hook(change)
    close(model(tokens), plain(tokens))


def test_every_shortcut_has_an_oracle():
    known = {"none", "unet", "x0", "backout", "denseformer", "value_embeddings", "mudd", "iteration"}
    assert known == {e.name for e in REGISTRIES["shortcut"] if e.distribution.name == "ablatio"}


@pytest.mark.oracle("shortcut=mudd", "the plain model, whose k_proj and v_proj hooks read the sums of a loop")
@pytest.mark.parametrize("attention", ["mha", {"name": "gqa", "n_kv_heads": 2}])
def test_mudd_sums_for_the_stream_keys_and_values(attention):
    model, plain, tokens = pair("mudd", {}, 3, attention=attention)

    def read(layer, states):
        if layer == 0:
            return states[0]
        part = weights_of(model, layer)
        x = states[-1]
        unit = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
        weights = torch.nn.functional.gelu(part.up(unit)) @ part.dynamic  # (B, T, C (l + 1))
        sums = []
        for way in range(3 if layer < 3 else 1):
            total = 0
            for j, state in enumerate(states):
                total = total + (weights[..., way * (layer + 1) + j, None] + part.static[way, j]) * state
            sums.append(total)
        if layer < 3:
            for norm, name, total in zip(part.norms, ("k_proj", "v_proj"), sums[1:], strict=True):
                own = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
                projection = getattr(plain.model.layers[layer].self_attn, name)
                projection.register_forward_pre_hook(lambda module, inputs, own=own: (own,))
        return sums[0]

    close(model(tokens), recurrence(plain, tokens, read))


@torch.no_grad()
def test_mudd_starts_from_the_plain_model():
    """Up to rounding: keys and values pass another norm."""
    tokens = torch.randint(0, V, (2, T))
    models = [build_model(model_config(n_layers=4, **kinds), V).eval() for kinds in ({}, {"shortcut": "mudd"})]
    torch.testing.assert_close(models[0](tokens), models[1](tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mudd_hands_nothing_to_layers_without_attention():
    parts = {"shortcut": "mudd", "n_layers": 3}
    config = model_config(**parts) | {"layers": {"at": {"attention": {1: "none"}}}}
    model = build_model(config, V).eval()
    assert [weights_of(model, i).ways for i in range(4)] == [3, 1, 3, 1]
    assert model(torch.randint(0, V, (2, T))).isfinite().all()


@pytest.mark.oracle("shortcut=iteration", "sinusoids in Python's numbers, and the recurrence")
@pytest.mark.parametrize("distinct", [None, 2])
def test_iteration_tells_the_uses_of_shared_layers_apart(distinct):
    model, plain, tokens = pair("iteration", {"start": 0.5}, 5, distinct_layers=distinct)
    expected = recurrence(plain, tokens, lambda i, states: states[i] + weight_of(model, i) * sinusoids(i))
    close(model(tokens), expected)


def weight_of(model, layer):
    return getattr(weights_of(model, layer), "weight", None) if layer < len(model.model.layers) else 0.0


def sinusoids(layer):
    angles = [layer / 10000 ** (2 * (j // 2) / 32) for j in range(32)]
    return torch.tensor([math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)], dtype=torch.float64)
