"""Stabilizers: gradient clipping, auxiliary losses, weight averaging, outer steps, and handling of loss spikes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Positive, Range, Schedulable, rule, stabilizers
from ablatio.model.exchanged_weights import exchanged_weights, move_towards
from ablatio.model.optimizer_step import OptimizerStep, Rewind, SkipStep
from ablatio.model.parameter_roles import describe


@stabilizers.register("clip", paper="arXiv:1211.5063")
class Clip:
    """Gradient clipping: g <- g * min(1, max_norm / ||g||), the norm over all parameters."""

    metrics = ("train/grad_norm",)

    def __init__(self, *, max_norm: Annotated[float, Positive, Schedulable()] = 1.0) -> None:
        self.max_norm = max_norm

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        norm = step.gradient_norm()
        # 1e-6 as in torch.nn.utils.clip_grad_norm_, whose results these are.
        step.scale_gradients((self.max_norm / (norm + 1e-6)).clamp(max=1.0))
        return {"train/grad_norm": norm}


@stabilizers.register("embedding_shrink", paper="arXiv:2210.02414")
class EmbeddingShrink:
    """x <- alpha x + (1 - alpha) stop_gradient(x) after the embedding: scales its gradient by alpha (GLM-130B).

    The gradient that a tied embedding gets from the output head is not scaled.
    """

    def __init__(self, *, alpha: Annotated[float, Fraction, Schedulable()] = 0.1) -> None:
        self.alpha = alpha

    def attach(self, model: Any) -> None:
        def shrink(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            # The value is that of output; only its gradient is scaled.
            return self.alpha * output + (1 - self.alpha) * output.detach()

        model.model.embed_tokens.register_forward_hook(shrink)


@stabilizers.register("z_loss", paper="arXiv:2204.02311")
class ZLoss:
    """loss += weight * log^2 Z, Z the normalizer of the output softmax: keeps the logits from drifting (PaLM)."""

    def __init__(self, *, weight: Annotated[float, NonNegative, Schedulable()] = 1e-4) -> None:
        self._weight, self._model = weight, None

    def attach(self, model: Any) -> None:
        self._model, model.z_loss = model, self.weight

    @property
    def weight(self) -> float:
        """Weight of the loss; may be set during training."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = value
        if self._model is not None:
            self._model.z_loss = value


@stabilizers.register("unit_weights", paper="arXiv:2410.01131")
class UnitWeights:
    """w <- w / |w| at the start and after each step, over the axis of the residual stream (nGPT).

    w: rows of matrices that read the stream, columns of those that write to it, token embeddings.  The rows of an
    untied head keep their lengths, which act as the paper's learned scales of the logits.  Parameters without an axis
    of the stream's width (low-rank factors, convolutions) are left unchanged.
    """

    def attach(self, model: nn.Module) -> None:
        found = [(p, info) for p, info in describe(model) if info.role in ("matrix", "embedding") and p.requires_grad]
        # A matrix (out, in) that writes to the stream has it in its rows, one that reads it in its columns.
        axes = [(p, info.name, -2 if info.residual else -1, info.d_model) for p, info in found]
        self.normalized = [(name, axis) for p, name, axis, width in axes if p.shape[axis] == width]
        self._normalize(model)

    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        self._normalize(step.model)
        return {}

    @torch.no_grad()
    def _normalize(self, model: nn.Module) -> None:
        for name, axis in self.normalized:  # by name: a strategy puts parts of the weights in their place
            weight = model.get_parameter(name)
            weight.div_(torch.linalg.vector_norm(weight, dim=axis, keepdim=True).clamp(min=1e-12))


rule(
    when="'unit_weights' in stabilizer and peft.name != 'none'",
    why="stabilizer=unit_weights normalizes all matrices, but peft={peft.name} keeps the base weights unchanged",
    fix="peft=none",
    where="stabilizer",
)


