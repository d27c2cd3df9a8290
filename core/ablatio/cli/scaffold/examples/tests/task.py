import torch

from ablatio.registry.kinds import tasks
from ablatio.testing import sample_parts


def test_targets_are_the_next_tokens():
    task, model = sample_parts.task(tasks["next_token"])
    example = task.example(task.training[0], torch.Generator())
    assert torch.equal(example.inputs[:, 1:], example.targets[:, :-1])
    total, count, _ = task.loss(model, example)
    assert count == example.targets.numel() and 4 < total / count < 7  # about ln 257 for bytes
