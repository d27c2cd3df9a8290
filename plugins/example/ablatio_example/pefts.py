"""LoRA-XS (Balazy et al. 2024, arXiv:2405.17604): the smallest LoRA, between frozen singular vectors."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablatio import Positive, pefts
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, weight_of


class Core(MatrixAdapter):
    """W + s U R V: U (out, r) and V (r, in) are frozen, R (r, r) is trained."""

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
        # Persistent: checkpoints are loaded into a model whose base weights, and so this SVD, are not there yet.
        self.register_buffer("left", u[:, :rank] * s[:rank])
        self.register_buffer("right", v[:rank].contiguous())
        self.core = nn.Parameter(torch.zeros(self.left.shape[1], len(self.right)))
        self.scale = scale

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.left @ self.core @ self.right)


@pefts.register("lora_xs", paper="arXiv:2405.17604")
class LoRAXS(LayerPeft):
    """y = (W + (alpha / r) U_r S_r R V_r) x with W = U S V: only R (r, r) is trained, and it starts at zero.

    A layer adds r^2 weights, however wide it is.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("q_proj", "v_proj"),
        rank: Annotated[int, Positive, "r: number of singular directions"] = 8,
        alpha: Annotated[float, Positive, "the update is scaled by alpha / r"] = 16.0,
    ) -> None:
        super().__init__(targets)
        self.rank, self.scale = rank, alpha / rank

    def adapter(self, layer: Any, path: str) -> Core:
        return Core(weight_of(layer).detach(), self.rank, self.scale)
