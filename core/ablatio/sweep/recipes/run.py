"""Run the stages of a planned recipe: finished ones are kept, interrupted ones continue; recipe.json has the state.

FOLDER/recipe.json   the command, and for each stage its settings, its inputs and its result
FOLDER/01-sft/       run folder of the first stage, as `ablatio train` writes one
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablatio.config import kept_files
from ablatio.errors import AblatioError, EnvironmentFault, Preempted, UserError
from ablatio.registry import parts_file
from ablatio.registry.parts_file import refuse_another
from ablatio.storage.atomic_write import make_folder, write_json, write_text
from ablatio.storage.folder_lock import own
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word
from ablatio.sweep.recipes.plan import Plan, Planned, plan_recipe
from ablatio.sweep.recipes.schema import FILE
from ablatio.training import provenance
from ablatio.training.run_folder import LOCK, earlier_id, id_in, refuse_link, run_id

Train = Callable[[Mapping[str, Any], Mapping[str, Any], Path, bool], None]  # (settings, public, folder, resume)


def run_recipe(plan: Plan, train: Train, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the open stages of a plan with `train`, one after the other; return the content of recipe.json.

    say: takes a line on each stage
    """
    refuse_link(plan.folder)
    _refuse_another(plan)
    with own(make_folder(plan.folder) / LOCK) as other:
        if other:
            raise UserError(
                f"{plan.folder} is in use: {other} runs this recipe\n    try: `{other.stop}`, which makes it save a "
                f"checkpoint and end, and then ablatio resume {shell_word(plan.folder)}"
            )
        return _run(plan, train, say)


def _run(plan: Plan, train: Train, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the open stages of a plan in a folder that this process owns; arguments as for `run_recipe`."""
    record = _keep_files(plan)
    for number, stage in enumerate(plan.stages, 1):
        write_json(plan.folder / FILE, told(plan) | record)
        what = f": {stage.what}" if stage.what else ""
        say(f"\nstage {number} of {len(plan.stages)}, {stage.name}{what}")
        if status_of(stage.folder) == "done":
            say(f"{stage.folder} is finished")
            continue
        try:
            train(stage.composed.config, stage.composed.public, make_folder(stage.folder), True)
        except Preempted as error:
            first = str(error).splitlines()[0]
            raise Preempted(f"stage {stage.name}: {first}\n    try: ablatio resume {shell_word(plan.folder)}") from None
        except AblatioError as error:
            error.args = (f"stage {stage.name}: {error}",)
            raise
        finally:
            write_json(plan.folder / FILE, told(plan) | record)
    return told(plan)


def _keep_files(plan: Plan) -> dict[str, Any]:
    """Copy the user's own files that the recipe needs into its folder; returns their entries of recipe.json."""
    files = kept_files.keep(plan.overrides, plan.folder)
    if not files and (plan.folder / FILE).exists():  # a resumed recipe was read from its copies
        files = read(plan.folder).get(kept_files.RECORD) or []
    parts = next(filter(None, (provenance.parts_file(stage.composed.config) for stage in plan.stages)), {})
    if parts and (file := parts_file.current()):
        write_text(plan.folder / parts_file.COPY, file.text)
    return ({kept_files.RECORD: files} if files else {}) | ({parts_file.RECORD: parts} if parts else {})


def read(folder: Path) -> dict[str, Any]:
    """Read recipe.json of a folder."""
    path = folder / FILE
    try:
        found: Any = read_object(path)
        if not isinstance(found["overrides"], list) or not isinstance(found["stages"], list):
            raise ValueError("overrides and stages are lists")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}\n    try: ls {shell_word(folder)}") from None
    return dict(found)


