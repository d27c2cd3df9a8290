"""Plain tensors that stand in for divided parameters, so that an optimizer sees what it sees on one device.

An update of single entries works on this rank's part of each parameter.  An update that needs whole tensors is made by
the owner of a tensor, one rank: it gets all parts of weight and gradient, and returns those of the updated weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ablatio.model.ranks import Ranks

Box = tuple[slice, ...]  # a part of a tensor: a range along each axis


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a divided tensor, in the same storage; a plain tensor is its own."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


class StandIns:
    """Stand-ins of divided parameters, in the order of `parameters`; `whole`: their owners hold them whole.

    host  they are copies in the memory of the host, where the optimizer updates them and keeps its state

    A tensor of which this rank holds nothing is a tensor on the meta device without a gradient, which optimizers skip.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks, *, whole: bool, host: bool) -> None:
        self.parameters, self.ranks, self.whole, self.host = list(parameters), ranks, whole, host
        self.owners = balanced([p.numel() for p in parameters], ranks.world) if whole else []
        self.boxes = boxes_of(self.parameters, ranks.world) if whole else []
        self.senders = [senders(box, owner) for box, owner in zip(self.boxes, self.owners, strict=True)]
        self.tensors = [self._made(i, p) for i, p in enumerate(self.parameters)]

    def _made(self, index: int, parameter: nn.Parameter) -> nn.Parameter:
        part = own_part(parameter)
        if not self._holds(index):
            content = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        elif self.whole or self.host:
            shape = parameter.shape if self.whole else part.shape
            # Pages that the system does not move, so that copies from and to a GPU are fast.
            pinned = self.host and part.device.type != "cpu"
            content = torch.empty(shape, dtype=parameter.dtype, device=self.device_of(part), pin_memory=pinned)
        else:
            content = part
        made: Any = nn.Parameter(content)
        made.stands_for = parameter
        return made  # type: ignore[no-any-return]

    def device_of(self, part: Tensor) -> torch.device:
        """Where the optimizer has the stand-in, and its state, of a parameter with this part."""
        return torch.device("cpu") if self.host else part.device

    def _holds(self, index: int) -> bool:
        """True if this rank updates something of the parameter."""
        if self.whole:
            return self.owners[index] == self.ranks.rank
        return own_part(self.parameters[index]).numel() > 0

    def take_weights(self) -> None:
        """Fill the stand-ins with the weights."""
        if self.whole:
            for i, weight in self._collected([own_part(p) for p in self.parameters], range(len(self.parameters))):
                self.tensors[i].data.copy_(weight)
        else:
            for i, p in enumerate(self.parameters):
                if self._holds(i) and self.host:
                    self.tensors[i].data.copy_(own_part(p))
                elif self._holds(i):
                    self.tensors[i].data = own_part(p)

    def take_gradients(self) -> None:
        """Fill the gradients of the stand-ins."""
        given = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        gradients = [own_part(self.parameters[i].grad) for i in given]  # type: ignore[arg-type]
        pairs = self._collected(gradients, given) if self.whole else list(zip(given, gradients, strict=True))
        for i, gradient in pairs:
            if self._holds(i):
                self.tensors[i].grad = gradient.to(self.tensors[i].device)

    def give_weights(self) -> None:
        """Write the updated weights into the parameters, unless the two are the same memory."""
        if not self.whole:
            for i, p in enumerate(self.parameters) if self.host else ():
                if self._holds(i):
                    own_part(p).copy_(self.tensors[i])
            return
        owned = [i for i, owner in enumerate(self.owners) if owner == self.ranks.rank]
        parts = [own_part(p) for p in self.parameters]
        updated = {i: self.tensors[i].detach().to(parts[i].device) for i in owned}
        pieces = [[updated[i][self.boxes[i][r]].flatten() for i in owned] for r in range(self.ranks.world)]
        mine = [[x for x, owner in zip(parts, self.owners, strict=True) if owner == r] for r in range(self.ranks.world)]
        received = _exchanged(pieces, [sum(x.numel() for x in own) for own in mine], parts[0])
        for own, flat in zip(mine, received, strict=True):
            for part, piece in zip(own, flat.split([x.numel() for x in own]), strict=True):
                part.copy_(piece.view_as(part))

    def _collected(self, parts: Sequence[Tensor], index: Sequence[int]) -> list[tuple[int, Tensor]]:
        """Send the parts of each tensor to its owner; returns (parameter number, whole tensor) of this rank's."""
        world, rank = self.ranks.world, self.ranks.rank
        pieces: list[list[Tensor]] = [[] for _ in range(world)]
        for i, part in zip(index, parts, strict=True):
            if rank in self.senders[i]:
                pieces[self.owners[i]].append(part.flatten())
        mine = [i for i in index if self.owners[i] == rank]
        found = {i: parts[0].new_empty(self.parameters[i].shape) for i in mine}
        targets = [[found[i][self.boxes[i][r]] for i in mine if r in self.senders[i]] for r in range(world)]
        like = parts[0] if parts else torch.empty(0)
        received = _exchanged(pieces, [sum(t.numel() for t in own) for own in targets], like)
        for own, flat in zip(targets, received, strict=True):
            for target, piece in zip(own, flat.split([t.numel() for t in own]), strict=True):
                target.copy_(piece.view_as(target))
        return [*found.items()]


def boxes_of(parameters: Sequence[nn.Parameter], world: int) -> list[list[Box]]:
    """Part of each parameter that each rank holds, as [parameter][rank]; collective."""
    axes = max((p.dim() for p in parameters), default=0)
    if axes == 0:
        return []
    own = torch.zeros(len(parameters), axes, 2, dtype=torch.int64)
    for i, p in enumerate(parameters):
        assert isinstance(p, DTensor)
        shape, first = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
        own[i, : p.dim()] = torch.tensor([[a, a + n] for a, n in zip(first, shape, strict=True)])
    own = own.to(own_part(parameters[0]).device)
    found = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(found, own)
    ranges = torch.stack(found, dim=1).tolist()
    return [
        [tuple(slice(first, last) for first, last in of_rank[: p.dim()]) for of_rank in of_parameter]
        for p, of_parameter in zip(parameters, ranges, strict=True)
    ]


def senders(boxes: Sequence[Box], owner: int) -> set[int]:
    """Ranks that send their part of a tensor to its owner: of those with the same part, the one next to the owner."""
    nearest: dict[str, int] = {}
    for rank in sorted(range(len(boxes)), key=lambda rank: abs(rank - owner)):
        nearest.setdefault(str(boxes[rank]), rank)
    return {*nearest.values()}


def balanced(sizes: Sequence[int], world: int) -> list[int]:
    """Owner of each tensor: the largest first, each to the rank that has the least."""
    load, owners = [0] * world, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owners[i] = load.index(min(load))
        load[owners[i]] += sizes[i]
    return owners


def _exchanged(pieces: Sequence[Sequence[Tensor]], sizes: Sequence[int], like: Tensor) -> list[Tensor]:
    """Send pieces[r] to rank r; returns the flat tensor of `sizes[r]` entries that came from each rank r."""
    flat = [torch.cat([*parts]) if parts else like.new_empty(0) for parts in pieces]
    received = like.new_empty(sum(sizes))
    dist.all_to_all_single(received, torch.cat(flat), [*sizes], [x.numel() for x in flat])
    return list(received.split([*sizes]))
