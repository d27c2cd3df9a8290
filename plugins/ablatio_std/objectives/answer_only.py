"""Objectives with the loss on a part of the text only."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, objectives
from ablatio.model.example import Example


@objectives.register("answers", paper="arXiv:2312.04927")
class Answers:
    """As `lm`, but with the loss only on answers: `count` tokens, beginning `skip` tokens after each marker.

    The marker is the token id `marker` (`?` in tokenizer=symbols): in `? k v` with skip=1 and count=1, v has the loss
    and is predicted from k.  count=null puts it on all tokens up to the document's end.  A document that begins before
    the row has no answers, since the text that they follow from may be cut off.
    """

    produces, splits_tokens = "next tokens", True

    def __init__(
        self,
        vocab_size: int,
        eos: int,
        *,
        marker: Annotated[int, NonNegative, "id of the token that announces an answer"] = 1,
        skip: Annotated[int, NonNegative, "tokens between the marker and the answer"] = 1,
        count: Annotated[int | None, Positive, "tokens of an answer; null: all up to the document's end"] = 1,
    ) -> None:
        self.eos, self.marker, self.skip, self.count = eos, marker, skip, count

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        opened = torch.where(tokens == self.eos, place, -1).cummax(1).values  # (B, T + 1): start of the document
        asked = torch.where(tokens == self.marker, place, -1)
        # The roll moves each marker to its answer's first token; the first skip + 1 places would wrap around.
        asked = torch.where(place > self.skip, asked.roll(self.skip + 1, 1), -1).cummax(1).values
        since = place - asked - self.skip - 1  # tokens since the last answer began
        scored = (opened >= 0) & (asked > opened) & (since < (tokens.shape[1] if self.count is None else self.count))
        return Example(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            weights=(scored & (tokens != self.eos))[:, 1:].float(),
            segments=None if segments is None else segments[:, :-1],
        )


@objectives.register("meta_icl", paper="arXiv:2110.15943")
class MetaICL:
    """-log p(y | x_1, y_1, ..., x_k, y_k, x): examples of one task in a row, with the loss on the last answer alone.

    Each document is an example: an input, the token `marker`, and the answer up to the document's end.  `shots` + 1
    documents that follow one another in a row are an episode: they see one another, and the last marker's answer in the
    last document is predicted.  At the end of a row an episode may have fewer.  A source must keep the examples of a
    task together.  A document that began before the row is left out.  Episodes are kept apart by `data.document_mask`.
    """

    produces = "next tokens"

    def __init__(
        self,
        vocab_size: int,
        eos: int,
        *,
        shots: Annotated[int, NonNegative, "number k of examples before the one that is predicted"] = 4,
        marker: Annotated[int, NonNegative, "id of the token between an input and its answer"] = 1,
    ) -> None:
        self.eos, self.shots, self.marker = eos, shots, marker

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        opens = tokens == self.eos
        number = opens.cumsum(1) - 1  # of the document in the row; -1 for one that began before it
        episode = torch.where(number < 0, -1, number // (self.shots + 1))
        last = episode.new_tensor(self.shots).minimum(number.amax(1, keepdim=True) - episode * (self.shots + 1))
        asks = (number >= 0) & (number % (self.shots + 1) == last)  # the last document of its episode
        begins = torch.where(opens, place, -1).cummax(1).values
        marked = torch.where(tokens == self.marker, place, -1)
        # The last marker of the document: that of the row so far, seen from the document's end.
        ends = torch.where(opens.roll(-1, 1) & (place < tokens.shape[1] - 1), place, tokens.shape[1] - 1)
        ends = ends.flip(1).cummin(1).values.flip(1)  # (B, T + 1): last token of the document
        answer = marked.cummax(1).values.gather(1, ends)
        scored = asks & (answer > begins) & (place > answer)
        return Example(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            weights=scored[:, 1:].float(),
            segments=None if segments is None else (episode + 1)[:, :-1],
        )
