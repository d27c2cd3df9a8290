"""DPO-Positive (Pal et al. 2024, arXiv:2402.13228): DPO with a penalty on better answers that become less likely."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import NonNegative, Positive, alignments


@alignments.register("dpop", paper="arXiv:2402.13228")
class DPOP:
    """L = -log sigmoid(beta (h - lam max(0, -r_w))), h = r_w - r_l, r the log-ratio of an answer to the reference.

    w is the better answer, l the worse one.  DPO's loss can fall although both answers become less likely, if l does so
    faster; here it is penalized if w is less likely than under the reference (r_w < 0).  The parameters of `loss` name
    its inputs: log-probabilities (B,) in nats.
    """

    data = "pairs"
    metrics = ("train/reward_margin", "train/reward_accuracy", "train/fallen")

    def __init__(
        self,
        *,
        beta: Annotated[float, Positive, "weight of the KL penalty to the reference"] = 0.3,
        lam: Annotated[float, NonNegative, "penalty on better answers that become less likely; 0: DPO"] = 50.0,
    ) -> None:
        self.beta, self.lam = beta, lam

    def loss(
        self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        better, worse = chosen - ref_chosen, rejected - ref_rejected  # (B,)
        loss = -F.logsigmoid(self.beta * (better - worse - self.lam * torch.relu(-better)))
        margin, fallen = (better - worse).detach(), (better < 0).float()
        values = (self.beta * margin.mean(), (margin > 0).float().mean(), fallen.mean())
        return loss.mean(), dict(zip(self.metrics, values, strict=True))
