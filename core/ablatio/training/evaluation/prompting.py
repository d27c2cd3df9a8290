"""Items put to a model by a prompt program, and answers chosen by a decode part, as a config says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ablatio.data.items import Generation, Item, Request, Response
from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.steps import chooser, token_by_token
from ablatio.model.evaluation.measure import Measure
from ablatio.model.prompting.answers import answers, check_examples
from ablatio.model.prompting.parse import final_answer
from ablatio.model.prompting.session import Session
from ablatio.model.prompting.types import Example, Form, Question, Usage
from ablatio.registry import kinds

EXAMPLES = 32  # solved items that a prompt program may show


def decode_part(config: Mapping[str, Any]) -> Any:
    """The config's decode part; None: the most probable token at each step."""
    if config.get("decode") is None:
        return None
    choice = PartChoice.of(config["decode"])
    if kinds.decodes[choice.name].facts["needs_second_model"]:
        raise UserError(
            f"decode={choice.name} needs a second model, which an evaluation does not have\n    try: decode=greedy"
        )
    return kinds.decodes.build(choice.name, choice.knobs)


def refuse_unused(config: Mapping[str, Any], measures: Sequence[Measure]) -> None:
    """Raise UserError for a decode part or a prompt program that changes nothing in an evaluation.

    A program that answers by itself (votes, trees) decodes; any other asks what the metrics ask.

    measures  of the evaluation; empty if the config chooses none
    """
    prompt = config.get("prompt")
    for kind in ("decode", "prompt"):
        if config.get(kind) is not None and not measures:
            raise UserError(
                f"{kind}={PartChoice.of(config[kind]).name} has no effect: no evaluation is chosen\n"
                "    try: eval=[addition]; `ablatio list eval` shows all"
            )
    if config.get("decode") is None or (prompt is not None and "write" not in _methods(prompt)):
        return
    if not any(_single(r) for m in measures for item in m.items for r in m.metric.requests(item)):
        name, metrics = PartChoice.of(config["decode"]).name, dict.fromkeys(m.entry.name for m in measures)
        raise UserError(
            f"decode={name} has no effect: metric=[{','.join(metrics)}] asks for likelihoods or samples of its own, "
            "not for the most probable answer\n    try: metric=[answer_parse]; `ablatio list metric` shows all"
        )


def _methods(prompt: Any) -> Sequence[str]:
    """Optional methods of a prompt program."""
    found: Sequence[str] = kinds.prompts[PartChoice.of(prompt).name].facts["uses"]
    return found


def _single(request: Request) -> bool:
    """True if a decode part answers the request: one answer, without sampling."""
    return isinstance(request, Generation) and request.samples == 1 and request.temperature == 0


def most_probable(job: DecodingJob) -> list[list[Continuation]]:
    """Decode the most probable token at each step."""
    processors = LogitsProcessors(temperature=0.0)
    return token_by_token(job, processors, chooser(job, processors))


@dataclass(frozen=True, slots=True)
class Prompting:
    """A prompt program with the text model that it calls.

    A program that writes a prompt changes the prompt of the items, for likelihoods and for generated answers.  Any
    other program (votes, trees) is asked for its answer, which stands for the generated one.
    """

    name: str
    program: Any
    llm: Session

    @classmethod
    def of(cls, config: Mapping[str, Any], llm: Session) -> "Prompting | None":
        """The config's prompt program; None if it has none."""
        if config.get("prompt") is None:
            return None
        choice = PartChoice.of(config["prompt"])
        if kinds.prompts[choice.name].facts["verifies"]:
            raise UserError(
                f"prompt={choice.name} needs a verifier, which an evaluation does not have\n"
                "    try: prompt=self_consistency"
            )
        program = kinds.prompts.build(choice.name, choice.knobs, form=Form(), parse=final_answer, verify=None)
        return cls(choice.name, program, llm)

    @property
    def writes(self) -> bool:
        """True if the program writes a prompt whose continuation is the answer."""
        return hasattr(self.program, "write")

    def written(self, items: Sequence[Item], examples: Sequence[Item]) -> list[Item]:
        """The items with the prompts of the program."""
        shown = self._prepared(examples)
        return [
            replace(item, prompt=self.program.write(self.llm, shown, _question(item)), delimiter=" ", stop=Form().stop)
            for item in items
        ]

    def answered(self, items: Sequence[Item], examples: Sequence[Item]) -> tuple[dict[Request, Response], Usage]:
        """The program's answers to the items, as responses to the request for a generated answer, and what they took.

        The usage is that of the questions, without the preparation on the examples.
        """
        # One limit for all questions, since a program's calls for several of them are made together.
        self.llm.tokens = max(item.room for item in items)
        shown = self._prepared(examples)
        before = self.llm.usage.copy()
        replies = answers(self.program, self.llm, shown, [_question(item) for item in items])
        pairs = zip(items, replies, strict=True)
        responses: dict[Request, Response] = {
            Generation.of(item): Response(texts=(reply.answer,)) for item, reply in pairs
        }
        return responses, self.llm.usage - before

    def refuse_others(self, metric: str, requests: Sequence[Request]) -> None:
        """Raise UserError for requests that a program without a prompt of its own cannot answer."""
        if not all(isinstance(r, Generation) and r.samples == 1 for r in requests):
            raise UserError(
                f"metric={metric} asks for likelihoods or samples, and prompt={self.name} gives answers only\n"
                "    try: metric=[answer_parse], or prompt=few_shot"
            )

    def _prepared(self, examples: Sequence[Item]) -> list[Example]:
        solved = [item for item in examples if item.correct is not None]
        shown = [Example(_question(item).text, str(item.correct), item.rationale) for item in solved]
        check_examples(self.program, shown)
        if hasattr(self.program, "fit"):
            self.program.fit(self.llm, shown)
        return shown


def answers_itself(config: Mapping[str, Any]) -> bool:
    """True if the config's prompt program votes or searches, rather than writing a prompt to be continued."""
    if config.get("prompt") is None:
        return False
    return "write" not in kinds.prompts[PartChoice.of(config["prompt"]).name].facts["uses"]


def _question(item: Item) -> Question:
    return Question(item.question or item.prompt, item.choices)


def examples_of(name: str, knobs: Mapping[str, Any], part: Any, texts: Any) -> list[Item]:
    """Solved items that are none of the evaluation's: its `examples()`, or the items of another seed; else none."""
    if hasattr(part, "examples"):
        return list(islice(part.examples(), EXAMPLES))
    knob = kinds.evals[name].knob("seed")
    if knob is None:
        return []
    other = {**knobs, "seed": int(knobs.get("seed", knob.default)) + 1}
    return list(islice(kinds.evals.build(name, other, texts=texts).items(), EXAMPLES))
