"""Estimates of a run before it starts: sizes, FLOPs, memory of this machine, and the seconds of a step."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ablatio.errors import EnvironmentFault
from ablatio.model.build import build_model
from ablatio.model.builder import PartChoice
from ablatio.model.cost.memory import WIDTH
from ablatio.model.parameter_roles import groups_by_role, named_generator
from ablatio.registry import kinds
from ablatio.training.device import Machine
from ablatio.training.run_spec import RunSpec

T = TypeVar("T")
CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MOST = 16 * WIDTH  # bytes that a parameter can take at most: weight, gradient, optimizer state, references
PROBE_FLOPS = 5e10  # of a timed step: half a second on one core; a larger batch is timed on some of its rows
PROBE_PARAMETERS = 100_000_000


def estimate(spec: RunSpec) -> dict[str, Any]:
    """Parameters, FLOPs per token and bytes; `machine`: the memory of the device that would train."""
    size = spec.size
    counts = {"non_embedding": size.non_embedding, "train_flops_per_token": spec.cost().train}
    here = {"length": spec.length, "machine": memory_here(spec.config["trainer"])}
    return asdict(size) | counts | asdict(spec.memory) | here


def memory_here(trainer: Mapping[str, Any]) -> int:
    """Bytes of the GPU, or those that this process may have of the machine."""
    if Machine.choose(trainer).device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [
        int(text) for path in map(Path, CGROUP) if path.exists() and (text := path.read_text().strip()).isdigit()
    ]
    return min(limits)


def check_memory(spec: RunSpec) -> None:
    """EnvironmentFault when the weights, gradients and optimizer state of the run need more memory than there is.

    Done at once for a model whose plain layers alone are near the limit; `within_memory` watches the others.
    """
    if MOST * _plain_parameters(spec) >= memory_here(spec.config["trainer"]):
        _refuse_too_large(spec)


def within_memory(spec: RunSpec, build: Callable[[], T]) -> T:
    """What `build` returns, a model; EnvironmentFault where its training needs more memory than there is.

    The model is counted while it is built.  Only when it comes near the limit it is counted on shapes.
    """
    try:
        with _parameter_limit(memory_here(spec.config["trainer"]) // MOST):
            return build()
    except _NearLimit:
        _refuse_too_large(spec)
    return build()


class _NearLimit(Exception):
    """Ends a building: the model has more parameters than are surely held."""


@contextmanager
def _parameter_limit(limit: int) -> Iterator[None]:
    """Raise _NearLimit as soon as the modules that are made inside have more parameters."""
    seen: dict[int, int] = {}

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            seen[id(parameter)] = parameter.numel()
            if sum(seen.values()) > limit:
                raise _NearLimit

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _plain_parameters(spec: RunSpec) -> int:
    """Parameters that the sizes alone promise: tables, and layers with one attention and one MLP of two matrices."""
    sizes = spec.config["model"]
    width = int(sizes["d_model"])
    inner = int(sizes["d_ff"] or 4 * width)
    heads = int(sizes["n_heads"]) * int(sizes["d_head"] or width // int(sizes["n_heads"]))
    layers = int(sizes.get("distinct_layers") or sizes["n_layers"])
    return spec.vocabulary * width + layers * 2 * width * (heads + inner)


def _refuse_too_large(spec: RunSpec) -> None:
    room, memory = memory_here(spec.config["trainer"]), spec.memory
    if memory.lasting > room:
        held = "weights, a reference" if memory.beside else "weights"
        raise EnvironmentFault(
            f"this model has {spec.parameters:,} parameters: {held}, gradients and the "
            f"optimizer's state take {memory.lasting / 1e9:,.1f} GB, and this machine has {room / 1e9:,.1f} GB\n"
            "    try: size=small"
        )


def seconds_per_step(spec: RunSpec, times: int = 3) -> float:
    """The least of some timed steps on random tokens, on as many threads as a run has; 0 for a model too large to try.

    Of a large batch some rows are timed: cost per token x tokens.
    """
    config, rows = spec.config, int(spec.config["train"]["batch_size"])
    row_flops = spec.cost().train * spec.length
    if spec.parameters > PROBE_PARAMETERS or row_flops > 20 * PROBE_FLOPS:
        return 0.0
    few = max(1, min(rows, int(PROBE_FLOPS / row_flops)))
    threads = torch.get_num_threads()
    Machine("cpu", "32", config["trainer"]["threads"] or 1).prepare(int(config["model"]["d_model"]))
    try:
        with torch.random.fork_rng(devices=[]):
            forward, step = _probe(spec, few)
            passes, updates = [], []
            for _ in range(times + 1):  # the first warms up
                start = time.perf_counter()
                forward()
                middle = time.perf_counter()
                step()
                passes.append(middle - start)
                updates.append(time.perf_counter() - middle)
    finally:
        torch.set_num_threads(threads)
    batches = rows / few * int(config["train"]["accumulate"])
    return min(passes[1:]) * batches + min(updates[1:])


def _probe(spec: RunSpec, rows: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """(a pass forward and backward, an update of the weights), to be timed."""
    config, vocabulary, length = spec.config, spec.vocabulary, spec.length
    model = build_model(config, vocabulary, 0, 0)
    choice, asked = PartChoice.of(config["optimizer"]), PartChoice.of(config["objective"])
    optimizer = kinds.optimizers.build(choice.name, choice.knobs, groups=groups_by_role(model))
    objective = kinds.objectives.build(asked.name, asked.knobs, vocab_size=vocabulary, eos=0, max_len=length)
    tokens = torch.randint(1, vocabulary, (rows, length + 1), generator=named_generator(0, "probe"))
    example = objective(tokens, None, named_generator(0, "objective"))

    def forward() -> None:
        total, _, _ = model.loss(example)
        (total / tokens.numel()).backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return forward, step
