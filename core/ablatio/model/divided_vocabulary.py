"""The token table and the output head, of which each device has the rows of some ids.

Logits are computed where their rows are, and of a loss three numbers per token are sent: the largest logit, the sum of
exponentials, the target's logit (Megatron-LM: Shoeybi et al. 2019, arXiv:1909.08053, section 3).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ablatio.errors import UserError
from ablatio.model.cross_entropy import LogitMap, add_product, block_rows, mapped_logits
from ablatio.model.kept_copies import in_dtype
from ablatio.model.number_format import compute_dtype, precise
from ablatio.model.tensor_parallel import Devices


class DividedVocabulary:
    """The table and the head of a model, with this device's rows of them; both have V / n, in the order of devices.

    table, head  hold the whole tensors; `devices.own` returns this device's rows
    """

    def __init__(self, table: nn.Embedding, head: nn.Linear, devices: Devices) -> None:
        self.table: Any = table
        self.head: Any = head
        self.devices = devices
        self.vocab, count = head.out_features, devices.count
        if self.vocab % count:
            more = -(-self.vocab // count) * count
            raise UserError(
                f"strategy.vocabulary=true: the {self.vocab} rows of embedding and head do not divide over {count} "
                f"devices\n    try: model.vocab_size={more}"
            )
        self.rows = self.vocab // count
        self.start = self.rows * devices.index

    def attach(self) -> None:
        """Let table and head compute with this device's rows from now on; their results are whole."""
        self.table.forward = self._embedded
        self.head.forward = self._logits

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Rows of the table: (...) -> (..., W)."""
        place, inside = self._places(tokens)
        rows = F.embedding(place, self.devices.own(self.table.weight, 0))
        return self.devices.leave(rows * inside[..., None])

    def _logits(self, hidden: Tensor) -> Tensor:
        """All logits of hidden states: (..., W) -> (..., V)."""
        own = F.linear(self.devices.enter(hidden), self.devices.own(self.head.weight, 0))
        found: Tensor = _Whole.apply(own, self)  # type: ignore[no-untyped-call]
        return found

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of ids among this device's rows, 0 for those of others; True for its own."""
        place = ids - self.start
        inside = (place >= 0) & (place < self.rows)
        return torch.where(inside, place, 0), inside

    def each(self, own: Tensor) -> Tensor:
        """A tensor of each device: (...) -> (n, ...)."""
        found = own.new_zeros(self.devices.count, *own.shape)
        found[self.devices.index] = own
        return self.devices.total(found)

    def cross_entropy(
        self,
        hidden: Tensor,
        targets: Tensor,
        row_weights: Tensor | None = None,
        *,
        z_loss: float = 0.0,
        smoothing: float = 0.0,
        logit_map: LogitMap | None = None,
    ) -> Tensor:
        """`ablatio.model.cross_entropy.linear_cross_entropy` with the rows of all devices; `logit_map` elementwise."""
        weight = self.devices.own(self.head.weight, 0)
        if not torch.is_grad_enabled():
            hidden, weight = hidden.detach(), weight.detach()
        hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
        result: Tensor = _DividedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, row_weights, self, z_loss, smoothing, logit_map
        )
        return result

    @torch.no_grad()
    def token_scores(
        self, hidden: Tensor, targets: Tensor, *, logit_map: LogitMap | None = None
    ) -> tuple[Tensor, Tensor]:
        """`ablatio.model.cross_entropy.token_scores` with the rows of all devices; `logit_map` elementwise."""
        hidden = hidden.to(compute_dtype(hidden.device, hidden.dtype))
        matrix = in_dtype(self.devices.own(self.head.weight, 0), hidden.dtype)
        found = []
        for block, target in self._blocks(hidden, targets):
            logits = (block @ matrix.T).to(precise(hidden.dtype))
            logits = logits if logit_map is None else logit_map(logits)
            largest, log_z, target_logits = self._normalizer(logits, target)
            best = torch.where(logits.amax(-1) == largest, logits.argmax(-1) + self.start, self.vocab)
            found.append((log_z - target_logits, self.each(best).amin(0) == target))
        if not found:
            return hidden.new_empty(0, dtype=precise(hidden.dtype)), targets.new_empty(0, dtype=torch.bool)
        losses, hits = (torch.cat(parts) for parts in zip(*found, strict=True))
        return losses, hits

    def _blocks(self, *tensors: Tensor) -> Any:
        size = block_rows(self.rows, tensors[0].device)
        return zip(*(torch.split(x, size) for x in tensors), strict=True) if len(tensors[0]) else ()

    def _normalizer(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Largest logit, log sum of exponentials, mean logit of the target distribution: (rows, V / n) -> (rows,)."""
        largest = self.each(logits.amax(-1)).amax(0)
        place, inside = self._places(target)
        wanted = logits.gather(-1, place[:, None])[:, 0] * inside
        if smoothing:
            wanted = (1 - smoothing) * wanted + smoothing / self.vocab * logits.sum(-1)
        sums = self.devices.total(torch.stack([(logits - largest[:, None]).exp().sum(-1), wanted]))
        return largest, largest + sums[0].log(), sums[1]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, divided: DividedVocabulary) -> Tensor:
        ctx.divided = divided
        whole = own.new_zeros(*own.shape[:-1], divided.vocab)
        whole[..., divided.start : divided.start + divided.rows] = own
        return divided.devices.total(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        first = ctx.divided.start
        return gradients[0][..., first : first + ctx.divided.rows], None


class _DividedCrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies, by blocks of rows; gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None,
        divided: DividedVocabulary,
        z_loss: float,
        smoothing: float,
        logit_map: LogitMap | None,
    ) -> Tensor:
        wide, matrix = precise(hidden.dtype), in_dtype(weight, hidden.dtype)
        total, learns = hidden.new_zeros((), dtype=wide), hidden.requires_grad or weight.requires_grad
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=precise(weight.dtype))
        start = 0
        scales = torch.ones_like(targets, dtype=wide) if row_weights is None else row_weights.to(wide)
        for block, target, scale in divided._blocks(hidden, targets, scales):
            logits = (block @ matrix.T).to(wide)
            if logit_map is not None:
                products, mapped, logits = mapped_logits(logits, logit_map)
            _, log_z, wanted = divided._normalizer(logits, target, smoothing)
            losses = log_z - wanted + z_loss * log_z.square() if z_loss else log_z - wanted
            total += (losses * scale).sum()
            if learns:
                probs = (logits - log_z[:, None]).exp_()
                if z_loss:
                    probs.mul_(1 + 2 * z_loss * log_z[:, None])
                if smoothing:
                    probs.sub_(smoothing / divided.vocab)
                place, inside = divided._places(target)
                probs.scatter_add_(-1, place[:, None], (inside.to(wide) * (smoothing - 1.0))[:, None])
                d_logits = probs.mul_(scale[:, None])
                if logit_map is not None:
                    (d_logits,) = torch.autograd.grad(mapped, products, d_logits)
                d_logits = d_logits.to(hidden.dtype)
                torch.mm(d_logits, matrix, out=d_hidden[start : start + len(block)])
                add_product(d_weight, d_logits, block, first=start == 0)
            start += len(block)
        # Each device has the gradient through its own logits.
        ctx.save_for_backward(divided.devices.total(d_hidden) if learns else d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            d_hidden * grad.to(d_hidden.dtype),
            d_weight * grad.to(d_weight.dtype),
            None,
            None,
            None,
            None,
            None,
            None,
        )
