"""One mistake in each of the twenty parts: the text that is replaced, and the sentence that has to be shown.

Those of SIGNATURES are found when the parts are read, before any of their code is used; those of BEHAVIOR are found by
the contract suites.
"""

from typing import NamedTuple


class Mistake(NamedTuple):
    part: str
    module: str
    right: str
    wrong: str
    sentence: str


SIGNATURES = (
    Mistake("norm=powernorm", "layers", "p: Annotated[float, Positive] = 3.0", "p=3.0", "the knob `p` has no type"),
    Mistake(
        "activation=snake",
        "layers",
        "def snake(x: Tensor, *",
        "def snake(y: Tensor, *",
        "snake(x) or snake(gate, up) was expected",
    ),
    Mistake(
        "mlp=residual_mlp",
        "layers",
        "def forward(self, x: Tensor, ctx: object) -> Tensor:\n        return self.share",
        "def forward(self, x: Tensor) -> Tensor:\n        return self.share",
        "forward(x) was found, an mlp's forward(x, ctx) was expected",
    ),
    Mistake(
        "placement=half_step",
        "layers",
        "sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:\n        return x + self.share",
        "sublayer: Callable[[Tensor], Tensor]) -> Tensor:\n        return x + self.share",
        "a placement's __call__(x, sublayer, norm) was expected",
    ),
    Mistake(
        "optimizer=sign_momentum",
        "training",
        "beta: Annotated[float, Fraction] = 0.9\n",
        "beta: Annotated[float, Fraction]\n",
        "`beta` has no default",
    ),
    Mistake(
        "alignment=squared_margin",
        "texts",
        "self, chosen: Tensor,",
        "self, choosen: Tensor,",
        "`loss` has the parameter `choosen`, which no alignment receives",
    ),
    Mistake(
        "logger=tsv",
        "training",
        "def finish(self, status",
        "def end(self, status",
        "a logger needs the method `finish`",
    ),
    Mistake(
        "design=corners",
        "training",
        "axes: Sequence[Any]",
        "settings: Sequence[Any]",
        "has the parameter `settings`, which the framework does not pass to a design",
    ),
    Mistake(
        "stabilizer=centralize",
        "training",
        "def before_step(self, step: Any)",
        "def before_stop(self, step: Any)",
        "did you mean before_step or after_step?",
    ),
    Mistake(
        "block=mlp_twice",
        "layers",
        "def __init__(self, parts: object)",
        "def __init__(self, layer_parts: object)",
        "has the parameter `layer_parts`, which the framework does not pass to a block",
    ),
)

BEHAVIOR = (
    Mistake(
        "attention=cosine_attention",
        "layers",
        "logits.masked_fill(future",
        "logits.masked_fill(future & False",
        "tokens from 15 on change the logits before them",
    ),
    Mistake(
        "position=log_distance",
        "layers",
        "(-self.slope * distance",
        "(-0.5 * distance",
        "the knob `slope` has no effect",
    ),
    Mistake(
        "schedule=root",
        "training",
        "max(0.0, 1 - (step / total) ** power)",
        "2 - (step / total) ** power",
        "expected 0 ... 1 (the peak is optimizer.lr)",
    ),
    Mistake(
        "objective=later_tokens",
        "training",
        "length = tokens.shape[1] - 1",
        "length = tokens.shape[1]",
        "weights is (3, 33), inputs are (3, 32)",
    ),
    Mistake(
        "init=triangular",
        "training",
        "-width / 2, width / 2, generator=generator).add_",
        "-width / 2, width / 2).add_",
        "use the generator it receives",
    ),
    Mistake(
        "source=squares",
        "texts",
        "{self.texts} {self.numbers}",
        "{self.texts}",
        "other documents and the same fingerprint; expected another one",
    ),
    Mistake(
        "tokenizer=shifted_bytes",
        "texts",
        "i - 1 for i in ids if i",
        "i for i in ids if 0 < i < 256",
        "' ' comes back as '!'",
    ),
    Mistake(
        "template=arrows",
        "texts",
        'f" {message.text}", said=True',
        'f" {message.text}", said=False',
        "the segments that are `said` have the text ''; expected the answers alone",
    ),
    Mistake("peft=row_gain", "texts", "torch.zeros(out)", "torch.ones(out)", "from the base's; expected 0"),
    Mistake(
        "reward=few_repeats",
        "texts",
        "if words else empty",
        "if words else None",
        "reward=few_repeats raised TypeError",
    ),
)
