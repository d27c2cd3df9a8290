"""Shared by objectives with source and target: split packed rows into documents and pack the results again."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.model.example import PADDING, Example

MIN_TOKENS = 4  # tokens; shorter pieces of a document are left out, as they hold too little to hide


@dataclass(slots=True)
class Pair:
    """Source and target of one document: `inputs[t]` is the decoder's input when `targets[t]` is predicted."""

    source: list[int]
    inputs: list[int]
    targets: list[int]
    scored: list[bool] | None = None  # targets with a loss; None: all

    def __len__(self) -> int:
        return len(self.source) + len(self.inputs)


def shifted_targets(start: int, target: list[int]) -> tuple[list[int], list[int]]:
    """Decoder inputs and targets: the target shifted by one, with `start` in front."""
    return [start, *target[:-1]], target


def documents(tokens: Tensor, segments: Tensor | None) -> list[list[list[int]]]:
    """Documents of each row as lists of ids, without those under MIN_TOKENS; a row of such documents stays whole."""
    rows: list[list[list[int]]] = []
    for i, row in enumerate(tokens.tolist()):
        borders = [0, len(row)]
        if segments is not None:
            # The borders of all documents of the row; its two ends are borders too.
            borders[1:1] = (segments[i].diff().nonzero().flatten() + 1).tolist()
        pieces = [row[a:b] for a, b in itertools.pairwise(borders)]
        rows.append([p for p in pieces if len(p) >= MIN_TOKENS] or [row])
    return rows


def pack_pairs(
    tokens: Tensor, segments: Tensor | None, eos: int, longest: int, hide: Callable[[list[int]], Pair]
) -> Example:
    """Apply `hide` to each document and pack the results; source and inputs of a row have at most `longest` tokens.

    Text that does not fit is cut from the row's end, so that a decoder-only model and an encoder-decoder see the same.
    """
    rows = [_fitting(found, longest, hide) for found in documents(tokens, segments)]
    # A row with one document needs no mask, whose absence keeps the fast attention kernels.
    packed = segments is not None and any(len(row) > 1 for row in rows)
    source, source_segments, _ = _block([[p.source for p in row] for row in rows], eos)
    inputs, input_segments, real = _block([[p.inputs for p in row] for row in rows], eos)
    # Padding is filled with eos, a valid id for the embedding; its weight is 0.
    targets, _, _ = _block([[p.targets for p in row] for row in rows], eos)
    scored, _, _ = _block([[_scored(p) for p in row] for row in rows], 0)
    whole = bool(real.all()) and bool((source_segments >= 0).all())
    partial = not (whole and bool(scored.all()))
    keep = packed or not whole or segments is not None
    return Example(
        inputs,
        targets,
        weights=(scored * real).float() if partial else None,
        segments=input_segments if keep else None,
        source=source,
        source_segments=source_segments if keep else None,
    )


def _scored(pair: Pair) -> list[int]:
    return [1] * len(pair.targets) if pair.scored is None else [int(a) for a in pair.scored]


def _fitting(row: list[list[int]], longest: int, hide: Callable[[list[int]], Pair]) -> list[Pair]:
    """Pairs of the documents of a row that fit into `longest` tokens, the last one from a shortened document."""
    pairs: list[Pair] = []
    room = longest
    for document in row:
        pair = hide(document)
        while len(pair) > room and len(document) > MIN_TOKENS:
            # Hidden anew from a shorter document: cutting the pair would leave spans in the source without a target.
            document = document[: max(MIN_TOKENS, len(document) - (len(pair) - room))]
            pair = hide(document)
        if len(pair) > room:
            break
        pairs.append(pair)
        room -= len(pair)
    # A row is never empty: one document that is too long even at MIN_TOKENS stays.
    return pairs or [pair]


def _block(rows: list[list[list[int]]], filler: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, document numbers, mask of real tokens): (B, L) each, padded on the right."""
    length = max(sum(map(len, row)) for row in rows)
    ids = torch.full((len(rows), length), filler, dtype=torch.long)
    segments = torch.full((len(rows), length), PADDING, dtype=torch.long)
    for i, row in enumerate(rows):
        flat = [t for piece in row for t in piece]
        numbers = [n for n, piece in enumerate(row) for _ in piece]
        ids[i, : len(flat)] = torch.tensor(flat)
        segments[i, : len(flat)] = torch.tensor(numbers)
    return ids, segments, segments >= 0
