"""The one LightningModule: it hosts any task, and what all of them share stands in here, once."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ablatio.errors import Diverged, UserError
from ablatio.model.builder import PartChoice
from ablatio.model.language_model import LanguageModel
from ablatio.model.optimizer_step import OptimizerStep, SkipStep
from ablatio.model.parameter_roles import Rate, apply_rates, groups_by_role, named_generator, named_seed
from ablatio.model.peft.apply import AppliedPeft
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import Stabilizer
from ablatio.training.learning_rates import LearningRates
from ablatio.training.task_context import TaskContext

TRAINING = "training_weights"
TINIEST = 1e-6  # targets of a step that has none: its gradients are zero


class TrainingModule(pl.LightningModule):
    """One optimizer step: seeded dropout, the task's example, its loss, stabilizers, the scheduled rate.

    What happens in step k is a function of the weights, the optimizer's and the stabilizers' state, k and the numbers
    of its batches: so a run that is resumed after any step continues bit for bit.
    """

    def __init__(
        self,
        setup: TaskContext,
        task: Task,
        model: LanguageModel,
        stabilizers: Mapping[str, Stabilizer],
        tuning: AppliedPeft | None = None,
    ) -> None:
        super().__init__()
        config = setup.config
        self.task, self.model, self.seeds, self.settings = task, model, setup.seeds, config["train"]
        self.name, self.stabilizers = config["task"]["name"], stabilizers
        model.smoothing = self.settings["label_smoothing"]
        rate: Rate | None = getattr(setup.part("init"), "rate", None)
        self.rates = LearningRates(config, tuning.rate(rate) if tuning else rate)
        self.peft = tuning.part if tuning else None
        self.scores: list[float] = []  # held-out scores up to now, lower ones better, for schedules that watch them
        self.optimizer_choice = PartChoice.of(config["optimizer"])
        for part in self._having("attach"):
            part.attach(model)
        self.finite: Tensor | bool = True
        self.metrics: dict[str, Tensor] = {}
        self.measures: dict[str, Tensor] = {}
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        self._step_losses: list[Tensor] = []
        self._targets: Tensor | int = 0  # of the batches of this step; weighted ones are counted on the device
        self._example: Any = None
        self._targets_per_batch = self.settings["batch_size"] * setup.length
        self.rewinds = any(kinds.stabilizers[name].facts["rewinds"] for name in stabilizers)  # so a bad loss is no end

    def _having(self, method: str) -> list[Any]:
        return [part for part in (self.peft, *self.stabilizers.values()) if hasattr(part, method)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        choice, rate = self.optimizer_choice, self.rates.rate
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = kinds.optimizers.build(choice.name, choice.knobs, groups=groups_by_role(self.model, rate))
        apply_rates(optimizer, self.model, rate)
        self.rates.bind(optimizer, self.model)
        return optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one optimizer, without Lightning's wrapper."""
        return self.trainer.optimizers[0]

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Any:
        """The task's example, made on the CPU: what it draws depends on the number of the batch alone."""
        number = int(batch["number"])
        generator = named_generator(self.seeds.data, f"objective/{number}")
        return {"number": number, "example": self.task.example(batch, generator)}

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        seed = named_seed(self.seeds.dropout, f"batch/{batch['number']}/{self.global_rank}")
        # Not torch.manual_seed: it formats three stack traces for devices that are not there, half a millisecond.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self.rates.set(self.optimizer, self.global_step, self.settings["steps"], self.scores)
        if not self._step_losses:
            self.task.begin_step(self.model, self.global_step)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        example = batch["example"]
        self._example = example
        total, weight, self.measures = self.task.loss(self.model, example)
        mean = total.detach() / torch.where(weight > 0, weight, 1.0)  # a batch may have nothing to say
        if not self.rewinds:
            self._watch(mean, "loss")
        self._step_losses.append(mean)
        self.loss_sum, self.loss_count = self.loss_sum + mean, self.loss_count + 1
        # Gradients are summed over the accumulated batches here and divided by the true count before the step: a mean
        # of means is wrong when the batches have unequal numbers of targets.
        count = getattr(example, "count", None)  # None: only the device knows
        self._targets = self._targets + (weight if count is None else count)
        loss: Tensor = total / self._targets_per_batch
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        expected, targets = self._targets_per_batch * self.settings["accumulate"], self._targets
        if isinstance(targets, Tensor) or targets != expected:
            factor = expected / torch.as_tensor(targets, device=self.device).clamp(min=TINIEST)
            torch._foreach_mul_([p.grad for p in self._trainable if p.grad is not None], factor)
        self._targets = 0
        step = self._step()
        self._step_losses = []
        for part in (*self._having("before_step"), self.task):
            self.metrics |= part.before_step(step)
        if hasattr(self.optimizer, "observe"):
            self.optimizer.observe(step)
        for name, value in self.metrics.items():
            self._watch(value, name)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().optimizer_step(*args, **kwargs)
        except SkipStep:
            return
        if after := self._having("after_step"):
            step = self._step()
            for part in after:
                self.metrics |= part.after_step(step)

    def _step(self) -> OptimizerStep:
        losses = self._step_losses or [torch.zeros(())]
        return OptimizerStep(
            self.model,
            self._trainable,
            self.optimizer,
            self.global_step,
            self.settings["steps"],
            loss=torch.stack(losses).mean(),
            sampled_loss=self._sampled_loss,
            n_targets=self._example.targets.numel() if hasattr(self._example, "targets") else 0,
        )

    def _sampled_loss(self) -> Tensor:
        """The mean loss of the last batch, with targets drawn from the model's own distribution."""
        generator = torch.Generator(self.device).manual_seed(
            named_seed(self.seeds.dropout, f"drawn/{self.global_step}")
        )
        redrawn = self.task.redrawn(self.model, self._example, generator)
        if redrawn is None:
            raise UserError(
                f"optimizer={self.optimizer_choice.name} asks for targets that the model draws, and task={self.name} "
                "has none\n    try: optimizer=adamw"
            )
        total, weight, _ = self.task.loss(self.model, redrawn)
        return total / weight

    def _watch(self, value: Tensor, what: str) -> None:
        """Stop at once when a number is no longer finite; on a GPU, where asking waits, at the next `check_finite`."""
        if value.device.type == "cpu":
            if not torch.isfinite(value):
                self._diverge(what, value.item())
        else:
            self.finite = torch.isfinite(value) & self.finite

    def check_finite(self) -> None:
        """Raise Diverged when a loss or a gradient was not finite since the start."""
        if not bool(self.finite):
            self._diverge("loss or gradient", float("nan"))

    def _diverge(self, what: str, value: float) -> None:
        raise Diverged(
            f"the run diverged: {what} is {value} at step {self.global_step}; nothing of it was saved\n"
            f"    try: a lower rate (optimizer.lr), a longer warm-up (schedule.warmup) or a stabilizer"
        )

    def take_metrics(self) -> dict[str, float]:
        """The mean loss since the last call, the rate, and what stabilizers and layers measured last."""
        self.check_finite()
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"train/loss": float(self.loss_sum) / max(1, self.loss_count), "train/lr": rate}
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        return row | {name: float(value) for name, value in (self.metrics | self.measures).items()}

    @property
    def averages(self) -> bool:
        """Whether the weights that are scored and kept are others than those that train."""
        return bool(self._having("averaged")) or hasattr(self.optimizer, "eval")

    @contextmanager
    def scored_weights(self) -> Iterator[None]:
        """Inside, the model holds the weights that are to be scored and kept: averages, if a part makes some."""
        if getattr(self, "_trainer", None) is None or not self.trainer.optimizers:
            yield
            return
        with ExitStack() as stack:
            if hasattr(self.optimizer, "eval"):
                self.optimizer.eval()
                stack.callback(self.optimizer.train)  # type: ignore[attr-defined]
            for part in self._having("averaged"):
                stack.enter_context(part.averaged(self.model))
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        checkpoint["loss_sum"], checkpoint["loss_count"] = self.loss_sum, self.loss_count
        checkpoint["stabilizers"] = {
            name: part.state_dict() for name, part in self.stabilizers.items() if hasattr(part, "state_dict")
        }
        if state := self.task.state_dict():
            checkpoint["task"] = state
        if self.averages:
            checkpoint[TRAINING] = {name: weight.clone() for name, weight in checkpoint["state_dict"].items()}
            with self.scored_weights():
                checkpoint["state_dict"] = {name: weight.clone() for name, weight in self.state_dict().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss_sum, self.loss_count = checkpoint["loss_sum"], checkpoint["loss_count"]
        for name, state in checkpoint["stabilizers"].items():
            self.stabilizers[name].load_state_dict(state)  # type: ignore[attr-defined]
        if "task" in checkpoint:
            self.task.load_state_dict(checkpoint["task"])
