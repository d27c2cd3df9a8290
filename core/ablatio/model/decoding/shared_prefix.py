"""Hidden states of answers whose prompts are encoded once and shared, in the forward and the backward pass."""

from typing import Any

import torch
from torch import Tensor

from ablatio.model.example import PADDING, Example
from ablatio.model.kv_cache import SharedPrefixCache

MAX_TOKEN_RATIO = 0.9  # of the tokens of whole rows: two passes over smaller batches cost as much as a few tokens more


def answer_states(
    model: Any,
    prompts: Tensor,
    lengths: Tensor,
    parents: Tensor,
    answers: Tensor,
    longest: int | None = None,
    *,
    shortest: int | None = None,
) -> Tensor:
    """Return the hidden state after each token of N answers: (N, T, D); each prompt is encoded once if that pays.

    prompts (G, P)  padded on the left
    lengths (G,)    of the prompts
    parents (N,)    index of the prompt that each answer continues
    answers (N, T)  padded on the right with arbitrary tokens
    longest         number of tokens of the longest prompt with its answer, if known
    shortest        number of tokens of the shortest prompt; None: it is read from `lengths`, and the device waited for
    """
    before, length = prompts.shape[1], answers.shape[1]
    longest = before + length if longest is None else longest
    read_once = model.shared_prefix and pays(prompts, answers, longest) and model.model.reaches(before + length)
    shortest = int(lengths.min()) if read_once and shortest is None else shortest
    if read_once and shortest:  # tokens after an empty prompt would be taken for padding
        cache = SharedPrefixCache()
        model.model(prompts, segments_of(prompts, lengths) if shortest < before else None, cache)
        cache.select(parents)
        states: Tensor = model.model(answers, None, cache)
        return states
    own = lengths[parents][:, None]
    row = torch.cat([prompts[parents], answers], dim=1)
    places = torch.arange(longest, device=row.device) + before - own
    row = row.gather(1, places.clamp(max=row.shape[1] - 1))  # causal mask: no token sees the fill at the end of its row
    states = model.hidden(Example(row, row))
    answer_places = (own + torch.arange(length, device=row.device)).clamp(max=longest - 1)  # (N, T)
    return states.gather(1, answer_places[:, :, None].expand(-1, -1, states.shape[-1]))


def pays(prompts: Tensor, answers: Tensor, longest: int) -> bool:
    """True if encoding each prompt once saves enough tokens."""
    return prompts.numel() > 0 and prompts.numel() + answers.numel() <= MAX_TOKEN_RATIO * len(answers) * longest


def segments_of(prompts: Tensor, lengths: Tensor) -> Tensor:
    """Segments (G, P) that mark the padding."""
    filler = torch.arange(prompts.shape[1], device=prompts.device) < prompts.shape[1] - lengths[:, None]
    return torch.where(filler, PADDING, 0)
