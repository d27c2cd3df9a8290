"""Continuations and answers of a run: parts by name, from Python and from the command line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ablatio.api.session import computing
from ablatio.errors import UserError
from ablatio.registry import kinds
from ablatio.registry.registry import Registry
from ablatio.storage.paths import shell_word

if TYPE_CHECKING:
    from ablatio.model.prompting.types import Example, Reply

Choice = str | Mapping[str, Any]
Judge = Callable[[str, Sequence[str], Sequence[Sequence[int]]], Sequence[float]]


class OpenedRun(Protocol):
    """A run whose model continues texts: its model, tokenizer and chat template."""

    folder: Path

    @property
    def model(self) -> Any:
        """The trained model."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    @property
    def template(self) -> Any:
        """Its chat template."""


USUAL = {"temperature": 0.8, "top_p": 0.95}


def generate(
    run: OpenedRun,
    prompts: Sequence[str],
    *,
    open_run: Callable[[Path], OpenedRun],
    tokens: int,
    given: Mapping[str, Any],
    seed: int,
    chat: bool,
    system: str,
    decode: Choice | None,
    stop: Sequence[str],
    choices: Sequence[str],
    second: str | Path | None,
    reward: Choice | None,
    samples: int,
) -> list[str]:
    """Continue prompts, as documented at `RunFolder.generate_many`.

    given     settings of the sampling
    open_run  opens the run of the second model
    """
    from ablatio.model.decoding.generate import Request, answer, complete

    if system and not chat:
        raise UserError(
            "a system message came, and the prompt is no question to a chat model\n"
            f"    try: ablatio generate {shell_word(run.folder)} PROMPT --chat --system {shell_word(system)}"
        )
    part, several = _decode(decode, given, seed)
    # Such a part returns its best `samples` itself; any other is asked once for each sample.
    asked = list(prompts) if several else [prompt for prompt in prompts for _ in range(samples)]
    with computing():
        request = Request(
            tokens, part, seed, tuple(stop), tuple(choices), _second(open_run, second, decode), _judge(reward, decode)
        )
        if not chat:
            found = complete(run.model, run.tokenizer, asked, request)
        else:
            from ablatio.api.chat import conversation, with_template_tokens

            questions = [conversation(system, prompt) for prompt in asked]
            tokenizer = with_template_tokens(run.tokenizer, run.template, run.folder)
            found = answer(run.model, tokenizer, run.template, questions, request)
    return [text for texts in found for text in texts[: samples if several else 1]]


def answer(
    run: OpenedRun,
    question: str,
    *,
    prompt: Choice,
    examples: "Sequence[Example]",
    choices: Sequence[str],
    decode: Choice | None,
    tokens: int,
    seed: int,
    reward: Choice | None,
) -> "Reply":
    """Answer a question by a prompt program, as documented at `RunFolder.answer`."""
    from ablatio.model.decoding.generate import Sampling
    from ablatio.model.prompting.answers import answer_all, refuse_unused
    from ablatio.model.prompting.parse import final_answer
    from ablatio.model.prompting.session import Session
    from ablatio.model.prompting.types import Form, Question

    name = str(prompt if isinstance(prompt, str) else prompt.get("name"))
    if kinds.prompts[name].facts["verifies"] != (reward is not None):
        judging = [entry.name for entry in kinds.prompts if entry.facts["verifies"]]
        raise UserError(
            f"prompt={name} needs a rule that judges answers\n    try: prompt={name} reward={_rules()[0]}"
            if reward is None
            else f"reward=... judges the answers of {', '.join(judging)}, and prompt={name} asks for no judgement\n"
            f"    try: prompt={(judging or [name])[0]}"
        )
    rule = None if reward is None else _rule(reward)

    def verify(asked: str, text: str) -> float:
        assert rule is not None
        return rule(asked, [text], [[*map(int, run.tokenizer.encode([text])[0])]])[0]

    program = built(kinds.prompts, prompt, form=Form(), parse=final_answer, verify=None if rule is None else verify)
    refuse_unused(name, program, examples, choices)
    with computing():
        part = Sampling(temperature=0) if decode is None else built(kinds.decodes, decode)
        session = Session(run.model, run.tokenizer, part, tokens=tokens, seed=seed)
        reply = answer_all(program, session, examples, [Question(question, tuple(choices))])[0]
    if decode is not None and not session.decoded:
        chosen = decode if isinstance(decode, str) else decode["name"]
        raise UserError(
            f"decode={chosen} has no effect: prompt={name} "
            + ("scores the choices" if choices else "draws its samples by itself")
            + f"\n    try: prompt={name} without decode={chosen}"
        )
    return replace(reply, usage=session.usage)


