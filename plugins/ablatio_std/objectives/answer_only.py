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

    produces = "next tokens"

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
