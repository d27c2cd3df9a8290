"""Everything that a config makes before the first step: machine, data, model, task."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ablatio.data.order import RowPlan
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.model.cost.parameters import row_length
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.apply import AppliedPeft, tune
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import Batches, Stabilizer
from ablatio.storage.paths import cache_root
from ablatio.training.device import Machine
from ablatio.training.estimate import within_memory
from ablatio.training.initial_weights import TakenOver, start_model
from ablatio.training.lightning_module import TrainingModule
from ablatio.training.reward_model import open_reward
from ablatio.training.run_spec import RunSpec
from ablatio.training.task_context import TaskContext

COMPILED = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(slots=True)
class PreparedRun:
    """A run that is ready to start: everything made from the config, nothing trained yet."""

    spec: RunSpec
    setup: TaskContext
    task: Task
    model: LanguageModel
    learner: TrainingModule
    machine: Machine
    origin: TakenOver | None
    tuning: AppliedPeft

    @property
    def config(self) -> Mapping[str, Any]:
        return self.spec.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.task.tokenizer

    @property
    def length(self) -> int:
        return self.spec.length

    def begin(self) -> None:
        """What the task needs of the model as it is now: `prepare` of the contract, on the model's device."""
        self.model.to(self.machine.device)
        with self._precision():
            self.task.prepare(self.model)

    def training(self, start: int, skipped: int = 0) -> "DataLoader[dict[str, torch.Tensor]]":
        """Batches from number `start` on, `skipped` batches later in the data; resume needs no other position."""
        train, workers = self.config["train"], self.config["trainer"]["workers"]
        sampler = _From(start, train["steps"] * train["accumulate"], skipped)
        batches: Any = self.task.training
        return DataLoader(
            batches, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )

    def ask(self, name: str) -> None:
        """Score what another objective asks for."""
        try:
            self.task.ask(name, self.model)
        except NotImplementedError:
            task = self.config["task"]["name"]
            raise UserError(f"--objective {name} came, and task={task} knows one loss alone") from None

    def score(self, batches: Batches, between: Callable[[int], None] = lambda n: None) -> dict[str, float]:
        """What the task finds of the model: {name: value}, those in its `scores` and what they rest on."""
        device = next(self.model.parameters()).device
        with self._precision():
            return self.task.score(self.model, batches, device, between)

    def samples(self) -> list[dict[str, str]]:
        """What the model answers now, if its task asks for samples."""
        with self._precision():
            return self.task.samples(self.model)

    def _precision(self) -> torch.autocast:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.machine.precision == "bf16")


@dataclass(frozen=True, slots=True)
class _Ramp:
    """A stabilizer's batch size, which counts tokens, as one that counts rows."""

    part: Any
    length: int

    def __call__(self, seen: int, full: int) -> int:
        return int(self.part.batch_rows(seen * self.length, full))


class _From(Sampler[int]):
    """start ... total - 1, each plus `skipped`.  Its length is the total: Lightning counts the whole run's batches."""

    def __init__(self, start: int, total: int, skipped: int) -> None:
        self.start, self.total, self.skipped = start, total, skipped

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start + self.skipped, self.total + self.skipped))

    def __len__(self) -> int:
        return self.total


def row_plan(config: Mapping[str, Any], stabilizers: Mapping[str, Stabilizer]) -> RowPlan:
    """Which rows each batch has; a stabilizer may let it grow."""
    train = config["train"]
    ramps = [part for part in stabilizers.values() if hasattr(part, "batch_rows")]
    return RowPlan(train["batch_size"], train["accumulate"], _Ramp(ramps[0], row_length(config)) if ramps else None)


def needs_start(config: Mapping[str, Any]) -> bool:
    """Whether the task needs the model as it started, even where the run goes on from a checkpoint."""
    task: Any = kinds.tasks.target(config["task"]["name"])
    return bool(task.needs_start())


def _share_compiled_code() -> None:
    """The runs of a sweep compile the same layers: they find them in our cache, 38 s of work become 5.

    A folder of the user's own stays.  That in the temporary folder is torch's default, which it writes into the
    environment as soon as it is imported.
    """
    chosen = os.environ.get(COMPILED)
    if chosen is None or Path(chosen).parent == Path(tempfile.gettempdir()):
        os.environ[COMPILED] = str(cache_root() / "compiled")


def prepare_run(spec: RunSpec, *, fresh: bool = True, counted: bool = True) -> PreparedRun:
    """Machine, data, model and task of a run; the one place where the model that trains is built.

    fresh    False where a checkpoint will fill the model
    counted  whether size and cost will be asked for: they are counted on this model
    """
    config = spec.config
    machine = Machine.choose(config["trainer"])
    machine.prepare(int(config["model"]["d_model"]))
    options = config["stabilizer"] or {}
    stabilizers = {name: kinds.stabilizers.build(name, knobs) for name, knobs in options.items()}
    setup = TaskContext(config, row_plan(config, stabilizers), open_reward)
    choice = PartChoice.of(config["task"])
    task: Any = kinds.tasks.build(choice.name, choice.knobs, setup=setup)
    spec = spec.with_ids(int(task.tokenizer.vocab_size))
    model, origin = within_memory(spec, lambda: start_model(config, task.tokenizer, setup.seeds.init, fresh=fresh))
    if counted:
        spec.count_on(model, task.row_length)
    tuning = tune(model, config, setup.seeds.init)
    if config["trainer"]["compile"]:
        _share_compiled_code()
        model.compile_layers()
    task.attach(model)
    learner = TrainingModule(setup, task, model, stabilizers, tuning)
    return PreparedRun(spec, setup, task, model, learner, machine, origin, tuning)
