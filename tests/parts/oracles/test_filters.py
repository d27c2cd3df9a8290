"""Filters against datatrove, datasketch, scikit-learn and explicit formulas."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest

from ablatio import filters
from ablatio.data.filters import verdicts
from ablatio.testing import sample_texts
from ablatio_std.filters._common import hashes, ngrams, sentences, words
from ablatio_std.filters._ngram_model import NgramModel
from ablatio_std.filters.duplicates import minhash
from ablatio_std.filters.models import features
from ablatio_std.filters.pii import iban, luhn

TEXTS = sample_texts.training()


def run(name, texts, held_out=(), **knobs):
    return list(verdicts(filters.build(name, knobs), texts, held_out))


def kept(name, texts, held_out=(), **knobs):
    return [v.text is not None for v in run(name, texts, held_out, **knobs)]


@pytest.mark.oracle("filter=statistics", "datatrove GopherQualityFilter and GopherRepetitionFilter")
@pytest.mark.parametrize("quality", [True, False])
def test_statistics_are_gophers(quality, monkeypatch):
    from datatrove.data import Document
    from datatrove.pipeline.filters import gopher_quality_filter, gopher_repetition_filter

    module = gopher_quality_filter if quality else gopher_repetition_filter
    monkeypatch.setattr(module, "split_into_words", lambda text, language: text.split())
    theirs = module.GopherQualityFilter() if quality else module.GopherRepetitionFilter()
    lax = {"words": [0, 10**6], "word_length": [0, 10**6], "symbols": 9, "bullets": 1, "ellipses": 1, "alphabetic": 0,
           "stop_words": 0}  # fmt: skip
    knobs = {"repetition": 0.0} if quality else lax
    texts = [text for text in TEXTS if not text.isupper()]  # they look for stop words in lower case
    found = [theirs.filter(Document(text, "")) is True for text in texts]
    assert kept("statistics", texts, lorem_ipsum=False, **knobs) == found
    assert 2 < sum(found) < len(texts)


@pytest.mark.oracle("filter=statistics", "datatrove GopherRepetitionFilter, text by text")
def test_repetition_rule_by_rule(monkeypatch):
    from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates

    from ablatio_std.filters.rules import _duplicates, _in_duplicates

    for text in TEXTS:
        tokens = text.lower().split()
        assert [_in_duplicates(tokens, n) for n in (1, 2, 3)] == [find_all_duplicate(tokens, n) for n in (1, 2, 3)]
        assert _duplicates(tokens) == find_duplicates(tokens)


@pytest.mark.oracle("filter=dedup_document", "datasketch MinHash, and the Jaccard similarity")
def test_minhash_estimates_the_jaccard_similarity():
    from datasketch import MinHash

    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        items = [f"{i}" for i in range(600)]
        cut = round(600 * (1 - share) / (1 + share))
        a, b = items[: 600 - cut // 2], items[cut - cut // 2 :]
        jaccard = len({*a} & {*b}) / len({*a, *b})
        ours = float((minhash(hashes(a), 1024) == minhash(hashes(b), 1024)).mean())
        pair = [MinHash(num_perm=1024, seed=int(rng.integers(99))) for _ in "ab"]
        pair[1] = pair[0].copy()
        for held, of in zip(pair, (a, b), strict=True):
            held.update_batch([item.encode() for item in of])
        error = 4 * math.sqrt(jaccard * (1 - jaccard) / 1024)
        assert abs(ours - jaccard) < error and abs(pair[0].jaccard(pair[1]) - jaccard) < error


def test_near_duplicates_are_those_of_the_exact_similarity():
    """On the sample texts the signatures decide as the sets of n-grams do, away from the threshold."""
    grams = [set(ngrams(words(text), 3)) for text in TEXTS]
    found = run("dedup_document", TEXTS, ngram=3, bands=64, rows=2, similarity=0.5)
    for i, verdict in enumerate(found):
        kept_before = [j for j in range(i) if found[j].text is not None]
        most = max((len(grams[i] & grams[j]) / max(1, len(grams[i] | grams[j])) for j in kept_before), default=0)
        if abs(most - 0.5) > 0.1:
            assert (verdict.text is None) == (most > 0.5), (i, most)
    assert sum(v.text is None for v in found) >= 3


def test_exact_duplicates_have_the_same_words():
    seen, expected = set(), []
    for text in TEXTS:
        key = re.sub(r"\W+", " ", text.lower()).strip()
        expected.append(key not in seen)
        seen.add(key)
    assert kept("dedup_document", TEXTS, by="exact") == expected and not all(expected)


@pytest.mark.oracle("filter=dedup_sentence", "explicit: every span of three sentences, in a second formulation")
def test_no_span_of_three_sentences_is_left_twice():
    found = [v.text for v in run("dedup_sentence", TEXTS) if v.text and v.text.strip()]
    spans = Counter()
    for text in found:
        bare = [" ".join(words(s)) for s in sentences(text) if words(s)]
        spans.update(itertools.pairwise(itertools.pairwise(bare)))
    joined = [pair for pair, n in spans.items() if n > 1]
    assert not joined
    first = "One is here. Two is here. Three is here. Four is alone."
    again = "Zero is new. One  is here! TWO is here. Three is here."
    assert [v.text for v in run("dedup_sentence", [first, again])] == [first, "Zero is new. "]


@pytest.mark.oracle("filter=dedup_dataset", "explicit sets of n-grams")
@pytest.mark.parametrize("n", [5, 13])
def test_contaminated_documents_share_an_ngram(n):
    held = sample_texts.held_out()

    def grams(text):
        tokens = re.findall(r"\w+(?:['’]\w+)*", text.lower())
        return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))}

    banned = set().union(*map(grams, held))
    expected = [not grams(text) & banned for text in TEXTS]
    assert kept("dedup_dataset", TEXTS, held, ngram=n) == expected and not all(expected)


@pytest.mark.oracle("filter=perplexity", "explicit: counts in dictionaries, the recursion of the formula")
@pytest.mark.parametrize("own", [True, False])
def test_ngram_model(own):
    texts, order, mu = [t[:160] for t in TEXTS[:8]], 3, 2.0
    model = NgramModel(order, mu, 2**22)
    model.fit(texts)
    counts = Counter()
    for raw in (text.encode() for text in texts):
        counts.update(raw[i : i + k] for k in range(1, order + 1) for i in range(len(raw) - k + 1))
        counts[b""] += len(raw)

    def p(k, byte, history, own_counts):
        if k == 0:
            return 1 / 256
        context = history[len(history) - k + 1 :] if k > 1 else b""
        if len(context) < k - 1:
            return p(k - 1, byte, history, own_counts)
        seen = {g: counts[g] - own_counts[g] for g in (context, context + byte)}
        return (seen[context + byte] + mu * p(k - 1, byte, history, own_counts)) / (seen[context] + mu)

    for text in texts[:3]:
        raw = text.encode()
        mine = Counter(raw[i : i + k] for k in range(1, order + 1) for i in range(len(raw) - k + 1))
        mine[b""] = len(raw)
        bits = [-math.log2(p(order, raw[i : i + 1], raw[:i], mine if own else Counter())) for i in range(len(raw))]
        assert model.bits_per_byte(text, leave_out=own) == pytest.approx(np.mean(bits), rel=1e-9)


def test_perplexity_keeps_the_quantiles_and_knows_noise():
    noise = "".join(chr(33 + (i * 7919) % 90) for i in range(400))
    texts = [sample_texts.prose(seed) for seed in range(19)] + [noise]
    assert kept("perplexity", texts, high=0.9)[-1] is False
    assert sum(kept("perplexity", texts, low=0.25, high=0.75)) == 10  # places 5 to 14 of 0 to 19


@pytest.mark.oracle("filter=classifier", "scikit-learn LogisticRegression on the same features")
def test_classifier_ranks_as_scikit_learns(tmp_path):
    from sklearn.linear_model import LogisticRegression

    chance = np.random.default_rng(1)
    good = [" ".join(chance.choice(["law", "state", "nation", "people", "treaty"], 12)) for _ in range(40)]
    bad = [" ".join(chance.choice(["law", "click", "buy", "people", "offer"], 12)) for _ in range(40)]
    (tmp_path / "good.txt").write_text("\n\n".join(good))
    part = filters.build("classifier", {"good": str(tmp_path / "good.txt"), "passes": 20})
    part.fit(bad)
    places = sorted({int(i) for text in (*good, *bad) for i in features(text)})
    number = {place: i for i, place in enumerate(places)}
    x = np.zeros((80, len(places)))
    for row, text in enumerate((*good, *bad)):
        found = features(text)
        x[row, [number[int(i)] for i in found]] = 1 / math.sqrt(len(found))
    theirs = LogisticRegression(C=100.0).fit(x, [1] * 40 + [0] * 40).predict_proba(x)[:, 1]
    ours = np.asarray([part.measure(text) for text in (*good, *bad)])
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97
    assert (ours[:40] > 0.5).all() and (ours[40:] < 0.5).all()


def test_pareto_keeps_documents_at_its_rate(tmp_path):
    """P(X > 1 - p) of a Lomax variable is (2 - p)^-alpha, numpy's Pareto."""
    (tmp_path / "good.txt").write_text("law state\n\nnation people")
    part = filters.build("classifier", {"good": str(tmp_path / "good.txt"), "pareto": 2.0})
    rate = np.mean([part.judge(f"text {i}", 0.5).text is not None for i in range(4000)])
    assert abs(rate - 1.5**-2) < 4 * math.sqrt(0.25 / 4000)
    drawn = np.random.default_rng(0).pareto(2.0, 4000) > 0.5
    assert abs(rate - drawn.mean()) < 0.05


