"""Rewards built from others: weighted sums of rules, a trained reward model, and rewards per reasoning step."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import OptionOf, rewards, rule
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer, ReasoningStep

ScoreFunction = Callable[[Answer], float]


def _function(name: str, user: str) -> ScoreFunction:
    """Build a rule by name, with its default knobs, for the reward `user`."""
    if rewards[name].wiring != ("answer",):
        known = [e.name for e in rewards if e.wiring == ("answer",)]
        raise UserError(
            f"reward={user} takes functions of one answer, and {name} is not one; those are {', '.join(known)}\n"
            f"    try: reward={known[0]}"
        )
    made: Any = rewards.build(name)
    return made  # type: ignore[no-any-return]


@rewards.register("rule", paper="arXiv:2501.12948")
class Rule:
    """sum_i w_i f_i(answer), f_i registered functions of one answer.  N answers -> (N,)."""

    def __init__(
        self,
        *,
        functions: Annotated[tuple[str, ...], OptionOf("reward"), "names of the rules"] = ("exact_answer",),
        weights: Annotated[list[float] | None, "one weight per rule; null: all 1"] = None,
    ) -> None:
        self.functions = [_function(name, "rule") for name in functions]
        self.weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(self.weights) != len(functions):
            came = f"{len(self.weights)} numbers for {len(functions)} functions ({', '.join(functions)})"
            raise UserError(f"reward.weights has {came}; expected one for each\n    try: reward.weights=null")

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        pairs = list(zip(self.weights, self.functions, strict=True))
        return torch.tensor([sum(w * f(a) for w, f in pairs) for a in answers], dtype=torch.float32)


@rewards.register("model", paper="arXiv:2203.02155")
class Model:
    """(r(prompt, answer) - shift) / scale, r a reward model trained by a run of task=reward.  N answers -> (N,)."""

    def __init__(
        self,
        open_run: Callable[[str], Callable[[Sequence[Answer]], Tensor]],
        *,
        path: Annotated[str, "folder of the reward model's run"] = "",
        shift: Annotated[float, "subtracted from the model's reward"] = 0.0,
        scale: Annotated[float, "divisor of the shifted reward"] = 1.0,
    ) -> None:
        if not path:
            raise UserError("reward=model needs the run folder of a reward model\n    try: reward.path=runs/reward")
        self.score, self.shift, self.scale = open_run(path), shift, scale

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        return (self.score(answers) - self.shift) / self.scale


@rewards.register("process", paper="arXiv:2305.20050")
class Process:
    """Scores each reasoning step with a rule, and places the score at its last token.  N answers -> lists of steps.

    A step ends with `separator`.  of=each scores each step by itself, of=gain the answer so far minus its score before
    the step.
    """

    per_step = True

    def __init__(
        self,
        *,
        function: Annotated[str, OptionOf("reward"), "name of the rule"] = "arithmetic",
        separator: Annotated[str, "text that ends a step"] = "\n",
        of: Literal["each", "gain"] = "each",
    ) -> None:
        self.function, self.separator, self.of = _function(function, "process"), separator, of

    def __call__(self, answers: Sequence[Answer]) -> list[list[ReasoningStep]]:
        return [list(self._steps(a)) for a in answers]

    def _steps(self, answer: Answer) -> Iterator[ReasoningStep]:
        before = 0.0
        for start, end in steps_of(answer.text, self.separator):
            part = answer.text[start if self.of == "each" else 0 : end]
            # of=gain scores all of the answer so far: the gains telescope, and their sum is the score of the whole.
            score = self.function(replace(answer, text=part))
            yield ReasoningStep(end, score if self.of == "each" else score - before)
            before = score


def steps_of(text: str, separator: str = "\n") -> Iterator[tuple[int, int]]:
    """Yield the steps of an answer as (start, end) in characters, the separator included; blank ones are left out."""
    start = 0
    ends = [match.end() for match in re.finditer(re.escape(separator), text)] if separator else []
    for end in [*ends, len(text)]:
        if text[start:end].strip():
            yield start, end
            # Only after a step with text: blank lines go to the step that follows.
            start = end


rule(
    when="reward.name == 'model' and reward.path == ''",
    why="reward=model needs the run folder of a trained reward model, and reward.path is empty",
    fix="reward.path=runs/reward",
)
