"""Training examples made by objectives, and the layout of source and target in one row for a decoder-only model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ablatio.model.ranks import Ranks
from ablatio.model.transfer import to_device

PADDING = -1  # segment number of padding tokens
SHARED = -2  # segment number of virtual tokens, which every document sees


@dataclass(slots=True)
class Example:
    """A batch of input tokens and their targets, T of each per row.

    inputs, targets  (B, T): targets[t] follows inputs[t], or, for masked-token objectives, belongs in its place
    weights          (B, T) of each target's loss; None: all 1
    segments         (B, T) document of each token in packed rows, PADDING (-1) for padding; None: one document per row
    source           (B, S) tokens that are read but not predicted: an encoder's input, or the prefix of a decoder-only
                     model
    source_segments  (B, S), if there are `segments`
    further          (B, T, n) tokens after the targets, for the n siblings of a model's last layer (the objective's
                     `ahead` - 1)
    further_weights  (B, T, n) of their losses, 0 where there is no such token
    opened           (B, T) True for inputs that their whole document sees, without a source; only models that read a
                     source in both directions use it
    joined_length    tokens of the longest row of source and inputs without padding, 0 if no row has any; None: unknown
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    segments: Tensor | None = None
    source: Tensor | None = None
    source_segments: Tensor | None = None
    further: Tensor | None = None
    further_weights: Tensor | None = None
    opened: Tensor | None = None
    joined_length: int | None = None

    @property
    def count(self) -> int | None:
        """Sum of the weights if it is known without a device synchronization, else None."""
        return self.targets.numel() if self.weights is None else None

    def rows(self, ranks: Ranks) -> "Example":
        """The rows of one rank."""
        return replace(self.part(ranks.rows(len(self.inputs))), joined_length=None)

    def part(self, own: slice) -> "Example":
        """The rows `own`; joined with their source they are as long as those of the whole batch."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        cut = {name: t[own] for name, t in held.items() if isinstance(t, Tensor)}
        return replace(self, **cut, joined_length=_joined_length(self))

    def columns(self, own: slice) -> "Example":
        """The tokens `own` of each row, without those before them; only for rows without a source."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        cut = {name: t[:, own] for name, t in held.items() if isinstance(t, Tensor)}
        return replace(self, **cut, joined_length=None)

    def to(self, device: torch.device | str) -> "Example":
        """Copy the example to a device; what shapes depend on is read before, while it can be read at once."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: to_device(t, device) for name, t in held.items() if isinstance(t, Tensor)}
        return replace(self, **moved, joined_length=_joined_length(self))


@dataclass(slots=True)
class Joined:
    """Source and inputs concatenated in rows of L tokens.

    tokens, segments, opened  (B, L); opened: True for tokens that their whole document sees: the source; None: none
    places                    (B, T) positions of the inputs in the row; None: they are at its end
    """

    tokens: Tensor
    segments: Tensor | None = None
    opened: Tensor | None = None
    places: Tensor | None = None

    def of_inputs(self, states: Tensor, length: int) -> Tensor:
        """Select the states of the inputs: (B, L, D) -> (B, length, D)."""
        if self.places is None:
            return states if self.opened is None else states[:, -length:]
        return states.gather(1, self.places[:, :, None].expand(-1, -1, states.shape[-1]))


def _joined_length(example: Example) -> int | None:
    """`Example.joined_length` of an example, computed if it is not known and its tensors are on the CPU."""
    segments, source = example.segments, example.source_segments
    if example.joined_length is not None or segments is None or source is None or segments.device.type != "cpu":
        return example.joined_length
    real = (source != PADDING).sum(1) + (segments != PADDING).sum(1)  # (B,)
    return int(real.max()) if int(real.min()) < source.shape[1] + segments.shape[1] else 0


def joined(example: Example) -> Joined:
    """Concatenate source and inputs for a decoder-only model; the padding of both is moved to the end of the row."""
    if example.source is None:
        return Joined(example.inputs, example.segments, example.opened)
    tokens = torch.cat([example.source, example.inputs], dim=1)
    opened = torch.zeros_like(tokens, dtype=torch.bool)
    opened[:, : example.source.shape[1]] = True
    if example.segments is None or example.source_segments is None:
        return Joined(tokens, None, opened)
    segments = torch.cat([example.source_segments, example.segments], dim=1)
    filler, length = segments == PADDING, _joined_length(example)
    if length is None:
        length = int((~filler).sum(1).max()) if bool(filler.any()) else 0
    if not length:
        return Joined(tokens, segments, opened)
    order = filler.long().argsort(dim=1, stable=True)
    places = order.argsort(dim=1)[:, example.source.shape[1] :].clamp(max=length - 1)
    rows = order[:, :length]
    return Joined(tokens.gather(1, rows), segments.gather(1, rows), opened.gather(1, rows), places)


def positions_in_documents(segments: Tensor) -> Tensor:
    """Count the earlier tokens of each token's document: (B, S) -> (B, S); a document need not be contiguous."""
    order = segments.argsort(dim=1, stable=True)
    ordered = segments.gather(1, order)
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counted = index - torch.where(starts, index, 0).cummax(dim=1).values
    return torch.zeros_like(counted).scatter(1, order, counted)


def positions_after(segments: Tensor, virtual: int) -> Tensor:
    """Positions within the documents (B, S), each of which starts after the virtual tokens: (B, S)."""
    found = positions_in_documents(segments)
    return found + virtual * (segments != SHARED) if virtual else found


class Loss(NamedTuple):
    """Loss of one batch.

    total     sum of the weighted losses of the targets, in nats, plus the layers' auxiliary losses
    weight    sum of the target weights; total / weight is the mean loss
    measures  numbers for the log
    """

    total: Tensor
    weight: Tensor
    measures: dict[str, Tensor]


def mean_measures(measures: Sequence[Mapping[str, Tensor]], weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Means over the batches of a step, weighted by their targets: what one batch of all their rows would log.

    A measure that some batches lack is the mean over those that have it.
    """
    if len(measures) == 1:
        return dict(measures[0])
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for of_batch in measures for name in of_batch):
        held = [(of[name], weight) for of, weight in zip(measures, weights, strict=True) if name in of]
        values = torch.stack([value.detach().float() for value, _ in held])
        shares = torch.stack([torch.as_tensor(weight).float() for _, weight in held]).to(values.device)
        # Without any target the batches count equally, as their weights say nothing.
        shares = torch.where(shares.sum() > 0, shares, 1.0)
        found[name] = (values * shares).sum() / shares.sum()
    return found
