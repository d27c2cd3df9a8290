"""What alignment methods may ask for: the words that their parameters are chosen from, by the data they learn from.

A method states `data`, and its `loss(...)` (and `advantages(...)`, of a policy method) names what it wants; a task
hands over just that.  So it is known from the signature alone whether a reference model is needed (`ref_...`), a critic
(`values`), or the log-probability of each token.  Everything is a tensor unless a shape says otherwise: B examples, K
answers to one prompt, T answer tokens; log-probabilities in nats, sums over the tokens of an answer (its end included).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    Metrics = dict[str, Tensor]

PAIRS: Mapping[str, str] = {
    "chosen": "(B,) log-probability of the better answer",
    "rejected": "(B,) of the worse one",
    "ref_chosen": "(B,) the reference's, of the better answer",
    "ref_rejected": "(B,) of the worse one",
    "chosen_length": "(B,) tokens of the better answer",
    "rejected_length": "(B,) of the worse one",
    "chosen_tokens": "(B, T) log-probability of each token of the better answer, 0 behind its end",
    "rejected_tokens": "(B, T) of the worse one",
    "ref_chosen_tokens": "(B, T) the reference's, of the better answer",
    "ref_rejected_tokens": "(B, T) of the worse one",
    "chosen_mask": "(B, T) 1 on the tokens of the better answer, 0 behind its end",
    "rejected_mask": "(B, T) of the worse one",
    "chosen_collision": "(B, T) log of the sum of p^2 over the vocabulary, at each token of the better answer",
    "rejected_collision": "(B, T) of the worse one",
}
RANKINGS: Mapping[str, str] = {
    "logps": "(B, K) log-probability of each answer",
    "ref_logps": "(B, K) the reference's",
    "scores": "(B, K) how good each answer is: higher is better",
    "length": "(B, K) tokens of each answer",
    "present": "(B, K) False where a prompt has fewer than K answers",
}
LABELLED: Mapping[str, str] = {
    "logps": "(B,) log-probability of the answer",
    "ref_logps": "(B,) the reference's",
    "labels": "(B,) True where the answer is wanted",
    "length": "(B,) tokens of the answer",
    "kl_logps": "(B,) log-probability of another prompt's answer behind this prompt, without gradient",
    "ref_kl_logps": "(B,) the reference's",
}
PROMPTS: Mapping[str, str] = {
    "rewards": "(B,) of each answer; answers to one prompt lie side by side, `group` of them",
    "token_rewards": "(B, T) the same where it was earned: at the end of each step, or at the last token",
    "greedy_rewards": "(B,) of the answer that the policy gives at temperature 0 to the same prompt",
    "mask": "(B, T) 1 on the tokens of the answer, its end included, 0 behind",
    "logps": "(B, T) log-probability of each token under the policy",
    "old_logps": "(B, T) under the policy that wrote the answer",
    "ref_logps": "(B, T) under the frozen reference",
    "advantages": "(B,) or (B, T) as `advantages` gave them",
    "returns": "(B, T) as `advantages` gave them",
    "values": "(B, T) what the critic expects from here on",
    "old_values": "(B, T) what it expected when the answer was written",
    "entropy": "(B, T) of the policy's distribution at each token",
    "tokens": "() answer tokens of the whole optimizer step, of which this batch is a part",
    "max_length": "int: tokens that an answer may have",
}
WORDS: Mapping[str, Mapping[str, str]] = {
    "pairs": PAIRS, "rankings": RANKINGS, "labelled": LABELLED, "prompts": PROMPTS,
}  # fmt: skip
ALL_WORDS = tuple(dict.fromkeys(word for words in WORDS.values() for word in words))


class Advantages(NamedTuple):
    """advantages: (B,) or (B, T), without gradient; returns: (B, T), what the critic is to expect."""

    advantages: Tensor
    returns: Tensor | None = None
    metrics: Metrics | None = None
