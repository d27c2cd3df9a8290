"""Process reward models: whether each step of a solution is correct, trained on labels of steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import OptionOf, rewards
from ablatio.errors import UserError
from ablatio.model.example import Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.rl.answers import Answer, judged, step_tokens
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._answers import Answers, AnswerSet, RatedAnswers, UnitBatches, chunks, example_of
from .reward import ScalarHead


@tasks.register("process_reward", paper="arXiv:2305.20050")
class ProcessRewardModel(Task):
    """-y log sigmoid(w . h) - (1 - y) log(1 - sigmoid(w . h)), h the state at a step's end and y its label; the mean.

    A step is a line of an answer.  Its label is that of the data (source=feedback: `steps` and `labels`), or, for
    answers without labels, the score that the rule `labels` gives the step.  `accuracy` is the share of held-out steps
    on the right side of 0.5, `solutions` the share of answers of which it is known whether all steps are correct.
    """

    accepts, template = "feedback", True
    scores, main, better = ("loss", "accuracy", "solutions"), "accuracy", "higher"
    metrics = ("train/step_accuracy",)

    def __init__(
        self,
        setup: TaskContext,
        *,
        labels: Annotated[
            str, OptionOf("reward"), "rule that labels the steps of answers without labels"
        ] = "arithmetic",
        too_long: Annotated[
            Literal["cut", "drop", "refuse"],
            "a prompt too long for its answers: cut its beginning, leave it out, or stop the run",
        ] = "cut",
    ) -> None:
        self.setup, self.rule = setup, labels
        # The last token is an input here: its state is what the last step's end is read from.
        self.set = AnswerSet(setup, too_long, ahead=0)
        self.tokenizer, self.content = self.set.tokenizer, self.set.content
        self.judge = rewards.build("process", {"function": labels}, open_run=None, open_model=None)
        self.units = {split: self._units(lines) for split, lines in self.set.judged.items()}
        for split, units in self.units.items():
            self.content[split] |= {"steps": sum(len(at) for _, at, _ in units)}

    def _units(self, lines: Sequence[RatedAnswers]) -> list[tuple[int, list[int], list[float]]]:
        """Answers with steps: (index in the set, tokens with which the steps end, labels)."""
        found = []
        for line in lines:
            for place, member in enumerate(line.members):
                answer = self.set.answers[member]
                ids = answer.ids[answer.first :].tolist()
                # The decoded text, not that of the source: the template may begin an answer with a space.
                steps = judged(self.judge, self.rule, [Answer("", self._decode(ids), (), ids)])[1]
                ends = [step.end for step in (steps or [[]])[0]]
                labels = [step.score for step in (steps or [[]])[0]]
                if line.source.labels:
                    labels = list(line.source.labels[place])
                self._check(labels, ends, line)
                found.append((member, step_tokens(ids, ends, self._decode, len(ids) - 1), labels))
        return [unit for unit in found if unit[1]]

    def _check(self, labels: Sequence[float], ends: Sequence[int], line: RatedAnswers) -> None:
        if len(labels) != len(ends):
            raise UserError(
                f"{line.source.id}: {len(labels)} labels for {len(ends)} steps; expected one for each line of the "
                "answer\n    try: ablatio show source=feedback, for the layouts of a line"
            )
        if bad := [label for label in labels if not 0 <= label <= 1]:
            raise UserError(
                f"{line.source.id}: the rule {self.rule} scores a step {bad[0]:g}; expected labels from 0 to 1\n"
                "    try: task.labels=arithmetic"
            )

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])

    def attach(self, model: LanguageModel) -> None:
        """Add the head that reads the state at a step's end."""
        model.reward_head = ScalarHead(model.model.d_model, self.setup.seeds.init, "reward_head")

    @property
    def training(self) -> UnitBatches:
        units = self.units["train"]
        return UnitBatches(self.setup, len(units), lambda numbers: self._batch([units[i] for i in numbers]))

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Tensor]]:
        units = self.units["validation"]
        return [self._batch([units[i] for i in group]) for group in chunks(len(units), 16)]

    def _batch(self, units: Sequence[tuple[int, list[int], list[float]]]) -> dict[str, Tensor]:
        """Batch of answers with S steps: `row` and `token` (S,) of each step's end, and its `label` (S,)."""
        rows = [i for i, (_, at, _) in enumerate(units) for _ in at]
        return self.set.batch([member for member, _, _ in units]) | {
            "row": torch.tensor(rows),
            "token": torch.tensor([t for _, at, _ in units for t in at]),
            "label": torch.tensor([label for _, _, labels in units for label in labels]),
        }

    def tokens(self, steps: int) -> int:
        units = self.units["train"]
        lengths = sum(len(self.set.answers[member].ids) for member, _, _ in units)
        return round(self.setup.plan.step(steps)[0] * lengths / len(units))

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Answers:
        return example_of(batch)

    def logits(self, model: LanguageModel, example: Answers) -> Tensor:
        """w . h at the end of each step, in at least 32 bits: (S,)."""
        states = example.states(model)  # the first is at the last token of the prompt
        found: Tensor = model.reward_head(states[example.more["row"], example.more["token"] + 1])
        return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found

    def loss(self, model: LanguageModel, example: Answers) -> Loss:
        logits, label = self.logits(model, example), example.more["label"]
        # A sum with its count: accumulated batches have different numbers of steps.
        total = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="sum")
        right = ((logits > 0) == (label > 0.5)).float().mean()
        return Loss(total, total.new_full((), float(len(label))), {"train/step_accuracy": right.detach()})

    @torch.no_grad()
    def score(
        self,
        model: LanguageModel,
        batches: Sequence[dict[str, Tensor]],
        device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:
        mode, losses, right, solved = model.training, list[Tensor](), list[Tensor](), list[bool]()
        model.eval()
        try:
            for number, batch in enumerate(batches):
                example = example_of(batch).to(device)
                logits, label = self.logits(model, example).double().cpu(), batch["label"].double()
                losses.append(F.binary_cross_entropy_with_logits(logits, label, reduction="none"))
                right.append((logits > 0) == (label > 0.5))
                for row in batch["row"].unique():
                    own = batch["row"] == row
                    # A solution is right if all of its steps are: as the reward of a whole answer is the product of its
                    # steps.
                    solved.append(bool((logits[own] > 0).all()) == bool((label[own] > 0.5).all()))
                between(number + 1)
        finally:
            model.train(mode)
        loss, hits = torch.cat(losses), torch.cat(right).double()
        return {
            "loss": float(loss.mean()), "accuracy": float(hits.mean()), "solutions": sum(solved) / len(solved),
            "steps": len(hits),
        }  # fmt: skip
