"""Answers that a model gave, and what a reward says of them, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablatio.errors import AblatioError, UserError


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
class ReasoningStep:
    """What one step of an answer earned; end: letters of the answer up to the step's end."""

    end: int
    score: float


class RewardError(UserError):
    """A reward gave what cannot be learnt from."""


def one_by_one(function: Callable[[Answer], float], name: str) -> Callable[[Sequence[Answer]], Tensor]:
    """A reward out of a function of one answer; where that raises, the error says for which answer."""

    def reward(answers: Sequence[Answer]) -> Tensor:
        found = torch.empty(len(answers))
        for i, answer in enumerate(answers):
            try:
                found[i] = float(function(answer))
            except AblatioError:
                raise
            except Exception as error:  # a function of a plugin raises what it likes
                raise _raised(name, error, f"the answer to {_brief(answer)}") from error
        return found

    return reward


def judged(reward: Any, name: str, answers: Sequence[Answer]) -> tuple[Tensor, list[list[ReasoningStep]] | None]:
    """(score of each answer (N,), the steps of each if the reward judges steps); RewardError where it says nonsense."""
    try:
        said = reward(answers)
    except AblatioError:
        raise
    except Exception as error:
        raise _raised(name, error, f"{len(answers)} answers, the first to {_brief(answers[0])}") from error
    if _is_steps(said):
        _check(name, torch.tensor([len(s) for s in said]).float(), len(said), answers)
        flat = torch.tensor([step.score for steps in said for step in steps], dtype=torch.float32)
        _check(name, flat, len(flat), answers, of=[a for a, steps in zip(answers, said, strict=True) for _ in steps])
        return torch.tensor([sum(step.score for step in steps) for steps in said], dtype=torch.float32), said
    try:
        scores = torch.as_tensor(said)
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"reward={name} gave {type(said).__name__} {str(said)[:60]!r} for {len(answers)} answers; one number for "
            f"each answer was expected\n    try: ablatio show reward={name}"
        ) from None
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
            f"{_brief(answer)}; a finite number was expected\n    try: ablatio show reward={name}"
        )


def _brief(answer: Answer) -> str:
    return f"{answer.prompt[-60:]!r}: {answer.text[:60]!r}"


def _raised(name: str, error: Exception, where: str) -> RewardError:
    return RewardError(
        f"reward={name} raised {type(error).__name__}: {error} on {where}\n    try: ablatio show reward={name}"
    )


def token_rewards(
    scores: Tensor,
    steps: Sequence[Sequence[ReasoningStep]] | None,
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
