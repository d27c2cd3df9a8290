"""Embeddings in isolation: rows of the token table (B, T, W) and ids (B, T) -> (B, T, D)."""

import torch
from torch import Tensor, nn

from ablatio.model.context import make_context
from ablatio.model.kv_cache import KVCache
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_stack_parts, tiny_models

KINDS = ("embedding",)
D, T = 16, 12


def _inputs(width: int) -> tuple[Tensor, Tensor]:
    return checks.randn(3, T, width, dtype=torch.float64), tiny_models.tokens(3, T)


def _enter(
    module: nn.Module, x: Tensor, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None
) -> Tensor:
    ctx = make_context(tokens, None, "causal", segments, cache, torch.float64)
    entered: Tensor = module(x, tokens, ctx)
    return entered


def test_makes_the_width_of_the_model(part: PartSpec) -> None:
    module, width = sample_stack_parts.embedding(part, width=D)
    x, tokens = _inputs(width)
    with checks.unchanged(part, x), checks.draws_nothing(part, "in eval mode"):
        y = _enter(module.eval(), x, tokens)
    came = f"{checks.label(part)}: gives {tuple(y.shape)} {y.dtype}; expected {(3, T, D)} {x.dtype}"
    assert y.shape == (3, T, D) and y.dtype == x.dtype, came


def test_gradients(part: PartSpec) -> None:
    module, width = sample_stack_parts.embedding(part, width=D)
    x, tokens = _inputs(width)
    checks.module_gradients_agree(part, module.eval(), lambda x: _enter(module, x, tokens), x)


@torch.no_grad()
def test_sees_no_later_token(part: PartSpec) -> None:
    module, width = sample_stack_parts.embedding(part, width=D)
    x, tokens = _inputs(width)
    y, other = _enter(module, x, tokens), _enter(module, x.roll(1, 0), tokens.roll(1, 0))
    mixed = torch.cat([x[:, :7], x.roll(1, 0)[:, 7:]], 1), torch.cat([tokens[:, :7], tokens.roll(1, 0)[:, 7:]], 1)
    gap = (_enter(module, *mixed)[:, :7] - y[:, :7]).abs().max()
    assert gap == 0, f"{checks.label(part)}: later tokens change the embeddings before them by {gap:.3g}; expected 0"
    assert not torch.equal(y, other), f"{checks.label(part)}: all rows are embedded alike"


@torch.no_grad()
def test_documents_stay_apart(part: PartSpec) -> None:
    """Also when the pieces of a document alternate with those of another, as rows of one batch may."""
    module, width = sample_stack_parts.embedding(part, width=D)
    x, tokens = _inputs(width)
    for segments in (torch.arange(T) >= 5, torch.arange(T) % 4 >= 2):
        packed = _enter(module, x, tokens, segments.long().expand(3, -1))
        for document in (segments, ~segments):
            alone = _enter(module, x[:, document], tokens[:, document])
            checks.near(part, packed[:, document], alone, "a document in a packed row and alone", 1e-12)


@torch.no_grad()
def test_continues_from_the_cache(part: PartSpec) -> None:
    module, width = sample_stack_parts.embedding(part, width=D)
    x, tokens = _inputs(width)
    cache, found, start = KVCache(), list[Tensor](), 0
    for length in (1, 1, 4, 1, 5):
        found.append(_enter(module, x[:, start : start + length], tokens[:, start : start + length], cache=cache))
        cache.advance(length)
        start += length
    checks.near(part, torch.cat(found, 1), _enter(module, x, tokens), "steps with the cache and one pass", 1e-12)