def resumed(folder: Path, overrides: list[str]) -> Plan:
    """Plan the recipe that was begun in `folder`, with other `trainer.*` settings if given."""
    foreign = [text for text in overrides if not text.startswith("trainer.")]
    if foreign:
        raise UserError(
            f"{foreign[0]} came with resume=: a resumed recipe keeps its settings; trainer.* may change\n"
            f"    try: ablatio resume {shell_word(folder)}"
        )
    given = {text.split("=")[0] for text in overrides}
    state = read(folder)
    kept = [text for text in state["overrides"] if text.split("=")[0] not in given]
    refuse_another(parts_file.recorded_in(folder / FILE), folder)
    with kept_files.kept(state.get(kept_files.RECORD), folder):
        plan = plan_recipe([*kept, *overrides])
    if plan.folder.resolve() != folder.resolve():
        raise UserError(
            f"{folder} was begun as {plan.folder}, and its stages look for one another there\n"
            f"    try: move it back, or go to the folder in which {plan.folder} is this one"
        )
    return plan


def _refuse_another(plan: Plan) -> None:
    """Refuse a folder that holds anything but the same recipe."""
    if not plan.folder.exists() or not any(path.name != LOCK for path in plan.folder.iterdir()):
        return
    other = f"    try: the same command with name={plan.folder.name}-2"
    if not (plan.folder / FILE).exists():
        raise UserError(f"{plan.folder} holds something already, and is no recipe's folder\n{other}")
    old = {stage["stage"]: stage["run"] for stage in read(plan.folder)["stages"]}
    new = {s.name: (run_id(s.composed.config), earlier_id(s.composed.config)) for s in plan.stages}
    if changed := ", ".join(name for name in {**old, **new} if old.get(name) not in new.get(name, ())):
        raise UserError(
            f"{plan.folder} holds a recipe with other settings; they differ in {changed}\n{other}, or "
            f"`ablatio resume {shell_word(plan.folder)}`"
        )


def told(plan: Plan) -> dict[str, Any]:
    """State of the recipe; `run` is the id of a stage's run in its checkpoints."""
    return {
        "recipe": plan.recipe.name,
        "paper": plan.recipe.paper,
        "overrides": list(plan.overrides),
        "stages": [_told(stage) for stage in plan.stages],
    }


def _told(stage: Planned) -> dict[str, Any]:
    summary = summary_of(stage.folder)
    score = summary.get("score") or {}
    before = (summary.get("before") or {}).get(str(score.get("name", "")).removeprefix("val/"))
    return {
        "stage": stage.name,
        "what": stage.what,
        "folder": stage.folder.name,
        "task": stage.composed.config["task"]["name"],
        "takes": list(stage.takes),
        "overrides": stage.composed.overrides,
        "run": id_in(stage.folder, stage.composed.config),
        "status": summary.get("status") or ("begun" if (stage.folder / "config.json").exists() else "open"),
        "score": {**score, "before": before} if score else None,
        "steps": summary.get("steps"),
        "tokens": summary.get("tokens"),
        "parameters": summary.get("parameters"),
        "seconds": summary.get("seconds"),
    }


def status_of(folder: Path) -> str:
    """Status of a run folder; empty if it has none."""
    return str(summary_of(folder).get("status", ""))


def summary_of(folder: Path) -> dict[str, Any]:
    """Read the summary of a stage's run; empty if there is none yet."""
    path = folder / "summary.json"
    try:
        return read_object(path, {"score": (dict, type(None)), "before": (dict, type(None))})
    except FileNotFoundError:
        return {}


def show_table(found: Mapping[str, Any], folder: Path) -> None:
    """Print the stages with their main scores."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"recipe={found['recipe']} in {escape(str(folder))}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "task", "starts from", "score", "before", "after", "better", "steps", "seconds"):
        right = column in ("before", "after", "steps", "seconds")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for stage in found["stages"]:
        score = stage["score"] or {}
        numbers = (f"{v:.3f}" if isinstance(v := score.get(k), float | int) else "-" for k in ("before", "value"))
        name = str(score.get("name", "")).removeprefix("val/")
        cells = stage["task"], ", ".join(stage["takes"]), name, *numbers
        spent = (str(stage["steps"]), f"{stage['seconds']:.0f}") if score else ("-", "-")
        table.add_row(stage["stage"], *map(escape, cells), str(score.get("better", "")), *spent)
    Console().print(table)
