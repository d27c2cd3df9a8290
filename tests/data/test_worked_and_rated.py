"""Sums with worked steps, and texts with a tag for each sentence, against plain Python."""

import itertools

import pytest

from ablatio.errors import UserError
from ablatio.registry.kinds import sources


def numbers_of(question: str) -> list[int]:
    return [int(word) for word in question.split("+")]


@pytest.mark.oracle("source=worked_sums", "Python's integers")
def test_steps_of_a_sum_are_the_partial_sums() -> None:
    found = list(sources.build("worked_sums", {"size": 60, "terms": 4}).conversations())
    assert len({c.messages[0].text for c in found}) == 60
    for c in found:
        numbers, lines = numbers_of(c.messages[0].text), c.messages[1].text.splitlines()
        sums = list(itertools.accumulate(numbers))
        steps = [f"{before}+{n}={after}" for before, n, after in zip(sums, numbers[1:], sums[1:], strict=False)]
        assert lines == [*steps, f"#### {sums[-1]}"]


@pytest.mark.oracle("source=worked_sums", "Python's integers")
def test_a_wrong_solution_has_one_wrong_step_and_labels_say_which() -> None:
    for pair in sources.build("worked_sums", {"size": 60, "terms": 4}).feedback():
        (right, wrong), (all_right, labels) = pair.answers, pair.labels
        assert right != wrong and set(all_right) == {1.0} and labels[:-1].count(0.0) == 1
        for line, label in zip(wrong.splitlines()[:-1], labels, strict=False):
            terms, _, result = line.partition("=")
            assert (sum(numbers_of(terms)) == int(result)) == (label == 1.0)
        assert labels[-1] == float(wrong.splitlines()[-1] == right.splitlines()[-1])


def test_few_questions_have_steps_and_a_share_has_none() -> None:
    assert len(list(sources.build("worked_sums", {"size": 60, "few": 7}).conversations())) == 7
    half = [c.messages[1].text for c in sources.build("worked_sums", {"size": 400, "worked": 0.5}).conversations()]
    assert 150 < sum("=" in answer for answer in half) < 250


@pytest.mark.oracle("source=rated", "the number of bytes of each sentence")
def test_each_sentence_has_the_tag_of_its_score() -> None:
    """reward=length with its usual target of 64 scores more than 0.5 between 32 and 96 bytes."""
    knobs = {"documents": 2, "untagged": 0.0, "good": "[good]", "bad": "[bad]"}
    tags = set[str]()
    for before, after in zip(
        sources.build("sotu").documents(), sources.build("rated", knobs).documents(), strict=False
    ):
        tagged = after.text.replace("[good]", "\0[good]").replace("[bad]", "\0[bad]").split("\0")[1:]
        sentences = [(tag, text.strip()) for tag, _, text in (t.partition("]") for t in tagged)]
        assert " ".join(text for _, text in sentences).split() == before.text.split()
        assert all(tag == ("[good" if 32 < len(text.encode()) < 96 else "[bad") for tag, text in sentences)
        assert (before.id, before.split) == (after.id, after.split)
        tags |= {tag for tag, _ in sentences}
    assert tags == {"[good", "[bad"}


def test_tags_of_tags_are_refused() -> None:
    with pytest.raises(UserError, match="would tag the tags"):
        sources.build("rated", {"of": "rated"})
