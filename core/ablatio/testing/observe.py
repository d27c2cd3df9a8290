"""What can be seen of a part from outside, on fixed inputs, as one digest: equal digests, equal behaviour.

A plugin that adds a kind can say, in any module of its package, how its parts are looked at:

    @observes("sampler")
    def _sampler(entry, knobs):
        return samples.made(entry, knobs)(torch.linspace(-3, 3, 64))
"""

import dataclasses
import functools
import hashlib
import random
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablatio.model.cache import KVCache
from ablatio.model.roles import named_generator
from ablatio.registry import REGISTRIES, Entry
from ablatio.testing import alignments, samples, tiny

Observer = Callable[[Entry, Mapping[str, Any]], Any]
OBSERVERS: dict[str, Observer] = {}
TOTALS = (1, 2, 10, 1000)


def observes(*kinds: str) -> Callable[[Observer], Observer]:
    """Decorator: how the parts of these kinds are looked at.  The function gives tensors, numbers, texts, or nests."""

    def add(function: Observer) -> Observer:
        OBSERVERS.update(dict.fromkeys(kinds, function))
        return function

    return add


def observe(entry: Entry, knobs: Mapping[str, Any] | None = None, seed: int = 0) -> str:
    """The digest of all that can be seen of a part with these knobs (the defaults for those not given)."""
    REGISTRIES[entry.kind].target(entry.name)  # a plugin's module may bring the observer of its kind
    look = OBSERVERS.get(entry.kind, _plain_object)
    with isolated(seed):
        return digest(look(entry, entry.defaults | dict(knobs or {})))


@contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """Fixed global random states inside, the old ones after."""
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


def digest(value: Any) -> str:
    """sha256 over tensors, arrays, numbers, texts and nests of them."""
    total = hashlib.sha256()
    for piece in _pieces(value):
        total.update(piece)
    return total.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        plain = plain.float() if plain.dtype is torch.bfloat16 else plain
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield plain.contiguous().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _pieces([field.name, getattr(value, field.name)])
    elif isinstance(value, Mapping):
        yield from _pieces([piece for pair in value.items() for piece in pair])
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, bool | int | float | str | bytes | None):
        yield f"{type(value).__name__}:{value!r};".encode()
    else:
        yield f"{type(value).__name__};".encode()


def tensors_of(value: object) -> list[Tensor]:
    """Tensors in an object's state: parameters, buffers and plain attributes."""
    if isinstance(value, nn.Module):
        return [*value.state_dict().values(), *(b for _, b in value.named_buffers())]
    return [v for v in vars(value).values() if isinstance(v, Tensor)] if hasattr(value, "__dict__") else []


def gradients(value: object) -> list[Tensor | None]:
    return [p.grad for p in value.parameters()] if isinstance(value, nn.Module) else []


