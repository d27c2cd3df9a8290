"""Feed-forward layers that only some tokens pass through."""

import math
from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import NonNegative, Range, Schedulable, mlps
from ablatio.model.context import Context
from ablatio.model.cost.meta_tensors import is_meta_tensor

from .dense import MlpWiring, build_dense
from .routing import Router, token_mean


@mlps.register("mixture_of_depths", paper="arXiv:2404.02258")
class MixtureOfDepths(nn.Module):
    """r_t f(x_t) for the share `capacity` of a row's tokens with the largest r = w . x, 0 for the others; f is dense.

    Which tokens are chosen depends on later ones, so a loss teaches r to tell by itself: `router_loss` times the binary
    cross-entropy of sigmoid(r_t) with the choice.  Outside training the tokens with r > 0 are chosen.  The paper routes
    attention along with the feed-forward part; with `layers.mlp=[mixture_of_depths,dense]` every second layer routes,
    as there.  (B, T, D) -> same.
    """

    metrics, batch_dependent = ("train/depth_router",), True

    def __init__(
        self,
        *,
        capacity: Annotated[float, Range(0, 1, open_low=True), "share of a row's tokens that are processed"] = 0.125,
        router_loss: Annotated[float, NonNegative, Schedulable(), "weight of the router's loss"] = 0.01,
        **wiring: Unpack[MlpWiring],
    ) -> None:
        super().__init__()
        self.router, self.inner = Router(wiring["d_model"], 1), build_dense(wiring)
        self.capacity, self.router_loss = capacity, router_loss
        self.idle_parameters = round((1 - capacity) * sum(p.numel() for p in self.inner.parameters()))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        r = self.router(x)[..., 0]  # (B, T)
        index = self._chosen(r, ctx)  # (M,)
        flat = x.flatten(0, 1)
        # Times r, so that the router gets a gradient through the chosen tokens.
        y = self.inner(flat[index], ctx) * r.flatten()[index, None].to(x.dtype)
        return torch.zeros_like(flat, dtype=y.dtype).index_add(0, index, y).view_as(x)

    def _chosen(self, r: Tensor, ctx: Context) -> Tensor:
        """Numbers of the processed tokens among all B * T: (M,)."""
        count = math.ceil(self.capacity * r.shape[1])
        if is_meta_tensor(r):
            return torch.empty(count * len(r), dtype=torch.long, device=r.device)
        if not self.training:
            # A top-k would look at later tokens, which decoding does not have.
            return (r.flatten() > 0).nonzero()[:, 0]
        real = None if ctx.segments is None else ctx.segments >= 0
        # Padding would take places from tokens.
        best = (r if real is None else r.masked_fill(~real, float("-inf"))).topk(count, dim=1).indices  # (B, count)
        wanted = torch.zeros_like(r).scatter(1, best, 1.0)
        # With r not detached, as in the paper: the loss also moves the features towards a choice that can be told.
        wrong = F.binary_cross_entropy_with_logits(r, wanted, reduction="none")
        ctx.add_loss("train/depth_router", self.router_loss * token_mean(wrong[..., None], real)[0])
        return (best + r.shape[1] * torch.arange(len(r), device=r.device)[:, None]).flatten()
