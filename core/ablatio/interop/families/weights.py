"""Weights by another name: each tensor of theirs is made of one or several of ours, and taken apart again.

All of it is renaming, transposing, joining and permuting: what maps weights maps their gradients as well.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ablatio.errors import UserError

Join = Callable[[Sequence[Tensor]], Tensor]
Split = Callable[[Tensor, int], Sequence[Tensor]]
ATTENTION = ("q_proj", "k_proj", "v_proj")


def one(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def alone(tensor: Tensor, count: int) -> Sequence[Tensor]:
    return [tensor]


def turned(tensors: Sequence[Tensor]) -> Tensor:
    """Rows below one another, then transposed: the Conv1D of GPT-2.  Biases are vectors and stay."""
    joined = torch.cat([*tensors])
    return joined.T.contiguous() if joined.dim() == 2 else joined


def turned_back(tensor: Tensor, count: int) -> Sequence[Tensor]:
    return (tensor.T.contiguous() if tensor.dim() == 2 else tensor).chunk(count)


def by_head(d_head: int) -> tuple[Join, Split]:
    """Query, key and value rows of a head side by side: (H, 3, d_head), as BLOOM and GPT-NeoX keep them."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([_heads(t, d_head) for t in tensors], dim=1).flatten(0, 2)

    def split(tensor: Tensor, count: int) -> Sequence[Tensor]:
        return [t.flatten(0, 1) for t in tensor.reshape(-1, count, d_head, *tensor.shape[1:]).unbind(1)]

    return join, split


def _heads(tensor: Tensor, d_head: int) -> Tensor:
    """(H * d_head, ...) -> (H, d_head, ...)."""
    return tensor.reshape(-1, d_head, *tensor.shape[1:])


def shifted(rows: int) -> tuple[Join, Split]:
    """A table that begins with rows which nothing reads."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensors[0].new_zeros(rows, tensors[0].shape[1]), tensors[0]])

    def split(tensor: Tensor, count: int) -> Sequence[Tensor]:
        return [tensor[rows:]]

    return join, split


@dataclass(frozen=True, slots=True)
class Module:
    """The weight and bias of a module of theirs; `#` in the names stands for the number of the layer."""

    ours: tuple[str, ...] | str
    theirs: str
    join: Join = one
    split: Split = alone

    def numbered(self, depth: int) -> Iterable["Module"]:
        if "#" not in self.theirs:
            return [self]
        return (
            Module(tuple(n.replace("#", str(i)) for n in self.names), self.theirs.replace("#", str(i)), *self._how)
            for i in range(depth)
        )

    @property
    def names(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def _how(self) -> tuple[Join, Split]:
        return self.join, self.split


def to_theirs(tensors: Mapping[str, Tensor], modules: Iterable[Module]) -> dict[str, Tensor]:
    """Our tensors under their names.  UserError when one of ours has no place."""
    left, found = dict(tensors), dict[str, Tensor]()
    for module in modules:
        for kind in ("weight", "bias"):
            names = [f"{name}.{kind}" for name in module.names]
            if names[0] in left:
                found[f"{module.theirs}.{kind}"] = module.join([left.pop(name) for name in names])
    if left:
        raise UserError(f"{next(iter(left))} has no place in the other model ({len(left)} tensors are left over)")
    return found


def to_ours(tensors: Mapping[str, Tensor], modules: Iterable[Module]) -> dict[str, Tensor]:
    """Their tensors under our names.  UserError when one of theirs has no place."""
    left, found = dict(tensors), dict[str, Tensor]()
    for module in modules:
        for kind in ("weight", "bias"):
            tensor = left.pop(f"{module.theirs}.{kind}", None)
            if tensor is not None:
                parts = module.split(tensor, len(module.names))
                found |= {f"{name}.{kind}": part for name, part in zip(module.names, parts, strict=True)}
    if left:
        raise UserError(f"{next(iter(left))} has no place in our model ({len(left)} tensors are left over)")
    return found


def turned_by_halves(
    tensors: Mapping[str, Tensor], d_head: int, width: int, *, back: bool = False
) -> dict[str, Tensor]:
    """rope's pairs (2i, 2i+1) of each head moved to (i, i + width/2), in the rows of q_proj and k_proj; or back."""
    order = torch.arange(width).view(-1, 2).T.flatten()  # 0 2 4 ... 1 3 5 ...
    order = torch.cat([order.argsort() if back else order, torch.arange(width, d_head)])

    def moved(tensor: Tensor) -> Tensor:
        return _heads(tensor, d_head)[:, order.to(tensor.device)].flatten(0, 1)

    rows = (".q_proj.", ".k_proj.")
    return {name: moved(t) if any(r in name for r in rows) else t for name, t in tensors.items()}


def scaled(tensors: Mapping[str, Tensor], logits: float, attention: float) -> dict[str, Tensor]:
    """Factors of the logits and of q k^T moved into the last norm's gain and q_proj, where theirs has other ones."""

    def factor(name: str) -> float:
        if name.startswith("model.norm."):
            return logits
        return attention if ".q_proj." in name else 1.0

    return {name: t if factor(name) == 1.0 else t * factor(name) for name, t in tensors.items()}
