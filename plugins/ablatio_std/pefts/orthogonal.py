"""Orthogonal transformations of a layer's input: W R with R orthogonal keeps the angles between neurons."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, pefts
from ablatio.errors import UserError
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, widths
from ablatio_std.pefts._common import QUERY_VALUE, Rank, ToPeft, renamed, to_peft

Block = Annotated[int, Positive, "size of the rotated blocks; a divisor of the layer's input width"]


def cayley(skew: Tensor) -> Tensor:
    """(I - S) (I + S)^-1: orthogonal for skew-symmetric S, exactly I for S = 0.  (..., b, b) -> same."""
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    # I + S is never singular for a skew S, whose eigenvalues are imaginary; solve is more exact than an inverse.
    return torch.linalg.solve(eye + skew, eye - skew, left=False)


def blocks_of(width: int, size: int) -> int:
    """Return the number of blocks of `size` in `width` features; raise UserError if `size` is no divisor."""
    if width % size:
        raise UserError(f"peft.block={size} does not divide the input width {width} of a layer\n    try: peft.block=2")
    return width // size


class BlockRotation(MatrixAdapter):
    """W R^T, R = diag(R_1, ..., R_n), R_i = cayley(S_i); the parameters are the entries above the diagonals of S_i."""

    def __init__(self, width: int, size: int, shared: bool) -> None:
        super().__init__()
        self.size, self.count = size, blocks_of(width, size)
        self.register_buffer("above", torch.triu_indices(size, size, 1), persistent=False)
        self.oft_R = nn.Parameter(torch.zeros(1 if shared else self.count, size * (size - 1) // 2))

    def matrix(self, weight: Tensor) -> Tensor:
        upper = self.oft_R.new_zeros(len(self.oft_R), self.size, self.size)
        upper[:, self.above[0], self.above[1]] = self.oft_R
        rotations = cayley(upper - upper.mT)  # (n or 1, b, b)
        return (weight.unflatten(1, (self.count, 1, self.size)) @ rotations.mT).flatten(1)


@pefts.register("oft", paper="arXiv:2306.07280")
class OFT(LayerPeft):
    """y = W R^T x, R block-diagonal and orthogonal: R_i = (I - S_i) (I + S_i)^-1, S_i = -S_i^T, initially 0."""

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        block: Block = 8,
        shared: Annotated[bool, "use one R_i for all blocks of a layer"] = False,
    ) -> None:
        super().__init__(targets)
        self.block, self.shared = block, shared

    def adapter(self, layer: Any, path: str) -> BlockRotation:
        return BlockRotation(widths(layer)[1], self.block, self.shared)

    def to_peft(self, model: nn.Module) -> ToPeft:
        config = {"oft_block_size": self.block, "r": 0, "block_share": self.shared, "use_cayley_neumann": False}
        return to_peft("OFT", renamed(model, {"oft_R.weight": "oft_R"}), set(), **config)


class Butterfly(MatrixAdapter):
    """diag(s) W R^T, R a product of block-diagonal rotations on permuted features, each with twice the stride."""

    def __init__(self, out: int, width: int, size: int, factors: int) -> None:
        super().__init__()
        self.size, self.count = size, blocks_of(width, size)
        if factors > 1 and (size % 2 or self.count % 2 ** (factors - 1)):
            raise UserError(
                f"peft.factors={factors} butterfly factors need blocks of even size, and a number of blocks divisible "
                f"by 2^{factors - 1}: a layer has {self.count} blocks of {size}\n    try: peft.factors=1"
            )
        self.boft_R = nn.Parameter(torch.zeros(factors, self.count, size, size))
        self.boft_s = nn.Parameter(torch.ones(out, 1))

    def matrix(self, weight: Tensor) -> Tensor:
        # (B - B^T) / 2 of a full matrix, as in peft, so that tensors can be exchanged.
        rotations = cayley((self.boft_R - self.boft_R.mT) / 2)  # (m, n, b, b)
        # W R^T = W R_1^T ... R_m^T from the left: the last factor of R acts on x last.
        for level, rotation in reversed(list(enumerate(rotations))):
            # Level i joins half-blocks whose indices differ in bit i only; level 0 uses the blocks as they are.
            shape = (-1, 2, 2**level, self.size // 2) if level else (-1, 1, 1, self.size)
            blocks = weight.unflatten(1, shape).transpose(2, 3)  # (out, outer, 2^i, 2, b / 2)
            rotated = blocks.reshape(len(weight), self.count, 1, self.size) @ rotation.mT
            weight = rotated.view(blocks.shape).transpose(2, 3).flatten(1)
        return self.boft_s * weight


@pefts.register("boft", paper="arXiv:2311.06243")
class BOFT(LayerPeft):
    """y = diag(s) W R^T x, R = R_m ... R_1 butterfly factors: block-diagonal rotations of permuted features."""

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        block: Block = 8,
        factors: Annotated[int, Positive, "number m of factors; 1: one block-diagonal rotation"] = 1,
    ) -> None:
        super().__init__(targets)
        self.block, self.factors = block, factors

    def adapter(self, layer: Any, path: str) -> Butterfly:
        return Butterfly(*widths(layer), self.block, self.factors)

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export to peft; None for several factors, since peft orders their blocks differently."""
        if self.factors > 1:
            return None
        layers = renamed(model, {"boft_R": "boft_R", "boft_s": "boft_s"})
        return to_peft("BOFT", layers, {"boft_s"}, boft_block_size=self.block, boft_block_num=0)


class Reflections(MatrixAdapter):
    """W H_1 ... H_r with Householder reflections H_i = I - 2 u_i u_i^T / |u_i|^2."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        # Two equal reflections are the identity; an odd rank leaves one without a partner.
        half = torch.empty(width, (rank + 1) // 2)
        nn.init.kaiming_uniform_(half, a=5**0.5)
        self.hra_u = nn.Parameter(half.repeat_interleave(2, dim=1))

    def matrix(self, weight: Tensor) -> Tensor:
        for u in F.normalize(self.hra_u, dim=0).T:
            weight = weight - 2 * torch.outer(weight @ u, u)
        return weight


@pefts.register("hra", paper="arXiv:2405.17484")
class HRA(LayerPeft):
    """y = W H_1 ... H_r x, H_i = I - 2 u_i u_i^T / |u_i|^2: reflections, initialized in equal pairs that cancel.

    Two reflections by one vector give W up to rounding, so the initial model is not exactly the base.
    """

    exact = False

    def __init__(self, *, targets: Targets = QUERY_VALUE, rank: Rank = 8) -> None:
        super().__init__(targets)
        self.rank = rank

    def adapter(self, layer: Any, path: str) -> Reflections:
        return Reflections(widths(layer)[1], self.rank)

    def to_peft(self, model: nn.Module) -> ToPeft:
        return to_peft("HRA", renamed(model, {"hra_u": "hra_u"}), set(), r=self.rank)
