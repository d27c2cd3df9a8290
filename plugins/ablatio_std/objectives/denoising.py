"""Denoising objectives, which hide parts of a document and predict them: T5, GLM, BART, UL2, BERT, prefix LM."""

import itertools
from typing import Annotated, Literal

import torch
from torch import Tensor

from ablatio import Fraction, Range, Schedulable, objectives
from ablatio.errors import UserError
from ablatio.model.example import Example
from ablatio_std.objectives._pairs import Pair, pack_pairs, shifted_targets
from ablatio_std.objectives._spans import spans_of, without

Sentinels = Annotated[int, Range(1, 10_000), "number of sentinel ids for hidden spans, after the tokenizer's ids"]
Rate = Annotated[
    float, Range(0, 1, open_low=True, open_high=True), Schedulable(), "share of the tokens that are hidden"
]
Mean = Annotated[float, Range(1), "mean length of a hidden span in tokens"]


@objectives.register("prefix_lm", paper="arXiv:1910.10683")
class PrefixLM:
    """Prefix language model: a document is cut at a random place; the first part is the source, the second the target.

    `rate` fixes the share of the second part instead (UL2's S-denoiser has 0.25).
    """

    produces = "source and target"

    def __init__(
        self,
        eos: int,
        max_len: int,
        *,
        rate: Annotated[
            float | None, Range(0, 1, open_low=True, open_high=True), "share of the target; null: random"
        ] = None,
    ) -> None:
        self.eos, self.longest, self.rate = eos, max_len, rate

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        def hide(document: list[int]) -> Pair:
            return continued(document, self.rate, self.eos, generator)

        return pack_pairs(tokens, segments, self.eos, self.longest, hide)


def continued(document: list[int], rate: float | None, eos: int, generator: torch.Generator) -> Pair:
    """Source and target from cutting a document; `rate`: share of the target, None for a random place."""
    if rate is None:
        cut = int(torch.randint(1, len(document), (), generator=generator))
    else:
        cut = min(max(round(len(document) * (1 - rate)), 1), len(document) - 1)
    return Pair(document[:cut], *shifted_targets(eos, document[cut:]))


def corrupted(
    document: list[int], rate: float, mean: float, sentinels: list[int], eos: int, generator: torch.Generator
) -> Pair:
    """T5's span corruption: the source has sentinels in place of spans, the target each sentinel with its span."""
    spans = spans_of(len(document), rate, mean, len(sentinels), generator)
    marks = sentinels[: len(spans)]
    target = [t for mark, (a, b) in zip(marks, spans, strict=True) for t in (mark, *document[a:b])]
    return Pair(without(document, spans, marks), *shifted_targets(eos, [*target, eos]))


@objectives.register("span_corruption", paper="arXiv:1910.10683")
class SpanCorruption:
    """Spans are replaced by sentinels <0>, <1>, ...; the target is <0> span_0 <1> span_1 ... and the end token."""

    produces = "source and target"

    def __init__(
        self, vocab_size: int, eos: int, max_len: int, *, rate: Rate = 0.15, mean_span: Mean = 3.0,
        sentinels: Sentinels = 100,
    ) -> None:  # fmt: skip
        self.eos, self.longest, self.rate, self.mean = eos, max_len, rate, mean_span
        self.extra_tokens = sentinels
        self.sentinels = list(range(vocab_size, vocab_size + sentinels))

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        def hide(document: list[int]) -> Pair:
            return corrupted(document, self.rate, self.mean, self.sentinels, self.eos, generator)

        return pack_pairs(tokens, segments, self.eos, self.longest, hide)


