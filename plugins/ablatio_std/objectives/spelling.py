"""Prefix token prediction: a share of the loss for the longest token that a target begins with."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Schedulable, objectives
from ablatio.model.cross_entropy import linear_cross_entropy
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.transfer import to_device
from ablatio_std.objectives.autoregressive import NextToken

NO_PREFIX = -1


@objectives.register("prefix_token", paper="https://github.com/KellerJordan/modded-nanogpt/pull/337")
class PrefixToken(NextToken):
    """-log p(x_{t+1}) - weight log p(y_{t+1}), y the longest token that is a proper prefix of the token x in spelling.

    A target without such a token has the first term alone.  Both terms are of one head: what is learned about a
    frequent beginning helps the rarer words that begin so.  Tokens that are no whole characters have no prefix.
    """

    metrics = ("train/prefix_token",)
    splits_tokens, reads_head = False, True

    def __init__(
        self, *, weight: Annotated[float, NonNegative, Schedulable(), "weight of the loss of the prefix"] = 0.25
    ) -> None:
        self.weight, self.prefixes = weight, torch.tensor([NO_PREFIX])

    def take_tokens(self, texts: Sequence[str]) -> None:
        self.prefixes = torch.tensor(prefix_ids(texts))

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        self.prefixes = to_device(self.prefixes, example.targets.device)
        # Ids beyond the tokenizer's have no spelling.
        known = example.targets < len(self.prefixes)
        prefixes = self.prefixes[example.targets.masked_fill(~known, 0)].masked_fill(~known, NO_PREFIX)
        weights = (prefixes != NO_PREFIX).float() * (1 if example.weights is None else example.weights)
        computed: list[Tensor] = []

        # Called by the model with its hidden states, so that it is run once for both losses.
        def beside(hidden: Tensor) -> Tensor:
            states, targets = model.scaled(hidden).flatten(0, 1), prefixes.clamp(min=0).flatten()
            computed.append(
                linear_cross_entropy(
                    states, model.lm_head.weight, targets, weights.flatten(), logit_map=model.logit_map
                )
            )
            return self.weight * computed[0]

        total, count, measures = model.loss(example, beside=beside)
        return Loss(total, count, measures | {"train/prefix_token": computed[0].detach() / count})


def prefix_ids(texts: Sequence[str]) -> list[int]:
    """Id of the longest proper prefix of each token among the tokens, or NO_PREFIX.  O(characters of all tokens)."""
    whole = {text: i for i, text in enumerate(texts) if text and "\ufffd" not in text}
    return [
        next((whole[text[:n]] for n in range(len(text) - 1, 0, -1) if text[:n] in whole), NO_PREFIX)
        if text in whole
        else NO_PREFIX
        for text in texts
    ]
