"""Evaluations: every question is answered by a program that reads the prompt alone."""

import re

import pytest

from ablatio import evals, metrics
from ablatio.data.items import Item, Response
from ablatio.errors import UserError
from ablatio.testing import sample_evaluations as samples


def items_of(name: str, **knobs) -> list[Item]:
    return list(evals.build(name, knobs, texts=samples.texts).items())


@pytest.mark.oracle("eval=copying", "a program that looks up the word after the prefix")
def test_copying() -> None:
    for item in items_of("copying", length=7):
        words, prefix = (part.split() for part in item.prompt.split(";"))
        assert words[: len(prefix)] == prefix and item.target == words[len(prefix)] and len(words) == 7
    places = [len(item.prompt.split(";")[1].split()) for item in items_of("copying", length=7)]
    assert {*places} == {1, 2, 3, 4, 5, 6}


@pytest.mark.oracle("eval=induction", "a program that finds the earlier occurrence")
def test_induction() -> None:
    for item in items_of("induction"):
        *words, last = item.prompt.split()
        assert words.count(last) == 1 and item.target == words[words.index(last) + 1]
        assert words.count(item.target) == 1


@pytest.mark.oracle("eval=associative_recall", "a program that reads the pairs into a dictionary")
def test_associative_recall() -> None:
    found = items_of("associative_recall", pairs=5)
    for item in found:
        told = dict(re.findall(r"(\w+) is (\d)", item.prompt))
        key = item.prompt.rsplit(". ", 1)[1].removesuffix(" is")
        assert len(told) == 5 and told[key] == item.target
    asked = [[*dict(re.findall(r"(\w+) is (\d)", i.prompt))].index(i.prompt.rsplit(". ", 1)[1][:-3]) for i in found]
    assert [asked.count(place) for place in range(5)] == [40] * 5


@pytest.mark.oracle("eval=addition", "Python's sum of the numbers in the question")
def test_addition() -> None:
    found = items_of("addition", digits=3, shots=2)
    for item in found:
        *examples, question = item.prompt.split("\n")
        assert len(examples) == 2 and question == item.question
        assert all(sum(map(int, e.split("=")[0].split("+"))) == int(e.split("=")[1]) for e in examples)
        a, b = map(int, question.removesuffix("=").split("+"))
        assert item.target == str(a + b) and max(len(str(a)), len(str(b))) <= 3
    sizes = [len(n) for item in found for n in item.question[:-1].split("+")]
    assert {*sizes} == {1, 2, 3}
    assert not any(item.rationale for item in found)


@pytest.mark.parametrize("spaces", [False, True])
def test_sums_of_several_numbers_have_their_steps(spaces: bool) -> None:
    form = "{} + {} = {}" if spaces else "{}+{}={}"
    for item in items_of("addition", digits=2, terms=4, shots=1, spaces=spaces):
        numbers = [*map(int, item.question.removesuffix("=").split("+"))]
        assert len(numbers) == 4 and item.target == str(sum(numbers))
        example = item.prompt.split("\n")[0]
        assert sum(map(int, example.split("=")[0].split("+"))) == int(example.split("=")[1])
        assert (" = " in example) == spaces and item.continued(item.target) == " " * spaces + item.target
        total = numbers[0]
        for number, step in zip(numbers[1:], item.rationale.removesuffix(".").split(". "), strict=True):
            assert step == form.format(total, number, total + number)
            total += number
        assert len(f" {item.rationale} The answer is {item.target}.") <= item.room


@pytest.mark.oracle("eval=dyck", "a stack machine")
def test_dyck() -> None:
    closing = {"(": ")", "[": "]", "{": "}", "<": ">"}
    for kinds, depth in ((2, 1), (4, 6)):
        found = items_of("dyck", kinds=kinds, depth=depth, length=12)
        for item in found:
            stack: list[str] = []
            for bracket in item.prompt.split():
                if bracket in closing:
                    stack.append(closing[bracket])
                    assert len(stack) <= depth
                else:
                    assert stack.pop() == bracket
            assert stack and item.correct == stack[-1] and len(item.choices) == kinds
        assert {item.gold for item in found} == {*range(kinds)}


