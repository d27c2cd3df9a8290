"""Safetensors files, hashed while they are written and verified while they are read.

The safetensors library's writer builds the whole file in memory before it can be hashed, its reader returns views of a
mapped file, and neither notices a flipped bit. The files written here can be read by any safetensors tool.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.errors import DamagedFile, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Dtypes that both torch and the safetensors format have: torch's name -> the format's name.
DTYPE_NAMES = {
    name: format_name
    for names, format_names in (
        ("float64 float32 float16 bfloat16 complex64 bool", "F64 F32 F16 BF16 C64 BOOL"),
        ("int64 int32 int16 int8 uint64 uint32 uint16 uint8", "I64 I32 I16 I8 U64 U32 U16 U8"),
        ("float8_e4m3fn float8_e5m2", "F8_E4M3 F8_E5M2"),
    )
    for name, format_name in zip(names.split(), format_names.split(), strict=True)
}
_MAX_HEADER = 100_000_000  # bytes; the limit of the format


def type_name(obj: Any) -> str:
    """Return the qualified name of the type of `obj`, without `builtins.`."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")


@functools.cache
def _dtypes() -> "dict[torch.dtype, str]":
    import torch

    return {getattr(torch, name): format_name for name, format_name in DTYPE_NAMES.items()}


def check_tensor(tensor: Any, where: str) -> None:
    """Raise UserError unless safetensors can store `tensor`: plain, dense, not on meta, with a dtype of the format."""
    import torch

    if not isinstance(where, str) or where == "__metadata__":
        raise UserError(f"A tensor cannot be called {where!r} in safetensors; use another string.")
    # The exact type: a subclass (DTensor, quantized) holds only a part or a code of its values in its memory.
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise UserError(
            f"{where}: a plain tensor was expected, not {type_name(tensor)}; gather or dequantize it first."
        )
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _dtypes():
        came = f"a {tensor.dtype} tensor with layout {tensor.layout} on {tensor.device}"
        raise UserError(f"{where}: {came} cannot be saved as safetensors; make it dense and load it first.")


def suspicious(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Leave out tensors of a GPU if all of them are finite, which is read from it once."""
    import torch

    away = {name: t for name, t in tensors.items() if t.device.type != "cpu"}
    by_device: dict[Any, list[Tensor]] = {}
    for tensor in away.values():
        by_device.setdefault(tensor.device, []).append(torch.isfinite(tensor.detach()).all())
    # One answer per device: each `bool` waits for the device, so asking for each tensor would cost hundreds of waits.
    finite = all(bool(torch.stack(flags).all()) for flags in by_device.values())
    return {name: t for name, t in tensors.items() if name not in away} if finite else dict(tensors)


def count_non_finite(tensor: "Tensor") -> int:
    """Count the NaN and infinite values; if there are none, this is one pass without a copy."""
    import torch

    tensor = tensor.detach()
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    if tensor.is_floating_point() and tensor.element_size() > 1:
        # A NaN makes both of them NaN, so two numbers tell of all values.
        low, high = torch.aminmax(tensor)
        if math.isfinite(low.item()) and math.isfinite(high.item()):
            return 0
    # torch has no isfinite for float8.
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return tensor.numel() - int(torch.isfinite(wide).sum().item())


def tensor_pieces(tensors: Mapping[str, "Tensor"]) -> tuple[Iterator[Any], dict[str, str]]:
    """Return the buffers of a safetensors file, in order, and {name: name it is stored under} in the input's order.

    Tied weights (the same memory under several names) are stored once. A tensor on another device or with another
    memory layout is copied only when its buffer is taken, so at most one such copy exists at a time.
    """
    first: dict[Any, str] = {}
    names = {}
    for name, tensor in tensors.items():
        # Shape and strides as well: a view of a tied weight starts at the same address, but is another tensor.
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        lazy = tensor.is_conj() or tensor.is_neg()  # shares memory with another tensor, but has other values
        # Empty tensors have no memory: all would have the address 0 and look tied.
        names[name] = first.setdefault(name if lazy or not tensor.numel() else memory, name)
    # The widest dtypes go first so that every tensor is aligned, as in files of the safetensors library.
    stored = sorted(set(names.values()), key=lambda name: (-tensors[name].element_size(), name))
    return _pieces({name: tensors[name] for name in stored}), names


def _pieces(tensors: Mapping[str, "Tensor"]) -> Iterator[Any]:
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {"dtype": _dtypes()[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces that JSON ignores: the data must start at a multiple of 8 bytes, for readers that map the file.
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def read_tensors(path: Path, record: Mapping[str, Any]) -> dict[str, "Tensor"]:
    """Read a safetensors file into tensors that own their memory and verify it against {sha256, bytes, names}.

    The file is read once; nothing is returned if the digest differs. Raises DamagedFile; OSErrors pass through.
    """
    import torch

    by_name = {name: dtype for dtype, name in _dtypes().items()}
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        # Before the header is believed: its shapes decide how much memory is taken.
        if size != record["bytes"]:
            raise DamagedFile(
                f"{path.name} has {size} bytes instead of {record['bytes']}: it was cut short or replaced."
            )
        try:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            text = file.read(length)
            hasher = hashlib.sha256(head + text)
            for name, dtype, shape in _entries(json.loads(text), size - 8 - length):
                tensors[name] = torch.empty(shape, dtype=by_name[dtype])
                _fill(tensors[name], file, hasher)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DamagedFile(f"{path.name} has no valid safetensors header ({error}).") from error
    if hasher.hexdigest() != record["sha256"]:
        raise DamagedFile(f"{path.name} does not match its digest: its content changed after it was written.")
    try:
        # Tied names get one tensor again, as they had before.
        return {name: tensors[stored] for name, stored in record["names"].items()}
    except KeyError as error:
        raise DamagedFile(f"{path.name} lacks the tensor {error}.") from error


def _entries(header: dict[str, Any], room: int) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, dtype and shape in file order; ValueError unless the tensors cover the data without gaps."""
    header.pop("__metadata__", None)
    widths = {name: dtype.itemsize for dtype, name in _dtypes().items()}
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        valid = all(type(n) is int and n >= 0 for n in (*shape, start, end)) and len(shape) <= 64
        valid = valid and math.prod(n for n in shape if n) < 1 << 60  # huge axes are refused beside an empty one, too
        if not valid or start != at or end > room or math.prod(shape) * widths[entry["dtype"]] != end - start:
            raise ValueError(f"{name!r}: {entry['dtype']} {shape} at bytes {start} to {end} of {room}"[:300])
        yield name, entry["dtype"], shape
        at = end
    if at != room:
        raise ValueError(f"{room - at} bytes belong to no tensor")


def _fill(tensor: "Tensor", file: Any, hasher: Any) -> None:
    import torch

    room = tensor.reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(room), 1 << 20):  # 1 MiB is hashed while it is still in the processor's cache
        piece = room[start : start + (1 << 20)]
        if file.readinto(piece) != len(piece):
            raise ValueError("the file ended early")
        hasher.update(piece)