def built(registry: Registry[Any], choice: Choice, **wiring: Any) -> Any:
    """Build a part from its name, or from {"name": ..., knob: value}."""
    node = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = node.pop("name", None)
    if not name:
        raise UserError(f"{choice} names no {registry.kind}\n    try: {registry.kind}={registry.names()[0]}")
    return registry.build(name, node, **wiring)


def _decode(choice: Choice | None, given: Mapping[str, Any], seed: int) -> tuple[Any, bool]:
    """The decode part, and whether it gives several continuations of a prompt."""
    if choice is None:
        from ablatio.model.decoding.generate import Sampling

        return Sampling(**USUAL | dict(given), seed=seed), False
    node = {"name": choice} if isinstance(choice, str) else dict(choice)
    entry = kinds.decodes[str(node.get("name"))]
    for setting in given:
        if entry.knob(setting) is None:
            flag = f"--{setting.replace('_', '-')}"
            raise UserError(
                f"decode={entry.name} has no {setting}, which {flag} sets\n    try: ablatio show decode={entry.name}"
            )
    part = built(kinds.decodes, {**given, **node})
    return part, bool(entry.facts["beams"]) or entry.knob("n") is not None


def _second(open_run: Callable[[Path], OpenedRun], folder: str | Path | None, choice: Choice | None) -> Any:
    name = None if choice is None else choice if isinstance(choice, str) else choice["name"]
    needs = name is not None and kinds.decodes[name].facts["needs_second_model"]
    if folder is None:
        if needs:
            raise UserError(f"decode={name} needs a second model\n    try: second=runs/small, a run folder")
        return None
    if not needs:
        raise UserError(
            f"second={folder} was given, and {f'decode={name}' if name else 'sampling'} uses one model\n"
            "    try: decode=speculative"
        )
    return open_run(Path(folder).expanduser()).model


def _judge(choice: Choice | None, decode: Choice | None) -> Judge | None:
    if choice is None:
        return None
    if not isinstance(decode, Mapping) or decode.get("by") != "judge":
        raise UserError("reward=... ranks samples\n    try: decode=best_of_n decode.by=judge reward=length")
    return _rule(choice)


def _rules() -> list[str]:
    """Names of the rewards that are functions of one answer."""
    return [entry.name for entry in kinds.rewards if entry.wiring == ("answer",)]


def _rule(choice: Choice) -> Judge:
    """A reward rule as a function of a prompt and its answers."""
    from ablatio.model.rl.answers import Answer, judged, one_by_one

    node = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = str(node["name"])
    if name not in (known := _rules()):
        kinds.rewards[name]  # one that does not exist is refused in other words
        raise UserError(
            f"reward={name} is not a function of one answer; those are {', '.join(known)}\n    try: reward={known[0]}"
        )
    rule = one_by_one(built(kinds.rewards, node), name)

    def judge(prompt: str, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[float]:
        answers = [Answer(prompt, text, ids=row) for text, row in zip(texts, ids, strict=True)]
        scores: list[float] = judged(rule, name, answers)[0].tolist()
        return scores

    return judge
