"""Parts built in isolation with plausible wiring, and the inputs used by the suites."""

import atexit
import functools
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.data.order import RowPlan
from ablatio.data.types import Document
from ablatio.errors import UserError
from ablatio.model.activation_checkpointing import observed_storage
from ablatio.model.builder import ModelBuilder
from ablatio.model.context import Context, make_context
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.model.peft.adapter_files import save_adapter
from ablatio.model.rl.answers import Answer
from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.registry.kinds.search_space import Arm, Axis, Trial, TrialResult
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import sample_mixtures, tiny_models
from ablatio.testing.sample_files import TEXTS, sample_files, sample_text, sample_tokenizer
from ablatio.testing.sample_judges import SampleModel, SampleReward
from ablatio.testing.sample_tables import SampleWriter
from ablatio.training.initial_weights import start_model
from ablatio.training.task_context import TaskContext

Knobs = Mapping[str, Any]
HEADS, WIDTH = 4, 8


def made(entry: PartSpec, knobs: Knobs | None = None, **wiring: Any) -> Any:
    """Build a part as the model does; a tokenizer with a knob `path` reads a generated tokenizer.json."""
    knob = entry.knob("path")
    if entry.kind == "tokenizer" and knob and (knobs or {}).get("path", knob.default) == knob.default:
        knobs = {**(knobs or {}), "path": str(sample_tokenizer())}
    return REGISTRIES[entry.kind].build(entry.name, knobs, **wiring)


def attached(entry: PartSpec, knobs: Knobs | None = None, **wiring: Any) -> Any:
    """A part of a kind that attaches to the model (`Registry.attaches`), as in the first of two layers of width 16."""
    plain = {"d_model": 16, "n_layers": 2, "layer": 0, "sublayer": "attention", "side": "decoder", "max_len": 32}
    return made(entry, knobs, **plain | wiring)


AXES = tuple(Axis(key, ("low", "high")) for key in ("norm", "position", "mlp", "model.d_ff", "optimizer.lr", "init"))


