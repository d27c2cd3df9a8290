"""Nested state as plain JSON plus named tensors: no pickle, and data can never make the reader build an object.

JSON has no tuples, sets, bytes, NaN or integer keys; these are written as an object with one key that starts with `~`:
{"~tuple": [1, 2]}, {"~float": "nan"}, {"~dict": [[0, "a"]]}, {"~tensor": "state.optimizer.0.exp_avg"}.
"""

import base64
import json
import math
import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ablatio.errors import DamagedFile, UserError
from ablatio.storage.safetensors_io import DTYPE_NAMES, check_tensor, type_name

if TYPE_CHECKING:
    from torch import Tensor

# What Hydra (`_target_`), Lightning (`class_path`), TensorFlow-style builders and logging (`()`) take for a class.
BUILDER_KEYS = frozenset({"_target_", "class_path", "_builder_", "()"})
_MAX_DEPTH = 100
_NUMPY = re.compile(r"[<>|=]?[biufcmM]\d{1,2}(\[\w+\])?")


def refuse_builders(tree: Any, where: str) -> None:
    """Raise UserError, with the full path, if plain data has a key that makes a library build a Python object."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key in BUILDER_KEYS:
                raise UserError(
                    f"{where}.{key}: data never names Python objects to build, so the key {key!r} is refused.\n"
                    f"    try: remove {key!r} from {where} and choose the part by its registered name (`ablatio list`)"
                )
            refuse_builders(value, f"{where}.{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            refuse_builders(value, f"{where}.{index}")


def encode_state(obj: Any, where: str = "state") -> tuple[Any, dict[str, "Tensor"]]:
    """Encode `obj` as plain JSON; return it and the tensors in it, named by their key paths.

    Accepts dict, list, tuple, set, str, int, float (also nan and inf), bool, None, bytes, torch.dtype, torch.device,
    numpy scalars and arrays, and tensors. OrderedDict and defaultdict are read back as dict. Raises UserError, with
    the key, for anything else.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(obj, where, tensors, ()), tensors


def _encode(obj: Any, where: str, tensors: dict[str, "Tensor"], above: tuple[int, ...]) -> Any:
    # The exact type and not isinstance: np.float64 is a float, and an IntEnum an int, and would come back as another.
    kind = type(obj)
    if obj is None or kind in (bool, str):
        return obj
    if kind is int:
        # Many JSON readers keep 64 bits, and Python itself parses no decimal number beyond 4300 digits.
        return obj if obj.bit_length() < 64 else {"~int": hex(obj)}
    if kind is float:
        return obj if math.isfinite(obj) else {"~float": repr(obj)}
    if kind is bytes:
        return {"~bytes": base64.b64encode(obj).decode()}
    if kind not in (dict, OrderedDict, defaultdict, list, tuple, set):
        return _encode_array(obj, where, tensors)
    if id(obj) in above or len(above) == _MAX_DEPTH:
        raise UserError(f"{where}: contains itself or is nested deeper than {_MAX_DEPTH} levels; flatten it.")
    above = (*above, id(obj))
    if isinstance(obj, dict):
        return _encode_dict(obj, where, tensors, above)
    items = [_encode(item, f"{where}.{index}", tensors, above) for index, item in enumerate(obj)]
    if kind is set:
        return {"~set": sorted(items, key=json.dumps)}  # sorted: the bytes must not depend on Python's hash seed
    return items if kind is list else {"~tuple": items}


def _encode_dict(obj: dict[Any, Any], where: str, tensors: dict[str, "Tensor"], above: tuple[int, ...]) -> Any:
    pairs = []
    for key, value in obj.items():
        if type(key) not in (str, int, float, bool, bytes, tuple, type(None)):
            raise UserError(
                f"{where}: a key is {key!r} of type {type_name(key)}; keys are str, int, float, bytes or tuple."
            )
        refuse_builders({key: None}, where)
        inner = f"{where}.{key}"
        pairs.append([_encode(key, inner, tensors, above), _encode(value, inner, tensors, above)])
    # Keys like our own tags are kept as pairs, or reading would take them for a tag.
    if all(type(key) is str and not key.startswith("~") for key in obj):
        return dict(pairs)
    return {"~dict": pairs}


def _encode_array(obj: Any, where: str, tensors: dict[str, "Tensor"]) -> Any:
    import numpy as np
    import torch

    if isinstance(obj, torch.dtype):
        return {"~dtype": str(obj)}
    if isinstance(obj, torch.device):
        return {"~device": str(obj)}
    # Numbers and times only: an object dtype ("O") would be a pickle.
    if isinstance(obj, np.generic) and _NUMPY.fullmatch(obj.dtype.str):
        return {"~numpy": [obj.dtype.str, obj.tobytes().hex()]}
    tag, tensor = "~tensor", obj
    if type(obj) is np.ndarray and obj.dtype.name in DTYPE_NAMES:
        tag, tensor = "~array", torch.from_numpy(np.array(obj, dtype=obj.dtype.name, order="C"))
    if not isinstance(tensor, torch.Tensor):
        raise UserError(
            f"{where}: {type_name(obj)} cannot be saved; state holds dict, list, tuple, set, str, numbers, bytes, "
            f"None, dtype, device and tensors.\n    try: save what rebuilds it, for example its state_dict() or str()"
        )
    check_tensor(tensor, where)
    name = where
    while name in tensors:  # {"a.b": x} and {"a": {"b": y}} give the same path
        name += "'"
    tensors[name] = tensor
    return {tag: name}


def decode_state(obj: Any, tensors: Mapping[str, "Tensor"], where: str = "state") -> Any:
    """Decode what `encode_state` returned. Raises UserError at a key that builds objects, DamagedFile if malformed."""
    try:
        return _decode(obj, tensors, where)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedFile(
            f"{where}: this is not state that ablatio has written ({type(error).__name__}: {error})."
        ) from error


def _decode(obj: Any, tensors: Mapping[str, "Tensor"], where: str) -> Any:
    if isinstance(obj, list):
        return [_decode(item, tensors, f"{where}.{index}") for index, item in enumerate(obj)]
    if not isinstance(obj, dict):
        return obj
    tag = next(iter(obj), "")
    if tag == "~dict":
        pairs = [(_decode(key, tensors, where), value) for key, value in obj[tag]]
    elif tag.startswith("~") and len(obj) == 1:
        return _decode_tag(tag, obj[tag], tensors, where)
    else:
        pairs = list(obj.items())
    refuse_builders({key: None for key, _ in pairs}, where)
    return {key: _decode(value, tensors, f"{where}.{key}") for key, value in pairs}


def _decode_tag(tag: str, value: Any, tensors: Mapping[str, "Tensor"], where: str) -> Any:
    import numpy as np
    import torch

    match tag:
        case "~tuple":
            return tuple(_decode(value, tensors, where))
        case "~set":
            return set(_decode(value, tensors, where))
        case "~int":
            return int(value, 16)
        case "~float":
            return float(value)
        case "~bytes":
            return base64.b64decode(value, validate=True)
        case "~dtype":
            # Looked up among the dtypes and not by getattr: a file must not name anything else in torch.
            return {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}[value]
        case "~device":
            return torch.device(value)
        case "~numpy" if _NUMPY.fullmatch(value[0]):
            return np.frombuffer(bytes.fromhex(value[1]), dtype=np.dtype(value[0]))[0]
        case "~tensor":
            return tensors[value]
        case "~array":
            return tensors[value].numpy()
    raise ValueError(f"unknown tag {tag!r}")
