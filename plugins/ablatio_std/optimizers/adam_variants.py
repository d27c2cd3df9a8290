"""Adam with modified moments or updates: ademamix, mars, cautious_adamw, adam_mini, lamb."""

import math
from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import (
    Below1,
    Betas,
    Decay,
    Eps,
    Foreach,
    Group,
    Rate,
    Tensors,
    adam_direction,
    adam_moments,
    denominator,
    shrink,
)  # fmt: skip


@optimizers.register("ademamix", paper="arXiv:2409.03137")
class AdEMAMix(Foreach):
    """w <- w - lr ((m1^ + alpha m2) / (sqrt(v^) + eps) + weight_decay w): a fast and a slow moving average of g.

    m1^ and v^ are Adam's, with betas[0] and betas[1]; m2 has the decay betas[2].  Over the first `ramp` steps alpha
    rises linearly from 0, and m2's decay from betas[0], so that its half-life rises linearly.
    """

    updates = "entry"
    buffers = ("m", "v", "slow")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Annotated[tuple[float, float, float], Below1] = (0.9, 0.999, 0.9999),
        alpha: Annotated[float, NonNegative] = 5.0,
        ramp: Annotated[int, NonNegative, "steps; in the paper all steps of the run"] = 2400,
        eps: Eps = 1e-8,
        weight_decay: Decay = 0.1,
    ) -> None:
        super().__init__(groups, weight_decay=weight_decay, lr=lr, betas=betas, alpha=alpha, ramp=ramp, eps=eps)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (m, v, slow), (b1, b2, b3) = buffers, group["betas"]
        share = min(1.0, t / group["ramp"]) if group["ramp"] else 1.0
        # Not corrected for its initial 0, as in the paper: alpha starts at 0 too.
        torch._foreach_lerp_(slow, g, 1 - _ramped_beta(b1, b3, share))
        adam_moments(g, m, v, b1, b2)
        u = torch._foreach_div(m, 1 - b1**t)
        torch._foreach_add_(u, slow, alpha=share * group["alpha"])
        shrink(group, w)
        torch._foreach_addcdiv_(w, u, denominator(v, t, b2, group["eps"]), value=-group["lr"])


def _ramped_beta(b1: float, b3: float, share: float) -> float:
    """Return the decay whose half-life, minus one step, is at `share` (0 to 1) between those of b1 and b3."""
    # A decay of 0 has no half-life to interpolate.
    if share == 1 or min(b1, b3) == 0:
        return b3
    # A half-life is log(1/2) / log(beta), so the reciprocals of the logarithms are interpolated.
    first, last = math.log(b1), math.log(b3)
    return math.exp(first * last / ((1 - share) * last + share * first))


@optimizers.register("mars", paper="arXiv:2411.10438")
class MARS(Foreach):
    """AdamW on c = g + gamma b1 / (1 - b1) (g - g'), clipped to norm 1 in each tensor; g' is the last gradient.

    g' is the gradient of the last batch at the last weights.  (Recomputing it on the present batch would double the
    cost; this is the paper's approximation.)
    """

    buffers = ("m", "v", "last")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Betas = (0.95, 0.99),
        gamma: Annotated[float, NonNegative] = 0.025,
        eps: Eps = 1e-8,
        weight_decay: Decay = 0.1,
    ) -> None:
        super().__init__(groups, weight_decay=weight_decay, lr=lr, betas=betas, gamma=gamma, eps=eps)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        assert p.grad is not None
        # The first gradient stands for the one before it, so the first correction is 0.
        return super().start(group, p) | {"last": p.grad.clone()}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (m, v, last), b1 = buffers, group["betas"][0]
        c = torch._foreach_sub(g, last)
        torch._foreach_mul_(c, group["gamma"] * b1 / (1 - b1))
        torch._foreach_add_(c, g)
        # Each tensor by itself, as in the authors' code: the correction is large where two batches disagree.
        torch._foreach_div_(c, [norm.clamp(min=1) for norm in torch._foreach_norm(c)])
        # After the correction: `last` is the raw gradient, not the corrected one.
        torch._foreach_copy_(last, g)
        u = adam_direction(group, t, list(c), m, v)
        shrink(group, w)
        torch._foreach_add_(w, u, alpha=-group["lr"])


class _AdamWBase(Foreach):
    """Base of variants with AdamW's two moments and its knobs."""

    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Betas = (0.9, 0.95),
        eps: Eps = 1e-8,
        weight_decay: Decay = 0.1,
    ) -> None:
        super().__init__(groups, weight_decay=weight_decay, lr=lr, betas=betas, eps=eps)


@optimizers.register("cautious_adamw", paper="arXiv:2411.16085")
class CautiousAdamW(_AdamWBase):
    """AdamW with the direction u masked to the k entries with u g > 0, and multiplied by n / (k + 1)."""

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        u = adam_direction(group, t, g, *buffers)
        masks = [(a * b > 0).to(a.dtype) for a, b in zip(u, g, strict=True)]
        torch._foreach_mul_(u, masks)
        # k + 1 keeps the factor finite where no sign agrees; the mean step size stays that of AdamW.
        torch._foreach_mul_(u, [mask.numel() / (mask.sum() + 1) for mask in masks])
        shrink(group, w)
        torch._foreach_add_(w, u, alpha=-group["lr"])


@optimizers.register("adam_mini", paper="arXiv:2406.16793")
class AdamMini(_AdamWBase):
    """AdamW with one v for each row of a matrix (output neuron, token) and one for each vector: half of Adam's memory.

    v is the moving average of the mean of g^2 over the row.  (In the paper the rows of a query or key head share a v.)
    """

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(p), "v": torch.zeros_like(p[..., :1])}  # v: (..., rows, 1), or (1,) of a vector

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (m, v), (b1, b2) = buffers, group["betas"]
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_lerp_(v, [x.square().mean(-1, keepdim=True) for x in g], 1 - b2)
        u = torch._foreach_div(m, denominator(v, t, b2, group["eps"]))  # v is broadcast along the row
        shrink(group, w)
        # Adam's correction of m, folded into the step.
        torch._foreach_add_(w, u, alpha=-group["lr"] / (1 - b1**t))


@optimizers.register("lamb", paper="arXiv:1904.00962", entrywise=False)
class LAMB(Foreach):
    """w <- w - lr |w| / |u| u, u = m^ / (sqrt(v^) + eps) + weight_decay w, with norms over the whole tensor.

    The factor |w| / |u| is 1 if one of the norms is 0.
    """

    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 4e-2,
        betas: Betas = (0.9, 0.999),
        eps: Annotated[float, Positive] = 1e-6,
        weight_decay: Decay = 0.01,
    ) -> None:
        super().__init__(groups, weight_decay=weight_decay, lr=lr, betas=betas, eps=eps)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        u = adam_direction(group, t, g, *buffers)
        # Before the norms are taken, as in the paper: the decay is a part of the direction that is rescaled.
        torch._foreach_add_(u, w, alpha=group["weight_decay"])
        norms = zip(torch._foreach_norm(w), torch._foreach_norm(u), strict=True)
        # w = 0 would never move, and u = 0 has no direction: both take the plain step.
        torch._foreach_mul_(u, [torch.where((a > 0) & (b > 0), a / b, 1.0) for a, b in norms])
        torch._foreach_add_(w, u, alpha=-group["lr"])
