"""`ablatio generate RUN "We the people"`: text from a run."""

from pathlib import Path

from ablatio.cli.commands import parser
from ablatio.data.chat import Template
from ablatio.data.types import Message, Tokenizer
from ablatio.errors import UserError


def conversation(system: str, question: str) -> list[Message]:
    """What a chat begins with."""
    if not question.strip():
        raise UserError('--chat answers a question, and none came\n    try: ablatio generate RUN "How many?" --chat')
    return [*([Message("system", system)] if system else []), Message("user", question)]


def known_signs(tokenizer: Tokenizer, form: Template, run: Path) -> Tokenizer:
    """The run's tokenizer; UserError when its model has never seen what the template writes."""
    known = getattr(tokenizer, "specials", {})
    if missing := [sign for sign in form.signs if sign not in known]:
        raise UserError(
            f"{run} was trained without {missing[0]}, which its template writes: it is no chat run\n"
            f"    try: ablatio generate {run} PROMPT, without --chat"
        )
    return tokenizer


def run(arguments: list[str]) -> int:
    options = parser("generate")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("prompt", nargs="?", default="", help="what the text begins with; by default nothing")
    options.add_argument("--chat", action="store_true", help="the prompt is a question; the answer comes back alone")
    options.add_argument("--system", default="", help="with --chat: what the system says first; by default nothing")
    options.add_argument("--tokens", type=int, default=200, help="new tokens (200)")
    options.add_argument("--samples", type=int, default=1, help="texts (1)")
    options.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (0.8)")
    options.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 0: all (0)")
    options.add_argument("--top-p", type=float, default=0.95, help="only the likeliest that hold this mass (0.95)")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--step", type=int, help="a checkpoint's step; by default the newest")
    asked = options.parse_args(arguments)
    from ablatio.model.decoding.generate import Sampling, answer, complete
    from ablatio.training.load import load_run

    run, _ = load_run(asked.run, asked.step)
    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.seed)
    if asked.chat:
        questions = [conversation(asked.system, asked.prompt)] * asked.samples
        form = run.setup.template
        tokenizer = known_signs(run.tokenizer, form, asked.run)
        texts = answer(run.model, tokenizer, form, questions, asked.tokens, sampling)
    else:
        texts = complete(run.model, run.tokenizer, [asked.prompt] * asked.samples, asked.tokens, sampling)
    for text in texts:
        print(text)
        if asked.samples > 1:
            print("---")
    return 0
