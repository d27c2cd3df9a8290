"""Token table and output head over two devices: losses, scores, logits and gradients are those of one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.divided_vocabulary import DividedVocabulary
from ablatio.model.rl.token_logprobs import token_logps
from ablatio.model.tensor_parallel import Devices
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models, two_threads

CURVED = {"softcap": {"cap": 0.5}, "isru": {"cap": 0.5}, "sigmoid": {"width": 0.5}}  # where small logits are bent


def built(**changes: Any) -> Any:
    """A model in float64 none of whose weights is zero."""
    net = tiny_models.model(**changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return net.double().eval()


def weighted() -> Any:
    """Half of the targets count, by different weights."""
    example = tiny_models.example(2, 12)
    example.weights = torch.linspace(-1, 2, 24).clamp(min=0).view(2, 12).double()
    return example


def plain(net: Any) -> Tensor:
    total: Tensor = net.loss(tiny_models.example(2, 12)).total
    return total


def with_weights(net: Any) -> Tensor:
    net.z_loss, net.smoothing = 0.01, 0.1
    total: Tensor = net.loss(weighted()).total
    return total


def of_logits(net: Any) -> Tensor:
    """As policies and preferences compute it."""
    example = tiny_models.example(2, 12)
    found = token_logps(net, net.hidden(example), example.targets, collision=True)
    assert found.collision is not None
    return (found.logps * torch.linspace(0, 1, 24).view(2, 12)).sum() + found.collision.sum()


@pytest.mark.parametrize("head", ["plain", "softcap", "isru", "sigmoid"])
@pytest.mark.parametrize("loss", [plain, with_weights, of_logits])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients(loss: Callable[[Any], Tensor], tied: bool, head: str) -> None:
    net = built(entry=REGISTRIES["head"][head], knobs=CURVED.get(head), tied=tied)
    found, whole = two_threads.vocabulary_gradients(net, loss), loss(net)
    whole.backward()
    tables = [name for name, p in net.named_parameters() if len(p) == tiny_models.VOCAB]
    assert len(tables) == (1 if tied else 2)
    for own in found:
        torch.testing.assert_close(own["loss"], whole.detach(), rtol=1e-12, atol=1e-12)
    for name, p in net.named_parameters():
        if name in tables:  # each device has the gradient of its rows
            first, second = (own[name] for own in found)
            assert not first[32:].any() and not second[:32].any()
            torch.testing.assert_close(first + second, p.grad, rtol=1e-9, atol=1e-12, msg=name)
            continue
        for own in found:
            torch.testing.assert_close(own[name], p.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("head", ["plain", "softcap"])
def test_scores_and_logits(head: str) -> None:
    net, example = built(entry=REGISTRIES["head"][head], knobs=CURVED.get(head)), weighted()
    example.targets[1] = net(example.inputs)[1].argmax(-1)
    losses, hits = net.token_scores(example)
    chosen, logits = net.scored_targets(example), net(example.inputs)
    assert hits.any() and not hits.all()

    def compared(own: Any) -> Tensor:
        for one, other in zip(
            (*own.token_scores(example), *own.scored_targets(example)), (losses, hits, *chosen), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own(example.inputs), logits.detach(), rtol=1e-12, atol=1e-12)
        return plain(own)

    two_threads.vocabulary_gradients(net, compared)


def test_several_tokens_ahead() -> None:
    """Further targets use the head again; the heads of the objective's own are whole."""
    net = built(entry=REGISTRIES["objective"]["multi_token"])
    further = torch.stack([tiny_models.tokens(2, 12, seed=i) for i in range(len(net.model.further))], dim=2)
    example = tiny_models.example(2, 12)
    example.further, example.further_weights = further, torch.ones(further.shape, dtype=torch.float64)

    def ahead(own: Any) -> Tensor:
        total: Tensor = own.loss(example).total
        return total

    found, whole = two_threads.vocabulary_gradients(net, ahead), ahead(net)
    torch.testing.assert_close(found[0]["loss"], whole.detach(), rtol=1e-12, atol=1e-12)


def test_rows_that_do_not_divide() -> None:
    net = tiny_models.model()
    three = Devices(3, 0, lambda x: x, lambda t, axis: t)
    with pytest.raises(UserError, match=r"64 rows[\s\S]*over 3 devices[\s\S]*try: model.vocab_size=66"):
        DividedVocabulary(net.model.embed_tokens, net.lm_head, three)
