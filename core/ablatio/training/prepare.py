"""Build everything that a run needs before its first step: machine settings, data, model, task."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader, Sampler

from ablatio.data.order import RowPlan
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.model.evaluation.responder import Responder
from ablatio.model.kept_copies import kept_copies
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import named_generator
from ablatio.model.peft.apply import AppliedPeft, tune
from ablatio.model.prompting.session import Session
from ablatio.model.ranks import Ranks, ranks
from ablatio.model.strategy import Pass, Strategy
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import Batches, Stabilizer
from ablatio.storage.paths import cache_root
from ablatio.training.device import Machine
from ablatio.training.estimate import within_memory
from ablatio.training.evaluation.access import longest_row
from ablatio.training.evaluation.evaluation import Evaluation, EvaluationResult
from ablatio.training.evaluation.prompting import Prompting, decode_part, most_probable
from ablatio.training.examples import SHAPES_EXAMPLES, Examples
from ablatio.training.frozen_model import open_model
from ablatio.training.initial_weights import TakenOver, continue_tokens, start_model
from ablatio.training.lightning_module import TrainingModule
from ablatio.training.rank_environment import from_environment
from ablatio.training.reward_model import open_reward
from ablatio.training.run_spec import RunSpec
from ablatio.training.scheduled_settings import ScheduledSettings, parts_of
from ablatio.training.task_context import TaskContext
from ablatio.training.timeline import Timeline

COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # environment variable


@dataclass(slots=True)
class PreparedRun:
    """A run that is ready to start: everything built from the config, nothing trained yet.

    setup    what the task was built from
    learner  the LightningModule around task and model
    origin   which weights were copied from another model; None if all were drawn
    tuning   effect of quantization and peft on the model
    """

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
        """The run's config, resolved and checked."""
        return self.spec.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The task's trained tokenizer."""
        return self.task.tokenizer

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.spec.length

    def begin(self) -> None:
        """Move the model to its device, let the task record the untrained model, and distribute the model."""
        self.model.to(self.machine.device)
        with self.machine.autocast():
            self.task.prepare(self.model)
        self.learner.strategy.place(Pass(self.model, self.task.loss))

    def training(self, start: int, skipped: int = 0) -> "DataLoader[dict[str, Any]]":
        """Return the loader of the training batches from number `start` on, as examples if other processes read them.

        start    batches done so far: the whole position that a resumed run needs
        skipped  added to the batch numbers: batches of the data that were left out after rewinds
        """
        train, workers = self.config["train"], self.config["trainer"]["workers"]
        sampler = _BatchNumbers(start, train["steps"] * train["accumulate"], skipped)
        scheduled = self.learner.scheduled
        # The values of a schedule are set in this process, step by step.
        alone = scheduled is not None and scheduled.sets(SHAPES_EXAMPLES)
        batches: Any = self.task.training if alone or not workers else Examples(self.task, self.setup.seeds.data)
        return DataLoader(
            batches, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )

    def ask(self, name: str) -> None:
        """Make the task score another objective from now on; UserError if it supports one loss only."""
        try:
            self.task.ask(name, self.model)
        except NotImplementedError:
            task = self.config["task"]["name"]
            raise UserError(
                f"task={task} does not support --objective {name}: it has one loss only\n"
                "    try: ablatio evaluate RUN, without --objective"
            ) from None

    def score(
        self, batches: Batches, between: Callable[[int], None] = lambda n: None, model: Any = None
    ) -> dict[str, float]:
        """Score the model, or another one, with the run's task: {name: value}.

        The names are those in the task's `scores`, and its counts and errors.
        """
        device = next(self.model.parameters()).device
        with self.machine.autocast(), kept_copies({}):
            return self.task.score(self.model if model is None else model, batches, device, between)

    def evaluate(
        self,
        evaluation: Evaluation,
        between: Callable[[int], None] = lambda n: None,
        asking: Mapping[str, Any] | None = None,
    ) -> EvaluationResult:
        """Measure the model by an evaluation; calls `between(n)` after n requests.

        asking  config whose `decode` and `prompt` are used; None: that of the run.  What they draw follows from `seed`
        """
        asking = self.config if asking is None else asking
        decode = decode_part(asking)
        respond = Responder(self.model, self.tokenizer, longest_row(self.config), decode=decode, between=between)
        llm = Session(self.model, self.tokenizer, decode or most_probable, seed=int(self.config["seed"]))
        with self.machine.autocast():
            return evaluation.run(respond, Prompting.of(asking, llm))

    def feed(self, batches: int) -> None:
        """Run the model on the first training batches, as calibration data of a quantization."""
        _feed(self.model, self.task, self.setup.seeds.data, batches)

    def samples(self) -> list[dict[str, str]]:
        """Return answers of the model to the task's sample prompts; empty if it has none."""
        with self.machine.autocast():
            return self.task.samples(self.model)


