"""Contrastive search: likely tokens whose hidden states differ from those of the text so far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import Positive, Range, decodes
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.steps import only_allowed, tails_of


@decodes.register("contrastive_search", paper="arXiv:2202.06417")
class ContrastiveSearch:
    """y_t = argmax over the top_k tokens v of (1 - alpha) p(v) - alpha max_j cos(h_v, h_j).

    h_v is the final hidden state of v, h_j those of the earlier tokens.  N prompts -> one continuation each.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Range(0, 1), "weight of the similarity to earlier tokens"] = 0.6,
        top_k: Annotated[int, Positive, "number of candidates in each step"] = 4,
    ) -> None:
        self.alpha, self.top_k = alpha, top_k

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        # Prompt by prompt: a batch would need the states of padded texts kept apart.
        return [[self._one(job.only(row))] for row in range(len(job.prompts))]

    @torch.no_grad()
    def _one(self, job: DecodingJob) -> Continuation:
        (tail,) = tails_of(job.ending, 1)
        with hidden_states(job.model) as seen:
            texts = job.open()
            while job.ending.new_tokens:
                # Joined once a step; the list grows by one state for each token.
                before = torch.cat(seen, dim=1)[0]  # (S, D)
                seen[:] = [before[None]]
                log_probs = texts.log_probs()
                allowed = only_allowed(log_probs, [tail])
                best = allowed[0].topk(min(self.top_k, int(allowed.isfinite().sum())))
                if texts.full:
                    return tail.finished("length")
                # The text is copied for each candidate, as the hidden state of a candidate needs a pass with it.
                texts.select(torch.zeros_like(best.indices))
                texts.extend(best.indices)
                states = seen.pop()[:, 0]  # (k, D)
                chosen = int(self.scores(best.values, states, before).argmax())
                place = torch.tensor([chosen], device=states.device)
                # The pass of the chosen candidate is kept, so that a step costs one pass and not two.
                texts.select(place)
                seen.append(states[place][:, None])
                token = int(best.indices[chosen])
                if ended := tail.add(token, float(log_probs[0, token])):
                    return tail.finished(ended)
        return tail.finished("length")

    def scores(self, log_probs: Tensor, states: Tensor, before: Tensor) -> Tensor:
        """Scores (k,) of candidates: log-probabilities (k,), hidden states (k, D), those of the text (S, D)."""
        similarity = F.normalize(states, dim=-1) @ F.normalize(before, dim=-1).T  # (k, S)
        return (1 - self.alpha) * log_probs.exp() - self.alpha * similarity.amax(-1)


@contextmanager
def hidden_states(model: Any) -> Iterator[list[Tensor]]:
    """Collect the final hidden states (R, T, D) of each pass of the model inside the block."""
    seen: list[Tensor] = []

    def watch(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(output)

    # A hook, since decoding passes hand out logits only.
    handle = model.model.register_forward_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()
