"""Output head fused with the cross-entropy, computed by blocks of rows, so that the full logits are never stored.

At vocabulary 50304 and 1024 tokens, a step would hold 206 MB of logits and as much again for their gradient. Here the
forward pass computes the gradient of each block while its logits are in the processor's cache, and the backward pass
only scales it: the same three matrix products, without the memory traffic.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ablatio.model.kept_copies import in_dtype
from ablatio.model.number_format import compute_dtype, precise

LogitMap = Callable[[Tensor], Tensor]  # (rows, V) -> (rows, V), each row by itself, without trained weights
MAX_SCORED_FRACTION = 0.9  # of the rows: above it, selecting the scored rows costs more than it saves
GPU_BLOCK_LOGITS = 2**27  # 0.5 GB in float32
BLOCK_LOGITS = 2**23  # 34 MB in float32; 128 rows are enough for full-speed matrix products, 64 are not


class _LinearCrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies of hidden (N, D) weight^T (D, V); saves gradients, not logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None,
        chunk: int,
        z_loss: float,
        smoothing: float,
        logit_map: LogitMap | None,
        tie: "Tie | None",
        rows: Tensor | None,
    ) -> Tensor:
        wide, matrix = precise(hidden.dtype), in_dtype(weight, hidden.dtype)
        total = hidden.new_zeros((), dtype=wide)
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        # A sum over all rows, which 16 bits would round in each block.
        d_weight = torch.empty_like(weight, dtype=precise(weight.dtype)) if weight.requires_grad else None
        # One buffer for all blocks: allocating it anew costs more (page faults) than the softmax that fills it.
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        for start in range(0, len(hidden), chunk):
            block, target = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = torch.mm(block, matrix.T, out=buffer[: len(block)]).to(wide)
            if logit_map is not None:
                products, mapped, logits = mapped_logits(logits, logit_map)
            largest = logits.amax(-1)
            target_logits = logits.gather(-1, target)[:, 0]  # (rows,)
            if smoothing:
                target_logits = (1 - smoothing) * target_logits + smoothing * logits.mean(-1)
            probs = torch.softmax(logits, -1, out=logits) if logits.is_cpu else torch.softmax(logits, -1)
            # The largest probability is exp(0) / sum, so its logarithm gives logsumexp without another pass of exp.
            log_z = largest - probs.amax(-1).log()
            losses = log_z - target_logits + z_loss * log_z.square() if z_loss else log_z - target_logits
            scale = None if row_weights is None else row_weights[start : start + chunk].to(wide)
            total += losses.sum() if scale is None else (losses * scale).sum()
            if d_hidden is None and d_weight is None:
                continue
            if z_loss:
                probs.mul_(1 + 2 * z_loss * log_z[:, None])
            if smoothing:
                probs.sub_(smoothing / len(weight))
            d_logits = probs.scatter_add_(-1, target, probs.new_full((), smoothing - 1.0).expand(len(block), 1))
            d_logits = d_logits if scale is None else d_logits.mul_(scale[:, None])
            if logit_map is not None:
                (d_logits,) = torch.autograd.grad(mapped, products, d_logits)
            d_logits = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, matrix, out=d_hidden[start : start + chunk])
            if d_weight is not None:
                add_product(d_weight, d_logits, block, first=start == 0)
        if d_weight is not None and not len(hidden):
            d_weight.zero_()
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.tie = tie
        return total

    @staticmethod
    @once_differentiable  # second derivatives are not available: the saved gradients are constants
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In place saves a copy of the head's gradient, unless the graph is kept for a second backward pass.
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        multiply = torch.mul if kept else Tensor.mul_
        d_hidden, d_weight = (d if d is None else multiply(d, grad.to(d.dtype)) for d in ctx.saved_tensors)
        if ctx.tie is not None:
            ctx.tie.gradient, d_weight = (torch._C._current_graph_task_id(), d_weight), None
        return d_hidden, d_weight, None, None, None, None, None, None, None, None


def mapped_logits(logits: Tensor, logit_map: LogitMap) -> tuple[Tensor, Tensor, Tensor]:
    """Return the products, the mapped logits with a graph from them, and a copy of these that may be overwritten."""
    with torch.enable_grad():
        products = logits.detach().requires_grad_()
        mapped = logit_map(products)
    return products, mapped, mapped.detach().clone()


class Tie:
    """Passes the gradient of a tied matrix from the head to the embedding, which adds its rows and returns the sum.

    Otherwise the embedding would allocate a second V x D gradient: at vocabulary 50304, an eighth of a step's memory
    and 3 % of its time.
    """

    def __init__(self) -> None:
        # An unused input of the head, so that autograd runs the embedding's backward after the head's.
        self.rows: Tensor | None = None
        self.gradient: tuple[int, Tensor | None] | None = None  # (id of the backward pass, the head's gradient)

    @classmethod
    def of(cls, embedding: nn.Module, head: Tensor) -> "Tie | None":
        """Return a Tie, or None if the two are not tied or the embedding was wrapped, hooked or sharded."""
        if type(embedding) is not nn.Embedding or embedding.weight is not head or not head.requires_grad:
            return None
        if embedding._forward_hooks or embedding._forward_pre_hooks or type(head.data) is not Tensor:
            return None
        return cls() if torch.is_grad_enabled() and not torch.compiler.is_compiling() else None

    def embed(self, weight: Tensor, tokens: Tensor) -> Tensor:
        """Look up the embeddings: (V, D), (B, T) -> (B, T, D)."""
        rows: Tensor = _TiedEmbedding.apply(weight, tokens, self)  # type: ignore[no-untyped-call]
        self.rows = rows
        return rows

    def take(self, weight: Tensor) -> Tensor:
        """Return the head's gradient (V, D) in the current backward pass; zeros if it contains no head."""
        (task, gradient), self.gradient = self.gradient or (-1, None), None
        return (
            gradient if gradient is not None and task == torch._C._current_graph_task_id() else torch.zeros_like(weight)
        )


