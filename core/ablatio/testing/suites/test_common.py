"""Contract of every part of every kind: complete signature, docstring, effective knobs, no hidden randomness."""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablatio.errors import UserError
from ablatio.registry import parts_file
from ablatio.registry.knobs import Knob, read_signature
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import Advice, checks
from ablatio.testing.digest import digest
from ablatio.testing.observe import OBSERVERS, isolated, observe
from ablatio.testing.other_knob_values import other_values, settings

KINDS = None  # all registered kinds
DATA = ("source", "tokenizer")  # kinds whose parts need no paper
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+|https?://\S+|\bSource: \S+")


def _observe(part: PartSpec, knobs: dict[str, Any] | None = None, seed: int = 0) -> str:
    """Digest of the part's behavior; skips kinds that cannot be built because no observer is defined for them."""
    try:
        return observe(part, knobs, seed)
    except TypeError as error:
        if "which was not passed" in str(error):
            pytest.skip(f"no observer is defined for the kind {part.kind}; see ablatio.testing.observe.observes")
        raise


def test_signature_is_complete(part: PartSpec) -> None:
    target = REGISTRIES[part.kind].target(part.name)
    wiring, knobs = read_signature(target, checks.label(part))
    came = f"the signature has {wiring} and {[k.name for k in knobs]}, the catalogue {part.wiring} and "
    assert (wiring, knobs) == (part.wiring, part.knobs), f"{checks.label(part)}: {came}{[k.name for k in part.knobs]}"
    again = PartSpec.from_json(json.loads(json.dumps(part.to_json())))
    assert again.knobs == part.knobs, f"{checks.label(part)}: its knobs do not survive JSON"


def test_defaults_are_legal(part: PartSpec) -> None:
    problems = [f"{k.name}: {k.problem(k.default)}" for k in part.knobs if k.problem(k.default)]
    assert not problems, f"{checks.label(part)}: {'; '.join(problems)}"


def test_says_what_it_does(part: PartSpec) -> None:
    """The first line of the docstring is shown by `ablatio list`."""
    words = part.summary.split()
    assert len(words) >= 3, f"{checks.label(part)}: the docstring starts with {part.summary!r}; expected a formula"


def test_says_where_it_comes_from(part: PartSpec) -> None:
    """A part without a source keeps its contract: this is advice."""
    if part.kind in DATA:
        pytest.skip(f"a {part.kind} has no paper: its docstring says where the data come from")
    said = SOURCE.search(part.paper) or SOURCE.search(part.doc) or SOURCE.search(_module_doc(part))
    if not said:
        what = (
            "no source; give register(..., paper='arXiv:1910.07467') or a line `Source: AUTHOR, PLACE` in the docstring"
        )
        warnings.warn(Advice(f"{checks.label(part)}: {what}"), stacklevel=1)


def _module_doc(part: PartSpec) -> str:
    return getattr(inspect.getmodule(REGISTRIES[part.kind].target(part.name)), "__doc__", "") or ""


def test_same_twice(part: PartSpec) -> None:
    assert _observe(part) == _observe(part), f"{checks.label(part)}: built twice from one seed, it behaves differently"


def test_made_from_json(part: PartSpec) -> None:
    """Configs are stored as JSON: knobs read from JSON build the same part."""
    given = json.loads(json.dumps(part.defaults))
    assert _observe(part, given) == _observe(part), (
        f"{checks.label(part)}: its defaults, read from JSON, build a different part"
    )


def test_knob_is_live(part: PartSpec, knob: Knob) -> None:
    """At least one other value of the knob changes the part's behavior, and may be set later if it is schedulable."""
    live, tried, refused = _try_other_values(part, knob)
    if live and knob.schedulable:
        _check_schedulable(part, knob, live)
    if not live and not tried:
        pytest.skip(f"no other value of `{knob.name}` can be tried: {'; '.join(refused[:1]) or 'it has none'}")
    values = ", ".join(dict.fromkeys(map(str, tried)))
    assert live, (
        f"{checks.label(part)}: the knob `{knob.name}` has no effect: {values} behave like the default {knob.default}"
    )


