"""Output head and cross-entropy in one, a block of rows at a time: the full logits never exist.

A step at vocabulary 50304 and 1024 tokens would hold 206 MB of logits and as much again of their gradient.  Here the
gradient of a block is made while its logits are still in the processor's cache, so the backward pass only scales what
is there: three matrix products, as in the plain form, but none of its traffic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

MOST_SCORED = 0.9  # of the rows: with more of them, picking them out is not worth it
BLOCK_LOGITS = 2**23  # 34 MB in float32; with 128 rows matrix products still run at full speed, with 64 no more


class _LinearCrossEntropy(torch.autograd.Function):
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
        tie: "Tie | None",
        rows: Tensor | None,
    ) -> Tensor:
        precise, matrix = _precise(hidden.dtype), weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=precise)
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        d_weight = torch.empty_like(weight) if weight.requires_grad else None
        # One buffer for all blocks: allocating it anew costs more (page faults) than the softmax that fills it.
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        for start in range(0, len(hidden), chunk):
            block, target = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = torch.mm(block, matrix.T, out=buffer[: len(block)]).to(precise)
            largest = logits.amax(-1)
            said = logits.gather(-1, target)[:, 0]
            if smoothing:
                said = (1 - smoothing) * said + smoothing * logits.mean(-1)
            probs = torch.softmax(logits, -1, out=logits) if logits.is_cpu else torch.softmax(logits, -1)
            # The largest probability is exp(0) / sum, so its logarithm gives logsumexp without another pass of exp.
            log_z = largest - probs.amax(-1).log()
            losses = log_z - said + z_loss * log_z.square() if z_loss else log_z - said
            scale = None if row_weights is None else row_weights[start : start + chunk].to(precise)
            total += losses.sum() if scale is None else (losses * scale).sum()
            if d_hidden is None and d_weight is None:
                continue
            if z_loss:
                probs.mul_(1 + 2 * z_loss * log_z[:, None])
            if smoothing:
                probs.sub_(smoothing / len(weight))
            d_logits = probs.scatter_add_(-1, target, probs.new_full((), smoothing - 1.0).expand(len(block), 1))
            d_logits = (d_logits if scale is None else d_logits.mul_(scale[:, None])).to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, matrix, out=d_hidden[start : start + chunk])
            if d_weight is not None:
                d_weight.addmm_(d_logits.T.to(weight.dtype), block.to(weight.dtype), beta=min(start, 1))
        if d_weight is not None and not len(hidden):
            d_weight.zero_()
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.tie = tie
        return total

    @staticmethod
    @once_differentiable  # the gradients saved here know nothing of second derivatives
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In place saves a copy of the head's gradient, unless the graph is kept for a second backward pass.
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        multiply = torch.mul if kept else Tensor.mul_
        d_hidden, d_weight = (d if d is None else multiply(d, grad.to(d.dtype)) for d in ctx.saved_tensors)
        if ctx.tie is not None:
            ctx.tie.gradient, d_weight = (torch._C._current_graph_task_id(), d_weight), None
        return d_hidden, d_weight, None, None, None, None, None, None, None


class Tie:
    """Hands the gradient of a tied matrix from the head to the embedding, which adds its rows and gives both as one.

    Else the embedding makes a second V x D gradient: at vocabulary 50304 an eighth of a step's memory, 3 % of its time.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # the head takes these as an input, so that the embedding comes after it
        self.gradient: tuple[int, Tensor | None] | None = None  # and the number of the backward pass that it is of

    @classmethod
    def of(cls, embedding: nn.Module, head: Tensor) -> "Tie | None":
        """None where the two are not tied, or where somebody wrapped, hooked or sharded the embedding."""
        if type(embedding) is not nn.Embedding or embedding.weight is not head or not head.requires_grad:
            return None
        if embedding._forward_hooks or embedding._forward_pre_hooks or type(head.data) is not Tensor:
            return None
        return cls() if torch.is_grad_enabled() and not torch.compiler.is_compiling() else None

    def embed(self, weight: Tensor, tokens: Tensor) -> Tensor:
        rows: Tensor = _TiedEmbedding.apply(weight, tokens, self)  # type: ignore[no-untyped-call]
        self.rows = rows
        return rows

    def take(self, weight: Tensor) -> Tensor:
        """The head's gradient of this very backward pass; zeros if the head has no part in it."""
        (task, gradient), self.gradient = self.gradient or (-1, None), None
        return (
            gradient if gradient is not None and task == torch._C._current_graph_task_id() else torch.zeros_like(weight)
        )


