from ablatio.data.types import Message
from ablatio.registry.kinds import templates


def test_only_the_answer_is_learned():
    segments = [*templates.build("question_answer")([Message("user", "2 + 2?"), Message("assistant", "4")])]
    assert "".join(s.text for s in segments) == "Q: 2 + 2?\nA: 4\n"
    assert [s.text for s in segments if s.said] == [" 4", ""]  # and the token that ends it
