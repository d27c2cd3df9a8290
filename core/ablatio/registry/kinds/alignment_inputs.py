"""Inputs of alignment methods: the parameter names that `loss` and `advantages` may have, by the data of the method.

A method declares `data`; the parameters of its `loss(...)`, and of `advantages(...)` for a policy method, name the
inputs that the task computes and passes by keyword.  So the signature alone shows whether a run needs a reference model
(`ref_...`), a critic (`values`) or the log-probability of each token.

Inputs are tensors unless marked otherwise.  Shapes: B examples, K answers to one prompt, T answer tokens.
Log-probabilities are in nats; those of an answer are sums over its tokens, the end-of-answer token included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    Metrics = dict[str, Tensor]

PAIRS: Mapping[str, str] = {
    "chosen": "(B,) log-probability of the better answer",
    "rejected": "(B,) log-probability of the worse answer",
    "ref_chosen": "(B,) log-probability of the better answer under the reference",
    "ref_rejected": "(B,) log-probability of the worse answer under the reference",
    "chosen_length": "(B,) number of tokens of the better answer",
    "rejected_length": "(B,) number of tokens of the worse answer",
    "chosen_tokens": "(B, T) log-probability of each token of the better answer, 0 in padding",
    "rejected_tokens": "(B, T) log-probability of each token of the worse answer, 0 in padding",
    "ref_chosen_tokens": "(B, T) as chosen_tokens, under the reference",
    "ref_rejected_tokens": "(B, T) as rejected_tokens, under the reference",
    "chosen_mask": "(B, T) 1 on the tokens of the better answer, 0 in padding",
    "rejected_mask": "(B, T) 1 on the tokens of the worse answer, 0 in padding",
    "chosen_collision": "(B, T) log of the sum of p^2 over the vocabulary, at each token of the better answer",
    "rejected_collision": "(B, T) log of the sum of p^2 over the vocabulary, at each token of the worse answer",
}
RANKINGS: Mapping[str, str] = {
    "logps": "(B, K) log-probability of each answer",
    "ref_logps": "(B, K) log-probability of each answer under the reference",
    "scores": "(B, K) score of each answer; higher is better",
    "length": "(B, K) number of tokens of each answer",
    "present": "(B, K) False in the places that a prompt with fewer than K answers leaves empty",
}
LABELLED: Mapping[str, str] = {
    "logps": "(B,) log-probability of the answer",
    "ref_logps": "(B,) log-probability of the answer under the reference",
    "labels": "(B,) True if the answer is desirable",
    "length": "(B,) number of tokens of the answer",
    "kl_logps": "(B,) log-probability of another prompt's answer given this prompt, without gradient",
    "ref_kl_logps": "(B,) as kl_logps, under the reference",
}
PROMPTS: Mapping[str, str] = {
    "rewards": "(B,) reward of each answer; the `group` answers to one prompt are adjacent",
    "token_rewards": "(B, T) rewards placed at tokens: at the end of each reasoning step, or at the last token",
    "greedy_rewards": "(B,) reward of the policy's greedy answer (temperature 0) to the same prompt",
    "mask": "(B, T) 1 on the tokens of the answer, end-of-answer included, 0 in padding",
    "logps": "(B, T) log-probability of each token under the policy",
    "old_logps": "(B, T) log-probability of each token under the policy that sampled the answer",
    "ref_logps": "(B, T) log-probability of each token under the frozen reference",
    "advantages": "(B,) or (B, T) as returned by `advantages`",
    "returns": "(B, T) as returned by `advantages`",
    "values": "(B, T) the critic's value estimates",
    "old_values": "(B, T) the critic's value estimates when the answer was sampled",
    "entropy": "(B, T) entropy of the policy's next-token distribution at each token",
    "tokens": "() number of answer tokens in the whole optimizer step, of which this batch is a part",
    "max_length": "int: largest number of tokens that an answer may have",
}
WORDS: Mapping[str, Mapping[str, str]] = {
    "pairs": PAIRS, "rankings": RANKINGS, "labelled": LABELLED, "prompts": PROMPTS,
}  # fmt: skip
ALL_WORDS = tuple(dict.fromkeys(word for words in WORDS.values() for word in words))


class Advantages(NamedTuple):
    """Result of a policy method's `advantages(...)`.

    advantages: (B,) or (B, T), without gradient; returns: (B, T), the critic's regression targets, None without a
    critic; metrics: scalars to log.
    """

    advantages: Tensor
    returns: Tensor | None = None
    metrics: Metrics | None = None
