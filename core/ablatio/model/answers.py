"""Answers that a model gave, and what a reward says of them, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablatio.errors import UserError


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one prompt; truth: what the data holds for right, if it says; more: whatever else it says."""

    prompt: str
    text: str
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    truth: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of an answer earned; end: letters of the answer up to the step's end."""

    end: int
    score: float


class RewardError(UserError):
    """A reward gave what cannot be learnt from."""


def judged(reward: Any, name: str, answers: Sequence[Answer]) -> tuple[Tensor, list[list[Step]] | None]:
    """(score of each answer (N,), the steps of each if the reward judges steps); RewardError where it says nonsense."""
    said = reward(answers)
    if _is_steps(said):
        _check(name, torch.tensor([len(s) for s in said]).float(), len(said), answers)
        flat = torch.tensor([step.score for steps in said for step in steps], dtype=torch.float32)
        _check(name, flat, len(flat), answers, of=[a for a, steps in zip(answers, said, strict=True) for _ in steps])
        return torch.tensor([sum(step.score for step in steps) for steps in said], dtype=torch.float32), said
    scores = torch.as_tensor(said)
    _check(name, scores, len(scores) if scores.dim() == 1 else -1, answers)
    return scores.detach().float(), None


def _is_steps(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(s, list) for s in said) and bool(said)


def _check(
    name: str, scores: Tensor, count: int, answers: Sequence[Answer], of: Sequence[Answer] | None = None
) -> None:
    expected = len(answers if of is None else of)
    if count != expected:
        raise RewardError(
            f"reward={name} gave {'x'.join(map(str, scores.shape)) or 'one number'} for {expected} answers; one number "
            f"for each answer was expected\n    try: ablatio show reward={name}"
        )
    bad = (~torch.isfinite(scores)).nonzero()[:, 0].tolist()
    if bad:
        answer = (answers if of is None else of)[bad[0]]
        raise RewardError(
            f"reward={name} gave {float(scores[bad[0]])} for {len(bad)} of {expected} answers, the first to "
            f"{answer.prompt[-60:]!r}: {answer.text[:60]!r}; a finite number was expected\n    "
            f"try: ablatio show reward={name}"
        )


def token_rewards(
    scores: Tensor,
    steps: Sequence[Sequence[Step]] | None,
    mask: Tensor,
    answers: Sequence[Answer],
    decode: Callable[[Sequence[int]], str],
) -> Tensor:
    """Where rewards are earned: at the token that ends a step, or at an answer's last.  (N,) and (N, T) -> (N, T)"""
    last = (mask.sum(1).long() - 1).clamp(min=0)
    if steps is None:
        return torch.zeros_like(mask).scatter(1, last[:, None], scores[:, None].to(mask)) * mask
    found = torch.zeros_like(mask)
    for row, (answer, of_row) in enumerate(zip(answers, steps, strict=True)):
        ends = [len(decode(answer.ids[: t + 1])) for t in range(len(answer.ids))]
        for step in of_row:
            at = next((t for t, end in enumerate(ends) if end >= step.end), int(last[row]))
            found[row, at] += step.score
    return found * mask
