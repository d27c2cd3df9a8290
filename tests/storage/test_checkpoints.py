"""Atomic writer, state encoding and checkpoints without failures; tests/faults covers failures."""

import hashlib
import json
import math
import random
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.errors import Diverged, EnvironmentFault, UserError
from ablatio.storage import checkpoints
from ablatio.storage.checkpoints import Checkpoints, decode_state, encode_state, write_json
from ablatio.storage.safetensors_io import DTYPE_NAMES

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20)
dtypes = st.sampled_from([getattr(torch, name) for name in DTYPE_NAMES])
shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any bytes, dtype and shape; some not contiguous."""
    dtype, shape = draw(dtypes), draw(shapes)
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


keys = st.text(max_size=5).filter(lambda key: key not in checkpoint_keys) | st.integers() | st.tuples(st.integers())
checkpoint_keys = {"_target_", "class_path", "_builder_", "()"}
others = st.sampled_from([torch.bfloat16, torch.device("cpu"), torch.device("cuda:1"), np.float32(0.1), np.int64(-3)])
trees = st.recursive(
    plain | tensors() | others,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Assert that values are equal in type and, for tensors, in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b or a != a) if a == a else b != b
    return bool(a == b)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=150, deadline=None)
@given(trees)
def test_state_round_trips_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    structure, parts = encode_state(tree)
    assert same(decode_state(json.loads(json.dumps(structure, allow_nan=False)), parts), tree)
    saved = Checkpoints(tmp_path_factory.mktemp("c"))
    saved.save(0, {}, {"tree": tree})
    assert same(saved.load().state, {"tree": tree})


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8).filter("__metadata__".__ne__), tensors()))
def test_safetensors_library_reads_the_model_file(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, Any]
) -> None:
    finite = {name: tensor for name, tensor in model.items() if not checkpoints.count_non_finite(tensor)}
    saved = Checkpoints(tmp_path_factory.mktemp("c"))
    manifest = saved.save(3, finite, {})
    theirs = safetensors.torch.load_file(manifest.with_name("step-00000003.model.safetensors"))
    assert same(dict(sorted(theirs.items())), dict(sorted(finite.items())))
    assert same(dict(sorted(saved.load().model.items())), dict(sorted(finite.items())))


def test_optimizer_and_generator_states_round_trip(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()},
        "best": OrderedDict(loss=math.inf),
        "counts": defaultdict(int, {1: 2}),
    }
    saved = Checkpoints(tmp_path)
    saved.save(1, model.state_dict(), state, {"epoch": 1, "name": "Zürich 北京"})
    got = saved.load()
    assert (got.step, got.info, got.skipped) == (1, {"epoch": 1, "name": "Zürich 北京"}, ())
    assert same(got.model, dict(model.state_dict()))
    assert same(got.state["optimizer"], state["optimizer"])
    assert (got.state["best"], got.state["counts"]) == ({"loss": math.inf}, {1: 2})
    random.setstate(got.state["rng"]["python"])
    np.random.set_state(got.state["rng"]["numpy"])
    torch.set_rng_state(got.state["rng"]["torch"])
    optimizer.load_state_dict(got.state["optimizer"])


def test_tied_and_overlapping_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    model = {
        "embed.weight": base,
        "head.weight": base,
        "rows": base[:2],
        "turned": base.T,
        "same_param": base.view(3, 4),
    }
    saved = Checkpoints(tmp_path)
    saved.save(0, model, {"ema": [base, base]})
    got = saved.load()
    assert list(got.model) == list(model)
    assert all(torch.equal(got.model[name], model[name]) for name in model)
    assert got.model["head.weight"] is got.model["embed.weight"] is got.model["same_param"]
    assert got.state["ema"][0] is got.state["ema"][1]
    stored = safetensors.torch.load_file(tmp_path / "step-00000000.model.safetensors")
    assert sorted(stored) == ["embed.weight", "rows", "turned"]


class Stranger:
    pass


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {"b": Stranger()}]}, "state.a.1.b"),
        ({"a": Path("x")}, "state.a"),
        ({"a": {np.int64(1): 2}}, "state.a"),
        ({"a": frozenset([1])}, "state.a"),
        ({"a": torch.zeros(2).to_sparse()}, "state.a"),
        ({"a": torch.zeros(2, device="meta")}, "state.a"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "state.a"),
        ({"a": np.array([Stranger()])}, "state.a"),
        ({"a": {"b": {"_target_": "os.system"}}}, "state.a.b._target_"),
    ],
)
def test_unsupported_value_is_reported_by_its_key(tmp_path: Path, state: Any, where: str) -> None:
    with pytest.raises(UserError, match=f"^{where}"):
        Checkpoints(tmp_path / "c").save(0, {}, state)
    assert not (tmp_path / "c").exists()


def test_cyclic_state_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UserError, match="contains itself"):
        encode_state(loop)
    with pytest.raises(UserError, match="contains itself"):
        checkpoints.check_json(loop, "x")


@pytest.mark.parametrize("key", sorted(checkpoint_keys))
def test_keys_that_build_objects_are_refused_on_reading(key: str) -> None:
    with pytest.raises(UserError, match=r"state\.a\.1\.b\."):
        decode_state({"a": [0, {"b": {key: "os.system"}}]}, {})
    with pytest.raises(UserError, match=r"state\.a\."):
        decode_state({"a": {"~dict": [[key, 1], [2, 3]]}}, {})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64])
def test_non_finite_weights_are_not_saved(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    weight = torch.full((2, 3), bad).to(dtype)
    for model, state in (({"ok": torch.ones(2), "w": weight}, {}), ({}, {"optimizer": {"w": weight}})):
        with pytest.raises(Diverged, match="w at step 7: 6 of 6 values"):
            Checkpoints(tmp_path / "c").save(7, model, state)
    assert not (tmp_path / "c").exists()
    Checkpoints(tmp_path / "c").save(7, {}, {"best_score": weight})  # a callback's infinity is nobody's divergence


def test_only_the_newest_are_kept_and_a_step_can_be_saved_again(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, keep=2, run="a")
    assert (saved.latest(), saved.steps()) == (None, [])
    for step in (1, 2, 3, 3, 3, 4, 4):
        saved.save(step, {"w": torch.full((2,), float(step))}, {})
    assert (saved.latest(), saved.steps()) == (4, [3, 4])
    assert len(list(tmp_path.iterdir())) == 6
    assert saved.load(3).model["w"].tolist() == [3, 3]
    with pytest.raises(UserError, match=r"one of its steps: 3, 4"):
        saved.load(2)
    with pytest.raises(UserError, match="already holds the later step 4"):
        saved.save(2, {}, {})
    with pytest.raises(UserError, match="no checkpoint"):
        Checkpoints(tmp_path / "nowhere").load()


def test_write_json_is_indented_and_refuses_non_json_values(tmp_path: Path) -> None:
    path = tmp_path / "x y.json"
    assert write_json(path, {"b": [1, None], "a": "北京\ud800"}) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_text("utf-8") == '{\n  "b": [\n    1,\n    null\n  ],\n  "a": "北京\\ud800"\n}\n'
    assert checkpoints.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    bad = {"nan": [{"loss": math.nan}], "set": {"a": {1}}, "key": {"a": {1: 2}}}
    for obj, where in zip(bad.values(), ("0.loss", "a", "a"), strict=True):
        with pytest.raises(UserError, match=rf"^x y\.json\.{where}: JSON"):
            write_json(path, obj)
    assert "北京" in path.read_text("utf-8")


def test_invalid_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NUL"):
        checkpoints.write_text(tmp_path / "a\0b", "x")
    with pytest.raises(EnvironmentFault, match="does not exist"):
        checkpoints.write_text(tmp_path / "missing" / "file", "x")
    assert checkpoints.make_folder(tmp_path / "a" / "b" / "c").is_dir()


def test_importing_the_writer_does_not_load_torch() -> None:
    code = (
        "import sys; from ablatio.storage.checkpoints import Checkpoints, write_json; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
