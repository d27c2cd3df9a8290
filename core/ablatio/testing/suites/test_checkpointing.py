"""Checkpointing: less memory is kept for the backward pass, and all results of a step stay the same."""

import torch
from torch import Tensor

from ablatio.model.language_model import LanguageModel
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import checks, sample_parts, tiny_models

KINDS = ("checkpointing",)


def _gradients(net: LanguageModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def _plain() -> LanguageModel:
    return sample_parts.recomputed(REGISTRIES["checkpointing"][REGISTRIES["checkpointing"].default])


def test_loss_and_gradients_are_those_of_the_plain_pass(part: PartSpec) -> None:
    """With dropout, to the last bit; and the random numbers that follow are the same."""
    seen = []
    for net in (_plain(), sample_parts.recomputed(part)):
        torch.manual_seed(1)
        loss, _ = sample_parts.kept_for_backward(net)
        loss.backward()  # type: ignore[no-untyped-call]
        seen.append((loss, _gradients(net), torch.rand(3)))
    (loss, gradients, after), (ours, our_gradients, our_after) = seen
    assert torch.equal(ours, loss), f"{checks.label(part)}: the loss {loss:.6f} becomes {ours:.6f}"
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(our_gradients[name], gradient), f"{checks.label(part)}: the gradient of {name} is another"
    assert torch.equal(our_after, after), f"{checks.label(part)}: random numbers drawn after a step differ"


def test_keeps_no_more_than_the_plain_pass(part: PartSpec) -> None:
    plain, ours = (sample_parts.kept_for_backward(net)[1] for net in (_plain(), sample_parts.recomputed(part)))
    assert ours <= plain, f"{checks.label(part)}: {ours} bytes are kept for the backward pass, {plain} without it"


def test_scores_and_gradients_of_accumulated_batches(part: PartSpec) -> None:
    """Two passes before one backward pass, as in comparisons of two texts."""
    found = []
    for net in (_plain(), sample_parts.recomputed(part)):
        torch.manual_seed(1)
        losses = [tiny_models.mean_loss(net, tiny_models.example(seed=seed)) for seed in (0, 1)]
        (losses[0] * losses[1]).backward()  # type: ignore[no-untyped-call]
        found.append(_gradients(net))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), f"{checks.label(part)}: the gradient of {name} is another"


@torch.no_grad()
def test_reading_is_as_it_was(part: PartSpec) -> None:
    net, plain = sample_parts.recomputed(part).eval(), _plain().eval()
    assert torch.equal(net(tiny_models.tokens()), plain(tiny_models.tokens())), f"{checks.label(part)}: logits change"


def test_gradients_pass_what_is_frozen(part: PartSpec) -> None:
    """Trained layers after a frozen embedding still get gradients."""
    net = sample_parts.recomputed(part)
    net.requires_grad_(False)
    trained = list(net.model.layers[2].requires_grad_().parameters())
    sample_parts.kept_for_backward(net)[0].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in trained), f"{checks.label(part)}: a frozen embedding stops the gradient"
