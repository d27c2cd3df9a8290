"""`ablatio train [SETTING=VALUE ...]`: train one run, run a sweep with -m, or resume a run."""

import sys
from pathlib import Path

from ablatio.cli.pages import fitted
from ablatio.config import local_files, schema, yaml_files
from ablatio.errors import UserError
from ablatio.registry import consumers, discovery, per_layer
from ablatio.registry.registry import REGISTRIES
from ablatio.sweep.recipes import schema as recipes

USAGE = """\
ablatio train [-m] [SETTING=VALUE ...]

  norm=layernorm            choose a part; `ablatio list` has all, `ablatio show norm=layernorm` one
  optimizer.lr=1e-3         set a knob of a chosen part
  train.steps=500 seed=2    set how long, how big, how often
  train.minutes=10          as many steps as fit into this time here; the run records them
  size=tiny                 a model size: {sizes}
  preset=gpt2               a published combination: {presets}
  preset=bloom size=176b    at its true size; `ablatio size preset=bloom size=176b` shows what that takes
  experiment=NAME           settings from a file of ./conf/experiment, of ablatio or of a plugin
  experiment=./my.yaml      settings from any file; so do +sweep=./study.yaml, preset=./x.yaml, recipe=./r.yaml
  parts=./my_parts.py       execute a file of your own that registers parts, and use them by name
  --config-dir DIR          a folder of options besides ./conf and ./sweeps: DIR/GROUP/NAME.yaml
  recipe=instructgpt        runs that follow one another: {recipes}
  stages.sft.train.steps=50 set a knob of one stage of a recipe; other settings apply to all stages
  extend=RUN train.steps=N  continue a finished run with a longer budget; its schedule is computed anew
  resume=RUN                continue an interrupted run or recipe; only trainer.* may be changed
  -m norm=a,b seed=1,2      all combinations, one after the other; -m +sweep=NAME takes a study: {sweeps}
                            with recipe= an arm is a whole recipe; stages that arms share run once
  --cfg job                 print the composed config and stop; --info, --hydra-help: what Hydra knows

parts:
{parts}

settings (`ablatio show SECTION` explains each):
{sections}

A run leaves config.json, manifest.json, metrics.csv, summary.json and checkpoints/ in runs/TIME (out=, name=)."""
MANY = ("-m", "--multirun")  # flags of a sweep
HYDRA_QUESTIONS = ("--cfg", "-c", "--info", "-i", "--hydra-help")  # flags that print and do not train
REFUSED_FLAGS = {  # why, and a command in place of it
    "--experimental-rerun": ("it loads a pickle, which can execute arbitrary code", "ablatio train resume=runs/NAME"),
    "--config-name": (
        "the config is conf/train.yaml; put yours into an experiment, ./conf/experiment/NAME.yaml",
        "ablatio train experiment=NAME",
    ),
    "--config-path": (
        "the config is conf/train.yaml; put options into ./conf/GROUP/NAME.yaml, or into another such folder",
        "ablatio train --config-dir DIR",
    ),
}


def run(arguments: list[str]) -> int:
    """Execute the command with its arguments and return the exit code."""
    if "-h" in arguments or "--help" in arguments:
        print(_usage())
        return 0
    flags = [a for a in arguments if a.startswith("-")]
    for flag in flags:
        if (name := flag.split("=")[0]) in REFUSED_FLAGS:
            reason, instead = REFUSED_FLAGS[name]
            raise UserError(f"{name} is refused: {reason}\n    try: {instead}")
    # Said, but no error: a run that does not use the broken plugin can go on.
    for failure in _failures():
        print(f"ablatio: {failure}", file=sys.stderr)
    overrides = [a for a in arguments if not a.startswith("-")]
    for sentence in local_files.replacements(yaml_files.files()):
        print(f"ablatio: {sentence}", file=sys.stderr)
    # Before the flags that print, which ask for one config: a recipe has several, and refuses them in its own words.
    if any(o.lstrip("+").startswith(f"{recipes.RECIPE}=") for o in overrides):
        return _recipe(overrides, flags)
    if shown := [flag for flag in flags if flag.split("=")[0] in HYDRA_QUESTIONS]:
        if several := [flag for flag in flags if flag in MANY]:
            raise UserError(
                f"{shown[0]} shows a single run; it cannot be combined with {several[0]}\n"
                "    try: ablatio train --cfg job, with one value of each setting"
            )
        from ablatio.cli.hydra_flags import hydra_flags

        return hydra_flags(arguments)
    unknown = [f for f in flags if f not in MANY]
    if unknown:
        raise UserError(f"train has no flag {unknown[0]}\n    try: ablatio train --help")
    resumed = [o.split("=", 1)[1] for o in overrides if o.startswith("resume=")]
    if resumed:
        return _resume(Path(resumed[-1]), [o for o in overrides if not o.startswith("resume=")], bool(flags))
    if flags:
        return _study(overrides)
    return _single(overrides)


def _recipe(overrides: list[str], flags: list[str]) -> int:
    """Run the stages of a recipe one after the other, or a sweep over recipes; the same command resumes it."""
    if flags:
        name = next(o for o in overrides if o.lstrip("+").startswith(f"{recipes.RECIPE}="))
        if wrong := [flag for flag in flags if flag not in MANY]:
            raise UserError(f"{wrong[0]} shows a single run, and a recipe has several\n    try: ablatio show {name}")
        return _study(overrides)
    return _single(overrides)


def _study(overrides: list[str]) -> int:
    """Run a sweep."""
    from ablatio.api.studies import run_study

    for said in consumers.axes_without_effect(overrides):
        print(f"ablatio: warning: {said}", file=sys.stderr)
    run_study(*overrides)
    return 0


def _single(overrides: list[str]) -> int:
    """Train one run."""
    from ablatio.api.training_runs import train

    train(*overrides)
    return 0


def _resume(folder: Path, overrides: list[str], many: bool) -> int:
    """Continue the run in `folder` with its own config."""
    if many:
        raise UserError("resume= continues one run; it cannot be combined with -m\n    try: ablatio train resume=RUN")
    from ablatio.api.training_runs import resume_run

    resume_run(folder, *overrides)
    return 0


def _failures() -> list[discovery.Failure]:
    """Plugins that could not be loaded."""
    return discovery.failures()


def _usage() -> str:
    """Text of --help, with the parts, sizes, presets, sweeps and recipes that are installed."""
    discovery.load()
    files = yaml_files.files()
    groups = {
        "sizes": yaml_files.SIZE,
        "presets": yaml_files.PRESET,
        "sweeps": yaml_files.SWEEP,
        "recipes": recipes.RECIPE,
    }
    options = {word: ", ".join(sorted(files[group])) for word, group in groups.items()}
    width = max(map(len, REGISTRIES)) + 1
    parts = "\n".join(f"  {kind + '=':<{width}}  {', '.join(r.entries)}" for kind, r in REGISTRIES.items())
    rows = {n: [k.name for k in schema.section_knobs(s)] for n, s in {"run": schema.Run, **schema.SECTIONS}.items()}
    rows[per_layer.LAYERS] = [registry.kind for registry in per_layer.kinds()] + [per_layer.AT]
    sections = "\n".join(f"  {n:<{width}}  {', '.join(names)}" for n, names in rows.items())
    return fitted(USAGE.format(**options, parts=parts, sections=sections))
