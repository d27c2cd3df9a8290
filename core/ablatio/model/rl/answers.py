"""Sampled answers and their rewards, with checks of what a reward function returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablatio.errors import AblatioError, UserError


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one prompt; truth: the reference answer, if the data has one; more: other fields of the data."""

    prompt: str
    text: str
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    truth: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReasoningStep:
    """Score of one reasoning step of an answer; end: number of characters of the answer up to the step's end."""

    end: int
    score: float


class RewardError(UserError):
    """A reward function failed or returned values that cannot be trained on."""


def one_by_one(function: Callable[[Answer], float], name: str) -> Callable[[Sequence[Answer]], Tensor]:
    """Turn a function of one answer into a reward of a batch: (N,); an exception is reported with its answer."""

    def reward(answers: Sequence[Answer]) -> Tensor:
        scores = torch.empty(len(answers))
        for i, answer in enumerate(answers):
            try:
                scores[i] = float(function(answer))
            except AblatioError:
                raise
            except Exception as error:  # a plugin's function may raise any exception
                raise _raised(name, error, f"the answer to {_brief(answer)}") from error
        return scores

    return reward


def judged(reward: Any, name: str, answers: Sequence[Answer]) -> tuple[Tensor, list[list[ReasoningStep]] | None]:
    """Apply a reward; return the score of each answer (N,), and the scored steps of each if it scores steps.

    Raises RewardError if the reward raises, or does not return one finite number (or list of steps) per answer.
    """
    try:
        result = reward(answers)
    except AblatioError:
        raise
    except Exception as error:  # a plugin's reward may raise any exception
        raise _raised(name, error, f"{len(answers)} answers, the first to {_brief(answers[0])}") from error
    if _is_steps(result):
        _check(name, torch.tensor([len(s) for s in result]).float(), len(result), answers)
        flat = torch.tensor([step.score for steps in result for step in steps], dtype=torch.float32)
        _check(name, flat, len(flat), answers, of=[a for a, steps in zip(answers, result, strict=True) for _ in steps])
        return torch.tensor([sum(step.score for step in steps) for steps in result], dtype=torch.float32), result
    try:
        scores = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"reward={name} returned {type(result).__name__} {str(result)[:60]!r} for {len(answers)} answers; expected "
            f"one number for each answer\n    try: ablatio show reward={name}"
        ) from None
    _check(name, scores, len(scores) if scores.dim() == 1 else -1, answers)
    return scores.detach().float(), None


def _is_steps(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(s, list) for s in result) and bool(result)


def _check(
    name: str, scores: Tensor, count: int, answers: Sequence[Answer], of: Sequence[Answer] | None = None
) -> None:
    """Raise RewardError unless there is one finite score per answer, or per element of `of` (the answer of a step)."""
    expected = len(answers if of is None else of)
    if count != expected:
        raise RewardError(
            f"reward={name} returned {'x'.join(map(str, scores.shape)) or 'one number'} for {expected} answers; "
            f"expected one number for each answer\n    try: ablatio show reward={name}"
        )
    bad = (~torch.isfinite(scores)).nonzero()[:, 0].tolist()
    if bad:
        answer = (answers if of is None else of)[bad[0]]
        raise RewardError(
            f"reward={name} returned {float(scores[bad[0]])} for {len(bad)} of {expected} answers, the first to "
            f"{_brief(answer)}; expected a finite number\n    try: ablatio show reward={name}"
        )


def _brief(answer: Answer) -> str:
    """End of the prompt and start of the answer, for errors."""
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
    """Place each reward at the token that ends its step, or at the answer's last: (N,), mask (N, T) -> (N, T)."""
    last = (mask.sum(1).long() - 1).clamp(min=0)
    if steps is None:
        return torch.zeros_like(mask).scatter(1, last[:, None], scores[:, None].to(mask)) * mask
    found = torch.zeros_like(mask)
    for row, (answer, of_row) in enumerate(zip(answers, steps, strict=True)):
        places = step_tokens(answer.ids, [step.end for step in of_row], decode, int(last[row]))
        for at, step in zip(places, of_row, strict=True):
            found[row, at] += step.score
    return found * mask


def step_tokens(
    ids: Sequence[int], ends: Sequence[int], decode: Callable[[Sequence[int]], str], last: int
) -> list[int]:
    """Return the index of the token with which each step ends; ends: in characters; last: index if there is none."""
    # Decoding prefixes, not single tokens: a character may be spread over several tokens.
    lengths = [len(decode(ids[: t + 1])) for t in range(len(ids))]
    return [next((t for t, length in enumerate(lengths) if length >= end), last) for end in ends]
