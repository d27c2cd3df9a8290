"""Rules are data: small expressions interpreted node by node, never passed to eval."""

import pytest

from ablatio.registry.registry import ContractError
from ablatio.registry.rules import RULES, Undecided, evaluate, rule, violated_rules

CONFIG = {"model": {"d_head": 10, "name": "x"}, "position": {"name": "rope", "fraction": 0.5}, "none": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("model.d_head * position.fraction", 5.0),
        ("position.name == 'rope' and model.d_head % 4 != 0", True),
        ("position.name in ['alibi', 't5'] or not 1 < model.d_head <= 10", False),
        ("none is None", True),
        ("max(1, -model.d_head) + (2 if none else 3)", 4),
        ("nearest_divisor(12, 5)", 4),
    ],
)
def test_expressions(text: str, value: object) -> None:
    assert evaluate(text, CONFIG) == value


@pytest.mark.parametrize("text", ["nothing", "model.missing > 1", "position.name + 1", "1 / 0", "model.name.x == 1"])
def test_an_unknown_name_is_undecided(text: str) -> None:
    with pytest.raises(Undecided):
        evaluate(text, CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "model.__class__()", "[x for x in model]", "lambda: 1", "open('f')", "2 ** 9", "f'{model}'",
        "x := 1", "import os", "model[0]", "1 if", "a" * 501,
    ],
)  # fmt: skip
def test_other_syntax_is_refused_when_the_rule_is_defined(text: str) -> None:
    with pytest.raises(ContractError):
        rule(when=text, why="", fix="")


def test_a_violated_rule_gives_reason_and_fix() -> None:
    before = list(RULES)
    try:
        rule(
            when="position.name == 'rope'",
            unless="model.d_head * position.fraction % 2 == 0",
            why="{model.d_head} * {position.fraction} = {model.d_head * position.fraction}",
            fix="position.fraction={position.fraction + 0.1}",
        )
        (problem,) = [p for p in violated_rules(CONFIG) if p.what.startswith("10")]
        assert (problem.where, problem.what, problem.fix) == ("position", "10 * 0.5 = 5", "position.fraction=0.6")
        assert not [p for p in violated_rules({"position": {"name": "rope"}}) if p.where == "position"]
    finally:
        RULES[:] = before
