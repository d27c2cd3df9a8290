from ablatio import evals


def test_the_next_number_is_the_answer():
    items = list(evals.build("counting_on", {"items": 8}).items())
    assert (items[7].prompt, items[7].target, len(items)) == ("7 8 9 10", "11", 8)