class _TiedEmbedding(torch.autograd.Function):
    """Embedding lookup whose backward adds to the head's gradient instead of allocating its own."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, tie: Tie) -> Tensor:
        ctx.save_for_backward(weight, tokens)
        ctx.set_materialize_grads(False)
        ctx.tie = tie
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor, None, None]:
        weight, tokens = ctx.saved_tensors
        d_weight = ctx.tie.take(weight)
        if grad is not None:
            add_rows(d_weight, tokens, grad.to(d_weight.dtype))
        return d_weight, None, None


def add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> Tensor:
    """total <- left^T right (first), or total + left^T right, summed in total's dtype: (N, V), (N, D) -> (V, D).

    16-bit factors are multiplied as they are where the device returns sums of such products in float32 (CUDA).
    """
    if left.dtype == total.dtype or not _multiplies_16_bits_into_float32(left.device.type, left.dtype):
        return total.addmm_(left.T.to(total.dtype), right.to(total.dtype), beta=0 if first else 1)
    product = torch.mm(left.T, right, out_dtype=total.dtype)
    return total.copy_(product) if first else total.add_(product)


@functools.cache
def _multiplies_16_bits_into_float32(device: str, dtype: torch.dtype) -> bool:
    """True if torch.mm takes `out_dtype` on the device, and does not round to 16 bits on the way."""
    if device != "cuda":
        return False
    thirds = (torch.arange(1.0, 4097.0, device=device).view(64, 64) / 3).to(dtype)
    try:
        found = torch.mm(thirds, thirds.T, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    exact = thirds.double() @ thirds.double().T
    return bool((found.double() - exact).norm() <= 1e-5 * exact.norm())


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """total[index[i]] += rows[i] in place, deterministically: (V, D), (...), (..., D) -> total.

    On a GPU index_add_ adds atomically, in an order that changes from run to run, and rows of a frequent index wait for
    one another; the gradient of torch's embedding sorts the index instead.
    """
    if total.is_cpu:
        return total.index_add_(0, index.flatten(), rows.flatten(0, -2))
    return total.add_(torch.ops.aten.embedding_dense_backward(rows, index, len(total), -1, False))


def block_rows(vocab: int, device: torch.device) -> int:
    """Return the rows per block of logits: on the CPU 128 at a vocabulary of 50304 and 512 below 16384.

    A GPU needs large products and few kernels, and its cache holds no block anyway: 2624 rows at 50304, at most 8192.
    """
    if device.type == "cpu":
        return max(128, min(512, BLOCK_LOGITS // vocab // 64 * 64))
    return max(512, min(8192, GPU_BLOCK_LOGITS // vocab // 64 * 64))


def scored_rows(weights: Tensor) -> Tensor | None:
    """Return the indices (N,) of rows with nonzero weight if leaving out the others pays; None: use all rows.

    Half of a conversation is not scored, and the head's products are a fifth of a small model's work. On a GPU the
    number of rows would require a synchronization, so all rows are used there.
    """
    if not weights.is_cpu or torch.compiler.is_compiling():
        return None
    rows = weights.nonzero()[:, 0]
    return rows if len(rows) < MAX_SCORED_FRACTION * len(weights) else None


def _logits(hidden: Tensor, weight: Tensor, logit_map: LogitMap | None) -> Tensor:
    found = (hidden @ weight.to(hidden.dtype).T).to(precise(hidden.dtype))
    return found if logit_map is None else logit_map(found)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weights: Tensor | None = None,
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    logit_map: LogitMap | None = None,
    tie: Tie | None = None,
) -> Tensor:
    """Sum w_i * (-log softmax(hidden_i weight^T)[target_i] + z_loss * log^2 Z_i) in nats; Z_i = sum exp(logits_i).

    hidden (N, D); weight (V, D); targets (N,); row_weights (N,) or None -> scalar, float32 or wider.
    smoothing: the target distribution is (1 - smoothing) * one-hot + smoothing / V.
    logit_map: applied to the logits before the softmax.
    tie: connects the head to the embedding that shares `weight`.
    """
    # Under no_grad `requires_grad` of the inputs is still True; detaching skips the gradients, two thirds of the work.
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
    rows = None
    if tie is not None and tie.rows is None:
        tie = None  # the embedding is not in this pass, as on the last of several stages
    if tie is not None:
        rows, tie.rows = tie.rows, None  # breaks the reference cycle rows -> its graph node -> tie -> rows
    chunk = chunk or block_rows(len(weight), hidden.device)
    result: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, row_weights, chunk, z_loss, smoothing, logit_map, tie, rows
    )
    return result


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    other: Tensor,
    other_weight: Tensor,
    row_weights: Tensor | None = None,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    logit_map: LogitMap | None = None,
    other_map: LogitMap | None = None,
) -> Tensor:
    """Sum w_i KL(q_i || p_i), p_i = softmax(hidden_i weight^T / t), q_i = softmax(other_i other_weight^T / t).

    hidden (N, D), weight (V, D); other (N, D'), other_weight (V, D'), both without gradient -> scalar in nats.
    logit_map, other_map: applied to the logits of the one and of the other, before the temperature.
    Logits are computed by blocks of rows, and recomputed for the gradient.
    """
    chunk, total = chunk or block_rows(len(weight), hidden.device), hidden.new_zeros((), dtype=precise(hidden.dtype))

    def block(states: Tensor, matrix: Tensor, other_states: Tensor, scale: Tensor | None) -> Tensor:
        p = torch.log_softmax(_logits(states, matrix, logit_map) / temperature, -1)  # (rows, V)
        q = torch.log_softmax(_logits(other_states, other_weight, other_map) / temperature, -1)
        rows = (q.exp() * (q - p)).sum(-1)
        return rows.sum() if scale is None else (rows * scale.to(rows.dtype)).sum()

    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        scale = None if row_weights is None else row_weights[rows]
        total = total + checkpoint(block, hidden[rows], weight, other[rows].detach(), scale, use_reentrant=False)
    return total


@torch.no_grad()
def token_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk: int | None = None,
    logit_map: LogitMap | None = None,
) -> tuple[Tensor, Tensor]:
    """Return -log softmax(hidden_i weight^T)[target_i] in nats and whether the target has the top logit: (N,) each.

    logit_map: applied to the logits before the softmax.
    """
    # Without a gradient, small blocks that stay in the cache are faster: a quarter less time than blocks of 512 at a
    # vocabulary of 2048, no difference from 8192 on.
    chunk = chunk or (128 if hidden.is_cpu else block_rows(len(weight), hidden.device))
    hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
    wide, matrix = precise(hidden.dtype), in_dtype(weight, hidden.dtype)
    losses = hidden.new_empty(len(hidden), dtype=wide)
    hits = torch.empty_like(targets, dtype=torch.bool)
    buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        block, target = hidden[rows], targets[rows]
        logits = torch.mm(block, matrix.T, out=buffer[: len(block)]).to(wide)
        logits = logits if logit_map is None else logit_map(logits)
        hits[rows] = logits.argmax(-1) == target
        logps = torch.log_softmax(logits, -1, out=logits) if logits.is_cpu else torch.log_softmax(logits, -1)
        losses[rows] = -logps.gather(-1, target[:, None])[:, 0]
    return losses, hits


@torch.no_grad()
def mean_token_scores(
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    targets: Tensor,
    logit_maps: Sequence[LogitMap | None],
    chunk: int = 128,
) -> tuple[Tensor, Tensor]:
    """Return `token_scores` of the mean of the probabilities of M models: (N,) each.

    hidden      states of each model, (N, W) each; W may differ
    weights     output matrix of each model, (V, W)
    logit_maps  map on the logits of each model
    chunk       rows whose probabilities, M * V numbers each, are held at a time
    """
    losses, hits = list[Tensor](), list[Tensor]()
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        logits = (_logits(h[rows], w, m) for h, w, m in zip(hidden, weights, logit_maps, strict=True))
        each = torch.stack([torch.log_softmax(x, -1) for x in logits])  # (M, chunk, V)
        mean = each.logsumexp(0) - math.log(len(each))
        hits.append(mean.argmax(-1) == targets[rows])
        losses.append(-mean.gather(-1, targets[rows, None])[:, 0])
    return torch.cat(losses), torch.cat(hits)
