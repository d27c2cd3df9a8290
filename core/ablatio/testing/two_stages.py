"""A model cut into two stages, which compute one after the other in this process, as strategies divide layers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.stages import Stage, forget_others, held_by_stages, microbatches_of
from ablatio.model.strategy import Pass

COUNT = 2


def gradients(
    net: LanguageModel, example: Example, loss: Callable[[Any, Any], Loss], parts: int = 1
) -> dict[str, Tensor]:
    """The summed loss, as "loss", and the gradients by name, of two stages for a batch in equal parts.

    Each stage holds the numbers of its own tensors alone; what both use gets the sum of both gradients.
    """
    copies = [copy.deepcopy(net) for _ in range(COUNT)]
    stages = [Stage(Pass(own, loss), number, COUNT) for number, own in enumerate(copies)]
    for number, own in enumerate(copies):
        forget_others(held_by_stages(own, COUNT), number)
    batches = microbatches_of(example, parts)
    for stage in stages:
        stage.feed(batches)
    first, last = stages
    for batch in batches:
        sent = first(torch.zeros(1))
        received = sent.detach().requires_grad_()
        assert received.shape == first.states_like(batch).shape, "the shape of the states between stages"
        last(received)[0].backward()
        if sent.requires_grad:
            sent.backward(received.grad)
    found: dict[str, Tensor] = {"loss": sum((t.total for s in stages for t in s.taken), torch.zeros(()))}
    for own in copies:
        for name, p in own.named_parameters():
            if p.grad is not None:
                found[name] = found[name] + p.grad if name in found else p.grad
    return found
