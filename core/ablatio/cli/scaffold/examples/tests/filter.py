from ablatio import filters


def test_drops_a_text_that_repeats_a_word():
    varied = filters.build("varied", {"least": 0.5})
    kept = [varied.judge(text, varied.measure(text)).text for text in ("one two three", "one one one one")]
    assert kept == ["one two three", None]
