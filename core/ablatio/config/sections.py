"""The sections of a run's config and their settings, with types, ranges, units and defaults."""

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

from ablatio.registry.knobs import (
    Knob,
    NonNegative,
    OptionOf,
    Positive,
    Processes,
    Range,
    Schedulable,
    Size,
    read_signature,
)  # fmt: skip


@dataclass(kw_only=True)
class Run:
    """Settings of the whole run, at the top level of the config: `seed=2`."""

    seed: Annotated[int, Range(0, 2**31), "default of all random streams in `seeds`"] = 1
    match: Annotated[
        Literal["none", "params"], "params: gated units get a smaller d_ff, so that parameter counts match"
    ] = "params"
    freeze: Annotated[tuple[str, ...], "weights that are not trained, by role or place: [embedding,layers.0-3]"] = ()
    extend: Annotated[str | None, "folder of a finished run to continue with a longer budget and a new schedule"] = None
    score: Annotated[
        str | None, "score by which runs are compared, as eval/addition/accuracy; by default the task's main one"
    ] = None
    out: Annotated[str, "folder that contains the run folders"] = "runs"
    name: Annotated[str | None, "name of the run folder; by default the current time"] = None


@dataclass(kw_only=True)
class Model:
    """Origin and sizes of the model."""

    start: Annotated[
        Literal["scratch", "run", "hf"], "random initialization, an ablatio run, or a transformers folder"
    ] = "scratch"
    path: Annotated[str | None, "folder of the run or model to start from"] = None
    d_model: Annotated[int, Size, "width of the residual stream"] = 128
    n_layers: Annotated[int, Range(0, 10_000, open_low=True)] = 4
    n_heads: Annotated[int, Size] = 4
    d_head: Annotated[int | None, Size, "width of a head; by default d_model / n_heads"] = None
    d_ff: Annotated[int | None, Size, "inner width of the feed-forward part; by default 4 d_model"] = None
    vocab_size: Annotated[int | None, Size, "rows of the embedding; by default the number of token ids"] = None
    max_len: Annotated[int, Size, "maximum sequence length in training, and size of position tables"] = 128
    tied: Annotated[
        bool, Schedulable(), "the output head shares the embedding matrix; stages(true@0,false@0.66) unties it"
    ] = True
    bias: Annotated[bool, "biases in the linear layers"] = False
    dropout: Annotated[float, Range(0, 1, open_high=True), Schedulable()] = 0.0
    encoder_layers: Annotated[int | None, Positive, "encoder layers of an encoder-decoder; by default n_layers"] = None
    distinct_layers: Annotated[int | None, Positive, "layers with their own weights; the other layers share them"] = (
        None
    )
    sharing: Annotated[
        Literal["cycle", "runs", "middle"],
        "whose weights layers have: of 4 with distinct_layers=2 cycle is 0101, runs 0011; of 4 with 3 middle is 0112",
    ] = "cycle"
    embedding_norm: Annotated[bool | None, "norm after the embedding; by default chosen by the placement"] = None
    embedding_scale: Annotated[float, Positive, "factor on the embeddings"] = 1.0
    final_norm: Annotated[bool | None, "norm after the last layer; by default chosen by the placement"] = None
    attention_scale: Annotated[float | None, Positive, "factor on q k^T; by default d_head^-1/2"] = None
    logit_scale: Annotated[float | None, Positive, "factor on the logits; by default 1"] = None


@dataclass(kw_only=True)
class Data:
    """How documents become batches."""

    length: Annotated[int | None, Size, Schedulable(flops=True), "tokens per row; by default model.max_len"] = None
    val_fraction: Annotated[
        float, Range(0, 0.5, open_low=True), "fraction of documents for validation, of those without a given split"
    ] = 0.02
    val_tokens: Annotated[int | None, Positive, "validation tokens that are scored; null: all"] = 131072
    document_mask: Annotated[bool, "tokens attend only within their own document of a packed row"] = True
    rows: Annotated[
        Literal["windows", "documents"], "windows: rows start anywhere in the token stream; documents: at a document"
    ] = "windows"
    order: Annotated[
        Literal["shuffled", "coprime"],
        "shuffled: rows at random; coprime: every k-th row of the text, k drawn per epoch without a common divisor",
    ] = "shuffled"


@dataclass(kw_only=True)
class Train:
    """Length of training, and intervals of logging, validation and checkpoints."""

    steps: Annotated[int, Range(0, 10**9, open_low=True), "optimizer steps"] = 2400
    tokens: Annotated[float | None, Positive, "training tokens instead of steps, rounded up to whole steps"] = None
    epochs: Annotated[float | None, Positive, "passes over the training data instead of steps"] = None
    batch_tokens: Annotated[float | None, Positive, "tokens per optimizer step, instead of accumulate"] = None
    batch_size: Annotated[int, Size, Schedulable(), "rows per batch"] = 4
    accumulate: Annotated[int, Size, "batches per optimizer step (gradient accumulation)"] = 1
    label_smoothing: Annotated[
        float, Range(0, 1, open_high=True), Schedulable(), "probability mass of a target spread over the vocabulary"
    ] = 0.0
    log_every: Annotated[int, Positive, "steps between logged metrics"] = 20
    val_every: Annotated[int | None, Positive, "steps between validations; null: only before and after"] = 600
    eval_every: Annotated[int | None, Positive, "steps between evaluations by `eval`; null: only at the end"] = None
    checkpoint_every: Annotated[int | None, Positive, "steps between checkpoints; null: only at the end"] = 600
    keep: Annotated[int, Positive, "number of checkpoints kept"] = 2


