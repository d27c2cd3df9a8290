"""Linear recurrences over the tokens of a document, in chunks: exact, and equal to a loop over the tokens.

S_t = a_t S_{t-1} + ... with a decay a_t for each head (HeadDecay) or for each channel of the keys (ChannelDecay).
Within a chunk all pairs of tokens are computed at once; across chunks the state is carried.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.local_mixing import Rows

CHUNK = 64  # tokens
# (n, q, k, rate) -> rate_t * (the sum for t and s <= t), 0 for s > t, in chunk n: q, k (B, H, C, F), rate (B, H, C, 1)
# -> (B, H, C, C)
Pairs = Callable[..., Tensor]


class Chunk(NamedTuple):
    """Decay factors of C consecutive tokens, reset between documents; f is 1 (HeadDecay) or F (ChannelDecay).

    part                 slice of the chunk in the row
    start  (B, H, C, f)  decay from the state before the chunk to t
    end    (B, H, C, f)  decay from t to the end of the chunk
    whole  (B, H, f, 1)  decay from the state before the chunk to its end
    """

    part: slice
    start: Tensor
    end: Tensor
    whole: Tensor


class HeadDecay:
    """Decay factors of S_t = a_t S_{t-1} + ... for one a_t in each head: log_decay (B or 1, H, T), log a_t.

    The logs are summed for each pair of tokens separately: a difference of cumulative sums over the row would carry
    rounding errors from one document into the next.
    """

    def __init__(self, length: int, log_decay: Tensor, rows: Rows) -> None:
        self.within, self.chunks = [], []
        log_decay, carried = log_decay.expand(*log_decay.shape[:2], length), rows.before(1)
        for begin in range(0, length, CHUNK):
            part = slice(begin, min(begin + CHUNK, length))
            width = part.stop - begin
            pairs = torch.ones(width, width, dtype=torch.bool, device=log_decay.device).tril()
            documents = None if rows.documents is None else rows.documents[:, part]  # (B, C)
            if documents is not None:
                pairs = (pairs & (documents[:, :, None] == documents[:, None, :]))[:, None]  # (B, 1, C, C)
            # (B, H, C, C): the sum of log a_l over l = s ... t; shifted by one below, as a_s acts before s is added
            sums = (log_decay[..., None, part] * pairs).flip(-1).cumsum(-1).flip(-1)
            # The sum from the chunk's first token on includes its decay, which acts on the carried state.
            start = sums[..., :1].exp()
            within = F.pad(sums[..., 1:], (0, 1)).exp() * pairs
            if documents is not None and carried is not None:  # the carried state counts for its own document only
                start = start * (documents == carried)[:, None, :, None]
            if documents is not None:
                carried = documents[:, -1:]
            self.within.append(within)
            # end is the last row of `within`, whole the last entry of start.
            self.chunks.append(Chunk(part, start, within[..., -1:, :].mT, start[..., -1:, :]))

    def pairs(self, q: Tensor, k: Tensor) -> Pairs:
        """Return a function that computes sum_f q_tf k_sf a_{s+1} ... a_t for one chunk, from that chunk's q and k."""
        return self._pairs

    def _pairs(self, n: int, q: Tensor, k: Tensor, rate: Tensor | None = None) -> Tensor:
        products = q @ k.mT
        return (products if rate is None else rate * products) * self.within[n]


