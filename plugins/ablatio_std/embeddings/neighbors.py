"""Embeddings that know the tokens before, within the document: smeared, and looked up by hashed n-grams."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, embeddings
from ablatio.model.context import Context
from ablatio.model.local_mixing import Rows, cached_state, previous

STATE = "earlier tokens"  # key of what these parts keep in the cache
NONE = -1  # id of the tokens before the first one of a document


def earlier_ids(tokens: Tensor, count: int, ctx: Context) -> list[Tensor]:
    """Return the ids of the tokens 1 ... count places before, NONE before the document's first: (B, T) each."""
    rows, (past,), length = Rows.of(ctx), cached_state(ctx, STATE, 1), tokens.shape[1]
    own = rows.sorted(tokens[..., None])[..., 0]
    inputs = torch.cat([own.new_full((len(own), count), NONE) if past is None else past, own], dim=1)
    if ctx.cache is not None:
        ctx.cache.keep(STATE, inputs[:, length:])
    found = [inputs[:, count - i : count - i + length] for i in range(1, count + 1)]
    if rows.documents is not None:
        before = rows.before(count)
        before = rows.documents[:, :0] if before is None else before
        documents = F.pad(torch.cat([before, rows.documents], dim=1), (count - before.shape[1], 0))
        same = (documents[:, count - i : count - i + length] == rows.documents for i in range(1, count + 1))
        found = [ids.masked_fill(~mask, NONE) for ids, mask in zip(found, same, strict=True)]
    return [rows.restored(ids[..., None])[..., 0] for ids in found]


@embeddings.register("smear")
class Smear(nn.Module):
    """x_t + a sigmoid(w . x_t) x_{t-1}, w on the first `channels` of x_t: each token sees the one before it.

    a and w are learned, and w starts at 0.  (B, T, D) -> same.

    Source: modded-nanogpt, record of 2025-09-18, https://github.com/KellerJordan/modded-nanogpt/pull/130
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: Annotated[int, Range(1), "channels that the gate reads, at most d_model"] = 12,
        start: Annotated[float, "initial value of a"] = 0.0,
    ) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(min(channels, d_model)))
        self.strength = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        rows, (past,) = Rows.of(ctx), cached_state(ctx, STATE, 1)
        own = rows.sorted(x)
        before, past = previous(own, rows, past)
        if ctx.cache is not None:
            ctx.cache.keep(STATE, past)
        gate = self.strength * torch.sigmoid(own[..., : len(self.gate)] @ self.gate)[..., None]  # (B, T, 1)
        return rows.restored(own + gate * before)


@embeddings.register("bigram_hash")
class BigramHash(nn.Module):
    """x_t + w s * e, e the row (36313 t_t XOR 27191 t_{t-1}) mod (R - 1) of a table with R rows; w is learned.

    s, one of `signs` fixed random vectors of +-1, is that at (t_t XOR t_{t-1}) mod signs: bigrams that share a row
    differ in their signs.  The first token of a document has the last row of the table.  (B, T, D) -> same.

    Source: modded-nanogpt, records of 2026-01-19 and 2026-05-20,
    https://github.com/KellerJordan/modded-nanogpt/pull/201 and /pull/299
    """

    signs: Tensor

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        ratio: Annotated[float, Range(0, open_low=True), "rows of the table, in units of the vocabulary"] = 5.0,
        signs: Annotated[int, Range(0), "number of vectors of signs; 0: no signs"] = 8192,
        start: Annotated[float, "initial value of w"] = 0.1,
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(max(2, round(ratio * vocab_size)), d_model)
        self.weight = nn.Parameter(torch.tensor([start]))
        self.register_buffer("signs", torch.randint(2, (signs, d_model)).mul_(2).sub_(1).to(torch.int8))

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        (before,) = earlier_ids(tokens, 1, ctx)
        last = self.table.num_embeddings - 1
        row = ((36313 * tokens) ^ (27191 * before)) % last
        found = self.table(torch.where(before == NONE, last, row))
        if len(self.signs):
            sign = torch.where(before == NONE, 0, (tokens ^ before) % len(self.signs))
            found = found * self.signs[sign].to(found.dtype)
        return x + self.weight * found


@embeddings.register("ngram_hash", paper="arXiv:2501.16975")
class NgramHash(nn.Module):
    """(x + sum_{n,k} W_nk E_nk[h_nk]) / (1 + K (N - 1)), n = 2 ... N, k = 1 ... K, h_nk a hash of the last n tokens.

    h_nk = sum_{i<n} t_{-i} V^i mod the rows of E_nk, which are `ratio` V + 1, + 3, + 5 ...  The K (N - 1) tables are
    d_model / (K (N - 1)) wide, so all of them have about `ratio` V d_model parameters.  Tokens before the document
    count as id 0.  The hash and the division are those of LongCat-Flash-Lite.  (B, T, D) -> same.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        n: Annotated[int, Range(2), "longest n-gram N"] = 3,
        k: Annotated[int, Range(1), "hashes K of each n-gram"] = 2,
        ratio: Annotated[float, Range(0, open_low=True), "rows of each table, in units of the vocabulary"] = 5.0,
    ) -> None:
        super().__init__()
        count = k * (n - 1)
        self.lengths = [2 + i // k for i in range(count)]
        width, self.base = max(1, d_model // count), vocab_size
        # Odd and different numbers of rows: n-grams that collide in one table seldom do in another.
        self.tables = nn.ModuleList(nn.Embedding(round(ratio * vocab_size) + 2 * i + 1, width) for i in range(count))
        self.projections = nn.ModuleList(nn.Linear(width, d_model, bias=False) for _ in range(count))

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        earlier = [ids.clamp(min=0) for ids in earlier_ids(tokens, max(self.lengths) - 1, ctx)]
        for length, table, project in zip(self.lengths, self.tables, self.projections, strict=True):
            rows: int = table.num_embeddings  # type: ignore[assignment]
            found = tokens
            for i, ids in enumerate(earlier[: length - 1], start=1):
                # V^i modulo the rows first: the power overflows 64 bits for long n-grams, and the remainder is the
                # same.
                found = found + ids * (self.base**i % rows)
            x = x + project(table(found % rows))
        return x / (1 + len(self.tables))
