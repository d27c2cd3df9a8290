"""Small policy tasks for tests: a task with one alignment method and one reward, its model, and a training step."""

from ablatio.data.order import RowPlan
from ablatio.model.parameter_roles import named_generator
from ablatio.registry.kinds import alignments, rewards, tasks
from ablatio.testing import sample_parts, tiny_models
from ablatio.training.initial_weights import start_model
from ablatio.training.task_context import TaskContext


def made(
    method="ppo",
    reward="length",
    *,
    batch_size=8,
    accumulate=1,
    method_knobs=(),
    reward_knobs=(),
    source="documents",
    **knobs,
):
    """Returns (task, model) for one alignment method and one reward."""
    entry = tasks["policy"]
    config = tiny_models.config(entry, knobs, max_len=160) | sample_parts._learned_from(source)
    config["alignment"] = {"name": method, **alignments[method].defaults, **dict(method_knobs)}
    config["reward"] = {"name": reward, **rewards[reward].defaults, **dict(reward_knobs)}
    config["data"] |= {"val_fraction": 0.3}
    config.setdefault("template", {"name": "plain"})
    config["train"] |= {"batch_size": batch_size, "accumulate": accumulate}
    setup = TaskContext(config, RowPlan(batch_size, accumulate))
    task = tasks.build("policy", knobs, setup=setup)
    model, _ = start_model(config, task.tokenizer, 0)
    task.attach(model)
    task.prepare(model)
    return task, model


def step(task, model, number, optimizer=None):
    task.begin_step(model, number)
    total, weight, measures = task.loss(model, task.example(task.training[number], named_generator(0, "x")))
    if optimizer is not None:
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    return float(total.detach() / weight), measures