class ChannelDecay:
    """Decay factors of S_t = Diag(a_t) S_{t-1} + ...: log_decay (B, H, T, F), log a_t for each channel of the keys.

    The decay from s to t is the product of that from s to a border between them and that from the border to t, so
    that sum_f q_tf k_sf decay_f is a product of matrices.  No factor exceeds 1: nothing overflows, and no sum is a
    difference of larger ones.  Borders at all multiples of 1, 2, 4 ... tokens serve all pairs (log2 C products, C the
    chunk), each by the coarsest border between its tokens.
    """

    def __init__(self, length: int, log_decay: Tensor, rows: Rows) -> None:
        # Halves need a power of 2; a short row (one decoded token) needs no full chunk.
        size = min(CHUNK, 1 << (length - 1).bit_length())  # a power of 2
        self.length, self.size, self.missing = length, size, -length % size
        logs = self._cut(log_decay)  # (B, H, N, C, F)
        self.borders = []
        half = 1
        while half < size:
            left, right = logs.unflatten(-2, (-1, 2, half)).unbind(-3)  # (B, H, N, C / 2 half, half, F)
            self.borders.append((right.cumsum(-2).exp(), _after(left).exp()))
            half *= 2
        start, end, self.same = logs.cumsum(-2).exp(), _after(logs).exp(), None
        if rows.documents is not None:
            documents = F.pad(rows.documents, (0, self.missing))
            # Padding belongs to the last document: its decay is 1 (log 0), so the end of the row is the end of the
            # chunk.
            documents[:, length:] = rows.documents[:, -1:]
            documents = documents.unflatten(1, (-1, size))  # (B, N, C)
            self.same = (documents[..., :, None] == documents[..., None, :])[:, None]  # (B, 1, N, C, C)
            first = rows.before(1)
            carried = torch.cat([documents[:, 0, :1] if first is None else first, documents[:, :-1, -1]], dim=1)
            start = start * (documents == carried[..., None])[:, None, ..., None]
            end = end * self.same[..., -1, :, None]
        whole = start[..., -1, :, None]  # (B, H, N, F, 1)
        self.chunks = [
            Chunk(
                slice(n * size, min((n + 1) * size, length)), *(self._real(t, n) for t in (start, end)), whole[:, :, n]
            )
            for n in range(logs.shape[2])
        ]

    def _cut(self, x: Tensor) -> Tensor:
        """Pad x (..., T, F) with zeros and cut it into chunks: (..., N, C, F)."""
        return F.pad(x, (0, 0, 0, self.missing)).unflatten(-2, (-1, self.size))

    def _real(self, x: Tensor, n: int) -> Tensor:
        """Chunk n of x (..., N, C, F) without its padding."""
        return x[..., n, : min(self.size, self.length - n * self.size), :]

    def pairs(self, q: Tensor, k: Tensor) -> Pairs:
        """Compute sum_f q_tf k_sf a_{s+1,f} ... a_{t,f} for all chunks, and return a function that gives one chunk's.

        q, k (..., B, H, T, F): any axes before the batch.
        """
        q, k = self._cut(q), self._cut(k)
        found = (q * k).sum(-1)[..., None, None]  # (..., B, H, N, C, 1, 1): the pairs (t, t)
        for right, left in self.borders:
            half = right.shape[-2]
            later = q.unflatten(-2, (-1, 2, half))[..., 1, :, :] * right
            earlier = k.unflatten(-2, (-1, 2, half))[..., 0, :, :] * left
            first, second = found.unflatten(-3, (-1, 2)).unbind(-3)  # the pairs within each half
            # Blocks [[first, 0], [products across the border, second]]: each level doubles the size.
            found = torch.cat([F.pad(first, (0, half)), torch.cat([later @ earlier.mT, second], dim=-1)], dim=-2)
        found = found[..., 0, :, :] if self.same is None else found[..., 0, :, :] * self.same

        def chunk(n: int, q: Tensor, k: Tensor, rate: Tensor | None = None) -> Tensor:
            products = self._real(found, n)[..., : q.shape[-2]]
            return products if rate is None else rate * products

        return chunk


