"""`ablatio generate RUN "We the people"`: continue texts, or answer questions, with a run."""

import json
import sys
from pathlib import Path
from typing import Any

from ablatio.cli.commands import parser, refuse_other_flags
from ablatio.errors import UserError
from ablatio.storage.paths import shell_word

USES = {
    "with prompt=, whose program says what is asked and where an answer ends": (),
    "without prompt=": ("temperature", "top_k", "top_p", "chat", "system", "stop", "samples"),
}
KINDS = ("decode", "prompt", "reward")
FOLDERS = ("second", "examples")
EPILOG = """words: decode=NAME decode.KNOB=VALUE chooses how tokens are chosen (`ablatio list decode`);
prompt=NAME prompt.KNOB=VALUE answers the text as a question (`ablatio list prompt`), examples=FILE.jsonl names solved
questions, one {"question": ..., "answer": ..., "rationale": ...} a line; second=RUN is the second model of a decoding
with two; reward=NAME ranks the samples of decode=best_of_n decode.by=judge, and is the verifier of prompt=verifier"""


def run(arguments: list[str]) -> int:
    """Run `ablatio generate` and return its exit code."""
    options = parser("generate", epilog=EPILOG)
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("words", nargs="*", metavar="prompt", help="beginning of the text, by default empty; settings")
    options.add_argument("--chat", action="store_true", help="treat the prompt as a question and print only the answer")
    options.add_argument("--system", default="", help="with --chat: the system message; by default none")
    options.add_argument("--tokens", type=int, default=200, help="number of new tokens; by default 200")
    options.add_argument("--samples", type=int, default=1, help="number of texts; by default 1")
    options.add_argument(
        "--temperature", type=float, help="sampling temperature, 0 for greedy decoding; by default 0.8"
    )
    options.add_argument("--top-k", type=int, help="sample from the k likeliest tokens; by default 0: all")
    options.add_argument(
        "--top-p", type=float, help="sample from the likeliest tokens with this total probability (0.95)"
    )
    options.add_argument("--stop", action="append", default=[], help="a string that ends the text; may be repeated")
    options.add_argument("--choices", default="", help="the only continuations that are allowed: ' yes| no'")
    options.add_argument("--seed", type=int, default=1, help="seed of the sampling; by default 1")
    options.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    args = options.parse_intermixed_args(arguments)
    text, chosen = _words(args.words)
    refuse_other_flags(options, arguments, args, USES, [*USES]["prompt" not in chosen])
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: expected 1 or more\n    try: --samples 3")
    from ablatio.api.run_folder import open_run

    opened = open_run(args.run, args.step)
    choices = [c for c in args.choices.split("|") if c]
    if "prompt" in chosen:
        _answer(opened, text, chosen, choices, args)
        return 0
    if "examples" in chosen:
        raise UserError("examples=... are shown by a prompt program\n    try: prompt=few_shot examples=FILE.jsonl")
    texts = opened.generate_many(
        [text], samples=args.samples, tokens=args.tokens, temperature=args.temperature, top_k=args.top_k,
        top_p=args.top_p, seed=args.seed, chat=args.chat, system=args.system, stop=args.stop, choices=choices, **chosen,
    )  # fmt: skip
    for found in texts:
        print(found)
        if args.samples > 1:
            print("---")
    return 0


def _answer(opened: Any, text: str, chosen: dict[str, Any], choices: list[str], args: Any) -> None:
    """Print the answer of a prompt program, and the text that holds it."""
    if "second" in chosen:
        raise UserError(
            f"a prompt program asks one model, and second={chosen['second']} names another\n"
            f"    try: ablatio generate {shell_word(args.run)} {shell_word(text)} decode=speculative "
            f"second={shell_word(chosen['second'])}"
        )
    if not text.strip():
        raise UserError(
            f'prompt=... needs a question\n    try: ablatio generate {shell_word(args.run)} "2+3=" prompt=zero_shot'
        )
    shown = _examples(Path(chosen["examples"])) if "examples" in chosen else []
    reply = opened.answer(
        text, prompt=chosen["prompt"], examples=shown, choices=choices, decode=chosen.get("decode"),
        tokens=args.tokens, seed=args.seed, reward=chosen.get("reward"),
    )  # fmt: skip
    print(reply.text.strip() or reply.answer)
    print(f"answer: {reply.answer}")
    used = reply.usage
    print(f"calls of the model {used.calls}, tokens read {used.read}, generated {used.generated}", file=sys.stderr)


def _words(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The text, and the parts and folders that words choose: {"decode": {"name": "beam", "width": 4}}."""
    texts, chosen = list[str](), dict[str, Any]()
    for word in words:
        key, equals, value = word.partition("=")
        kind, _, knob = key.partition(".")
        if equals and key in FOLDERS:
            chosen[key] = value
        # The text may itself hold a `=`, so only names of ours make a word a setting.
        elif equals and kind in KINDS and (not knob or knob.isidentifier()):
            chosen.setdefault(kind, {})[knob or "name"] = _value(word) if knob else value
        else:
            texts.append(word)
    if len(texts) > 1:
        raise UserError(f"got {len(texts)} texts, {texts[0]!r} and {texts[1]!r}; expected one, in quotes\n"
                        f"    try: ablatio generate RUN {' '.join(texts)!r}")  # fmt: skip
    for kind in KINDS:
        if kind in chosen and "name" not in chosen[kind]:
            knob = next(iter(chosen[kind]))
            raise UserError(f"{kind}.{knob} is a setting of no {kind}\n    try: {kind}=NAME {kind}.{knob}=..., as in "
                            f"`ablatio list {kind}`")  # fmt: skip
    return "".join(texts), chosen


def _value(word: str) -> Any:
    """The value of a setting, read as `ablatio train` reads it; text if it is no value."""
    from ablatio.config.grammar import parse

    setting = parse(word)
    return word.partition("=")[2] if setting is None or setting.is_sweep_override() else setting.value()


def _examples(path: Path) -> list[Any]:
    """Solved questions of a JSONL file."""
    from ablatio.model.prompting.types import Example

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"examples={path} cannot be read: {error}\n    try: ls {shell_word(path.absolute().parent)}"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append(Example(str(row["question"]), str(row["answer"]), str(row.get("rationale", ""))))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"examples={path}, line {number}: {line[:80]!r}; expected a JSON object with `question` and `answer`\n"
                """    try: echo '{"question": "2+3=", "answer": "5"}' > examples.jsonl"""
            ) from None
    return found
