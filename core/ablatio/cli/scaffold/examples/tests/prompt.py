from ablatio import prompts
from ablatio.model.prompting.types import Form, Question
from ablatio.testing.scripted_model import ScriptedModel


def test_question_is_asked_twice():
    llm = ScriptedModel(lambda prompt, times: " 4")
    program = prompts.build("read_again", form=Form(), parse=str.strip)
    assert program.answer(llm, (), Question("2+2?")).answer == "4"
    assert llm.calls == [("Q: 2+2?\nRead the question again: 2+2?\nA:", " 4")]
