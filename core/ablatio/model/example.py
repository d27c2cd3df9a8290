"""What an objective makes of rows of tokens, and how a decoder alone reads a source and a target in one row."""

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1  # the document of tokens that stand for nothing


@dataclass(slots=True)
class Example:
    """Tokens to read and tokens to say, T of each in a row.

    inputs, targets  (B, T): targets[t] is what follows inputs[t]; when blanks are filled, what belongs in its place
    weights          (B, T) of each target's loss, or None for all ones
    segments         (B, T) the documents of a packed row, PADDING (-1) for none; or None for one document
    source           (B, S): what is read and not said; an encoder reads it, a decoder alone has it in front of inputs
    source_segments  (B, S), when there are `segments`
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    segments: Tensor | None = None
    source: Tensor | None = None
    source_segments: Tensor | None = None


@dataclass(slots=True)
class Joined:
    """A source and its target in one row: tokens, segments (B, S + T) and the tokens of the source (`opened`)."""

    tokens: Tensor
    segments: Tensor | None
    opened: Tensor | None


def joined(example: Example) -> Joined:
    """The row that a decoder alone reads: the source, then the inputs."""
    if example.source is None:
        return Joined(example.inputs, example.segments, None)
    tokens = torch.cat([example.source, example.inputs], dim=1)
    opened = torch.zeros_like(tokens, dtype=torch.bool)
    opened[:, : example.source.shape[1]] = True
    segments = None
    if example.segments is not None and example.source_segments is not None:
        segments = torch.cat([example.source_segments, example.segments], dim=1)
    return Joined(tokens, segments, opened)


def positions_in_documents(segments: Tensor) -> Tensor:
    """(B, S) -> (B, S): how many tokens of the same document stand before each; it may lie in several pieces."""
    order = segments.argsort(dim=1, stable=True)
    ordered = segments.gather(1, order)
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counted = index - torch.where(starts, index, 0).cummax(dim=1).values
    return torch.zeros_like(counted).scatter(1, order, counted)
