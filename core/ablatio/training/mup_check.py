"""muP's coordinate check (arXiv:2203.03466, appendix D.1): do activations or their updates grow with the width?

If neither grows, the learning rate of a narrow model carries over to a wide one.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.config import schema as run_config
from ablatio.data.batches import TrainBatches
from ablatio.data.order import RowPlan, WindowOrder
from ablatio.data.types import start_id
from ablatio.errors import ConfigError, Diverged, UserError
from ablatio.model.builder import ModelBuilder, PartChoice
from ablatio.model.cost.parameters import row_length
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import apply_rates, groups_by_role, named_generator
from ablatio.registry import kinds
from ablatio.registry.value_schedules import settled
from ablatio.training.frozen_model import open_model
from ablatio.training.task_context import TaskContext

FLAT = 0.05  # largest slope of log size over log width that counts as no growth
VOCAB = 256  # token ids of random text
Sizes = dict[str, tuple[float, float]]  # output: (mean size before training, mean size of its change)


@dataclass(frozen=True, slots=True)
class Text:
    """One training batch.

    tokens    (B, T + 1) token ids
    segments  (B, T + 1) document number of each token; None: one document per row
    """

    tokens: Tensor
    segments: Tensor | None
    vocab_size: int
    eos: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Size of one output over the widths; a size is the mean absolute value.

    start, change              size before training, and size of the change by training, at each width
    start_slope, change_slope  slope of log size over log width
    """

    name: str
    start: list[float]
    change: list[float]
    start_slope: float
    change_slope: float

    @property
    def grows(self) -> bool:
        """True if either slope reaches FLAT or is NaN (the run diverged)."""
        return not (self.start_slope < FLAT and self.change_slope < FLAT)


def coordinates(
    config: Mapping[str, Any], widths: Sequence[int], steps: int = 4, seeds: int = 4, *, corpus: bool = False
) -> list[Growth]:
    """Train a few steps at each width and fit log size = slope * log width + c for each kind of output.

    Outputs: attention, feed-forward, residual stream (each the mean over the layers) and logits, of the parts that the
    config names.  d_head stays fixed, so wider models have more heads; all widths train on the same batch.

    config  of the model; its seed is the first of `seeds` consecutive ones, over which sizes are averaged
    widths  values of d_model, at least two
    corpus  True: the first batch of the config's source; False: random tokens

    Raises UserError for fewer than two widths or one that the ratios do not allow, Diverged for a loss that is not
    finite.
    """
    if len(set(widths)) < 2:
        raise UserError(f"{len(set(widths))} width came, two or more were expected\n    try: --widths 64,128,256")
    config = settled(config)
    configs = [at_width(config, width) for width in sorted(set(widths))]
    numbers = range(int(config["seed"]), int(config["seed"]) + seeds)
    texts = list(_corpus(config, numbers) if corpus else _random(config, numbers))
    found = [[_trained(c, steps, seed, text) for seed, text in zip(numbers, texts, strict=True)] for c in configs]
    return [_growth(name, [c["model"]["d_model"] for c in configs], found) for name in found[0][0]]