def _try_other_values(part: PartSpec, knob: Knob) -> tuple[dict[str, Any], list[Any], list[str]]:
    """(settings that changed the part or {}, values without effect, reasons of refused values)."""
    tried: list[Any] = []
    refused: list[str] = []
    for beside in settings(part, knob):
        try:
            before = _observe(part, beside)
        except UserError:
            continue
        for value in other_values(knob):
            try:
                after = _observe(part, beside | {knob.name: value})
            except UserError as error:
                refused.append(str(error))
                continue
            if after != before:
                return beside | {knob.name: value}, tried, refused
            tried.append(value)
    return {}, tried, refused


def _check_schedulable(part: PartSpec, knob: Knob, live: dict[str, Any]) -> None:
    """A part that is built with one value and then set to another behaves like one that was built with the other."""
    label, values = checks.label(part), [knob.default, live[knob.name]]
    if isinstance(knob.default, int | float):
        values.sort(reverse=True)  # a run builds its parts with the largest value
    built, other = ({**live, knob.name: value} for value in values)
    with checks.built_and_set(part, built, {knob.name: values[1]}) as changed:
        later = _observe(part, other)
    assert changed, f"{label}: `{knob.name}` is schedulable, but no object that the part builds has this attribute"
    assert later == _observe(part, other), (
        f"{label}: `{knob.name}` is schedulable, but setting it to {values[1]} after the part was built with "
        f"{values[0]} does not give the part built with {values[1]}: compute what depends on it when it is used"
    )


def test_leaves_the_process_alone(part: PartSpec) -> None:
    """The part does not set seeds, default dtype or device, threads or other switches of torch."""
    before, seen = dict(_switches()), []
    for seed in (1, 2):
        with isolated(seed):
            _observe_unseeded(part)
            seen.append(torch.random.get_rng_state())
    after = dict(_switches())
    changed = [f"{k} from {before[k]} to {after[k]}" for k in before if before[k] != after[k]]
    assert not changed, f"{checks.label(part)}: changes {', '.join(changed)}"
    assert not torch.equal(*seen), f"{checks.label(part)}: sets torch's global seed; use a generator instead"


def _observe_unseeded(part: PartSpec) -> None:
    look = OBSERVERS.get(part.kind)
    if look is not None:
        look(part, part.defaults)


def _switches() -> Iterator[tuple[str, Any]]:
    yield "the default dtype", torch.get_default_dtype()
    yield "the default device", torch.get_default_device()
    yield "torch's threads", torch.get_num_threads()
    yield "gradient mode", torch.is_grad_enabled()
    yield "deterministic algorithms", torch.are_deterministic_algorithms_enabled()
    yield "the precision of matrix products", torch.get_float32_matmul_precision()
    yield "anomaly detection", torch.is_anomaly_enabled()
    yield "numpy's random state", digest(list(np.random.get_state(legacy=True)))
    yield "the working directory", os.getcwd()  # noqa: PTH109
    own = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}  # torch sets it itself
    yield "the environment", hash(tuple(sorted(own.items())))


IMPORTS = """
import importlib, json, os, random, sys
import numpy, torch
def look():
    return [str(torch.get_default_dtype()), torch.get_num_threads(), torch.initial_seed(), random.getstate()[1][:3],
            numpy.random.get_state()[1][:3].tolist(), torch.is_grad_enabled(),
            sorted(os.environ.keys() - {"TORCHINDUCTOR_CACHE_DIR"}), os.getcwd()]  # torch sets it itself
import ablatio
from ablatio.registry.part_spec import faulty_parts
before = look()
from ablatio.registry.parts_file import PartsFile, load
with faulty_parts():
    for name in sys.argv[1:]:
        load(PartsFile.read(name)) if name.endswith(".py") else importlib.import_module(name)
print(json.dumps([before, look()]))
"""


def test_import_leaves_the_process_alone(dist: str) -> None:
    modules = sorted({e.module for r in REGISTRIES.values() for e in r.entries.values() if e.distribution.name == dist})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if (file := parts_file.current()) and modules == [parts_file.MODULE]:
        modules = [str(Path(file.path).absolute())]
    command = [sys.executable, "-c", IMPORTS, *modules]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, f"{dist}: its modules cannot be imported: {run.stderr[-500:]}"
    names = "default dtype, threads, torch's seed, random's state, numpy's state, gradient mode, environment, folder"
    before, after = json.loads(run.stdout.splitlines()[-1])
    changed = [n for n, a, b in zip(names.split(", "), before, after, strict=True) if a != b]
    assert not changed, f"{dist}: importing its modules changes {', '.join(changed)}"