@pytest.mark.oracle("eval=minimal_pairs", "rules of English written in another way")
def test_minimal_pairs() -> None:
    plural = {"boys", "girls", "teachers", "senators", "doctors", "farmers", "soldiers", "presidents", "workers",
              "children"}  # fmt: skip

    def grammatical(text: str, paradigm: str) -> bool:
        words = text.rstrip(".").lower().split()
        if paradigm in ("agreement", "distractor"):
            return (words[1] in plural) != words[-1].endswith("s")
        if paradigm == "determiner":
            return (words[-1] in plural) == (words[-2] in ("these", "those"))
        if paradigm == "reflexive":
            return (words[-1] == "herself") == (words[1] in ("queen", "girl", "woman", "mother"))
        return words[2] != "the"

    found = items_of("minimal_pairs", items=300)
    for item in found:
        judged = [grammatical(choice, item.more["paradigm"]) for choice in item.choices]
        assert judged.count(True) == 1 and judged.index(True) == item.gold, item.choices
    golds = [item.gold for item in found]
    assert 100 < sum(golds) < 200  # the place of the correct sentence says nothing
    assert {i.more["paradigm"] for i in items_of("minimal_pairs", paradigm="reflexive")} == {"reflexive"}


@pytest.mark.oracle("eval=held_out", "the validation texts of the source")
def test_held_out() -> None:
    assert [item.target for item in items_of("held_out")] == list(samples.HELD_OUT)
    assert [item.target for item in items_of("held_out", items=1, characters=7)] == ["A quick"]


@pytest.mark.parametrize("name", ["copying", "induction", "associative_recall", "addition", "dyck"])
def test_chance_does_not_pass(name: str) -> None:
    """A model whose probabilities are arbitrary is far from the score of one that solves the task."""
    measure = samples.metric(metrics[evals[name].facts["measured_by"][0]], of=items_of(name))
    found = measure.summary(samples.scored(measure))[measure.names[0]]
    assert found < 0.65


@pytest.mark.oracle("eval=reasoning_gym", "reasoning-gym itself")
@pytest.mark.oracle("metric=verifier", "the verifier of reasoning-gym's own data set")
def test_reasoning_gym() -> None:
    gym = pytest.importorskip("reasoning_gym")
    found, theirs = (
        items_of("reasoning_gym", task="chain_sum", items=6),
        gym.create_dataset("chain_sum", size=6, seed=0),
    )
    metric = metrics.build("verifier")
    for item, entry in zip(found, theirs, strict=True):
        assert entry["question"] in item.prompt and item.target == entry["answer"]
        for answer in (entry["answer"], "the answer", f"{entry['answer']} maybe"):
            scored = metric.score(item, [Response(texts=(f" {answer}",))])
            assert scored["verifier"] == theirs.score_answer(answer, entry)
    with pytest.raises(UserError, match="did you mean chain_sum"):
        items_of("reasoning_gym", task="chain_sums")


def test_reasoning_gym_hands_settings_to_the_generator_and_steps_to_the_items() -> None:
    gym = pytest.importorskip("reasoning_gym")
    easy = items_of("reasoning_gym", items=4, settings=["max_terms:2", "max_digits:1"], tokens=9)
    theirs = gym.create_dataset("chain_sum", size=4, seed=0, max_terms=2, max_digits=1)
    assert [(i.target, i.room, i.rationale) for i in easy] == [(e["answer"], 9, "") for e in theirs]
    for item in items_of("reasoning_gym", task="gsm_symbolic", items=8):
        # The last line of the data's steps, `#### n`, is the answer, which a prompt writes itself.
        whole = item.more["entry"]["metadata"]["answer_cot"]
        assert item.rationale and whole.startswith(f"{item.rationale}\n#### {item.target}")
    for setting, message in (
        ("max_term:2", "is no setting of chain_sum; did you mean max_terms"),
        ("size:9", "expected NAME:VALUE with one of min_terms, max_terms"),
        ("max_terms:1", "chain_sum refuses them: max_terms must be >= min_terms"),
    ):
        with pytest.raises(UserError, match=message):
            items_of("reasoning_gym", items=4, settings=[setting])
