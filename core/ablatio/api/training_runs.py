"""Train one run, and resume one: `ablatio.train`, `ablatio.resume_run`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.api import adapter, minutes
from ablatio.api.run_folder import RunFolder
from ablatio.api.session import composing, computing
from ablatio.api.settings import value, without, words_of
from ablatio.config import schema
from ablatio.config.compose import Composed
from ablatio.config.packages import check_packages
from ablatio.errors import ConfigError, UserError
from ablatio.storage.json_files import read_object_if_any
from ablatio.storage.paths import shell_word
from ablatio.storage.streams import lasting_stdout
from ablatio.sweep.recipes import schema as recipes
from ablatio.training.rank_environment import from_environment, is_first, join_slurm_step, node_rank

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from rich.console import Console

    from ablatio.sweep.recipes.plan import Plan


def train(
    *overrides: str,
    name: str | None = None,
    out: "str | Path | None" = None,
    callbacks: "Sequence[Callback]" = (),
    quiet: bool = False,
) -> RunFolder:
    """Train one model and return its run, like `ablatio train` on the command line, with the same settings and numbers.

        run = ablatio.train("norm=rmsnorm", "optimizer.lr=1e-3", "seed=1", name="first")

    overrides  settings as on the command line, one per string
    name, out  of the run folder, OUT/NAME; by default the time, in `runs`
    callbacks  your own Lightning callbacks; the run's manifest records their classes
    quiet      print nothing

    With recipe=NAME the stages run one after the other, and the run of the last stage is returned.

    Raises ConfigError with all problems of the settings, Diverged if a loss is not finite, and Preempted if the run was
    interrupted: then it has a checkpoint, and `ablatio.resume_run(folder)` continues it.
    """
    words = words_of("train", overrides, name, out)
    console = console_for(quiet)
    if (resumed := value(words, "resume")) is not None:
        return resume_run(Path(resumed), *without(words, "resume"), callbacks=callbacks, quiet=quiet)
    adapter.check_callbacks(callbacks)
    with composing():
        words = minutes.with_steps(words, console)
    if value(words, recipes.RECIPE) is not None:
        with composing():
            from ablatio.sweep.recipes.plan import plan_recipe

            plan = plan_recipe(words)
            check_packages([stage.composed.config for stage in plan.stages])
        return _run_recipe(plan, console, callbacks)
    with composing():
        composed = adapter.composed(words)
        check_packages([composed.config])
    from ablatio.training.run_folder import discard_empty, folder_of_other_machine, new_folder

    join_slurm_step(composed.config["trainer"])
    # torchrun and Slurm start this program once for each rank.
    if from_environment() is not None:
        return _train_as_rank(composed, console, callbacks)
    if node_rank(int(composed.config["trainer"]["nodes"])) > 0:  # the first machine makes the folder
        folder = folder_of_other_machine(composed.config)
        _train(composed.config, composed.public, folder, console_for(True), callbacks)
        return RunFolder(folder)
    folder = new_folder(composed.config)
    with discard_empty(folder):
        _train(composed.config, composed.public, folder, console, callbacks)
    return RunFolder(folder)


def resume_run(
    folder: "str | Path", *overrides: str, callbacks: "Sequence[Callback]" = (), quiet: bool = False
) -> RunFolder:
    """Continue an interrupted run from its last checkpoint, bit for bit, like `ablatio resume RUN` on the command line.

    overrides  only `trainer.*` and `strategy` may be changed: on which devices it runs
    callbacks  as for `train`; the manifest keeps those with which the run began
    """
    folder, words = Path(folder), words_of("resume_run", overrides)
    adapter.check_callbacks(callbacks)
    if (folder / recipes.FILE).exists():
        with composing():
            from ablatio.sweep.recipes.run import resumed

            plan = resumed(folder, words)
        return _run_recipe(plan, console_for(quiet or not is_first()), callbacks)
    with composing():
        settings = _resumed_settings(folder, words)
        check_packages([settings])
    join_slurm_step(settings["trainer"])
    console = console_for(quiet or not is_first())
    if read_object_if_any(folder / "summary.json").get("status") == "done":
        console.print(f"{folder} is finished; nothing is left to do", highlight=False)
    else:
        public = read_object_if_any(folder / "config.json")
        _train(settings, public, folder, console, callbacks, resume=True)
    return RunFolder(folder)


def console_for(quiet: bool) -> "Console":
    """Return the console on which a run reports its progress."""
    from rich.console import Console

    return Console(quiet=quiet, file=lasting_stdout())


def _run_recipe(plan: "Plan", console: "Console", callbacks: "Sequence[Callback]") -> RunFolder:
    """Run the stages one after the other; repeating the call continues where it ended."""
    from ablatio.sweep.recipes.run import run_recipe, show_table

    def stage(settings: Mapping[str, Any], public: Mapping[str, Any], folder: Path, resume: bool) -> None:
        _train(settings, public, folder, console, callbacks, resume=resume)

    found = run_recipe(plan, stage, lambda line: console.out(line, highlight=False))
    if not console.quiet:
        show_table(found, plan.folder)
    return RunFolder(plan.stages[-1].folder)


def _train(
    settings: Mapping[str, Any],
    public: Mapping[str, Any],
    folder: Path,
    console: "Console",
    callbacks: "Sequence[Callback]" = (),
    resume: bool = False,
) -> None:
    from ablatio.training.run_summary import show_parts, show_result

    show_parts(console, settings, folder)  # first, because the import of torch takes seconds
    with computing():
        summary = adapter.train_in(folder, settings, public, console, resume=resume, callbacks=callbacks)
    show_result(console, summary, folder)


def _train_as_rank(composed: Composed, console: "Console", callbacks: "Sequence[Callback]") -> RunFolder:
    """Train as one of the ranks that torchrun or Slurm has started; rank 0 makes the folder and reports."""
    from ablatio.training.run_folder import new_folder

    with computing(), adapter.joined_ranks(composed.config) as ranks:
        folder = Path(ranks.told(lambda: str(new_folder(composed.config))))
        _train(composed.config, composed.public, folder, console if ranks.first else console_for(True), callbacks)
    return RunFolder(folder)


def _resumed_settings(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """Return the run's own config with the changed `trainer.*` settings.

    Raises UserError for a setting that affects the numbers, ConfigError for invalid values.
    """
    from ablatio.registry.registry import REGISTRIES

    machine = ("trainer.", *(f"{r.kind}{end}" for r in REGISTRIES.values() if r.scope == "devices" for end in "=."))
    foreign = [text for text in words if not text.startswith(machine)]
    if foreign:
        raise UserError(
            f"{foreign[0]} came with resume=: a resumed run keeps its settings, to equal an uninterrupted one\n"
            f"    try: ablatio train resume={shell_word(folder)}"
        )
    from ablatio.config.grammar import parse
    from ablatio.training.run_folder import read_run

    settings = read_run(folder)
    for text in words:
        override = parse(text)
        if override is None or override.is_sweep_override():
            what = f"{text!r} is no setting of one run; write key=value, and quote special characters"
            raise UserError(f"{what}\n    try: ablatio train resume={shell_word(folder)} trainer.device=cpu")
        section, _, key = override.key_or_group.partition(".")
        given = override.value()
        if key:
            settings[section][key] = given
        else:
            # The knobs of the strategy that the run had mean nothing to another one.
            settings[section] = {"name": given, **REGISTRIES[section][str(given)].defaults}
    if problems := schema.check(settings):
        raise ConfigError(problems)
    return schema.cast(settings)  # 16 is the name of a precision, not a number
