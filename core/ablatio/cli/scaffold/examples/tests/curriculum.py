from ablatio import curricula


def test_the_share_grows_to_all_rows():
    made = curricula.build("short_first", {"start": 0.5})
    assert [made.easiest(place) for place in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]
    assert made.difficulty("long text") > made.difficulty("text")
