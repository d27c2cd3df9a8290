"""Pre-training as a LightningModule: the parts stand in the config, the data order and the seeds in here."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ablatio import kinds
from ablatio.errors import Diverged
from ablatio.model.assembly import Choice
from ablatio.model.language_model import LanguageModel
from ablatio.model.roles import groups_by_role, named_generator, named_seed
from ablatio.tasks.step import Step


class Pretrain(pl.LightningModule):
    """One optimizer step: seeded dropout, the objective's example, the loss, stabilizers, the scheduled rate.

    What happens in step k is a function of the weights, the optimizer's state and k: so a run that is resumed after any
    step continues bit for bit.
    """

    def __init__(
        self, config: Mapping[str, Any], model: LanguageModel, vocab_size: int, eos: int, seeds: "Seeds"
    ) -> None:
        super().__init__()
        self.model, self.seeds, self.settings = model, seeds, config["train"]
        self.objective = self._part(config, kinds.objectives, vocab_size=vocab_size, eos=eos, max_len=_length(config))
        self.schedule = self._part(config, kinds.schedules)
        self.optimizer_choice = Choice.of(config["optimizer"])
        self.stabilizers = [kinds.stabilizers.build(n, knobs) for n, knobs in (config["stabilizer"] or {}).items()]
        self.finite: Tensor | bool = True
        self.metrics: dict[str, Tensor] = {}
        self.measures: dict[str, Tensor] = {}
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        self._weight_sum: Tensor | None = None
        self._rows_per_batch = self.settings["batch_size"] * _length(config)

    @staticmethod
    def _part(config: Mapping[str, Any], registry: Any, **wiring: Any) -> Any:
        choice = Choice.of(config[registry.kind])
        return registry.build(choice.name, choice.knobs, **wiring)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        choice = self.optimizer_choice
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        return kinds.optimizers.build(choice.name, choice.knobs, groups=groups_by_role(self.model))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = named_seed(self.seeds.dropout, f"batch/{batch_idx}/{self.global_rank}")
        # Not torch.manual_seed: it formats three stack traces for devices that are not there, half a millisecond.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        factor = self.schedule(self.global_step, self.settings["steps"])
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        generator = named_generator(self.seeds.data, f"objective/{batch_idx}")
        example = self.objective(batch["tokens"], batch.get("segments"), generator)
        total, count, self.measures = self.model.loss(example)
        if example.weights is not None:
            # Gradients are summed over the accumulated batches here and divided by the true count before the step: a
            # mean of means is wrong when the batches have unequal numbers of targets.
            self._weight_sum = count if self._weight_sum is None else self._weight_sum + count
        self._watch(total.detach() / count, "loss")
        self.loss_sum, self.loss_count = self.loss_sum + total.detach() / count, self.loss_count + 1
        loss: Tensor = total / self._rows_per_batch
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._weight_sum is not None:
            factor = self._rows_per_batch * self.settings["accumulate"] / self._weight_sum
            torch._foreach_mul_([p.grad for p in self._trainable if p.grad is not None], factor)
            self._weight_sum = None
        if not self.stabilizers:
            return
        step = Step(self.model, self._trainable, optimizer, self.global_step, self.settings["steps"])
        for part in self.stabilizers:
            if hasattr(part, "before_step"):
                self.metrics |= part.before_step(step)
        for name, value in self.metrics.items():
            self._watch(value, name)

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
        """The mean loss since the last call, the rate, and what stabilizers measured last."""
        self.check_finite()
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        row = {"train/loss": float(self.loss_sum) / max(1, self.loss_count), "train/lr": rate}
        self.loss_sum, self.loss_count = torch.zeros(()), 0
        return row | {name: float(value) for name, value in (self.metrics | self.measures).items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        checkpoint["loss_sum"], checkpoint["loss_count"] = self.loss_sum, self.loss_count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss_sum, self.loss_count = checkpoint["loss_sum"], checkpoint["loss_count"]


class Seeds:
    """Independent streams of chance: init, data, dropout; each is `seed` unless it was set."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        def pick(name: str) -> int:
            value = config["seeds"][name]
            return int(config["seed"] if value is None else value)

        self.init, self.data, self.dropout = pick("init"), pick("data"), pick("dropout")


def _length(config: Mapping[str, Any]) -> int:
    return int(config["data"]["length"] or config["model"]["max_len"])
