"""LoraHub: a weighted mixture of trained LoRAs, with weights found by gradient-free search."""

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import NonNegative, Positive, pefts
from ablatio.errors import UserError
from ablatio.model.optimizer_step import OptimizerStep
from ablatio.model.parameter_roles import named_generator
from ablatio.model.peft.adapter_files import read_adapter, refuse_other_base
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, adapted, bias_of, freeze, said, weight_of
from ablatio_std.pefts._common import ToPeft, as_lora, low_rank_linear

GROW = 1.5  # factor on sigma after a success, GROW^(-1/4) after a failure: constant at one success in five


class LoraMixture(MatrixAdapter):
    """W + s (sum_i w_i B_i) (sum_i w_i A_i): in training with the candidate `weights`, else with the `best` found."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, weights: nn.Parameter, sigma: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.weights = weights
        self.register_buffer("best", weights.detach().clone())
        self.register_buffer("best_loss", torch.tensor(float("inf")))
        self.register_buffer("sigma", torch.tensor(sigma))

    def mixed(self) -> tuple[Tensor, Tensor]:
        """Return the mixed A (r, in) and B (out, r)."""
        # Evaluations and checkpoints see the best weights, not a candidate that may fail.
        weights = self.weights if self.training else self.best
        return torch.einsum("n,nij->ij", weights, self.a), torch.einsum("n,nij->ij", weights, self.b)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        if type(layer) is nn.Linear:
            return low_rank_linear(x, weight_of(layer), bias_of(layer), *self.mixed(), self.scale)
        a, b = self.mixed()
        return said(layer, x) + self.scale * F.linear(F.linear(x, a), b)

    def matrix(self, weight: Tensor) -> Tensor:
        a, b = self.mixed()
        return weight + self.scale * (b @ a)


@pefts.register("lorahub", paper="arXiv:2307.13269")
class LoraHub(LayerPeft):
    """y = W x + s (sum_i w_i B_i) (sum_i w_i A_i) x: A_i, B_i from trained LoRAs, frozen; w initialized to 0.

    w is found by a gradient-free search: each step tries w + sigma N(0, 1) on its batch, and keeps it if the loss plus
    l1 * |w|_1 is the lowest so far.  sigma grows after a success and shrinks after a failure, and is constant at one
    success in five.

    Raises:
        UserError: no adapters are given, one is no LoRA or of another base, or their shapes or scales differ.
    """

    reads_gradients = True  # it trains without them

    def __init__(
        self,
        *,
        adapters: Annotated[tuple[str, ...], "folders of LoRAs of one rank: ablatio export RUN --adapter DIR"] = (),
        sigma: Annotated[float, Positive, "initial standard deviation of the search"] = 0.5,
        l1: Annotated[float, NonNegative, "weight of |w|_1"] = 0.05,
    ) -> None:
        super().__init__(())
        self.folders, self.sigma, self.l1 = [Path(f).expanduser() for f in adapters], sigma, l1

    def apply(self, model: nn.Module, seed: int) -> None:
        if not self.folders:
            raise UserError(
                "peft=lorahub mixes trained LoRAs, and peft.adapters names none\n"
                "    try: ablatio export RUN --adapter DIR, then peft.adapters=[DIR,...]"
            )
        freeze(model)
        self.held, scales = [], set()
        for folder in self.folders:
            index, tensors = read_adapter(folder)
            refuse_other_base(folder, index, model)
            part = pefts.build(index["peft"]["name"], {k: v for k, v in index["peft"].items() if k != "name"})
            if index["peft"]["name"] != "lora":
                raise UserError(f"{folder} holds peft={index['peft']['name']}; lorahub mixes peft=lora only\n"
                                "    try: peft=lora, and then ablatio export RUN --adapter DIR")  # fmt: skip
            scales.add(part.scale)
            self.held.append(tensors)
        shapes = [{name: t.shape for name, t in tensors.items()} for tensors in self.held]
        # The mixture is one LoRA: sums of A and of B need one rank and one scale.
        if any(s != shapes[0] for s in shapes) or len(scales) > 1:
            raise UserError(
                "the LoRAs of peft.adapters differ in targets, rank or alpha and cannot be mixed\n"
                f"    try: peft.adapters=[{self.folders[0]}], and others that were trained with the same settings"
            )
        self.scale, self.seed = scales.pop(), seed
        self.weights = nn.Parameter(torch.zeros(len(self.folders)))
        self.targets = tuple(n.removesuffix(".adapter.lora_A") for n in self.held[0] if n.endswith("lora_A"))
        super().apply(model, seed)

    def adapter(self, layer: Any, path: str) -> LoraMixture:
        a, b = (torch.stack([t[f"{path}.adapter.lora_{n}"] for t in self.held]) for n in "AB")
        device = torch.get_default_device()
        return LoraMixture(a.to(device), b.to(device), self.scale, self.weights, self.sigma)

    def to_peft(self, model: nn.Module) -> ToPeft:
        """Export the mixture, which is a LoRA of the same rank."""
        pairs = {path: a.eval().mixed() for path, _, a in adapted(model) if isinstance(a, LoraMixture)}
        return as_lora(pairs, self.scale)

    @torch.no_grad()
    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        """Compare the candidate that gave this step's loss with the best so far, and draw the next candidate."""
        all_ = [adapter for _, _, adapter in adapted(step.model) if isinstance(adapter, LoraMixture)]
        first = all_[0]  # all share `weights`; best, best_loss and sigma have the same values in each
        loss = step.loss + self.l1 * first.weights.abs().sum()
        better = bool(loss < first.best_loss)
        best = first.weights.detach().clone() if better else first.best
        sigma = first.sigma * (GROW if better else GROW**-0.25)
        lowest = loss.to(first.best_loss) if better else first.best_loss
        # From the step's number: a resumed search draws the same candidates.
        noise = torch.randn(len(best), generator=named_generator(self.seed, f"lorahub/{step.index}"))
        for adapter in all_:
            adapter.best.copy_(best)
            adapter.best_loss.copy_(lowest)
            adapter.sigma.copy_(sigma)
        first.weights.copy_(best + sigma * noise.to(best))
        first.weights.grad = None  # the optimizer must not change them
        return {}
