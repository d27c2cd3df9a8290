"""`ablatio artifact RUN`: bytes of a run's weights after compression, and of the code of its parts."""

import json
from pathlib import Path

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio artifact` and return its exit code."""
    options = parser("artifact")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("--quantization", help="round the weights first: int6, gptq; by default as the run does")
    options.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_args(arguments)
    from ablatio.api.run_folder import open_run

    found = open_run(args.run, args.step).artifact(args.quantization)
    if args.json:
        print(json.dumps({"run": str(args.run), **found}))
        return 0
    notes = {
        "weights": "codes, and numbers in 16 bits",
        "compressed": "the same after LZMA",
        "code": "sources of the parts in the model and their settings, after LZMA",
        "artifact": "compressed weights and code",
    }
    for name, note in notes.items():
        print(f"{name:<11}{found[name]:>12,} bytes  {note}")
    return 0
