"""Optimizers with updates of bounded size: lion, sophia."""

from collections.abc import Callable
from typing import Annotated, Protocol

import torch
from torch import Tensor

from ablatio import Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Betas, Decay, Eps, Foreach, Group, Rate, Tensors, shrink


@optimizers.register("lion", paper="arXiv:2302.06675")
class Lion(Foreach):
    """w <- w - lr (sign(b1 m + (1 - b1) g) + weight_decay w);  m <- b2 m + (1 - b2) g.

    lr is a few times smaller than AdamW's, and weight_decay larger by the same factor: their product sets the decay.
    """

    updates = "entry"
    buffers = ("m",)

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.99),
        weight_decay: Decay = 0.6,
    ) -> None:
        super().__init__(groups, weight_decay=weight_decay, lr=lr, betas=betas)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (m,), (b1, b2) = buffers, group["betas"]
        # The update mixes with b1, the memory with b2 > b1: the sign reacts to g faster than m forgets.
        u = torch._foreach_lerp(m, g, 1 - b1)
        torch._foreach_lerp_(m, g, 1 - b2)
        torch._foreach_sign_(u)
        shrink(group, w)
        torch._foreach_add_(w, u, alpha=-group["lr"])


class Observed(Protocol):
    """Attributes of a training step that `Sophia.observe` reads.

    index         index of the optimizer step, from 0
    sampled_loss  mean loss of the last micro-batch with targets sampled from the model's own distribution
    n_targets     number of targets in that mean
    """

    index: int
    n_targets: int
    sampled_loss: Callable[[], Tensor]


@optimizers.register("sophia", paper="arXiv:2305.14342")
class Sophia(Foreach):
    """w <- w - lr (clip(m / max(gamma h, eps), 1) + weight_decay w), h an estimate of the Hessian diagonal (Sophia-G).

    m is the moving average of g with betas[0].  h is the moving average of n g'^2 with betas[1], updated every `every`
    steps: g' is the gradient of the mean loss over n targets sampled from the model (Gauss-Newton-Bartlett).  Without
    calls of `observe` h is 0, and each entry moves by lr.
    """

    updates, samples = "entry", True
    buffers = ("m", "h")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 1.5e-3,
        betas: Betas = (0.965, 0.99),
        gamma: Annotated[
            float, Positive, "a larger gamma clips fewer entries; the paper recommends to clip 50 to 90 %"
        ] = 0.05,
        every: Annotated[int, Positive, "steps between estimates of h"] = 10,
        eps: Eps = 1e-12,
        weight_decay: Decay = 0.2,
    ) -> None:
        super().__init__(groups, weight_decay=weight_decay, lr=lr, betas=betas, gamma=gamma, every=every, eps=eps)

    def observe(self, step: Observed) -> None:
        """Update h, in every `every`-th step.  Call it after backward and before `step()`; it does not change .grad."""
        # Curvature changes slowly, and each estimate costs a further backward pass.
        if step.index % self.param_groups[0]["every"]:
            return
        due = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        # autograd.grad, not backward(): the gradients of the true targets in .grad are needed by this step.
        sampled = torch.autograd.grad(step.sampled_loss(), [p for _, p in due], allow_unused=True)
        for (group, p), g in zip(due, sampled, strict=True):
            state = self.state[p]
            if not state:
                state |= self.first(group, p)
            b2 = group["betas"][1]
            state["h"].mul_(b2)
            if g is not None:
                # The squared gradient of a mean over n independent targets is h / n in expectation.
                state["h"].addcmul_(g, g, value=(1 - b2) * step.n_targets)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        m, h = buffers
        torch._foreach_lerp_(m, g, 1 - group["betas"][0])
        scale = torch._foreach_mul(h, group["gamma"])
        # The maximum is also the guard for h = 0, or before the first estimate: the quotient is then clipped to a sign.
        torch._foreach_clamp_min_(scale, group["eps"])
        u = torch._foreach_div(m, scale)
        torch._foreach_clamp_max_(u, 1.0)
        torch._foreach_clamp_min_(u, -1.0)
        shrink(group, w)
        torch._foreach_add_(w, u, alpha=-group["lr"])