class _TiedEmbedding(torch.autograd.Function):
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
            d_weight.index_add_(0, tokens.flatten(), grad.flatten(0, -2).to(d_weight.dtype))
        return d_weight, None, None


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type that matrix products take: autocast's where it is on, else `dtype`."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)


def block_rows(vocab: int) -> int:
    """Rows whose logits are made at once: 128 at a vocabulary of 50304, 512 below 16384."""
    return max(128, min(512, BLOCK_LOGITS // vocab // 64 * 64))


def scored_rows(weights: Tensor) -> Tensor | None:
    """The rows (N,) that weigh something, where the others are worth leaving out; None: all.

    Of a conversation half is not scored, and the head's products are a fifth of a small model's work.  A GPU would have
    to be waited for.
    """
    if not weights.is_cpu or torch.compiler.is_compiling():
        return None
    rows = weights.nonzero()[:, 0]
    return rows if len(rows) < MOST_SCORED * len(weights) else None


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.to(hidden.dtype).T).to(_precise(hidden.dtype))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weights: Tensor | None = None,
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    tie: Tie | None = None,
) -> Tensor:
    """sum_i w_i * (-log softmax(hidden_i weight^T)[target_i] + z_loss * log^2 Z_i), in nats; Z_i = sum exp(logits_i).

    hidden (N, D); weight (V, D); targets (N,); row_weights (N,) or None -> scalar, float32 or wider.
    smoothing: the target distribution is (1 - smoothing) * one-hot + smoothing / V.
    tie: of the embedding that shares the weight.
    """
    if not torch.is_grad_enabled():  # `requires_grad` does not tell, and gradients are two thirds of the work
        hidden, weight = hidden.detach(), weight.detach()
    hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
    rows = None
    if tie is not None:
        rows, tie.rows = tie.rows, None  # or the graph would hold itself alive: rows -> its node -> tie -> rows
    chunk = chunk or block_rows(len(weight))
    result: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, row_weights, chunk, z_loss, smoothing, tie, rows
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
) -> Tensor:
    """sum_i w_i KL(q_i || p_i), p_i = softmax(hidden_i weight^T / t), q_i = softmax(other_i other_weight^T / t).

    hidden (N, D), weight (V, D); other (N, D'), other_weight (V, D'), which get no gradient -> scalar in nats.  Logits
    are made a block of rows at a time, and once more for the gradient.
    """
    chunk, total = chunk or block_rows(len(weight)), hidden.new_zeros((), dtype=_precise(hidden.dtype))

    def block(mine: Tensor, matrix: Tensor, theirs: Tensor, scale: Tensor | None) -> Tensor:
        p = torch.log_softmax(_logits(mine, matrix) / temperature, -1)
        q = torch.log_softmax(_logits(theirs, other_weight) / temperature, -1)
        rows = (q.exp() * (q - p)).sum(-1)
        return rows.sum() if scale is None else (rows * scale.to(rows.dtype)).sum()

    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        scale = None if row_weights is None else row_weights[rows]
        total = total + checkpoint(block, hidden[rows], weight, other[rows].detach(), scale, use_reentrant=False)
    return total


@torch.no_grad()
def token_scores(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Of each row -log softmax(hidden_i weight^T)[target_i], in nats, and whether its target is the likeliest: (N,)."""
    # Nothing is summed over a block, so small blocks stay in the cache: a quarter less time than blocks of 512 at a
    # vocabulary of 2048, none from 8192 on.
    chunk = chunk or (128 if hidden.is_cpu else block_rows(len(weight)))
    hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
    precise, matrix = _precise(hidden.dtype), weight.to(hidden.dtype)
    losses = hidden.new_empty(len(hidden), dtype=precise)
    hits = torch.empty_like(targets, dtype=torch.bool)
    buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        block, target = hidden[rows], targets[rows]
        logits = torch.mm(block, matrix.T, out=buffer[: len(block)]).to(precise)
        hits[rows] = logits.argmax(-1) == target
        said = torch.log_softmax(logits, -1, out=logits) if logits.is_cpu else torch.log_softmax(logits, -1)
        losses[rows] = -said.gather(-1, target[:, None])[:, 0]
    return losses, hits
