from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, alignments


@alignments.register("margin", paper="arXiv:2305.10425")
class Margin:
    """L = max(0, delta - (log p(w) / |w| - log p(l) / |l|)): w the better answer, l the worse one."""

    data = "pairs"
    metrics = ("train/reward_margin",)

    def __init__(self, *, delta: Annotated[float, Positive, "margin in nats per token"] = 1.0) -> None:
        self.delta = delta

    def loss(
        self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        margin = chosen / chosen_length.clamp(min=1) - rejected / rejected_length.clamp(min=1)  # (B,)
        return torch.relu(self.delta - margin).mean(), {"train/reward_margin": margin.detach().mean()}
