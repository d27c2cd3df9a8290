"""A few steps of a strategy on processes of this machine, and the same on one device, for contract tests."""

import importlib
import json
import multiprocessing as mp
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ablatio.errors import EnvironmentFault
from ablatio.model.example import Example
from ablatio.model.parameter_roles import groups_by_role
from ablatio.model.ranks import Ranks, using
from ablatio.model.strategy import Pass, Strategy
from ablatio.registry.kinds.devices import sharing
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import tiny_models

WORLD, STEPS, BATCHES, ROWS = 2, 3, 2, 4
WAIT = 240.0  # seconds for a process to come or to answer: on two cores with a load of 17, importing torch took over 60
TENSORS = "tensors.safetensors"
PRELOADED = ["lightning.pytorch", "torch.distributed.fsdp", "torch.distributed.pipelining", "hydra"]


@dataclass(frozen=True, slots=True)
class Steps:
    """Losses and gradient norms of the steps; weights and state of the optimizer afterwards, flat, by name."""

    losses: list[float]
    norms: list[float]
    tensors: dict[str, Any]


def one_device() -> Steps:
    """The steps without a strategy."""
    return _steps(Strategy(Ranks()), Ranks(), "entry")


def train(
    entry: PartSpec, knobs: Mapping[str, Any] | None = None, *, world: int = WORLD, piece: str = "entry"
) -> Steps:
    """The steps of a strategy on `world` processes, if the optimizer is said to update such a piece: entry | tensor.

    Raises EnvironmentFault with the message of the first rank that failed.
    """
    from ablatio.training.gang import store_of_supervisor

    # A process without threads imports torch and Lightning once and forks the ranks of all calls.  There is one such
    # server in a Python process, so it imports nothing of ablatio, which another user of it may want to import anew.
    server = mp.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with store_of_supervisor(1) as (_, port, _), tempfile.TemporaryDirectory() as folder:
        arguments = (world, port, folder, entry.module, entry.name, dict(knobs or {}), piece)
        processes = [server.Process(target=_rank, args=(rank, *arguments)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(WAIT + 60)
            process.kill()
        for rank in range(world):
            if (failed := Path(folder, f"failed{rank}")).exists():
                raise EnvironmentFault(failed.read_text(encoding="utf-8"))
        said = json.loads(Path(folder, "steps.json").read_text(encoding="utf-8"))
        return Steps(said["losses"], said["norms"], load_file(Path(folder, TENSORS)))


def _rank(
    rank: int, world: int, port: int, folder: str, module: str, name: str, knobs: dict[str, Any], piece: str
) -> None:
    """Train as one rank; rank 0 writes what it has found."""
    from ablatio.training.process_group import joined
    from ablatio.training.rank_environment import STORE_OF_SUPERVISOR, Place

    os.environ[STORE_OF_SUPERVISOR] = "1"
    place = Place(rank, world, rank, world, "127.0.0.1", port)
    os.environ.update(place.to_environment())
    torch.set_num_threads(1)
    try:
        importlib.import_module(module)
        facts = REGISTRIES["strategy"][name].facts
        same_rows = sharing(facts, knobs, world)
        with joined(place, torch.device("cpu"), WAIT, facts["splits"], same_rows) as ranks, using(ranks):
            built: Any = REGISTRIES["strategy"].build(name, knobs, ranks=ranks)
            found = _steps(built, ranks, piece)
            if ranks.first:
                save_file({name: t.clone() for name, t in found.tensors.items()}, Path(folder, TENSORS))
                said = {"losses": found.losses, "norms": found.norms}
                Path(folder, "steps.json").write_text(json.dumps(said), encoding="utf-8")
    except Exception as error:
        Path(folder, f"failed{rank}").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)


def _steps(strategy: Strategy, ranks: Ranks, piece: str) -> Steps:
    """Accumulate two batches with unequal weights in each step, as the training module does."""
    net = tiny_models.model().train()
    strategy.place(Pass(net, lambda model, example: model.loss(example)))
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = strategy.wrap(
        strategy.optimizer(lambda g: torch.optim.AdamW(_plain(g), lr=1e-2), groups_by_role(net), piece)
    )
    losses, norms = [], []
    for step in range(STEPS):
        sums = torch.zeros(2, dtype=torch.float64)
        for number in range(BATCHES):
            last = number == BATCHES - 1
            loss = strategy.loss(_example(step * BATCHES + number).rows(ranks), last)
            if number == 0:
                strategy.zero_grad(optimizer)
            strategy.backward(loss.total / 64, last)
            sums += torch.stack([loss.total.detach(), loss.weight]).double()
        total, weight = (float(x) for x in ranks.total(sums))
        strategy.scale_gradients(parameters, torch.tensor(64 / weight))
        norms.append(float(strategy.gradient_norm(parameters)))
        strategy.before_update()
        optimizer.step()
        strategy.after_update()
        losses.append(total / weight)
    state = strategy.gather({"state_dict": dict(net.state_dict()), "optimizer_states": [optimizer.state_dict()]})
    _refuse_shared(state["optimizer_states"])
    return Steps(losses, norms, _flat(state))


def _refuse_shared(states: list[Any]) -> None:
    """Raise ValueError if parameters share a tensor of the optimizer's state, such as a count of steps.

    One device that loads it would update the tensor once for each of them.
    """
    places = [t.data_ptr() for t in _flat(states).values() if t.numel()]
    if len({*places}) < len(places):
        raise ValueError("gather() returns one tensor for several parameters: each needs its own")


def _plain(groups: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"params": group["params"]} for group in groups]


def _example(seed: int) -> Example:
    """An example whose rows have different numbers of targets."""
    example = tiny_models.example(ROWS, seed=seed)
    example.weights = torch.ones(example.targets.shape)
    for row in range(ROWS):
        example.weights[row, 3 + 5 * row :] = 0
    return example


def _flat(tree: Any, path: str = "") -> dict[str, Tensor]:
    """Tensors of nested data by their paths."""
    if isinstance(tree, Tensor):
        return {path: tree.detach().cpu()}
    if not isinstance(tree, Mapping | list):
        return {}
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {name: tensor for key, value in pairs for name, tensor in _flat(value, f"{path}/{key}").items()}