def _after(logs: Tensor) -> Tensor:
    """Sum of logs (..., C, F) over the tokens after t."""
    return F.pad(logs[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def decays(length: int, log_decay: Tensor, rows: Rows) -> Any:
    """Return the decay factors of a row of `length` tokens for log a_t, (B, H, T) or (B, H, T, F), in rows' order."""
    return (HeadDecay if log_decay.dim() == 3 else ChannelDecay)(length, log_decay, rows)


def _shapes_only(q: Tensor, rows: Rows, state: Tensor | None) -> bool:
    """True for one long row without values, whose FLOPs are counted: its chunks need not wait for one another."""
    length = q.shape[2]
    plain = len(q) == 1 and state is None and rows.documents is None
    # Counting operators of a loop over thousands of chunks takes minutes; as a batch it is one call with the same
    # FLOPs.
    return plain and length > CHUNK and length % CHUNK == 0 and is_meta_tensor(q)


def _chunks_as_batch(x: Tensor) -> Tensor:
    """(1, H, T, ...) -> (chunks, H, CHUNK, ...); what is the same for all tokens, (1, H, 1, ...), stays."""
    return x if x.shape[2] == 1 else x.unflatten(2, (-1, CHUNK)).movedim(2, 1).flatten(0, 1)


def _joined(x: Tensor) -> Tensor:
    """(chunks, H, CHUNK, V) -> (1, H, T, V)."""
    return x.movedim(0, 1).flatten(1, 2)[None]


def accumulate(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o_t = q_t S_t with S_t = Diag(a_t) S_{t-1} + k_t^T v_t, computed chunk by chunk.

    q, k (B, H or 1, T, F), v (B, H, T, V), log_decay = log a (B, H, T) or (B, H, T, F), all in the order of `rows`;
    `state` (B, H, F, V) precedes the first token, None for zero.  Returns o, (B, H, T, V), and the last state,
    (B, H, F, V).
    """
    if _shapes_only(q, rows, state):
        found, last = accumulate(*map(_chunks_as_batch, (q, k, v, log_decay)), rows, None)
        return _joined(found), last[:1]
    last = q.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs, decay = [], decays(q.shape[2], log_decay, rows)
    pairs = decay.pairs(q, k)
    for n, (part, start, end, whole) in enumerate(decay.chunks):
        q_, k_, v_ = q[:, :, part], k[:, :, part], v[:, :, part]
        # The earlier tokens of the chunk, and what the state holds of all before it.
        outputs.append(pairs(n, q_, k_) @ v_ + (q_ * start) @ last)
        last = last * whole + (k_ * end).mT @ v_
    return torch.cat(outputs, dim=2), last


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rate: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o_t = q_t S_t with S_t = (I - b_t k_t^T k_t) Diag(a_t) S_{t-1} + b_t k_t^T v_t.

    q, k (B, H, T, F), v (B, H, T, V), log_decay = log a (B, H, T) or (B, H, T, F), rate = b (B, H, T), all in the order
    of `rows`; `state` (B, H, F, V) precedes the first token, None for zero.  Returns o, (B, H, T, V), and the last
    state, (B, H, F, V).

    Each token writes u_t = b_t (v_t - k_t Diag(a_t) S_{t-1}).  Within a chunk u_t depends on the earlier writes, so
    that the u of a chunk solve one triangular system.
    """
    if _shapes_only(q, rows, state):
        found, last = delta_rule(*map(_chunks_as_batch, (q, k, v, log_decay, rate)), rows, None)
        return _joined(found), last[:1]
    last = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs, decay = [], decays(q.shape[2], log_decay, rows)
    scores, systems = decay.pairs(q, k), decay.pairs(k, k)
    for n, (part, start, end, whole) in enumerate(decay.chunks):
        q_, k_, b = q[:, :, part], k[:, :, part], rate[:, :, part, None]
        system = unit_lower(systems(n, k_, k_, b))
        # The right side has what is known before the chunk; the system, what the chunk's own earlier writes change.
        target = b * (v[:, :, part] - (k_ * start) @ last)  # (B, H, C, V)
        # Forward substitution is the loop over tokens, exactly: the inverse of (I + L) is not formed.
        u = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
        outputs.append(scores(n, q_, k_) @ u + (q_ * start) @ last)
        last = last * whole + (k_ * end).mT @ u
    return torch.cat(outputs, dim=2), last


def unit_lower(x: Tensor) -> Tensor:
    """I plus the part of x (..., C, C) below the diagonal."""
    return x.tril(-1) + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def generalized_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, write: Tensor, log_decay: Tensor, rows: Rows, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o_t = q_t S_t with S_t = (I + w_t^T r_t) Diag(a_t) S_{t-1} + k_t^T v_t.

    q, k, read = r, write = w, log_decay = log a (B, H, T, F), v (B, H, T, V), all in the order of `rows`; state and
    results as in `delta_rule`.  The u_t = r_t Diag(a_t) S_{t-1} of a chunk solve one triangular system.
    """
    last = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs, decay = [], decays(q.shape[2], log_decay, rows)
    products = decay.pairs(torch.stack([q, q, read, read]), torch.stack([k, write, k, write]))
    for n, (part, start, end, whole) in enumerate(decay.chunks):
        q_, k_, v_, read_, write_ = (t[:, :, part] for t in (q, k, v, read, write))
        on_values, on_writes, values, system = products(n, q_, k_)
        target = values.tril(-1) @ v_ + (read_ * start) @ last
        # A minus, as u adds to the state where the delta rule subtracts.
        u = torch.linalg.solve_triangular(unit_lower(-system), target, upper=False, unitriangular=True)
        outputs.append(on_values @ v_ + on_writes @ u + (q_ * start) @ last)
        last = last * whole + (k_ * end).mT @ v_ + (write_ * end).mT @ u
    return torch.cat(outputs, dim=2), last
