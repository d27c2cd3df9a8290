"""The states that say answers, each prompt read once for all of its answers, forward and backward."""

from typing import Any

import torch
from torch import Tensor

from ablatio.model.example import PADDING, Example
from ablatio.model.kv_cache import Branching

WORTH = 0.9  # of the tokens of whole rows: two passes over smaller batches cost as much as a few tokens


def answer_states(
    model: Any, prompts: Tensor, lengths: Tensor, parents: Tensor, answers: Tensor, longest: int | None = None
) -> Tensor:
    """The state behind each token of N answers: (N, T, D).

    prompts (G, P)  padded on the left
    lengths (G,)    of them
    parents (N,)    the prompt that each answer goes on from
    answers (N, T)  filled up on the right with any tokens
    longest         tokens of the longest prompt with its answer, where that is known
    """
    before, length = prompts.shape[1], answers.shape[1]
    longest = before + length if longest is None else longest
    read_once = model.shared_prefix and pays(prompts, answers, longest) and model.model.reaches(before + length)
    if read_once and bool(lengths.all()):  # what follows nothing but padding would be taken for padding
        cache = Branching()
        model.model(prompts, segments_of(prompts, lengths), cache)
        cache.select(parents)
        states: Tensor = model.model(answers, None, cache)
        return states
    own = lengths[parents][:, None]
    row = torch.cat([prompts[parents], answers], dim=1)
    places = torch.arange(longest, device=row.device) + before - own
    row = row.gather(1, places.clamp(max=row.shape[1] - 1))  # no token sees what fills a row up behind it
    states = model.hidden(Example(row, row))
    said = (own + torch.arange(length, device=row.device)).clamp(max=longest - 1)
    return states.gather(1, said[:, :, None].expand(-1, -1, states.shape[-1]))


def pays(prompts: Tensor, answers: Tensor, longest: int) -> bool:
    """Whether reading each prompt once saves enough tokens."""
    return prompts.numel() > 0 and prompts.numel() + answers.numel() <= WORTH * len(answers) * longest


def segments_of(prompts: Tensor, lengths: Tensor) -> Tensor | None:
    """(G, P): the padding as a document of its own; None where there is none."""
    filler = torch.arange(prompts.shape[1], device=prompts.device) < prompts.shape[1] - lengths[:, None]
    return torch.where(filler, PADDING, 0) if bool(filler.any()) else None
