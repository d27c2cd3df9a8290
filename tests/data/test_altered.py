"""source=repeated and source=damaged: the fault has its size, and held-out text is that of the source."""

import itertools
from collections import Counter

import pytest

from ablatio import sources
from ablatio.data.splits import TrainValSplit
from ablatio.data.types import Document
from ablatio.errors import UserError
from ablatio_std.sources import altered


class Numbers:
    """1000 different documents of 40 to 139 characters; 100 of them are held out by name, if `named`."""

    def __init__(self, *, named: bool = True) -> None:
        self.named = named

    def documents(self):
        for i in range(1000):
            split = ("validation" if i % 10 == 0 else "train") if self.named else ""
            words = " ".join(f"{w}{i}" for w in ["the", "river", "runs", "by", "an", "old", "town"])
            yield Document(f"{words:.<{40 + i % 100}}", str(i), split)

    def fingerprint(self) -> str:
        return "ab" * 32


@pytest.fixture(params=[True, False], ids=["named splits", "hashed splits"])
def inner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Numbers:
    """The source that is altered."""
    found, build = Numbers(named=request.param), sources.build
    monkeypatch.setattr(
        altered.sources, "build", lambda name, knobs=None: found if name == "sotu" else build(name, knobs)
    )
    return found


def texts(source, split: str) -> list[str]:
    return [document.text for document in TrainValSplit(source, 0.02).documents(split)]


@pytest.mark.oracle("source=repeated", "counts of equal texts in the stream")
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_copies_are_the_asked_share_of_the_text(inner: Numbers, share: float) -> None:
    source = sources.build("repeated", {"share": share, "characters": 500})
    plain, found = texts(inner, "train"), texts(source, "train")
    assert texts(source, "validation") == texts(inner, "validation")
    size = sum(map(len, found))
    assert size == pytest.approx(sum(map(len, plain)), rel=0.01)
    counts = Counter(found)
    copied = {text for text, n in counts.items() if n > 2}
    assert sum(len(text) * counts[text] for text in copied) / size == pytest.approx(share, abs=0.05)
    assert sum(map(len, copied)) == (500 if share else 0)
    assert max((counts[t] for t in copied), default=0) - min((counts[t] for t in copied), default=0) <= 2  # in turn
    whole = {text for text in copied if text in plain}
    assert len(copied) - len(whole) <= 1  # the last one is cut
    assert all(any(p.startswith(text) for p in plain) for text in copied)
    if share == 0:
        assert found == plain


@pytest.mark.oracle("source=damaged", "sorted words, and positions of changed characters")
def test_damage_has_its_size_and_kind(inner: Numbers) -> None:
    plain = {d.id: d.text for d in inner.documents()}
    for knobs in ({"by": "words"}, {"by": "characters", "rate": 0.25}):
        source = sources.build("damaged", {"share": 0.4, **knobs})
        assert texts(source, "validation") == texts(inner, "validation")
        documents = [d for d in source.documents() if d.split == "train"]
        hurt = [d for d in documents if "damaged" in d.id]
        assert len(hurt) / len(documents) == pytest.approx(0.4, abs=0.05)
        assert all(d.text == plain[d.id] for d in documents if d not in hurt)
        pairs = [(d.text, plain[d.id.partition(",")[0]]) for d in hurt]
        if knobs["by"] == "words":
            assert all(sorted(a.split(" ")) == sorted(b.split(" ")) for a, b in pairs)
            assert sum(a == b for a, b in pairs) < 3
        else:
            letters = [(x, y) for a, b in pairs for x, y in zip(a, b, strict=True) if not y.isspace()]
            drawn = sum(x != y for x, y in letters) / len(letters)
            assert 0.1 < drawn < 0.25  # some are replaced by an equal one
            assert all(x.isspace() == y.isspace() for a, b in pairs for x, y in zip(a, b, strict=True))


def test_streams_are_equal_each_time_and_differ_by_seed(inner: Numbers) -> None:
    for name in ("repeated", "damaged"):
        one, again, other = (sources.build(name, {"seed": seed}) for seed in (0, 0, 1))
        assert one.fingerprint() == again.fingerprint() != other.fingerprint()
        assert [d.text for d in one.documents()] == [d.text for d in again.documents()]
        assert [d.text for d in one.documents()] != [d.text for d in other.documents()]


def test_a_source_that_cannot_be_altered_is_refused() -> None:
    for name, of in itertools.product(("repeated", "damaged"), ("repeated", "self_instruct")):
        with pytest.raises(UserError, match=r"try: source\.of=sotu"):
            sources.build(name, {"of": of})
