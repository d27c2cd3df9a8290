"""Observable behavior of a part on fixed inputs, as one digest: equal digests mean equal behavior.

A plugin that adds a kind can define in any of its modules how the kind's parts are observed:

    @observes("sampler")
    def _sampler(entry, knobs):
        return samples.made(entry, knobs)(torch.linspace(-3, 3, 64))
"""

import functools
import random
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablatio.data.filters import verdicts
from ablatio.model.kv_cache import KVCache
from ablatio.model.parameter_roles import named_generator
from ablatio.model.prompting.answers import answer_all
from ablatio.model.ranks import Ranks
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import (
    sample_alignments,
    sample_evaluations,
    sample_files,
    sample_parts,
    sample_texts,
    sample_use,
    tiny_models,
)
from ablatio.testing.digest import digest

Observer = Callable[[PartSpec, Mapping[str, Any]], Any]
OBSERVERS: dict[str, Observer] = {}
TOTALS = (1, 2, 10, 1000)


def observes(*kinds: str) -> Callable[[Observer], Observer]:
    """Decorator: register the observer of these kinds, which returns tensors, numbers, strings or nests of them."""

    def add(function: Observer) -> Observer:
        OBSERVERS.update(dict.fromkeys(kinds, function))
        return function

    return add


def observe(entry: PartSpec, knobs: Mapping[str, Any] | None = None, seed: int = 0) -> str:
    """Digest of a part's observable behavior with these knobs; the others have their defaults."""
    REGISTRIES[entry.kind].target(entry.name)  # a plugin's module may bring the observer of its kind
    look = OBSERVERS.get(entry.kind, _attached if REGISTRIES[entry.kind].attaches else _plain_object)
    with isolated(seed):
        return digest(look(entry, entry.defaults | dict(knobs or {})))


@contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """Context manager: fixed global random states inside, the previous ones restored afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def tensors_of(value: object) -> list[Tensor]:
    """Tensors in an object's state: parameters, buffers and plain attributes."""
    if isinstance(value, nn.Module):
        return [*value.state_dict().values(), *(b for _, b in value.named_buffers())]
    return [v for v in vars(value).values() if isinstance(v, Tensor)] if hasattr(value, "__dict__") else []


def gradients(value: object) -> list[Tensor | None]:
    """Gradients of a module's parameters; empty for other objects."""
    return [p.grad for p in value.parameters()] if isinstance(value, nn.Module) else []


