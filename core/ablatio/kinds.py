"""The kinds of parts: what is handed over, what a part does, in which shapes, and the registry of each.

Shapes: B batch, T query time, S key time, H heads, D width, V vocabulary.  Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.alignment import ALL_WORDS
from ablatio.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ablatio.alignment import Advantages, Metrics
    from ablatio.data.chat import Template
    from ablatio.data.types import Source, Tokenizer
    from ablatio.model.answers import Answer
    from ablatio.model.answers import Step as AnswerStep
    from ablatio.model.context import Context
    from ablatio.model.example import Example
    from ablatio.model.language_model import LanguageModel, Loss
    from ablatio.model.roles import ParameterInfo
    from ablatio.orders import End, Order
    from ablatio.tasks.step import Step


class Norm(Protocol):
    """Normalises the last axis: (..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor: ...


class Placement(Protocol):
    """Wraps one sublayer and its norms: (B, T, D) -> (B, T, D).

    around      wiring: the sublayer that it stands around: attention | cross | mlp | both (where they are added up)
    n_norms     norms that each sublayer gets (one module, or a ModuleList of none or several), or a pair: those of
                an attention, and those of a feed-forward part
    first_norms  the same of the first layer, where it has others (None: it has not)
    final_norm  whether the stack ends with a norm of its own
    embedding_norm  whether it starts with one, right after the embedding
    inner_norm  the sublayers (attention, mlp) that get a norm before their last projection
    gain        what the init of value, output and feed-forward matrices is multiplied with (deepnorm's beta)
    whole_rows  as in an Mlp

    A stream of another shape than (B, T, D) is made by `open(x)` before the first layer and taken back by
    `close(x, norm)` after the last one, which also applies the final norm (the identity where there is none); both are
    called on an instance whose `layer` is None, which needs no weights for a sublayer.
    """

    n_norms: ClassVar[int | tuple[int, int]]
    first_norms: ClassVar[int | tuple[int, int] | None]
    final_norm: ClassVar[bool]
    embedding_norm: ClassVar[bool]
    inner_norm: ClassVar[Sequence[str]]
    gain: float
    whole_rows: ClassVar[bool]

    def __call__(self, x: Tensor, sublayer: Any, norm: nn.Module) -> Tensor: ...


class Activation(Protocol):
    """Elementwise `(x)`, or gated `(gate, up)`: then the MLP adds a gate projection."""

    def __call__(self, *args: Tensor) -> Tensor: ...


class Mlp(Protocol):
    """(B, T, D) -> (B, T, D).

    Extra losses and numbers for the log go through `ctx.add_loss("train/balance", x)` and `ctx.measure(...)`; the fact
    `metrics` lists their names.  The attribute `idle_parameters` counts the weights that a token passes by.

    whole_rows  in training what becomes of a token also depends on how its row, or the batch, is cut into passes
    """

    whole_rows: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Position(Protocol):
    """Any of these methods; the one that is defined is used.  Positions are (T,) or (B, T) integers.

    embed(x, pos)           (B, T, D) -> (B, T, D), once, on the embeddings
    rotate(q, k, pos)       (B, H, T, d_head) each -> the same, in each layer
    prepare(pos, dtype, length)  optional: made once a pass, and given to `rotate` in place of pos; length: the tokens
                            seen up to now, () or as many as there are positions
    skips(layer)            optional: whether `rotate` is left out in this layer
    bias(q_pos, k_pos)      -> (H, T, S) or (B, H, T, S), once a pass, added to the attention logits
    score(q, k, q_pos, k_pos)  (B, H, T, d_head), (B, H, S, d_head) -> (B, H, T, S), in each layer, added to the logits

    extends  whether it may see positions beyond `max_len`
    late     whether the angles depend on `length`: then the cache holds keys as they were, and all are turned each time
    """

    extends: ClassVar[bool]
    late: ClassVar[bool]


class Attention(Protocol):
    """(B, T, D) -> (B, T, D), through `ctx` for positions, mask and cache.

    caches          decodes with the KV cache (`ctx.place`, `ctx.cache`)
    takes_bias      adds a position's bias or score to its logits
    takes_segments  keeps packed documents apart
    cross           attends to an encoder's states where `ctx.memory` is given (`ctx.keys_values`)
    bidirectional   may see what comes later, when `ctx.mask` is "full" or a prefix is open
    prefix          its keys and values may begin with those of tokens that are not there
    turns_late      keeps keys as they were, for a position that turns all of them anew when a text grows (`late`)

    hidden_flops(ctx)  optional: of one row, the FLOPs of pairs that a counter takes for seen and a pattern hides
    """

    caches: ClassVar[bool]
    takes_bias: ClassVar[bool]
    takes_segments: ClassVar[bool]
    cross: ClassVar[bool]
    bidirectional: ClassVar[bool]
    prefix: ClassVar[bool]
    turns_late: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Block(Protocol):
    """One layer: (B, T, D) -> (B, T, D); with `parts.cross` it also attends to an encoder, through `ctx.cross`.

    cross     whether it has a place for `parts.cross`
    adds_up   whether attention and feed-forward are one sublayer, with one placement around both
    """

    cross: ClassVar[bool]
    adds_up: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Architecture(Protocol):
    """A function of the assembly that gives a LanguageModel.

    mask       who sees whom: causal | prefix | full | encoder_decoder
    takes      the kinds of examples that it can learn from (`gives` of an objective)
    stacks     which stacks it has: encoder, decoder or both
    objective  the option that is usual with it
    """

    mask: ClassVar[str]
    takes: ClassVar[Sequence[str]]
    stacks: ClassVar[Sequence[str]]
    objective: ClassVar[str]


class Init(Protocol):
    """Fills one matrix in place; called for each parameter with a generator that its name seeds.

    Optional: `rate(info)`, a factor on the learning rate of a parameter; `logit_scale(d_model)` and
    `attention_scale(d_head)`, where `model.logit_scale` and `model.attention_scale` are left open.
    """

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None: ...


class Objective(Protocol):
    """Rows of tokens (B, T+1) -> what the model reads and what it has to say; deterministic in the generator.

    gives         next tokens | source and target | blanks in place
    extra_tokens  optional: ids that it needs behind the tokenizer's (sentinels, masks), known from knobs and wiring
    ahead         optional: how many coming tokens a position has to say, by default 1; the model then has ahead - 1
                  siblings of its last layer, and the example `further` targets for them
    metrics       what the loss logs beside itself
    loss(model, example)  optional: in place of the model's cross-entropy; scores are those of the cross-entropy still
    teacher       optional: the folder of the run to learn from, whose model `learn_from(model)` gets before training
    """

    gives: ClassVar[str]
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


class Quantization(Protocol):
    """`apply(model)` turns the matrices of linear maps into codes of few bits, in place; the maps stay where they are.

    bits   of a code; 32: nothing is done
    aware  a knob, if it has one: weights stay as they are, and each pass rounds them (straight-through gradients)
    """

    bits: ClassVar[int]

    def apply(self, model: nn.Module) -> None: ...


class Peft(Protocol):
    """Makes few weights train in place of all: what is learned stands beside the base, which is frozen bit for bit.

    apply(model, seed)  changes the model in place; afterwards `requires_grad` stands on what trains and on nothing else
    prepare(model)      optional, before that: what becomes of the base itself (its quantisation)
    rate(info)          optional: a factor on the learning rate of a parameter (ablatio.model.roles)
    before_step(step), after_step(step)  optional, as in a stabilizer; what lasts is kept in buffers of the model

    exact    whether the model at step 0 is the base to the last bit, and not only to rounding
    virtual  whether it adds keys and values of tokens that are not there: then attention must have such
    whole_rows  as in an Mlp
    """

    exact: ClassVar[bool]
    virtual: ClassVar[bool]
    whole_rows: ClassVar[bool]

    def apply(self, model: nn.Module, seed: int) -> None: ...


class Checkpointing(Protocol):
    """`apply(model)`, in place: layers keep less for their backward pass and are computed once more there.

    Losses and gradients stay what they are, to the last bit (ablatio.model.recompute).
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

    `before_step` may raise SkipStep (nothing moves) or, with the fact `rewinds`, Rewind (ablatio.tasks.step).
    What lasts from step to step beyond the weights goes through `state_dict()` and `load_state_dict(state)`.
    """

    metrics: ClassVar[Sequence[str]]

    def before_step(self, step: Step) -> dict[str, Tensor]: ...


class Launcher(Protocol):
    """Runs the jobs of a sweep, each in a process of its own.

    work   wiring: called there with an order; it does the job and writes its end into the ledger (ablatio.orders)
    slots  how many run at a time

    start() and stop() enclose all else; stop asks the runs for a checkpoint, and returns when they have ended.
    submit(order) returns at once; poll(seconds) waits that long at most for the ends of orders; cancel(job) asks one
    run to stop.
    """

    slots: int

    def start(self) -> None: ...

    def submit(self, order: Order) -> None: ...

    def poll(self, seconds: float) -> Sequence[End]: ...

    def cancel(self, job: str) -> None: ...

    def stop(self) -> None: ...


class Design(Protocol):
    """Which arms a sweep runs; an arm is {key: value as text}.

    axes      wiring: each has a `key`, its `values` as texts, and `at(u)`, the value at 0 <= u < 1; the seed is none
    baseline  wiring: the arm that others are compared with; the first value of each axis where none was named
    count     how many arms there are at most: asked before any is made
    intervals  whether an axis may be an interval

    Any of these: arms(), all of them; more(told), for a search: what it asks for next (ablatio.space), a function
    of what it was told alone; aliases(), sentences: which effects the arms cannot tell apart.
    """

    intervals: ClassVar[bool]

    def count(self) -> int: ...


class Task(Protocol):
    """What a run learns: its data, the loss of a batch, the scores of a model.  It knows neither Lightning nor Hydra.

    Made from `setup` (ablatio.tasks.setup.Setup: the config, the seeds, which rows each batch has); then it has

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

    Optional:
    attach(model)    once, when the model is built: a reward or value head, whatever it trains beside the model
    prepare(model)   once, when the model has its first weights and stands on its device: what the reference says
    begin_step(model, step)  before the first batch of an optimizer step: new rollouts
    before_step(step)  gradients are ready; a dict of numbers to log, or SkipStep, as of a stabilizer
    redrawn(model, example, generator)  the example with targets that the model draws, for curvature estimates
    samples(model)   what the model answers now, as rows of texts for samples.jsonl
    work(steps)      ablatio.tasks.work.Work: tokens that were learnt and those that were only read; by default all of
                     `tokens` are learnt.  row_length: tokens of a row, where that is not the config's
    ask(objective, model)  score what another objective asks for from now on
    state_dict(), load_state_dict(state)  what lasts from step to step beyond the weights

    takes     what it makes of its source: documents | conversations | feedback
    copies    models held beside the one that trains: a reference
    scores    what it is scored by, under `val/`; `main` is the one that runs are compared by, `better` lower or higher
    template  whether it writes its texts in the form of `template`
    needs     kinds that a config may leave out and this task may not, each with the option that is usual: alignment=dpo
    """

    takes: ClassVar[str]
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


class Alignment(Protocol):
    """A loss on log-probabilities, pure: it names what it wants, from the words in ablatio.alignment.

    data             pairs | rankings | labelled | prompts
    loss(...)        (loss, metrics): the mean over the batch, and numbers to log under the names in `metrics`
    rejected         given | reference: in the data, or an answer that the frozen reference gives to the same prompt
    detached         a factor of the loss is held constant in its gradient (a weight, a clipped ratio)
    moves_reference  the reference follows the policy: after each step it becomes rate x policy + (1 - rate) x itself,
                     `reference_rate(step)`; so its log-probabilities cannot be kept

    A policy method (data = prompts) has a second step and says how answers are used:

    advantages(...)  Advantages, from the rewards of one rollout, without gradient
    group            answers to each prompt
    epochs           how often a rollout is passed over
    minibatches      optimizer steps in one pass
    whole_groups     the answers to one prompt stay in one minibatch
    prompts          given | text: a text is cut into prompts, and what follows is the answer that is looked for
    writer           optional: policy | reference: who writes the answers that are learned from; by default the policy
    best_of          optional: n, where the weights stay and the best of n answers is what the model gives
    observe(kl)      optional: the mean KL to the reference of a rollout, before its advantages are asked for
    stops(kl)        optional: whether to leave the rollout, `kl` being that from the policy that wrote it
    resample         optional: how often prompts whose answers all have the advantage 0 are replaced by others, for a
                     method whose advantages ask for nothing but rewards, mask and max_length
    hardness(logits), least_entropy  optional: how hard a prompt is by what the reference says comes next, (N, V) ->
                     (N,), and how hard it must be to be asked; 0: all are asked

    What lasts from rollout to rollout goes through `state_dict()` and `load_state_dict(state)`.
    """

    data: ClassVar[str]
    rejected: ClassVar[str]
    detached: ClassVar[bool]
    moves_reference: ClassVar[bool]
    whole_groups: ClassVar[bool]
    prompts: ClassVar[str]
    metrics: ClassVar[Sequence[str]]
    loss: Callable[..., tuple[Tensor, Metrics]]


class PolicyMethod(Alignment, Protocol):
    """An Alignment whose data are prompts."""

    group: int
    epochs: int
    minibatches: int
    advantages: Callable[..., Advantages]


class Reward(Protocol):
    """How good answers are: N answers (ablatio.model.answers.Answer) -> (N,), higher is better.

    A function part judges one answer and gives a number, or two (answer, other) and gives the chance that the first is
    better, which reward=ranking makes a reward of.  A reward that judges steps gives a list of Steps for each answer,
    and says `per_step`; one that looks at the answers to a prompt side by side says `compares`.  `open_run` (wiring)
    turns the folder of a reward model into a function of answers.
    """

    per_step: ClassVar[bool]
    compares: ClassVar[bool]

    def __call__(self, answers: Sequence[Answer]) -> Tensor | list[list[AnswerStep]]: ...


norms: Registry[nn.Module] = Registry(
    "norm", "Normalises the residual stream.", wiring=("d_model",), methods=("forward",)
)
placements: Registry[Placement] = Registry(
    "placement",
    "Where the norms stand around a sublayer, and how the residual is scaled.",
    wiring=("d_model", "n_layers", "layer", "sublayer", "around", "side", "encoder_layers", "decoder_layers"),
    methods=("__call__",),
    facts={
        "n_norms": 1,
        "first_norms": None,
        "final_norm": True,
        "embedding_norm": False,
        "inner_norm": (),
        "whole_rows": False,
    },
)
activations: Registry[Activation] = Registry(
    "activation",
    "The nonlinearity of the feed-forward part; gated ones take (gate, up).",
    wiring=("d_ff",),
    calls={("x",): {"gated": False}, ("gate", "up"): {"gated": True}},
    methods=("forward",),
    facts={"gated": False},
)
mlps: Registry[nn.Module] = Registry(
    "mlp",
    "The feed-forward part of a layer.",
    wiring=("d_model", "d_ff", "activation", "gated", "bias", "dropout", "layer", "n_layers", "inner_norm"),
    methods=("forward",),
    facts={"metrics": (), "whole_rows": False},
)
positions: Registry[Position] = Registry(
    "position",
    "How the model knows where a token stands.",
    wiring=("d_model", "d_head", "n_heads", "n_layers", "max_len", "causal"),
    any_of=("embed", "rotate", "bias", "score"),
    facts={"extends": True, "late": False},
)
attentions: Registry[nn.Module] = Registry(
    "attention",
    "How tokens look at one another.",
    wiring=(
        "d_model",
        "d_head",
        "n_heads",
        "n_layers",
        "max_len",
        "bias",
        "dropout",
        "layer",
        "scale",
        "inner_norm",
    ),
    methods=("forward",),
    facts={
        "caches": True,
        "takes_bias": True,
        "takes_segments": True,
        "cross": False,
        "bidirectional": True,
        "prefix": False,
        "turns_late": True,
        "metrics": (),
    },
)
blocks: Registry[nn.Module] = Registry(
    "block",
    "How attention and feed-forward make a layer.",
    wiring=("parts",),
    methods=("forward",),
    facts={"cross": False, "adds_up": False},
)
architectures: Registry[LanguageModel] = Registry(
    "architecture",
    "Which stacks there are and what each token may see.",
    wiring=("assembly",),
    facts={"mask": "causal", "takes": ("next tokens",), "stacks": ("decoder",), "objective": "lm"},
)
inits: Registry[Init] = Registry(
    "init",
    "How the matrices start; vectors start as their part says.",
    calls={("weight", "info", "generator"): {}},
    methods=("__call__",),
)
objectives: Registry[Objective] = Registry(
    "objective",
    "What is predicted from what.",
    wiring=("vocab_size", "eos", "max_len"),
    methods=("__call__",),
    facts={"gives": "next tokens", "metrics": ()},
)
optimizers: Registry[torch.optim.Optimizer] = Registry(
    "optimizer",
    "How gradients change the weights; groups of parameters come by role.",
    wiring=("groups",),
    facts={"decays": True, "entrywise": True},
)
quantizations: Registry[Quantization] = Registry(
    "quantization",
    "How many bits a frozen weight takes.",
    methods=("apply",),
    facts={"bits": 32},
    default="none",
)
pefts: Registry[Peft] = Registry(
    "peft",
    "Which weights train: all, or a few beside a frozen base.",
    methods=("apply",),
    facts={"exact": True, "virtual": False, "metrics": (), "whole_rows": False},
    default="none",
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
    many=True,
)
sources: Registry[Source] = Registry(
    "source",
    "Where documents come from.",
    methods=("documents", "fingerprint"),
    any_of=("documents", "conversations", "feedback"),
)
tokenizers: Registry[Tokenizer] = Registry(
    "tokenizer",
    "How text becomes ids.",
    methods=("train", "encode", "decode", "token_bytes", "state", "restore"),
    facts={"trained": True},
)
launchers: Registry[Launcher] = Registry(
    "launcher",
    "Where the runs of a sweep are executed.",
    wiring=("work",),
    methods=("start", "submit", "poll", "cancel", "stop"),
    in_run=False,
)
designs: Registry[Design] = Registry(
    "design",
    "Which arms a sweep runs.",
    wiring=("axes", "baseline"),
    methods=("count",),
    any_of=("arms", "more", "aliases"),
    facts={"intervals": False},
    in_run=False,
)

templates: Registry[Template] = Registry(
    "template",
    "The form in which a conversation is written.",
    methods=("__call__",),
    facts={"signs": (), "end": ""},
    default="plain",
)
tasks: Registry[Task] = Registry(
    "task",
    "What a run learns from: its data, its loss, its scores.",
    wiring=("setup",),
    methods=("validation", "tokens", "example", "loss", "score"),
    facts={
        "takes": "documents",
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
    many=True,
)

alignments: Registry[Alignment] = Registry(
    "alignment",
    "What preferences and rewards teach: a loss on log-probabilities.",
    methods=("loss",),
    facts={
        "data": "pairs",
        "rejected": "given",
        "detached": False,
        "moves_reference": False,
        "whole_groups": False,
        "prompts": "given",
        "metrics": (),
    },
    asks={"loss": ALL_WORDS, "advantages": ALL_WORDS},
    optional=True,
)
rewards: Registry[Reward] = Registry(
    "reward",
    "How good an answer is.",
    wiring=("open_run",),
    calls={
        ("answer",): {"per_step": False, "compares": False},
        ("answer", "other"): {"per_step": False, "compares": True},
    },
    methods=("__call__",),
    facts={"per_step": False, "compares": False},
    optional=True,
)

__all__ = [
    "activations", "alignments", "architectures", "attentions", "blocks", "checkpointings", "designs", "inits",
    "launchers", "loggers", "mlps", "norms", "objectives", "optimizers", "pefts", "placements", "positions",
    "quantizations", "rewards", "schedules", "sources", "stabilizers", "tasks", "templates", "tokenizers",
]  # fmt: skip
