"""Knowledge distillation: training on the predictions of a teacher model (Hinton et al. 2015, arXiv:1503.02531)."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import Fraction, Positive, Schedulable, objectives, rule
from ablatio.model.cross_entropy import linear_divergence
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio_std.objectives.autoregressive import NextToken


@objectives.register("distillation", paper="arXiv:1503.02531")
class Distillation(NextToken):
    """hard * -log p(x) + (1 - hard) t^2 KL(q^t || p^t), q of the teacher and p of the student, from logits / t.

    The factor t^2 keeps the gradient of the soft part as large as that of the hard part.  The teacher is the newest
    checkpoint of a run with the same tokenizer, of any architecture and size; it is frozen.
    """

    metrics = ("train/divergence",)

    def __init__(
        self,
        *,
        teacher: Annotated[str | None, "folder of the teacher's run"] = None,
        temperature: Annotated[float, Positive, Schedulable()] = 2.0,
        hard: Annotated[float, Fraction, Schedulable(), "weight of the loss on the text's own next tokens"] = 0.5,
    ) -> None:
        self.teacher, self.temperature, self.hard = teacher, temperature, hard

    def learn_from(self, model: LanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        teacher = self.model.to(example.inputs.device)
        with torch.no_grad():
            target = teacher.scaled(teacher.hidden(example)).flatten(0, 1)  # (B T, D of the teacher)
        weights = None if example.weights is None else example.weights.flatten()
        computed: list[Tensor] = []

        # Called by the model with its hidden states, so that the student is run once for both parts of the loss.
        def divergence(hidden: Tensor) -> Tensor:
            student = model.scaled(hidden).flatten(0, 1)  # (B T, D)
            matrices = model.lm_head.weight, teacher.lm_head.weight
            computed.append(
                linear_divergence(student, matrices[0], target, matrices[1], weights, temperature=self.temperature)
            )
            return (1 - self.hard) * self.temperature**2 * computed[0]

        total, count, measures = model.loss(example, share=self.hard, beside=divergence)
        return Loss(total, count, measures | {"train/divergence": computed[0].detach() / count})


rule(
    when="objective.name == 'distillation' and objective.teacher is None",
    why="objective=distillation needs the run folder of a teacher, and objective.teacher is null",
    fix="objective.teacher=runs/NAME",
    where="objective.teacher",
)
