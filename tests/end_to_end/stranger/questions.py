"""Twenty questions of a first day and more, each as the command that a user types and what has to be shown."""

from typing import NamedTuple


class Step(NamedTuple):
    """One command.

    words       behind `ablatio`
    shows       sentences of its output, however the lines are broken
    code        exit code
    makes       files that are there afterwards
    program     what is executed
    leaves_out  files that are not there afterwards
    """

    words: tuple[str, ...]
    shows: tuple[str, ...] = ()
    code: int = 0
    makes: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", "ablatio")
    leaves_out: tuple[str, ...] = ()


YAML = """\
# My usual small model.
defaults:
  - override /size: tiny
  - override /tokenizer: bytes
data: {val_tokens: 256}
model: {d_model: 16, n_layers: 2, n_heads: 2, max_len: 32}
train: {steps: 4, batch_size: 2, val_every: null, checkpoint_every: null}
trainer: {progress: false}
"""
MINE, PARTS = "experiment=./my.yaml", "parts=./parts.py"
LOAD = """\
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print("loaded", type(model).__name__)
"""
OWN = ("norm=powernorm", "activation=snake", "mlp=residual_mlp", "placement=half_step", "position=log_distance",
       "optimizer=sign_momentum", "schedule=root", "stabilizer=[clip,centralize]", "objective=later_tokens",
       "init=triangular", "logger=[csv,tsv]", "source=squares", "tokenizer=shifted_bytes")  # fmt: skip


def _train(*words: str, **more: object) -> Step:
    return Step(("train", MINE, *words), **more)  # type: ignore[arg-type]


def _sweep(*words: str, **more: object) -> Step:
    return Step(("train", "-m", MINE, *words), **more)  # type: ignore[arg-type]


