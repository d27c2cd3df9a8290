from collections.abc import Sequence

from ablatio import prompts
from ablatio.model.prompting.types import Example, Form, Question, Reply, TextModel


@prompts.register("read_again", paper="arXiv:2309.06275")
class ReadAgain:
    """The question twice, "Q: ... Read the question again: ... A:" -> continuation."""

    uses_examples = uses_choices = False

    def __init__(self, form: Form, parse, *, words: str = "\nRead the question again: ") -> None:
        self.form, self.parse, self.words = form, parse, words

    def write(self, llm: TextModel, examples: Sequence[Example], question: Question) -> str:
        return self.form.ask(f"{question.text}{self.words}{question.text}")

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        ((found,),) = llm.complete([self.write(llm, examples, question)], stop=self.form.stop)
        return Reply(self.parse(found.text), found.text)
