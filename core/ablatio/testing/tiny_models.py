"""Small model, batch and run in which parts are tested: the defaults of `ablatio train` with a few thousand weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ablatio.config import kind_lists
from ablatio.config import schema as run_config
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.optimizer_step import OptimizerStep, Rewind, SkipStep
from ablatio.model.parameter_roles import groups_by_role
from ablatio.registry import rules
from ablatio.registry.registry import REGISTRIES, PartSpec

VOCAB = 64
SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_len": 32}


def config(entry: PartSpec | None = None, knobs: Mapping[str, Any] | None = None, **sizes: Any) -> dict[str, Any]:
    """The default config with this part in it; raises UserError if its knobs violate a rule.

    Other options that a rule does not allow with the part are changed as the rule proposes, or else replaced by the
    first option that fits.
    """
    made = run_config.defaults()
    made["model"] |= SIZES | sizes
    for kind, name in kind_lists.usual_parts().items():
        made[kind] = {"name": name, **REGISTRIES[kind][name].defaults}
    if entry is not None:
        values = given(entry) | dict(knobs or {})
        if REGISTRIES[entry.kind].multiple:
            made[entry.kind] = {entry.name: values}
        else:
            made[entry.kind] = {"name": entry.name, **values}
    for usual in REGISTRIES["task"][made["task"]["name"]].facts["needs"]:
        kind, _, name = usual.partition("=")
        made.setdefault(kind, {"name": name, **REGISTRIES[kind][name].defaults})
    made = fitted(made, {entry.kind} if entry else set())
    if problems := broken_rules(made):
        raise UserError("\n".join(map(str, problems)))
    return made


def given(entry: PartSpec) -> dict[str, Any]:
    """A part's defaults; a teacher's run and the text that it reads alone have none."""
    samples = {"teacher": "runs/teacher", "context": "My fellow citizens: "}
    needed = samples if entry.knob("teacher") else {}
    return entry.defaults | {name: value for name, value in needed.items() if entry.knob(name)}


def fitted(made: dict[str, Any], keep: Collection[str]) -> dict[str, Any]:
    """The config adapted to the kinds in `keep`, by the fixes of violated rules or by other options.

    If neither helps, the config is returned with its violations: then the kept parts are incompatible.
    """
    made = mended(made, keep)
    if not broken_rules(made):
        return made
    for kind in kind_lists.usual_parts():
        for other in REGISTRIES[kind] if kind not in keep else ():
            changed = mended(made | {kind: {"name": other.name, **other.defaults}}, {*keep, kind})
            if not broken_rules(changed):
                return changed
    return made


def mended(made: dict[str, Any], keep: Collection[str]) -> dict[str, Any]:
    """The config after the fixes of its violated rules, except fixes that change a kind in `keep`."""
    import yaml

    for _ in range(8):
        for problem in broken_rules(made):
            key, _, value = problem.fix.partition("=")
            section, _, setting = key.partition(".")
            if section in keep or not value:
                continue
            if section in REGISTRIES and not setting and value in REGISTRIES[section].names():
                made = made | {section: {"name": value, **REGISTRIES[section][value].defaults}}
            elif setting:
                made = made | {section: {**made[section], setting: yaml.safe_load(value)}}
            break
        else:
            break
    return made


def broken_rules(made: Mapping[str, Any]) -> list[Any]:
    """Problems for the rules that the config violates."""
    return rules.violated_rules(run_config.effective(made))


def model(
    entry: PartSpec | None = None, knobs: Mapping[str, Any] | None = None, *, seed: int = 0, **sizes: Any
) -> LanguageModel:
    """The small model with this part in it."""
    return build_model(config(entry, knobs, **sizes), VOCAB, seed=seed)


def tokens(rows: int = 4, length: int = 24, seed: int = 0) -> Tensor:
    """Random tokens (rows, length), none of them 0 (eos)."""
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def example(rows: int = 4, length: int = 24, seed: int = 0) -> Example:
    """A random example for next-token prediction: inputs and targets (rows, length)."""
    row = tokens(rows, length + 1, seed)
    return Example(row[:, :-1], row[:, 1:])


def mean_loss(net: LanguageModel, batch: Example) -> Tensor:
    """Mean loss per target."""
    total, count, _ = net.loss(batch)
    return total / count


def run(
    net: LanguageModel,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    hooks: Sequence[Any] = (),
    spike: int | None = None,
    seen: Callable[[str, Mapping[str, Any]], None] = lambda hook, metrics: None,
) -> list[float]:
    """Train on one batch and return the losses.

    hooks: stabilizers
    spike: step whose loss is multiplied by 100
    seen: called with the metrics of each hook, or with "raised" and the exception's data when a hook skips a step
    """
    net.train()
    for hook in hooks:
        if hasattr(hook, "attach"):
            hook.attach(net)
    losses, parameters, batch = [], [p for group in groups_by_role(net) for p in group["params"]], example()
    for index in range(steps):
        optimizer.zero_grad()
        loss = mean_loss(net, batch) * (100.0 if index == spike else 1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        step = OptimizerStep(
            net,
            parameters,
            optimizer,
            index,
            steps,
            loss=loss.detach(),
            sampled_loss=lambda: mean_loss(net, batch),
            n_targets=batch.targets.numel(),
        )
        try:
            for hook in hooks:
                if hasattr(hook, "before_step"):
                    seen("before_step", hook.before_step(step))
        except (SkipStep, Rewind) as asked:
            seen("raised", {type(asked).__name__: str(vars(asked))})
            continue
        optimizer.step()
        for hook in hooks:
            if hasattr(hook, "after_step"):
                seen("after_step", hook.after_step(step))
    return losses


def attention_facts(entry: PartSpec | None = None) -> Mapping[str, Any]:
    """Facts of the attention in the small model with this part."""
    return REGISTRIES["attention"][config(entry)["attention"]["name"]].facts


def adamw(net: LanguageModel, lr: float = 1e-2) -> torch.optim.Optimizer:
    """A plain optimizer for suites of other kinds."""
    return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)


def tune(net: LanguageModel, part: Any, steps: int, lr: float = 1e-2) -> list[float]:
    """Train the weights that a PEFT method leaves trainable, at its own rates, and return the losses."""
    groups = groups_by_role(net, getattr(part, "rate", None))
    optimizer = torch.optim.AdamW([{"params": g["params"], "lr": lr * g["rate"]} for g in groups], weight_decay=0.0)
    return run(net, optimizer, steps, hooks=[part])


def quantize(net: LanguageModel, part: Any) -> None:
    """Apply a quantization; one that is calibrated reads small batches first."""

    def feed(batches: int) -> None:
        for seed in range(batches):
            net(tokens(seed=seed))

    if hasattr(part, "calibrate"):
        part.calibrate(net, feed)
    part.apply(net)
