"""`ablatio export RUN --to DIR`: a folder that transformers loads and generates with."""

from pathlib import Path

from ablatio.commands import parser


def run(arguments: list[str]) -> int:
    options = parser("export")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("--to", type=Path, required=True, help="the folder to write; it must be new or empty")
    options.add_argument("--step", type=int, help="a checkpoint's step; by default the newest")
    options.add_argument(
        "--as", dest="kind", help="llama, gpt2, opt, bloom, gpt_neox, t5 or ablatio; by default what fits"
    )
    asked = options.parse_args(arguments)
    from ablatio.errors import EnvironmentFault
    from ablatio.export import OWN, difference, export
    from ablatio.tasks.load import load_run

    run, step = load_run(asked.run, asked.step)
    kind = export(run.config, run.model, run.tokenizer, asked.to, asked.kind)
    apart = difference(asked.to, run.model)
    if apart is not None and not apart < 1e-3:
        raise EnvironmentFault(f"{asked.to} is wrong: its logits are {apart:g} from the run's; do not use it")
    checked = (
        "transformers is not installed: not compared" if apart is None else f"logits within {apart:.1g} of the run's"
    )
    print(f"{asked.to}: step {step} as {kind}, {checked}")
    if kind == OWN:
        print("    load it with: import ablatio.hf; AutoModelForCausalLM.from_pretrained(...)")
    return 0
