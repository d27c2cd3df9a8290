"""Sources: documents, in a stream that can be read again and is the same each time."""

from collections import Counter

from ablatio.data.types import Document
from ablatio.registry import Entry
from ablatio.testing import probe, samples

KINDS = ("source",)


def test_documents_are_documents(part: Entry) -> None:
    found = list(samples.first_documents(samples.source(part)))
    assert found, f"{probe.label(part)}: gives no document"
    for document in found:
        kind = type(document).__name__
        assert isinstance(document, Document), f"{probe.label(part)}: gives a {kind}, Document(text, id) was expected"
        texts = isinstance(document.text, str) and isinstance(document.id, str)
        assert texts, f"{probe.label(part)}: text and id are {document.text!r:.40} and {document.id!r}; texts expected"
        legal = document.split in ("train", "validation", "")
        assert legal, f"{probe.label(part)}: split is {document.split!r}; train, validation or '' was expected"
        document.text.encode("utf-8")  # half of a surrogate pair would stop the tokenizer


def test_ids_are_unique(part: Entry) -> None:
    ids = [d.id for d in samples.source(part).documents()]
    twice = [i for i, count in Counter(ids).items() if count > 1][:5]
    assert not twice, f"{probe.label(part)}: the ids {twice} come more than once"


def test_same_each_time(part: Entry) -> None:
    a, b = samples.source(part), samples.source(part)
    first = list(samples.first_documents(a))
    assert first == list(samples.first_documents(a)), f"{probe.label(part)}: its second reading gives other documents"
    assert first == list(samples.first_documents(b)), f"{probe.label(part)}: made again, it gives other documents"


def test_fingerprint(part: Entry) -> None:
    a, b = samples.source(part), samples.source(part)
    before = a.fingerprint()
    text = isinstance(before, str) and bool(before)
    assert text, f"{probe.label(part)}: the fingerprint is {before!r}, a text was expected"
    list(samples.first_documents(a))
    assert before == a.fingerprint(), f"{probe.label(part)}: reading changes the fingerprint"
    assert before == b.fingerprint(), f"{probe.label(part)}: made again, it has another fingerprint"
