"""Which tokens of a prompt to try next, by the gradient of the loss (HotFlip, arXiv:1712.06751)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.prompting.types import Usage


class Tokenized(Protocol):
    """A model with its tokenizer, as a Session has them."""

    model: Any
    tokenizer: Any
    usage: Usage

    def pair(self, prompt: str, continuation: str) -> tuple[list[int], int]:
        """Token ids of prompt and continuation, and the number of those that end within the prompt."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens."""


def token_candidates(
    session: Tokenized, prompts: Sequence[str], trigger: str, answers: Sequence[str], k: int
) -> list[list[str]]:
    """Return triggers with one token replaced: in each place, by the k tokens v of largest -(e_v - e_t) . dL/de_t.

    e are rows of the token table, t the token in that place, L the sum of -log p(answer | prompt) over the pairs.
    Raises UserError if a prompt does not hold the trigger as tokens of its own.
    """
    (places,) = session.tokenizer.encode([trigger])
    wanted = [int(i) for i in places]
    total: Tensor | float = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, given = session.pair(prompt, answer)
        total = total + _gradient(session, ids, given, _place(ids, wanted, trigger, prompt), len(wanted))
    assert isinstance(total, Tensor)
    table = session.model.model.embed_tokens.weight.detach()
    gain = -(total @ table.T)  # (n, V); the term of e_t is the same for all v
    count = session.tokenizer.vocab_size
    order = gain[:, :count].argsort(dim=-1, descending=True, stable=True)
    return [_replaced(session, wanted, place, row, k) for place, row in enumerate(order[:, : 8 * k].tolist())]


def _replaced(session: Tokenized, wanted: Sequence[int], place: int, tokens: Sequence[int], k: int) -> list[str]:
    """The triggers with the first k of the tokens in this place whose text has the same number of tokens again."""
    rows = [[*wanted[:place], token, *wanted[place + 1 :]] for token in tokens if token != wanted[place]]
    texts = [session.text(row) for row in rows]
    again = [list(map(int, ids)) for ids in session.tokenizer.encode(texts)]
    return [text for text, row, ids in zip(texts, rows, again, strict=True) if row == ids and "\ufffd" not in text][:k]


def _place(ids: Sequence[int], wanted: Sequence[int], trigger: str, prompt: str) -> int:
    for place in range(len(ids) - len(wanted) + 1):
        if list(ids[place : place + len(wanted)]) == list(wanted):
            return place
    raise UserError(
        f"the tokens of the trigger {trigger!r} do not stand in the prompt {prompt[:60]!r}: the tokenizer joins them "
        "with the text beside them\n    try: a trigger that begins with a space and ends before one"
    )


def _gradient(session: Tokenized, ids: Sequence[int], given: int, place: int, count: int) -> Tensor:
    """Gradient of -log p(ids[given:] | ids[:given]) with respect to the rows of `count` tokens: (count, W)."""
    model, device = session.model.eval(), next(session.model.parameters()).device
    tokens = torch.tensor([ids], device=device)
    rows: list[Tensor] = []

    def watch(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        rows.append(output.detach().requires_grad_())
        return rows[-1]

    handle = model.model.embed_tokens.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            logits = model(tokens[:, :-1])[0]
            loss = torch.nn.functional.cross_entropy(logits[given - 1 :], tokens[0, given:], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, rows[0])
    finally:
        handle.remove()
    session.usage.calls += 1
    session.usage.read += len(ids)
    return gradient[0, place : place + count]
