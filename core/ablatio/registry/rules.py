"""Rules: settings that cannot be combined, as data that is listed, stored and checked without importing parts.

    rule(
        when="position.name == 'rope'",
        unless="model.d_head * position.fraction % 2 == 0",
        why="rope rotates pairs, so d_head * fraction must be even: {model.d_head} * {position.fraction} = "
            "{model.d_head * position.fraction}",
        fix="position.fraction=1.0",
    )

`when` and `unless` are small expressions over the config: dotted names, numbers, strings, arithmetic, comparisons,
`and or not in`, and the functions below.  They are interpreted node by node and never passed to Python's `eval`.  If
the config lacks a name, the expression is undecided and the rule does not apply.
"""

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ablatio.errors import Problem
from ablatio.registry.registry import ContractError

# Python's parser needs memory and recursion in proportion; a rule of ours has at most 300 characters.
MAX_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Rule:
    """A config that satisfies `when` but not `unless` is refused; `why` and `fix` may contain {expressions}."""

    when: str
    unless: str
    why: str
    fix: str
    where: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain data for the catalogue."""
        return asdict(self)


RULES: list[Rule] = []


def rule(*, when: str, unless: str = "False", why: str, fix: str, where: str = "") -> Rule:
    """Add a rule; `where` is the key to which the problem is attributed (by default the first name in `when`)."""
    new = Rule(when, unless, why, fix, where or when.split(".")[0].strip("( "))
    for text in (when, unless, *_holes(why), *_holes(fix)):
        _parse(text)
    if new not in RULES:
        RULES.append(new)
    return new


def violated_rules(config: Mapping[str, Any]) -> list[Problem]:
    """Problems for the rules that `config` (plain nested dicts) violates."""
    problems = []
    for r in RULES:
        try:
            applies = evaluate(r.when, config) and not evaluate(r.unless, config)
        except Undecided:
            continue
        if applies:
            problems.append(Problem(r.where, _fill(r.why, config), _fill(r.fix, config), combination=True))
    return problems


class Undecided(Exception):
    """The expression refers to a name that the config does not have, or whose value has an unsuitable type."""


def evaluate(text: str, config: Mapping[str, Any]) -> Any:
    """Value of an expression over nested dicts; raises Undecided if a name is missing."""
    try:
        return _value(_parse(text), config)
    # A value of the wrong type has a problem of its own, which the schema reports with its key.
    except (TypeError, ZeroDivisionError, OverflowError, ValueError) as error:
        raise Undecided(str(error)) from error


def _divisors(n: int) -> list[int]:
    # Bounded: a plugin's rule, or a mistyped width of 10^12, must not stall every command.
    return [d for d in range(1, min(n, 100_000) + 1) if n % d == 0]


def _nearest_divisor(n: int, wish: float) -> int:
    return min(_divisors(n), key=lambda d: abs(d - wish))


_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "int": int,
    "round": round,
    "len": len,
    "sum": sum,
    "ceil": math.ceil,
    "nearest_divisor": _nearest_divisor,
}


@functools.cache
def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ContractError(f"an expression of a rule has at most {MAX_LENGTH} characters; got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ContractError(f"a rule contains {text!r}, which is not a valid expression: {error.msg}") from None
    # Once, when the rule is added: what is not listed cannot reach the interpreter below.
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
            raise ContractError(f"a rule calls {ast.unparse(node.func)}; it may call {', '.join(_FUNCTIONS)}")
        if not isinstance(node, _ALLOWED):
            raise ContractError(f"a rule contains {text!r}; {type(node).__name__} is not supported in rules")
    return tree


_ALLOWED = (
    ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.IfExp, ast.Call, ast.Name, ast.Attribute, ast.Constant,
    ast.Tuple, ast.List, ast.Load, ast.And, ast.Or, ast.Not, ast.USub, ast.Add, ast.Sub, ast.Mult, ast.Div,
    ast.FloorDiv, ast.Mod, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot,
)  # fmt: skip


def _value(node: ast.expr, config: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            return _look_up(_path(node), config)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value(i, config) for i in items]
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(v, config) for v in values)
        case ast.BoolOp(values=values):
            return any(_value(v, config) for v in values)
        case ast.UnaryOp(op=ast.Not(), operand=x):
            return not _value(x, config)
        case ast.UnaryOp(operand=x):
            return -_value(x, config)
        case ast.BinOp(left=a, op=op, right=b):
            return _BINARY[type(op)](_value(a, config), _value(b, config))
        case ast.IfExp(test=test, body=a, orelse=b):
            return _value(a if _value(test, config) else b, config)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_value(a, config) for a in args))
        case ast.Compare(left=first, ops=ops, comparators=rest):
            values = [_value(first, config), *(_value(c, config) for c in rest)]
            return all(_BINARY[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case _:
            raise Undecided(ast.unparse(node))


def _path(node: ast.expr) -> str:
    """A dotted name as written; `ast.unparse` takes ten times as long, and every arm of a sweep evaluates all rules."""
    if isinstance(node, ast.Attribute):
        return f"{_path(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def _look_up(path: str, config: Mapping[str, Any]) -> Any:
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise Undecided(path)
        value = value[key]
    return value


def _holes(text: str) -> list[str]:
    return re.findall(r"\{([^{}]+)\}", text)


def _fill(text: str, config: Mapping[str, Any]) -> str:
    def show(match: re.Match[str]) -> str:
        try:
            value = evaluate(match[1], config)
        except Undecided:
            return "?"
        if isinstance(value, list | tuple):
            return " or ".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    return re.sub(r"\{([^{}]+)\}", show, text)