def _plain_object(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    """Of a kind without an observer: the state of the part, when it can be made from its knobs alone."""
    made = samples.made(entry, knobs)
    return vars(made) if hasattr(made, "__dict__") else made


@observes("norm")
def _norm(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    norm = samples.made(entry, knobs, d_model=16).double()
    x = torch.randn(4, 3, 16, dtype=torch.float64, requires_grad=True)
    outputs = [norm(x * scale + shift) for scale, shift in ((1, 0), (1e-4, 0), (1e3, 0), (1, 3), (0, 0))]
    torch.stack(outputs).square().sum().backward()  # type: ignore[no-untyped-call]
    return [outputs, x.grad, tensors_of(norm), gradients(norm)]


@observes("activation")
def _activation(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    part = samples.activation(entry, knobs, d_ff=64, dtype=torch.float64)
    x = torch.cat([torch.linspace(-8, 8, 48), torch.tensor([*range(-80, 80, 10)])]).double().requires_grad_()
    y = part(x, *([x.detach().flip(0)] if entry.facts["gated"] else []))
    y.sum().backward()
    return [y, x.grad, tensors_of(part)]


@observes("position")
def _position(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    seen = []
    for causal in (True, False):
        part = samples.position(entry, knobs, causal=causal)
        places = [*range(24), *([100, 150, 400, 900, 5000] if entry.facts["extends"] else [])]
        seen += [samples.use_position(entry, part, torch.tensor(places)), tensors_of(part)]
    # Frequencies by the number of turns within max_len differ only where there are more than a handful of pairs.
    wide = samples.position(entry, knobs, d_model=samples.HEADS * 64, d_head=64, max_len=2048)
    seen.append(samples.use_position(entry, wide, torch.tensor([0, 1, 100, 2000]), width=64))
    return [seen, _model(entry, knobs)]


@observes("placement", "mlp", "attention", "block", "architecture", "init")
def _model(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    net = tiny.model(entry, knobs).double()
    seen: list[Any] = [net.state_dict(), net.eval()(tiny.tokens())]
    net.train()
    batch = tiny.example()
    tiny.mean_loss(net, batch).backward()  # type: ignore[no-untyped-call]
    seen.append(gradients(net))
    if tiny.attention_facts(entry)["caches"]:
        cache, row = KVCache(), tiny.tokens(1)
        with torch.no_grad():
            seen += [net.eval()(row[:, :10], cache=cache), net(row[:, 10:], cache=cache)]
    return seen


@observes("objective")
def _objective(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    part = samples.objective(entry, knobs, max_len=128)
    rows, segments = samples.token_rows(length=129)
    examples = [part(rows, s, named_generator(i, "observe")) for s in (None, segments) for i in range(4)]
    if not hasattr(part, "loss"):
        return examples
    losses = [part.loss(tiny.model(max_len=128), example) for example in examples[::4]]
    return [examples, getattr(part, "teacher", None), losses]


@observes("optimizer")
def _optimizer(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    groups = samples.groups(torch.float64)
    optimizer = samples.made(entry, knobs, groups=groups)
    generator, seen = torch.Generator().manual_seed(1), []
    for step in range(12):
        for p in samples.parameters(groups):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 10.0 ** -(step % 4)
        if hasattr(optimizer, "observe"):  # it looks at the step before it is taken
            weights, sizes = samples.parameters(groups), [10.0 ** -(i % 3) for i in range(12)]
            loss = functools.partial(_bowl, weights, sizes[step])
            optimizer.observe(types.SimpleNamespace(index=step, n_targets=8, sampled_loss=loss))
        optimizer.step()
        seen += [p.detach().clone() for p in samples.parameters(groups)]
    return seen


def _bowl(weights: Sequence[Tensor], size: float) -> Tensor:
    return torch.stack([w.square().sum() for w in weights]).sum() * size


@observes("schedule")
def _schedule(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    plain, flat = samples.schedule(entry, knobs), [5.0, 4.0, 3.999, 3.998, *[3.9] * 40]
    watched = [samples.schedule(entry, knobs, flat[:n])(500, 1000) for n in range(len(flat) + 1)]
    return [watched, [float(plain(step, total)) for total in TOTALS for step in range(total + 2)]]


@observes("stabilizer")
def _stabilizer(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    net, part, seen = tiny.model(), samples.made(entry, knobs), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = tiny.run(net, optimizer, 48, hooks=[part], spike=40, seen=lambda *given: seen.append(given))
    rows = [part.batch_rows(n * 1000, 64) for n in range(500)] if hasattr(part, "batch_rows") else []
    kept = part.state_dict() if hasattr(part, "state_dict") else {}
    return [losses, seen, rows, kept, net.state_dict(), tensors_of(part)]


@observes("peft")
def _peft(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    net, part = samples.tuned(entry, knobs)
    net.double()
    seen: list[Any] = [net.state_dict(), [n for n, p in net.named_parameters() if p.requires_grad]]
    seen.append(tiny.tune(net, part, 6, lr=3e-2))
    return [*seen, net.state_dict(), net.eval()(tiny.tokens())]


@observes("quantization")
def _quantization(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    net = tiny.model(entry)
    samples.made(entry, knobs).apply(net)
    seen = [net.state_dict(), net.eval()(tiny.tokens()), net(8 * tiny.tokens().flip(0) % tiny.VOCAB)]
    return [*seen, tiny.run(net, tiny.adamw(net), 3), net.state_dict()]


@observes("checkpointing")
def _checkpointing(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    net = samples.recomputed(entry, knobs)
    loss, kept = samples.kept_for_backward(net)
    loss.backward()  # type: ignore[no-untyped-call]
    return [kept, loss, gradients(net)]


@observes("alignment")
def _alignment(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    """Two batches: policy methods are told of a rollout's KL before the second."""
    part, seen, asks = samples.made(entry, knobs), list[Any](), entry.facts["asks"]
    for seed in range(2):
        words = alignments.batch(entry.facts["data"], seed, group=getattr(part, "group", 1))
        if "advantages" in asks:
            found = part.advantages(**{w: words[w] for w in asks["advantages"]})
            words |= {"advantages": found.advantages, "returns": found.returns}
            seen.append(found)
        given = alignments.leaves(words, asks["loss"])
        loss, metrics = part.loss(**given)
        loss.backward()
        seen += [loss, metrics, [getattr(x, "grad", None) for x in given.values()]]
        if hasattr(part, "observe"):
            part.observe(9.0)
    stops = [part.stops(kl / 100) for kl in range(20)] if hasattr(part, "stops") else []
    moves = [part.reference_rate(step) for step in range(300)] if hasattr(part, "reference_rate") else []
    hard = [part.least_entropy, part.hardness(alignments.logits())] if hasattr(part, "hardness") else []
    settings = [v for v in vars(part).values() if isinstance(v, int | str)]  # what the task reads: group, epochs ...
    return [seen, stops, moves, hard, settings]


@observes("reward")
def _reward(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    return samples.reward(entry, knobs)(samples.answers())


@observes("launcher")
def _launcher(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    """The settings that it runs by; what it does with them is in its suite and in tests/sweep."""
    part = samples.launcher(entry, knobs)
    return [part.slots, {k: v for k, v in vars(part).items() if isinstance(v, int | float | str | None)}]


@observes("design")
def _design(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    design = samples.design(entry, knobs)
    asked = samples.searched(design) if hasattr(design, "more") else [dict(arm) for arm in design.arms()]
    return [design.count(), asked, design.aliases() if hasattr(design, "aliases") else []]


@observes("source")
def _source(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    part = samples.source(entry, knobs)
    return [part.fingerprint(), list(samples.first_documents(part))]


@observes("task")
def _task(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    part, net = samples.task(entry, knobs)
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
def _tokenizer(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    part = samples.tokenizer(entry, knobs)
    return [part.vocab_size, part.eos, part.state(), list(part.encode(samples.TEXTS)), part.token_bytes()]


@observes("logger")
def _logger(entry: Entry, knobs: Mapping[str, Any]) -> Any:
    """What it was told; what it writes is looked at in the suite of the kind."""
    made = samples.logger(entry, Path("runs") / "one", knobs)
    return sorted((k, v) for k, v in vars(made).items() if isinstance(v, str | bool | int))