def design(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A design with six axes of two values; the baseline has the first value of each."""
    return made(entry, knobs, axes=AXES, baseline={axis.key: "low" for axis in AXES})


def launcher(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A launcher that calls `obey` for each request; a cluster is simulated on this machine."""
    knob = entry.knob("cluster")
    given = {"cluster": "local"} if knob and "local" in knob.choices else {}
    return made(entry, {**given, **(knobs or {})}, work=obey)


def obey(order: LaunchRequest, threads: int) -> int:
    """Exit with the code `order.attempt`; jobs named `signal` die by that signal, jobs named `sleep` do not end."""
    if order.job == "signal":
        os.kill(os.getpid(), order.attempt)
    if order.job == "sleep":
        time.sleep(600)
    return order.attempt


obey.warm = lambda: None  # type: ignore[attr-defined]


def searched(part: Any, most: int = 200) -> list[Trial]:
    """All trials that a search proposes when the loss grows with the number of high values."""
    told: list[TrialResult] = []
    while len(told) < most and (asks := part.more(told)):
        told += [TrialResult(ask, loss_of(ask.arm) / ask.share) for ask in asks]
    return [t.ask for t in told]


def loss_of(arm: Arm) -> float:
    """Loss of an arm: grows with each value `high`."""
    return sum((value == "high") * (i + 1) for i, value in enumerate(arm.values())) + 1.0


def activation(entry: PartSpec, knobs: Knobs | None = None, *, d_ff: int, dtype: torch.dtype = torch.float32) -> Any:
    """An activation in the given dtype."""
    part = made(entry, knobs, d_ff=d_ff)
    return part.to(dtype) if isinstance(part, nn.Module) else part


def position(
    entry: PartSpec,
    knobs: Knobs | None = None,
    *,
    causal: bool = True,
    dtype: torch.dtype = torch.float64,
    **sizes: int,
) -> Any:
    """A position encoding for HEADS heads of width WIDTH, in the given dtype."""
    plain = {"d_model": HEADS * WIDTH, "d_head": WIDTH, "n_heads": HEADS, "n_layers": 2, "max_len": 32}
    part = made(entry, knobs, causal=causal, **plain | sizes)
    return part.to(dtype) if isinstance(part, nn.Module) else part


def use_position(
    entry: PartSpec, part: Any, pos: Tensor, dtype: torch.dtype = torch.float64, width: int = WIDTH
) -> dict[str, Any]:
    """Outputs of a position encoding at `pos` (T,) or (B, T) for heads of this width, by method."""
    rows, length = (pos.shape[0] if pos.dim() == 2 else 2), pos.shape[-1]
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found: dict[str, Any] = {}
    for method in entry.facts["uses"]:
        x = random(1, length, HEADS * width).expand(rows, -1, -1)
        q, k = (random(1, HEADS, length, width).expand(rows, -1, -1, -1) for _ in "qk")
        arguments = {"embed": (x, pos), "rotate": (q, k, pos), "bias": (pos, pos), "score": (q, k, pos, pos)}
        found[method] = getattr(part, method)(*arguments[method])
    return found


def sublayer(entry: PartSpec, knobs: Knobs | None = None, **sizes: Any) -> tuple[nn.Module, Context, int]:
    """(attention, mlp or block; a context of 3 tokens; width of its input), in float64."""
    config = tiny_models.config(entry, knobs, **{"d_model": 16, "n_heads": 4, **sizes})
    builder = ModelBuilder(config, tiny_models.VOCAB)
    made_by = {
        "attention": lambda: builder.attention(0, "part"),
        "mlp": lambda: builder.mlp(0, "part"),
        "block": lambda: builder.block(0),
    }
    place = builder.positions(causal=True)[0][0]
    place = place.double() if isinstance(place, nn.Module) else place
    ctx = make_context(torch.ones(2, 3, dtype=torch.long), place, "causal", None, None, torch.float64)
    return made_by[entry.kind]().double(), ctx, 16


def objective(entry: PartSpec, knobs: Knobs | None = None, max_len: int = 32) -> Any:
    """An objective; one that distills gets a teacher that differs from the models of the suites."""
    part = made(entry, knobs, vocab_size=tiny_models.VOCAB, eos=0, max_len=max_len)
    if context := getattr(part, "context", ""):
        part.take_context([1 + letter % (tiny_models.VOCAB - 1) for letter in context.encode()])
    if hasattr(part, "take_tokens"):  # each but the first is the one before with a letter more
        part.take_tokens(["x" * (i + 1) for i in range(tiny_models.VOCAB)])
    if hasattr(part, "learn_from"):  # the seed makes the teacher differ from the models of the suites
        part.learn_from(tiny_models.model(seed=7, max_len=max_len))
    return part


def schedule(entry: PartSpec, knobs: Knobs | None = None, scores: Sequence[float] = ()) -> Callable[[int, int], float]:
    """A schedule in a run whose validation losses so far are `scores`."""
    part = made(entry, knobs)
    return (lambda step, total: part(step, total, scores)) if entry.facts["watches"] else part


def token_rows(rows: int = 3, length: int = 33) -> tuple[Tensor, Tensor]:
    """Tokens (B, T + 1) and the index of the packed document of each: eos starts a document, and every id occurs."""
    order = torch.randperm(rows * length, generator=torch.Generator().manual_seed(5))
    tokens, starts = (
        (order % (tiny_models.VOCAB - 1) + 1).view(rows, length),
        torch.zeros(rows, length, dtype=torch.long),
    )
    for row, places in enumerate(([0, 9, 20], [0], [0, 31])[:rows]):
        starts[row, places] = 1
    tokens[starts.bool()] = 0
    return tokens, starts.cumsum(1) - 1


def groups(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[ParameterGroup]:
    """Parameter groups, one for each role."""
    generator = torch.Generator().manual_seed(seed)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype))

    return [
        {"params": [parameter(8, 6), parameter(6, 12)], "role": "matrix", "rate": 1.0},
        {"params": [parameter(6), parameter(12)], "role": "vector", "rate": 1.0},
        {"params": [parameter(10, 6)], "role": "embedding", "rate": 1.0},
        {"params": [parameter(10, 6)], "role": "head", "rate": 1.0},
    ]