RateFactor = Annotated[float, Positive, "factor on the learning rate; weight decay per step is unchanged"]
OWN_SETTINGS = ("weight_decay", "betas", "eps")  # of the optimizer, that a role may have in a form of its own
OwnDecay = Annotated[float | None, NonNegative, "replaces optimizer.weight_decay for the weights of this role"]
OwnBetas = Annotated[tuple[float, float] | None, Range(0, 1, open_high=True), "replaces optimizer.betas, likewise"]
OwnEps = Annotated[float | None, Positive, "replaces optimizer.eps, likewise"]
OwnSchedule = Annotated[str | None, OptionOf("schedule"), "replaces `schedule`; takes over the knobs they share"]


@dataclass(kw_only=True)
class Roles:
    """Settings of the optimizer by role of a parameter, where they differ from the common ones."""

    matrix_rate: RateFactor = 1.0
    vector_rate: RateFactor = 1.0
    embedding_rate: RateFactor = 1.0
    head_rate: RateFactor = 1.0
    matrix_schedule: OwnSchedule = None
    vector_schedule: OwnSchedule = None
    embedding_schedule: OwnSchedule = None
    head_schedule: OwnSchedule = None
    matrix_weight_decay: OwnDecay = None
    vector_weight_decay: OwnDecay = None
    embedding_weight_decay: OwnDecay = None
    head_weight_decay: OwnDecay = None
    matrix_betas: OwnBetas = None
    vector_betas: OwnBetas = None
    embedding_betas: OwnBetas = None
    head_betas: OwnBetas = None
    matrix_eps: OwnEps = None
    vector_eps: OwnEps = None
    embedding_eps: OwnEps = None
    head_eps: OwnEps = None
    frozen: Annotated[
        tuple[str, ...], Schedulable(), "what keeps its weights: roles (matrix ...) and layers (layers.0 ...)"
    ] = ()


@dataclass(kw_only=True)
class Seeds:
    """Independent random streams; each uses `seed` unless it is set."""

    init: Annotated[int | None, NonNegative, "initial weights, drawn per parameter name"] = None
    data: Annotated[int | None, NonNegative, "order of the data"] = None
    dropout: Annotated[int | None, NonNegative, "dropout masks"] = None


@dataclass(kw_only=True)
class Trainer:
    """Device, precision and processes."""

    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: cuda when there is one"] = "auto"
    precision: Annotated[
        Literal["auto", "32", "tf32", "bf16", "16"], "auto: bf16 where the device computes it natively"
    ] = "auto"
    devices: Annotated[int, Processes, "devices per machine that train one run; how they share it: `strategy`"] = 1
    nodes: Annotated[int, Processes, "machines, each with so many devices"] = 1
    timeout: Annotated[float, Positive, "seconds after which a process that does not answer the others is lost"] = 600.0
    threads: Annotated[int | None, Processes, "threads of torch; by default one per core"] = None
    workers: Annotated[int, Range(0, 1024), "processes that load data"] = 0
    data_workers: Annotated[
        int, Range(0, 1024), "processes that filter and tokenize documents; 0: chosen by the size of the corpus"
    ] = 0
    data_memory: Annotated[int, Positive, "MiB for tokenizing a corpus, of all its processes"] = 2048
    data_engine: Annotated[Literal["processes", "ray"], "what runs filters; ray: Ray Data, on many machines"] = (
        "processes"
    )
    compile: Annotated[bool, "torch.compile each block: 1.2x faster after a minute of compilation"] = False
    flex_attention: Annotated[
        bool, "on a GPU, compute documents, windows, alibi, softcap and sinks in long rows by FlexAttention"
    ] = False
    cuda_graphs: Annotated[
        bool, "on a GPU, launch all kernels of a decoded token at once, where the parts of the model allow it"
    ] = False
    progress: Annotated[bool, "show a progress bar"] = True


SECTIONS: dict[str, type] = {
    "model": Model, "data": Data, "train": Train, "roles": Roles, "seeds": Seeds, "trainer": Trainer,
}  # fmt: skip
SWEEP = "sweep"


@functools.cache
def section_knobs(section: type) -> tuple[Knob, ...]:
    """Settings of a section, read from its dataclass as a part's knobs are read from its signature."""
    return read_signature(section, section.__name__.lower())[1]
