"""`ablatio export RUN --to DIR`: export a run for transformers; `--adapter DIR`: export its adapter separately."""

from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser
from ablatio.storage.paths import shell_word

if TYPE_CHECKING:
    from ablatio.training.prepare import PreparedRun


def run(arguments: list[str]) -> int:
    """Run `ablatio export` and return its exit code."""
    options = parser("export")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("--to", type=Path, help="folder to write; must be new or empty")
    options.add_argument("--adapter", type=Path, help="folder for the adapter alone; --to then gets the base model")
    options.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    options.add_argument(
        "--as", dest="kind", help="llama, gpt2, opt, bloom, gpt_neox, t5 or ablatio; by default the first that fits"
    )
    args = options.parse_args(arguments)
    from ablatio.errors import UserError
    from ablatio.interop.export import OWN
    from ablatio.training.load import load_run

    if args.to is None and args.adapter is None:
        raise UserError(f"export needs a folder to write to\n    try: ablatio export {shell_word(args.run)} --to DIR")
    run, step = load_run(args.run, args.step)
    if args.adapter is not None:
        _adapter(run, args.adapter, args.kind)
        if args.to is None:
            return 0
    else:
        _merge(run)
    kind, apart = _export(run, args.to, args.kind)
    checked = (
        "not compared, because transformers is not installed"
        if apart is None
        else f"logits within {apart:.1g} of the run's"
    )
    print(f"{args.to}: step {step} as {kind}, {checked}")
    if kind == OWN:
        print(f"    AutoModelForCausalLM.from_pretrained({str(args.to)!r}) loads it where ablatio is installed")
    return 0


def export_to(folder: Path, to: Path, step: int | None = None) -> None:
    """Export the run in `folder`, with its adapter merged; EnvironmentFault if the exported model differs from it."""
    from ablatio.training.load import load_run

    run, _ = load_run(folder, step)
    _merge(run)
    _export(run, to)


def _merge(run: "PreparedRun") -> None:
    """Merge an adapter into the weights, and give layers that no longer share weights their own."""
    from dataclasses import replace

    from ablatio.model.peft.merge import merge, unshare
    from ablatio.model.quantized import dequantize

    dequantize(run.model)
    if merge(run.model).unshared:
        unshare(run.model)
        config = {**run.config, "model": {**run.config["model"], "distinct_layers": None}}
        run.spec = replace(run.spec, config=config)


def _export(run: "PreparedRun", to: Path, kind: str | None = None) -> tuple[str, float | None]:
    """Write the folder; returns its kind, and the largest difference of its logits from those of the run."""
    from ablatio.errors import EnvironmentFault
    from ablatio.interop.export import difference, export
    from ablatio.registry import kinds

    template = run.setup.template if kinds.tasks[run.config["task"]["name"]].facts["template"] else None
    kind = export(run.config, run.model, run.tokenizer, to, kind, template)
    apart = difference(to, run.model)
    # Written so that NaN, which is not above any number, is refused too.
    if apart is not None and not apart < 1e-3:
        raise EnvironmentFault(
            f"{to} is wrong: its logits differ from the run's by {apart:g}; do not use it\n    try: --as ablatio"
        )
    return kind, apart


def _adapter(run: "PreparedRun", folder: Path, kind: str | None) -> None:
    """Write the adapter to `folder`, and leave the base model without it in `run`."""
    from ablatio.errors import UserError
    from ablatio.interop.export import family_for
    from ablatio.interop.peft_export import export_adapter
    from ablatio.model.peft.adapter_files import save_adapter
    from ablatio.model.peft.merge import bare_base
    from ablatio.model.quantized import dequantize
    from ablatio.registry.kinds import pefts

    choice = run.config["peft"]
    if choice["name"] == pefts.default:
        raise UserError("this run has no adapter: it trained all weights\n    try: ablatio export RUN --to DIR")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and is not overwritten\n    try: --adapter {folder}-2")
    # Before anything is written, because it refuses a class that does not fit.
    family = family_for(run.config, run.tokenizer, kind)
    model = run.config["model"]
    save_adapter(
        folder, run.model, choice, "" if model["path"] is None else f"model={model['start']} model.path={model['path']}"
    )
    why_not = export_adapter(folder, run.model, run.tuning.part, family)
    format_note = (
        f"not in the format of the peft library: {why_not}" if why_not else "also in the peft library's format"
    )
    print(f"{folder}: adapter of peft={choice['name']}, {format_note}")
    dequantize(run.model)
    bare_base(run.model)
