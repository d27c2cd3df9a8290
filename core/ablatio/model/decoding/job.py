"""A decoding job (prompts, models, limits) and the continuations that a decode part returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from ablatio.errors import UserError
from ablatio.model.decoding.texts import Texts
from ablatio.model.parameter_roles import named_seed

Finished = Literal["stop", "length"]
Judge = Callable[[int, Sequence[Sequence[int]]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A continuation of a prompt.

    ids       tokens, without the one that ended it and without the tokens of a stop string
    logprob   log-probability of all tokens that were generated under the model, in nats
    tokens    number of these: with the one that ended it, and with those of a stop string
    finished  what ended it: stop (a stop token or string, or a complete choice) | length
    score     by which a decode part ranks continuations; higher is better
    text      up to the first stop string; None: no stop strings were given, and `ids` are the whole continuation
    """

    ids: list[int]
    logprob: float
    tokens: int
    finished: Finished
    score: float = 0.0
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """Conditions that end a continuation.

    new_tokens  largest number of tokens
    stop_ids    tokens that end it
    strings     texts that end it; the continuation is cut before the first that occurs
    text_of     function from token ids to text; needed for `strings`
    choices     token ids of the only continuations that are allowed; empty: any
    """

    new_tokens: int
    stop_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    text_of: Callable[[Sequence[int]], str] | None = None
    choices: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.new_tokens < 0:
            raise UserError(f"{self.new_tokens} new tokens; expected 0 or more\n    try: --tokens 200")
        if "" in self.strings:
            raise UserError('a stop string is empty, and every text contains it\n    try: --stop "."')
        if self.strings and self.text_of is None:
            raise UserError("stop strings need the function from token ids to text\n    try: text_of=tokenizer.decode")
        if any(not c for c in self.choices):
            raise UserError('a choice is empty; expected at least one token\n    try: --choices "yes|no"')
        inner = [c for c in self.choices if any(o[: len(c)] == c for o in self.choices if o != c)]
        if inner and not self.stop_ids:
            raise UserError(
                f"the choice {list(inner[0])} begins another one, and no stop token can end it\n"
                '    try: --choices "yes.|yes, of course."'
            )


@dataclass(frozen=True, slots=True)
class DecodingJob:
    """Prompts to continue, with the models and the limits.

    model    the language model
    prompts  token ids of each prompt, at least one
    ending   what ends a continuation
    second   another model with the same token ids; None unless `needs_second_model`
    judge    scores of continuations: (number of the prompt, token ids of each) -> one number each; None: no judge
    seed     of all random numbers
    streams  number of the random stream of each prompt; None: 0, 1, ...
    """

    model: Any
    prompts: Sequence[Sequence[int]]
    ending: Ending
    second: Any = None
    judge: Judge | None = None
    seed: int = 1
    streams: Sequence[int] | None = None

    def open(self, model: Any = None, *, new_tokens: int = 0) -> Texts:
        """Read the prompts and return the texts to continue, by default with the first model.

        new_tokens  the most that `extend` will append, where nothing else appends or takes back; 0: unknown
        """
        return Texts(self.model if model is None else model, self.prompts, new_tokens)

    @property
    def second_model(self) -> Any:
        """The second model.  Raises UserError if there is none, or if it has other token ids."""
        if self.second is None:
            raise UserError("this decoding needs a second model, and none was given\n    try: second=RUN, a run folder")
        if self.second.vocab_size != self.model.vocab_size:
            raise UserError(
                f"the second model has {self.second.vocab_size} token ids and the first {self.model.vocab_size}; "
                "both need the same tokenizer\n    try: a second run with the same tokenizer"
            )
        return self.second

    def stream(self, row: int) -> int:
        """Number of the random stream of a prompt."""
        return row if self.streams is None else self.streams[row]

    def generator(self, row: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Random numbers of a prompt; stream 0 is that of the seed itself."""
        stream = self.stream(row)
        seed = self.seed if stream == 0 else named_seed(self.seed, f"decode/{stream}")
        return torch.Generator(device).manual_seed(seed)

    def only(self, row: int) -> "DecodingJob":
        """The job for one of the prompts."""
        judge = None if self.judge is None else partial(_of_row, self.judge, row)
        return replace(self, prompts=[self.prompts[row]], streams=[self.stream(row)], judge=judge)

    def repeated(self, times: int) -> "DecodingJob":
        """The job in which each prompt stands `times` times in a row, each time with a random stream of its own."""
        rows = [(row, k) for row in range(len(self.prompts)) for k in range(times)]
        streams = [self.stream(row) if k == 0 else named_seed(self.stream(row), f"repeat/{k}") for row, k in rows]
        return replace(self, prompts=[self.prompts[row] for row, _ in rows], streams=streams, judge=None)


def _of_row(judge: Judge, row: int, _: int, found: Sequence[Sequence[int]]) -> Sequence[float]:
    return judge(row, found)
