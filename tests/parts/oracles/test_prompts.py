"""Prompt programs on a scripted model whose answers are known: exact calls, votes and choices."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from ablatio import prompts
from ablatio.errors import UserError
from ablatio.model.prompting.answers import answer_all
from ablatio.model.prompting.parse import final_answer
from ablatio.model.prompting.types import Example, Form, Question
from ablatio.testing.scripted_model import ScriptedModel, hashed

SUMS = tuple(Example(f"{a}+{b}", str(a + b), f"We add {b} to {a}.") for a, b in ((1, 2), (2, 2), (4, 3), (5, 1)))
LABELLED = tuple(Example(f"text {i}", "good" if i % 3 else "bad") for i in range(7))
ASKED = Question("3+4")
TEXT = Question("a new text", choices=("good", "bad"))


def build(name: str, knobs: dict[str, Any] | None = None, verify: Any = None) -> Any:
    return prompts.build(name, knobs, form=Form(), parse=final_answer, verify=verify)


def shots(text: str) -> list[str]:
    """The questions that a prompt shows, in order, without the last one."""
    return [part.split("\nA:")[0] for part in text.split("Q: ")[1:-1]]


@pytest.mark.oracle("prompt=zero_shot", "the text and the choice written out")
def test_zero_shot() -> None:
    llm = ScriptedModel(lambda prompt, n: " It is 7.\n\nQ: more")
    reply = build("zero_shot", {"instruction": "Add."}).answer(llm, (), ASKED)
    assert llm.calls == [("Add.\n\nQ: 3+4\nA:", " It is 7.")] and reply.answer == "7"
    assert llm.usage.calls == 1 and llm.usage.read == len("Add.\n\nQ: 3+4\nA:") and llm.usage.generated == 9
    llm = ScriptedModel(scores=lambda prompt, text: {" good": -1.0, " bad": -2.0}[text])
    reply = build("zero_shot").answer(llm, (), TEXT)
    assert reply.answer == "good" and not llm.calls
    assert reply.choice_probabilities == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])


@pytest.mark.oracle("prompt=few_shot", "sklearn's nearest neighbors, loops, and the calibration written in numpy")
@pytest.mark.parametrize("count", [1, 3])
def test_few_shot_choice_knn(count: int) -> None:
    llm = ScriptedModel()
    text = build("few_shot", {"shots": count, "choice": "knn", "order": "similar"}).write(llm, LABELLED, TEXT)
    index = NearestNeighbors(n_neighbors=count, metric="cosine").fit(llm.embed([e.question for e in LABELLED]))
    (near,) = index.kneighbors(llm.embed([TEXT.text]), return_distance=False)
    assert shots(text) == [LABELLED[i].question for i in reversed(near)]
    assert text.endswith(f"{LABELLED[near[0]].answer}\n\nQ: a new text\nA:")


@pytest.mark.parametrize("choice", ["diverse", "both"])
def test_few_shot_choices_are_those_of_a_loop(choice: str) -> None:
    llm, picked = ScriptedModel(), list[int]()
    similar = cosine_similarity(llm.embed([*(e.question for e in LABELLED), TEXT.text]))
    pool, question = similar[:-1, :-1], similar[:-1, -1]
    while len(picked) < 4:
        scores = {}
        for i in set(range(7)) - {*picked}:
            nearest = max((pool[i, j] for j in picked), default=None)
            if choice == "both":
                scores[i] = 0.5 * question[i] - (0.5 * nearest if nearest is not None else 0)
            else:
                scores[i] = -nearest if nearest is not None else pool[i].sum()
        picked.append(max(scores, key=lambda i: scores[i]))
    text = build("few_shot", {"shots": 4, "choice": choice}).write(llm, LABELLED, TEXT)
    assert sorted(shots(text)) == sorted(LABELLED[i].question for i in picked)


def test_few_shot_gain_shows_what_the_model_is_sure_of() -> None:
    sure = {"text 2": 6.0, "text 5": 4.0, "text 0": 3.0}

    def scores(prompt: str, answer: str) -> float:
        strength = next((s for q, s in sure.items() if prompt == f"Q: {q}\nA:"), 0.5)
        return strength if answer == " good" else 0.0

    text = build("few_shot", {"shots": 3, "choice": "gain"}).write(ScriptedModel(scores=scores), LABELLED, TEXT)
    assert {*shots(text)} == {*sure}


def test_few_shot_orders_by_the_entropy_of_predictions() -> None:
    llm = ScriptedModel()
    part = build("few_shot", {"shots": 3, "order": "entropy"})
    text = part.write(llm, LABELLED, TEXT)
    shown = shots(text)
    probes = [e.question for e in LABELLED if e.question not in shown]
    by_question = {e.question: e for e in LABELLED}

    def entropy(order: tuple[str, ...]) -> float:
        lead = "".join(f"Q: {q}\nA: {by_question[q].answer}\n\n" for q in order)
        answers = Counter(max(TEXT.choices, key=lambda c: llm.scores(f"{lead}Q: {p}\nA:", f" {c}")) for p in probes)
        return -sum(n / 4 * np.log(n / 4) for n in answers.values())

    assert entropy(tuple(shown)) == pytest.approx(max(map(entropy, itertools.permutations(shown))))
    asked = llm.usage.calls
    other = part.write(llm, LABELLED, Question("another text", choices=("good", "bad")))
    assert shots(other) == shown and llm.usage.calls == asked  # compared once for all questions
    knobs = {"shots": 4, "order": "entropy", "orders": 3}
    few, again = (build("few_shot", knobs).write(ScriptedModel(), LABELLED, TEXT) for _ in range(2))
    assert few == again


def test_few_shot_random_shots_are_the_same_for_all_questions_and_follow_the_seed() -> None:
    part = build("few_shot", {"shots": 3})
    texts = [part.write(ScriptedModel(seed=s), LABELLED, Question(q)) for s in (1, 2) for q in ("x", "y")]
    assert shots(texts[0]) == shots(texts[1]) and shots(texts[0]) != shots(texts[2])
    assert len({*shots(texts[0])}) == 3
    assert len(shots(build("few_shot", {"shots": 99}).write(ScriptedModel(), LABELLED, TEXT))) == 7


def test_calibration_divides_by_the_probabilities_without_content() -> None:
    """arXiv:2102.09690, equation 1 with W = diag(p_cf)^-1 and b = 0."""

    def scores(prompt: str, answer: str) -> float:
        return 1.5 * (answer == " good") + hashed(prompt, answer)  # the prompt prefers "good"

    llm = ScriptedModel(scores=scores)
    part = build("few_shot", {"shots": 2, "calibrate": True})
    reply = part.answer(llm, LABELLED, TEXT)
    lead = part.write(llm, LABELLED, TEXT).removesuffix("Q: a new text\nA:")

    def p(question: str) -> np.ndarray:
        chances = np.exp([scores(f"{lead}Q: {question}\nA:", f" {c}") for c in TEXT.choices])
        return chances / chances.sum()

    empty = (p("N/A") + p("") + p("[MASK]")) / 3
    expected = np.linalg.inv(np.diag(empty)) @ p("a new text")
    assert reply.choice_probabilities == pytest.approx(expected / expected.sum())
    assert reply.answer == TEXT.choices[int(expected.argmax())]
    free = part.answer(llm, LABELLED, Question("a new text"))  # the answers of the examples are the choices
    assert dict(zip(("bad", "good"), free.choice_probabilities, strict=True)) == pytest.approx(
        dict(zip(TEXT.choices, reply.choice_probabilities, strict=True))
    )


@pytest.mark.oracle("prompt=few_shot", "differences of log-probabilities, far beyond the range of exp")
@pytest.mark.parametrize("far", [1.0, 700.0, 800.0, 5000.0])
def test_calibration_of_choices_that_are_far_apart(far: float) -> None:
    """log p(bad | text) - log p(good | text) is what the contents add to `far`, however large it is."""
    behind = {"a new text": 2.0, "N/A": 0.5, "": 0.5, "[MASK]": 0.5}

    def scores(prompt: str, answer: str) -> float:
        asked = prompt.rpartition("Q: ")[2].removesuffix("\nA:")
        return -far - behind[asked] if answer == " bad" else -1.0

    reply = build("few_shot", {"shots": 2, "calibrate": True}).answer(ScriptedModel(scores=scores), LABELLED, TEXT)
    found = dict(zip(TEXT.choices, reply.choice_probabilities, strict=True))
    # The contents give equal odds, so that those of W p are e^(0.5 - 2).
    assert found["bad"] / found["good"] == pytest.approx(np.exp(behind["N/A"] - behind["a new text"]))
    assert sum(found.values()) == pytest.approx(1) and reply.answer == "good"


@pytest.mark.oracle("prompt=chain_of_thought", "the texts of its calls written out")
def test_chain_of_thought() -> None:
    llm = ScriptedModel(lambda prompt, n: " We add 4 to 3. The answer is 7.\n\nQ: x")
    reply = build("chain_of_thought", {"shots": 2}).answer(llm, SUMS, ASKED)
    ((text, _),) = llm.calls
    assert reply.answer == "7" and text.endswith("\n\nQ: 3+4\nA:") and len(shots(text)) == 2
    for question in shots(text):
        example = next(e for e in SUMS if e.question == question)
        assert f"Q: {question}\nA: {example.rationale} The answer is {example.answer}.\n\n" in text
    llm = ScriptedModel(lambda prompt, n: " 7." if prompt.endswith("The answer is") else " 3, then 4 more: 9?")
    reply = build("chain_of_thought", {"shots": 0}).answer(llm, (), ASKED)
    first = "Q: 3+4\nA: Let's think step by step."
    assert [p for p, _ in llm.calls] == [first, f"{first} 3, then 4 more: 9?\nThe answer is"]
    assert reply.answer == "7"
    with pytest.raises(UserError, match=r"prompt\.shots=0"):
        build("chain_of_thought").answer(llm, LABELLED, ASKED)


@pytest.mark.oracle("prompt=auto_cot", "sklearn's k-means and its members nearest to the centers")
def test_auto_cot_solves_one_question_of_each_cluster() -> None:
    spread = {f"q{i}": ([10.0, 0], [0, 10.0], [-9.0, -9.0])[i % 3] for i in range(9)}
    offsets = {q: [hashed(q) - 0.5, hashed(q, "y") - 0.5] for q in spread}
    llm = ScriptedModel(
        lambda prompt, n: " 5." if prompt.endswith("The answer is") else " One step.",
        embeds=lambda q: [a + b for a, b in zip(spread[q], offsets[q], strict=True)],
    )
    examples = [Example(q, "unknown") for q in spread]
    part = build("auto_cot", {"clusters": 3})
    reply = answer_all(part, llm, examples, [ASKED])[0]
    vectors = llm.embed([*spread])
    clusters = KMeans(3, n_init=5, random_state=0).fit(vectors)
    nearest = {
        f"q{min((i for i in range(9) if clusters.labels_[i] == c), key=lambda i: np.linalg.norm(vectors[i] - center))}"
        for c, center in enumerate(clusters.cluster_centers_)
    }
    text = llm.calls[-1][0]
    assert {*shots(text)} == nearest and "unknown" not in text and reply.answer
    assert text.count("Let's think step by step. One step. The answer is 5.\n\n") == 3
    assert text.endswith("Q: 3+4\nA: Let's think step by step.") and len(llm.calls) == 2 * 3 + 1
    long = build("auto_cot", {"clusters": 1, "max_steps": 1})
    wordy = ScriptedModel(lambda prompt, n: " 5." if prompt.endswith("The answer is") else "a. b. c", embeds=llm.embeds)
    answer_all(long, wordy, examples, [ASKED])
    assert shots(wordy.calls[-1][0]) == []  # no solution is short enough


@pytest.mark.oracle("prompt=complex_cot", "examples and chains counted by hand")
def test_complex_cot() -> None:
    solved = [Example(f"e{n}", "1", "\n".join("step" for _ in range(n))) for n in (3, 1, 4, 2)]
    chains = [" a\n b\n c\nThe answer is 9.", " The answer is 8.", " a\n b\nThe answer is 9.", " The answer is 8.",
              " a\nThe answer is 8."]  # fmt: skip
    llm = ScriptedModel(lambda prompt, n: chains[n])
    reply = build("complex_cot", {"shots": 2, "draws": 5, "voters": 3}).answer(llm, solved, ASKED)
    assert shots(llm.calls[0][0]) == ["e4", "e3"] and len(llm.calls) == 5
    assert reply.answer == "9" and reply.candidates == (("9", 1.0), ("9", 1.0), ("8", 1.0))


@pytest.mark.oracle("prompt=self_consistency", "collections.Counter on known answers")
@pytest.mark.parametrize("answers", ["7787", "1122", "5", "?7?"])
def test_self_consistency_takes_the_majority(answers: str) -> None:
    llm = ScriptedModel(lambda prompt, n: f" So it is {answers[n]}." if answers[n] != "?" else "")
    part = build("self_consistency", {"draws": len(answers), "shots": 1, "temperature": 0.9})
    reply = part.answer(llm, SUMS, ASKED)
    assert reply.answer == Counter(answers.replace("?", "")).most_common(1)[0][0]
    assert [a for a, _ in reply.candidates] == ["" if a == "?" else a for a in answers]
    assert llm.asked[0]["samples"] == len(answers) and llm.asked[0]["temperature"] == 0.9
    assert llm.usage.calls == len(answers) and reply.text == f" So it is {reply.answer}."


@pytest.mark.oracle("prompt=verifier", "the scores of a verifier that is known, added by hand")
def test_verifier() -> None:
    said, scores = ["1", "2", "1", "3"], {"1": 0.4, "2": 0.7, "3": -5.0}
    llm = ScriptedModel(lambda prompt, n: f" {said[n]}")

    def judge(question: str, text: str) -> float:
        assert question == "3+4"
        return scores[text.strip()]

    best = build("verifier", {"draws": 4}, judge).answer(llm, SUMS, ASKED)
    assert best.answer == "2" and best.candidates == (("1", 0.4), ("2", 0.7), ("1", 0.4), ("3", -5.0))
    llm = ScriptedModel(lambda prompt, n: f" {said[n]}")
    weighted = build("verifier", {"draws": 4, "vote": "weighted"}, judge).answer(llm, SUMS, ASKED)
    assert weighted.answer == "1" and weighted.candidates[3] == ("3", 0.0)
    with pytest.raises(UserError, match="self_consistency"):
        build("verifier").answer(llm, SUMS, ASKED)


@pytest.mark.oracle("prompt=ensemble", "the mean of the scripted probabilities")
def test_ensemble() -> None:
    llm = ScriptedModel()
    part = build("ensemble", {"prompts": 4, "shots": 2})
    reply = part.answer(llm, LABELLED, TEXT)
    texts = list(dict.fromkeys(p for p, _ in llm.scored))
    assert len(llm.scored) == 8 and all(len(shots(t)) == 2 for t in texts)
    chances = np.exp([[llm.scores(t, f" {c}") for c in TEXT.choices] for t in texts])
    weights = Counter(p for p, _ in llm.scored)
    rows = np.repeat(chances / chances.sum(1, keepdims=True), [weights[t] // 2 for t in texts], axis=0)
    assert reply.choice_probabilities == pytest.approx(rows.mean(0))
    voted = part.answer(ScriptedModel(lambda prompt, n: f" {len(shots(prompt)[0])}"), SUMS, ASKED)
    assert voted.answer == "3" and sum(w for _, w in voted.candidates) == 4


@pytest.mark.oracle("prompt=least_to_most", "its calls, one after another, written out")
def test_least_to_most() -> None:
    def says(prompt: str, n: int) -> str:
        if prompt.endswith("questions:\n"):
            return "1. What is 3+1?\n2. What is 4+3?\n2. What is 4+3?\n"
        return {"What is 3+1?": " 4", "What is 4+3?": " 7", "3+4": " 7, so 7"}[prompt.split("Q: ")[-1][:-3]]

    llm = ScriptedModel(says)
    reply = build("least_to_most").answer(llm, (), ASKED)
    asked = [prompt for prompt, _ in llm.calls]
    first = "Q: What is 3+1?\nA:"
    assert asked[0] == 'To answer the question "3+4", we first need to answer these questions:\n'
    second = f"{first} 4\n\nQ: What is 4+3?\nA:"
    assert asked[1:] == [first, second, f"{second} 7\n\nQ: 3+4\nA:"]
    assert reply.answer == "7" and [a for a, _ in reply.candidates] == ["4", "7", "7"]
    one = build("least_to_most", {"parts": 1, "shots": 1})
    again = ScriptedModel(says)
    one.answer(again, SUMS, ASKED)
    assert len(again.calls) == 3 and "We add" in again.calls[0][0]


@pytest.mark.oracle("prompt=tree_of_thoughts", "a search over all lines, with values counted by hand")
def test_tree_of_thoughts_keeps_the_best_states() -> None:
    def says(prompt: str, n: int) -> str:
        return " 21" if prompt.endswith("The answer is") else f" {'abc'[n % 3]}\n and more"

    def scores(prompt: str, word: str) -> float:
        good = prompt.count(" b") + 2 * prompt.count(" c")  # " c" is better than " b"
        return float(good) if word == " sure" else 1.0

    llm = ScriptedModel(says, scores)
    reply = build("tree_of_thoughts", {"depth": 2, "branch": 3, "keep": 2}).answer(llm, (), ASKED)
    assert reply.text == " c\n c\nThe answer is 21" and reply.answer == "21"
    chances = np.exp([4.0, 1.0, 1.0])
    assert reply.candidates[0][0] == "c\n c"
    assert reply.candidates[0][1] == pytest.approx(chances @ [20, 1, 0.001] / chances.sum())
    assert len(llm.calls) == 3 + 2 * 3 + 1 and len(llm.scored) == 3 * (3 + 6)
    mute = build("tree_of_thoughts").answer(ScriptedModel(lambda prompt, n: ""), (), ASKED)
    assert mute.answer == "" and mute.text == "The answer is" and mute.candidates == ()


@pytest.mark.oracle("prompt=autoprompt", "the best trigger of all, when every token is a candidate")
def test_autoprompt_finds_the_best_trigger() -> None:
    worth = {"a": 1, "b": 4, "c": 2, "the": 0}

    def scores(prompt: str, answer: str) -> float:
        return float(sum(worth[w] for w in prompt.split("\n\n")[0].split()))

    llm = ScriptedModel(scores=scores)
    part = build("autoprompt", {"length": 2, "steps": 12, "candidates": 3})
    part.fit(llm, LABELLED)
    assert part.found == "b b" and part.write(llm, LABELLED, TEXT) == "b b\n\nQ: a new text\nA:"
    still = build("autoprompt", {"length": 2, "steps": 0})
    assert still.write(llm, LABELLED, TEXT) == " the the\n\nQ: a new text\nA:"


@pytest.mark.oracle("prompt=edit_search", "the authors' score: sklearn's balanced accuracy in percent plus the entropy")
def test_edit_search_scores_and_improves() -> None:
    def scores(prompt: str, answer: str) -> float:
        lead, question = prompt.split("\n\n") if "\n\n" in prompt else ("", prompt)
        right = " good" if int(question.split()[2]) % 3 else " bad"
        helped = "useful" in lead and "harmful" not in lead
        return float(answer == (right if helped else " good"))

    llm = ScriptedModel(lambda prompt, n: "", scores)
    settings = {"instruction": "Be useful, be harmful.", "steps": 30, "patience": 30, "alpha": 0.5}
    part = build("edit_search", settings)
    part.fit(llm, LABELLED)
    assert part.found is not None and "useful" in part.found and "harmful" not in part.found
    truth = [e.answer for e in LABELLED]
    for text, said in (("Be useful", truth), ("Be harmful", ["good"] * 7)):
        shares = np.array([said.count("good"), said.count("bad")]) / 7
        spread = -sum(s * np.log(s) for s in shares if s)
        expected = 100 * balanced_accuracy_score(truth, said) + 0.5 * spread
        assert part.score(llm, text, LABELLED) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 apples. The answer is 1,234.", "1234"), ("#### 7\n", "7"), ("The final answer is: blue.", "blue"),
        ("it is 5, no, 6", "6"), ("yes\nand more", "yes"), ("", ""), ("the answer is $3.50.", "3.50"),
        ("The answer is -2", "-2"), ("the answer is\n", ""),
    ],
)  # fmt: skip
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer
