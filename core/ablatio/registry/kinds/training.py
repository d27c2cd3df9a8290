"""Kinds of training parts: objectives, optimizers, schedules, stabilizers, checkpointing, tasks and loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn

    from ablatio.model.example import Example, Loss
    from ablatio.model.optimizer_step import OptimizerStep
    from ablatio.registry.kinds.data import Tokenizer


class Objective(Protocol):
    """Makes training examples: rows of tokens (B, T+1) -> Example with inputs and targets.

    Wiring:
    vocab_size    V, number of ids of the tokenizer
    eos           id that opens each document
    max_len       largest number of tokens in training

    Methods:
    __call__(tokens, segments, generator)  must be deterministic in the generator.  `tokens` and `segments` (B, T+1);
                  segments numbers the documents of a packed row; None: one document per row

    Facts:
    produces      what the examples ask for: next tokens | source and target | blanks in place | blanks under masks;
                  the last are masked tokens in documents that each have a mask of their own (Example.opened)
    metrics       names of the numbers that `loss` logs
    waits         why its loss makes the host wait for a GPU; "": it does not
    splits_tokens  True if the loss is the model's own, a sum over the tokens, and its examples have no source and no
                  `opened`: then devices can have parts of a row
    splits_layers  False if its loss needs more than one pass of the model, or more than the states of the last layer:
                  then devices cannot divide the layers
    reads_head    True if its loss reads the matrix of the output head itself: then devices cannot divide its rows

    Optional attributes and methods:
    extra_tokens  number of token ids needed beyond the tokenizer's (sentinels, masks); must follow from knobs and
                  wiring alone
    ahead         number of future tokens predicted at each position, default 1; the model then has ahead - 1 copies of
                  its last layer, each with its own weights, and the example has `further` targets for them
    further_heads  number of output heads that the objective trains beside the model's own, default 0; its `loss` finds
                  them as `model.further_heads`
    loss(model, example)  replaces the model's cross-entropy as the training loss; validation still scores cross-entropy
    teacher       folder of the teacher's run; its model is passed to `learn_from(model)` before training
    learn_from(model)  takes the teacher's model
    context       text that the teacher reads before each document
    take_context(ids)  takes the token ids of `context`
    take_tokens(texts)  takes the text of each token id before training, for a loss that depends on their spelling
    """

    produces: ClassVar[str]
    metrics: ClassVar[Sequence[str]]

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example: ...


class ObjectiveMethods(Protocol):
    """Optional methods of an Objective."""

    def loss(self, model: Any, example: Example) -> Loss: ...

    def learn_from(self, model: Any) -> None: ...

    def take_context(self, ids: Sequence[int]) -> None: ...

    def take_tokens(self, texts: Sequence[str]) -> None: ...


class Optimizer(Protocol):
    """Factory of a torch Optimizer from parameter groups by role; a function part declares its facts in `register`.

    Wiring:
    groups     list of {"params": [...], "role": ..., "rate": ...}; role: matrix | vector | embedding | head; rate: a
               factor on the learning rate

    Optional methods:
    observe(step)  called before each update with the OptimizerStep (ablatio.model.optimizer_step)
    eval(), train()  switch to the weights to score and save, and back (schedule-free optimizers)

    Facts:
    decays     True if it has weight decay
    entrywise  True if the step of each weight has a size of about lr, independent of the size of its gradient (Adam,
               Lion); muP's learning rates hold only then.  False if the step is proportional to the gradient (SGD) or
               scaled for a whole matrix (Muon, Shampoo, LAMB)
    updates    the smallest piece that can be updated without the rest: entry (a weight, from its own gradients),
               tensor (a parameter, whole), model (all parameters, as with a sum over all of them).  Devices that hold
               parts of the weights update such pieces
    whole_if   names of knobs that, when on, make an update need whole tensors although `updates` is entry
    samples    True if `observe` asks for the loss of targets that are sampled from the model
    """

    decays: ClassVar[bool]
    entrywise: ClassVar[bool]
    updates: ClassVar[str]
    whole_if: ClassVar[Sequence[str]]
    samples: ClassVar[bool]


class OptimizerMethods(Protocol):
    """Optional methods of an Optimizer."""

    def observe(self, step: OptimizerStep) -> None: ...

    def eval(self) -> None: ...

    def train(self) -> None: ...


class Checkpointing(Protocol):
    """Activation checkpointing: stores fewer activations and recomputes the others in the backward pass.

    Methods:
    apply(model)  sets it up in place.  Losses and gradients must stay bitwise the same
                  (ablatio.model.activation_checkpointing)
    """

    def apply(self, model: nn.Module) -> None: ...


class Schedule(Protocol):
    """Learning-rate schedule: (step, total steps) -> factor on the learning rate; steps count from 0.

    A schedule that takes (step, total, scores) is also passed the held-out losses so far, beginning with that of the
    untrained model.  It must keep no state of its own: the scores are stored in checkpoints, so that a resumed run gets
    the same ones.

    Methods:
    __call__(step, total, scores)  the factor, 0 ... 1; `scores` only if it `watches`

    Facts:
    watches  True if it takes the scores; set from the signature of a function
    """

    watches: ClassVar[bool]

    def __call__(self, step: int, total: int, scores: Sequence[float] = ()) -> float: ...


class Stabilizer(Protocol):
    """Keeps training stable; defines one or more of these methods.

    Methods:
    attach(model)       called once before training, to register hooks or set switches
    before_step(step)   called when the gradients of an optimizer step are ready; returns {metric: scalar} to log.  May
                        raise SkipStep (no update) or, with the fact `rewinds`, Rewind: ablatio.model.optimizer_step
    after_step(step)    called after the weights were updated; returns the same
    averaged(model)     context manager inside which the model holds the weights to evaluate and to save
    batch_rows(seen, full)  number of rows of the next batch, after `seen` training tokens; `full`: train.batch_size
    stops(scores)       True if the run shall end now; called after each validation with the held-out scores so far,
                        lower is better, beginning with that of the untrained model.  It must keep no state of its own

    Optional:
    state_dict(), load_state_dict(state)  state beyond the weights that must survive a resume

    Facts:
    metrics   names of the logged numbers
    rewinds   True if `before_step` may raise Rewind
    """

    metrics: ClassVar[Sequence[str]]

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]: ...


class StabilizerMethods(Protocol):
    """Other methods of a Stabilizer."""

    def attach(self, model: nn.Module) -> None: ...

    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]: ...

    def averaged(self, model: nn.Module) -> AbstractContextManager[None]: ...

    def batch_rows(self, seen: int, full: int) -> int: ...

    def stops(self, scores: Sequence[float]) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task(Protocol):
    """Data, loss and scores of a run, independent of Lightning and Hydra.

    Wiring:
    setup       the run's config, seeds and rows of each batch (ablatio.training.task_context.TaskContext)

    Attributes:
    tokenizer   the trained tokenizer, with all ids that the model must know
    content     description of the data for the manifest: plain values, among them a fingerprint
    training    endless batches by number: item k is {"number": k, ...} and depends on k alone

    Methods:
    validation(length, tokens)  the fixed held-out batches; rows of `length` tokens, at most `tokens` in all; None: as
                in the config
    example(batch, generator)   turns a batch of `training` into the object that `loss` takes, on the CPU; must have
                `.to(device)`.  Deterministic in the generator, which is seeded by the batch number
    loss(model, example)        a Loss: the sum, the count to divide it by, and the metrics to log
    score(model, batches, device, between)  {name: value} with at least the names in `scores`; calls `between(n)` after
                each batch
    tokens(steps)               number of tokens that this many steps train on

    Tasks inherit from `ablatio.model.task.Task`, which documents the optional hooks and what they do by default.

    Facts:
    accepts   what it reads from its source: documents | conversations | feedback
    scores    names of its scores, logged under `val/`
    main      the score by which runs are compared
    better    whether a lower or a higher `main` is better: lower | higher
    template  True if it writes conversations in the form of `template`
    needs     optional kinds that this task requires, each with the usual option, as "alignment=dpo"
    metrics   names of the numbers that `loss` logs
    copies    number of models held in memory beside the trained one, as a reference
    batch_changes   False if `train.batch_size` may not be a schedule: its batches do not follow that plan
    several_devices  True if its loss is a sum over rows, or gathers what it compares: then several ranks can train
    splits_tokens  True if its examples are rows of tokens (ablatio.model.example.Example) with a sum over them as loss
    splits_layers  True if its loss is one sum over the rows of such an example, from one pass of the model
    length_changes  True if `data.length` may be a schedule: its rows follow the plan of its TaskContext
    trains    False if it only scores the model: a run has no optimizer step
    reads     kinds of the scope `use` that it builds, as ("decode", "prompt"); a config chooses no others
    mixes           True if its rows are drawn by `mixture` and `curriculum` (ablatio.training.data_streams.DataStreams)
    """

    accepts: ClassVar[str]
    scores: ClassVar[Sequence[str]]
    main: ClassVar[str]
    better: ClassVar[str]
    template: ClassVar[bool]
    needs: ClassVar[Sequence[str]]
    metrics: ClassVar[Sequence[str]]
    copies: ClassVar[int]
    batch_changes: ClassVar[bool]
    several_devices: ClassVar[bool]
    length_changes: ClassVar[bool]
    trains: ClassVar[bool]
    reads: ClassVar[Sequence[str]]
    mixes: ClassVar[bool]
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
    """Batches by number: item k is the k-th batch, a mapping of tensors."""

    def __getitem__(self, number: int) -> dict[str, Tensor]: ...


class Logger(Protocol):
    """Writes the metrics of a run, into the run's folder or next to it and nowhere else.

    Wiring:
    folder          the run's folder, a pathlib.Path
    config          the run's config as a dict, secrets not resolved

    Methods:
    start(rows)     replace all that the log holds of this run by these rows: none for a new run, those up to the
                    resumed step for a resumed one; may be called again
    log(row)        append {name: number}, with `step` and `tokens`; a validation has its own row with the same step
    finish(status)  end the log; status: done | preempted | diverged | failed

    Facts:
    record  True for metrics.csv itself, which every run writes
    """

    record: ClassVar[bool]

    def start(self, rows: Sequence[Mapping[str, float]]) -> None: ...

    def log(self, row: Mapping[str, float]) -> None: ...

    def finish(self, status: str) -> None: ...


objectives: Registry[Objective] = Registry(
    "objective",
    "Which tokens the model predicts, and from which.",
    contract=(Objective, ObjectiveMethods),
    wiring=("vocab_size", "eos", "max_len"),
    methods=("__call__",),
    facts={"produces": "next tokens", "metrics": (), "waits": "", "splits_layers": True}
    | dict.fromkeys(("splits_tokens", "reads_head"), False),
    scope="training",
    shapes_model=True,
    usual="lm",
)

optimizers: Registry[torch.optim.Optimizer] = Registry(
    "optimizer",
    "How gradients update the weights; parameters are grouped by role.",
    contract=(Optimizer, OptimizerMethods),
    wiring=("groups",),
    facts={"decays": True, "entrywise": True, "updates": "tensor", "whole_if": (), "samples": False},
    scope="training",
    usual="adamw",
)

checkpointings: Registry[Checkpointing] = Registry(
    "checkpointing",
    "Which activations are stored for the backward pass; the others are recomputed.",
    contract=(Checkpointing,),
    methods=("apply",),
    default="none",
    scope="memory",
)

schedules: Registry[Schedule] = Registry(
    "schedule",
    "How the learning rate changes over the run.",
    contract=(Schedule,),
    calls={("step", "total"): {}, ("step", "total", "scores"): {"watches": True}},
    methods=("__call__",),
    facts={"watches": False},
    scope="training",
    usual="cosine",
)

stabilizers: Registry[Stabilizer] = Registry(
    "stabilizer",
    "Measures that keep training stable; several can be combined.",
    contract=(Stabilizer, StabilizerMethods),
    any_of=("before_step", "after_step", "attach", "averaged", "batch_rows", "stops"),
    facts={"metrics": (), "rewinds": False},
    multiple=True,
    ordered=True,
    scope="training",
    usual=("clip",),
)

TASK_METHODS = (  # the last fourteen are hooks, which the base class has
    "validation", "tokens", "example", "loss", "score",
    "own_rows", "attach", "prepare", "begin_step", "before_step", "redrawn", "samples", "work", "epoch_rows", "drawn",
    "ask",
    "state_dict", "load_state_dict", "needs_start", "uses_template",
)  # fmt: skip

tasks: Registry[Task] = Registry(
    "task",
    "What a run trains on: its data, its loss, its scores.",
    contract=(Task,),
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
        "batch_changes": True,
        "length_changes": False,
        "trains": True,
        "reads": (),
        "mixes": False,
        "several_devices": True,
        "splits_tokens": False,
        "splits_layers": False,
    },
    default="pretrain",
    scope="task",
)

loggers: Registry[Logger] = Registry(
    "logger",
    "Where metrics are written, besides metrics.csv; several can be combined.",
    contract=(Logger,),
    wiring=("folder", "config"),
    methods=("start", "log", "finish"),
    facts={"record": False},
    multiple=True,
    scope="output",
    usual=("csv",),
)
