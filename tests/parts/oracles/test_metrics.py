"""Metrics against torchmetrics, scikit-learn, formulae written in another way, and published examples."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from ablatio import metrics
from ablatio.data.items import Item, Likelihood, Response, Scored
from ablatio.errors import UserError
from ablatio.testing import sample_evaluations as samples

RNG = np.random.default_rng(0)


def measured(name: str, items, responses, **knobs):
    """(values of each item, values of all) of a metric on given responses."""
    measure = samples.metric(metrics[name], knobs, of=items)
    found = measure.score([[r] if isinstance(r, Response) else r for r in responses])
    return [s.values for s in found], measure.summary(found)


def said(*texts: str) -> Response:
    return Response(texts=texts)


def choice_items(n: int, choices: int = 4) -> tuple[list[Item], list[list[Response]], np.ndarray, np.ndarray]:
    """(items, responses, log-likelihoods (n, choices), correct choices)."""
    logps, gold = RNG.normal(-4, 1.5, (n, choices)), RNG.integers(choices, size=n)
    words = ["a", "two words", "three more words", "Größe über"]
    items = [Item(str(i), "q", choices=tuple(words[:choices]), gold=int(gold[i])) for i in range(n)]
    return items, [[Response((float(x),)) for x in row] for row in logps], logps, gold


@pytest.mark.oracle("metric=perplexity", "torchmetrics' Perplexity on logits")
def test_perplexity() -> None:
    from torchmetrics.text import Perplexity

    logits, targets = torch.randn(3, 8, 11), torch.randint(11, (3, 8))
    expected = float(Perplexity()(logits, targets))
    logps = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0].double()
    items = [Item(str(i), target="x" * 5) for i in range(3)]
    by_item, found = measured("perplexity", items, [Response(tuple(row.tolist()), False, 5) for row in logps])
    assert found["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(-float(logps.sum()) / math.log(2) / 15)
    quarters = [-float(logps[:, 2 * q : 2 * q + 2].mean()) for q in range(4)]
    assert [found[f"quarter{q}"] for q in (1, 2, 3, 4)] == pytest.approx(quarters)
    assert [v["loss"] for v in by_item] == pytest.approx((-logps.mean(1)).tolist())


@pytest.mark.oracle("metric=accuracy", "scikit-learn's accuracy_score")
def test_accuracy() -> None:
    from sklearn.metrics import accuracy_score

    greedy = RNG.random(20) < 0.4
    items = [Item(str(i), "q", "a") for i in range(20)]
    _, found = measured("accuracy", items, [Response((-0.5, -0.25), bool(g), 1) for g in greedy])
    assert found["accuracy"] == pytest.approx(accuracy_score(np.ones(20), greedy))
    assert found["probability"] == pytest.approx(math.exp(-0.75))
    assert metrics.build("accuracy").requests(Item("0", "6*7=", "42", delimiter="")) == [Likelihood("6*7=", "42")]


@pytest.mark.oracle("metric=likelihood_choice", "lm-eval's acc, acc_norm and acc_bytes, as it computes them")
def test_likelihood_choice() -> None:
    items, responses, logps, gold = choice_items(60)
    by_item, found = measured("likelihood_choice", items, responses)
    # lm_eval/api/task.py, ConfigurableTask.process_results
    characters = np.array([float(len(c)) for c in items[0].choices])
    sizes = np.array([float(len(c.encode("utf-8"))) for c in items[0].choices])
    assert found["acc"] == np.mean(np.argmax(logps, 1) == gold)
    assert found["acc_norm"] == np.mean(np.argmax(logps / characters, 1) == gold)
    assert found["acc_bytes"] == np.mean(np.argmax(logps / sizes, 1) == gold)
    shares = torch.tensor(logps).softmax(-1)[range(60), gold]
    assert [v["probability"] for v in by_item] == pytest.approx(shares.tolist())


def test_letters_list_the_choices_and_compare_a_b_c() -> None:
    item = Item("0", "Which is a color?", choices=("stone", "blue"), gold=1)
    prompt = "Which is a color?\nA. stone\nB. blue\nAnswer:"
    asked = metrics.build("likelihood_choice", {"form": "letters"}).requests(item)
    assert asked == [Likelihood(prompt, " A"), Likelihood(prompt, " B")]
    _, found = measured("likelihood_choice", [item], [[Response((-2.0,)), Response((-1.0,))]], form="letters")
    assert found["acc"] == found["acc_norm"] == found["acc_bytes"] == found["acc_tokens"] == 1.0


@pytest.mark.oracle("metric=calibration", "torchmetrics' MulticlassCalibrationError and scikit-learn's Brier score")
def test_calibration() -> None:
    from sklearn.metrics import brier_score_loss
    from torchmetrics.classification import MulticlassCalibrationError

    items, responses, logps, gold = choice_items(200)
    p = torch.tensor(logps).softmax(-1)
    _, found = measured("calibration", items, responses, bins=15)
    expected = MulticlassCalibrationError(4, n_bins=15, norm="l1")(p, torch.tensor(gold))
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)
    of_classes = [brier_score_loss(gold == c, p[:, c].numpy()) for c in range(4)]
    assert found["brier"] == pytest.approx(sum(of_classes))


ANSWERS = ["the cat sat on the mat", "hello there", "It is a Trap", "completely different words"]
TARGETS = ["the cat sat on a mat", "hello there", "it is a trap!", "nothing in common here"]


def answered(name: str, **knobs):
    items = [Item(str(i), "q", t) for i, t in enumerate(TARGETS)]
    return measured(name, items, [said(a) for a in ANSWERS], **knobs)


@pytest.mark.oracle("metric=bleu", "BLEU's formula with n-grams counted by hand")
def test_bleu() -> None:
    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        words = text.replace("!", " !").split()
        return [*zip(*(words[i:] for i in range(n)), strict=False)]

    matches, totals = [0] * 4, [0] * 4
    for answer, target in zip(ANSWERS, TARGETS, strict=True):
        for n in range(1, 5):
            own, theirs = grams(answer, n), grams(target, n)
            matches[n - 1] += sum(min(own.count(g), theirs.count(g)) for g in set(own))
            totals[n - 1] += len(own)
    length = sum(len(grams(t, 1)) for t in TARGETS)
    penalty = min(1.0, math.exp(1 - length / totals[0]))
    precisions = [m / t for m, t in zip(matches, totals, strict=True)]
    expected = 0.0 if 0 in matches else penalty * math.exp(sum(map(math.log, precisions)) / 4)
    _, found = answered("bleu")
    assert found["bleu"] == pytest.approx(expected, abs=1e-5)
    _, found = answered("bleu", n_gram=2)
    assert found["bleu"] == pytest.approx(penalty * math.sqrt(precisions[0] * precisions[1]), abs=1e-5)


@pytest.mark.oracle("metric=rouge", "longest common subsequence and n-grams counted by hand")
def test_rouge() -> None:
    def lcs(a: list[str], b: list[str]) -> int:
        best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, j in itertools.product(range(len(a)), range(len(b))):
            best[i + 1][j + 1] = best[i][j] + 1 if a[i] == b[j] else max(best[i][j + 1], best[i + 1][j])
        return best[-1][-1]

    by_item, _ = answered("rouge")
    for answer, target, values in zip(ANSWERS, TARGETS, by_item, strict=True):
        a, b = (text.lower().replace("!", "").split() for text in (answer, target))
        common = lcs(a, b)
        expected = 2 * common / (len(a) + len(b)) if common else 0.0  # F of precision c/|a| and recall c/|b|
        assert values["rougeL"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.oracle("metric=chrf", "SacreBLEU 2.6.0: CHRF().corpus_score; F_2 of character n-grams counted by hand")
@pytest.mark.parametrize(
    ("answers", "targets", "words", "beta", "expected"),
    [
        (["the cat sat on the mat", ""], [["the cat sat on the mat"], ["hello"]], 0, 2, 0.8917661181858264),
        (["hi", "zzz"], [["hi"], ["abc"]], 0, 2, 0.24444444444444446),  # texts that are shorter than 6 letters
        (["a cat was sitting on the mat", "dogs ran in the park today"],
         [["the cat sat on the mat", "a cat was sitting there on mat"], ["dogs run in the park today"]],
         0, 2, 0.7205997456795383),
        (["It is (a trap)!", "no"], [["it is a trap!", "It was (a trap)."], ["No, sir"]], 2, 1, 0.47307349559104916),
        ([""], [[""]], 0, 2, 0.0),
    ],
)  # fmt: skip
def test_chrf(answers: list[str], targets: list[list[str]], words: int, beta: float, expected: float) -> None:
    items = [Item(str(i), "q", t[0], references=tuple(t[1:])) for i, t in enumerate(targets)]
    _, found = measured("chrf", items, [said(a) for a in answers], words=words, beta=beta)
    assert found["chrf"] == pytest.approx(expected, abs=1e-12)


def test_chrf_of_one_answer_counts_ngrams() -> None:
    def counts(text: str, n: int) -> dict[str, int]:
        plain = text.replace(" ", "")
        found: dict[str, int] = {}
        for i in range(len(plain) - n + 1):
            found[plain[i : i + n]] = found.get(plain[i : i + n], 0) + 1
        return found

    answer, target = ANSWERS[0], TARGETS[0]
    precisions, recalls = [], []
    for n in range(1, 7):
        a, b = counts(answer, n), counts(target, n)
        common = sum(min(c, b.get(g, 0)) for g, c in a.items())
        precisions.append(common / sum(a.values()))
        recalls.append(common / sum(b.values()))
    precision, recall = np.mean(precisions), np.mean(recalls)
    by_item, _ = answered("chrf")
    assert by_item[0]["chrf"] == pytest.approx(5 * precision * recall / (4 * precision + recall))


@pytest.mark.parametrize(
    ("text", "target", "knobs", "expected"),
    [
        ("сегодня хорошая погода", "сегодня плохая погода", {}, 2 / 3),
        ("snake_case x", "Snake case, x!", {}, 1.0),
        ("今天天气", "今天下雨", {}, 0.0),
        ("今天天气", "今天下雨", {"tokenize": "characters"}, 0.5),
        ("", "x", {}, 0.0),
    ],
)
def test_rouge_counts_words_of_all_scripts(text: str, target: str, knobs: dict, expected: float) -> None:
    _, found = measured("rouge", [Item("0", "q", target)], [said(text)], **knobs)
    assert found["rouge1"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("text", "target", "right"), [("", "", 1.0), ("  ", "", 1.0), ("x", "", 0.0), ("", "x", 0.0)])
def test_no_answer_is_right_where_none_is_expected(text: str, target: str, right: float) -> None:
    _, found = measured("answer_parse", [Item("0", "q", target)], [said(text)])
    assert found["exact"] == right


@pytest.mark.oracle("metric=f1", "SQuAD's script: examples of its README and by hand")
def test_f1() -> None:
    f1 = metrics.build("f1")
    assert f1("The Norman conquest!", "norman conquest") == 1.0
    assert f1("in the year 1066", "1066") == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert f1("", "x") == 0.0
    assert f1(")", ")") == 1.0 and f1(")", "]") == 0.0


@pytest.mark.oracle("metric=exact_match", "lm-eval's exact_match without options: equality of the texts")
def test_exact_match() -> None:
    texts = ["Paris", " Paris", "paris", "The Paris", "", "Paris."]
    expected = [[float(a.strip() == b.strip()) for b in texts] for a in texts]
    assert sum(map(sum, expected)) == 8  # the first two are equal to each other and each to itself
    found = metrics.build("exact_match")
    assert [[found(a, b) for b in texts] for a in texts] == expected


@pytest.mark.oracle("metric=answer_parse", "table")
@pytest.mark.parametrize(
    ("find", "marker", "text", "parsed"),
    [
        ("number", "", "12 + 30 is 42.", "42."[:2]),
        ("number", "####", "12 #### 1,042 apples, 3", "1042"),
        ("number", "", "none", None),
        ("letter", "", "It must be (B), I think", "B"),
        ("letter", "Answer:", "A is wrong. Answer: C", "C"),
        ("boxed", "", r"so \boxed{1} or \boxed{x^2}", "x^2"),
        ("line", "", "\n\n Paris \nis it", "Paris"),
        ("text", "So", "Well. So it is.\nYes", "it is.\nYes"),
    ],
)
def test_answer_parse(find: str, marker: str, text: str, parsed: str | None) -> None:
    part = metrics.build("answer_parse", {"find": find, "marker": marker})
    assert part.parsed(text) == parsed


def test_parsed_answers_are_compared_as_what_they_are() -> None:
    item = Item("0", "q", "1000")
    assert measured("answer_parse", [item], [said("1,000.0")], find="number")[1] == {"exact": 1.0, "parsed": 1.0}
    assert measured("answer_parse", [item], [said("a thousand")], find="number")[1] == {"exact": 0.0, "parsed": 0.0}
    city = Item("0", "q", "Paris", references=("Lutetia",))
    assert measured("answer_parse", [city], [said("lutetia.")])[1]["exact"] == 1.0
    assert measured("answer_parse", [city], [said("lutetia.")], exactly=True)[1]["exact"] == 0.0


@pytest.mark.oracle("metric=pass_at_k", "the share of all subsets of k samples that hold a passing one")
def test_pass_at_k() -> None:
    from ablatio_std.metrics.code import pass_at_k

    for n, c, k in ((5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (6, 1, 6)):
        passing = [i < c for i in range(n)]
        subsets = [any(chosen) for chosen in itertools.combinations(passing, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets))


@pytest.mark.oracle("metric=elo", "logistic regression of the games, and the rating of a single score")
def test_elo() -> None:
    from sklearn.linear_model import LogisticRegression

    from ablatio_std.metrics.comparisons import ratings

    found = ratings([[0.0, 75.0 - 0.5], [25.0 - 0.5, 0.0]])  # half a win and half a loss make it 75 to 25
    assert found[0] - found[1] == pytest.approx(400 * math.log10(3))
    won = [[0, 30, 55], [40, 0, 20], [15, 50, 0]]
    rows, results, weights = [], [], []
    for i, j in itertools.permutations(range(3), 2):
        rows.append([(k == i) - (k == j) for k in range(3)])
        results.append(1)
        weights.append(won[i][j] + 0.5)
    doubled = np.array(rows + [[-x for x in row] for row in rows])
    fit = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-12, max_iter=10_000)
    fit.fit(doubled, results + [0] * 6, sample_weight=weights * 2)
    expected = (fit.coef_[0] - fit.coef_[0].mean()) * 400 / math.log(10)
    assert ratings(won) == pytest.approx(expected.tolist(), abs=0.01)


def _answers_of(answers: dict[str, str]):
    """open_run whose runs give these answers, and whose judge prefers the longer answer."""

    def open_run(folder: str):
        def respond(requests):
            if folder == "judge":
                text = requests[0].context
                first, second = (text.split(f"Answer {i}: ")[1].split("\n")[0] for i in (1, 2))
                gap = 1.0 if len(first) > len(second) else -1.0
                return [Response((gap / 2 + 0.7,)), Response((-gap / 2,))]  # 0.7: a preference for the first place
            return [said(answers[folder]) for _ in requests]

        return respond

    return open_run


@pytest.mark.oracle("metric=win_rate", "table")
def test_win_rate_counts_wins_and_half_of_the_draws() -> None:
    items = [Item(str(i), "q", "blue sky") for i in range(4)]
    part = metrics.build("win_rate", {"against": "b"}, open_run=_answers_of({"b": "blue sea"}))
    answers = ["blue sky", "red", "blue sea", "blue land"]  # better, worse, the same, as good
    values = [part.score(i, [said(a)])["win_rate"] for i, a in zip(items, answers, strict=True)]
    assert values == [1.0, 0.0, 0.5, 0.5]


@pytest.mark.oracle("metric=judge", "mean of both orders of two logistic preferences")
def test_judge_has_no_preference_for_a_place() -> None:
    part = metrics.build("judge", {"path": "judge"}, open_run=_answers_of({}))
    item = Item("0", "q", "four")

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    longer, shorter = (part.score(item, [said(a)])["judge"] for a in ("a longer one", "x"))
    assert longer == pytest.approx((sigmoid(1.7) + 1 - sigmoid(-0.3)) / 2)
    assert longer + shorter == pytest.approx(1.0)
    assert part.score(item, [said("four")])["judge"] == 0.5


@pytest.mark.oracle("metric=contamination", "search of the n-grams as texts")
def test_contamination() -> None:
    rng, words = random.Random(1), ["sun", "moon", "star", "sky"]
    training = [" ".join(rng.choice(words) for _ in range(40)) for _ in range(3)]
    items = [Item(str(i), " ".join(rng.choice(words) for _ in range(9)), "Star!") for i in range(20)]
    part = metrics.build("contamination", {"n": 4}, texts=lambda split: iter(training), open_run=None)
    for item in items:
        assert part.requests(item) == []
    for item in items:
        own = f"{item.prompt} star".split()
        grams = [" ".join(own[i : i + 4]) for i in range(7)]
        expected = sum(any(f" {g} " in f" {t} " for t in training) for g in grams) / 7
        assert part.score(item, [])["contamination"] == pytest.approx(expected)


@pytest.mark.oracle("metric=prompt_spread", "means of the forms, computed apart")
def test_prompt_spread() -> None:
    forms = ("{prompt}", "Q: {prompt}\nA:", "{prompt} =")
    part = metrics.build("prompt_spread", {"prompts": forms})
    items = [Item(str(i), f"q{i}", "a") for i in range(12)]
    asked = [r for item in items for r in part.requests(item)]
    assert [r.context for r in asked[:3]] == ["q0", "Q: q0\nA:", "q0 ="]
    greedy = RNG.random((12, 3)) < [0.2, 0.5, 0.9]
    scored = []
    for item, row in zip(items, greedy, strict=True):
        responses = [Response((-1.0,), bool(g), 1) for g in row]
        scored.append(Scored(item, responses, part.score(item, responses)))
    means = greedy.mean(0)
    expected = {"spread": means.max() - means.min(), "mean": means.mean(), "worst": means.min(), "best": means.max()}
    assert part.summary(scored) == pytest.approx(expected)


@pytest.mark.oracle("metric=verified", "reward=exact_answer itself")
def test_verified() -> None:
    item = Item("0", "12 + 30?", "#### 42")
    part = metrics.build("verified")
    assert [part.score(item, [said(t)])["verified"] for t in ("so #### 42", "42", "#### 41")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("win_rate", {}, "needs another run to compare with"),
        ("elo", {}, "needs other runs"),
        ("judge", {}, "needs a run whose model judges"),
        ("win_rate", {"against": "x", "by": "bleu"}, "by=bleu is no function of an answer and a target"),
        ("pass_at_k", {"k": 20}, "k=20 needs at least as many samples, got 10"),
        ("prompt_spread", {"prompts": ("{prompt}", "no place")}, "each with {prompt}"),
        ("prompt_spread", {"metric": "elo"}, "expected a metric of the model's responses alone"),
        ("verified", {"function": "ranking"}, "is no function of one answer"),
    ],
)
def test_bad_knobs_are_refused_with_a_way_out(name: str, knobs: dict, message: str) -> None:
    with pytest.raises(UserError, match=r"(?s).*\n    try: ") as caught:
        metrics.build(name, knobs, texts=samples.texts, open_run=samples.open_run)
    assert message in str(caught.value)
