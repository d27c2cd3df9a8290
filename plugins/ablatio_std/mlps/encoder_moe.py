"""Mixtures of experts whose routing depends on all tokens of a document: for encoders, not for causal decoders."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, mlps, rule
from ablatio.model.context import Context
from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.example import positions_in_documents

from .dense import MlpWiring
from .experts import build_experts
from .routing import Router


def document_ids(x: Tensor, ctx: Context) -> Tensor:
    """Return the document id of each token of x (B, T, D), PADDING for padding: (B, T)."""
    return x.new_zeros(x.shape[:2], dtype=torch.long) if ctx.segments is None else ctx.segments.long()


@mlps.register("expert_choice", paper="arXiv:2202.09368")
class ExpertChoice(nn.Module):
    """y_t = sum of p_e(x_t) expert_e(x_t) over the experts e that chose token t; p = softmax over experts of x W^T.

    Each expert chooses the capacity_factor * T / experts tokens of a document with its largest p (Zhou et al. 2022).
    Loads are therefore even without a loss; a token may get any number of experts, including none.  (B, T, D) -> same.
    """

    waits = "how many tokens the experts choose depends on the lengths of the documents"

    def __init__(
        self,
        *,
        experts: Annotated[int, Range(2, 4096), "number of experts in each layer"] = 8,
        capacity_factor: Annotated[float, Range(0.01, 64), "mean number of experts for each token"] = 2.0,
        **wiring: Unpack[MlpWiring],
    ) -> None:
        super().__init__()
        self.router = Router(wiring["d_model"], experts)
        self.experts = build_experts(wiring, experts, wiring["d_ff"])
        self.share, self.dropout = min(1.0, capacity_factor / experts), wiring["dropout"]
        self.idle_parameters = round((1 - self.share) * experts) * self.experts.expert_parameters

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        probs = self.router(x).softmax(-1)  # (B, T, E)
        token, expert = self._choose(probs, document_ids(x, ctx))  # (M,) each
        gates = probs.flatten(0, 1)[token, expert]  # (M,)
        flat = x.flatten(0, 1)  # (B * T, D)
        y = self.experts.each(flat.index_select(0, token), expert)
        y = torch.zeros_like(flat, dtype=y.dtype).index_add(0, token, y * gates.to(y.dtype)[:, None]).view_as(x)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    @torch.no_grad()
    def _choose(self, probs: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (token, expert) pairs whose rank within the document is below the expert's capacity.

        probs (B, T, E), document (B, T) -> token indices into B * T, and expert indices: (M,) each.
        """
        count = probs.shape[-1]
        if is_meta_tensor(probs):
            pairs = round(self.share * count * document.numel())
            return document.new_empty(pairs), document.new_empty(pairs)
        # Stable, so that equal probabilities keep the order of the tokens on every device.
        best = probs.argsort(dim=1, descending=True, stable=True)  # (B, T, E)
        # A token's place among those of its document, in this order, is its rank for the expert.
        by_rank = document[..., None].expand_as(best).gather(1, best).transpose(1, 2).flatten(0, 1)  # (B * E, T)
        ranks = positions_in_documents(by_rank).unflatten(0, (-1, count)).transpose(1, 2)  # (B, T, E)
        rank = torch.empty_like(best).scatter(1, best, ranks)
        sizes = (document[:, :, None] == document[:, None, :]).sum(-1)  # (B, T), length of each token's document
        # float64 and rounded up: a document of any length gives each expert at least one token.
        capacity = (sizes.double() * self.share).ceil()[..., None]
        token, expert = ((rank < capacity) & (document >= 0)[..., None]).flatten(0, 1).nonzero(as_tuple=True)
        return token, expert


@mlps.register("soft_moe", paper="arXiv:2308.00951")
class SoftMoE(nn.Module):
    """y = C expert(D^T x): experts process slots, which are weighted means of tokens.  (B, T, D) -> same.

    Logits L = norm(x) (scale norm(Phi))^T with unit vectors, one row of Phi for each slot; D = softmax of L over the
    document's tokens, C = softmax of L over the slots.  No token is dropped, and routing is differentiable
    (Puigcerver et al. 2023).
    """

    waits = "the number of slots depends on the number of documents in a row"

    def __init__(
        self,
        *,
        experts: Annotated[int, Range(2, 4096), "number of experts in each layer"] = 8,
        slots: Annotated[int, Range(1, 4096), "slots of each expert for each document"] = 4,
        **wiring: Unpack[MlpWiring],
    ) -> None:
        super().__init__()
        self.slots = nn.Linear(wiring["d_model"], experts * slots, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.experts = build_experts(wiring, experts, wiring["d_ff"])
        self.count, self.dropout = slots, wiring["dropout"]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        document = document_ids(x, ctx)
        # Unit vectors, as in the paper's appendix: with growing D the unnormalized logits would make both softmaxes
        # one-hot.
        logits = F.linear(F.normalize(x, dim=-1), self.scale * F.normalize(self.slots.weight, dim=-1))  # (B, T, S)
        n_documents = 1 if ctx.segments is None else int(document.max()) + 1
        inside = document[:, None, :] == torch.arange(n_documents, device=x.device)[:, None]  # (B, documents, T)
        # finfo.min instead of -inf: a document number that a row does not have has only masked tokens, and would be
        # NaN.
        masked = logits.transpose(1, 2)[:, None].masked_fill(~inside[:, :, None], torch.finfo(logits.dtype).min)
        slots = torch.einsum("bnst,btd->bnsd", masked.softmax(-1).to(x.dtype), x)  # (B, documents, S, D)
        expert = torch.arange(self.experts.experts, device=x.device).repeat_interleave(self.count)  # (S,)
        out = self.experts.each(slots.flatten(0, 2), expert.repeat(slots.shape[0] * n_documents)).view_as(slots)
        mixed = torch.einsum("bts,bnsd->bntd", logits.softmax(-1).to(out.dtype), out)  # (B, documents, T, D)
        y = (mixed * inside[..., None]).sum(1)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


for _name in ("expert_choice", "soft_moe"):
    rule(
        when=f"mlp.name == '{_name}' and facts.architecture.mask != 'full'",
        why="mlp={mlp.name} routes by all tokens of a document, later ones included, and a stack of "
        "architecture={architecture.name} must not depend on later tokens",
        fix="architecture=encoder",
    )
