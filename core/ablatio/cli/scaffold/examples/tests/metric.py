from ablatio import metrics


def test_a_longer_answer_matches_and_a_first_word_counts_partly():
    metric = metrics.build("prefix_match", {"partial": 0.25})
    assert [metric(text, "blue sky") for text in ("blue sky, often", "blue sea", "red")] == [1.0, 0.25, 0.0]
