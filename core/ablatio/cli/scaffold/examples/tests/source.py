from ablatio import sources


def test_documents_count():
    source = sources.build("counting", {"texts": 2, "numbers": 3})
    assert [d.text for d in source.documents()] == ["0 1 2", "1 2 3"]
    assert source.fingerprint() != sources.build("counting", {"texts": 3, "numbers": 3}).fingerprint()
