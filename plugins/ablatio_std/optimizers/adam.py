"""Adam and close variants: adam, adamw, nadam, radam."""

from typing import Annotated

import torch
from torch import Tensor
from torch.optim import Optimizer

from ablatio import NonNegative, Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import (
    Betas,
    CautiousDecay,
    Coupled,
    Decay,
    Eps,
    Foreach,
    Group,
    Hyperball,
    Tensors,
    adam_direction,
    adam_moments,
    decayed,
    denominator,
    descend,
    frobenius,
    shrink,
)  # fmt: skip

LearningRate = Annotated[
    float, Positive, "learning rate at the peak of the schedule; about 6e-3 at width 128, 6e-4 at 768"
]


@optimizers.register("adam", paper="arXiv:1412.6980", updates="entry")
def adam(
    groups: list[ParameterGroup],
    *,
    lr: LearningRate = 6e-3,
    betas: Betas = (0.9, 0.999),
    eps: Eps = 1e-8,
    weight_decay: Coupled = 0.0,
    amsgrad: Annotated[bool, "use the running maximum of v (arXiv:1904.09237)"] = False,
) -> Optimizer:
    """w <- w - lr m / (sqrt(v) + eps), m and v the bias-corrected moving averages of g and g^2."""
    settings = {"lr": lr, "betas": betas, "eps": eps, "amsgrad": amsgrad}
    return torch.optim.Adam(decayed(groups, weight_decay), **settings, fused=True)


@optimizers.register("adamw", paper="arXiv:1711.05101", updates="entry", whole_if=("hyperball",))
def adamw(
    groups: list[ParameterGroup],
    *,
    lr: LearningRate = 6e-3,
    betas: Betas = (0.9, 0.95),
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.1,
    hyperball: Hyperball = False,
    cautious_decay: CautiousDecay = False,
) -> Optimizer:
    """w <- w - lr (m / (sqrt(v) + eps) + weight_decay w), m and v the bias-corrected moving averages of g and g^2.

    betas and weight_decay are those of GPT-3 (arXiv:2005.14165).  torch's fused kernel is used, on the CPU 3 to 5 times
    as fast as its default; not with hyperball (AdamH) or cautious_decay.
    """
    if hyperball or cautious_decay:
        settings = {"lr": lr, "betas": betas, "eps": eps, "hyperball": hyperball, "cautious_decay": cautious_decay}
        return _ConstrainedAdamW(groups, weight_decay=weight_decay, **settings)
    return torch.optim.AdamW(decayed(groups, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


class _ConstrainedAdamW(Foreach):
    """AdamW with hyperball or cautious_decay."""

    buffers = ("m", "v")

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        # The norm at the first step: the initial weights, or what was loaded, say how large a matrix is.
        held = {"radius": frobenius(p.detach())} if group["hyperball"] and group["role"] == "matrix" else {}
        return super().start(group, p) | held

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        held = group["hyperball"] and group["role"] == "matrix"
        radius = [self.state[p]["radius"] for p in w] if held else None
        descend(group, w, adam_direction(group, t, g, *buffers), radius=radius)


@optimizers.register("nadam", paper="https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ")
class NAdam(Foreach):
    """w <- w - lr ((mu' m / (1 - M mu') + (1 - mu) g / (1 - M)) / (sqrt(v^) + eps) + weight_decay w): Nesterov's Adam.

    mu = b1 (1 - 0.96^(t momentum_decay) / 2), mu' the value at step t + 1, M the product of all mu up to step t.
    """

    updates = "entry"
    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: LearningRate = 6e-3,
        betas: Betas = (0.9, 0.999),
        eps: Eps = 1e-8,
        momentum_decay: Annotated[float, NonNegative, "rate at which mu approaches betas[0]"] = 4e-3,
        weight_decay: Decay = 0.1,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "momentum_decay": momentum_decay}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (m, v), (b1, b2) = buffers, group["betas"]
        # Nesterov's look-ahead uses the momentum of the next step for m and that of this step for g.
        mu, next_mu = (b1 * (1 - 0.5 * 0.96 ** (s * group["momentum_decay"])) for s in (t, t + 1))
        product = mu * self.state[w[0]].get("mu_product", 1.0)  # the same for all of w, which share the step count
        for p in w:
            self.state[p]["mu_product"] = product
        adam_moments(g, m, v, b1, b2)
        u = torch._foreach_mul(m, next_mu / (1 - product * next_mu))
        torch._foreach_add_(u, g, alpha=(1 - mu) / (1 - product))
        d = denominator(v, t, b2, group["eps"])
        shrink(group, w)
        torch._foreach_addcdiv_(w, u, d, value=-group["lr"])


@optimizers.register("radam", paper="arXiv:1908.03265", updates="entry")
def radam(
    groups: list[ParameterGroup],
    *,
    lr: LearningRate = 6e-3,
    betas: Betas = (0.9, 0.999),
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.1,
) -> Optimizer:
    """w <- w - lr (r m / (sqrt(v) + eps) + weight_decay w); r rectifies the variance of 1 / sqrt(v) in early steps.

    r^2 = (rho_t - 4)(rho_t - 2) rho / ((rho - 4)(rho - 2) rho_t),  rho = 2 / (1 - b2) - 1,
    rho_t = rho - 2 t b2^t / (1 - b2^t); while rho_t <= 5 the update is lr m, without v.
    """
    settings = {"lr": lr, "betas": betas, "eps": eps}
    # No fused kernel exists for RAdam; foreach is the next fastest.
    return torch.optim.RAdam(decayed(groups, weight_decay), **settings, decoupled_weight_decay=True, foreach=True)
