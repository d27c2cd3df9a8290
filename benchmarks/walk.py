"""The walk of one setting: files that `norm.eps=1e-5` passes from the command line to the module that trains.

    python benchmarks/walk.py

A call of a function of ablatio counts when it is handed the setting or something that holds it (a text, a config, a
node of one, the number), and its file is another one than that of the call before.  The walk ends when RMSNorm is made
with weights, not on shapes.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

KEY, VALUE = "norm.eps", 1.37e-5  # no other setting has this value
SETTINGS = (
    f"{KEY}={VALUE}", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=16", "tokenizer=bytes",
    "train.steps=1", "data.val_tokens=64", "trainer.progress=false", "trainer.threads=1",
)  # fmt: skip


class Arrived(BaseException):
    """The module has the value."""


def holds(value: Any, depth: int = 3) -> bool:
    """Whether an object is the setting, or a plain container or a config-bearing object with it."""
    if isinstance(value, str):
        return KEY in value
    if isinstance(value, float):
        return value == VALUE
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(holds(v, depth - 1) for k, v in list(value.items()) if k in ("norm", "eps", "config", "public"))
    if isinstance(value, list | tuple):
        return any(holds(v, depth - 1) for v in value[:8])
    held = getattr(value, "__dict__", {})
    return any(name in held and holds(held[name], depth - 1) for name in ("config", "spec", "builder", "knobs"))


def walk() -> list[tuple[str, str]]:
    """(file, function) of each call with the value whose file is another one than that of the call before."""
    import torch

    from ablatio.cli.main import main

    steps: list[tuple[str, str]] = []
    roots: dict[CodeType, str] = {}

    def name_of(code: CodeType) -> str:
        if code not in roots:
            path = Path(code.co_filename)
            top = next((i for i, part in enumerate(path.parts) if part in ("ablatio", "ablatio_std")), None)
            roots[code] = "" if top is None or "site-packages" in path.parts else "/".join(path.parts[top:])
        return roots[code]

    def seen(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "return" and code.co_qualname == "RMSNorm.__init__":
            module = frame.f_locals.get("self")
            if isinstance(getattr(module, "weight", None), torch.Tensor) and not module.weight.is_meta:
                raise Arrived
        if event != "call" or not (file := name_of(code)):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2]
        if any(holds(frame.f_locals[n]) for n in names if n in frame.f_locals) and (not steps or steps[-1][0] != file):
            steps.append((file, code.co_qualname))

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(seen)
        try:
            main(["train", *SETTINGS, f"out={folder}", "name=walk"])
        except Arrived:
            pass
        finally:
            sys.setprofile(None)
    return steps


def lines(steps: list[tuple[str, str]]) -> Iterator[str]:
    for number, (file, function) in enumerate(steps, 1):
        yield f"{number:3} {file}: {function}"


if __name__ == "__main__":
    found = walk()
    print("\n".join(lines(found)))
    print(f"{len(found)} calls in another file; {len({file for file, _ in found})} files")
