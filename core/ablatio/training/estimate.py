"""Estimates of a run before it starts: parameters, FLOPs, memory, and seconds per step."""

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
from ablatio.model.cost.flops import recomputed_flops
from ablatio.model.cost.memory import WIDTH, decoding_cache
from ablatio.model.parameter_roles import groups_by_role, named_generator
from ablatio.registry import kinds
from ablatio.training.device import Machine, runs_on_gpu
from ablatio.training.memory_per_device import memory_per_device, world_of
from ablatio.training.rank_environment import several_devices
from ablatio.training.run_spec import RunSpec

T = TypeVar("T")
CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MOST = 16 * WIDTH  # upper bound on the bytes per parameter: weight, gradient, optimizer state, references
PROBE_FLOPS = 5e10  # limit of a timed step, half a second on one core; of a larger batch only some rows are timed
PROBE_PARAMETERS = 100_000_000  # larger models are not timed


def estimate(spec: RunSpec) -> dict[str, Any]:
    """Return sizes and costs of a run as a flat dict: parameters, train FLOPs per token, bytes by use, row length.

    `machine` is the memory in bytes of the device that would train it.
    """
    size = spec.size
    counts: dict[str, Any] = {"non_embedding": size.non_embedding, "train_flops_per_token": spec.cost().train}
    if (again := recomputed_flops(spec.config, spec.vocabulary)) != 0:
        counts["recomputed_flops_per_token"] = again
    counts |= asdict(spec.memory) | {"cache": decoding_cache(spec.config, spec.vocabulary)}
    return asdict(size) | counts | {"length": spec.length, "machine": memory_here(spec.config["trainer"])}


def memory_here(trainer: Mapping[str, Any]) -> int:
    """Memory in bytes that this process may use: its share of the GPU, or the machine's within its cgroup limits."""
    if Machine.choose(trainer).device == "cuda":
        return int(torch.cuda.mem_get_info()[1]) // runs_on_gpu()
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [
        int(text) for path in map(Path, CGROUP) if path.exists() and (text := path.read_text().strip()).isdigit()
    ]
    return min(limits)


def _room(config: Mapping[str, Any]) -> int:
    """Bytes of each device: the ranks of a run on CPUs share a machine."""
    trainer = config["trainer"]
    shared = several_devices(trainer) and Machine.choose(trainer).device == "cpu"
    return memory_here(trainer) // (int(trainer["devices"]) if shared else 1)


def _where(config: Mapping[str, Any]) -> str:
    """Name of what has the memory, for messages: this machine, or a device."""
    if not several_devices(config["trainer"]):
        return "this machine"
    return f"each of {world_of(config)} devices with strategy={config['strategy']['name']}"


def check_memory(spec: RunSpec) -> None:
    """Raise EnvironmentFault if weights, gradients and optimizer state of the run do not fit into memory.

    Decided at once for a model whose plain layers alone come near the limit; all others are checked while they are
    built, by `within_memory`.
    """
    if MOST * _plain_parameters(spec) >= _room(spec.config):
        _refuse_too_large(spec)


def within_memory(spec: RunSpec, build: Callable[[], T]) -> T:
    """Return the model that `build` makes; EnvironmentFault if its training needs more memory than there is.

    Parameters are counted while the model is built.  If they come near the limit, building stops, and the memory is
    computed from shapes before it starts again.
    """
    try:
        with _parameter_limit(_room(spec.config) // MOST):
            return build()
    except _NearLimit:
        _refuse_too_large(spec)
    return build()


class _NearLimit(Exception):
    """Raised while a model is built, when it has more parameters than are certain to fit."""


@contextmanager
def _parameter_limit(limit: int) -> Iterator[None]:
    """Raise _NearLimit as soon as the modules created inside have more than `limit` parameters."""
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
    """Rough parameter count from the sizes alone, without building anything.

    vocab * d_model for the embedding, and per layer 2 * d_model * (attention width + d_ff): an attention and an MLP of
    two matrices each.
    """
    sizes = spec.config["model"]
    width = int(sizes["d_model"])
    inner = int(sizes["d_ff"] or 4 * width)
    heads = int(sizes["n_heads"]) * int(sizes["d_head"] or width // int(sizes["n_heads"]))
    layers = int(sizes.get("distinct_layers") or sizes["n_layers"])
    return spec.vocabulary * width + layers * 2 * width * (heads + inner)


def _refuse_too_large(spec: RunSpec) -> None:
    """Raise EnvironmentFault if the memory computed from shapes exceeds that of the machine; else return.

    Every rank has the whole model before it is divided, so that must fit too.
    """
    room, memory = _room(spec.config), memory_per_device(spec)
    lasting = memory.lasting + (memory.host if Machine.choose(spec.config["trainer"]).device == "cpu" else 0)
    whole = spec.memory.weights + memory.beside
    if max(lasting, whole) > room:
        weights = "weights, a reference" if memory.beside else "weights"
        held = f"{weights}, gradients and the optimizer's state take {lasting / 1e9:,.1f} GB"
        if whole > room >= lasting:
            held = f"{weights} take {whole / 1e9:,.1f} GB on each device before they are divided"
        shared = Machine.choose(spec.config["trainer"]).device == "cuda" and runs_on_gpu() > 1
        here = f"each of {runs_on_gpu()} runs on this GPU" if shared else _where(spec.config)
        raise EnvironmentFault(
            f"this model has {spec.parameters:,} parameters: {held}, and {here} has {room / 1e9:,.1f} GB\n"
            f"    try: {'workers=1, for fewer runs at a time' if shared else 'size=small'}"
        )


def seconds_per_step(spec: RunSpec, times: int = 3) -> float:
    """Estimate the seconds of an optimizer step on this CPU: the minimum of `times` timed steps on random tokens.

    Uses as many threads as the run would.  Of a large batch only some rows are timed, and the time is scaled to the
    whole batch.  Returns 0 for a model that is too large to time.
    """
    config, rows = spec.config, int(spec.config["train"]["batch_size"])
    row_flops = spec.cost().train * spec.length  # forward and backward, of one row
    if spec.parameters > PROBE_PARAMETERS or row_flops > 20 * PROBE_FLOPS:
        return 0.0
    few = max(1, min(rows, int(PROBE_FLOPS / row_flops)))
    threads = torch.get_num_threads()
    Machine("cpu", "32", config["trainer"]["threads"] or 1).prepare(int(config["model"]["d_model"]))
    try:
        with torch.random.fork_rng(devices=[]):
            forward, step = _probe(spec, few)
            passes, updates = [], []
            for _ in range(times + 1):  # the first one is a warm-up and not counted
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
    """Return (forward and backward pass, optimizer step) as functions to be timed."""
    config, vocabulary, length = spec.config, spec.vocabulary, spec.length
    model = build_model(config, vocabulary, 0, 0)
    choice, target = PartChoice.of(config["optimizer"]), PartChoice.of(config["objective"])
    optimizer = kinds.optimizers.build(choice.name, choice.knobs, groups=groups_by_role(model))
    objective = kinds.objectives.build(target.name, target.knobs, vocab_size=vocabulary, eos=0, max_len=length)
    tokens = torch.randint(1, vocabulary, (rows, length + 1), generator=named_generator(0, "probe"))
    example = objective(tokens, None, named_generator(0, "objective"))

    def forward() -> None:
        total, _, _ = model.loss(example)
        (total / tokens.numel()).backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return forward, step
