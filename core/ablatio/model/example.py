"""What an objective makes of rows of tokens, and how a decoder alone reads a source and a target in one row."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

PADDING = -1  # the document of tokens that stand for nothing
SHARED = -2  # and of those that stand before every document


@dataclass(slots=True)
class Example:
    """Tokens to read and tokens to say, T of each in a row.

    inputs, targets  (B, T): targets[t] is what follows inputs[t]; when blanks are filled, what belongs in its place
    weights          (B, T) of each target's loss, or None for all ones
    segments         (B, T) the documents of a packed row, PADDING (-1) for none; or None for one document
    source           (B, S): what is read and not said; an encoder reads it, a decoder alone has it in front of inputs
    source_segments  (B, S), when there are `segments`
    further          (B, T, n): what follows the targets, for the n siblings of a model's last layer (`ahead` of an
                     objective); further_weights: of each one's loss, 0 where there is none
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    segments: Tensor | None = None
    source: Tensor | None = None
    source_segments: Tensor | None = None
    further: Tensor | None = None
    further_weights: Tensor | None = None

    @property
    def count(self) -> int | None:
        """What the weights add up to, where that is known without asking the device."""
        return self.targets.numel() if self.weights is None else None

    def to(self, device: torch.device | str) -> "Example":
        """The same on another device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in held.items() if t is not None})


@dataclass(slots=True)
class Joined:
    """A source and its target in one row of L tokens.

    tokens, segments, opened  (B, L); opened: the tokens of the source; None where there is none
    places                    (B, T) where the inputs stand in the row; None: at its end
    """

    tokens: Tensor
    segments: Tensor | None = None
    opened: Tensor | None = None
    places: Tensor | None = None

    def of_inputs(self, states: Tensor, length: int) -> Tensor:
        """(B, L, D) -> (B, length, D): the states of the inputs."""
        if self.places is None:
            return states if self.opened is None else states[:, -length:]
        return states.gather(1, self.places[:, :, None].expand(-1, -1, states.shape[-1]))


def joined(example: Example) -> Joined:
    """The row that a decoder alone reads: the source, then the inputs; the padding of both goes to the row's end."""
    if example.source is None:
        return Joined(example.inputs, example.segments)
    tokens = torch.cat([example.source, example.inputs], dim=1)
    opened = torch.zeros_like(tokens, dtype=torch.bool)
    opened[:, : example.source.shape[1]] = True
    if example.segments is None or example.source_segments is None:
        return Joined(tokens, None, opened)
    segments = torch.cat([example.source_segments, example.segments], dim=1)
    filler = segments == PADDING
    if not bool(filler.any()):
        return Joined(tokens, segments, opened)
    order = filler.long().argsort(dim=1, stable=True)
    length = int((~filler).sum(1).max())
    places = order.argsort(dim=1)[:, example.source.shape[1] :].clamp(max=length - 1)
    rows = order[:, :length]
    return Joined(tokens.gather(1, rows), segments.gather(1, rows), opened.gather(1, rows), places)


def positions_in_documents(segments: Tensor) -> Tensor:
    """(B, S) -> (B, S): how many tokens of the same document stand before each; it may lie in several pieces."""
    order = segments.argsort(dim=1, stable=True)
    ordered = segments.gather(1, order)
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counted = index - torch.where(starts, index, 0).cummax(dim=1).values
    return torch.zeros_like(counted).scatter(1, order, counted)
