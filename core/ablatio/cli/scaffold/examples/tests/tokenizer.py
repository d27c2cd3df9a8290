from ablatio import tokenizers


def test_every_text_comes_back():
    part, text = tokenizers.build("nibbles"), "Größe, 日本語"
    (ids,) = part.encode([text])
    assert part.decode(ids) == text and part.token_bytes()[ids].sum() == len(text.encode())
