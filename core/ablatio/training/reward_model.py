"""Score answers with a trained reward model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ablatio.config.inherit import folder_tokenizer
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.number_format import without_autocast
from ablatio.model.rl.answers import Answer, step_tokens
from ablatio.storage.paths import shell_word
from ablatio.training.restore import restore_model
from ablatio.training.run_folder import refuse_living

HEAD = "reward_head.weight"
AT_ONCE = 16  # answers per forward pass


class TrainedReward:
    """The reward model of a run: reward = w . h, h the hidden state at a token and w the weight of the reward head."""

    def __init__(self, model: LanguageModel, weight: Tensor, tokenizer: Tokenizer) -> None:
        self.model, self.weight, self.tokenizer = model, weight, tokenizer

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        """Return the reward at the last token of each answer: (N,)."""
        return torch.stack([row[-1] for row in self._at_tokens(answers)]) if answers else torch.zeros(0)

    def at(self, answers: Sequence[Answer], ends: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the rewards at the tokens that end at these numbers of characters of each answer."""
        found = []
        for answer, row, at in zip(answers, self._at_tokens(answers), ends, strict=True):
            tokens = step_tokens(answer.ids, at, self._decode, len(answer.ids) - 1)
            found.append(row[len(answer.prompt_ids) :][tokens])
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])

    @torch.no_grad()
    def _at_tokens(self, answers: Sequence[Answer]) -> Iterator[Tensor]:
        """Yield the rewards at all tokens of each prompt with its answer."""
        for start in range(0, len(answers), AT_ONCE):
            rows = [[*a.prompt_ids, *a.ids] for a in answers[start : start + AT_ONCE]]
            longest = max(map(len, rows))
            tokens = torch.tensor([r + [0] * (longest - len(r)) for r in rows])  # (B, T)
            with without_autocast(tokens.device):  # independent of the precision of the run that asks
                hidden = self.model.hidden(Example(tokens, tokens))  # (B, T, d_model)
                values = (hidden @ self.weight.to(hidden.dtype)).float()
            yield from (value[: len(row)] for value, row in zip(values, rows, strict=True))


def open_reward(path: str, tokenizer: Tokenizer) -> TrainedReward:
    """Load the reward model of a run.

    path       folder of a run of task=reward or task=process_reward
    tokenizer  of the run that asks; must have as many ids as the reward model's

    Raises UserError if the run has no reward model or another number of token ids.
    """
    refuse_living(Path(path), "reward.path")
    found = restore_model(Path(path))
    if HEAD not in found.heads:
        raise UserError(
            f"{path} is a run of task={found.config['task']['name']}, which has no reward model\n"
            "    try: ablatio train task=reward name=reward"
        )
    theirs, ours = found.tokenizer.vocab_size, tokenizer.vocab_size
    if theirs != ours:
        raise UserError(
            f"the reward model {path} has {theirs} token ids and this run's tokenizer {ours}; both need the same one\n"
            f"    try: tokenizer={folder_tokenizer().name} tokenizer.path={shell_word(path)}"
        )
    return TrainedReward(found.model, found.heads[HEAD], tokenizer)