@objectives.register("blank_infilling", paper="arXiv:2103.10360")
class BlankInfilling:
    """GLM: spans are replaced by blanks and predicted in random order, each from its blank's sentinel to an end token.

    GLM distinguishes blanks by a second position id; here each blank has its own sentinel, which is also the first
    input of its span, so that any position encoding can be used.  Sentinels are inputs, never targets.  `shuffle` puts
    the spans in random order, so that the model learns how they depend on one another.
    """

    produces = "source and target"

    def __init__(
        self, vocab_size: int, eos: int, max_len: int, *, rate: Rate = 0.15, mean_span: Mean = 3.0,
        sentinels: Sentinels = 100, shuffle: bool = True,
    ) -> None:  # fmt: skip
        self.eos, self.longest, self.rate, self.mean, self.shuffle = eos, max_len, rate, mean_span, shuffle
        self.extra_tokens = sentinels
        self.sentinels = list(range(vocab_size, vocab_size + sentinels))

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        def hide(document: list[int]) -> Pair:
            spans = spans_of(len(document), self.rate, self.mean, len(self.sentinels), generator)
            marks = self.sentinels[: len(spans)]
            order = torch.randperm(len(spans), generator=generator).tolist() if self.shuffle else range(len(spans))
            inputs: list[int] = []
            targets: list[int] = []
            for i in order:
                span = document[spans[i][0] : spans[i][1]]
                # Input and target of a span are shifted within it: the sentinel predicts the first token, the last
                # token the end.
                inputs += [marks[i], *span]
                targets += [*span, self.eos]
            return Pair(without(document, spans, marks), inputs, targets)

        return pack_pairs(tokens, segments, self.eos, self.longest, hide)


@objectives.register("text_infilling", paper="arXiv:1910.13461")
class TextInfilling:
    """BART: each hidden span is replaced by one mask token, whatever its length; the target is the whole document."""

    produces = "source and target"
    extra_tokens = 1

    def __init__(self, vocab_size: int, eos: int, max_len: int, *, rate: Rate = 0.3, mean_span: Mean = 3.0) -> None:
        self.eos, self.longest, self.rate, self.mean, self.mask = eos, max_len, rate, mean_span, vocab_size

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        def hide(document: list[int]) -> Pair:
            spans = spans_of(len(document), self.rate, self.mean, len(document), generator)
            # The target is the whole document: how many tokens a mask stands for has to be predicted as well.
            return Pair(without(document, spans, [self.mask] * len(spans)), *shifted_targets(self.eos, document))

        return pack_pairs(tokens, segments, self.eos, self.longest, hide)


@objectives.register("mixture_of_denoisers", paper="arXiv:2205.05131")
class MixtureOfDenoisers:
    """UL2: each document uses one of seven denoisers, drawn at random; the source begins with the token of its mode.

    R (regular)     spans of 3 or 8 tokens, 15 % hidden
    X (extreme)     spans of 3 or 8 tokens, 50 % hidden; spans of 64 tokens, 15 % or 50 % hidden
    S (sequential)  the last quarter of the document is the target
    `modes` selects some of them.
    """

    produces = "source and target"
    DENOISERS = (
        # Mean span length and rate of table 1 of the paper; S has no spans.
        ("R", 3.0, 0.15), ("R", 8.0, 0.15), ("S", 0.0, 0.25),
        ("X", 3.0, 0.5), ("X", 8.0, 0.5), ("X", 64.0, 0.15), ("X", 64.0, 0.5),
    )  # fmt: skip

    def __init__(
        self, vocab_size: int, eos: int, max_len: int, *,
        modes: Literal["RSX", "RS", "RX", "SX", "R", "S", "X"] = "RSX", sentinels: Sentinels = 100,
    ) -> None:  # fmt: skip
        self.eos, self.longest = eos, max_len
        self.extra_tokens = sentinels + 3
        self.sentinels = list(range(vocab_size, vocab_size + sentinels))
        self.signs = {mode: vocab_size + sentinels + i for i, mode in enumerate("RSX")}
        self.denoisers = [d for d in self.DENOISERS if d[0] in modes]

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        def hide(document: list[int]) -> Pair:
            drawn = int(torch.randint(len(self.denoisers), (), generator=generator))
            mode, mean, rate = self.denoisers[drawn]
            if mode == "S":
                pair = continued(document, rate, self.eos, generator)
            else:
                pair = corrupted(document, rate, mean, self.sentinels, self.eos, generator)
            # After hiding, so that the token of the mode is never hidden.
            pair.source.insert(0, self.signs[mode])
            return pair

        return pack_pairs(tokens, segments, self.eos, self.longest, hide)


Masked = Annotated[float, Fraction, "share of the predicted tokens read as [MASK]"]
Replaced = Annotated[float, Fraction, "share of the predicted tokens read as a random token"]


