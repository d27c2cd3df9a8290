"""Shared code of the optimizers: weight decay by role, a base class for updates of lists of tensors, Adam's moments."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ablatio import NonNegative, Positive, Schedulable
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.registry.knobs import Range

Below1 = Range(0, 1, open_high=True)
Betas = Annotated[tuple[float, float], Below1, Schedulable()]
Momentum = Annotated[float, Below1, Schedulable()]
Eps = Annotated[float, Positive]
Rate = Annotated[float, Positive, "learning rate at the peak of the schedule"]
Decay = Annotated[
    float, NonNegative, Schedulable(), "decoupled: lr * weight_decay * w per step; vectors are not decayed"
]
Hyperball = Annotated[
    bool, "hold the Frobenius norm of each hidden matrix, instead of decay; lr is relative to it (arXiv:2606.16899)"
]
CautiousDecay = Annotated[bool, "decay only entries that the update moves towards 0 too (arXiv:2510.12402)"]
Coupled = Annotated[float, NonNegative, Schedulable(), "coupled: weight_decay * w is added to g; not for vectors"]
Group = dict[str, Any]
Tensors = list[Tensor]
TINY = 1e-30  # lower bound of a norm, for the direction of a tensor that is 0


def decayed(groups: list[ParameterGroup], weight_decay: float) -> list[dict[str, Any]]:
    """Set weight_decay of each group: 0 for vectors (gains and biases), `weight_decay` for the other roles."""
    return [{**g, "weight_decay": 0.0 if g["role"] == "vector" else weight_decay} for g in groups]


class Foreach(Optimizer):
    """Base of optimizers that update all tensors of a group in one call (torch._foreach_*).

    buffers  names of the state tensors of a parameter; `start` makes them, by default zeros of its shape
    update   (group, t, w, g, *buffers): w, g and each buffer are lists of tensors; t is their step count, from 1
    """

    buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, groups: list[ParameterGroup], *, weight_decay: float = 0.0, **settings: Any) -> None:
        super().__init__(decayed(groups, weight_decay), settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        """Return the initial state tensors of parameter p, by name."""
        return {name: torch.zeros_like(p) for name in self.buffers}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        """Update the weights w and the buffers in place from the gradients g."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update_all()
        return loss

    def update_all(self) -> None:
        """Update the parameters of all groups."""
        for group in self.param_groups:
            for t, w, g in self.due(group):
                self.update(group, t, w, g, *self.of(w))

    def due(self, group: Group) -> Iterator[tuple[int, Tensors, Tensors]]:
        """Count a step of the parameters with a gradient; yield (t, weights, gradients) for each step count t.

        Usually all have the same count.  They differ where a parameter got no gradient in some steps.
        """
        counts: dict[int, Tensors] = {}
        for p in group["params"]:
            # A parameter without a gradient (a frozen layer, an expert without tokens) keeps its state and its step
            # count, so that its bias correction fits the gradients it has seen.
            if p.grad is not None:
                state = self.state[p]
                if not state:
                    state |= self.first(group, p)
                state["t"] += 1
                counts.setdefault(state["t"], []).append(p)
        for t, w in counts.items():
            yield t, w, [p.grad for p in w if p.grad is not None]

    def first(self, group: Group, p: Tensor) -> dict[str, Any]:
        """State of a parameter before its first step."""
        # Contiguous, as a checkpoint gives it back: products of other strides round in another way.
        return {"t": 0, **{name: value.contiguous() for name, value in self.start(group, p).items()}}

    def of(self, w: Tensors) -> list[Tensors]:
        """Return the buffers of these weights: one list of tensors for each name."""
        return [[self.state[p][name] for p in w] for name in self.buffers]


def shrink(group: Group, w: Tensors) -> None:
    """w <- (1 - lr weight_decay) w."""
    if group["weight_decay"]:
        torch._foreach_mul_(w, 1 - group["lr"] * group["weight_decay"])


def descend(group: Group, w: Tensors, u: Tensors, size: float = 1.0, radius: Tensors | None = None) -> None:
    """w <- w - lr (size u + weight_decay w), by the group's kind of decay.

    cautious_decay  an entry decays only where u w >= 0 (arXiv:2510.12402)
    radius          R of each matrix, (..., 1, 1): w <- R n(w - lr R n(u)) with n(x) = x / |x|, without decay
                    (hyperball, arXiv:2606.16899); a matrix with R = 0 has no norm to keep and takes the plain step
    """
    if radius is None and not group.get("cautious_decay"):
        # The decay comes before the step and so sees the old weights, as in torch's AdamW.
        shrink(group, w)
        torch._foreach_add_(w, u, alpha=-group["lr"] * size)
        return
    decay = group["lr"] * group["weight_decay"]
    # One by one: both kinds need a factor for each entry or matrix, which foreach does not take.
    for i, (p, d) in enumerate(zip(w, u, strict=True)):
        factor: Any = (p * d >= 0).to(p.dtype) * decay if group.get("cautious_decay") else decay
        if radius is None:
            p.sub_(p * factor).add_(d, alpha=-group["lr"] * size)
        else:
            r = radius[i]
            # Only the direction of u counts: the step has the length lr R, whatever the optimizer's own scale.
            step = d * torch.where(r > 0, r / frobenius(d).clamp(min=TINY), size)
            p.sub_(p * (r == 0).to(p.dtype) * factor).sub_(step, alpha=group["lr"])
            # Back to R after each step, since a step along the tangent lengthens w.
            p.mul_(torch.where(r > 0, r / frobenius(p).clamp(min=TINY), 1.0))


def frobenius(x: Tensor) -> Tensor:
    """Frobenius norm of each matrix.  (..., rows, columns) -> (..., 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


def adam_moments(g: Tensors, m: Tensors, v: Tensors, b1: float, b2: float) -> None:
    """Update in place the moving averages m of g (decay b1) and v of g^2 (decay b2)."""
    torch._foreach_lerp_(m, g, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, g, g, 1 - b2)


def denominator(v: Tensors, t: int, b2: float, eps: float) -> Tensors:
    """sqrt(v^) + eps in new tensors, v^ = v / (1 - b2^t) corrected for the bias of its initial 0."""
    d = torch._foreach_sqrt(v)
    # v is corrected before eps is added, as in the paper and in torch; eps after it keeps its meaning in early steps.
    torch._foreach_div_(d, (1 - b2**t) ** 0.5)
    torch._foreach_add_(d, eps)
    return list(d)


def adam_direction(group: Group, t: int, g: Tensors, m: Tensors, v: Tensors) -> Tensors:
    """Update m and v by g, and return Adam's direction m^ / (sqrt(v^) + eps) in new tensors."""
    b1, b2 = group["betas"]
    adam_moments(g, m, v, b1, b2)
    u = torch._foreach_div(m, denominator(v, t, b2, group["eps"]))
    # Divided last: one factor for the whole quotient, in place.
    torch._foreach_div_(u, 1 - b1**t)
    return list(u)


def adamw_(group: Group, t: int, w: Tensors, g: Tensors, m: Tensors, v: Tensors) -> None:
    """Take one step of AdamW with torch's fused kernel, for roles that an optimizer for matrices does not handle."""
    # The kernel takes the step count as a tensor for each parameter; one tensor serves all, as the kernel does not
    # change it.
    (b1, b2), steps = group["betas"], [torch.full((), float(t), device=w[0].device)] * len(w)  # read only
    torch._fused_adamw_(
        w, g, m, v, [], steps,
        lr=group["lr"], beta1=b1, beta2=b2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip
