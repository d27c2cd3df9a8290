"""Knowledge distillation: training on the predictions of a teacher model (Hinton et al. 2015, arXiv:1503.02531)."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import Fraction, Positive, Schedulable, objectives, rule
from ablatio.model.cross_entropy import linear_divergence
from ablatio.model.example import PADDING, Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio_std.objectives.autoregressive import NextToken


@objectives.register("distillation", paper="arXiv:1503.02531")
class Distillation(NextToken):
    """hard * -log p(x) + (1 - hard) t^2 KL(q^t || p^t), q of the teacher and p of the student, from logits / t.

    The factor t^2 keeps the gradient of the soft part as large as that of the hard part.  The teacher is the newest
    checkpoint of a run with the same tokenizer, of any architecture and size; it is frozen.
    """

    metrics = ("train/divergence",)

    reads_head = True

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

    def states_of(self, teacher: LanguageModel, example: Example) -> Tensor:
        """Return the teacher's hidden states from which the targets are predicted: (B, T, D)."""
        return teacher.hidden(example)

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        teacher = self.model.to(example.inputs.device)
        with torch.no_grad():
            # Hidden states, not logits, are kept: linear_divergence forms the logits of both models by blocks.
            target = teacher.scaled(self.states_of(teacher, example)).flatten(0, 1)  # (B T, D of the teacher)
        weights = None if example.weights is None else example.weights.flatten()
        computed: list[Tensor] = []

        # Called by the model with its hidden states, so that the student is run once for both parts of the loss.
        def divergence(hidden: Tensor) -> Tensor:
            student = model.scaled(hidden).flatten(0, 1)  # (B T, D)
            matrices = model.lm_head.weight, teacher.lm_head.weight
            given: dict[str, Any] = {"logit_map": model.logit_map, "other_map": teacher.logit_map}
            given["temperature"] = self.temperature
            computed.append(linear_divergence(student, matrices[0], target, matrices[1], weights, **given))
            return (1 - self.hard) * self.temperature**2 * computed[0]

        total, count, measures = model.loss(example, share=self.hard, beside=divergence)
        return Loss(total, count, measures | {"train/divergence": computed[0].detach() / count})


@objectives.register("context_distillation", paper="arXiv:2209.15189")
class ContextDistillation(Distillation):
    """KL(q(. | c, x) || p(. | x)): the student learns without a context c to predict as the teacher does with it.

    The teacher, usually the run that the student starts from, reads c after the token that opens each document, the
    student never does.  With `hard` a share of the loss is on the text's own next tokens.  c may be instructions, a
    dialogue (arXiv:2112.00861, section 2.2) or worked examples; the teacher's rows are longer by it, so its positions
    must reach beyond the row.
    """

    waits = "where the context is inserted depends on where documents begin"

    def __init__(
        self,
        eos: int,
        *,
        teacher: Annotated[str | None, "folder of the teacher's run"] = None,
        context: Annotated[str, "text that the teacher reads at the beginning of each document"] = "",
        temperature: Annotated[float, Positive, Schedulable()] = 1.0,
        hard: Annotated[float, Fraction, Schedulable(), "weight of the loss on the text's own next tokens"] = 0.0,
    ) -> None:
        super().__init__(teacher=teacher, temperature=temperature, hard=hard)
        self.eos, self.context = eos, context
        self.ids: list[int] = []

    def take_context(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    def states_of(self, teacher: LanguageModel, example: Example) -> Tensor:
        row, places = with_context(example, self.ids, self.eos)
        states = teacher.hidden(row)
        return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[-1]))


def with_context(example: Example, context: Sequence[int], eos: int) -> tuple[Example, Tensor]:
    """Insert a context into each document of the inputs: (the longer rows, where each input's target is predicted).

    It follows the token that opens a document, from whose place the first token is predicted after the context; in a
    document that began before the row it comes first.  places: (B, T).
    """
    rows, numbers, places = [], [], []
    inputs = example.inputs.tolist()
    documents = example.segments.tolist() if example.segments is not None else [[0] * len(row) for row in inputs]
    for tokens, segments in zip(inputs, documents, strict=True):
        made, of, at = list[int](), list[int](), list[int]()
        for i, (token, segment) in enumerate(zip(tokens, segments, strict=True)):
            begins = segment != PADDING and (i == 0 or segment != segments[i - 1])
            # eos opens a document and stays in front of the context: the student reads it too, and the positions of
            # both begin with it.
            piece = [] if not begins else [token, *context] if token == eos else [*context, token]
            piece = piece or [token]
            made += piece
            of += [segment] * len(piece)
            at.append(len(made) - 1)
        rows.append(made)
        numbers.append(of)
        places.append(at)
    longest = max(map(len, rows))
    filled = [row + [eos] * (longest - len(row)) for row in rows]
    marks = [row + [PADDING] * (longest - len(row)) for row in numbers]
    device = example.inputs.device
    tokens, of_tokens = torch.tensor(filled, device=device), torch.tensor(marks, device=device)
    alone = example.segments is None  # one document per row, and rows of one length: no mask is needed
    return Example(tokens, tokens, segments=None if alone else of_tokens), torch.tensor(places, device=device)


for _name in ("distillation", "context_distillation"):
    rule(
        when=f"objective.name == '{_name}' and objective.teacher is None",
        why=f"objective={_name} needs the run folder of a teacher, and objective.teacher is null",
        fix="objective.teacher=runs/NAME",
        where="objective.teacher",
    )
rule(
    when="objective.name == 'context_distillation' and objective.context == ''",
    why="objective=context_distillation needs a text that the teacher alone reads, and objective.context is empty",
    fix="objective.context='My fellow citizens: '",
    where="objective.context",
)
