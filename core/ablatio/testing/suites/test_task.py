"""Tasks: numbered batches, an example and a loss for each, scores of a model."""

import copy
import itertools
from typing import Any

import torch

from ablatio.model.parameter_roles import groups_by_role, named_generator
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import checks, sample_parts, tiny_models
from ablatio.testing.digest import digest

KINDS = ("task",)
CPU = torch.device("cpu")


def _example(part: Any, number: int) -> Any:
    return part.example(part.training[number], named_generator(0, f"objective/{number}"))


def _loss(part: Any, net: Any, number: int, step: int = 0) -> Any:
    part.begin_step(net, step)
    return part.loss(net, _example(part, number))


def _scores(part: Any, net: Any) -> dict[str, float]:
    found: dict[str, float] = part.score(net, part.validation(), CPU, lambda n: None)
    return found


def test_says_what_it_is_scored_by(part: PartSpec) -> None:
    facts = part.facts
    named = facts["main"] in facts["scores"]
    assert named, f"{checks.label(part)}: the main score `{facts['main']}` is none of its scores {facts['scores']}"
    known = facts["better"] in ("lower", "higher")
    assert known, f"{checks.label(part)}: better is {facts['better']!r}; expected 'lower' or 'higher'"
    gives = REGISTRIES["source"].any_of
    assert facts["accepts"] in gives, (
        f"{checks.label(part)}: accepts {facts['accepts']!r}, and a source provides {' or '.join(gives)}"
    )


def test_batches_depend_on_their_number_alone(part: PartSpec) -> None:
    """Workers, resuming and the order of requests cannot change the batches of a run."""
    (first, _), (second, _) = sample_parts.task(part), sample_parts.task(part)
    numbers = (0, 1, 7, 40)
    forth = {n: digest([first.training[n], _example(first, n)]) for n in numbers}
    back = {n: digest([second.training[n], _example(second, n)]) for n in reversed(numbers)}
    differing = [n for n in numbers if forth[n] != back[n]]
    assert not differing, f"{checks.label(part)}: batch {differing[0]} depends on the order of requests"
    assert len(set(forth.values())) > 1, f"{checks.label(part)}: all batches are equal"
    for n in numbers:
        said = first.training[n].get("number")
        assert said is not None and int(said) == n, f"{checks.label(part)}: batch {n} has the number {said}"


def test_examples_draw_from_their_generator(part: PartSpec) -> None:
    task, _ = sample_parts.task(part)
    with checks.draws_nothing(part, "although it receives a generator"):
        _example(task, 3)


def test_loss(part: PartSpec) -> None:
    task, net = sample_parts.task(part)
    total, weight, measures = _loss(task, net.train(), 0)
    for name, value in {"total": total, "weight": weight}.items():
        one = isinstance(value, torch.Tensor) and value.numel() == 1
        assert one, f"{checks.label(part)}: the loss's {name} is {value!r:.60}; expected a tensor with one number"
        checks.finite(part, value.detach().double(), f"in the loss's {name}")
    assert float(weight) > 0, f"{checks.label(part)}: the weight of a batch is {float(weight)}"
    methods = [m for e in REGISTRIES["alignment"] for m in e.facts["metrics"]]
    unknown = sorted(measures.keys() - {*part.facts["metrics"], *methods})
    assert not unknown, (
        f"{checks.label(part)}: measures {unknown}, which `metrics` {part.facts['metrics']} does not name"
    )
    (total / weight).backward()
    reached = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()]
    assert reached, f"{checks.label(part)}: the loss gives no parameter a gradient"


def test_scores(part: PartSpec) -> None:
    task, net = sample_parts.task(part)
    before, mode, seen = copy.deepcopy(net.state_dict()), net.train().training, list[int]()
    found = task.score(net, task.validation(), CPU, seen.append)
    missing = [name for name in part.facts["scores"] if name not in found]
    assert not missing, f"{checks.label(part)}: `scores` names {missing}, which score() does not give"
    for name, value in found.items():
        plain = isinstance(value, int | float)
        assert plain, f"{checks.label(part)}: the score {name} is {value!r:.60}; expected a plain number"
    checks.finite(part, torch.tensor(found[part.facts["main"]], dtype=torch.float64), "in the main score")
    assert seen, f"{checks.label(part)}: score() never calls `between`, so a signal cannot stop it"
    assert net.training == mode, f"{checks.label(part)}: score() leaves the model in another mode"
    changed = [n for n, w in net.state_dict().items() if not torch.equal(w, before[n])]
    assert not changed, f"{checks.label(part)}: score() changes {changed[0]}"
    assert found == _scores(task, net), f"{checks.label(part)}: scoring the same model twice gives different scores"


def test_tokens_add_up(part: PartSpec) -> None:
    task, _ = sample_parts.task(part)
    counts = [task.tokens(steps) for steps in (0, 1, 2, 10)]
    rising = counts[0] == 0 and all(a < b for a, b in itertools.pairwise(counts))
    assert rising and all(isinstance(n, int) for n in counts), f"{checks.label(part)}: 0, 1, 2, 10 steps take {counts}"


def test_a_run_still_learns(part: PartSpec) -> None:
    task, net = sample_parts.task(part)
    optimizer = torch.optim.Adam([p for g in groups_by_role(net) for p in g["params"]], lr=1e-2)
    losses = []
    net.train()
    for step in range(40):
        total, weight, _ = _loss(task, net, 0, step)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        losses.append(float(total.detach() / weight))
    checks.finite(part, torch.tensor(losses), "in the loss of a tiny run")
    assert min(losses[-5:]) < losses[0], (
        f"{checks.label(part)}: 40 steps on one batch go from {losses[0]} to {losses[-1]}"
    )


def test_state_comes_back(part: PartSpec) -> None:
    """State that lasts between steps is in state_dict: a restored instance continues identically."""
    task, net = sample_parts.task(part)
    for step in range(3):
        _loss(task, net, step, step)
    again, other = sample_parts.task(part)
    other.load_state_dict(net.state_dict())
    again.load_state_dict(copy.deepcopy(task.state_dict()))
    outcomes = [digest([_loss(t, n, k, k)[:2] for k in range(3, 6)]) for t, n in ((task, net), (again, other))]
    assert outcomes[0] == outcomes[1], (
        f"{checks.label(part)}: with the state of another instance it behaves differently"
    )


def test_adds_its_weights_from_the_seed(part: PartSpec) -> None:
    """Weights that the task adds depend on the seed alone, and the model keeps all of its own."""
    (_, net), (_, again) = sample_parts.task(part), sample_parts.task(part)
    plain = tiny_models.model(vocab_size=net.vocab_size)
    assert digest(net.state_dict()) == digest(again.state_dict()), (
        f"{checks.label(part)}: attaches other weights each time"
    )
    lost = plain.state_dict().keys() - net.state_dict().keys()
    assert not lost, f"{checks.label(part)}: the model lost {sorted(lost)[0]}"