@pytest.mark.oracle("filter=difficulty", "explicit frequencies; the published example of the Flesch-Kincaid grade")
def test_difficulty():
    part = filters.build("difficulty", {})
    texts = ["the law the law", "the rare", "people"]
    part.fit(texts)
    p = {"the": 3 / 7, "law": 2 / 7, "rare": 1 / 7, "people": 1 / 7}
    assert part.measure("the rare law") == pytest.approx(-sum(math.log(p[w]) for w in ("the", "rare", "law")) / 3)
    grade = filters.build("difficulty", {"by": "readability"})
    assert grade.measure("The cat sat on the mat.") == pytest.approx(0.39 * 6 + 11.8 - 15.59)
    easy, hard = "a b a b " * 99, "".join(chr(97 + i * i * 7 % 23) for i in range(700))
    zipped = filters.build("difficulty", {"by": "compression"})
    assert zipped.measure(easy) < zipped.measure(hard)


@pytest.mark.oracle("filter=coreset", "explicit greedy k-center over all pairs")
def test_k_center_covers():
    from scipy.spatial.distance import cdist

    from ablatio_std.filters.models import _herding, _k_center

    points = np.random.default_rng(0).normal(size=(60, 4))
    distance, chosen = cdist(points, points), [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    while len(chosen) < 12:
        chosen.append(int(distance[:, chosen].min(1).argmax()))
    assert _k_center(points, 12) == chosen
    herd = _herding(points, 30)
    random = [np.random.default_rng(i).permutation(60)[:30] for i in range(20)]
    gaps = [np.linalg.norm(points[r].mean(0) - points.mean(0)) for r in random]
    assert len({*herd}) == 30 and np.linalg.norm(points[herd].mean(0) - points.mean(0)) < min(gaps)
    assert sum(kept("coreset", TEXTS, keep=0.5, by="random")) in range(len(TEXTS) // 2 - 2, len(TEXTS) // 2 + 3)


@pytest.mark.oracle("filter=language", "the languages of texts written for the test, and of the corpora")
def test_languages():
    written = {
        "en": "It is the duty of the government to be open with all of its people, and this is not new.",
        "de": "Die Regierung hat dem Kongress nicht nur einen Bericht, sondern auch die Zahlen für das Jahr gegeben.",
        "fr": "Le gouvernement est dans une situation qui ne change pas, et les élus sont avec lui pour la loi.",
        "es": "El gobierno no es una cosa de pocos, y la ley se hace con todos los que viven en el país.",
        "zh": "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？",
        "ja": "これは日本語の文章です。漢字とひらがなを使います。",
        "ru": "Правительство не может жить без закона.",
        "ko": "정부는 법 없이 살 수 없다.",
    }
    for language, text in written.items():
        assert [name for name in written if kept("language", [text], keep=[name])[0]] == [language]
    assert kept("language", ["", "12 34"]) == [False, False]


@pytest.mark.oracle("filter=pii", "datatrove PIIFormatter for mail and network addresses; published check digits")
def test_personal_data():
    from datatrove.pipeline.formatters import PIIFormatter

    text = "Mail a.b+c@mail.example.org or x@y.co, host 8.8.8.8, not a@b nor 1.2.3."
    theirs = PIIFormatter(email_replacement="<EMAIL>", ip_replacement="<IP>", only_remove_public_ips=False)
    ours = run("pii", [text], replace=["email", "ip"])[0]
    assert ours.text == theirs.format(text) and ours.counts == {"email": 2, "ip": 1}
    assert luhn("4111 1111 1111 1111") and not luhn("4111 1111 1111 1112")  # the test number of Visa
    assert iban("GB82 WEST 1234 5698 7654 32") and not iban("GB83 WEST 1234 5698 7654 32")  # that of ISO 13616
    call = "Call (202) 555-0144 or +49 30 901820; in 1990 there were 12,345 of 2020-2021. He lives at 12 Main Street."
    assert run("pii", [call])[0].text == (
        "Call <PHONE> or <PHONE>; in 1990 there were 12,345 of 2020-2021. He lives at <ADDRESS>."
    )
    assert run("pii", ["Card 4111 1111 1111 1112"])[0].text == "Card 4111 1111 1111 1112"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("::1 or fe80::1ff:fe23:4567:890a.", "<IP> or <IP>."),
        ("2001:db8:85a3:0:0:8a2e:370:7334, [::1]:80", "<IP>, [<IP>]:80"),
        ("at 12:30:45 std::vector :: 1:2:3 aa:bb:cc:dd:ee:ff", None),
        ("tel:+16502530000", "tel:<PHONE>"),
        ("+5 apples, 1+12345678, pages 100-200", None),
        ("the 1990 World Cup Court of Arbitration", None),
        ("SSN 078-05-1120, not 000-05-1120", "SSN <SSN>, not 000-05-1120"),
    ],
)
def test_personal_data_is_told_from_what_looks_like_it(text: str, expected: str | None) -> None:
    assert run("pii", [text])[0].text == (text if expected is None else expected)


@pytest.mark.oracle("filter=keywords", "html.parser's text of the same page")
def test_markup_is_removed():
    from html.parser import HTMLParser

    class Plain(HTMLParser):
        def handle_data(self, data):
            self.found = getattr(self, "found", "") + data

    page = "<!DOCTYPE html><p class='a'>Fish &amp; chips &#8364;5</p><!-- x --><br/>1 < 2 and 3 > 2\n"
    plain = Plain()
    plain.feed(page)
    plain.close()
    found = run("keywords", [page])[0]
    assert found.text == plain.found and found.counts["tags"] == 4
    script = "<script type='text/javascript'>if (a < b) { run() }</script>Text.\nPlease enable javascript.\nMore text."
    assert run("keywords", [script])[0].text == "Text.\nMore text."
    assert run("keywords", ["A line.\nmenu\nTwo words."], terminal=True, line_words=2)[0].text == "A line.\nTwo words."


@pytest.mark.oracle("filter=toxicity", "explicit count")
def test_toxic_words_are_counted():
    part = filters.build("toxicity", {"words": ["bad"], "most": 250.0})
    assert part.measure("Bad, very BAD badge!") == 500.0
    assert part.judge("x", 250.0).text == "x" and part.judge("x", 251.0).text is None
