"""How a model learns: what it predicts, how its weights move, what a run is and where its numbers go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ablatio.data.types import Tokenizer
    from ablatio.model.example import Example
    from ablatio.model.language_model import LanguageModel, Loss
    from ablatio.model.optimizer_step import OptimizerStep


class Objective(Protocol):
    """Rows of tokens (B, T+1) -> what the model reads and what it has to say; deterministic in the generator.

    produces         next tokens | source and target | blanks in place
    extra_tokens  optional: ids that it needs behind the tokenizer's (sentinels, masks), known from knobs and wiring
    ahead         optional: how many coming tokens a position has to say, by default 1; the model then has ahead - 1
                  siblings of its last layer, and the example `further` targets for them
    metrics       what the loss logs beside itself
    loss(model, example)  optional: in place of the model's cross-entropy; scores are those of the cross-entropy still
    teacher       optional: the folder of the run to learn from, whose model `learn_from(model)` gets before training
    """

    produces: ClassVar[str]
    metrics: ClassVar[Sequence[str]]

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example: ...


class Optimizer(Protocol):
    """A factory of a torch Optimizer from groups of parameters by role; function parts state facts in `register`.

    decays     whether it has weight decay
    entrywise  whether each weight's step has the size lr, whatever the size of its gradient (Adam, Lion): then muP's
               rates hold.  False where the step follows the gradient's size (SGD) or is scaled for a whole matrix
               (Muon, Shampoo, LAMB)
    """

    decays: ClassVar[bool]
    entrywise: ClassVar[bool]


class Checkpointing(Protocol):
    """`apply(model)`, in place: layers keep less for their backward pass and are computed once more there.

    Losses and gradients stay what they are, to the last bit (ablatio.model.activation_checkpointing).
    """

    def apply(self, model: LanguageModel) -> None: ...


class Schedule(Protocol):
    """(step, total steps) -> the factor on the learning rate; step counts from 0.

    One that takes (step, total, scores) also gets the held-out losses up to now, the untrained model's first.  It keeps
    nothing by itself: they stand in the checkpoints, so that a resumed run sees the same.

    watches  whether it takes the scores
    """

    watches: ClassVar[bool]

    def __call__(self, step: int, total: int, scores: Sequence[float] = ()) -> float: ...


class Stabilizer(Protocol):
    """Any of these.

    before_step(step), after_step(step)  gradients are ready before, weights are new after; a dict of numbers to log
                       under the names in `metrics`
    attach(model)      once, before training: hooks, switches
    averaged(model)    a context in which the model holds the weights that are to be scored and kept
    batch_rows(seen, full)  rows of a batch before which `seen` tokens were trained on; `full`: train.batch_size

    `before_step` may raise SkipStep (nothing moves) or, with the fact `rewinds`, Rewind (ablatio.model.optimizer_step).
    What lasts from step to step beyond the weights goes through `state_dict()` and `load_state_dict(state)`.
    """

    metrics: ClassVar[Sequence[str]]

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]: ...


class Task(Protocol):
    """What a run learns: its data, the loss of a batch, the scores of a model.  It knows neither Lightning nor Hydra.

    Made from `setup` (a TaskContext: the config, the seeds, which rows each batch has); then it has

    tokenizer   trained, with all ids that the model must know
    content     what the manifest says of the data: plain values, a fingerprint among them
    example(batch, generator)  what a batch of `training` becomes on the CPU; deterministic in the generator, which the
                number of the batch seeds.  Anything with `.to(device)`
    loss(model, example)  the sum, what to divide it by, and numbers to log under the names in `metrics`
    score(model, batches, device, between)  {name: value} for the names in `scores` at least; `between(n)` is called
                after each batch

    training    batches by number, without an end: item k is {"number": k, ...} and depends on k alone
    validation(length, tokens)  the fixed held-out batches; None: as the config says
    tokens(steps)  how many tokens these many steps take

    Tasks inherit from `ablatio.model.task.Task`, which has the optional hooks with what they do by default.

    accepts     what it makes of its source: documents | conversations | feedback
    copies    models held beside the one that trains: a reference
    scores    what it is scored by, under `val/`; `main` is the one that runs are compared by, `better` lower or higher
    template  whether it writes its texts in the form of `template`
    needs     kinds that a config may leave out and this task may not, each with the option that is usual: alignment=dpo
    """

    accepts: ClassVar[str]
    scores: ClassVar[Sequence[str]]
    main: ClassVar[str]
    better: ClassVar[str]
    template: ClassVar[bool]
    needs: ClassVar[Sequence[str]]
    metrics: ClassVar[Sequence[str]]
    copies: ClassVar[int]
    tokenizer: Tokenizer
    content: dict[str, Any]

    @property
    def training(self) -> Batches: ...

    def validation(self, length: int | None = None, tokens: int | None = None) -> Batches: ...

    def tokens(self, steps: int) -> int: ...

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Any: ...

    def loss(self, model: Any, example: Any) -> Loss: ...

    def score(
        self, model: Any, batches: Batches, device: torch.device, between: Callable[[int], None]
    ) -> dict[str, float]: ...


class Batches(Protocol):
    """Batches by number."""

    def __getitem__(self, number: int) -> dict[str, Tensor]: ...


class Logger(Protocol):
    """Where the numbers of a run go beside metrics.csv.  Writes into the run's folder or beside it, never elsewhere.

    start(rows)     begin with these rows in place of all that the log holds of this run: none, or those up to the step
                    at which the run goes on; may come again
    log(row)        name -> number, `step` and `tokens` among them; a validation is a row of its own, of the same step
    finish(status)  done, preempted, diverged or failed

    record  whether it is metrics.csv itself, which every run writes
    """

    record: ClassVar[bool]

    def start(self, rows: Sequence[Mapping[str, float]]) -> None: ...

    def log(self, row: Mapping[str, float]) -> None: ...

    def finish(self, status: str) -> None: ...


objectives: Registry[Objective] = Registry(
    "objective",
    "What is predicted from what.",
    wiring=("vocab_size", "eos", "max_len"),
    methods=("__call__",),
    facts={"produces": "next tokens", "metrics": ()},
)

optimizers: Registry[torch.optim.Optimizer] = Registry(
    "optimizer",
    "How gradients change the weights; groups of parameters come by role.",
    wiring=("groups",),
    facts={"decays": True, "entrywise": True},
)

checkpointings: Registry[Checkpointing] = Registry(
    "checkpointing",
    "Which activations are kept for the backward pass; the others are computed once more.",
    methods=("apply",),
    default="none",
)

schedules: Registry[Schedule] = Registry(
    "schedule",
    "The learning rate over the run.",
    calls={("step", "total"): {}, ("step", "total", "scores"): {"watches": True}},
    methods=("__call__",),
    facts={"watches": False},
)

stabilizers: Registry[Stabilizer] = Registry(
    "stabilizer",
    "What keeps a run from diverging; several at once.",
    any_of=("before_step", "after_step", "attach", "averaged", "batch_rows"),
    facts={"metrics": (), "rewinds": False},
    multiple=True,
)

TASK_METHODS = (  # the last twelve are hooks, which the base class has
    "validation", "tokens", "example", "loss", "score",
    "attach", "prepare", "begin_step", "before_step", "redrawn", "samples", "work", "ask", "state_dict",
    "load_state_dict", "needs_start", "uses_template",
)  # fmt: skip

tasks: Registry[Task] = Registry(
    "task",
    "What a run learns from: its data, its loss, its scores.",
    wiring=("setup",),
    methods=TASK_METHODS,
    base="ablatio.model.task.Task",
    facts={
        "accepts": "documents",
        "scores": ("loss",),
        "main": "loss",
        "better": "lower",
        "template": False,
        "needs": (),
        "metrics": (),
        "copies": 0,
    },
    default="pretrain",
)

loggers: Registry[Logger] = Registry(
    "logger",
    "Where the numbers of a run go beside metrics.csv; several at once.",
    wiring=("folder", "config"),
    methods=("start", "log", "finish"),
    facts={"record": False},
    multiple=True,
)
