"""`ablatio generate RUN "We the people"`: sample text from a run."""

from pathlib import Path

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio generate` and return its exit code."""
    options = parser("generate")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("prompt", nargs="?", default="", help="beginning of the text; by default empty")
    options.add_argument("--chat", action="store_true", help="treat the prompt as a question and print only the answer")
    options.add_argument("--system", default="", help="with --chat: the system message; by default none")
    options.add_argument("--tokens", type=int, default=200, help="number of new tokens; by default 200")
    options.add_argument("--samples", type=int, default=1, help="number of texts; by default 1")
    options.add_argument(
        "--temperature", type=float, default=0.8, help="sampling temperature, 0 for greedy decoding; by default 0.8"
    )
    options.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens; by default 0: all")
    options.add_argument(
        "--top-p", type=float, default=0.95, help="sample from the likeliest tokens with this total probability (0.95)"
    )
    options.add_argument("--seed", type=int, default=1, help="seed of the sampling; by default 1")
    options.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    args = options.parse_args(arguments)
    from ablatio.api.run_folder import open_run

    texts = open_run(args.run, args.step).generate_many(
        [args.prompt] * args.samples, tokens=args.tokens, temperature=args.temperature, top_k=args.top_k,
        top_p=args.top_p, seed=args.seed, chat=args.chat, system=args.system,
    )  # fmt: skip
    for text in texts:
        print(text)
        if args.samples > 1:
            print("---")
    return 0
