"""Prompt programs on a scripted model: a reply to each question, deterministic, with all calls counted."""

import pytest

from ablatio.errors import UserError
from ablatio.model.prompting.answers import answer_all
from ablatio.model.prompting.types import Example, Question, Reply
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_use
from ablatio.testing.scripted_model import ScriptedModel

KINDS = ("prompt",)


def _replies(part: PartSpec, llm: ScriptedModel, examples: tuple[Example, ...] = sample_use.EXAMPLES) -> list[Reply]:
    return answer_all(sample_use.program(part), llm, examples, sample_use.QUESTIONS)


def test_answers_each_question(part: PartSpec) -> None:
    llm = sample_use.scripted()
    replies = _replies(part, llm)
    assert all(isinstance(r, Reply) and isinstance(r.answer, str) for r in replies), checks.label(part)
    said = "".join([prompt for prompt, _ in llm.calls] + [prompt for prompt, _ in llm.scored])
    for question in sample_use.QUESTIONS:
        assert question.text in said, f"{checks.label(part)}: the model never saw {question.text!r}"
    for reply in replies:
        total = sum(reply.choice_probabilities)
        assert not reply.choice_probabilities or abs(total - 1) < 1e-6, f"{checks.label(part)}: they sum to {total}"


def test_same_seed_same_replies(part: PartSpec) -> None:
    first, second = sample_use.scripted(), sample_use.scripted()
    assert _replies(part, first) == _replies(part, second), f"{checks.label(part)}: two runs give different replies"
    assert first.calls == second.calls and first.usage == second.usage, checks.label(part)


def test_questions_are_not_changed(part: PartSpec) -> None:
    before = repr((sample_use.EXAMPLES, sample_use.QUESTIONS))
    _replies(part, sample_use.scripted())
    assert repr((sample_use.EXAMPLES, sample_use.QUESTIONS)) == before, f"{checks.label(part)}: changes its inputs"


def test_samples(part: PartSpec) -> None:
    """Several answers to a question are drawn exactly if the part `samples`."""
    llm = sample_use.scripted()
    _replies(part, llm)
    drawn = any(asked["samples"] != 1 for asked in llm.asked)
    assert drawn == part.facts["samples"], f"{checks.label(part)}: `samples` is not what it does"


def test_uses_what_it_says(part: PartSpec) -> None:
    """Other examples, or choices, change the model's input if `uses_examples` or `uses_choices` is True; else not."""
    open_question, closed = Question("What is 2 and 9?"), Question("What is 2 and 9?", choices=("red", "green"))
    other = tuple(Example(f"{e.question} Say!", f"{e.answer}0", f"Other. {e.rationale}") for e in sample_use.EXAMPLES)
    for knobs in ({}, {"shots": 0}, {"shots": 2}):
        if not {*knobs} <= {knob.name for knob in part.knobs}:
            continue
        program = sample_use.program(part, knobs)
        for fact, changed in (
            ("uses_examples", _asked(part, knobs, other, open_question)),
            ("uses_choices", _asked(part, knobs, sample_use.EXAMPLES, closed)),
        ):
            differs = changed != _asked(part, knobs, sample_use.EXAMPLES, open_question)
            said = getattr(program, fact, part.facts[fact])
            assert differs == said, f"{checks.label(part)} {knobs}: `{fact}` says {said}, found {differs}"


def _asked(part: PartSpec, knobs: dict[str, int], examples: tuple[Example, ...], question: Question) -> object:
    """All inputs that the model was given."""
    llm = sample_use.scripted()
    answer_all(sample_use.program(part, knobs), llm, examples, [question])
    return llm.calls, llm.scored


def test_needs_examples(part: PartSpec) -> None:
    """Without examples or rationales that its facts require, a part raises UserError; without others it answers."""
    without = tuple(Example(e.question, e.answer) for e in sample_use.EXAMPLES)
    for fact, examples in (("examples", ()), ("rationale", without)):
        if part.facts[fact]:
            with pytest.raises(UserError):
                _replies(part, sample_use.scripted(), examples)


def test_writes_the_prompt_that_it_asks(part: PartSpec) -> None:
    """`write` returns the text before the answer: the model is asked to continue or score it."""
    if "write" not in part.facts["uses"]:
        pytest.skip("it has no `write`")
    program, llm = sample_use.program(part), sample_use.scripted()
    question = Question("What is 2 and 9?")
    program.answer(llm, sample_use.EXAMPLES, question)
    text = program.write(llm, sample_use.EXAMPLES, question)
    assert text in {p for p, _ in (*llm.calls, *llm.scored)}, f"{checks.label(part)}: {text!r} was never asked"
