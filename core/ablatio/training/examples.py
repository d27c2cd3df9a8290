"""Training examples by the number of their batch, made in the processes that read the data, if there are any."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ablatio.model.parameter_roles import named_generator
from ablatio.model.ranks import ranks
from ablatio.model.task import Task

EXAMPLE = "example"  # key of a batch that has its example
SHAPES_EXAMPLES = ("objective", "task")  # sections with settings that examples are made by


def make_example(task: Task, batch: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """Make the task's example of a batch, cut to the rows of this rank: {"number", "example"}, on the CPU.

    Its random draws depend on the number of the batch alone, so any process may make it.
    """
    number = int(batch["number"])
    example = task.example(batch, named_generator(seed, f"objective/{number}"))
    return {"number": number, EXAMPLE: task.own_rows(example, ranks()) if ranks().world > 1 else example}


class Examples(Dataset[dict[str, Any]]):
    """The examples of a task's training batches by number; objectives that loop over rows then delay no step."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed

    def __getitem__(self, number: int) -> dict[str, Any]:
        return make_example(self.task, self.task.training[number], self.seed)
