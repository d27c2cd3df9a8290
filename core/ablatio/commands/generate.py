"""`ablatio generate RUN "We the people"`: text from a run."""

from pathlib import Path

from ablatio.commands import parser


def run(arguments: list[str]) -> int:
    options = parser("generate")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("prompt", nargs="?", default="", help="what the text begins with; by default nothing")
    options.add_argument("--tokens", type=int, default=200, help="new tokens (200)")
    options.add_argument("--samples", type=int, default=1, help="texts (1)")
    options.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (0.8)")
    options.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 0: all (0)")
    options.add_argument("--top-p", type=float, default=0.95, help="only the likeliest that hold this mass (0.95)")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--step", type=int, help="a checkpoint's step; by default the newest")
    asked = options.parse_args(arguments)
    from ablatio.generate import Sampling, complete
    from ablatio.tasks.load import load_run

    run, _ = load_run(asked.run, asked.step)
    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.seed)
    for text in complete(run.model, run.tokenizer, [asked.prompt] * asked.samples, asked.tokens, sampling):
        print(text)
        if asked.samples > 1:
            print("---")
    return 0
