"""Mixtures and curricula against their formulas, written again, and optima that are known."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from ablatio import curricula, mixtures
from ablatio.data.mixtures import Pool
from ablatio.errors import UserError
from ablatio.testing import sample_mixtures, sample_texts
from ablatio_std.mixtures.found import regression, reweighted

# LLaMA, table 1 (arXiv:2302.13971): share in percent, epochs and size of each source.
LLAMA = {
    "common_crawl": (67.0, 1.10), "c4": (15.0, 1.06), "github": (4.5, 0.64), "wikipedia": (4.5, 2.45),
    "books": (4.5, 2.23), "arxiv": (2.5, 1.06), "stackexchange": (2.0, 1.03),
}  # fmt: skip


def pools(**tokens):
    return [Pool(name, n, [], []) for name, n in tokens.items()]


def shares(name, of, **knobs):
    return mixtures.build(name, knobs, pools=of, proxies=sample_mixtures.SampleProxies()).shares()


@pytest.mark.oracle("mixture=weights", "LLaMA's table 1: shares of 1.4 T tokens and the epochs that follow")
def test_llamas_table():
    sizes = {name: round(share / 100 * 1.4e12 / epochs) for name, (share, epochs) in LLAMA.items()}
    found = shares("weights", pools(**sizes), weights=[share / 100 for share, _ in LLAMA.values()])
    for name, (share, epochs) in LLAMA.items():
        assert found[name] == pytest.approx(share / 100)
        assert found[name] * 1.4e12 / sizes[name] == pytest.approx(epochs, rel=1e-6)
    again = shares("repeat", pools(**sizes), epochs=[epochs for _, epochs in LLAMA.values()])
    assert again == pytest.approx(found)


@pytest.mark.oracle("mixture=proportional", "numpy: sizes, each at most the cap, over their sum")
@pytest.mark.oracle("mixture=temperature", "numpy: the softmax of log sizes over T")
def test_sizes():
    of = pools(a=100, b=1000, c=50_000)
    sizes = np.array([100.0, 1000.0, 50_000.0])
    assert [*shares("proportional", of).values()] == pytest.approx(sizes / sizes.sum())
    capped = np.minimum(sizes, 2000)
    assert [*shares("proportional", of, cap=2000).values()] == pytest.approx(capped / capped.sum())
    for t in (1.0, 3.3, 1e9):
        softmax = torch.tensor(np.log(sizes) / t).softmax(0).tolist()
        assert [*shares("temperature", of, temperature=t).values()] == pytest.approx(softmax)


@pytest.mark.oracle("mixture=repeat", "explicit: tokens drawn over tokens of the source, at the budget of the epochs")
def test_epochs():
    of, epochs = pools(a=100, b=1000), [3.0, 0.5]
    found = shares("repeat", of, epochs=epochs)
    budget = 3 * 100 + 0.5 * 1000
    assert [found[p.name] * budget / p.tokens for p in of] == pytest.approx(epochs)


@pytest.mark.oracle("mixture=target", "explicit counts in dictionaries, and a target that is one of the sources")
def test_target_follows_the_held_out_text():
    of = sample_mixtures.pools()
    buckets = 2**20
    found = shares("target", of, match="web", buckets=buckets)

    def bag(text):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return [*words, *(f"{words[i]} {words[i + 1]}" for i in range(len(words) - 1))]

    bags = {p.name: [bag(t) for t in p.texts] for p in of}

    def distribution(texts):
        counts = Counter(w for text in texts for w in text)
        total = sum(counts.values()) + buckets
        return lambda w: (counts[w] + 1) / total

    p = distribution([bag(t) for t in of[2].held_out])
    each = {name: distribution(texts) for name, texts in bags.items()}
    sizes = {pool.name: pool.tokens for pool in of}

    def q(w):
        return sum(sizes[n] * each[n](w) for n in each) / sum(sizes.values())

    weights = {
        n: sizes[n] * np.mean([math.exp(np.mean([math.log(p(w) / q(w)) for w in text])) for text in texts])
        for n, texts in bags.items()
    }
    expected = {n: w / sum(weights.values()) for n, w in weights.items()}
    assert found == pytest.approx(expected, rel=1e-3)  # a few words share a bucket
    equal = [Pool(pool.name, 1000, pool.texts, pool.held_out) for pool in of]
    for name in sample_mixtures.NAMES:
        by_target = shares("target", equal, match=name)
        assert max(by_target, key=by_target.get) == name


@pytest.mark.oracle("mixture=doremi", "the update of the paper's algorithm 1, in numpy")
def test_doremi_reweights_as_the_paper():
    rng = np.random.default_rng(0)
    alpha = rng.dirichlet([1, 1, 1])
    excess, eta, c = rng.random(3), 0.7, 0.01
    moved = alpha * np.exp(eta * excess)
    expected = (1 - c) * moved / moved.sum() + c / 3
    found = reweighted(torch.tensor(alpha), torch.tensor(excess), eta, c)
    assert found.tolist() == pytest.approx(expected.tolist())
    # The reference sees little of the small sources, so the proxy has no excess loss on the largest one.
    learned = shares("doremi", sample_mixtures.pools(), steps=200, lr=0.001)
    assert learned["law"] > 1000 / 21_000 and learned["web"] < 16_000 / 21_000


@pytest.mark.oracle("mixture=regmix", "scikit-learn Ridge, and a quadratic whose minimum is known")
def test_regression_and_its_minimum():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import PolynomialFeatures

    rng = np.random.default_rng(0)
    x, asked = rng.dirichlet([1, 1, 1], 40), rng.dirichlet([1, 1, 1], 9)
    y = ((x - [0.2, 0.3, 0.5]) ** 2).sum(1)
    for features, degree in (("linear", 1), ("quadratic", 2)):
        expand = PolynomialFeatures(degree, include_bias=False)
        theirs = Ridge(alpha=0.01).fit(expand.fit_transform(x), y).predict(expand.fit_transform(asked))
        assert regression(x, y, features, 0.01)(asked) == pytest.approx(theirs)
    part = mixtures.build("regmix", {"runs": 40}, pools=sample_mixtures.pools(), proxies=None)
    part._loss = lambda shares: float(((shares - [0.1, 0.2, 0.7]) ** 2).sum())
    assert [*part.shares().values()] == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


def test_regmix_prefers_the_source_that_it_matches():
    found = {name: shares("regmix", sample_mixtures.pools(), match=name)[name] for name in sample_mixtures.NAMES}
    other = {n: shares("regmix", sample_mixtures.pools(), match="web")[n] for n in ("law", "people")}
    assert found["law"] > other["law"] and found["people"] > other["people"]


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("weights", {"weights": [0.5, 0.5]}, "got 2 shares, and there are 3 sources: law, people, web"),
        ("weights", {"weights": [0.5, 0.4, 0.3]}, "sum to 1.2, expected 1"),
        ("weights", {"weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ("repeat", {"epochs": [1.0]}, "expected a number for each of law, people, web"),
        ("target", {"match": "books"}, "there is no source 'books'; the sources are law, people, web"),
        ("regmix", {"match": "books"}, "there is no source 'books'"),
    ],
)
def test_bad_mixtures(name, knobs, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        shares(name, sample_mixtures.pools(), **knobs)
    assert "try: mixture." in str(caught.value)


@pytest.mark.oracle("curriculum=stages", "the published competence, in numpy")
def test_competence():
    for root in (1.0, 2.0):
        part = curricula.build("stages", {"stages": 5, "start": 0.1, "root": root}, names=[])
        found = [part.easiest((i + 0.5) / 5) for i in range(5)]
        t = np.arange(5) / 4
        assert found == pytest.approx(np.minimum(1, (t * (1 - 0.1**root) + 0.1**root) ** (1 / root)))
    lengths = curricula.build("stages", {"by": "word_length"}, names=[])
    assert lengths.difficulty("a an and") == pytest.approx(2.0) and lengths.difficulty("") == 0.0
    zipped = curricula.build("stages", {}, names=[])
    assert zipped.difficulty("a " * 200) < zipped.difficulty(sample_texts.prose(3))


@pytest.mark.oracle("curriculum=skills", "explicit table of the stages")
def test_skills():
    part = curricula.build("skills", {"order": ["b", "c", "a"], "rehearsal": 0.2}, names=["a", "b", "c"])
    base = dict.fromkeys("abc", 1 / 3)
    table = [{"a": 0.0, "b": 1.0, "c": 0.0}, {"a": 0.0, "b": 0.2, "c": 0.8}, {"a": 0.8, "b": 0.1, "c": 0.1}]
    assert [part.shares((i + 0.5) / 3, base) for i in range(3)] == [pytest.approx(row) for row in table]
    for order, said in ((["d"], "there is no source 'd'"), (["a", "a"], "a source occurs twice")):
        with pytest.raises(UserError, match=said):
            curricula.build("skills", {"order": order}, names=["a", "b"])


@pytest.mark.oracle("curriculum=anneal", "explicit shares before and after its start")
def test_annealing():
    base = {"a": 0.6, "b": 0.3, "c": 0.1}
    part = curricula.build("anneal", {"on": "c", "start": 0.5, "share": 0.7}, names=[*base])
    assert part.shares(0.49, base) == base
    assert part.shares(0.5, base) == pytest.approx({"a": 0.2, "b": 0.1, "c": 0.7})
    ramp = curricula.build("anneal", {"start": 0.5, "share": 0.7, "ramp": True}, names=[*base])
    assert ramp.shares(0.75, base)["c"] == pytest.approx(0.4) and ramp.shares(1.0, base)["c"] == pytest.approx(0.7)
    with pytest.raises(UserError, match="there is no source 'd'"):
        curricula.build("anneal", {"on": "d"}, names=[*base])
