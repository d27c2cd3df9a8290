"""Embeddings and shortcuts in whole models: recomputation, decoding, two stacks, siblings, virtual tokens, sharing."""

import copy

import pytest
import torch
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.model.activation_checkpointing import recompute
from ablatio.model.build import build_model
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.example import Example
from ablatio.model.kv_cache import KVCache
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.rules import violated_rules

V, T = 29, 10
OPTIONS = [
    (kind, entry.name)
    for kind in ("embedding", "shortcut")
    for entry in REGISTRIES[kind]
    if entry.name != REGISTRIES[kind].default
]
every_option = pytest.mark.parametrize("kind, name", OPTIONS, ids=str)


def built(seed=0, **parts):
    """A model in float64, off its start, where gates and factors of 0 would hide faults."""
    model = build_model(model_config(**{"n_layers": 4} | parts), V, seed=seed).double()
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def tokens(rows=2, length=T):
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every_option
@torch.no_grad()
def test_it_changes_the_model_and_a_copy_runs_alone(kind, name):
    model, x = built(**{kind: name}).eval(), tokens()
    other = copy.deepcopy(model)
    before = model(x)
    for n, p in model.named_parameters():
        if kind in n:
            p.data.mul_(1.5)
    assert torch.equal(other(x), before) and not torch.equal(model(x), before)


@every_option
def test_recomputed_layers_have_the_same_gradients(kind, name):
    x = tokens()
    gradients = []
    for segment in (None, 1, 3):
        model = built(**{kind: name}).train()
        if segment:
            recompute(model, segment)
        model.loss(Example(x[:, :-1], x[:, 1:])).total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for other in gradients[1:]:
        for n, gradient in gradients[0].items():
            assert (gradient is None) == (other[n] is None), n
            if gradient is not None:
                close(other[n], gradient)


@every_option
@torch.no_grad()
def test_two_stacks_decode_as_they_read(kind, name):
    """Each stack has parts of its own; the decoder's steps with a cache equal one pass over its target."""
    model = built(architecture="encoder_decoder", objective="span_corruption", position="t5", **{kind: name}).eval()
    assert {n.split(".")[0] for n, _ in model.named_modules() if n.endswith(f".{kind}")} == {"encoder", "model"}
    source, target = tokens(2, 7), tokens(2, 6)
    states = model.hidden(Example(target, target, source=source))
    cache = KVCache()
    cache.memory = model.encode(source)
    steps = [model.model(target[:, i : i + 1], None, cache, memory=cache.memory) for i in range(6)]
    close(torch.cat(steps, 1), states)


@every_option
def test_siblings_of_the_last_layer_have_their_own(kind, name):
    objective = {"name": "multi_token", "ahead": 3}
    model, x = built(objective=objective, **{kind: name}), tokens(2, T + 3)
    further = torch.stack([x[:, 2 + i : T + i] for i in range(2)], -1)
    example = Example(x[:, : T - 2], x[:, 1 : T - 1], further=further, further_weights=torch.ones(further.shape))
    model.train().loss(example).total.backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None]
    assert not lost
    if kind == "shortcut":
        own, last = (m.shortcut for m in (model.model.further[0], model.model.layers[-1]))
        assert own is not last and [p.shape for p in own.parameters()] == [p.shape for p in last.parameters()]


@every_option
@torch.no_grad()
@pytest.mark.parametrize("peft", ["prompt", "prefix"])
def test_virtual_tokens_decode_as_they_read(kind, name, peft):
    model, x = built(**{kind: name}).eval(), tokens()
    REGISTRIES["peft"].build(peft, {"tokens": 3}).apply(model, 0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    full, cache = model(x), KVCache()
    steps = [model(x[:, :4], None, cache), *(model(x[:, i : i + 1], None, cache) for i in range(4, T))]
    close(torch.cat(steps, 1), full)
    segments = (torch.arange(T) >= 6).long().expand(2, T)
    packed = model(x, segments)
    close(packed[:, :6], full[:, :6])
    close(packed[:, 6:], model(x[:, 6:]))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for kind, name in OPTIONS if kind == "embedding"])
def test_prompts_start_as_embeddings_of_tokens(name):
    """The start of a virtual token is what its id enters as, at the start of a text."""
    model = built(embedding=name).eval()
    stack, ids = model.model, tokens(1, 5)[0]
    seen = []
    stack.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model(ids[:, None])
    close(stack.embeddings_of(ids), seen[0][:, 0])


@torch.no_grad()
@every_option
def test_padded_prompts_generate_what_they_do_alone(kind, name):
    model, prompts = built(**{kind: name}).eval(), [[3, 4, 5, 6, 7], [8, 9], [1]]
    greedy = Sampling(temperature=0.0)
    together = generate(model, prompts, 6, greedy)
    alone = [generate(model, [prompt], 6, greedy)[0] for prompt in prompts]
    assert [list(a) for a in together] == [list(a) for a in alone]


@pytest.mark.parametrize("name", [name for kind, name in OPTIONS if kind == "shortcut"])
def test_shared_layers_share_it_or_are_refused(name):
    config = model_config(n_layers=4, distinct_layers=2, shortcut=name)
    problems = violated_rules(effective(config | {"data": {}, "train": {}}))
    per_depth = REGISTRIES["shortcut"][name].facts["per_depth"]
    assert [p.where for p in problems] == (["model.distinct_layers"] if per_depth else [])
    if not per_depth:
        layers = build_model(config, V).model.layers
        for one, two in zip(layers[0].parameters(), layers[2].parameters(), strict=True):
            assert one is two


@torch.no_grad()
def test_attentions_that_take_values_use_them():
    """Value embeddings change what they give."""
    for entry in REGISTRIES["attention"]:
        config = model_config(attention=entry.name, position="rope" if entry.facts["takes_bias"] else "none")
        if not entry.facts["takes_values"] or violated_rules(effective(config | {"data": {}, "train": {}})):
            continue
        parts = {"name": "value_embeddings", **REGISTRIES["shortcut"]["value_embeddings"].defaults, "gate": "learned"}
        model = build_model(config | {"shortcut": parts}, V).double().eval()
        x = tokens()
        before = model(x)
        for layer in model.model.layers:
            layer.shortcut.weights.data.mul_(2)
        assert not torch.equal(model(x), before), entry.name


def test_configs_from_before_the_kinds_build_the_same_model():
    now = model_config()
    old = {k: v for k, v in now.items() if k not in ("embedding", "shortcut")}
    one, two = (build_model(config, V, seed=3).state_dict() for config in (now, old))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