def at_width(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return the config at another d_model, with n_heads and d_ff in proportion and d_head unchanged.

    Raises UserError if the proportion gives no whole number.
    """
    sizes = config["model"]
    scaled = {"d_model": width, "d_head": sizes["d_head"] or sizes["d_model"] // sizes["n_heads"]}
    for key in ("n_heads", "d_ff"):
        if sizes[key] is not None:
            exact = sizes[key] * width / sizes["d_model"]
            if exact != int(exact) or exact < 1:
                step = sizes["d_model"] // math.gcd(sizes["d_model"], sizes[key])
                raise UserError(
                    f"a width of {width} gives model.{key}={exact:g}; widths must be multiples of {step}\n"
                    f"    try: --widths {step},{2 * step},{4 * step}, or smaller heads: model.d_head=16 "
                    f"model.n_heads={max(1, sizes['d_model'] // 16)}"
                )
            scaled[key] = int(exact)
    wider = {**config, "model": {**sizes, **scaled}}
    if problems := run_config.check(wider):
        raise ConfigError(problems)
    return wider


class Watched(ModelBuilder):
    """ModelBuilder that records the outputs of attentions, feed-forward parts and layers while `on` is True."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: dict[str, list[Tensor]] = {}
        self.on = False

    def attention(self, *args: Any, **settings: Any) -> nn.Module:
        """Build an attention whose outputs are recorded."""
        return self._watch("attention", super().attention(*args, **settings))

    def mlp(self, *args: Any, **settings: Any) -> nn.Module:
        """Build a feed-forward part whose outputs are recorded."""
        return self._watch("mlp", super().mlp(*args, **settings))

    def block(self, *args: Any, **settings: Any) -> nn.Module:
        """Build a layer whose output, the residual stream, is recorded."""
        return self._watch("residual stream", super().block(*args, **settings))

    def _watch(self, name: str, module: nn.Module) -> nn.Module:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if self.on:
                self.seen.setdefault(name, []).append(output)

        module.register_forward_hook(keep)
        return module

    @torch.no_grad()
    def outputs(self, model: LanguageModel, example: Example) -> dict[str, list[Tensor]]:
        """Return the outputs for an example in evaluation mode, {kind: one tensor per layer}; the logits last."""
        self.seen, self.on = {}, True
        training = model.training
        logits = model.eval().logits(model.hidden(example))
        model.train(training)
        self.on = False
        return self.seen | {"logits": [logits]}


def _trained(config: Mapping[str, Any], steps: int, seed: int, text: Text) -> Sizes:
    """Train one model; return the mean size of each output before training and of its change."""
    builder = Watched(config, text.vocab_size, text.eos, seed)
    with torch.random.fork_rng(devices=[]):  # dropout; the same in all widths
        torch.default_generator.manual_seed(seed)
        model, example = builder.model().train(), _example(config, seed, text)
        before = builder.outputs(model, example)
        for _ in _steps(config, builder, model, example, steps):
            pass
        after = builder.outputs(model, example)
    changed = {name: [new - old for old, new in zip(before[name], after[name], strict=True)] for name in before}
    return {name: (_size(before[name]), _size(changed[name])) for name in before}


def _steps(
    config: Mapping[str, Any], builder: ModelBuilder, model: LanguageModel, example: Example, steps: int
) -> Iterator[float]:
    """Train at the full rate, without schedule and stabilizers, and yield the loss of each step."""
    choice, rate = PartChoice.of(config["optimizer"]), getattr(builder.init, "rate", None)
    optimizer = kinds.optimizers.build(choice.name, choice.knobs, groups=groups_by_role(model, rate))
    apply_rates(optimizer, model, rate)
    for step in range(steps):
        total, count, _ = model.loss(example)
        loss = total / count
        if not torch.isfinite(loss):
            width = config["model"]["d_model"]
            raise Diverged(f"the loss is {loss.item()} at width {width} in step {step}\n    try: a lower optimizer.lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield float(loss.detach())


def _example(config: Mapping[str, Any], seed: int, text: Text) -> Example:
    """Make the objective's example of the text."""
    choice = PartChoice.of(config["objective"])
    objective = kinds.objectives.build(
        choice.name, choice.knobs, vocab_size=text.vocab_size, eos=text.eos, max_len=row_length(config)
    )
    example: Example = objective(text.tokens, text.segments, named_generator(seed, "objective"))
    return example


def _random(config: Mapping[str, Any], seeds: Iterable[int]) -> Iterator[Text]:
    """Yield a batch of random tokens for each seed."""
    rows = config["train"]["batch_size"], row_length(config) + 1
    for seed in seeds:
        yield Text(torch.randint(1, VOCAB, rows, generator=named_generator(seed, "tokens")), None, VOCAB, 0)


def _corpus(config: Mapping[str, Any], seeds: Iterable[int]) -> Iterator[Text]:
    """Yield the first training batch that a run with each seed would have."""
    setup = TaskContext(config, RowPlan(config["train"]["batch_size"]), open_model=open_model)
    found, tokenizer = setup.corpus(setup.source())
    for seed in seeds:
        order = WindowOrder(len(found.train), row_length(config), seed)
        mask = config["data"]["document_mask"]
        batch = TrainBatches(found.train, order, setup.plan, eos=start_id(tokenizer), document_mask=mask)[0]
        yield Text(batch["tokens"], batch.get("segments"), tokenizer.vocab_size, tokenizer.eos)


def _size(outputs: Sequence[Tensor]) -> float:
    """Mean absolute value, averaged over the layers."""
    return sum(float(x.abs().mean()) for x in outputs) / len(outputs)


def _growth(name: str, widths: Sequence[int], found: Sequence[Sequence[Sizes]]) -> Growth:
    """Average the sizes of one output over the seeds and fit its slopes."""
    start, change = ([sum(s[name][i] for s in runs) / len(runs) for runs in found] for i in (0, 1))
    return Growth(name, start, change, slope(widths, start), slope(widths, change))


def slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """Least-squares slope of log size over log width.

    0 if the output is zero at every width, NaN if it is zero at some of them.
    """
    if not any(sizes):
        return 0.0
    if not all(sizes):
        return math.nan
    x, y = ([math.log(v) for v in values] for values in (widths, sizes))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)
