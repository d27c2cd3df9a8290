"""What tasks compute in a training step makes the host of a GPU wait for nothing: losses, gradients, records."""

from typing import Any

import pytest
import torch
from helpers.policies import made
from torch import Tensor

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.on_meta import meta_copy
from ablatio.model.parameter_roles import named_generator
from ablatio.model.rl.policy_outputs import policy_outputs
from ablatio.registry import kinds
from ablatio.registry.kinds import alignments
from ablatio.registry.registry import PartSpec
from ablatio.testing import sample_alignments, sample_parts
from ablatio.testing.device_waits import meta_as_gpu
from ablatio.training.lightning_module import on_device
from ablatio_std.tasks._policy_batches import HeldRollout

USUAL = ("ppo", "online_dpo")
METHODS = [
    pytest.param(e.name, marks=[] if e.name in USUAL else pytest.mark.long)
    for e in alignments
    if e.facts["data"] == "prompts"
]
META = torch.device("meta")


def on_meta(rollout: Rollout) -> Rollout:
    return Rollout(*(getattr(rollout, name).to(META) for name in Rollout.__slots__))


def moved(task: Any) -> None:
    """The state of a policy as on a GPU; the copy of the rollout on the CPU stays."""
    host = task.rollout
    task.rollout = on_meta(host)
    task._held_rollout = HeldRollout(task.rollout, host)
    task.words, task.measures = on_device(task.words, META), on_device(task.measures, META)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_rollout(name: str) -> None:
    """Rows of prompts of several lengths; the answers end at different places."""
    task, model = made(name, answer_tokens=6, prompt_tokens=6, accumulate=2)
    task.begin_step(model, 0)
    net = meta_copy(model).train()
    moved(task)
    with meta_as_gpu():
        for number in range(2):
            total, weight, _ = task.loss(net, task.example(task.training[number], named_generator(0, "x")))
            if total.requires_grad:  # best-of-n sampling does not train
                (total / weight).backward()
    assert task.asking.work.learnt > 0


@pytest.mark.parametrize("name", ["preference", "reward", "process_reward"])
def test_a_step_on_given_answers(name: str) -> None:
    task, model = sample_parts.task(kinds.tasks[name])
    example, net = task.example(task.training[0], named_generator(0, "x")).to(META), meta_copy(model).train()
    with meta_as_gpu():
        total, weight, _ = task.loss(net, example)
        (total / weight).backward()


@pytest.mark.parametrize("part", [e for e in alignments if e.facts["data"] != "prompts"], ids=lambda e: e.name)
def test_a_loss_on_given_answers(part: PartSpec) -> None:
    method = sample_alignments.made(part)
    words = sample_alignments.batch(part.facts["data"])
    given = {word: words[word] for word in part.facts["asks"]["loss"]}
    given = {
        w: x.to(META).requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x for w, x in given.items()
    }
    with meta_as_gpu():
        loss, _ = method.loss(**given)
        loss.backward()


def test_outputs_with_a_plan_are_those_without() -> None:
    """Also of answers that are filled up, with prompts that several of them share."""
    task, model = made("ppo", answer_tokens=6, prompt_tokens=6)
    task.begin_step(model, 0)
    task.rollout.mask[::3, 2:] = 0
    held = HeldRollout.of(task.rollout)
    rows = torch.tensor([5, 0, 3, 3])
    part = held[rows]
    found = policy_outputs(model, part.rollout, head=model.value_head, plan=part.plan)
    whole = policy_outputs(model, task.rollout, head=model.value_head)
    kept = task.rollout.mask[rows].bool()
    for own, other in zip(found, whole, strict=True):
        torch.testing.assert_close(own, other[rows], rtol=1e-5, atol=1e-6)
        assert not own[~kept].any()
    assert part.answer_tokens == float(kept.sum()) and not kept.all()
    apart = sum(int(n) - 1 for n in part.host.prompt_length) + part.answer_tokens
    once = len({tuple(part.host.prompt(row)) for row in range(4)})
    assert part.plan.read_apart == apart and part.plan.read < apart and once == 3
    _reads(model, part, part.plan.read if model.shared_prefix else part.plan.read_apart)


def _reads(model: Any, part: HeldRollout, expected: int) -> None:
    """The plan counts what passes through the model, at most: a second pass may cost more than it saves."""
    seen: list[Tensor] = []
    model.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    policy_outputs(model, part.rollout, plan=part.plan)
    assert sum(t.numel() for t in seen) >= expected
