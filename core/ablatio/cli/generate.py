"""`ablatio generate RUN "We the people"`: text from a run."""

from pathlib import Path

from ablatio.cli.commands import parser


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
    from ablatio.api.run_folder import open_run

    texts = open_run(asked.run, asked.step).generate_many(
        [asked.prompt] * asked.samples, tokens=asked.tokens, temperature=asked.temperature, top_k=asked.top_k,
        top_p=asked.top_p, seed=asked.seed, chat=asked.chat, system=asked.system,
    )  # fmt: skip
    for text in texts:
        print(text)
        if asked.samples > 1:
            print("---")
    return 0
