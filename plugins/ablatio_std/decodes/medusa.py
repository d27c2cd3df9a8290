"""Medusa: heads of the model itself draft a tree of continuations, which one pass checks."""

import heapq
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import Positive, decodes
from ablatio.errors import UserError
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import (
    LogitsProcessors,
    MinP,
    NoRepeatNgram,
    Repetition,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from ablatio.model.decoding.steps import chooser, only_allowed, tails_of
from ablatio.model.decoding.texts import check_prompts
from ablatio.model.kv_cache import KVCache


@decodes.register("medusa", paper="arXiv:2401.10774")
class Medusa:
    """Samples exactly as decode=sample, with fewer passes: heads for tokens further ahead draft, the model checks.

    The heads are the siblings of the last layer that objective=multi_token trains: with the model, or alone on a model
    that `freeze` keeps as it is.  Each pass reads a tree: the next token, and below it the `nodes` - 1 continuations
    that the heads find most probable, each token attending to its own ancestors only.  Tokens are drawn from the
    model's distributions along the tree as long as the tree holds them (the paper's typical acceptance is not exact,
    and is left out).  temperature=0: the tokens are those of decode=greedy.  N prompts -> one continuation each, prompt
    by prompt.
    """

    samples = True

    def __init__(
        self,
        *,
        nodes: Annotated[int, Positive, "number of tokens that a pass reads"] = 16,
        branch: Annotated[int, Positive, "largest number of tokens that may follow a token of the tree"] = 4,
        temperature: Temperature = 1.0,
        top_k: TopK = 0,
        top_p: TopP = 1.0,
        min_p: MinP = 0.0,
        typical: Typical = 1.0,
        repetition: Repetition = 1.0,
        no_repeat_ngram: NoRepeatNgram = 0,
    ) -> None:
        self.nodes, self.branch = nodes, branch
        self.settings = LogitsProcessors(temperature, top_k, top_p, min_p, typical, repetition, no_repeat_ngram)

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        return [[self._one(job.only(row))] for row in range(len(job.prompts))]

    @torch.no_grad()
    def _one(self, job: DecodingJob) -> Continuation:
        (tail,) = tails_of(job.ending, 1)
        choose, reader = chooser(job, self.settings), TreeReader(job.model, job.prompts[0])
        text = torch.tensor([list(job.prompts[0])], device=reader.device)

        def draw() -> tuple[int, Continuation | None]:
            """The next token, and the whole continuation if it ends with it."""
            nonlocal text
            logits = reader.logits
            # Penalties see the text with the drafted tokens accepted so far, as token by token decoding would.
            shaped = only_allowed(self.settings.penalize(logits, text), [tail])
            token = int(choose(shaped, [0]))
            text = torch.cat([text, text.new_tensor([[token]])], dim=1)
            ended = tail.add(token, float(logits.log_softmax(-1)[0, token]))
            return token, tail.finished(ended) if ended else None

        if not job.ending.new_tokens:
            return tail.finished("length")
        token, found = draw()
        while found is None and (room := reader.room(self.nodes)):
            tokens, parents = tree(token, reader.ahead, room, self.branch)
            reader.read(tokens, parents)
            path = [0]  # the accepted nodes of the tree: its root is the token that was drawn
            while True:
                reader.stand_at(path[-1])
                token, found = draw()
                # The token is drawn from the model whatever the tree holds; the tree only saves the pass if it holds
                # it. So the draft cannot bias the sample.
                below = [i for i, above in enumerate(parents) if above == path[-1] and tokens[i] == token]
                if found or not below:
                    break
                path += below
            reader.keep(path)
        return found or tail.finished("length")


def tree(root: int, ahead: Sequence[Tensor], nodes: int, branch: int) -> tuple[list[int], list[int]]:
    """The most probable continuations of a token as a tree: (tokens, number of the node before each; -1: the root).

    ahead  logits (1, V) of the tokens after the root, by the head of each place; places count as independent
    """
    best = [x[0].log_softmax(-1).topk(min(branch, x.shape[-1])) for x in ahead]
    scores, choices = [b.values.tolist() for b in best], [b.indices.tolist() for b in best]
    tokens, parents = [root], [-1]
    # Best first: a child or the next sibling is never likelier than the node it is pushed after, so the heap yields
    # nodes by falling probability.
    heap = [(-scores[0][0], 0, 0, 0, 0.0)]  # (-log-probability, parent, depth, rank, log-probability of the parent)
    while heap and len(tokens) < nodes:
        score, parent, depth, rank, before = heapq.heappop(heap)
        tokens.append(choices[depth][rank])
        parents.append(parent)
        if rank + 1 < len(scores[depth]):
            heapq.heappush(heap, (-(before + scores[depth][rank + 1]), parent, depth, rank + 1, before))
        if depth + 1 < len(ahead):
            heapq.heappush(heap, (score - scores[depth + 1][0], len(tokens) - 1, depth + 1, 0, -score))
    return tokens, parents


class TreeReader:
    """A text in a model with heads, and the tree of continuations that was read last.

    logits  (1, V) of the next token at the place where it stands
    ahead   (1, V) each: of the tokens after that one
    """

    def __init__(self, model: Any, prompt: Sequence[int]) -> None:
        """Read the prompt.  Raises UserError for models without heads, or that cannot read a tree."""
        check_prompts(model, [prompt])
        stack = model.model
        if not stack.further:
            raise UserError(
                "decode=medusa needs a model with heads for tokens further ahead, and this one has none\n"
                "    try: a run with objective=multi_token, or decode=speculative second=RUN"
            )
        self.model, self.device = model, next(model.parameters()).device
        # One cache for the stack and one for each head, whose layer reads its own keys.
        self.cache, self.caches = KVCache(), [KVCache() for _ in stack.further]
        self.read(prompt, range(-1, len(prompt) - 1))
        self.stand_at(len(prompt) - 1)
        # After the first pass, since only then the caches show whether a layer keeps a state.
        plain = stack.virtual is None and not (stack.rotates_cached_keys or model.opens or hasattr(model, "encoder"))
        if not plain or any(cache.has_states for cache in (self.cache, *self.caches)):
            raise UserError(
                "decode=medusa reads a tree of continuations, and this model has layers or virtual tokens that read "
                "one text only\n    try: decode=speculative second=RUN"
            )

    def room(self, nodes: int) -> int:
        """The number of tokens that a tree may have: at most `nodes`, as far as the model's positions reach."""
        while nodes and not self.model.model.reaches(self.cache.length + nodes):
            nodes -= 1
        return nodes

    def read(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Read a tree after the text: tokens, and the number of the token before each, -1 for the text itself."""
        # Parents come before their children, so that one sweep collects all ancestors.
        sees = torch.eye(len(tokens), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        row = torch.tensor([list(tokens)], device=self.device)
        self.found = self.model.read_ahead(row, self.cache, self.caches, sees.to(self.device))
        self.read_tokens = len(tokens)

    def stand_at(self, node: int) -> None:
        """Take the logits at a node of the tree."""
        self.logits, *self.ahead = (x[:, node].float() for x in self.found)

    def keep(self, path: Sequence[int]) -> None:
        """Append these nodes of the tree to the text, and forget the others."""
        kept = torch.tensor(list(path), device=self.device)
        for cache in (self.cache, *self.caches):
            # The rejected branches of the tree leave the cache, as if only the path had been read.
            cache.keep_tokens(cache.length - self.read_tokens, kept)
