"""Plain tensors that stand in for sharded parameters, so that an optimizer sees what it sees on one device.

An update of single entries works on this rank's rows of each parameter.  An update that needs whole tensors is made by
the owner of a tensor, one rank: it gets all rows of weight and gradient, and returns the rows of the updated weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ablatio.model.ranks import Ranks


def own_rows(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, in the same storage; a plain tensor is its own."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


class StandIns:
    """Stand-ins of sharded parameters, in the order of `parameters`; `whole`: their owners hold them whole.

    host  they are copies in the memory of the host, where the optimizer updates them and keeps its state

    A tensor of which this rank holds nothing is a tensor on the meta device without a gradient, which optimizers skip.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks, *, whole: bool, host: bool) -> None:
        self.parameters, self.ranks, self.whole, self.host = list(parameters), ranks, whole, host
        self.owners = balanced([p.numel() for p in parameters], ranks.world) if whole else []
        self.tensors = [self._made(i, p) for i, p in enumerate(self.parameters)]

    def _made(self, index: int, parameter: nn.Parameter) -> nn.Parameter:
        rows = own_rows(parameter)
        if not self._holds(index):
            content = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        elif self.whole or self.host:
            shape = parameter.shape if self.whole else rows.shape
            # Pages that the system does not move, so that copies from and to a GPU are fast.
            pinned = self.host and rows.device.type != "cpu"
            content = torch.empty(shape, dtype=parameter.dtype, device=self.device_of(rows), pin_memory=pinned)
        else:
            content = rows
        made: Any = nn.Parameter(content)
        made.stands_for = parameter
        return made  # type: ignore[no-any-return]

    def device_of(self, rows: Tensor) -> torch.device:
        """Where the optimizer has the stand-in, and its state, of a parameter with these rows."""
        return torch.device("cpu") if self.host else rows.device

    def _holds(self, index: int) -> bool:
        """True if this rank updates something of the parameter."""
        if self.whole:
            return self.owners[index] == self.ranks.rank
        return own_rows(self.parameters[index]).numel() > 0

    def take_weights(self) -> None:
        """Fill the stand-ins with the weights."""
        if self.whole:
            for i, weight in self._collected([own_rows(p) for p in self.parameters], range(len(self.parameters))):
                self.tensors[i].data.copy_(weight)
        else:
            for i, p in enumerate(self.parameters):
                if self._holds(i) and self.host:
                    self.tensors[i].data.copy_(own_rows(p))
                elif self._holds(i):
                    self.tensors[i].data = own_rows(p)

    def take_gradients(self) -> None:
        """Fill the gradients of the stand-ins."""
        given = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        gradients = [own_rows(self.parameters[i].grad) for i in given]  # type: ignore[arg-type]
        pairs = self._collected(gradients, given) if self.whole else list(zip(given, gradients, strict=True))
        for i, gradient in pairs:
            if self._holds(i):
                self.tensors[i].grad = gradient.to(self.tensors[i].device)

    def give_weights(self) -> None:
        """Write the updated weights into the parameters, unless the two are the same memory."""
        if not self.whole:
            for i, p in enumerate(self.parameters) if self.host else ():
                if self._holds(i):
                    own_rows(p).copy_(self.tensors[i])
            return
        world, rows = self.ranks.world, [self._rows_by_rank(p) for p in self.parameters]
        owned = [i for i, owner in enumerate(self.owners) if owner == self.ranks.rank]
        locals_ = [own_rows(p) for p in self.parameters]
        updated = {i: self.tensors[i].detach().to(locals_[i].device).split(rows[i]) for i in owned}
        pieces = [[updated[i][r].flatten() for i in owned] for r in range(world)]
        sizes = [sum(locals_[i].numel() for i, owner in enumerate(self.owners) if owner == r) for r in range(world)]
        received = _exchanged(pieces, sizes, locals_[0])
        for r, flat in enumerate(received):
            mine = [locals_[i] for i, owner in enumerate(self.owners) if owner == r]
            for local, piece in zip(mine, flat.split([x.numel() for x in mine]), strict=True):
                local.copy_(piece.view_as(local))

    def _collected(self, locals_: Sequence[Tensor], index: Sequence[int]) -> list[tuple[int, Tensor]]:
        """Send the rows of each tensor to its owner; returns (parameter number, whole tensor) of those of this rank."""
        world = self.ranks.world
        pieces = [
            [x.flatten() for i, x in zip(index, locals_, strict=True) if self.owners[i] == r] for r in range(world)
        ]
        mine = [i for i in index if self.owners[i] == self.ranks.rank]
        rows = {i: self._rows_by_rank(self.parameters[i]) for i in mine}
        width = {i: self.parameters[i].numel() // self.parameters[i].shape[0] for i in mine}
        sizes = [sum(rows[i][r] * width[i] for i in mine) for r in range(world)]
        received = [
            flat.split([rows[i][r] * width[i] for i in mine]) if mine else ()
            for r, flat in enumerate(_exchanged(pieces, sizes, locals_[0] if locals_ else torch.empty(0)))
        ]
        return [
            (i, torch.cat([part[place] for part in received]).view(self.parameters[i].shape))
            for place, i in enumerate(mine)
        ]

    def _rows_by_rank(self, parameter: nn.Parameter) -> list[int]:
        """Rows of a parameter that each rank holds; a parameter that is not sharded belongs to its owner."""
        return rows_by_rank(parameter.shape[0], self.ranks.world)


def rows_by_rank(count: int, world: int) -> list[int]:
    """Rows of each rank, as torch.chunk divides them: rounded up, so that the last ranks may have fewer or none."""
    size = -(-count // world)
    return [max(0, min(count, (r + 1) * size) - r * size) for r in range(world)]


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
