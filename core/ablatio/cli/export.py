"""`ablatio export RUN --to DIR`: a folder that transformers loads; `--adapter DIR`: what peft added, apart."""

from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser

if TYPE_CHECKING:
    from ablatio.training.prepare import PreparedRun


def run(arguments: list[str]) -> int:
    options = parser("export")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("--to", type=Path, help="the folder to write; it must be new or empty")
    options.add_argument("--adapter", type=Path, help="keep the adapter apart, in this folder; --to gets its base")
    options.add_argument("--step", type=int, help="a checkpoint's step; by default the newest")
    options.add_argument(
        "--as", dest="kind", help="llama, gpt2, opt, bloom, gpt_neox, t5 or ablatio; by default what fits"
    )
    asked = options.parse_args(arguments)
    from ablatio.errors import EnvironmentFault, UserError
    from ablatio.interop.export import OWN, difference, export
    from ablatio.registry import kinds
    from ablatio.training.load import load_run

    if asked.to is None and asked.adapter is None:
        raise UserError(f"export needs a folder\n    try: ablatio export {asked.run} --to DIR")
    run, step = load_run(asked.run, asked.step)
    if asked.adapter is not None:
        _adapter(run, asked.adapter, asked.kind)
        if asked.to is None:
            return 0
    else:
        from ablatio.model.peft.merge import merge
        from ablatio.model.quantized import dequantize

        dequantize(run.model)
        merge(run.model)
    template = run.setup.template if kinds.tasks[run.config["task"]["name"]].facts["template"] else None
    kind = export(run.config, run.model, run.tokenizer, asked.to, asked.kind, template)
    apart = difference(asked.to, run.model)
    if apart is not None and not apart < 1e-3:
        raise EnvironmentFault(f"{asked.to} is wrong: its logits are {apart:g} from the run's; do not use it")
    checked = (
        "transformers is not installed: not compared" if apart is None else f"logits within {apart:.1g} of the run's"
    )
    print(f"{asked.to}: step {step} as {kind}, {checked}")
    if kind == OWN:
        print("    load it with: import ablatio.interop.transformers_model; AutoModelForCausalLM.from_pretrained(...)")
    return 0


def _adapter(run: "PreparedRun", folder: Path, kind: str | None) -> None:
    """Write what was learned, and leave the base in the run's model."""
    from ablatio.errors import UserError
    from ablatio.interop.export import family_for
    from ablatio.interop.peft_export import export_adapter
    from ablatio.model.peft.adapter_files import save_adapter
    from ablatio.model.peft.merge import bare_base
    from ablatio.model.quantized import dequantize
    from ablatio.registry.kinds import pefts

    choice = run.config["peft"]
    if choice["name"] == pefts.default:
        raise UserError("this run has no adapter: all of its weights were trained\n    try: --to DIR alone")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; nothing is written over\n    try: --adapter another folder")
    family = family_for(run.config, run.tokenizer, kind)
    model = run.config["model"]
    save_adapter(
        folder, run.model, choice, "" if model["path"] is None else f"model={model['start']} model.path={model['path']}"
    )
    why_not = export_adapter(folder, run.model, run.tuning.part, family)
    as_theirs = f"not as the library peft has it: {why_not}" if why_not else "also as the library peft loads it"
    print(f"{folder}: what peft={choice['name']} learned, {as_theirs}")
    dequantize(run.model)
    bare_base(run.model)
