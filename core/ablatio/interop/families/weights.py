"""Correspondence of weights between ablatio models and transformers classes, in both directions.

A tensor of a transformers class is made of one or several of ablatio's. Only renaming, transposing, concatenating and
permuting is involved, so the same functions map gradients, too.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.config.from_transformers import HINT
from ablatio.errors import UserError

Join = Callable[[Sequence[Tensor]], Tensor]
Split = Callable[[Tensor, int], Sequence[Tensor]]
ATTENTION = ("q_proj", "k_proj", "v_proj")


def only_tensor(tensors: Sequence[Tensor]) -> Tensor:
    """Return the single tensor (a `Join`)."""
    return tensors[0]


def as_list(tensor: Tensor, count: int) -> Sequence[Tensor]:
    """Return the tensor in a list (a `Split`)."""
    return [tensor]


def join_transposed(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the rows and transpose, as in GPT-2's Conv1D; biases are only concatenated."""
    joined = torch.cat([*tensors])
    return joined.T.contiguous() if joined.dim() == 2 else joined


def split_transposed(tensor: Tensor, count: int) -> Sequence[Tensor]:
    """Undo `join_transposed`."""
    return (tensor.T.contiguous() if tensor.dim() == 2 else tensor).chunk(count)


def fused_by_head(d_head: int) -> tuple[Join, Split]:
    """Return join and split for matrices with rows ordered (H, 3, d_head), as in BLOOM and GPT-NeoX.

    The rows of a head's query, key and value follow one another.
    """

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([_heads(t, d_head) for t in tensors], dim=1).flatten(0, 2)

    def split(tensor: Tensor, count: int) -> Sequence[Tensor]:
        return [t.flatten(0, 1) for t in tensor.reshape(-1, count, d_head, *tensor.shape[1:]).unbind(1)]

    return join, split


def _heads(tensor: Tensor, d_head: int) -> Tensor:
    """Split the rows into heads: (H * d_head, ...) -> (H, d_head, ...)."""
    return tensor.reshape(-1, d_head, *tensor.shape[1:])


def after_unused_rows(rows: int) -> tuple[Join, Split]:
    """Return join and split for a table that starts with `rows` unused rows."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensors[0].new_zeros(rows, tensors[0].shape[1]), tensors[0]])

    def split(tensor: Tensor, count: int) -> Sequence[Tensor]:
        return [tensor[rows:]]

    return join, split


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Correspondence of weight and bias between modules; `#` in the names stands for the layer number.

    ours    path of the ablatio module, or of several that are joined
    native  path of the module in the transformers class
    """

    ours: tuple[str, ...] | str
    native: str
    join: Join = only_tensor
    split: Split = as_list

    def for_layers(self, depth: int) -> Iterable["WeightMap"]:
        """Replace `#` by each layer number from 0 to depth - 1."""
        if "#" not in self.native:
            return [self]
        return (
            WeightMap(tuple(n.replace("#", str(i)) for n in self.names), self.native.replace("#", str(i)), *self._how)
            for i in range(depth)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the ablatio modules."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def _how(self) -> tuple[Join, Split]:
        return self.join, self.split


def to_native_weights(tensors: Mapping[str, Tensor], modules: Iterable[WeightMap]) -> dict[str, Tensor]:
    """Convert ablatio's tensors to those of the transformers class. Raises UserError if a tensor has no counterpart."""
    left, found = dict(tensors), dict[str, Tensor]()
    for module in modules:
        for kind in ("weight", "bias"):
            names = [f"{name}.{kind}" for name in module.names]
            if names[0] in left:
                found[f"{module.native}.{kind}"] = module.join([left.pop(name) for name in names])
    if left:
        raise UserError(
            f"{next(iter(left))} has no counterpart in the transformers class ({len(left)} such tensors)\n"
            "    try: --as ablatio"
        )
    return found


# Constants that older versions of transformers stored beside the weights: masks and the frequencies of RoPE.
CONSTANT = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")


def to_own_weights(tensors: Mapping[str, Tensor], modules: Iterable[WeightMap]) -> dict[str, Tensor]:
    """Convert tensors of the transformers class to ablatio's. Raises UserError if a tensor has no counterpart."""
    left, found = {n: t for n, t in tensors.items() if not CONSTANT.search(n)}, dict[str, Tensor]()
    for module in modules:
        for kind in ("weight", "bias"):
            tensor = left.pop(f"{module.native}.{kind}", None)
            if tensor is not None:
                parts = module.split(tensor, len(module.names))
                found |= {f"{name}.{kind}": part for name, part in zip(module.names, parts, strict=True)}
    if left:
        names = ", ".join(list(left)[:4])
        raise UserError(f"{names} has no counterpart in ablatio's model ({len(left)} such tensors){HINT}")
    return found


def permute_rope_pairs(
    tensors: Mapping[str, Tensor], d_head: int, width: int, *, back: bool = False
) -> dict[str, Tensor]:
    """Move RoPE's pairs (2i, 2i+1) of each head to (i, i + width/2), in the rows of q_proj and k_proj; or back.

    The gains of the norms of queries and keys, (d_head,), move with them.
    """
    order = torch.arange(width).view(-1, 2).T.flatten()  # 0 2 4 ... 1 3 5 ...
    order = torch.cat([order.argsort() if back else order, torch.arange(width, d_head)])  # the rest is not rotated

    def moved(tensor: Tensor) -> Tensor:
        return _heads(tensor, d_head)[:, order.to(tensor.device)].flatten(0, 1)

    rows = (".q_proj.", ".k_proj.", ".q_norm.", ".k_norm.")
    return {name: moved(t) if any(r in name for r in rows) else t for name, t in tensors.items()}


def rescaled_weights(tensors: Mapping[str, Tensor], logits: float, attention: float, queries: str) -> dict[str, Tensor]:
    """Multiply the gain of the final norm by the factor on the logits, and `queries` by the factor on q k^T.

    queries  module of an attention: q_proj, or q_norm, which would undo a factor on q_proj
    """

    def factor(name: str) -> float:
        # The head itself may be tied to the embedding, which has no such factor.
        if name.startswith("model.norm."):
            return logits
        return attention if f".{queries}." in name else 1.0

    return {name: t if factor(name) == 1.0 else t * factor(name) for name, t in tensors.items()}