def parameters(of: Iterable[ParameterGroup]) -> list[nn.Parameter]:
    """All parameters of these groups."""
    return [p for group in of for p in group["params"]]


def peft(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A PEFT method; one that starts from trained adapters gets two of the small model."""
    given = dict(knobs or {})
    if entry.knob("adapters") and not given.get("adapters"):
        given["adapters"] = _sample_adapters()
    return made(entry, given)


@functools.cache
def _sample_adapters() -> tuple[str, ...]:
    """Two LoRA adapters of the small model, in folders that are removed at the end of the process."""
    folders = []
    for seed in (0, 1):
        net, part = tiny_models.model(), REGISTRIES["peft"].build("lora")
        part.apply(net, seed)
        tiny_models.tune(net, part, 3, lr=3e-2)
        folders.append(Path(tempfile.mkdtemp(prefix="ablatio-adapter-")))
        atexit.register(shutil.rmtree, folders[-1], ignore_errors=True)
        save_adapter(folders[-1], net, {"name": "lora", **REGISTRIES["peft"]["lora"].defaults})
    return tuple(map(str, folders))


def tuned(entry: PartSpec, knobs: Knobs | None = None, seed: int = 0) -> tuple[LanguageModel, Any]:
    """(the small model with the method applied, the method)."""
    net, part = tiny_models.model(entry, seed=0), peft(entry, knobs)
    if hasattr(part, "prepare"):
        part.prepare(net)
    part.apply(net, seed)
    return net, part


def tuned_and_trained(entry: PartSpec, knobs: Knobs | None = None, steps: int = 4) -> LanguageModel:
    """The same in float64 after a few steps, so that none of its weights is still zero."""
    net, part = tuned(entry, knobs)
    net.double()
    tiny_models.tune(net, part, steps, lr=3e-2)
    return net


def recomputed(entry: PartSpec, knobs: Knobs | None = None) -> LanguageModel:
    """Model with six layers and dropout under this kind of checkpointing."""
    net = tiny_models.model(n_layers=6, dropout=0.2).train()
    made(entry, knobs).apply(net)
    return net


def kept_for_backward(net: LanguageModel) -> tuple[Tensor, int]:
    """(loss of the small batch, bytes kept for its backward pass in addition to the weights)."""
    weights = {p.data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), observed_storage() as stored:
        loss = tiny_models.mean_loss(net, tiny_models.example())
        for tensor in stored():
            pack(tensor)
    return loss, sum(kept.values())


def source(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A source; one with a knob `path` reads the first generated file that it accepts (text, JSON lines, a table)."""
    knob = entry.knob("path")
    given = dict(knobs or {})
    if knob is None or given.get("path", knob.default) != knob.default:
        return made(entry, given, open_run=SampleWriter)
    problems = []
    for path in sample_files():
        value = [str(path)] if knob.length is not None else str(path)
        part = made(entry, given | {"path": value}, open_run=SampleWriter)
        try:
            next(iter(part.documents()))
        except (UserError, StopIteration) as error:
            problems.append(f"{path.name}: {error}")
        else:
            return part
    raise UserError("no generated file could be read:\n" + "\n".join(problems))


def filter_part(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A filter; one with a knob `good`, `against` or `path` reads a generated text file."""
    given = dict(knobs or {})
    for name in ("good", "against", "path"):
        if (knob := entry.knob(name)) and knob.default == "" and name not in given:
            given[name] = str(sample_text())
    return made(entry, given)


def mixture(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A mixture of three sample sources, with proxies that cost nothing."""
    wiring = {"pools": sample_mixtures.pools(), "proxies": sample_mixtures.SampleProxies()}
    given = dict(knobs or {})
    if (knob := entry.knob("match")) and given.get("match", knob.default) not in ("", *sample_mixtures.NAMES):
        given["match"] = sample_mixtures.NAMES[-1]
    return made(entry, given, **wiring)


def curriculum(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A curriculum over three sample sources; a knob that names one gets the second."""
    given = dict(knobs or {})
    for knob in entry.knobs:
        if knob.type == "str" and not knob.choices and given.get(knob.name):
            names = list(sample_mixtures.NAMES[1:])
            given[knob.name] = names[0] if knob.length is None else names
    return made(entry, given, names=sample_mixtures.NAMES)


def first_documents(part: Any, count: int = 50) -> Iterator[Document]:
    """The first documents of a source."""
    return itertools.islice(part.documents(), count)


def task(entry: PartSpec, knobs: Knobs | None = None, **settings: Any) -> tuple[Any, Any]:
    """A task on sample texts, and the small model it trains; `settings` replaces sections and options of the config."""
    given = tiny_models.config(entry, knobs, max_len=160)
    for section, values in {"data": {"val_fraction": 0.3}, "train": {"batch_size": 4}, **settings}.items():
        given[section] = values if "name" in values else given[section] | values
    given |= _learned_from(entry.facts["accepts"])
    setup = TaskContext(given, RowPlan(given["train"]["batch_size"]))
    part = made(entry, knobs, setup=setup)
    model, _ = start_model(given, part.tokenizer, setup.seeds.init)
    part.attach(model)
    part.prepare(model)
    return part, model


def _learned_from(takes: str) -> dict[str, Any]:
    """A source of sample texts, and a tokenizer that needs no training."""
    name, path = {"documents": ("text", 0), "conversations": ("chats", 3), "feedback": ("feedback", 4)}[takes]
    return {
        "source": {"name": name, **REGISTRIES["source"][name].defaults, "path": str(sample_files()[path])},
        "tokenizer": {"name": "bytes"},
    }


def tokenizer(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A tokenizer, trained on the sample texts if necessary."""
    part = made(entry, knobs)
    if entry.facts["trained"]:
        part.train([text * 20 for text in TEXTS])
    return part


def answers() -> list[Answer]:
    """Answers to a sum: right and wrong, long and short; each byte is a token."""
    texts = ["12 + 30 = 42\n#### 42", "12 + 30 = 41\nso 41 + 1 = 42\n#### 41", "I love this day!", "no 42", "?", " "]
    prompt = "A great sum: 12 + 30?\n"
    return [Answer(prompt, text, tuple(prompt.encode()), tuple(text.encode()), truth="42") for text in texts]


def reward(entry: PartSpec, knobs: Knobs | None = None) -> Any:
    """A reward as a task calls it, on answers; a reward model that it opens counts letters."""
    if entry.wiring == ("answer",):
        judge = made(entry, knobs)
        return lambda answers: torch.tensor([float(judge(a)) for a in answers])
    if entry.wiring == ("answer", "other"):
        wins = made(entry, knobs)
        return lambda answers: torch.tensor([sum(float(wins(a, b)) for b in answers) for a in answers])
    values = dict(knobs or {})
    if entry.knob("path") and not values.get("path"):
        values["path"] = "a run"

    def open_run(path: str) -> Any:
        return SampleReward(path)

    return made(entry, values, open_run=open_run, open_model=lambda path, key: SampleModel(path))


def logger(entry: PartSpec, folder: Path, knobs: Knobs | None = None) -> Any:
    """A logger of a run whose public config refers to a secret in the environment."""
    return made(entry, knobs, folder=folder, config={"seed": 1, "model": {"d_model": 16}, "note": "${oc.env:SECRET}"})
