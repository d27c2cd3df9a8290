"""Maps of the output head's logits: (..., V) -> (..., V), each token by itself, without trained weights."""

import pytest
import torch
from torch import nn

from ablatio.model.cross_entropy import linear_cross_entropy, token_scores
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_stack_parts, tiny_models

KINDS = ("head",)
V = tiny_models.VOCAB


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_keeps_shape_and_dtype(part: PartSpec, dtype: torch.dtype) -> None:
    head = sample_stack_parts.head(part).to(dtype)
    for shape in ((V,), (3, V), (2, 3, V)):
        logits = checks.randn(*shape, dtype=torch.float64).to(dtype) * 10
        with checks.unchanged(part, logits), checks.draws_nothing(part, "in forward"):
            checks.same_shape(part, logits, head(logits))


def test_has_no_trained_weights(part: PartSpec) -> None:
    """The loss forms logits by blocks and computes no gradient but those of hidden states and matrix."""
    trained = [name for name, _ in sample_stack_parts.head(part).named_parameters()]
    assert not trained, f"{checks.label(part)}: has the trained weights {', '.join(trained)}; a head has none"


def test_treats_each_token_by_itself(part: PartSpec) -> None:
    head, logits = sample_stack_parts.head(part), checks.randn(6, V, dtype=torch.float64) * 20
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    checks.near(part, head(logits[order]), head(logits)[order], "tokens in another order", 1e-12)


def test_is_elementwise_if_it_says_so(part: PartSpec) -> None:
    """A head with the fact maps half of the logits as it maps them among all; without it nothing is promised."""
    if not part.facts["elementwise"]:
        pytest.skip("it does not say that it is elementwise")
    head, logits = sample_stack_parts.head(part), checks.randn(6, V, dtype=torch.float64) * 20
    checks.near(part, head(logits[:, : V // 2]), head(logits)[:, : V // 2], "half of the logits alone", 1e-12)


def test_gradients(part: PartSpec) -> None:
    head = sample_stack_parts.head(part)
    checks.module_gradients_agree(part, head, head, checks.randn(3, V, dtype=torch.float64) * 10)


def test_finite_at_extremes(part: PartSpec) -> None:
    head = sample_stack_parts.head(part).float()
    for value in (1e4, -1e4, 0.0, 1e-30):
        logits = torch.full((2, V), value, requires_grad=True)
        checks.finite(part, mapped := head(logits), f"at {value:g}")
        (gradient,) = torch.autograd.grad(mapped.sum(), logits)
        checks.finite(part, gradient, f"in the gradient at {value:g}")


def test_loss_and_scores_by_blocks_are_those_of_the_mapped_logits(part: PartSpec) -> None:
    head, targets = sample_stack_parts.head(part), torch.arange(7) % V
    hidden, matrix = (checks.randn(n, 8, seed=n, dtype=torch.float64).requires_grad_() for n in (7, V))
    weights = torch.linspace(0, 1, 7, dtype=torch.float64)
    loss = linear_cross_entropy(hidden, matrix, targets, weights, chunk=3, z_loss=0.1, smoothing=0.2, logit_map=head)
    logits = head(hidden @ matrix.T)
    plain = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    wanted = ((plain + 0.1 * logits.logsumexp(-1).square()) * weights).sum()
    checks.near(part, loss, wanted, "the loss by blocks", 1e-10)
    for found, expected in zip(*(torch.autograd.grad(y, (hidden, matrix)) for y in (loss, wanted)), strict=True):
        checks.near(part, found, expected, "the gradient by blocks", 1e-10)
    losses, hits = token_scores(hidden, matrix, targets, chunk=3, logit_map=head)
    checks.near(part, losses, nn.functional.cross_entropy(logits, targets, reduction="none"), "scores", 1e-10)
    assert torch.equal(hits, logits.argmax(-1) == targets), f"{checks.label(part)}: another top token"
