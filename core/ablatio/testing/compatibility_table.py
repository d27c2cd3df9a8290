"""Compatibility of every pair of options of two kinds: the pair trains a step, or a rule refuses it and offers a fix.

python -m ablatio.testing.compatibility_table > docs/compatibility.md
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ablatio.config import kind_lists
from ablatio.config import schema as run_config
from ablatio.errors import Problem
from ablatio.model.build import build_model
from ablatio.model.builder import PartChoice
from ablatio.model.language_model import loss_of
from ablatio.model.optimizer_step import OptimizerStep, Rewind, SkipStep
from ablatio.model.parameter_roles import groups_by_role, named_generator
from ablatio.registry import kinds
from ablatio.registry.discovery import load
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import tiny_models
from ablatio.training.learning_rates import factor_of

SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_len": 24, "d_ff": 24}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Two incompatible options, the reason, and an override that keeps one of them."""

    first: PartSpec
    second: PartSpec
    problem: Problem


def paired_kinds() -> tuple[str, ...]:
    """Kinds that take part in a training step."""
    return tuple(kind for kind, registry in REGISTRIES.items() if registry.scope in ("model", "training"))


def pairs() -> Iterator[tuple[str, str]]:
    """All pairs of kinds that take part in a training step."""
    return itertools.combinations(paired_kinds(), 2)


def config_of(*parts: PartSpec) -> dict[str, Any]:
    """The small config with these parts; other options are changed where a rule does not allow them."""
    made = run_config.defaults()
    made["model"] |= SIZES
    for kind, name in kind_lists.usual_parts().items():
        made[kind] = {"name": name, **REGISTRIES[kind][name].defaults}
    for part in parts:
        many = REGISTRIES[part.kind].multiple
        made[part.kind] = {part.name: part.defaults} if many else {"name": part.name, **tiny_models.given(part)}
    return tiny_models.fitted(made, {part.kind for part in parts})


def refusals(first: str, second: str) -> Iterator[Refusal]:
    """Pairs of options of two kinds that a rule refuses."""
    for a, b in itertools.product(REGISTRIES[first], REGISTRIES[second]):
        if problems := tiny_models.broken_rules(config_of(a, b)):
            yield Refusal(a, b, problems[0])


def one_step(config: Mapping[str, Any]) -> float:
    """Loss before one optimizer step of the small model, or NaN if a parameter is not finite after it."""
    model = build_model(config, tiny_models.VOCAB).train()
    length = config["model"]["max_len"]
    objective = PartChoice.of(config["objective"])
    make: Any = kinds.objectives.build(
        objective.name, objective.knobs, vocab_size=tiny_models.VOCAB, eos=0, max_len=length
    )
    stabilizers = [kinds.stabilizers.build(n, knobs) for n, knobs in config["stabilizer"].items()]
    for part in stabilizers:
        if hasattr(part, "attach"):
            part.attach(model)
    example = make(tiny_models.tokens(2, length + 1), None, named_generator(0, "pair"))
    if hasattr(make, "learn_from"):
        make.learn_from(build_model(config, tiny_models.VOCAB, seed=1))
    total, weight, _ = loss_of(make, model, example)
    weight = weight.clamp(min=1)  # an objective may find no targets in random tokens
    (total / weight).backward()  # type: ignore[no-untyped-call]
    chosen, factor = PartChoice.of(config["optimizer"]), factor_of(PartChoice.of(config["schedule"]))(1, 10, [])
    optimizer = kinds.optimizers.build(chosen.name, chosen.knobs, groups=groups_by_role(model))
    for group in optimizer.param_groups:
        group["lr"] *= factor
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = OptimizerStep(
        model,
        parameters,
        optimizer,
        0,
        10,
        loss=(total / weight).detach(),
        sampled_loss=lambda: model.loss(example)[0],
        n_targets=8,
    )
    try:
        for part in stabilizers:
            if hasattr(part, "before_step"):
                part.before_step(step)
    except (SkipStep, Rewind):
        return float(step.loss)
    optimizer.step()
    for part in stabilizers:
        if hasattr(part, "after_step"):
            part.after_step(step)
    finite = all(bool(torch.isfinite(p).all()) for p in parameters)
    return float(step.loss) if finite else float("nan")


def page() -> str:
    """Text of docs/compatibility.md: numbers of refused pairs for each two kinds, and each refusal with its reason."""
    found = {pair: list(refusals(*pair)) for pair in pairs()}
    lines = [*heading()]
    kinds_ = paired_kinds()
    for row in kinds_:
        cells = [cell(row, column, found.get((row, column), found.get((column, row), []))) for column in kinds_]
        lines.append(f"| **{row}** | " + " | ".join(cells) + " |")
    lines += ["", "A cell says how many pairs are refused, of how many.", ""]
    for pair, refused in found.items():
        lines += section(*pair, refused)
    return "\n".join(lines)


def heading() -> list[str]:
    """Lines above the rows of the table."""
    columns = paired_kinds()
    counts = "  ".join(f"{kind} {len(REGISTRIES[kind].names())}" for kind in columns)
    return [
        "# What stands together",
        "",
        "Made by `make docs` from the rules; a test trains one step of every pair that is not listed here.",
        "Rules are checked before anything is built, so an impossible arm of a sweep costs nothing.",
        "",
        f"Options: {counts}.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]


def cell(row: str, column: str, refused: Sequence[Refusal]) -> str:
    """Cell of the table for two kinds."""
    if row == column:
        return ""
    total = len(REGISTRIES[row].names()) * len(REGISTRIES[column].names())
    return f"{len(refused)} of {total}" if refused else f"{total}"


def section(first: str, second: str, refused: Sequence[Refusal]) -> list[str]:
    """Section with the refused pairs of two kinds."""
    if not refused:
        return []
    return [
        f"## {first} and {second}",
        "",
        "| pair | why not | one way out |",
        "|---|---|---|",
        *map(_row, refused),
        "",
    ]


def _row(refusal: Refusal) -> str:
    pair = " ".join(f"`{part.kind}={part.name}`" for part in (refusal.first, refusal.second))
    return f"| {pair} | {refusal.problem.what} | `{refusal.problem.fix}` |"


if __name__ == "__main__":
    load()
    print(page())