@stabilizers.register("ema", paper="arXiv:1703.01780")
class Ema:
    """a <- d a + (1 - d) w after step t, d = min(decay, (1 + t) / (10 + t)); a is evaluated and saved, w trains.

    The smaller d of the first steps is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, *, decay: Annotated[float, Fraction, Schedulable()] = 0.999) -> None:
        self.decay = decay
        self.held: dict[str, Tensor] = {}

    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        weights = {name: p.detach() for name, p in step.model.named_parameters() if p.requires_grad}
        if not self.held:
            self.held = {name: w.clone() for name, w in weights.items()}
        # Without the smaller d the initial weights would count for 1 / (1 - decay) steps.
        decay = min(self.decay, (1 + step.index) / (10 + step.index))
        move_towards(self.held, weights, 1 - decay)
        return {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        with exchanged_weights(model, self.held):
            yield

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.held)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.held = dict(state)


@stabilizers.register("outer", paper="arXiv:2510.15830")
class Outer:
    """Every `every` steps w moved from s to f:  b <- momentum b + (s - f),  s <- s - lr (momentum b + s - f),  w <- s.

    SNOO: Nesterov momentum on the movement of any optimizer; DiLoCo (arXiv:2311.08105) with one worker.  momentum=0 is
    Lookahead (arXiv:1907.08610), with lr=0.5 and every=5 in its paper; nesterov=false steps by b alone.  The slow
    weights s are evaluated and saved.  State: two copies of the weights, one without momentum.
    """

    def __init__(
        self,
        *,
        every: Annotated[int, Positive, "steps of the inner optimizer for each outer step"] = 20,
        lr: Annotated[float, Positive, "outer learning rate; constant over the run"] = 0.7,
        momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.6,
        nesterov: bool = True,
    ) -> None:
        self.every, self.lr, self.momentum, self.nesterov = every, lr, momentum, nesterov
        self.count, self.slow, self.buffer = 0, dict[str, Tensor](), dict[str, Tensor]()

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        # Before the first step and not at the start: loaded weights are the first slow ones.
        if not self.slow:
            self.slow = {name: p.detach().clone() for name, p in step.model.named_parameters() if p.requires_grad}
            self.buffer = {name: torch.zeros_like(p) for name, p in self.slow.items() if self.momentum}
        return {}

    @torch.no_grad()
    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        self.count += 1
        if self.count % self.every:
            return {}
        for name, p in step.model.named_parameters():
            if name in self.slow:
                slow = self.slow[name]
                # s - f is the negative of the movement, which plays the role of a gradient.
                moved = slow - p
                if name in self.buffer:
                    b = self.buffer[name].mul_(self.momentum).add_(moved)
                    # Nesterov: the step looks ahead by the momentum that follows from it.
                    moved = moved.add_(b, alpha=self.momentum) if self.nesterov else b
                slow.sub_(moved, alpha=self.lr)
                p.copy_(slow)
        return {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        with exchanged_weights(model, self.slow):
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "slow": dict(self.slow), "buffer": dict(self.buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self.slow, self.buffer = ({n: t.clone() for n, t in state[name].items()} for name in ("slow", "buffer"))


rule(
    when="'outer' in stabilizer and optimizer.name == 'schedule_free'",
    why="stabilizer=outer moves the weights between steps, and schedule_free derives them from its own two sequences",
    fix="optimizer=adamw",
    where="stabilizer",
)


class _Recent:
    """The last `window` finite values of a quantity, and a test whether a new value is an outlier."""

    def __init__(self, window: int, sigma: float) -> None:
        self.window, self.sigma = window, sigma
        self.values: list[float] = []

    def outlier(self, value: float) -> bool:
        """True if not finite, or more than sigma standard deviations above the mean of at least a quarter window."""
        if not math.isfinite(value):
            return True
        count = len(self.values)
        # Too few values for a spread: the first steps, whose loss falls fast, are never outliers.
        if count < max(2, self.window // 4):
            return False
        mean = sum(self.values) / count
        spread = math.sqrt(sum((v - mean) ** 2 for v in self.values) / (count - 1))
        # Above only: a loss that falls is no spike.
        return value > mean + self.sigma * spread

    def add(self, value: float) -> None:
        """Append a value and drop those beyond the window."""
        self.values = [*self.values, value][-self.window :]


Window = Annotated[int, Range(4, 10_000), "number of last steps that a new one is compared with"]
Sigma = Annotated[float, Positive, "outlier threshold in standard deviations above the mean"]


@stabilizers.register("skip_step", paper="arXiv:2501.00656")
class SkipStepOnOutliers:
    """Skips the update if the loss or the gradient norm is an outlier among the last `window` steps (OLMo 2)."""

    metrics = ("train/skipped_steps",)

    def __init__(self, *, window: Window = 128, sigma: Sigma = 6.0) -> None:
        self.losses, self.norms, self.skipped = _Recent(window, sigma), _Recent(window, sigma), 0

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        pairs = ((self.losses, float(step.loss)), (self.norms, float(step.gradient_norm())))
        outlying = any(recent.outlier(value) for recent, value in pairs)
        for recent, value in pairs:
            # Outliers are added too: after a lasting rise the window accepts the new level, and training goes on.
            if math.isfinite(value):
                recent.add(value)
        if outlying:
            self.skipped += 1
            raise SkipStep
        return {"train/skipped_steps": torch.tensor(float(self.skipped))}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses.values, "norms": self.norms.values, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.values, self.norms.values = list(state["losses"]), list(state["norms"])
        self.skipped = int(state["skipped"])


@stabilizers.register("spike_rewind", paper="arXiv:2204.02311")
class SpikeRewind:
    """After a loss spike, returns to a checkpoint at least `rewind_steps` older and skips `skip` steps' batches (PaLM).

    A spike is a loss that is not finite, or more than sigma standard deviations and `rise` nats above the mean of the
    last `window` steps.  Rewinds are reported in the terminal, in summary.json and in each checkpoint.
    """

    rewinds = True

    def __init__(
        self,
        *,
        window: Window = 64,
        sigma: Sigma = 6.0,
        rise: Annotated[float, NonNegative, "least rise above the mean in nats"] = 0.3,
        rewind_steps: Annotated[int, Positive, "least number of steps to go back"] = 100,
        skip: Annotated[int, Positive, "steps whose batches are skipped"] = 200,
        max_rewinds: Annotated[int, Positive, "rewinds before the run counts as diverged"] = 5,
    ) -> None:
        self.recent, self.rise, self.skip = _Recent(window, sigma), rise, skip
        self.rewind_steps, self.max_rewinds = rewind_steps, max_rewinds

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        loss = float(step.loss)
        mean = sum(self.recent.values) / max(1, len(self.recent.values))
        # `not loss <= ...` holds for NaN as well.
        if self.recent.outlier(loss) and not loss <= mean + self.rise:
            why = f"the loss is {loss:.3g} after a mean of {mean:.3g}"
            raise Rewind(why, back=self.rewind_steps, skip=self.skip, most=self.max_rewinds)
        self.recent.add(loss)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self.recent.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent.values = list(state["recent"])


rule(
    when="train.checkpoint_every is None and stabilizer.spike_rewind.rewind_steps > 0",
    why="stabilizer=spike_rewind needs checkpoints during the run, and train.checkpoint_every=null writes none",
    fix="train.checkpoint_every=100",
    where="train.checkpoint_every",
)


@stabilizers.register("early_stop", paper="doi:10.1007/3-540-49430-8_3")
class EarlyStop:
    """Ends the run when the last `patience` validations have not lowered the best held-out loss by `min_delta`.

    The weights are those of the last step, not of the best one (Prechelt 1998, Early Stopping - But When?).
    """

    def __init__(
        self,
        *,
        patience: Annotated[int, Positive, "validations without improvement after which the run ends"] = 3,
        min_delta: Annotated[float, NonNegative, "smallest decrease that counts as an improvement"] = 0.0,
    ) -> None:
        self.patience, self.min_delta = patience, min_delta

    def stops(self, scores: Sequence[float]) -> bool:
        best, waited = math.inf, 0
        for score in scores:
            improved = score < best - self.min_delta
            best, waited = (score, 0) if improved else (best, waited + 1)
        # From all scores and without a state of its own: a resumed run decides alike.
        return waited >= self.patience


rule(
    when="stabilizer.early_stop is not None and train.val_every is None",
    why="stabilizer=early_stop needs validations during the run, and train.val_every=null makes none",
    fix="train.val_every=100",
    where="train.val_every",
)


@stabilizers.register("batch_ramp", paper="arXiv:2005.14165")
class BatchRamp:
    """Batch-size warm-up: linear from the share `start` of train.batch_size to all of it, over the first `tokens`."""

    def __init__(
        self,
        *,
        start: Annotated[float, Range(0, 1, open_low=True), "share of train.batch_size"] = 0.1,
        tokens: Annotated[int, Positive, "training tokens over which the batch size grows"] = 200_000,
    ) -> None:
        self.start, self.tokens = start, tokens

    def batch_rows(self, seen: int, full: int) -> int:
        return round(full * (self.start + (1 - self.start) * min(1.0, seen / self.tokens)))


rule(
    when="'batch_ramp' in stabilizer and 'train.batch_size' in scheduled",
    why="stabilizer=batch_ramp sets the batch size of each step, and train.batch_size is a schedule",
    fix="train.batch_size={train.batch_size}",
    where="stabilizer",
)
rule(
    when="'spike_rewind' in stabilizer and ('train.batch_size' in scheduled or 'data.length' in scheduled)",
    why="stabilizer=spike_rewind skips batches, and the rows of a batch with a schedule follow from its number",
    fix="stabilizer=[clip]",
    where="stabilizer",
)
