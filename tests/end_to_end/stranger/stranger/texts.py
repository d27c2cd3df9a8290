"""What stands around texts: source, tokenizer, template, peft, alignment, reward."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from ablatio import Fraction, Positive, alignments, pefts, rewards, sources, tokenizers
from ablatio.data.chat import EOS, ChatSegment
from ablatio.data.types import Document
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, widths
from ablatio.registry.kinds import templates


@sources.register("squares")
class Squares:
    """Documents `1 4 9 16 ...`, from a different number each.  Source: generated."""

    def __init__(self, *, texts: Annotated[int, Positive] = 300, numbers: Annotated[int, Positive] = 40) -> None:
        self.texts, self.numbers = texts, numbers

    def documents(self) -> Iterator[Document]:
        for first in range(self.texts):
            yield Document(" ".join(str(n * n) for n in range(first, first + self.numbers)), str(first))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"squares {self.texts} {self.numbers}".encode()).hexdigest()


@tokenizers.register("shifted_bytes")
class ShiftedBytes:
    """id = byte + 1; 0 ends a text.  Source: arXiv:2105.13626."""

    trained = False
    vocab_size, eos = 257, 0

    def train(self, texts: Iterable[str]) -> None:
        """There is nothing to learn."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) + np.uint16(1) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - 1 for i in ids if i).decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        return np.array([0] + [1] * 256, dtype=np.int64)

    def state(self) -> str:
        return json.dumps({"shift": 1})

    def restore(self, state: str) -> None:
        assert json.loads(state) == {"shift": 1}


@templates.register("arrows")
class Arrows:
    """> question (line) < answer (end) (line).  Source: the quoting of mail."""

    signs, end = (), EOS

    def __call__(self, messages: Sequence[Any], answering: bool = False) -> Iterator[ChatSegment]:
        for message in messages:
            if message.role == "assistant":
                yield ChatSegment("<")
                yield ChatSegment(f" {message.text}", said=True, weight=message.weight)
                yield ChatSegment(EOS, sign=True, said=True, weight=message.weight)
                yield ChatSegment("\n")
            else:
                yield ChatSegment(f"> {message.text}\n")
        if answering:
            yield ChatSegment("<")


class _RowGain(MatrixAdapter):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(out))

    def matrix(self, weight: Tensor) -> Tensor:
        return self.gain.exp()[:, None] * weight


@pefts.register("row_gain", paper="arXiv:2205.05638")
class RowGain(LayerPeft):
    """diag(exp(g)) W with g = 0 at the start; W is frozen."""

    def __init__(self, *, targets: Targets = ("q_proj", "v_proj")) -> None:
        super().__init__(targets)

    def adapter(self, layer: Any, path: str) -> _RowGain:
        return _RowGain(widths(layer)[0])


@alignments.register("squared_margin", paper="arXiv:2310.12036")
class SquaredMargin:
    """L = (margin - target)^2, margin the difference of log-probabilities per token."""

    data = "pairs"
    metrics = ("train/reward_margin",)

    def __init__(self, *, target: Annotated[float, Positive] = 1.0) -> None:
        self.target = target

    def loss(
        self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        margin = chosen / chosen_length.clamp(min=1) - rejected / rejected_length.clamp(min=1)
        return (margin - self.target).square().mean(), {"train/reward_margin": margin.detach().mean()}


@rewards.register("few_repeats", paper="arXiv:1908.04319")
def few_repeats(answer: Any, *, empty: Annotated[float, Fraction] = 0.1) -> float:
    """Share of distinct words; `empty` for an answer without words."""
    words = answer.text.split()
    return len(set(words)) / len(words) if words else empty
