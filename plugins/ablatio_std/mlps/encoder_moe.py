"""Mixtures in which experts see all tokens of a document before they choose: for encoders, not for causal decoders."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, mlps, rule
from ablatio.model.context import Context
from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.example import positions_in_documents

from .dense import MlpWiring
from .experts import experts_of
from .routing import Router


def documents(x: Tensor, ctx: Context) -> Tensor:
    """(B, T) the document of each token; PADDING for none."""
    return x.new_zeros(x.shape[:2], dtype=torch.long) if ctx.segments is None else ctx.segments.long()


@mlps.register("expert_choice", paper="arXiv:2202.09368")
class ExpertChoice(nn.Module):
    """y_t = sum of p_e(x_t) expert_e(x_t) over the experts that chose token t; p = softmax over experts of x W^T.

    Each expert takes the capacity_factor * T / experts tokens of a document with its largest p (Zhou et al. 2022), so
    loads are even without a loss, and a token has any number of experts, also none.  (B, T, D) -> same.
    """

    def __init__(
        self,
        *,
        experts: Annotated[int, Range(2, 4096), "in each layer"] = 8,
        capacity_factor: Annotated[float, Range(0.01, 64), "experts of a token on average"] = 2.0,
        **wiring: Unpack[MlpWiring],
    ) -> None:
        super().__init__()
        self.router = Router(wiring["d_model"], experts)
        self.experts = experts_of(wiring, experts, wiring["d_ff"])
        self.share, self.dropout = min(1.0, capacity_factor / experts), wiring["dropout"]
        self.idle_parameters = round((1 - self.share) * experts) * self.experts.expert_parameters

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        probs = self.router(x).softmax(-1)  # (B, T, E)
        token, expert = self._chosen(probs, documents(x, ctx))
        gates = probs.flatten(0, 1)[token, expert]
        flat = x.flatten(0, 1)
        y = self.experts.each(flat.index_select(0, token), expert)
        y = torch.zeros_like(flat, dtype=y.dtype).index_add(0, token, y * gates.to(y.dtype)[:, None]).view_as(x)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    @torch.no_grad()
    def _chosen(self, probs: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of tokens (of B * T) and their experts, (M,) each: all pairs whose rank in the document is in."""
        count = probs.shape[-1]
        if is_meta_tensor(probs):
            pairs = round(self.share * count * of.numel())
            return of.new_empty(pairs), of.new_empty(pairs)
        best = probs.argsort(dim=1, descending=True, stable=True)  # (B, T, E)
        among = of[..., None].expand_as(best).gather(1, best).transpose(1, 2).flatten(0, 1)  # (B * E, T)
        ranks = positions_in_documents(among).unflatten(0, (-1, count)).transpose(1, 2)
        rank = torch.empty_like(best).scatter(1, best, ranks)
        sizes = (of[:, :, None] == of[:, None, :]).sum(-1)  # tokens of each token's document
        room = (sizes.double() * self.share).ceil()[..., None]
        token, expert = ((rank < room) & (of >= 0)[..., None]).flatten(0, 1).nonzero(as_tuple=True)
        return token, expert


@mlps.register("soft_moe", paper="arXiv:2308.00951")
class SoftMoE(nn.Module):
    """Slots are mixtures of tokens, experts work on slots, tokens are mixtures of slots.  (B, T, D) -> same.

    L = norm(x) (scale norm(Phi))^T, with unit vectors; slots s = softmax over the document's tokens (L)^T x; the
    expert of each slot; y = softmax over slots (L) s'.  Nothing is dropped and all is smooth (Puigcerver et al. 2023).
    """

    def __init__(
        self,
        *,
        experts: Annotated[int, Range(2, 4096), "in each layer"] = 8,
        slots: Annotated[int, Range(1, 4096), "of each expert, for each document"] = 4,
        **wiring: Unpack[MlpWiring],
    ) -> None:
        super().__init__()
        self.slots = nn.Linear(wiring["d_model"], experts * slots, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.experts = experts_of(wiring, experts, wiring["d_ff"])
        self.count, self.dropout = slots, wiring["dropout"]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        of = documents(x, ctx)
        logits = F.linear(F.normalize(x, dim=-1), self.scale * F.normalize(self.slots.weight, dim=-1))  # (B, T, S)
        number = 1 if ctx.segments is None else int(of.max()) + 1
        inside = of[:, None, :] == torch.arange(number, device=x.device)[:, None]  # (B, documents, T)
        hidden = logits.transpose(1, 2)[:, None].masked_fill(~inside[:, :, None], torch.finfo(logits.dtype).min)
        slots = torch.einsum("bnst,btd->bnsd", hidden.softmax(-1).to(x.dtype), x)
        expert = torch.arange(self.experts.experts, device=x.device).repeat_interleave(self.count)
        made = self.experts.each(slots.flatten(0, 2), expert.repeat(slots.shape[0] * number)).view_as(slots)
        mixed = torch.einsum("bts,bnsd->bntd", logits.softmax(-1).to(made.dtype), made)
        y = (mixed * inside[..., None]).sum(1)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


for _name in ("expert_choice", "soft_moe"):
    rule(
        when=f"mlp.name == '{_name}' and facts.architecture.mask != 'full'",
        why="experts of mlp={mlp.name} choose among all tokens, later ones too, and architecture={architecture.name} "
        "has a stack that may not look ahead",
        fix="architecture=encoder",
    )
