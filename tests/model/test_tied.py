"""A tied matrix gets the sum of both gradients, of embedding and head, in any sequence of backward passes."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.cross_entropy import Tie, linear_cross_entropy
from ablatio.model.example import Example
from ablatio.model.parameter_roles import describe

V = 40


def made(**options):
    model = build_model(model_config(d_model=16, n_layers=1, **options), V).double()
    x = torch.randint(0, V, (3, 9))
    return model, Example(x[:, :-1], x[:, 1:])


def plain_loss(model, example):
    """Reference loss with full logits and torch's own gradient of the embedding."""
    return F.cross_entropy(model(example.inputs).flatten(0, 1), example.targets.flatten(), reduction="sum")


def gradients(model, loss, **kwargs):
    model.zero_grad()
    loss.backward(**kwargs)
    return [p.grad.clone() for p in model.parameters()]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_gradients_equal_plain_ones(position):
    model, example = made(position=position)
    assert Tie.of(model.model.embed_tokens, model.lm_head.weight) is not None
    assert_equal(gradients(model, model.loss(example)[0] * 0.3), gradients(model, plain_loss(model, example) * 0.3))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_logits_are_computed_for_scored_rows_only(share, monkeypatch):
    """Loss and gradients equal the weighted ones of all rows, and the head sees only rows with nonzero weight."""
    model, example = made()
    weights = torch.rand(3, 8).double() * (torch.rand(3, 8) < share)
    losses = F.cross_entropy(model(example.inputs).flatten(0, 1), example.targets.flatten(), reduction="none")
    expected, seen = gradients(model, (losses * weights.flatten()).sum()), []

    def head(hidden, *given, **settings):
        seen.append(len(hidden))
        return linear_cross_entropy(hidden, *given, **settings)

    monkeypatch.setattr("ablatio.model.language_model.linear_cross_entropy", head)
    total = model.loss(replace(example, weights=weights))[0]
    torch.testing.assert_close(total, (losses * weights.flatten()).sum())
    assert_equal(gradients(model, total), expected)
    assert seen == [int((weights > 0).sum())]


def test_repeated_backward_and_gradient_accumulation():
    model, example = made()
    expected = gradients(model, plain_loss(model, example))
    loss, *_ = model.loss(example)
    assert_equal(gradients(model, loss, retain_graph=True), expected)
    assert_equal(gradients(model, loss), expected)
    model.loss(example)[0].backward()
    assert_equal([p.grad for p in model.parameters()], [2 * g for g in expected])


def test_partial_backward_leaves_no_gradient_behind():
    model, example = made()
    tie = Tie()
    hidden = model.model(example.inputs, tie=tie)
    other = hidden.square().sum()
    loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, example.targets.flatten(), tie=tie)
    torch.autograd.grad(loss, hidden, retain_graph=True)  # the head runs, the embedding does not
    ours = gradients(model, other)
    assert_equal(ours, gradients(model, model.model(example.inputs).square().sum()))


def test_head_gradient_remains_if_hidden_states_are_detached():
    model, example = made()
    model.model.norm.register_forward_hook(lambda module, args, output: output.detach())
    model.zero_grad()
    model.loss(example)[0].backward()
    ours = model.lm_head.weight.grad.clone()
    model.zero_grad()
    plain_loss(model, example).backward()
    torch.testing.assert_close(ours, model.lm_head.weight.grad, rtol=1e-10, atol=1e-11)


def test_no_tie_without_gradients_or_with_a_modified_embedding():
    model, _ = made()
    embedding, head = model.model.embed_tokens, model.lm_head.weight
    with torch.no_grad():
        assert Tie.of(embedding, head) is None
    handle = embedding.register_forward_hook(lambda *_: None)
    assert Tie.of(embedding, head) is None
    handle.remove()
    head.requires_grad_(False)
    assert Tie.of(embedding, head) is None
    untied, _ = made(tied=False)
    assert Tie.of(untied.model.embed_tokens, untied.lm_head.weight) is None


def test_dropped_graph_is_freed_at_once():
    model, example = made()
    gc.collect()
    gc.disable()
    try:
        tie = Tie()
        hidden = model.model(example.inputs, tie=tie)
        loss = linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, example.targets.flatten(), tie=tie)
        seen = weakref.ref(tie)
        del tie, hidden, loss
        assert seen() is None
    finally:
        gc.enable()


def test_tied_matrix_has_the_role_embedding_once():
    model, _ = made()
    roles = [info.role for p, info in describe(model) if p is model.lm_head.weight]
    assert roles == ["embedding"]