@objectives.register("masked_lm", paper="arXiv:1810.04805")
class MaskedLM:
    """BERT: -log p of a share `rate` of the tokens at their positions, of which a share `masked` is read as [MASK].

    A share `random` is read as another random token and the rest, 10 % in BERT, unchanged.
    """

    produces, splits_tokens = "blanks in place", True
    extra_tokens = 1

    def __init__(self, vocab_size: int, *, rate: Rate = 0.15, masked: Masked = 0.8, random: Replaced = 0.1) -> None:
        self.vocab_size, self.rate, self.masked, self.random = vocab_size, rate, masked, random

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        # The first token opens the row and is never predicted, as with `lm`: losses are means over the same tokens.
        targets = tokens[:, 1:]
        inputs, asked = self.hide(targets, generator)
        return Example(inputs, targets, asked.float(), None if segments is None else segments[:, 1:])

    def hide(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the inputs, and True for the tokens that are predicted: (B, T) each."""
        # A fixed number for each row, not a draw for each token: every row has a loss, and its variance is smaller.
        count = max(1, round(self.rate * targets.shape[1]))
        chosen = torch.rand(targets.shape, generator=generator).argsort(dim=1)[:, :count]
        asked = torch.zeros(targets.shape, dtype=torch.bool).scatter(1, chosen, True)
        fate, other = torch.rand(targets.shape, generator=generator), torch.randint(
            self.vocab_size, targets.shape, generator=generator
        )  # fmt: skip
        # vocab_size is the first id after the tokenizer's.
        inputs = targets.masked_fill(asked & (fate < self.masked), self.vocab_size)
        swapped = asked & (fate >= self.masked) & (fate < self.masked + self.random)
        return torch.where(swapped, other, inputs), asked


@objectives.register("unilm", paper="arXiv:1905.03197")
class UniLM(MaskedLM):
    """Masked tokens at their positions, under one of four attention masks that is drawn for each document.

    A share `bidirectional` of the documents is read in both directions, as in BERT.  Of a share `seq2seq` the first
    part, up to a random place, is read in both directions, and the second part sees it and what is to its left.  Half
    of the others is read from left to right, half from right to left: reversed, so that the causal mask applies and
    positions are counted from the end.  Tokens are hidden as in masked_lm, one by one; the paper hides a fifth of them
    as pairs or triples.

    Raises:
        UserError: the two shares are more than 1 together.
    """

    produces, splits_tokens = "blanks under masks", False

    def __init__(
        self,
        vocab_size: int,
        *,
        rate: Rate = 0.15,
        masked: Masked = 0.8,
        random: Replaced = 0.1,
        bidirectional: Annotated[float, Fraction, "share of documents read in both directions"] = 1 / 3,
        seq2seq: Annotated[float, Fraction, "share with a source read in both directions and a target"] = 1 / 3,
    ) -> None:
        super().__init__(vocab_size, rate=rate, masked=masked, random=random)
        self.both, self.source = bidirectional, seq2seq
        if self.both + self.source > 1 + 1e-9:
            raise UserError(
                f"objective.bidirectional={bidirectional:g} and objective.seq2seq={seq2seq:g} are more than 1 together"
                f"\n    try: objective.seq2seq={max(0.0, 1 - bidirectional):g}"
            )

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        targets = tokens[:, 1:].clone()
        documents = None if segments is None else segments[:, 1:]
        opened = torch.zeros(targets.shape, dtype=torch.bool)
        for row in range(len(targets)):
            borders = [0, targets.shape[1]]
            if documents is not None:
                borders[1:1] = (documents[row].diff().nonzero().flatten() + 1).tolist()
            for start, end in itertools.pairwise(borders):
                mode, at = torch.rand(2, generator=generator).tolist()
                if mode < self.both:
                    opened[row, start:end] = True
                elif mode < self.both + self.source:
                    opened[row, start : start + max(1, round(at * (end - start)))] = True
                # Half of what is left reads from left to right and needs no change.
                elif mode >= (1 + self.both + self.source) / 2:
                    targets[row, start:end] = targets[row, start:end].flip(0)
        inputs, asked = self.hide(targets, generator)
        return Example(inputs, targets, asked.float(), documents, opened=opened)
