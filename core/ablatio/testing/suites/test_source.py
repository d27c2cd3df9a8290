"""Sources: documents in a stream that can be read repeatedly and is the same each time."""

from collections import Counter

from ablatio.data.types import Document
from ablatio.errors import UserError
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts
from ablatio.testing.other_knob_values import other_values

KINDS = ("source",)


def test_documents_are_documents(part: PartSpec) -> None:
    found = list(sample_parts.first_documents(sample_parts.source(part)))
    assert found, f"{checks.label(part)}: gives no document"
    for document in found:
        kind = type(document).__name__
        assert isinstance(document, Document), f"{checks.label(part)}: gives a {kind}; expected Document(text, id)"
        texts = isinstance(document.text, str) and isinstance(document.id, str)
        assert texts, f"{checks.label(part)}: text and id are {document.text!r:.40}, {document.id!r}; expected strings"
        legal = document.split in ("train", "validation", "")
        assert legal, f"{checks.label(part)}: split is {document.split!r}; expected train, validation or ''"
        document.text.encode("utf-8")  # half of a surrogate pair would stop the tokenizer


def test_ids_are_unique(part: PartSpec) -> None:
    ids = [d.id for d in sample_parts.source(part).documents()]
    twice = [i for i, count in Counter(ids).items() if count > 1][:5]
    assert not twice, f"{checks.label(part)}: the ids {twice} occur more than once"


def test_same_each_time(part: PartSpec) -> None:
    a, b = sample_parts.source(part), sample_parts.source(part)
    first = list(sample_parts.first_documents(a))
    assert first == list(sample_parts.first_documents(a)), (
        f"{checks.label(part)}: its second reading gives other documents"
    )
    assert first == list(sample_parts.first_documents(b)), f"{checks.label(part)}: built again, it gives others"


def test_fingerprint(part: PartSpec) -> None:
    a, b = sample_parts.source(part), sample_parts.source(part)
    before = a.fingerprint()
    text = isinstance(before, str) and bool(before)
    assert text, f"{checks.label(part)}: the fingerprint is {before!r}; expected a non-empty string"
    list(sample_parts.first_documents(a))
    assert before == a.fingerprint(), f"{checks.label(part)}: reading changes the fingerprint"
    assert before == b.fingerprint(), f"{checks.label(part)}: made again, it has another fingerprint"


def test_fingerprint_follows_the_documents(part: PartSpec) -> None:
    """Other documents have another fingerprint: tokenized texts are kept under it and would be those of before."""
    usual = sample_parts.source(part)
    documents, fingerprint = list(sample_parts.first_documents(usual)), usual.fingerprint()
    for knob in part.knobs:
        for value in other_values(knob)[:4]:
            try:
                changed = sample_parts.source(part, {knob.name: value})
                found = list(sample_parts.first_documents(changed))
            except UserError:
                continue
            same = found != documents and changed.fingerprint() == fingerprint
            assert not same, (
                f"{checks.label(part)}: {knob.name}={value} gives other documents and the same fingerprint; expected "
                "another one, for the cache of tokenized texts"
            )