class _BatchNumbers(Sampler[int]):
    """Sampler of the batch numbers start ... total - 1, each plus `skipped`.

    Its length is `total`, because Lightning counts the batches of the whole run.
    """

    def __init__(self, start: int, total: int, skipped: int) -> None:
        self.start, self.total, self.skipped = start, total, skipped

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start + self.skipped, self.total + self.skipped))

    def __len__(self) -> int:
        return self.total


def row_plan(timeline: Timeline, stabilizers: Mapping[str, Stabilizer]) -> RowPlan:
    """Return the rows and their length of each batch; schedules or a stabilizer with `batch_rows` may change them."""
    return timeline.plan_with(next((part for part in stabilizers.values() if hasattr(part, "batch_rows")), None))


def strategy_of(config: Mapping[str, Any]) -> Strategy:
    """Build the strategy of the run for the ranks of this process; one device needs none."""
    if ranks().world == 1:
        return Strategy(ranks())
    choice = PartChoice.of(config["strategy"])
    built: Any = kinds.strategies.build(choice.name, choice.knobs, ranks=ranks())
    return cast(Strategy, built)


def needs_start(config: Mapping[str, Any]) -> bool:
    """True if the task needs the model that the run began with, even in a run resumed from a checkpoint."""
    task: Any = kinds.tasks.target(config["task"]["name"])
    return bool(task.needs_start())


def _share_compiled_code() -> None:
    """Let the runs of a sweep share compiled layers in this package's cache: 5 s instead of 38 s for each further run.

    A folder that the user has set is kept.  torch sets the variable itself on import, to a folder in the temporary
    folder, so that value does not count as the user's.
    """
    chosen = os.environ.get(COMPILED)
    if chosen is None or Path(chosen).parent == Path(tempfile.gettempdir()):
        os.environ[COMPILED] = str(cache_root() / "compiled")


def build_task(spec: RunSpec, strategy: Strategy | None = None) -> tuple[TaskContext, Any, dict[str, Stabilizer]]:
    """Read the data of a run and build its task: (context, task, stabilizers by name); None: one device."""
    config, strategy = spec.config, strategy or Strategy(Ranks())
    options = config["stabilizer"] or {}
    stabilizers = {name: kinds.stabilizers.build(name, knobs) for name, knobs in options.items()}
    rows, schedules = row_plan(spec.timeline, stabilizers), spec.timeline.schedules
    setup = TaskContext(config, rows, open_reward, open_model, schedules, strategy.whole_weights)
    choice = PartChoice.of(config["task"])
    return setup, kinds.tasks.build(choice.name, choice.knobs, setup=setup), stabilizers


def _feed(model: LanguageModel, task: Task, seed: int, batches: int) -> None:
    """Run the model on the first training batches, as calibration data of a quantization."""
    for number in range(batches):
        generator, device = named_generator(seed, f"objective/{number}"), next(model.parameters()).device
        model.hidden(task.example(task.training[number], generator).to(device))


def prepare_run(spec: RunSpec, *, fresh: bool = True, counted: bool = True) -> PreparedRun:
    """Build machine settings, data, model and task of a run; the only place that builds a model for training.

    fresh    False if a checkpoint will be loaded into the model
    counted  True if size and cost will be asked for: they are counted on this model then

    Raises EnvironmentFault if training needs more memory than there is.
    """
    config = spec.config
    machine = Machine.choose(config["trainer"], from_environment())
    machine.prepare(int(config["model"]["d_model"]))
    strategy = strategy_of(config)
    setup, task, stabilizers = build_task(spec, strategy)
    spec = spec.with_ids(int(task.tokenizer.vocab_size))
    model, origin = within_memory(spec, lambda: start_model(config, task.tokenizer, setup.seeds.init, fresh=fresh))
    if counted:
        spec.count_on(model, task.row_length)
    scheduled = ScheduledSettings(spec.timeline, model)
    tuning = tune(model, config, setup.seeds.init, partial(_feed, model, task, setup.seeds.data) if fresh else None)
    origin = continue_tokens(model, config, origin)
    if config["trainer"]["compile"]:
        _share_compiled_code()
        model.compile_layers()
    task.attach(model)
    if hasattr(task.objective, "take_tokens"):
        task.objective.take_tokens([task.tokenizer.decode([i]) for i in range(task.tokenizer.vocab_size)])
    learner = TrainingModule(setup, task, model, stabilizers, tuning, scheduled, strategy)
    others = {"peft": tuning.part, "quantization": tuning.quantization, "task": task, "stabilizer": stabilizers}
    scheduled.connect(parts_of(setup.built | others | dict.fromkeys(("roles", "model"), learner.held)))
    return PreparedRun(spec, setup, task, model, learner, machine, origin, tuning)
