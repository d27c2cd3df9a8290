"""Learning from the distribution of another model (Hinton et al. 2015, arXiv:1503.02531)."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import Fraction, Positive, objectives, rule
from ablatio.model.cross_entropy import linear_divergence
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel, Loss
from ablatio_std.objectives.autoregressive import NextToken


@objectives.register("distillation", paper="arXiv:1503.02531")
class Distillation(NextToken):
    """hard * -log p(x) + (1 - hard) t^2 KL(q^t || p^t): the teacher's q and the student's p, softened by logits / t.

    t^2 keeps the gradient of the soft part as large as that of the hard one.  The teacher is the newest checkpoint of
    a run with the same tokenizer; its architecture and size are its own, and it does not learn.
    """

    metrics = ("train/divergence",)

    def __init__(
        self,
        *,
        teacher: Annotated[str | None, "folder of the run to learn from"] = None,
        temperature: Annotated[float, Positive] = 2.0,
        hard: Annotated[float, Fraction, "share of the text's own next tokens"] = 0.5,
    ) -> None:
        self.teacher, self.temperature, self.hard = teacher, temperature, hard

    def learn_from(self, model: LanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        teacher = self.model.to(example.inputs.device)
        with torch.no_grad():
            known = teacher.scaled(teacher.hidden(example)).flatten(0, 1)
        weights = None if example.weights is None else example.weights.flatten()
        found: list[Tensor] = []

        def divergence(hidden: Tensor) -> Tensor:
            mine = model.scaled(hidden).flatten(0, 1)
            matrices = model.lm_head.weight, teacher.lm_head.weight
            found.append(
                linear_divergence(mine, matrices[0], known, matrices[1], weights, temperature=self.temperature)
            )
            return (1 - self.hard) * self.temperature**2 * found[0]

        total, count, measures = model.loss(example, share=self.hard, beside=divergence)
        return Loss(total, count, measures | {"train/divergence": found[0].detach() / count})


rule(
    when="objective.name == 'distillation' and objective.teacher is None",
    why="distillation learns from another run, and objective.teacher names none",
    fix="objective.teacher=runs/NAME",
    where="objective.teacher",
)
