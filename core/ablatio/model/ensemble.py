"""Several language models that predict as one: the mean of their probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.cross_entropy import mean_token_scores
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel


class Ensemble(nn.Module):
    """p(token) = (1/M) sum_m p_m(token), for M models with the same vocabulary; scores texts, and cannot be trained.

    The models may differ in everything else.  By Jensen's inequality the loss is at most the mean of their losses.

    Raises UserError for models with different numbers of ids.
    """

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        sizes = [model.vocab_size for model in models]
        if len(set(sizes)) > 1:
            raise UserError(
                f"the mean of probabilities needs one vocabulary, and these models have {', '.join(map(str, sizes))} "
                "ids\n    try: runs with the same model.vocab_size"
            )
        self.vocab_size = sizes[0]

    @torch.no_grad()
    def token_scores(self, example: Example) -> tuple[Tensor, Tensor]:
        """Return the loss of each target in nats and whether the mean ranks it first: (B, T) each."""
        hidden = [model.scaled(model.hidden(example)).flatten(0, 1) for model in self.models]  # type: ignore[operator]
        matrices = [model.lm_head.weight for model in self.models]  # type: ignore[union-attr]
        maps = [model.logit_map for model in self.models]
        losses, hits = mean_token_scores(hidden, matrices, example.targets.flatten(), maps)  # type: ignore[arg-type]
        return losses.view_as(example.targets), hits.view_as(example.targets)
