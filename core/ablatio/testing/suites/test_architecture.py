"""Architectures: a ModelBuilder -> a model."""

from typing import Any

import torch
from torch import nn

from ablatio.model.builder import ModelBuilder
from ablatio.model.language_model import LanguageModel
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, tiny_models

KINDS = ("architecture",)


def _made(part: PartSpec, **sizes: Any) -> LanguageModel:
    return sample_parts.made(part, builder=ModelBuilder(tiny_models.config(part, **sizes), tiny_models.VOCAB))  # type: ignore[no-any-return]


def test_is_a_model(part: PartSpec) -> None:
    net = _made(part)
    assert isinstance(net, nn.Module), f"{checks.label(part)}: gives {type(net).__name__}; expected an nn.Module"
    shape, expected = tuple(net(tiny_models.tokens()).shape), (4, 24, net.vocab_size)
    assert shape == expected, f"{checks.label(part)}: logits have the shape {shape}; expected (B, T, V) = {expected}"


def test_loss_is_that_of_its_logits(part: PartSpec) -> None:
    net, batch = _made(part).double().eval(), tiny_models.example()
    total, count, _ = net.loss(batch)
    logits = net(batch.inputs, batch.segments)
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    checks.near(
        part, total / count, plain / batch.targets.numel(), "the loss in chunks and cross_entropy of the logits"
    )
    each = net.token_losses(batch)
    checks.near(part, each.sum(), plain, "the sum of token_losses and cross_entropy of the logits")


def test_sizes_are_used(part: PartSpec) -> None:
    """More layers, a wider model, an untied head: more parameters each time."""

    def parameters(**sizes: Any) -> int:
        return sum(p.numel() for p in _made(part, **sizes).parameters())

    plain = parameters()
    for sizes in ({"n_layers": 3}, {"d_model": 48}, {"tied": False}, {"d_ff": 256}):
        more = parameters(**sizes)
        assert more > plain, f"{checks.label(part)}: {sizes} gives {more} parameters, the plain model has {plain}"


@torch.no_grad()
def test_documents_are_kept_apart(part: PartSpec) -> None:
    net, tokens = _made(part).eval(), tiny_models.tokens()
    segments = torch.zeros_like(tokens)
    segments[:, 9:] = 1
    if tiny_models.attention_facts(part)["takes_segments"]:
        same = torch.equal(net(tokens, segments), net(tokens))
        assert not same, f"{checks.label(part)}: two documents in a row give the logits of one; `segments` is not used"