QUESTIONS: tuple[tuple[str, Step], ...] = (
    (
        "does it run at all, with my YAML?",
        _train("name=first", shows=("bits per byte", "d_model=16"), makes=("runs/first/summary.json",)),
    ),
    (
        "which norm is better at this size?",
        _sweep("norm=rmsnorm,layernorm", "seed=1,2,3", "name=norms", shows=("2 arms; 6 runs",)),
    ),
    (
        "and what may I conclude?",
        Step(
            ("report", "runs/norms"),
            ("rmsnorm and layernorm", "Each interval covers its true difference in 95 of 100 studies"),
            makes=("runs/norms/report/report.html",),
        ),
    ),
    ("how large is the noise of seeds?", Step(("noise", "runs/norms"), ("over 3 seeds", "smallest true difference"))),
    (
        "does a window that grows help?",
        _train("attention=sliding", "attention.window=linear(4,16)", "name=grows", shows=("window=linear(4,16)",)),
    ),
    (
        "what differs between the two runs?",
        Step(("compare", "runs/first", "runs/grows"), ("attention.window", "linear(4,16)", "val/loss")),
    ),
    (
        "does the first layer need attention?",
        _train("layers.at.attention={0: none}", "name=without", shows=("layer 0", "layer 1")),
    ),
    (
        "which learning rate?",
        _sweep(
            "optimizer.lr=log(1e-3,3e-2)", "design=random", "design.runs=4", "name=rates", shows=("4 arms; 4 runs",)
        ),
    ),
    ("and which was best?", Step(("report", "runs/rates"), ("Best of 4 trials: lr=", "owes something to luck"))),
    ("what if the embedding is frozen?", _train("freeze=[embed,layers.0]", "name=frozen", shows=("embed, layers.0",))),
    (
        "would it go on falling?",
        Step(
            ("train", "extend=runs/first", "train.steps=8", "name=longer"),
            ("steps=8",),
            makes=("runs/longer/summary.json",),
        ),
    ),
    (
        "extend with other settings?",
        _train(
            "extend=runs/first",
            "train.steps=8",
            code=2,
            shows=("the run continues as it is", "model=run model.path=runs/first"),
        ),
    ),
    (
        "one epoch of my own source",
        _train(
            PARTS,
            "source=squares",
            "source.texts=40",
            "data.val_fraction=0.3",
            "train.epochs=1",
            "name=epoch",
            shows=("squares",),
        ),
    ),
    (
        "batches of half a million tokens, as in papers",
        _train("batch_tokens=500000", code=2, shows=("did you mean train.batch_tokens?",)),
    ),
    (
        "half a million does not fit",
        _train(
            "train.batch_tokens=500000",
            code=2,
            shows=(
                "expected a multiple of train.batch_size * row length = 2 * 32 = 64",
                "try: train.batch_tokens=499968",
            ),
        ),
    ),
    (
        "a learning rate by its short name",
        _train(
            "lr=3e-3", code=2, shows=("did you mean optimizer.lr?", "This runs: ablatio train", "optimizer.lr=3e-3")
        ),
    ),
    (
        "names of transformers",
        _train("per_device_train_batch_size=2", "max_steps=4", code=2, shows=("train.batch_size", "train.steps")),
    ),
    (
        "how much is the order of the data?",
        _sweep(
            "norm=rmsnorm,layernorm", "seeds.data=1,2,3", "name=order", shows=("replicates differ in seeds.data alone",)
        ),
    ),
    ("and its report", Step(("report", "runs/order"), ("Replicates differ only in: order of the data",))),
    (
        "thirteen parts of mine in one run",
        _train(
            PARTS,
            *OWN,
            "name=mine",
            shows=("powernorm", "sign_momentum"),
            makes=("runs/mine/metrics.tsv", "runs/mine/parts.py"),
        ),
    ),
    (
        "my attention and block",
        _train(
            PARTS,
            "attention=cosine_attention",
            "block=mlp_twice",
            "position=none",
            "data.document_mask=false",
            "name=heads",
            shows=("cosine_attention", "mlp_twice"),
        ),
    ),
    (
        "my mlp under the usual activation",
        _train(
            PARTS,
            "mlp=residual_mlp",
            code=2,
            shows=("mlp=residual_mlp does not ask for `gated`", "try: activation=gelu"),
        ),
    ),
    (
        "my design",
        _sweep(
            PARTS,
            "norm=rmsnorm,powernorm",
            "placement=pre,post",
            "design=corners",
            "name=corners",
            shows=("2 arms; 2 runs",),
        ),
    ),
    ("what does the run say?", Step(("generate", "runs/first", "The people", "--tokens", "3"), ("The people",))),
    (
        "and mine, without my file?",
        Step(
            ("generate", "runs/mine", "1 4", "--tokens", "3"),
            ("only you may name code that is to be executed", "parts=parts.py"),
            2,
        ),
    ),
    ("and with it?", Step(("generate", "runs/mine", "1 4", "--tokens", "3", PARTS), ("1 4",))),
    (
        "for transformers",
        Step(("export", "runs/first", "--to", "out"), ("step 4 as llama, logits within",), makes=("out/config.json",)),
    ),
    (
        "which loads without ablatio",
        Step(("out",), ("loaded LlamaForCausalLM",), program=("-c", LOAD)),
    ),
    (
        "our own class for transformers",
        Step(("export", "runs/without", "--to", "own"), ("step 4",), makes=("own/config.json",)),
    ),
    ("which loads, too", Step(("own",), ("loaded Ablatio",), program=("-c", LOAD))),
    ("what do I have?", Step(("runs",), ("runs/norms", "runs/first", "score: val/loss"))),
    ("how is a norm written?", Step(("show", "norm", "--author"), ("HANDED OVER", "EXAMPLE, a whole file"))),
    (
        "how is my option's contract shown?",
        Step(("show", "norm=rmsnorm", "--author"), ("is not the name of a kind", "try: ablatio show norm --author"), 2),
    ),
)
