"""LightningModule for all tasks: loss, optimizer step, stabilizers, metrics, checkpoint state."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ablatio.errors import Diverged, UserError
from ablatio.model.example import mean_measures
from ablatio.model.kept_copies import Copies, kept_copies
from ablatio.model.language_model import LanguageModel
from ablatio.model.optimizer_step import OptimizerStep, SkipStep
from ablatio.model.parameter_roles import Rate, apply_own, apply_rates, groups_by_role, named_seed
from ablatio.model.part_choices import PartChoice, piece_of
from ablatio.model.peft.apply import AppliedPeft
from ablatio.model.ranks import Ranks, ranks
from ablatio.model.strategy import Strategy
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import Stabilizer
from ablatio.training.examples import EXAMPLE, make_example
from ablatio.training.held_weights import HeldWeights
from ablatio.training.learning_rates import LearningRates, own_settings
from ablatio.training.scheduled_settings import ScheduledSettings
from ablatio.training.task_context import TaskContext

TRAINING = "training_weights"  # checkpoint key: weights to continue from, if they differ from the scored ones
TINIEST = 1e-6  # lower bound on the total target weight of a step: avoids 0/0 if no target is scored


class TrainingModule(pl.LightningModule):
    """LightningModule of a run: seeds, examples, loss, stabilizers and learning rate of each step, for any task.

    Step k is a function of the weights, the state of optimizer and stabilizers, k and the numbers of its batches alone.
    So a run that is resumed after any step continues bit for bit.
    """

    def __init__(
        self,
        setup: TaskContext,
        task: Task,
        model: LanguageModel,
        stabilizers: Mapping[str, Stabilizer],
        tuning: AppliedPeft | None = None,
        scheduled: ScheduledSettings | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        super().__init__()
        config = setup.config
        self.task, self.model, self.seeds, self.settings = task, model, setup.seeds, config["train"]
        self.name, self.stabilizers = config["task"]["name"], stabilizers
        self.strategy = strategy or Strategy(Ranks())
        self.stop_asked: Callable[[], bool] = lambda: False  # True if this rank got a stop signal
        self.stopping = False  # True if any rank had got one when the last step ended: the same on all ranks
        model.smoothing = self.settings["label_smoothing"]
        rate: Rate | None = getattr(setup.part("init"), "rate", None)
        self.rates = LearningRates(config, tuning.rate(rate) if tuning else rate)
        self.peft = tuning.part if tuning else None
        self.scores: list[float] = []  # held-out scores so far, lower is better; for schedules that watch them
        self.scheduled = scheduled or None  # None: no setting changes during training
        self.held = HeldWeights.of(config, scheduled.timeline.schedules if scheduled else (), model)
        self.optimizer_choice = PartChoice.of(config["optimizer"])
        self.own_settings = own_settings(config["roles"])
        for part in self._parts_with("attach"):
            part.attach(model)
        self.finite: Tensor | bool = True
        self.not_finite: Tensor | None = None  # of each of several ranks: above 0 if its loss was not finite
        self.overflowed = False  # set by a precision with a loss scale: gradients of this step are not finite
        self.metrics: dict[str, Tensor] = {}
        self.measures: dict[str, Tensor] = {}
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        self._step_losses: list[tuple[Tensor, Tensor]] = []  # summed loss and total weight of the step's batches
        self._step_measures: list[dict[str, Tensor]] = []  # of the same batches
        self._targets: Tensor | int = 0  # total weight in this step; stays on the device if the targets are weighted
        self._example: Any = None
        self._copies: Copies = {}  # of weights in 16 bits, for the batches of one step
        self._targets_per_batch = self.settings["batch_size"] * setup.length
        # With a stabilizer that rewinds, a loss that is not finite must not end the run.
        self.rewinds = any(kinds.stabilizers[name].facts["rewinds"] for name in stabilizers)

    def _parts_with(self, method: str) -> list[Any]:
        """Return the peft method and the stabilizers that define `method`."""
        return [part for part in (self.peft, *self.stabilizers.values()) if hasattr(part, method)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer from parameter groups by role, with the rates of init, roles and peft."""
        choice, rate = self.optimizer_choice, self.rates.rate
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        if not self._trainable:
            raise UserError("all weights are frozen, so nothing is trained\n    try: a shorter list in freeze=")
        optimizer = self.strategy.optimizer(
            lambda groups: kinds.optimizers.build(choice.name, choice.knobs, groups=groups),
            groups_by_role(self.model, rate),
            piece_of(choice),
        )
        apply_own(optimizer, self.model, self.own_settings)
        apply_rates(optimizer, self.model, rate)
        self.rates.bind(optimizer, self.model)
        if self.scheduled is not None:
            self.scheduled.bind(optimizer)
        return self.strategy.wrap(optimizer)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The run's single optimizer, without Lightning's wrapper."""
        return self.trainer.optimizers[0]

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Any:
        """Make the task's example on the CPU, unless a process that reads the data has made it.

        The values of scheduled settings are set first, at a step's first batch: an objective may have one.
        """
        if self.scheduled is not None and not self._step_losses:
            self.scheduled.set(self.global_step)
        return batch if EXAMPLE in batch else make_example(self.task, batch, self.seeds.data)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed dropout for this batch, set the learning rates, and call `begin_step` at a step's first batch."""
        seed = named_seed(self.seeds.dropout, f"batch/{batch['number']}/{ranks().stream}")
        seed_all(seed, self.device)
        self.rates.set(self.optimizer, self.global_step, self.settings["steps"], self.scores)
        if not self._step_losses:
            # Rollouts and references in the precision of the loss that is compared with them.
            with self.trainer.precision_plugin.forward_context():
                self.task.begin_step(self.model, self.global_step)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the batch's summed loss over the number of targets of a full batch, batch_size * length.

        `on_before_optimizer_step` corrects the gradients to the true number of targets of the step.
        """
        example = batch["example"]
        self._example = example
        with kept_copies(self._copies):
            total, weight, measures = self.strategy.loss(example, self._is_last_batch)
        if self._is_last_batch:  # before the backward pass, which is when a step needs most memory
            self._copies.clear()
        if not self.rewinds and ranks().world == 1:  # several ranks decide together, at the end of the step
            self._watch(total.detach() / torch.where(weight > 0, weight, 1.0), "loss")  # weight 0: no scored target
        self._step_losses.append((total.detach(), weight))
        self._step_measures.append(measures)
        # Gradients are summed over the accumulated batches and divided by the true count before the step: a mean of
        # means is wrong if the batches differ in their number of targets.
        # None: the weight is known on the device only, where a sync would wait, or is that of a part of the rows.
        count = getattr(example, "count", None) if ranks().by_row else None
        self._targets = self._targets + (weight if count is None else count)
        loss: Tensor = total / self._targets_per_batch
        return loss

    @property
    def _is_last_batch(self) -> bool:
        """True if the batch whose loss is computed is the last one of the optimizer step."""
        return bool(len(self._step_losses) + 1 >= self.settings["accumulate"])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of a batch to those of the step."""
        self.strategy.backward(loss, len(self._step_losses) >= self.settings["accumulate"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the gradients to a mean over the step's targets, then let peft, stabilizers and task inspect them.

        Gradients so far are relative to batch_size * length * accumulate targets.
        """
        if self.held is not None:
            self.held.before_step(self.optimizer)
        loss, targets = self._totals()
        expected = self._targets_per_batch * self.settings["accumulate"]
        if isinstance(targets, Tensor) or targets != expected:
            factor = expected / torch.as_tensor(targets, device=self.device).clamp(min=TINIEST)
            self.strategy.scale_gradients(self._trainable, factor)
        self.measures = mean_measures(self._step_measures, [weight for _, weight in self._step_losses])
        self._targets, self._step_losses, self._step_measures = 0, [], []
        if ranks().world > 1:
            if not self.rewinds:
                self._watch(loss, "loss")
            seed_all(named_seed(self.seeds.dropout, f"update/{self.global_step}"), self.device)  # equal updates
        step = self._step(loss)
        self.loss_sum, self.loss_count = self.loss_sum + step.loss, self.loss_count + 1
        if self.overflowed:
            raise SkipStep
        for part in (*self._parts_with("before_step"), self.task):
            self.metrics |= part.before_step(step)
        if hasattr(self.optimizer, "observe"):
            self.optimizer.observe(step)
        for name, value in self.metrics.items():
            self._watch(value, name)
        self.strategy.before_update()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the last step."""
        self.strategy.zero_grad(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights and call `after_step` of the parts; a SkipStep leaves the weights unchanged."""
        try:
            super().optimizer_step(*args, **kwargs)
        except SkipStep:
            return
        self.strategy.after_update()
        if self.held is not None:
            self.held.after_step()
        if after := self._parts_with("after_step"):
            step = self._step()
            for part in after:
                self.metrics |= part.after_step(step)

    def _totals(self) -> tuple[Tensor, Tensor | float]:
        """Mean loss and number of targets of the step, over all its batches and ranks; the ranks agree on a stop too.

        Batches differ in their number of targets, so the mean of their means would be another number.
        """
        total, weight = (torch.stack([*values]).sum() for values in zip(*self._step_losses, strict=True))
        targets: Tensor | float = self._targets
        if ranks().world > 1:
            stop = float(self.stop_asked())
            own = [torch.as_tensor(x, dtype=torch.float64, device=self.device) for x in (total, weight, targets, stop)]
            bad = torch.zeros(ranks().world, dtype=torch.float64, device=self.device)
            bad[ranks().rank] = ~torch.isfinite(total)
            found = ranks().total(torch.cat([torch.stack(own), bad]))
            total, weight, targets, stops = found[:4].to(total.dtype)
            self.not_finite = found[4:] if self.not_finite is None else self.not_finite + found[4:]
            self.stopping = bool(stops)
            targets = float(targets) if self.device.type == "cpu" else targets
        return total / torch.where(weight > 0, weight, 1.0), targets  # a step may have no scored target

    def _step(self, loss: Tensor | None = None) -> OptimizerStep:
        """Describe the current step for stabilizers, task and optimizer."""
        return OptimizerStep(
            self.model,
            self._trainable,
            self.optimizer,
            self.global_step,
            self.settings["steps"],
            loss=torch.zeros(()) if loss is None else loss,
            sampled_loss=self._sampled_loss,
            n_targets=self._example.targets.numel() if hasattr(self._example, "targets") else 0,
            strategy=self.strategy,
        )

    def _sampled_loss(self) -> Tensor:
        """Mean loss of the step's last batch, with targets sampled from the model's own predictions."""
        generator = torch.Generator(self.device).manual_seed(
            named_seed(self.seeds.dropout, f"drawn/{self.global_step}")
        )
        redrawn = self.task.redrawn(self.model, self._example, generator)
        if redrawn is None:
            raise UserError(
                f"optimizer={self.optimizer_choice.name} needs targets sampled from the model; "
                f"task={self.name} provides none\n    try: optimizer=adamw"
            )
        precision = self.trainer.precision_plugin
        # The optimizer differentiates this loss without a loss scale: 16-bit floats would round its gradients to 0.
        scaled = getattr(precision, "scaler", None) is not None
        with nullcontext() if scaled else precision.forward_context():
            total, weight, _ = self.task.loss(self.model, redrawn)
        return total / weight

    def _watch(self, value: Tensor, what: str) -> None:
        """Raise Diverged if a value is not finite.

        On a GPU reading the value would wait for the device, so it is only recorded there for the next `check_finite`.
        """
        if value.device.type == "cpu":
            if not torch.isfinite(value):
                self._diverge(what, value.item())
        else:
            self.finite = torch.isfinite(value) & self.finite

    def check_finite(self) -> None:
        """Raise Diverged if a recorded loss or gradient metric was not finite since the start."""
        if not bool(self.finite):
            self._diverge("loss or gradient", float("nan"))

    def _diverge(self, what: str, value: float) -> None:
        raise Diverged(
            f"the run diverged: {what} is {value} at step {self.global_step}{self._first_ranks()}; "
            "the diverged state was not saved\n"
            "    try: a lower rate (optimizer.lr), a longer warm-up (schedule.warmup) or a stabilizer"
        )

    def _first_ranks(self) -> str:
        """Which ranks had a loss that is not finite, if not all had."""
        bad = [] if self.not_finite is None else self.not_finite.nonzero().flatten().tolist()
        if not 0 < len(bad) < ranks().world:
            return ""
        return f", first on rank{'s' * (len(bad) > 1)} {', '.join(map(str, bad))}"

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics to log: mean loss of the steps since the last call, learning rate, values of the parts.

        Raises Diverged if a value was not finite.
        """
        self.check_finite()
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"train/loss": float(self.loss_sum) / max(1, self.loss_count), "train/lr": rate}
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        row |= self.scheduled.metrics() if self.scheduled is not None else {}
        measures = {name: ranks().mean(value) for name, value in self.measures.items()}  # of the rows of each rank
        return row | {name: float(value) for name, value in (self.metrics | measures).items()}

    @property
    def averages(self) -> bool:
        """True if the weights to score and save differ from those in training (averaging, schedule-free)."""
        return bool(self._parts_with("averaged")) or hasattr(self.optimizer, "eval")

    @contextmanager
    def scored_weights(self) -> Iterator[None]:
        """Context in which the model holds the weights to score and save: averages if a part makes them."""
        if getattr(self, "_trainer", None) is None or not self.trainer.optimizers:
            yield
            return
        with ExitStack() as stack:
            if hasattr(self.optimizer, "eval"):
                self.optimizer.eval()
                stack.callback(self.optimizer.train)  # type: ignore[attr-defined]
            for part in self._parts_with("averaged"):
                stack.enter_context(part.averaged(self.model))
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of loss, stabilizers and task to the checkpoint; `state_dict` becomes the weights to score.

        If those are averages, the training weights are stored under TRAINING.  Raises Diverged if a value was not
        finite.
        """
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
        """Restore the state of loss, stabilizers and task, on the device of the model."""
        # A stage of a pipeline has the layers of the others on the meta device.
        device = min((p.device for p in self.model.parameters()), key=lambda place: place.type == "meta")
        self.loss_sum, self.loss_count = on_device(checkpoint["loss_sum"], device), checkpoint["loss_count"]
        for name, state in checkpoint["stabilizers"].items():
            self.stabilizers[name].load_state_dict(on_device(state, device))  # type: ignore[attr-defined]
        if "task" in checkpoint:
            self.task.load_state_dict(on_device(checkpoint["task"], device))


def on_device(state: Any, device: torch.device) -> Any:
    """Copy the tensors of a state (dicts, lists and tuples of tensors and plain values) to a device."""
    if isinstance(state, Tensor):
        return state if state.is_meta else state.to(device)  # on the meta device: another rank has the numbers
    if isinstance(state, Mapping):
        return {name: on_device(value, device) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_device(value, device) for value in state)
    return state


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of this GPU."""
    # Not torch.manual_seed: it formats three stack traces for devices that do not exist, which takes 0.5 ms.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
