"""Shortcuts in isolation: one before each layer of a stack and one after the last, (B, T, D) -> same."""

from typing import Any

import torch
from torch import Tensor, nn

from ablatio.model.context import make_context
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_stack_parts, tiny_models

KINDS = ("shortcut",)
D, T, LAYERS = 16, 6, 5


def _run(shortcuts: list[nn.Module], x: Tensor, tokens: Tensor, seen: list[Any] | None = None) -> Tensor:
    """A stack whose layer l, with attention's keys k = cos(x) and values v = sin(x), is x + tanh(x + l) + k v / 2."""
    ctx = make_context(tokens, None, "causal", None, None, x.dtype)
    for layer, part in enumerate(shortcuts):
        x = part(x, ctx)
        if seen is not None:
            seen.append(x)
        if layer < len(shortcuts) - 1:
            of_keys, of_values = ctx.inputs(layer, x)
            x = x + torch.tanh(x + layer) + of_keys.cos() * ctx.with_values(layer, of_values.sin(), x) / 2
    return x


def _inputs() -> tuple[Tensor, Tensor]:
    return checks.randn(3, T, D, dtype=torch.float64), tiny_models.tokens(3, T)


def test_keeps_shape_and_dtype(part: PartSpec) -> None:
    shortcuts, (x, tokens), seen = sample_stack_parts.shortcut(part, n_layers=LAYERS), _inputs(), list[Any]()
    with checks.unchanged(part, x), checks.draws_nothing(part, "in eval mode"):
        _run([s.eval() for s in shortcuts], x, tokens, seen)
    for y in seen:
        checks.same_shape(part, x, y)


def test_gradients(part: PartSpec) -> None:
    shortcuts, (x, tokens) = nn.ModuleList(sample_stack_parts.shortcut(part, n_layers=LAYERS)), _inputs()
    checks.module_gradients_agree(part, shortcuts.eval(), lambda x: _run([*shortcuts], x, tokens), x)


@torch.no_grad()
def test_a_pass_leaves_nothing_behind(part: PartSpec) -> None:
    """States live in the pass: two passes at a time, or one after another, do not see each other."""
    shortcuts, (x, tokens) = sample_stack_parts.shortcut(part, n_layers=LAYERS), _inputs()
    first = _run(shortcuts, x, tokens)
    _run(shortcuts, x.flip(0), tokens.flip(0))
    assert torch.equal(_run(shortcuts, x, tokens), first), f"{checks.label(part)}: another pass changes the result"
    held = [name for s in shortcuts for name, value in vars(s).items() if isinstance(value, Tensor)]
    assert not held, f"{checks.label(part)}: stores {held} on a module; use ctx.passed_on"


@torch.no_grad()
def test_treats_each_token_by_itself(part: PartSpec) -> None:
    shortcuts, (x, tokens) = sample_stack_parts.shortcut(part, n_layers=LAYERS), _inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = _run(shortcuts, x[:, order], tokens[:, order])
    checks.near(part, moved, _run(shortcuts, x, tokens)[:, order], "tokens in another order", 1e-12)


@torch.no_grad()
def test_embeddings_without_tokens_pass(part: PartSpec) -> None:
    """Virtual tokens have embeddings and no ids."""
    shortcuts, (x, tokens) = sample_stack_parts.shortcut(part, n_layers=LAYERS), _inputs()
    ctx = make_context(tokens, None, "causal", None, None, x.dtype)
    object.__setattr__(ctx, "tokens", None)
    for s in shortcuts:
        checks.same_shape(part, x, s(x, ctx))
