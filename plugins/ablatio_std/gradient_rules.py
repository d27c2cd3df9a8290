"""Stabilizers that change which gradients the optimizer sees: updates of a role every few steps, whitened inputs."""

from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Positive, Range, rule, stabilizers
from ablatio.errors import UserError
from ablatio.model.optimizer_step import OptimizerStep
from ablatio.model.parameter_roles import describe

START = 0.001  # of the diagonal of K, as in the authors' code
RoleName = Literal["matrix", "vector", "embedding", "head"]


@stabilizers.register("sparse_updates", paper="https://github.com/KellerJordan/modded-nanogpt")
class SparseUpdates:
    """Weights of the named roles are updated in every k-th step only, by the mean of the last k gradients.

    In the other steps the optimizer sees no gradient of them, so its moments and its count of steps stay as they are.
    Of a tied head, the matrix is an embedding.  If the number of steps is no multiple of k, the gradients after the
    last multiple are not used.  State: one gradient of these roles.
    """

    def __init__(
        self,
        *,
        every: Annotated[int, Range(2), "k: steps for each update"] = 2,
        roles: Annotated[tuple[RoleName, ...], "whose weights are updated every k-th step"] = ("embedding", "head"),
    ) -> None:
        if not roles:
            raise UserError(
                "stabilizer.sparse_updates.roles is empty, so no weight would wait; expected one role or more\n"
                "    try: stabilizer.sparse_updates.roles=[embedding,head]"
            )
        self.every, self.roles, self.names = every, tuple(roles), tuple[str, ...]()
        self.sums = dict[str, Tensor]()

    def attach(self, model: nn.Module) -> None:
        self.names = tuple(info.name for p, info in describe(model) if info.role in self.roles and p.requires_grad)

    @torch.no_grad()
    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        updates = (step.index + 1) % self.every == 0
        for name in self.names:
            p = step.model.get_parameter(name)
            if p.grad is None:
                continue
            if name in self.sums:
                self.sums[name].add_(p.grad)
            else:
                self.sums[name] = p.grad.clone()
            p.grad = self.sums.pop(name).div_(self.every) if updates else None
        return {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = {name: value.clone() for name, value in state.items()}


@stabilizers.register("input_whitening", paper="arXiv:2604.01472")
class InputWhitening:
    """G <- G (K + r I)^-1 for the gradient G of a linear map; with optimizer=muon this is Newton-Muon (Du & Su 2026).

    K <- decay K + (1 - decay) Z^T Z / N in every `every`-th step, from 0.001 I, with Z (N, d_in) the inputs of the map
    in that step; r = ridge tr(K) / d_in + 1e-8.  Before the first of these steps G stays as it is.  If d_in is a
    multiple of the width of the residual stream, K has one block for each, as in the authors' code.  Maps that are not
    torch's Linear, such as stacks of experts, are left as they are.  State: a matrix of d_in^2 numbers for each map.
    """

    def __init__(
        self,
        *,
        every: Annotated[int, Positive, "steps between two looks at the inputs"] = 32,
        decay: Annotated[float, Fraction, "share of K that stays when the inputs are looked at"] = 0.95,
        ridge: Annotated[float, NonNegative, "what is added to the diagonal of K, relative to its mean"] = 0.2,
    ) -> None:
        self.every, self.decay, self.ridge = every, decay, ridge
        self.looking = every == 1  # whether the next step is one in which the inputs are looked at
        self.blocks = dict[str, int]()
        self.seen = dict[str, tuple[Tensor, int]]()  # sum of Z^T Z / N over the batches of this step, and their number
        self.moments, self.inverses = dict[str, Tensor](), dict[str, Tensor]()

    def attach(self, model: nn.Module) -> None:
        found = {id(p): info for p, info in describe(model) if info.role == "matrix" and p.requires_grad}
        for module in model.modules():
            info = found.get(id(module.weight)) if isinstance(module, nn.Linear) else None
            if info is not None:
                width = info.d_model if info.d_model and info.fan_in % info.d_model == 0 else info.fan_in
                self.blocks[info.name] = info.fan_in // width
                module.register_forward_pre_hook(partial(self._look, info.name))

    def _look(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Not when text is scored or decoded: those inputs belong to no gradient.
        if self.looking and module.training and torch.is_grad_enabled():
            z = inputs[0].detach().flatten(0, -2).unflatten(-1, (self.blocks[name], -1))  # (N, blocks, width)
            z = z.to(torch.promote_types(z.dtype, torch.float32))  # sums in 16 bits would lose small inputs
            total, count = self.seen.get(name, (0.0, 0))
            self.seen[name] = total + torch.einsum("nbi,nbj->bij", z, z) / len(z), count + 1

    @torch.no_grad()
    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        for name, (total, count) in self.seen.items():
            k = self.moments[name] if name in self.moments else torch.diag_embed(torch.full_like(total[..., 0], START))
            self.moments[name] = torch.lerp(k, total / count, 1 - self.decay)
            self.inverses[name] = self._inverse(self.moments[name])
        self.seen, self.looking = {}, (step.index + 2) % self.every == 0
        for name, inverse in self.inverses.items():
            p = step.model.get_parameter(name)
            if p.grad is not None:
                g = p.grad.unflatten(-1, (len(inverse), -1)).to(inverse.dtype)
                p.grad.copy_(torch.einsum("obi,bij->obj", g, inverse).flatten(-2))
        return {}

    def _inverse(self, k: Tensor) -> Tensor:
        """(K + r I)^-1 of each block: (blocks, width, width) -> same."""
        diagonal = k.diagonal(dim1=-2, dim2=-1)
        damped = k + torch.diag_embed((self.ridge * diagonal.mean(-1, keepdim=True) + 1e-8).expand_as(diagonal))
        return torch.cholesky_inverse(torch.linalg.cholesky(damped))

    def state_dict(self) -> dict[str, Any]:
        return {"looking": self.looking, "moments": dict(self.moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.looking, self.moments = bool(state["looking"]), {n: k.clone() for n, k in state["moments"].items()}
        self.inverses = {name: self._inverse(k) for name, k in self.moments.items()}


for _when, _what, _fix in (
    ("trainer.devices * trainer.nodes > 1", "reads inputs on one device, and the run has several", "trainer.devices=1"),
    ("trainer.compile", "reads inputs in hooks, which compiled layers do not call", "trainer.compile=false"),
):
    rule(
        when=f"'input_whitening' in stabilizer and {_when}",
        why=f"stabilizer=input_whitening {_what}",
        fix=_fix,
        where="stabilizer",
    )
