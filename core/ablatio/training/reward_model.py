"""Score answers with a trained reward model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.example import Example
from ablatio.model.number_format import without_autocast
from ablatio.model.rl.answers import Answer
from ablatio.training.restore import restore_model
from ablatio.training.run_folder import refuse_living

HEAD = "reward_head.weight"
AT_ONCE = 16  # answers per forward pass


def open_reward(path: str, tokenizer: Tokenizer) -> Callable[[Sequence[Answer]], Tensor]:
    """Load the reward model of a run as a function from answers to rewards (N,).

    reward = w . h, with h the hidden state at the answer's last token and w the weight of the reward head.

    path       folder of a run of task=reward
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
    weight, model, device = found.heads[HEAD], found.model, torch.device("cpu")
    theirs, ours = found.tokenizer.vocab_size, tokenizer.vocab_size
    if theirs != ours:
        raise UserError(
            f"the reward model {path} has {theirs} token ids and this run's tokenizer {ours}; train both with the same "
            "tokenizer and source"
        )

    @torch.no_grad()
    def judge(answers: Sequence[Answer]) -> Tensor:
        scores = []
        for start in range(0, len(answers), AT_ONCE):
            rows = [[*a.prompt_ids, *a.ids] for a in answers[start : start + AT_ONCE]]
            longest = max(map(len, rows))
            tokens = torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=device)  # (B, T)
            last = torch.tensor([len(r) - 1 for r in rows], device=device)
            with without_autocast(device):  # rewards do not depend on the precision of the run that asks
                hidden = model.hidden(Example(tokens, tokens))  # (B, T, d_model)
                scores.append((hidden[torch.arange(len(rows)), last] @ weight.to(hidden.dtype)).float())
        return torch.cat(scores).cpu()

    return judge
