"""Synthetic batches for alignment methods: every input that a method may request, consistent with the others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ablatio.registry.registry import PartSpec
from ablatio.testing import sample_parts

B, K, T = 6, 4, 7
POLICY = ("chosen", "rejected", "chosen_tokens", "rejected_tokens", "logps", "values", "entropy")


def batch(data: str, seed: int = 0, *, group: int = 1) -> dict[str, Any]:
    """All inputs for one form of data, in float64; the policy differs somewhat from its reference."""
    generator = torch.Generator().manual_seed(seed)
    make = {"pairs": _pairs, "rankings": _rankings, "labelled": _labelled}
    return _prompts(generator, group) if data == "prompts" else make[data](generator)


def logits() -> Tensor:
    """Logits of the next token after each of B prompts: (B, 40)."""
    return 3 * torch.randn(B, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def leaves(words: Mapping[str, Any], asked: list[str]) -> dict[str, Any]:
    """The inputs that a method requests; those computed by the policy require a gradient."""
    found = {w: words[w].detach().clone() if isinstance(words[w], Tensor) else words[w] for w in asked}
    return {w: x.requires_grad_() if w in POLICY else x for w, x in found.items()}


def made(part: PartSpec, knobs: Mapping[str, Any] | None = None) -> Any:
    """The alignment method, built from its knobs."""
    return sample_parts.made(part, knobs)


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _answers(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token log-probabilities, those of the reference, mask), each (..., T), for answers of unequal lengths."""
    length = torch.randint(2, T + 1, shape, generator=generator)
    mask = (torch.arange(T) < length[..., None]).double()
    tokens = -0.2 - 2 * _draw(generator, *shape, T)
    reference = tokens + (_draw(generator, *shape, T) - 0.5)
    return tokens * mask, reference.clamp(max=-1e-3) * mask, mask


def _pairs(generator: torch.Generator) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for which in ("chosen", "rejected"):
        tokens, reference, mask = _answers(generator, B)
        words |= {which: tokens.sum(1), f"ref_{which}": reference.sum(1), f"{which}_length": mask.sum(1).long()}
        words |= {f"{which}_tokens": tokens, f"ref_{which}_tokens": reference, f"{which}_mask": mask}
        words[f"{which}_collision"] = (-0.5 - _draw(generator, B, T)) * mask
    return words


def _rankings(generator: torch.Generator) -> dict[str, Any]:
    tokens, reference, mask = _answers(generator, B, K)
    present = torch.ones(B, K, dtype=torch.bool)
    present[0, -1] = False
    return {
        "logps": tokens.sum(2),
        "ref_logps": reference.sum(2),
        "length": mask.sum(2).long(),
        "scores": _draw(generator, B, K),
        "present": present,
    }


def _labelled(generator: torch.Generator) -> dict[str, Any]:
    tokens, reference, mask = _answers(generator, B)
    _, other_reference, _ = _answers(generator, B)
    return {
        "logps": tokens.sum(1),
        "ref_logps": reference.sum(1),
        "length": mask.sum(1).long(),
        "labels": torch.arange(B) % 3 != 0,
        "kl_logps": other_reference.sum(1) + 1,
        "ref_kl_logps": other_reference.sum(1),
    }


def _prompts(generator: torch.Generator, group: int) -> dict[str, Any]:
    count = B * group
    tokens, reference, mask = _answers(generator, count)
    rewards = _draw(generator, count)
    last = torch.nn.functional.one_hot(mask.sum(1).long() - 1, T)
    return {
        "rewards": rewards,
        "token_rewards": rewards[:, None] * last,
        "greedy_rewards": _draw(generator, B).repeat_interleave(group),
        "mask": mask,
        "logps": tokens,
        "old_logps": (tokens + 0.6 * (_draw(generator, count, T) - 0.5)) * mask,
        "ref_logps": reference,
        "values": _draw(generator, count, T) * mask,
        "old_values": _draw(generator, count, T) * mask,
        "entropy": _draw(generator, count, T) * mask,
        "tokens": mask.sum(),
        "max_length": T + 2,
    }