def _plain_object(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """For a kind without an observer: the attributes of a part that can be built from its knobs alone."""
    made = sample_parts.made(entry, knobs)
    return vars(made) if hasattr(made, "__dict__") else made


def _attached(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """For a kind whose parts attach to the model: outputs for random states in training and eval mode, gradients."""
    part = sample_parts.attached(entry, knobs).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    outputs = [part.train(training)(x) for training in (True, False)]
    torch.stack(outputs).square().sum().backward()  # type: ignore[no-untyped-call]
    return [outputs, x.grad, tensors_of(part), gradients(part)]


@observes("norm")
def _norm(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    norm = sample_parts.made(entry, knobs, d_model=16).double()
    x = torch.randn(4, 3, 16, dtype=torch.float64, requires_grad=True)
    outputs = [norm(x * scale + shift) for scale, shift in ((1, 0), (1e-4, 0), (1e3, 0), (1, 3), (0, 0))]
    torch.stack(outputs).square().sum().backward()  # type: ignore[no-untyped-call]
    return [outputs, x.grad, tensors_of(norm), gradients(norm)]


@observes("activation")
def _activation(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part = sample_parts.activation(entry, knobs, d_ff=64, dtype=torch.float64)
    x = torch.cat([torch.linspace(-8, 8, 48), torch.tensor([*range(-80, 80, 10)])]).double().requires_grad_()
    y = part(x, *([x.detach().flip(0)] if entry.facts["gated"] else []))
    y.sum().backward()
    return [y, x.grad, tensors_of(part)]


@observes("position")
def _position(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    seen = []
    for causal in (True, False):
        part = sample_parts.position(entry, knobs, causal=causal)
        places = [*range(24), *([100, 150, 400, 900, 5000] if entry.facts["extends"] else [])]
        seen += [sample_parts.use_position(entry, part, torch.tensor(places)), tensors_of(part)]
    # Scalings that depend on the rotations within max_len only differ if there are enough frequency pairs.
    wide = sample_parts.position(entry, knobs, d_model=sample_parts.HEADS * 64, d_head=64, max_len=2048)
    seen.append(sample_parts.use_position(entry, wide, torch.tensor([0, 1, 100, 2000]), width=64))
    return [seen, _model(entry, knobs)]


@observes("placement", "mlp", "attention", "block", "embedding", "head", "architecture", "init")
def _model(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    return _behavior(entry, knobs)


def _behavior(entry: PartSpec, knobs: Mapping[str, Any], **sizes: int) -> Any:
    """Weights, outputs and gradients of the small model with this part, with these sizes, and its decoding."""
    net = tiny_models.model(entry, knobs, **sizes).double()
    seen: list[Any] = [net.state_dict(), net.eval()(tiny_models.tokens())]
    net.train()
    batch = tiny_models.example()
    tiny_models.mean_loss(net, batch).backward()  # type: ignore[no-untyped-call]
    seen.append(gradients(net))
    if tiny_models.attention_facts(entry)["caches"]:
        cache, row = KVCache(), tiny_models.tokens(1)
        with torch.no_grad():
            seen += [net.eval()(row[:, :10], cache=cache), net(row[:, 10:], cache=cache)]
            if hasattr(net, "encoder"):  # a source that begins with eos, and the first token of its target
                row[:, 0] = net.eos
                seen.append(net.read(row, None, KVCache()))
    return seen


@observes("shortcut")
def _shortcut(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """In a model of five layers, in which halves, ends and periods differ."""
    return _behavior(entry, knobs, n_layers=5)


@observes("objective")
def _objective(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part = sample_parts.objective(entry, knobs, max_len=128)
    rows, segments = sample_parts.token_rows(length=129)
    examples = [part(rows, s, named_generator(i, "observe")) for s in (None, segments) for i in range(4)]
    if not hasattr(part, "loss"):
        return examples
    losses = [part.loss(tiny_models.model(entry, max_len=128), example) for example in examples[::4]]
    return [examples, getattr(part, "teacher", None), losses]


@observes("optimizer")
def _optimizer(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    groups = sample_parts.groups(torch.float64)
    optimizer = sample_parts.made(entry, knobs, groups=groups)
    generator, seen = torch.Generator().manual_seed(1), []
    for step in range(12):
        for p in sample_parts.parameters(groups):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 10.0 ** -(step % 4)
        if hasattr(optimizer, "observe"):  # called before the step is taken
            weights, sizes = sample_parts.parameters(groups), [10.0 ** -(i % 3) for i in range(12)]
            loss = functools.partial(_bowl, weights, sizes[step])
            optimizer.observe(types.SimpleNamespace(index=step, n_targets=8, sampled_loss=loss))
        optimizer.step()
        seen += [p.detach().clone() for p in sample_parts.parameters(groups)]
    return seen


def _bowl(weights: Sequence[Tensor], size: float) -> Tensor:
    return torch.stack([w.square().sum() for w in weights]).sum() * size


@observes("schedule")
def _schedule(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    plain, flat = sample_parts.schedule(entry, knobs), [5.0, 4.0, 3.999, 3.998, *[3.9] * 40]
    watched = [sample_parts.schedule(entry, knobs, flat[:n])(500, 1000) for n in range(len(flat) + 1)]
    return [watched, [float(plain(step, total)) for total in TOTALS for step in range(total + 2)]]


@observes("stabilizer")
def _stabilizer(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    net, part, seen = tiny_models.model(), sample_parts.made(entry, knobs), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = tiny_models.run(net, optimizer, 48, hooks=[part], spike=40, seen=lambda *given: seen.append(given))
    rows = [part.batch_rows(n * 1000, 64) for n in range(500)] if hasattr(part, "batch_rows") else []
    kept = part.state_dict() if hasattr(part, "state_dict") else {}
    flat = [5.0, 4.0, 3.999, 3.998, *[3.9] * 40]
    rows += [part.stops(flat[:n]) for n in range(len(flat) + 1)] if hasattr(part, "stops") else []
    return [losses, seen, rows, kept, net.state_dict(), tensors_of(part)]


@observes("peft")
def _peft(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    net, part = sample_parts.tuned(entry, knobs)
    net.double()
    seen: list[Any] = [net.state_dict(), [n for n, p in net.named_parameters() if p.requires_grad]]
    seen.append(tiny_models.tune(net, part, 6, lr=3e-2))
    return [*seen, net.state_dict(), net.eval()(tiny_models.tokens())]


@observes("quantization")
def _quantization(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    net = tiny_models.model(entry)
    tiny_models.quantize(net, sample_parts.made(entry, knobs))
    seen = [
        net.state_dict(),
        net.eval()(tiny_models.tokens()),
        net(8 * tiny_models.tokens().flip(0) % tiny_models.VOCAB),
    ]
    return [*seen, tiny_models.run(net, tiny_models.adamw(net), 3), net.state_dict()]


@observes("checkpointing")
def _checkpointing(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    net = sample_parts.recomputed(entry, knobs)
    loss, kept = sample_parts.kept_for_backward(net)
    loss.backward()  # type: ignore[no-untyped-call]
    return [kept, loss, gradients(net)]


@observes("strategy")
def _strategy(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """Its settings: what it computes is that of one device (test_strategy)."""
    made = sample_parts.made(entry, knobs, ranks=Ranks())
    return {name: value for name, value in vars(made).items() if name != "ranks"}


@observes("alignment")
def _alignment(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """Two batches; policy methods observe the KL of a rollout before the second."""
    part, seen, asks = sample_parts.made(entry, knobs), list[Any](), entry.facts["asks"]
    for seed in range(2):
        words = sample_alignments.batch(entry.facts["data"], seed, group=getattr(part, "group", 1))
        if "advantages" in asks:
            found = part.advantages(**{w: words[w] for w in asks["advantages"]})
            words |= {"advantages": found.advantages, "returns": found.returns}
            seen.append(found)
        given = sample_alignments.leaves(words, asks["loss"])
        loss, metrics = part.loss(**given)
        loss.backward()
        seen += [loss, metrics, [getattr(x, "grad", None) for x in given.values()]]
        if hasattr(part, "observe"):
            part.observe(9.0)
    stops = [part.stops(kl / 100) for kl in range(20)] if hasattr(part, "stops") else []
    moves = [part.reference_rate(step) for step in range(300)] if hasattr(part, "reference_rate") else []
    hard = [part.least_entropy, part.hardness(sample_alignments.logits())] if hasattr(part, "hardness") else []
    settings = [v for v in vars(part).values() if isinstance(v, int | str)]  # what the task reads: group, epochs ...
    return [seen, stops, moves, hard, settings]


@observes("reward")
def _reward(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    return sample_parts.reward(entry, knobs)(sample_parts.answers())


@observes("eval")
def _eval(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part = sample_evaluations.evaluation(entry, knobs)
    return [list(part.items()), getattr(part, "measured_by", entry.facts["measured_by"])]


@observes("metric")
def _metric(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """Requests and values of sample items; of a metric that runs programs its settings only."""
    measure = sample_evaluations.metric(entry, knobs)
    asked = [list(measure.metric.requests(item)) for item in measure.items]
    if entry.facts["runs_code"]:
        return [asked, sorted(vars(measure.metric).items())]
    found = sample_evaluations.scored(measure)
    return [asked, [s.values for s in found], measure.summary(found)]


@observes("decode")
def _decode(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """Continuations of a few prompts, short and long, that may also end at a token."""
    part = sample_parts.made(entry, knobs)
    jobs = (sample_use.job(new_tokens=3), sample_use.job(new_tokens=12), sample_use.job(stops=tuple(range(20, 32))))
    with torch.no_grad():
        return [part(job) for job in jobs]


@observes("prompt")
def _prompt(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """The replies to two questions, and every call that the program made of the model."""
    llm, program = sample_use.scripted(), sample_use.program(entry, knobs)
    replies = answer_all(program, llm, sample_use.EXAMPLES, sample_use.QUESTIONS)
    return [replies, llm.calls, llm.scored, llm.asked]


@observes("launcher")
def _launcher(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """Its settings only; what it does with them is tested in its suite and in tests/sweep."""
    part = sample_parts.launcher(entry, knobs)
    return [part.slots, {k: v for k, v in vars(part).items() if _is_plain(v)}]


def _is_plain(value: Any) -> bool:
    """True for numbers, strings and None, and for dicts of them."""
    values = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(v, int | float | str | None) for v in values)


@observes("design")
def _design(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    design = sample_parts.design(entry, knobs)
    asked = sample_parts.searched(design) if hasattr(design, "more") else [dict(arm) for arm in design.arms()]
    return [design.count(), asked, design.aliases() if hasattr(design, "aliases") else []]


@observes("source")
def _source(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part = sample_parts.source(entry, knobs)
    return [part.fingerprint(), list(sample_parts.first_documents(part))]


@observes("filter")
def _filter(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    given = {k: v for k, v in knobs.items() if v != ""}
    part = sample_parts.filter_part(entry, given)
    return list(verdicts(part, sample_texts.training(), sample_texts.held_out()))


@observes("mixture")
def _mixture(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    return dict(sample_parts.mixture(entry, knobs).shares())


@observes("curriculum")
def _curriculum(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part, seen, base = sample_parts.curriculum(entry, knobs), list[Any](), {"law": 0.2, "people": 0.3, "web": 0.5}
    for place in (i / 40 for i in range(41)):
        seen += [part.shares(place, base)] if hasattr(part, "shares") else []
        seen += [part.easiest(place)] if hasattr(part, "easiest") else []
    return [seen, [part.difficulty(t) for t in sample_texts.training()] if hasattr(part, "difficulty") else []]


@observes("task")
def _task(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part, net = sample_parts.task(entry, knobs)
    seen: list[Any] = [part.content, part.tokens(10), part.tokenizer.vocab_size]
    for number in range(3):
        batch = part.training[number]
        example = part.example(batch, named_generator(number, "observe"))
        if hasattr(part, "begin_step"):
            part.begin_step(net, number)
        total, weight, measures = part.loss(net, example)
        (total / weight).backward()
        seen += [batch, total, weight, measures]
    seen.append(gradients(net))
    return [*seen, part.score(net, part.validation(), torch.device("cpu"), lambda n: None)]


@observes("tokenizer")
def _tokenizer(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    part = sample_parts.tokenizer(entry, knobs)
    return [part.vocab_size, part.eos, part.state(), list(part.encode(sample_files.TEXTS)), part.token_bytes()]


@observes("logger")
def _logger(entry: PartSpec, knobs: Mapping[str, Any]) -> Any:
    """Its settings only; what it writes is tested in the suite of the kind."""
    made = sample_parts.logger(entry, Path("runs") / "one", knobs)
    settings = (str, bool, int, Path, Mapping, tuple, list)
    return sorted((k, repr(v)) for k, v in vars(made).items() if isinstance(v, settings))
