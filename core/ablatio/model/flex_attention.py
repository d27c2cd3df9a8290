"""Attention by torch's FlexAttention (arXiv:2412.05496): masks, biases and bounds on scores inside one GPU kernel.

The kernel is compiled for a mask and a score that are functions of one pair (query, key).  It skips blocks of pairs
that the mask hides, stores no probability, and keeps scores in float32 whatever the dtype of queries and keys.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.number_format import compute_dtype

LEAST = 512  # tokens of a row: four blocks; compiling takes seconds, which shorter rows do not win back
BLOCK = 128  # queries, and keys, of a block: torch's default
NARROWEST = 16  # features of a head: torch's kernel has no smaller tiles
CAPABILITY = 8  # of the GPU (Ampere): earlier ones do not compute in bfloat16
DEVICES = ("cuda",)  # on a CPU torch has no backward pass for it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = 64  # compiled kernels of a process: beyond torch's 8, it would compute the whole matrix of scores

Pair = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row of the batch, head, query, key) -> one number


class _Setting:
    allowed = False


def allow(allowed: bool) -> None:
    """Let attention take FlexAttention where it serves, in this process from now on (`trainer.flex_attention`)."""
    _Setting.allowed = allowed


def expected(device: torch.device, length: int) -> bool:
    """True if rows of `length` tokens on this device are long enough for it, and it is allowed."""
    return _Setting.allowed and length >= LEAST and device.type in DEVICES and _compiles(device)


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True if it computes queries, keys and values of these shapes and dtypes on this device, and is expected to gain.

    Not in layers that torch.compile compiles: their kernels compute the masked form.
    """
    if torch.compiler.is_compiling():
        return False
    fits = q.shape[2] == k.shape[2] and min(q.shape[-1], v.shape[-1]) >= NARROWEST
    known = compute_dtype(q.device, v.dtype) in DTYPES
    return fits and known and expected(q.device, q.shape[2])


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    bias: Pair | None = None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute softmax(c tanh(q k^T * scale / c) + bias) v over the pairs of `mask`, as `kernels.attend` does.

    q (B, H, T, d); k, v (B, H_kv, S, d), v of another width if need be  -> (B, H, T, width of v)
    mask     BlockMask of `block_mask`; None: every pair is visible
    bias     of a pair, in float32 or wider; without a gradient
    scale    default 1 / sqrt(d)
    softcap  c; 0: no bound
    sinks    (H,): per head, the logit of an additional key with value zero
    """
    from torch.nn.attention.flex_attention import AuxRequest

    dtype = compute_dtype(q.device, v.dtype)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    # A tensor, because each number in the code of a kernel makes another kernel: a schedule may change it.
    cap = torch.full((), softcap, dtype=torch.promote_types(dtype, torch.float32), device=q.device)
    settings = {"score_mod": _score(cap if softcap else None, bias), "block_mask": mask, "scale": scale}
    attend = functools.partial(_kernel(), q, k, v, enable_gqa=q.shape[1] != k.shape[1], **settings)
    out: Tensor
    if sinks is None:
        out = attend()
    else:
        out, stored = attend(return_aux=AuxRequest(lse=True))
        # exp(lse) / (exp(lse) + exp(sink)) of the probability is the keys'.
        out = out * (stored.lse - sinks.to(stored.lse.dtype)[:, None]).sigmoid()[..., None]
    return out.to(dtype)


def _score(cap: Tensor | None, bias: Pair | None) -> Any:
    """Function (score, row, head, query, key) -> score with bound and bias; None if there is neither."""
    if cap is None:
        return None if bias is None else lambda score, b, h, i, j: score + bias(b, h, i, j)
    bound: Tensor = cap
    if bias is None:
        return lambda score, b, h, i, j: bound * torch.tanh(score / bound)
    added: Pair = bias
    return lambda score, b, h, i, j: bound * torch.tanh(score / bound) + added(b, h, i, j)


def dense_pair(values: Tensor) -> Pair:
    """The entry of a pair in a tensor (T, S), (H or 1, T, S) or (B or 1, H or 1, T, S)."""
    values = values[(None,) * (4 - values.dim())]
    rows, heads = (int(size > 1) for size in values.shape[:2])
    return lambda b, h, i, j: values[b * rows, h * heads, i, j]


def positions_pair(of: Callable[[Tensor, Tensor, Tensor], Tensor], q_pos: Tensor, k_pos: Tensor) -> Pair:
    """The bias `of` (head, query position, key position) for positions (T,), (S,) or (B, T), (B, S)."""
    rows = int(q_pos.dim() > 1)
    q_pos, k_pos = (p if rows else p[None] for p in (q_pos, k_pos))
    return lambda b, h, i, j: of(h, q_pos[b * rows, i], k_pos[b * rows, j])


class _Blocks(NamedTuple):
    """Blocks of keys by block of queries, those to compute first: (rows, 1, blocks), (rows, 1, blocks, blocks)."""

    number: Tensor
    order: Tensor

    @classmethod
    def of(cls, wanted: Tensor) -> "_Blocks":
        order = wanted.int().argsort(dim=-1, descending=True, stable=True)
        return cls(wanted.sum(-1, dtype=torch.int32), order.int())


def block_mask(visible: Tensor) -> Any:
    """Return torch's BlockMask of a mask (T, S) or (B, 1, T, S), True where a query may attend.

    It lists which blocks are seen whole and which in part; only the latter read the mask.  The host reads no value.
    """
    from torch.nn.attention.flex_attention import BlockMask

    visible = visible[(None,) * (4 - visible.dim())]
    length, keys = visible.shape[-2:]
    padded = F.pad(visible, (0, -keys % BLOCK, 0, -length % BLOCK))
    queries, columns = padded.shape[2] // BLOCK, padded.shape[3] // BLOCK
    seen = padded.view(len(padded), 1, queries, BLOCK, columns, BLOCK).sum((3, 5))  # pairs of each block
    whole = seen == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_Blocks.of((seen > 0) & ~whole), *_Blocks.of(whole),
        BLOCK_SIZE=BLOCK, mask_mod=dense_pair(visible), seq_lengths=(length, keys),
    )  # fmt: skip


@functools.cache
def _kernel() -> Any:
    """torch's function, compiled; the first call of a process imports the compiler."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention as uncompiled

    config.recompile_limit = max(config.recompile_limit, KERNELS)
    return torch.compile(uncompiled, dynamic=False)


@functools.cache
def _compiles(device: torch.device) -> bool:
    """True if kernels can be compiled for the device."""
    if device.type != "cuda":
        return True
    from torch.utils._triton import has_triton

    return bool(has_triton()) and torch.cuda.get_device_capability(device)[0] >= CAPABILITY
