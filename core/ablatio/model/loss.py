"""Output head and cross-entropy in one, a block of rows at a time: the full logits never exist.

A step at vocabulary 50304 and 1024 tokens would hold 206 MB of logits and as much again of their gradient.  Here the
gradient of a block is made while its logits are still in the processor's cache, so the backward pass only scales what
is there: three matrix products, as in the plain form, but none of its traffic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_LOGITS = 2**23  # 34 MB in float32; with 128 rows matrix products still run at full speed, with 64 no more


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor | None, chunk: int
    ) -> Tensor:
        precise, matrix = _precise(hidden.dtype), weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=precise)
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        d_weight = torch.zeros_like(weight) if weight.requires_grad else None
        # One buffer for all blocks: allocating it anew costs more (page faults) than the softmax that fills it.
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        for start in range(0, len(hidden), chunk):
            block, target = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = torch.mm(block, matrix.T, out=buffer[: len(block)]).to(precise)
            margin = logits.amax(-1) - logits.gather(-1, target)[:, 0]
            probs = torch.softmax(logits, -1, out=logits) if logits.is_cpu else torch.softmax(logits, -1)
            # The largest probability is exp(0) / sum, so its logarithm gives logsumexp without another pass of exp.
            losses = margin - probs.amax(-1).log()
            scale = None if row_weights is None else row_weights[start : start + chunk].to(precise)
            total += losses.sum() if scale is None else (losses * scale).sum()
            if d_hidden is None and d_weight is None:
                continue
            d_logits = probs.scatter_add_(-1, target, probs.new_full((), -1.0).expand(len(block), 1))
            d_logits = (d_logits if scale is None else d_logits.mul_(scale[:, None])).to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, matrix, out=d_hidden[start : start + chunk])
            if d_weight is not None:
                d_weight.addmm_(d_logits.T.to(weight.dtype), block.to(weight.dtype))
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable  # the gradients saved here know nothing of second derivatives
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # In place saves a copy of the head's gradient, unless the graph is kept for a second backward pass.
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        multiply = torch.mul if kept else Tensor.mul_
        scaled = [d if d is None else multiply(d, grad.to(d.dtype)) for d in ctx.saved_tensors]
        return scaled[0], scaled[1], None, None, None


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type that matrix products take: autocast's where it is on, else `dtype`."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)


def block_rows(vocab: int) -> int:
    """Rows whose logits are made at once: 128 at a vocabulary of 50304, 512 below 16384."""
    return max(128, min(512, BLOCK_LOGITS // vocab // 64 * 64))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.to(hidden.dtype).T).to(_precise(hidden.dtype))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor | None = None, *, chunk: int | None = None
) -> Tensor:
    """sum_i w_i * -log softmax(hidden_i weight^T)[target_i], in nats.

    hidden (N, D); weight (V, D); targets (N,); row_weights (N,) or None -> scalar, float32 or wider.
    """
    if not torch.is_grad_enabled():  # `requires_grad` does not tell, and gradients are two thirds of the work
        hidden, weight = hidden.detach(), weight.detach()
    hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, row_weights, chunk or block_rows(len(weight)))  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int | None = None) -> Tensor:
    """-log softmax(hidden_i weight^T)[target_i] for each row, in nats: (N,)."""
    chunk = chunk or block_rows(len(weight))
    blocks = [
        F.cross_entropy(_logits(hidden[i : i + chunk], weight), targets[i : i + chunk], reduction="none")
        for i in range(0, len(hidden), chunk)
    ]
    return torch.cat(blocks)
