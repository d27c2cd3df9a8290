"""Rewards from trained models: a language model that judges answers, and a model of the steps of a solution."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import rewards, rule
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer, ReasoningStep

from .composite import steps_of

PLACES = re.compile(r"\{(prompt|answer|criteria)\}")
FORM = """Question: {prompt}

Answer: {answer}

{criteria} Is the answer good? """


@rewards.register("judge", paper="arXiv:2306.05685")
class Judge:
    """p(yes) / (p(yes) + p(no)), p the probability that a language model gives to a verdict.  N answers -> (N,).

    The model reads `form`, in which {prompt}, {answer} and {criteria} are replaced, and is asked for log p(yes) and
    log p(no) as continuations.  It is the model of a run, of any tokenizer; one trained on conversations is asked in
    its template.
    """

    def __init__(
        self,
        open_model: Callable[[str, str], Any],
        *,
        path: Annotated[str, "folder of the run whose model judges"] = "",
        criteria: Annotated[str, "what a good answer is"] = "A good answer is true, helpful and harmless.",
        form: Annotated[str, "what the model reads, with {prompt}, {answer} and {criteria}"] = FORM,
        yes: Annotated[str, "verdict on a good answer"] = "Yes",
        no: Annotated[str, "verdict on a bad answer"] = "No",
    ) -> None:
        if not path:
            raise UserError("reward=judge needs the run folder of a language model\n    try: reward.path=runs/NAME")
        if "{answer}" not in form:
            raise UserError("reward.form has no {answer}, so every answer would be judged alike\n    try: reward.form="
                            "'{prompt} {answer} Good? '")  # fmt: skip
        if yes == no or not (yes and no):
            raise UserError(f"reward.yes={yes!r} and reward.no={no!r}; expected two verdicts\n    try: reward.no=No")
        self.model, self.criteria, self.form, self.verdicts = open_model(path, "reward.path"), criteria, form, (yes, no)

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        asked = [self._asked(answer) for answer in answers]
        yes, no = (self.model.logprobs(asked, [verdict] * len(asked)) for verdict in self.verdicts)
        # p(yes) / (p(yes) + p(no)) from logarithms: both probabilities may underflow.
        return torch.sigmoid(yes - no)

    def _asked(self, answer: Answer) -> str:
        held = {"prompt": answer.prompt.strip(), "answer": answer.text.strip(), "criteria": self.criteria}
        return PLACES.sub(lambda match: held[match[1]], self.form)  # one pass: an answer may contain such places


@rewards.register("process_model", paper="arXiv:2305.20050")
class ProcessModel:
    """sigmoid(w . h) at the end of each step of a solution: a trained model's probability that the step is correct.

    A step is a line.  of=each rewards each step; of=product and of=min give the whole answer the product or the least
    of its steps' probabilities, at its last step.  The model is that of a run of task=process_reward.  N answers ->
    lists of steps.
    """

    per_step = True

    def __init__(
        self,
        open_run: Callable[[str], Any],
        *,
        path: Annotated[str, "folder of the process reward model's run"] = "",
        of: Annotated[Literal["each", "product", "min"], "reward of each step or of the whole answer"] = "product",
    ) -> None:
        if not path:
            raise UserError(
                "reward=process_model needs the run folder of a process reward model\n    try: reward.path=runs/steps"
            )
        self.model, self.of = open_run(path), of

    def __call__(self, answers: Sequence[Answer]) -> list[list[ReasoningStep]]:
        ends = [[end for _, end in steps_of(answer.text)] for answer in answers]
        found = zip(ends, self.model.at(answers, ends), strict=True)
        return [self._placed([ReasoningStep(*pair) for pair in zip(at, s.sigmoid().tolist(), strict=True)])
                for at, s in found]  # fmt: skip

    def _placed(self, steps: list[ReasoningStep]) -> list[ReasoningStep]:
        if self.of == "each" or not steps:
            return steps
        each = torch.tensor([step.score for step in steps])
        # At the end: the product is known only when all steps are.
        return [ReasoningStep(steps[-1].end, float(each.prod() if self.of == "product" else each.min()))]


for _name, _folder in (("judge", "NAME"), ("process_model", "steps")):
    rule(
        when=f"reward.name == '{_name}' and reward.path == ''",
        why=f"reward={_name} needs the run folder of a trained model, and reward.path is empty",
        fix=f"reward.path=runs/{_folder}",
    )
