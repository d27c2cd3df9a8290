"""Rewards made of others: sums of rules, a trained model, and step by step."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import OptionOf, rewards, rule
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer, ReasoningStep

Judge = Callable[[Answer], float]


def _function(name: str, asker: str) -> Judge:
    """A rule by name, with its defaults."""
    if rewards[name].wiring != ("answer",):
        known = ", ".join(e.name for e in rewards if e.wiring == ("answer",))
        raise UserError(f"reward={asker} takes functions of one answer, and {name} is none; there are {known}")
    made: Any = rewards.build(name)
    return made  # type: ignore[no-any-return]


@rewards.register("rule", paper="arXiv:2501.12948")
class Rule:
    """sum_i w_i f_i(answer): f_i functions that a plugin registered under their names.  N answers -> (N,)"""

    def __init__(
        self,
        *,
        functions: Annotated[tuple[str, ...], OptionOf("reward"), "rules by name"] = ("exact_answer",),
        weights: Annotated[list[float] | None, "one for each; by default all 1"] = None,
    ) -> None:
        self.functions = [_function(name, "rule") for name in functions]
        self.weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(self.weights) != len(functions):
            came = f"{len(self.weights)} numbers for {len(functions)} functions ({', '.join(functions)})"
            raise UserError(f"reward.weights: {came}; one for each was expected\n    try: reward.weights=null")

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        pairs = list(zip(self.weights, self.functions, strict=True))
        return torch.tensor([sum(w * f(a) for w, f in pairs) for a in answers], dtype=torch.float32)


@rewards.register("model", paper="arXiv:2203.02155")
class Model:
    """(r(prompt, answer) - shift) / scale, r a reward model that a run of task=reward trained.  N answers -> (N,)"""

    def __init__(
        self,
        open_run: Callable[[str], Callable[[Sequence[Answer]], Tensor]],
        *,
        path: Annotated[str, "folder of the run"] = "",
        shift: Annotated[float, "what counts as 0"] = 0.0,
        scale: Annotated[float, "what counts as 1"] = 1.0,
    ) -> None:
        if not path:
            raise UserError("reward=model needs the folder of a run that trained one\n    try: reward.path=runs/reward")
        self.score, self.shift, self.scale = open_run(path), shift, scale

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        return (self.score(answers) - self.shift) / self.scale


@rewards.register("process", paper="arXiv:2305.20050")
class Process:
    """Each step of an answer earns what a rule says of it, at its last token: N answers -> lists of steps.

    Steps end where `separator` stands.  `of=each` judges a step by itself, `gain` the answer so far less what it was.
    """

    per_step = True

    def __init__(
        self,
        *,
        function: Annotated[str, OptionOf("reward"), "a rule by name"] = "arithmetic",
        separator: Annotated[str, "between steps"] = "\n",
        of: Literal["each", "gain"] = "each",
    ) -> None:
        self.function, self.separator, self.of = _function(function, "process"), separator, of

    def __call__(self, answers: Sequence[Answer]) -> list[list[ReasoningStep]]:
        return [list(self._steps(a)) for a in answers]

    def _steps(self, answer: Answer) -> list[ReasoningStep]:
        ends = [m.end() for m in re.finditer(re.escape(self.separator), answer.text)] if self.separator else []
        found, start, before = [], 0, 0.0
        for end in [*ends, len(answer.text)]:
            part = answer.text[start if self.of == "each" else 0 : end]
            if not answer.text[start:end].strip():
                continue
            score = self.function(replace(answer, text=part))
            found.append(ReasoningStep(end, score if self.of == "each" else score - before))
            start, before = end, score
        return found


rule(
    when="reward.name == 'model' and reward.path == ''",
    why="reward=model asks a trained reward model, and reward.path names none",
    fix="reward.path=runs/reward",
)
