"""Freeze weights by role or place: `freeze=[embedding,layers.0-3]` leaves them as they are during training."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ablatio.errors import UserError, did_you_mean
from ablatio.model.parameter_roles import ROLES, describe

SHORT = {"embed": "embed_tokens", "head": "lm_head"}  # `head` is a role, too: a tied head is the embedding
_RANGE = re.compile(r"(\d+)-(\d+)")


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Switch off the gradients of all weights that a pattern names; no optimizer receives them.

    patterns  a role (matrix, vector, embedding, head), or a place: consecutive parts of a weight's name, with ranges
              and wildcards.  `layers.0-3` are the first four layers (of each stack), `encoder` one stack, `*.q_proj`
              or `q_proj` the query projections.  A tied head is frozen with its embedding, being the same weight.

    Raises UserError for a pattern that names no weight, and for a range that ends behind the last layer.
    """
    weights = list(describe(model))
    for pattern in patterns:
        found = [p for p, info in weights if info.role == pattern or is_at(pattern, info.name)]
        if not found:
            raise UserError(
                _tied_head_problem(model, pattern) or _no_weight(pattern, [info.name for _, info in weights])
            )
        if last := _last_of(pattern, [info.name for _, info in weights]):
            raise UserError(f"freeze: {pattern} ends behind the last layer of the model\n    try: freeze=[{last}]")
        for parameter in found:
            parameter.requires_grad_(False)


def is_at(pattern: str, name: str) -> bool:
    """True if the parts of a pattern fit consecutive parts of a weight's name."""
    wanted, parts = pattern.split("."), name.split(".")
    starts = range(len(parts) - len(wanted) + 1)
    return any(all(map(_fits, wanted, parts[start : start + len(wanted)])) for start in starts)


def _fits(wanted: str, part: str) -> bool:
    if found := _RANGE.fullmatch(wanted):
        return part.isdigit() and int(found[1]) <= int(part) <= int(found[2])
    return fnmatchcase(part, SHORT.get(wanted, wanted))


def _last_of(pattern: str, names: Sequence[str]) -> str:
    """The pattern with its range ended at the last layer, if it ends behind it; else empty."""
    found = _RANGE.search(pattern)
    if found is None or any(is_at(pattern.replace(found[0], found[2]), name) for name in names):
        return ""
    numbers = {int(part) for name in names for part in name.split(".") if part.isdigit()}
    fits = [n for n in numbers if any(is_at(pattern.replace(found[0], f"{n}"), name) for name in names)]
    inside = [n for n in fits if int(found[1]) <= n <= int(found[2])]
    return pattern.replace(found[0], f"{found[1]}-{max(inside)}") if inside else ""


def _tied_head_problem(model: nn.Module, pattern: str) -> str:
    """Message for a pattern that names the head of a model whose head is its embedding; "" for others."""
    head = getattr(getattr(model, "lm_head", None), "weight", None)
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is head]
    if len(names) < 2 or not (pattern == "head" or is_at(pattern, "lm_head.weight")):
        return ""
    return (
        f"freeze: `{pattern}` is no weight of its own: model.tied=true makes it the same weight as the embedding\n"
        "    try: freeze=[embed], which freezes both, or model.tied=false"
    )


def _no_weight(pattern: str, names: Iterable[str]) -> str:
    places = sorted({part for name in names for part in name.split(".") if not part.isdigit()} - {"weight", "bias"})
    near = did_you_mean(pattern, [*ROLES, *places])
    return (
        f"freeze: no weight is called `{pattern}`{near}; there are the roles {', '.join(ROLES)} and the places "
        f"{', '.join(places)}\n    try: freeze=[embedding,layers.0-1]"
    )
