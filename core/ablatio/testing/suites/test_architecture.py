"""Architectures: an assembly of parts -> a model."""

from typing import Any

import torch
from torch import nn

from ablatio.model.assembly import Assembly
from ablatio.model.language_model import LanguageModel
from ablatio.registry import Entry
from ablatio.testing import probe, samples, tiny

KINDS = ("architecture",)


def _made(part: Entry, **sizes: Any) -> LanguageModel:
    return samples.made(part, assembly=Assembly(tiny.config(part, **sizes), tiny.VOCAB))  # type: ignore[no-any-return]


def test_is_a_model(part: Entry) -> None:
    net = _made(part)
    assert isinstance(net, nn.Module), f"{probe.label(part)}: gives {type(net).__name__}, an nn.Module was expected"
    shape, expected = tuple(net(tiny.tokens()).shape), (4, 24, net.vocab_size)
    assert shape == expected, f"{probe.label(part)}: logits have the shape {shape}, (B, T, V) = {expected} was expected"


def test_loss_is_that_of_its_logits(part: Entry) -> None:
    net, batch = _made(part).double().eval(), tiny.example()
    total, count, _ = net.loss(batch)
    logits = net(batch.inputs, batch.segments)
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    probe.near(part, total / count, plain / batch.targets.numel(), "the loss in chunks and cross_entropy of the logits")
    each = net.token_losses(batch)
    probe.near(part, each.sum(), plain, "the sum of token_losses and cross_entropy of the logits")


def test_sizes_are_used(part: Entry) -> None:
    """More layers, a wider model, an untied head: more parameters each time."""

    def parameters(**sizes: Any) -> int:
        return sum(p.numel() for p in _made(part, **sizes).parameters())

    plain = parameters()
    for sizes in ({"n_layers": 3}, {"d_model": 48}, {"tied": False}, {"d_ff": 256}):
        more = parameters(**sizes)
        assert more > plain, f"{probe.label(part)}: {sizes} gives {more} parameters, the plain model has {plain}"


@torch.no_grad()
def test_documents_are_kept_apart(part: Entry) -> None:
    net, tokens = _made(part).eval(), tiny.tokens()
    segments = torch.zeros_like(tokens)
    segments[:, 9:] = 1
    if tiny.attention_facts(part)["takes_segments"]:
        same = torch.equal(net(tokens, segments), net(tokens))
        assert not same, f"{probe.label(part)}: two documents in a row give the logits of one; `segments` is not used"
